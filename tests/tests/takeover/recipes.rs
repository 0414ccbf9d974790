//! Pools with an executor in each way that upstream runs it, and the sandboxes whose tasks it gets.

use std::path::Path;

use opensandbox_tests::images;
use serde_json::{Value, json};

/// Container that tasks run in.
pub(crate) const SANDBOX: &str = "sandbox";
/// Where upstream's templates have the executor's program. Theirs copy it there from an image.
const PROGRAM: &str = "/opt/opensandbox/task-executor";
/// Pods of a pool, which is never more and never less.
pub(crate) const SIZE: u32 = 4;

/// A Pool of [`SIZE`] pods that are used again and again.
fn pool(name: &str, mut spec: Value) -> Value {
    // Upstream's example ends by SIGTERM only if its shell lets it.
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": name},
        "spec": {
            "template": {"spec": spec},
            "capacitySpec": {"bufferMin": 0, "bufferMax": SIZE, "poolMin": SIZE, "poolMax": SIZE},
            "scaleStrategy": {"maxUnavailable": "100%"},
            "recycleStrategy": {"type": "Noop"},
        },
    })
}

/// Upstream's sample: its executor is the command of the sandbox container itself.
pub(crate) fn in_the_sandbox(name: &str, executor: &Path) -> Value {
    let spec = json!({
        "containers": [{
            "name": SANDBOX,
            "image": images::SANDBOX,
            "command": ["/bin/sh", "-c", format!("{PROGRAM} -listen-addr=0.0.0.0:5758 >/tmp/task-executor.log 2>&1")],
            "env": [{"name": "SANDBOX_MAIN_CONTAINER", "value": "main"}],
            "volumeMounts": [
                {"name": "sandbox-storage", "mountPath": "/var/lib/sandbox"},
                {"name": "executor", "mountPath": PROGRAM, "readOnly": true},
            ],
        }],
        "volumes": [
            {"name": "sandbox-storage", "emptyDir": {}},
            {"name": "executor", "hostPath": {"path": executor, "type": "File"}},
        ],
    });
    pool(name, spec)
}

/// Upstream's sidecar, with what it needs beyond the documented recipe: it is told that it is one, finds
/// the sandbox by a variable, may enter it, and shares the directory of its files with it.
pub(crate) fn beside_the_sandbox(name: &str, executor: &Path) -> Value {
    let storage = json!({"name": "sandbox-storage", "mountPath": "/var/lib/sandbox"});
    let spec = json!({
        "shareProcessNamespace": true,
        "containers": [
            {
                "name": SANDBOX,
                "image": images::SANDBOX,
                "command": ["sleep", "infinity"],
                "env": [{"name": "SANDBOX_MAIN_CONTAINER", "value": "main"}],
                "volumeMounts": [storage],
            },
            {
                "name": "task-executor",
                // Its own image has a shell and nsenter, as this one.
                "image": images::SANDBOX,
                "command": [PROGRAM, "--enable-sidecar-mode=true", "--main-container-name=main"],
                "securityContext": {"capabilities": {"add": ["SYS_PTRACE", "SYS_ADMIN"]}},
                "volumeMounts": [
                    storage,
                    {"name": "executor", "mountPath": PROGRAM, "readOnly": true},
                ],
            },
        ],
        "volumes": [
            {"name": "sandbox-storage", "emptyDir": {}},
            {"name": "executor", "hostPath": {"path": executor, "type": "File"}},
        ],
    });
    pool(name, spec)
}

/// Our executor for upstream's controller, which signs nothing.
pub(crate) fn ours_unsigned(name: &str) -> Value {
    let spec = json!({
        "shareProcessNamespace": true,
        "containers": [
            {"name": SANDBOX, "image": images::SANDBOX, "command": ["sleep", "infinity"]},
            {
                "name": "task-executor",
                "image": images::EXECUTOR,
                "args": ["serve", "--auth=none"],
                "securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}},
            },
        ],
    });
    pool(name, spec)
}

/// A BatchSandbox with a task that succeeds, one that fails, one that is stopped for its time, and one that
/// goes on. Each leaves a line in its sandbox.
pub(crate) fn four_ends(name: &str, pool: &str) -> Value {
    let task = |script: &str, seconds: Option<u32>| json!({"spec": {"process": {"command": ["sh", "-c", script]}, "timeoutSeconds": seconds}});
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name},
        "spec": {
            "replicas": 4, "poolRef": pool,
            "taskTemplate": {"spec": {"process": {"command": ["true"]}}},
            "shardTaskPatches": [
                task("echo ran >> /tmp/ran", None),
                task("echo ran >> /tmp/ran; exit 3", None),
                task("echo ran >> /tmp/ran; exec sleep 611", Some(1)),
                task("echo ran >> /tmp/ran; exec sleep 612", None),
            ],
        },
    })
}

/// A BatchSandbox that gives its pods back when its tasks are over.
pub(crate) fn released(name: &str, pool: &str) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name},
        "spec": {
            "replicas": 2, "poolRef": pool, "taskResourcePolicyWhenCompleted": "Release",
            "taskTemplate": {"spec": {"process": {"command": ["true"]}}},
        },
    })
}

/// A BatchSandbox that makes a pod like those of a pool by itself, whose task goes on.
pub(crate) fn own_template(name: &str, pool: &Value) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1, "template": pool["spec"]["template"],
            "taskTemplate": {"spec": {"process": {"command": ["sleep", "613"]}}},
        },
    })
}
