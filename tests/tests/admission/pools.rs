//! Pools that tests apply, and what is looked at in stored ones.

use opensandbox_api::labels;
use serde_json::{Value, json};

/// A right Pool with one container, which causes no warning.
pub(crate) fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1",
        "kind": "Pool",
        "metadata": { "name": name },
        "spec": {
            "template": { "spec": { "containers": [sandbox()] } },
            "capacitySpec": { "bufferMin": 1, "bufferMax": 3, "poolMin": 2, "poolMax": 10 },
        },
    })
}

/// The container of [`pool`].
pub(crate) fn sandbox() -> Value {
    json!({
        "name": "sandbox",
        "image": "ubuntu:22.04",
        "command": ["sleep", "infinity"],
        "resources": { "limits": { "cpu": "500m", "memory": "256Mi" } },
    })
}

/// `pool` with a label that decides about the injection.
pub(crate) fn labelled(name: &str, value: &str) -> Value {
    let mut pool = pool(name);
    pool["metadata"]["labels"] = json!({ (labels::INJECTION): value });
    pool
}

/// A Pool in this mode; otherwise `pool`.
pub(crate) fn in_mode(mut pool: Value, mode: &str) -> Value {
    pool["metadata"]["annotations"] = json!({ (labels::EXECUTOR_MODE): mode });
    pool
}

/// Containers of a Pool by name, in order.
pub(crate) fn names(pool: &Value) -> Vec<&str> {
    let containers = pool
        .pointer("/spec/template/spec/containers")
        .and_then(Value::as_array);
    containers
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect()
}

/// A container of a Pool.
pub(crate) fn container<'a>(pool: &'a Value, name: &str) -> Option<&'a Value> {
    let containers = pool.pointer("/spec/template/spec/containers")?.as_array()?;
    containers
        .iter()
        .find(|container| container["name"] == name)
}

/// The executor's container.
pub(crate) fn executor(pool: &Value) -> Option<&Value> {
    container(pool, labels::TASK_EXECUTOR)
}

/// The executor's image, or nothing.
pub(crate) fn image(pool: &Value) -> &str {
    executor(pool)
        .and_then(|executor| executor["image"].as_str())
        .unwrap_or_default()
}

/// What counts whether the spec was changed.
pub(crate) fn generation(pool: &Value) -> Option<i64> {
    pool.pointer("/metadata/generation")?.as_i64()
}

/// The record of the injection, as text.
pub(crate) fn record(pool: &Value) -> Option<&str> {
    pool.pointer("/metadata/annotations")?
        .get(labels::INJECTION_RECORD)?
        .as_str()
}

/// What the record lists as added, with origins.
pub(crate) fn added(pool: &Value) -> Option<Value> {
    let record: Value = serde_json::from_str(record(pool)?).ok()?;
    record.get("added").cloned()
}

/// What an injected Pool lacks: exactly one executor that can work, and a record.
pub(crate) fn lacks(pool: &Value) -> Vec<String> {
    let mut lacks = Vec::new();
    let count = names(pool)
        .into_iter()
        .filter(|name| *name == labels::TASK_EXECUTOR)
        .count();
    if count != 1 {
        lacks.push(format!("{count} executors"));
    }
    if pool.pointer("/spec/template/spec/shareProcessNamespace") != Some(&json!(true)) {
        lacks.push("no shareProcessNamespace".to_owned());
    }
    let capabilities =
        executor(pool).and_then(|executor| executor.pointer("/securityContext/capabilities"));
    if capabilities != Some(&json!({ "add": ["SYS_PTRACE"] })) {
        lacks.push("no SYS_PTRACE".to_owned());
    }
    if image(pool).is_empty() {
        lacks.push("no image".to_owned());
    }
    if record(pool).is_none() {
        lacks.push("no record".to_owned());
    }
    lacks
}
