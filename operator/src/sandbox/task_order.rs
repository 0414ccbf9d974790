//! The task of one shard as an executor is told to run it, from `taskTemplate` and its patch. Pure.

use opensandbox_api::shard_patch::{self, Kind};
use opensandbox_api::task::{Task, TaskTemplate};
use opensandbox_api::v1alpha1::BatchSandboxSpec;
use serde_json::Value;

/// What is wrong with a task, in a sentence with the path of the field. Never holds what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {fault}")]
pub(super) struct Invalid {
    path: String,
    fault: String,
}

/// The task of shard `index`, without a name and an identity.
///
/// # Errors
///
/// If template or patch make no task.
pub(super) fn build(spec: &BatchSandboxSpec, index: u32) -> Result<Task, Invalid> {
    let template = spec.task_template.as_ref().unwrap_or(&Value::Null);
    let patch = usize::try_from(index)
        .ok()
        .and_then(|index| spec.shard_task_patches.get(index));
    let field = match patch {
        Some(_) => format!("spec.shardTaskPatches[{index}]"),
        None => "spec.taskTemplate".to_owned(),
    };
    let invalid = |fault: String| Invalid {
        path: field.clone(),
        fault,
    };
    let patched;
    let whole = match patch {
        None => template,
        Some(patch) => {
            patched = shard_patch::apply(template, patch, Kind::TaskTemplate)
                .map_err(|error| invalid(error.to_string()))?;
            &patched
        }
    };
    // The words of the parser may quote a value, and a value may be secret.
    let typed: TaskTemplate = serde::Deserialize::deserialize(whole)
        .map_err(|_| invalid("a field of the task has another type than it should".to_owned()))?;
    let process = typed
        .process()
        .filter(|process| {
            process
                .argv()
                .next()
                .is_some_and(|program| !program.is_empty())
        })
        .ok_or_else(|| {
            invalid("the task has no command; name a program in spec.process.command".to_owned())
        })?;
    Ok(Task {
        process: Some(process),
        ..Task::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: Value) -> BatchSandboxSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn patches_reach_every_field() {
        let spec = spec(json!({
            "replicas": 2,
            "taskTemplate": {"spec": {
                "process": {"command": ["a"], "env": [{"name": "X", "value": "1"}]},
                "timeoutSeconds": 5,
            }},
            "shardTaskPatches": [
                {"spec": {"process": {"command": ["b"], "env": [{"name": "X", "value": "2"}]},
                    "timeoutSeconds": 7, "gracePeriodSeconds": 1}},
            ],
        }));
        let first = build(&spec, 0).unwrap().process.unwrap();
        assert_eq!(first.command, ["b"]);
        assert_eq!(first.env[0].value.expose(), "2");
        assert_eq!(first.timeout_seconds, Some(7));
        assert_eq!(first.grace_period_seconds, Some(1));
        let second = build(&spec, 1).unwrap().process.unwrap();
        assert_eq!(second.command, ["a"]);
        assert_eq!(second.timeout_seconds, Some(5));
    }

    #[test]
    fn says_what_is_wrong_and_where_but_not_what_is_in_it() {
        let spec = spec(json!({
            "replicas": 4,
            "taskTemplate": {"spec": {"process": {"command": ["a"], "env": [{"name": "X"}]}}},
            "shardTaskPatches": [
                {"spec": {"process": null}},
                {"spec": {"process": {"env": [{"value": "geheim"}]}}},
                {"spec": {"process": {"workingDir": ["geheim"]}}},
            ],
        }));
        for (index, expected) in [(0, "no command"), (1, "no name"), (2, "another type")] {
            let message = build(&spec, index).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("spec.shardTaskPatches[{index}]: ")),
                "{message}"
            );
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("geheim"), "{message}");
        }
    }
}
