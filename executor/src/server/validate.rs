//! What a task must look like before anything is done with it. Pure.
//!
//! Refused is what no executor could run as it was meant, so that it fails where it is ordered and not
//! where it runs. Messages name fields and rules; values only where they cannot be secret.

use opensandbox_api::names::MAX_SUBDOMAIN;
use opensandbox_api::task::{EnvVar, Process, Task};

/// Longest argument or environment entry, its end included: `MAX_ARG_STRLEN` of Linux.
const MAX_STRING: usize = 128 * 1024;
/// Most bytes of arguments and environment together: the kernel takes a quarter of the stack limit,
/// 8 MiB by default.
const MAX_STRINGS: usize = 2 * 1024 * 1024;
/// Longest path, its end included: `PATH_MAX` of Linux.
const MAX_PATH: usize = 4096;
/// Longest time in seconds, 317 years: sums with the present time cannot overflow.
const MAX_SECONDS: i64 = 10_000_000_000;

/// Why a task is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, with the remedy.
    pub message: String,
    /// Upstream takes such a task and fails to start it, with status 500 where we would say 400.
    pub fails_upstream: bool,
}

/// Checks a task that is to be created. An empty name is refused as upstream does.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(task: &Task) -> Result<(), Refusal> {
    let refuse = |fails_upstream| {
        move |message: String| Refusal {
            message,
            fails_upstream,
        }
    };
    name(&task.name).map_err(refuse(false))?;
    for (field, value) in [("uid", &task.uid), ("containerId", &task.container_id)] {
        if let Some(value) = value {
            identifier(field, value).map_err(refuse(false))?;
        }
    }
    if task.pod_template_spec.is_some() {
        let message = "podTemplateSpec is not supported; describe the task as process";
        return Err(refuse(true)(message.to_owned()));
    }
    let Some(process) = &task.process else {
        return Err(refuse(true)(
            "process is missing; say what to run".to_owned(),
        ));
    };
    if process.argv().next().is_none() {
        let message = "process.command is empty; name the program to run";
        return Err(refuse(true)(message.to_owned()));
    }
    check_process(process).map_err(refuse(false))
}

fn name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("task name is required".to_owned())
    } else if name == "." || name == ".." {
        Err(
            "name must not be \".\" or \"..\", which no path can name; choose another one"
                .to_owned(),
        )
    } else if name.contains('/') {
        Err("name contains a slash; choose one without".to_owned())
    } else {
        identifier("name", name)
    }
}

/// A text that is repeated in paths and logs.
fn identifier(field: &str, value: &str) -> Result<(), String> {
    if value.len() > MAX_SUBDOMAIN {
        let length = value.len();
        Err(format!(
            "{field} has {length} bytes, at most {MAX_SUBDOMAIN} are allowed; shorten it"
        ))
    } else if let Some(found) = value.chars().find(|character| character.is_control()) {
        Err(format!(
            "{field} contains the control character {found:?}; remove it"
        ))
    } else {
        Ok(())
    }
}

fn check_process(process: &Process) -> Result<(), String> {
    let mut total = 0;
    let mut string = |field: String, bytes: usize, has_nul: bool| {
        // A pointer to it counts as well.
        total += bytes + 1 + size_of::<usize>();
        if has_nul {
            Err(format!(
                "{field} contains a NUL character, which ends a string; remove it"
            ))
        } else if bytes >= MAX_STRING {
            Err(format!(
                "{field} has {bytes} bytes, fewer than {MAX_STRING} are possible on Linux; use a file"
            ))
        } else if total > MAX_STRINGS {
            Err(format!(
                "arguments and environment have more than {MAX_STRINGS} bytes, which Linux refuses by default; use a file"
            ))
        } else {
            Ok(())
        }
    };
    for (field, list) in [("command", &process.command), ("args", &process.args)] {
        for (index, value) in list.iter().enumerate() {
            let field = format!("process.{field}[{index}]");
            string(field, value.len(), value.contains('\0'))?;
        }
    }
    for (index, variable) in process.env.iter().enumerate() {
        let field = format!("process.env[{index}]");
        check_variable(&field, variable)?;
        let value = variable.value.expose();
        let has_nul = variable.name.contains('\0') || value.contains('\0');
        string(field, variable.name.len() + 1 + value.len(), has_nul)?;
    }
    if process.working_dir.contains('\0') {
        return Err("process.workingDir contains a NUL character; remove it".to_owned());
    }
    if process.working_dir.len() >= MAX_PATH {
        return Err(format!(
            "process.workingDir has {MAX_PATH} bytes or more, too many for a path on Linux"
        ));
    }
    for (field, seconds) in [
        ("timeoutSeconds", process.timeout_seconds),
        ("gracePeriodSeconds", process.grace_period_seconds),
    ] {
        if seconds.is_some_and(|seconds| seconds > MAX_SECONDS) {
            return Err(format!(
                "process.{field} is more than {MAX_SECONDS}; choose less"
            ));
        }
    }
    Ok(())
}

fn check_variable(field: &str, variable: &EnvVar) -> Result<(), String> {
    if variable.name.is_empty() {
        Err(format!("{field}.name is empty; give the variable a name"))
    } else if variable.name.contains('=') {
        // What comes after it may be the value.
        Err(format!(
            "{field}.name contains \"=\"; put the value in value"
        ))
    } else if variable.value_from.is_some() {
        let name: String = variable.name.chars().take(64).collect();
        Err(format!(
            "{field} ({name:?}) has valueFrom, which only a kubelet can follow; give a value, or set the variable on the sandbox's container"
        ))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(task: Value) -> Option<Refusal> {
        check(&serde_json::from_value(task).unwrap()).err()
    }

    fn process(process: &Value) -> Option<String> {
        let refusal = refusal(json!({"name": "a", "process": process}))?;
        assert!(!refusal.fails_upstream, "{refusal:?}");
        Some(refusal.message)
    }

    #[test]
    fn ordinary_tasks_pass() {
        for fine in [
            json!({"command": ["true"]}),
            json!({"args": ["true"]}),
            json!({"command": ["echo", "", "ä\n", "x".repeat(100 * 1024)], "timeoutSeconds": -1}),
            json!({"command": ["x"], "env": [{"name": "A"}, {"name": "A", "value": "a=b"}]}),
            json!({"command": ["x"], "env": null, "workingDir": "/tmp", "gracePeriodSeconds": 0}),
            json!({"command": ["x"], "env": [{"name": "A", "value": "1", "valueFrom": null}]}),
        ] {
            assert_eq!(process(&fine), None, "{fine}");
        }
        let named = |name: &str| refusal(json!({"name": name, "process": {"command": ["x"]}}));
        for name in ["a", "A_b.c", "名前", "a b", &"x".repeat(253)] {
            assert_eq!(named(name), None, "{name}");
        }
        for name in ["", ".", "..", "a/b", "a\nb", "a\0", &"x".repeat(254)] {
            assert!(
                named(name).is_some_and(|refusal| !refusal.fails_upstream),
                "{name:?}"
            );
        }
    }

    #[test]
    fn what_cannot_run_is_refused_by_name() {
        for (wrong, part) in [
            (
                json!({"command": ["a", "b\0c"]}),
                "process.command[1] contains a NUL",
            ),
            (
                json!({"command": ["a"], "args": ["x".repeat(128 * 1024)]}),
                "process.args[0] has 131072",
            ),
            (
                json!({"command": vec!["x".repeat(100_000); 30]}),
                "more than 2097152 bytes",
            ),
            (
                json!({"command": ["a"], "env": [{"value": "x"}]}),
                "process.env[0].name is empty",
            ),
            (
                json!({"command": ["a"], "env": [{"name": "A=secret"}]}),
                "process.env[0].name contains",
            ),
            (
                json!({"command": ["a"], "env": [{"name": "A", "value": "\0"}]}),
                "process.env[0] contains a NUL",
            ),
            (
                json!({"command": ["a"], "env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}),
                "process.env[0] (\"A\") has valueFrom",
            ),
            (
                json!({"command": ["a"], "workingDir": "/\0"}),
                "process.workingDir contains",
            ),
            (
                json!({"command": ["a"], "workingDir": "/".repeat(4096)}),
                "process.workingDir has",
            ),
            (
                json!({"command": ["a"], "timeoutSeconds": i64::MAX}),
                "process.timeoutSeconds is more",
            ),
        ] {
            let message = process(&wrong).expect(part);
            assert!(message.contains(part), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        assert!(
            refusal(json!({"name": "a", "uid": "\n", "process": {"command": ["x"]}})).is_some()
        );
    }

    #[test]
    fn what_upstream_fails_to_start_keeps_its_status() {
        for task in [
            json!({"name": "a"}),
            json!({"name": "a", "process": {"command": null}}),
            json!({"name": "a", "podTemplateSpec": {}, "process": {"command": ["x"]}}),
        ] {
            assert!(refusal(task.clone()).unwrap().fails_upstream, "{task}");
        }
    }
}
