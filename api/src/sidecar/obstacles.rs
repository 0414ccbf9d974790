//! Why a template cannot carry the executor, each reason with path and remedy.

use serde_json::{Map, Value};

use super::{Mode, SYS_PTRACE, in_container, path};
use crate::labels;
use crate::validation::{Fault, Problem, Stage};

/// Name of the first container that is not the executor.
pub(super) fn first_container(template: &Value) -> Option<&str> {
    let containers = template.pointer("/spec/containers")?.as_array()?;
    containers
        .iter()
        .filter_map(|container| container.get("name").and_then(Value::as_str))
        .find(|name| !name.is_empty() && *name != labels::TASK_EXECUTOR)
}

/// The container that tasks run in, in the mode `in-container`, with its index: the one that the
/// default-container annotation names, else the first.
pub(super) fn main_container(template: &Value) -> Option<(usize, &Value)> {
    let containers = template.pointer("/spec/containers")?.as_array()?;
    let named = template
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(labels::DEFAULT_CONTAINER))
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty());
    let index = named
        .and_then(|name| path::index_of(containers, "containers", name))
        .or_else(|| path::index_of(containers, "containers", first_container(template)?))?;
    Some((index, containers.get(index)?))
}

/// Why a template cannot carry the executor in this mode.
pub(super) fn find(template: &Value, mode: Mode) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Some(spec) = template.get("spec").and_then(Value::as_object) else {
        let found = template.get("spec").filter(|spec| !spec.is_null());
        return vec![match found {
            None if template.is_object() => {
                problem("spec", Fault::Required, "must give the pod's containers")
            }
            None => invalid("", Some(template), "must be an object".to_owned()),
            Some(odd) => invalid("spec", Some(odd), "must be an object".to_owned()),
        }];
    };
    let switch = format!(
        "or set the label {}=disabled to leave the Pool alone",
        labels::INJECTION
    );
    if mode == Mode::Sidecar {
        process_namespace(&mut problems, spec, &switch);
    }
    if template.pointer("/spec/os/name").and_then(Value::as_str) == Some("windows") {
        problems.push(invalid(
            "spec.os.name",
            template.pointer("/spec/os/name"),
            format!("the executor runs on linux only; use linux nodes, {switch}"),
        ));
    }
    containers(&mut problems, template, spec);
    match mode {
        Mode::Sidecar => sidecar(&mut problems, spec),
        Mode::InContainer => sandbox(&mut problems, template, spec),
    }
    problems
}

fn process_namespace(problems: &mut Vec<Problem>, spec: &Map<String, Value>, switch: &str) {
    match spec.get("shareProcessNamespace") {
        None | Some(Value::Null | Value::Bool(true)) => {}
        found => problems.push(invalid(
            "spec.shareProcessNamespace",
            found,
            format!(
                "the executor needs the sandbox's processes; remove it or set it to true, {switch}"
            ),
        )),
    }
    if spec
        .get("hostPID")
        .is_some_and(|host| *host == Value::Bool(true))
    {
        problems.push(invalid(
            "spec.hostPID",
            spec.get("hostPID"),
            format!(
                "excludes shareProcessNamespace, which the executor needs; remove it, {switch}"
            ),
        ));
    }
}

fn containers(problems: &mut Vec<Problem>, template: &Value, spec: &Map<String, Value>) {
    match spec.get("containers") {
        None | Some(Value::Null | Value::Array(_)) => {}
        odd => {
            problems.push(invalid("spec.containers", odd, "must be a list".to_owned()));
            return;
        }
    }
    if first_container(template).is_none() {
        problems.push(no_main_container());
    }
}

/// The item of a list that has the sidecar's name.
fn named_executor<'a>(spec: &'a Map<String, Value>, list: &str) -> Option<(String, &'a Value)> {
    let items = spec.get(list).and_then(Value::as_array)?;
    path::index_of(items, list, labels::TASK_EXECUTOR)
        .map(|index| (format!("spec.{list}[{index}]"), &items[index]))
}

fn sidecar(problems: &mut Vec<Problem>, spec: &Map<String, Value>) {
    let find = |list: &str| named_executor(spec, list);
    if let Some((at, init)) = find("initContainers")
        && init.get("restartPolicy").and_then(Value::as_str) != Some("Always")
    {
        problems.push(invalid(
            &format!("{at}.name"),
            init.get("name"),
            "is the name of the executor's sidecar; rename this init container, or give it restartPolicy Always if it is the sidecar".to_owned(),
        ));
    }
    for (at, executor) in find("containers").into_iter().chain(find("initContainers")) {
        let dropped = executor
            .pointer("/securityContext/capabilities/drop")
            .and_then(Value::as_array);
        for (index, name) in dropped.into_iter().flatten().enumerate() {
            let bare = name.as_str().map(str::to_ascii_uppercase);
            if bare.is_some_and(|name| name.trim_start_matches("CAP_") == SYS_PTRACE) {
                problems.push(invalid(
                    &format!("{at}.securityContext.capabilities.drop[{index}]"),
                    Some(name),
                    "the executor needs SYS_PTRACE; remove it from drop (drop ALL with add SYS_PTRACE is fine)".to_owned(),
                ));
            }
        }
    }
}

/// What the mode `in-container` asks of the sandbox's container: above all a command, which the executor
/// starts. What the image would run is not known here, and nothing is guessed.
fn sandbox(problems: &mut Vec<Problem>, template: &Value, spec: &Map<String, Value>) {
    for list in ["containers", "initContainers"] {
        if let Some((at, container)) = named_executor(spec, list) {
            problems.push(invalid(
                &format!("{at}.name"),
                container.get("name"),
                format!(
                    "is the sidecar, which the mode in-container has not; remove this container, or the annotation {}",
                    labels::EXECUTOR_MODE
                ),
            ));
        }
    }
    if let Some(evidence) = in_container::evidence(template) {
        problems.push(Problem {
            path: full("spec.containers"),
            fault: Fault::Forbidden,
            detail: format!(
                "{evidence}; let it, and remove the annotation {}, or take it out",
                labels::EXECUTOR_MODE
            ),
            stage: Stage::Webhook,
        });
    }
    let Some((index, container)) = main_container(template) else {
        return;
    };
    let at = format!("spec.containers[{index}].command");
    let command = container.get("command");
    let is_text = |words: &Vec<Value>| words.iter().all(Value::is_string);
    match command {
        None | Some(Value::Null) => problems.push(no_command(&at)),
        Some(Value::Array(words)) if words.is_empty() => problems.push(no_command(&at)),
        Some(Value::Array(words)) if is_text(words) => {}
        odd => problems.push(invalid(&at, odd, "must be a list of strings".to_owned())),
    }
}

fn no_command(at: &str) -> Problem {
    problem(
        at,
        Fault::Required,
        "in the mode in-container the executor starts it, and what the image starts by itself is not known; set the command that the image documents",
    )
}

pub(super) fn no_main_container() -> Problem {
    problem(
        "spec.containers",
        Fault::Required,
        "must list a named container besides task-executor; add the sandbox's container",
    )
}

fn problem(path: &str, fault: Fault, detail: &str) -> Problem {
    Problem {
        path: full(path),
        fault,
        detail: detail.to_owned(),
        stage: Stage::Webhook,
    }
}

pub(super) fn invalid(path: &str, value: Option<&Value>, detail: String) -> Problem {
    let shown = crate::validation::shown(value.unwrap_or(&Value::Null));
    Problem {
        path: full(path),
        fault: Fault::Invalid(shown),
        detail,
        stage: Stage::Webhook,
    }
}

/// Problems are told by the path in the Pool, which is what a person can edit.
fn full(path: &str) -> String {
    if path.is_empty() {
        "spec.template".to_owned()
    } else {
        format!("spec.template.{path}")
    }
}
