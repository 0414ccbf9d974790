//! The last step of the mode `in-container`, on the template of a single pod: the executor becomes the
//! sandbox container's first process and starts the command that the user wrote.
//!
//! Never on a stored object: `command`, `ports` and `volumeMounts` of a container are the user's as a
//! whole for server-side apply, and whoever applies the Pool again would fight over them.

use serde_json::{Map, Value, json};

use super::{Settings, obstacles, readiness_probe};
use crate::labels;
use crate::validation::{Fault, Problem, Stage};

/// Output of tasks that is kept in memory, in bytes. In the sidecar it is 96 MiB; here it counts against the
/// sandbox's own limit.
const OUTPUT_BYTES: u32 = 16 * 1024 * 1024;

/// Puts the executor into the sandbox container of a template that [`inject`](super::inject()) has made
/// ready in the mode `in-container`.
///
/// # Errors
///
/// The container cannot be changed so, with path and remedy.
pub fn wrap(template: &mut Value, settings: &Settings) -> Result<(), Problem> {
    let index = obstacles::main_container(template).map(|(index, _)| index);
    let found = index.and_then(|index| {
        template
            .pointer_mut("/spec/containers")?
            .as_array_mut()?
            .get_mut(index)?
            .as_object_mut()
    });
    let (Some(index), Some(container)) = (index, found) else {
        return Err(obstacles::no_main_container());
    };
    let mounts = list(container, index, "volumeMounts")?;
    let taken = |mount: &Value| mount["mountPath"] == labels::TASK_EXECUTOR_DIRECTORY;
    if let Some(taken) = mounts.iter().position(taken) {
        return Err(Problem {
            path: format!("spec.template.spec.containers[{index}].volumeMounts[{taken}].mountPath"),
            fault: Fault::Duplicate(json!(labels::TASK_EXECUTOR_DIRECTORY).to_string()),
            detail: "the executor is mounted there; mount this volume elsewhere".to_owned(),
            stage: Stage::Webhook,
        });
    }
    mounts.push(json!({
        "name": labels::TASK_EXECUTOR_VOLUME,
        "mountPath": labels::TASK_EXECUTOR_DIRECTORY,
        "readOnly": true,
    }));

    let ports = list(container, index, "ports")?;
    ports.push(json!({
        "name": labels::TASK_EXECUTOR,
        "containerPort": labels::TASK_EXECUTOR_PORT,
        "protocol": "TCP",
    }));

    let probe = container.entry("readinessProbe").or_insert(Value::Null);
    if probe.is_null() {
        *probe = readiness_probe();
    }

    let command = list(container, index, "command")?;
    let mut words = vec![
        json!(program()),
        json!("run"),
        json!(format!("--output-total-bytes={OUTPUT_BYTES}")),
    ];
    if let Some(key) = &settings.verification_key {
        words.push(json!(format!("--verification-key={}", key.value)));
    }
    words.push(json!("--"));
    command.splice(..0, words);
    Ok(())
}

/// Path of the executor in the sandbox container.
fn program() -> String {
    format!(
        "{}/{}",
        labels::TASK_EXECUTOR_DIRECTORY,
        labels::TASK_EXECUTOR
    )
}

/// The list under a key of the container at this index, made if there is none.
fn list<'a>(
    container: &'a mut Map<String, Value>,
    index: usize,
    key: &str,
) -> Result<&'a mut Vec<Value>, Problem> {
    let value = container.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(items) => Ok(items),
        odd => Err(obstacles::invalid(
            &format!("spec.containers[{index}].{key}"),
            Some(odd),
            "must be a list".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecar::{Mode, Record, Sourced, inject};

    fn settings() -> Settings {
        Settings {
            verification_key: Some(Sourced {
                value: "a+b=".to_owned(),
                origin: "test".to_owned(),
            }),
            ..Settings::built_in()
        }
    }

    fn made(container: &Value) -> Result<Value, Problem> {
        let template = json!({"spec": {"containers": [{"name": "helper"}, container]},
            "metadata": {"annotations": {labels::DEFAULT_CONTAINER: "main"}}});
        let settings = settings();
        let record = Record::default();
        let injected = inject(
            &template,
            Mode::InContainer,
            &record,
            None,
            &settings,
            false,
        );
        let mut template = injected
            .map_err(|mut problems| problems.remove(0))?
            .template;
        wrap(&mut template, &settings).map(|()| template)
    }

    #[test]
    fn the_sandbox_container_is_wrapped_and_no_other() {
        let main = json!({"name": "main", "command": ["python3", "-u"], "args": ["x.py", "$(A)"],
            "env": [{"name": "A", "value": "b"}], "ports": [{"containerPort": 80}], "tty": true});
        let made = made(&main).unwrap();
        assert_eq!(made["spec"]["containers"][0], json!({"name": "helper"}));
        assert_eq!(
            made["spec"]["containers"][1],
            json!({
                "name": "main",
                "command": ["/opt/task-executor/task-executor", "run",
                    "--output-total-bytes=16777216", "--verification-key=a+b=", "--", "python3", "-u"],
                "args": ["x.py", "$(A)"],
                "env": [{"name": "A", "value": "b"}],
                "ports": [{"containerPort": 80},
                    {"name": "task-executor", "containerPort": 5758, "protocol": "TCP"}],
                "tty": true,
                "volumeMounts": [{"name": "task-executor", "mountPath": "/opt/task-executor",
                    "readOnly": true}],
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": 5758},
                    "periodSeconds": 5, "failureThreshold": 3},
            })
        );
        // What is wrapped shows that it is, so that it is not wrapped again.
        let evidence = crate::sidecar::in_container::evidence(&made);
        assert!(evidence.is_some_and(|words| words.contains("containers[1]")));
    }

    #[test]
    fn a_probe_of_the_users_stays() {
        let probe = json!({"tcpSocket": {"port": 80}});
        let main = json!({"name": "main", "command": ["a"], "readinessProbe": probe});
        assert_eq!(
            made(&main).unwrap()["spec"]["containers"][1]["readinessProbe"],
            probe
        );
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let mounts = json!([{"name": "data", "mountPath": "/opt/task-executor"}]);
        let main = json!({"name": "main", "command": ["a"], "volumeMounts": mounts});
        let problem = made(&main).unwrap_err().to_string();
        let path = "spec.template.spec.containers[1].volumeMounts[0].mountPath: Duplicate";
        assert!(problem.starts_with(path), "{problem}");
        let main = json!({"name": "main", "command": ["a"], "volumeMounts": "odd"});
        let problem = made(&main).unwrap_err().to_string();
        assert!(problem.contains("containers[1].volumeMounts"), "{problem}");
    }
}
