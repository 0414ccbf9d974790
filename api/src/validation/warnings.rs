//! What is allowed but will hurt later, as admission warnings: one sentence each, with the remedy.
//!
//! The API server cuts a warning at 256 bytes and all of them at 4 kB, so each is short.

use serde_json::Value;

use crate::labels;
use crate::sidecar::{Decision, Mode};

/// What is known of the namespace an object is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Value of the label [`labels::INJECTION`], whatever it is.
    pub injection: Option<String>,
    /// Level that Pod Security Admission enforces, from [`labels::POD_SECURITY_ENFORCE`].
    pub pod_security: Option<String>,
}

/// Warnings for a Pool that was found right. `injects` says whether the executor is in its pods.
pub fn pool_warnings(pool: &Value, namespace: &NamespaceFacts, decision: &Decision) -> Vec<String> {
    let mut warnings = Vec::new();
    let number = |name: &str| {
        pool.pointer(&format!("/spec/capacitySpec/{name}"))
            .and_then(super::shape::whole)
    };
    if let (Some(buffer_max), Some(buffer_min), Some(pool_max), Some(pool_min)) = (
        number("bufferMax"),
        number("bufferMin"),
        number("poolMax"),
        number("poolMin"),
    ) {
        if buffer_max > pool_max {
            warnings.push(format!(
                "spec.capacitySpec: bufferMax ({buffer_max}) is greater than poolMax ({pool_max}) and cannot be reached"
            ));
        }
        if buffer_min == 0 && pool_min == 0 && pool_max > 0 {
            warnings.push(
                "spec.capacitySpec: bufferMin and poolMin are 0: no pod is kept warm, and each claim waits for a pod to start".to_owned(),
            );
        }
    }
    if let Some(level) = namespace.pod_security.as_deref()
        && matches!(level, "baseline" | "restricted")
        && decision.mode() == Some(Mode::Sidecar)
    {
        warnings.push(format!(
            "Pod Security level \"{level}\" of the namespace forbids SYS_PTRACE: pods will be refused; set annotation {}=in-container, or label {}=disabled to run no tasks",
            labels::EXECUTOR_MODE,
            labels::INJECTION
        ));
    }
    containers(&mut warnings, pool);
    warnings
}

fn containers(warnings: &mut Vec<String>, pool: &Value) {
    let Some(containers) = pool
        .pointer("/spec/template/spec/containers")
        .and_then(Value::as_array)
    else {
        return;
    };
    let own = containers
        .iter()
        .filter(|container| name(container) != labels::TASK_EXECUTOR);
    for (index, container) in own.enumerate() {
        for resource in ["cpu", "memory"] {
            if container
                .pointer(&format!("/resources/limits/{resource}"))
                .is_none_or(Value::is_null)
            {
                warnings.push(format!(
                    "container \"{}\" has no {resource} limit: one sandbox can starve its node; set resources.limits.{resource}",
                    name(container)
                ));
            }
        }
        if index == 0
            && let Some(why) = ends_at_once(container)
        {
            warnings.push(format!(
                "container \"{}\" {why}: the sandbox will not keep running; give it a command such as [\"sleep\", \"infinity\"]",
                name(container)
            ));
        }
    }
    if let Some(policy @ ("Never" | "OnFailure")) = pool
        .pointer("/spec/template/spec/restartPolicy")
        .and_then(Value::as_str)
    {
        warnings.push(format!("spec.template.spec.restartPolicy is {policy}: a pool's pod whose container ends is lost"));
    }
}

fn name(container: &Value) -> &str {
    container
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Why the main process looks as if it ended at once: a plain system image whose default command is a
/// shell that finds no terminal, or a command known to end.
fn ends_at_once(container: &Value) -> Option<String> {
    /// Images whose default command is an interactive shell.
    const SHELL_IMAGES: [&str; 9] = [
        "alpine",
        "busybox",
        "debian",
        "ubuntu",
        "fedora",
        "centos",
        "rockylinux",
        "almalinux",
        "archlinux",
    ];
    const SHORT_COMMANDS: [&str; 6] = ["true", "false", "echo", "ls", "pwd", "env"];
    let words = |field: &str| {
        container
            .get(field)
            .and_then(Value::as_array)
            .filter(|words| !words.is_empty())
    };
    let Some(first) = words("command")
        .or_else(|| words("args"))
        .and_then(|words| words[0].as_str())
    else {
        let image = container.get("image").and_then(Value::as_str)?;
        let repository = image
            .split(['@'])
            .next()?
            .rsplit('/')
            .next()?
            .split(':')
            .next()?;
        return SHELL_IMAGES
            .contains(&repository)
            .then(|| format!("has no command, and the default command of image \"{image}\" ends without a terminal"));
    };
    let program = first.rsplit('/').next().unwrap_or(first);
    SHORT_COMMANDS
        .contains(&program)
        .then(|| format!("runs \"{program}\", which ends at once"))
}

/// Warnings for a BatchSandbox that was found right.
pub fn batch_sandbox_warnings(sandbox: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let replicas = sandbox
        .pointer("/spec/replicas")
        .and_then(super::shape::whole)
        .unwrap_or(1);
    for list in ["shardPatches", "shardTaskPatches"] {
        let count = sandbox
            .pointer(&format!("/spec/{list}"))
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        if i64::try_from(count).unwrap_or(i64::MAX) > replicas {
            warnings.push(format!("spec.{list} has {count} entries for {replicas} replicas: those from index {replicas} on are not used"));
        }
    }
    if sandbox
        .pointer("/spec/ttlSecondsAfterFinished")
        .is_some_and(|ttl| !ttl.is_null())
        && sandbox
            .pointer("/spec/taskTemplate")
            .is_none_or(Value::is_null)
    {
        warnings.push("spec.ttlSecondsAfterFinished has no effect without taskTemplate: only tasks finish; use expireTime".to_owned());
    }
    let environment = sandbox
        .pointer("/spec/taskTemplate/spec/process/env")
        .and_then(Value::as_array);
    if environment.into_iter().flatten().any(|variable| {
        variable
            .get("valueFrom")
            .is_some_and(|from| !from.is_null())
    }) {
        warnings.push("taskTemplate.spec.process.env: valueFrom is not read, only literal values are; the variable will be empty".to_owned());
    }
    warnings
}
