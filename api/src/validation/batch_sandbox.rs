//! Rules of `BatchSandbox`.

use serde_json::{Map, Value};

use super::shape::{boolean, field, integer, list, object, string};
use super::{Fault, Problem, Problems, Stage, expire_time, pod_template, pool};
use crate::labels;
use crate::shard_patch::{self, Kind};

/// Every reason to refuse this BatchSandbox, `old` being the stored one on an update.
pub fn batch_sandbox(new: &Value, old: Option<&Value>) -> Vec<Problem> {
    let mut problems = Problems::default();
    pool::metadata(&mut problems, new);
    let spec = match new.get("spec").filter(|spec| !spec.is_null()) {
        None => {
            problems.required(
                Stage::Schema,
                "spec",
                "must be set; see `kubectl explain batchsandbox.spec`",
            );
            return problems.into_vec();
        }
        spec => object(&mut problems, Stage::Schema, "spec", spec),
    };
    if let Some(spec) = spec {
        let old_spec = old
            .and_then(|old| old.get("spec"))
            .and_then(Value::as_object);
        let replicas = integer(
            &mut problems,
            Stage::Schema,
            "spec.replicas",
            field(spec, "replicas"),
            0,
            i64::from(i32::MAX),
        );
        source(&mut problems, spec, old_spec);
        pod_template::check(&mut problems, "spec.template", field(spec, "template"));
        shard_patches(&mut problems, spec);
        lifetime(&mut problems, spec);
        tasks(&mut problems, spec, replicas.unwrap_or(1));
    }
    problems.into_vec()
}

/// Where the pods come from: exactly one of poolRef and template, save `*`, and never changed.
fn source(problems: &mut Problems, spec: &Map<String, Value>, old: Option<&Map<String, Value>>) {
    const PATH: &str = "spec.poolRef";
    let value = field(spec, "poolRef");
    let pool_ref = string(problems, Stage::Schema, PATH, value);
    if value.is_some() && pool_ref.is_none() {
        return;
    }
    let pool_ref = pool_ref.unwrap_or_default();
    let has_template = field(spec, "template").is_some();
    let old_ref = old
        .and_then(|old| field(old, "poolRef"))
        .and_then(Value::as_str)
        .unwrap_or_default();
    let old_has_template = old.is_some_and(|old| field(old, "template").is_some());
    if pool_ref.is_empty() && !has_template {
        problems.required(
            Stage::Schema,
            "spec",
            "one of poolRef and template is required; name a Pool in poolRef, let one be chosen with '*', or give the pod in template",
        );
    }
    let kept_from_assignment = old_has_template && !old_ref.is_empty();
    if !pool_ref.is_empty() && pool_ref != "*" && has_template && !kept_from_assignment {
        problems.invalid(
            Stage::Schema,
            PATH,
            &Value::from(pool_ref),
            "poolRef and template exclude each other unless poolRef is '*'; remove one of them",
        );
    }
    let assigned = old_ref == "*" && !pool_ref.is_empty();
    if old.is_some() && pool_ref != old_ref && !assigned {
        problems.invalid(
            Stage::Schema,
            PATH,
            &Value::from(pool_ref),
            format!(
                "poolRef is immutable (it is \"{old_ref}\"); create another BatchSandbox instead"
            ),
        );
    }
}

fn lifetime(problems: &mut Problems, spec: &Map<String, Value>) {
    expire_time::check(problems, field(spec, "expireTime"));
    integer(
        problems,
        Stage::Schema,
        "spec.ttlSecondsAfterFinished",
        field(spec, "ttlSecondsAfterFinished"),
        0,
        i64::from(i32::MAX),
    );
    if let Some(policy) = string(
        problems,
        Stage::Schema,
        "spec.taskResourcePolicyWhenCompleted",
        field(spec, "taskResourcePolicyWhenCompleted"),
    ) && !matches!(policy, "Retain" | "Release")
    {
        problems.push(
            Stage::Schema,
            "spec.taskResourcePolicyWhenCompleted",
            Fault::NotSupported(format!("\"{policy}\"")),
            "supported values are \"Retain\" and \"Release\"",
        );
    }
    if boolean(problems, Stage::Schema, "spec.pause", field(spec, "pause")) == Some(true) {
        problems.invalid(
            Stage::Schema,
            "spec.pause",
            &Value::from(true),
            "pausing is not supported yet; remove pause or set it to false",
        );
    }
}

/// Each patch must be an object that can be merged and leaves a pod with its containers.
fn shard_patches(problems: &mut Problems, spec: &Map<String, Value>) {
    const PATH: &str = "spec.shardPatches";
    let patches =
        list(problems, Stage::Schema, PATH, field(spec, "shardPatches")).unwrap_or_default();
    let template = field(spec, "template").filter(|template| template.is_object());
    for (index, patch) in patches.iter().enumerate() {
        let path = format!("{PATH}[{index}]");
        if object(problems, Stage::Schema, &path, Some(patch)).is_none() {
            continue;
        }
        let Some(template) = template else { continue };
        match shard_patch::apply(template, patch, Kind::PodTemplate) {
            Err(error) => bad_patch(
                problems,
                path,
                format!("cannot be merged into the template: {error}"),
            ),
            Ok(pod) => {
                if pod
                    .pointer("/spec/containers")
                    .and_then(Value::as_array)
                    .is_none_or(Vec::is_empty)
                {
                    bad_patch(
                        problems,
                        path,
                        "leaves the pod without containers; keep at least one".to_owned(),
                    );
                }
            }
        }
    }
}

/// A patch may hold secrets, so it is told by its path alone.
fn bad_patch(problems: &mut Problems, path: String, detail: String) {
    problems.push(
        Stage::Webhook,
        path,
        Fault::Invalid(super::NOT_SHOWN.to_owned()),
        detail,
    );
}

/// The base task and every patched one.
fn tasks(problems: &mut Problems, spec: &Map<String, Value>, replicas: i64) {
    const PATH: &str = "spec.taskTemplate";
    const PATCHES: &str = "spec.shardTaskPatches";
    let template = object(problems, Stage::Schema, PATH, field(spec, "taskTemplate"));
    let patches = list(
        problems,
        Stage::Schema,
        PATCHES,
        field(spec, "shardTaskPatches"),
    )
    .unwrap_or_default();
    for (index, patch) in patches.iter().enumerate() {
        object(
            problems,
            Stage::Schema,
            &format!("{PATCHES}[{index}]"),
            Some(patch),
        );
    }
    if field(spec, "taskTemplate").is_none() && !patches.is_empty() {
        problems.required(
            Stage::Schema,
            PATH,
            "shardTaskPatches needs a taskTemplate to patch; add taskTemplate or remove shardTaskPatches",
        );
    }
    let Some(template) = template else { return };
    let template_value = Value::Object(template.clone());
    let before = problems.0.len();
    task_shape(problems, Stage::Schema, PATH, template);
    let base_is_sound = problems.0.len() == before;
    let count = i64::try_from(patches.len()).unwrap_or(i64::MAX);
    let every_sandbox_has_its_own = field(spec, "shardTaskPatches").is_some() && count >= replicas;
    if !every_sandbox_has_its_own && !has_command(&template_value) && base_is_sound {
        problems.required(
            Stage::Schema,
            format!("{PATH}.spec.process.command"),
            "must name a program, unless shardTaskPatches gives every sandbox its own",
        );
    }
    if !base_is_sound {
        return;
    }
    for (index, patch) in patches
        .iter()
        .enumerate()
        .filter(|(_, patch)| patch.is_object())
    {
        patched_task(
            problems,
            &format!("{PATCHES}[{index}]"),
            &template_value,
            patch,
        );
    }
}

fn patched_task(problems: &mut Problems, path: &str, template: &Value, changes: &Value) {
    let task = match shard_patch::apply(template, changes, Kind::TaskTemplate) {
        Ok(task) => task,
        Err(error) => {
            bad_patch(
                problems,
                path.to_owned(),
                format!("cannot be merged into taskTemplate: {error}"),
            );
            return;
        }
    };
    match &task {
        Value::Object(fields) => task_shape(problems, Stage::Webhook, path, fields),
        _ => bad_patch(problems, path.to_owned(), "must leave an object".to_owned()),
    }
    if !has_command(&task) {
        problems.required(
            Stage::Webhook,
            format!("{path}.spec.process.command"),
            "the patched task has no command; name a program here or in taskTemplate",
        );
    }
}

fn has_command(task: &Value) -> bool {
    task.pointer("/spec/process/command")
        .and_then(Value::as_array)
        .is_some_and(|command| !command.is_empty())
}

/// Types of a task's fields, as the schema has them.
fn task_shape(problems: &mut Problems, stage: Stage, path: &str, task: &Map<String, Value>) {
    let spec_path = format!("{path}.spec");
    let Some(spec) = object(problems, stage, &spec_path, field(task, "spec")) else {
        return;
    };
    for seconds in ["timeoutSeconds", "gracePeriodSeconds"] {
        integer(
            problems,
            stage,
            &format!("{spec_path}.{seconds}"),
            field(spec, seconds),
            0,
            i64::MAX,
        );
    }
    let process_path = format!("{spec_path}.process");
    let Some(process) = object(problems, stage, &process_path, field(spec, "process")) else {
        return;
    };
    for name in ["command", "args"] {
        let path = format!("{process_path}.{name}");
        for (index, word) in list(problems, stage, &path, field(process, name))
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            string(problems, stage, &format!("{path}[{index}]"), Some(word));
        }
    }
    if let Some(program) = process
        .get("command")
        .and_then(|command| command.get(0))
        .and_then(Value::as_str)
        && program.is_empty()
    {
        problems.invalid(
            Stage::Webhook,
            format!("{process_path}.command[0]"),
            &Value::from(""),
            "must name a program",
        );
    }
    string(
        problems,
        stage,
        &format!("{process_path}.workingDir"),
        field(process, "workingDir"),
    );
    environment(problems, stage, &format!("{process_path}.env"), process);
}

fn environment(problems: &mut Problems, stage: Stage, path: &str, process: &Map<String, Value>) {
    for (index, variable) in list(problems, stage, path, field(process, "env"))
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        let path = format!("{path}[{index}]");
        let Some(variable) = object(problems, stage, &path, Some(variable)) else {
            continue;
        };
        let name_path = format!("{path}.name");
        match field(variable, "name") {
            None => problems.required(stage, name_path, "must name the variable"),
            Some(name) => {
                if let Some(name) = string(problems, stage, &name_path, Some(name))
                    && (name.is_empty() || name.contains(['=', '\0']))
                {
                    problems.invalid(
                        Stage::Webhook,
                        name_path,
                        &Value::from(name),
                        "must not be empty nor contain '='",
                    );
                }
            }
        }
        // The value itself is never shown: it may be a secret.
        if field(variable, "value").is_some_and(|value| !value.is_string()) {
            problems.push(
                stage,
                format!("{path}.value"),
                Fault::Invalid(super::NOT_SHOWN.to_owned()),
                "must be a string; put numbers and booleans in quotes",
            );
        }
    }
}

/// The annotations by which pods are given to sandboxes, changed by somebody other than the operator.
///
/// Whoever could write them could take or destroy the pods of others.
pub fn batch_sandbox_annotations(
    new: &Value,
    old: Option<&Value>,
    user: &str,
    operators: &[String],
) -> Vec<Problem> {
    let mut problems = Problems::default();
    if !operators.iter().any(|operator| operator == user) {
        for key in [
            labels::ALLOC_STATUS,
            labels::ALLOC_RELEASE,
            labels::ALLOC_RELEASED,
        ] {
            let read = |object: &Value| {
                object
                    .pointer("/metadata/annotations")
                    .and_then(|map| map.get(key))
                    .cloned()
            };
            if read(new) != old.and_then(read) {
                problems.push(
                    Stage::Webhook,
                    format!("metadata.annotations[{key}]"),
                    Fault::Forbidden,
                    "only the operator writes it; leave it as it is",
                );
            }
        }
    }
    problems.into_vec()
}
