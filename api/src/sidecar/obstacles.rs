//! Why a template cannot carry the sidecar, each reason with path and remedy.

use serde_json::{Map, Value};

use super::{SYS_PTRACE, path};
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

/// Why a template cannot carry the sidecar.
pub(super) fn find(template: &Value) -> Vec<Problem> {
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
    if template.pointer("/spec/os/name").and_then(Value::as_str) == Some("windows") {
        problems.push(invalid(
            "spec.os.name",
            template.pointer("/spec/os/name"),
            format!("the executor runs on linux only; use linux nodes, {switch}"),
        ));
    }
    containers(&mut problems, template, spec);
    problems
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
        problems.push(problem(
            "spec.containers",
            Fault::Required,
            "must list a named container besides task-executor; add the sandbox's container",
        ));
    }
    let find = |list: &str| {
        let items = spec.get(list).and_then(Value::as_array)?;
        path::index_of(items, list, labels::TASK_EXECUTOR)
            .map(|index| (format!("spec.{list}[{index}]"), &items[index]))
    };
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
