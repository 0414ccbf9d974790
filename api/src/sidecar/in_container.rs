//! Upstream's other way to run the executor: the sandbox container's own command starts it.
//!
//! An init container copies the binary into a volume and the main container runs it, without a shared
//! process namespace or a capability. Such a template must be left alone: a second executor would take
//! its port.

use serde_json::Value;

use crate::labels::{TASK_EXECUTOR, TASK_EXECUTOR_PORT};

/// Says how it shows that one of the containers runs the executor itself, if one does. The sidecar,
/// by its name, does not count.
pub fn evidence(template: &Value) -> Option<String> {
    let containers = template.pointer("/spec/containers")?.as_array()?;
    containers
        .iter()
        .enumerate()
        .find_map(|(index, container)| {
            let name = container
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if name == TASK_EXECUTOR {
                return None;
            }
            let path = format!("spec.template.spec.containers[{index}]");
            let ports = container.get("ports").and_then(Value::as_array);
            let takes_port = |port: &Value| {
                port.get("containerPort").and_then(Value::as_u64)
                    == Some(u64::from(TASK_EXECUTOR_PORT))
            };
            if ports.is_some_and(|ports| ports.iter().any(takes_port)) {
                return Some(format!(
                    "{path} (\"{name}\") already uses port {TASK_EXECUTOR_PORT}"
                ));
            }
            ["command", "args"].into_iter().find_map(|field| {
                let words: Vec<&str> = container
                    .get(field)?
                    .as_array()?
                    .iter()
                    .filter_map(Value::as_str)
                    .collect();
                runs_executor(&words, field == "command")
                    .then(|| format!("{path}.{field} (\"{name}\") runs {TASK_EXECUTOR} itself"))
            })
        })
}

/// Whether an argument vector, or a shell script in it, starts a program named `task-executor`.
fn runs_executor(words: &[&str], first_is_program: bool) -> bool {
    words.iter().enumerate().any(|(index, word)| {
        if word.contains(char::is_whitespace) {
            return script_runs_executor(word);
        }
        is_executor(word) && (word.contains('/') || (index == 0 && first_is_program))
    })
}

/// Whether a shell script has the executor where a command stands.
fn script_runs_executor(script: &str) -> bool {
    let spaced = script
        .replace("&&", " ; ")
        .replace("||", " ; ")
        .replace(['&', '|', ';', '\n', '(', '{', ')', '}'], " ; ");
    let mut at_command = true;
    for word in spaced.split_whitespace() {
        if word == ";" {
            at_command = true;
            continue;
        }
        if at_command && is_executor(word.trim_matches(['"', '\''])) {
            return true;
        }
        // Words after which the command is still to come: assignments, and what only starts another.
        let transparent = matches!(
            word,
            "exec" | "nohup" | "then" | "do" | "else" | "setsid" | "env" | "--"
        ) || (word.contains('=') && !word.starts_with('='));
        at_command = at_command && transparent;
    }
    false
}

fn is_executor(word: &str) -> bool {
    word.rsplit('/').next() == Some(TASK_EXECUTOR)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(container: &Value, expected: bool) {
        let template = json!({"spec": {"containers": [container]}});
        assert_eq!(evidence(&template).is_some(), expected, "{container}");
    }

    #[test]
    fn only_what_runs_the_executor_counts() {
        check(
            &json!({"name": "main", "command": ["/opt/opensandbox/task-executor", "--listen-addr=:5758"]}),
            true,
        );
        check(
            &json!({"name": "main", "command": ["/bin/sh", "-c"], "args": ["/opt/task-executor & exec sleep infinity"]}),
            true,
        );
        check(
            &json!({"name": "main", "args": ["sh", "-c", "A=1 nohup /opt/x/task-executor >/dev/null 2>&1"]}),
            true,
        );
        check(&json!({"name": "main", "command": ["task-executor"]}), true);
        check(
            &json!({"name": "main", "ports": [{"containerPort": 5758}]}),
            true,
        );
        check(
            &json!({"name": "main", "command": ["sh", "-c", "echo task-executor"]}),
            false,
        );
        check(
            &json!({"name": "main", "command": ["sh", "-c", "cat /var/log/task-executor.log"]}),
            false,
        );
        check(&json!({"name": "main", "args": ["task-executor"]}), false);
        check(
            &json!({"name": "task-executor", "command": ["task-executor"], "ports": [{"containerPort": 5758}]}),
            false,
        );
        check(
            &json!({"name": "main", "ports": "odd", "command": {"a": 1}}),
            false,
        );
    }
}
