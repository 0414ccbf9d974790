//! Schemas that the derive cannot make: opaque where fields of any Kubernetes version must be kept,
//! with merge keys where server-side apply must merge.
//!
//! A full `PodTemplateSpec` schema makes a CRD of over 320 kB, beyond what client-side
//! `kubectl apply` can annotate, and would prune fields newer than itself. So a template is opaque,
//! save for the lists `containers`, `initContainers` and `volumes`: declared as maps by `name`, a
//! manager that applies only its own container neither removes nor fights over the injected one.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A list of objects merged by `name`, each otherwise opaque.
fn list_by_name(description: &str) -> Value {
    json!({
        "type": "array",
        "nullable": true,
        "description": description,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": { "name": { "type": "string" } },
            "x-kubernetes-preserve-unknown-fields": true,
        },
    })
}

/// A pod template: opaque but for the lists that server-side apply must merge.
pub(super) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "spec": {
                "type": "object",
                "nullable": true,
                "description": "Specification of the pod, as in any workload. Fields of any Kubernetes version are kept.",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "containers": list_by_name("Containers of the pod, the sandbox's first."),
                    "initContainers": list_by_name("Containers that run before the others start."),
                    "volumes": list_by_name("Volumes that containers can mount."),
                },
            },
        },
    })
}

/// `maxUnavailable`: number or percentage; a CEL rule bounds it.
pub(super) fn max_unavailable(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
    })
}

/// Raw strategic merge patches, one an index.
pub(super) fn patches(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "nullable": true,
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}

/// A task: what upstream's `TaskTemplateSpec` has, checked, and unknown fields kept.
pub(super) fn task_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "spec": {
                "type": "object",
                "description": "What the task does.",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "process": {
                        "type": "object",
                        "description": "The process that is the task.",
                        "x-kubernetes-preserve-unknown-fields": true,
                        "properties": {
                            "command": {
                                "type": "array",
                                "nullable": true,
                                "description": "Program and its first arguments; not run by a shell. Required.",
                                "items": { "type": "string" },
                            },
                            "args": {
                                "type": "array",
                                "nullable": true,
                                "description": "Further arguments, after those of the command.",
                                "items": { "type": "string" },
                            },
                            "env": {
                                "type": "array",
                                "nullable": true,
                                "description": "Environment of the process, over that of the sandbox's main process. Literal values only.",
                                "items": {
                                    "type": "object",
                                    "required": ["name"],
                                    "x-kubernetes-preserve-unknown-fields": true,
                                    "properties": {
                                        "name": { "type": "string", "description": "Name of the variable." },
                                        "value": { "type": "string", "nullable": true, "description": "Value, taken literally." },
                                    },
                                },
                            },
                            "workingDir": {
                                "type": "string",
                                "nullable": true,
                                "description": "Directory in the sandbox to start in. Absent means that of the sandbox's main process.",
                            },
                        },
                    },
                    "timeoutSeconds": {
                        "type": "integer",
                        "format": "int64",
                        "nullable": true,
                        "minimum": 0,
                        "description": "Ends the task after so many seconds. Absent or 0 means no limit.",
                    },
                    "gracePeriodSeconds": {
                        "type": "integer",
                        "format": "int64",
                        "nullable": true,
                        "minimum": 0,
                        "description": "Seconds between SIGTERM and SIGKILL when the task is stopped. Absent means 10.",
                    },
                },
            },
        },
    })
}

/// A closed set of words.
fn words(description: &str, default: Option<&str>, words: &[&str]) -> Schema {
    let mut schema = json_schema!({ "type": "string", "description": description, "enum": words });
    if let Some(default) = default {
        schema.insert("default".to_owned(), json!(default));
    }
    schema
}

/// `recycleStrategy.type`, with upstream's default.
pub(super) fn recycle_type(_: &mut SchemaGenerator) -> Schema {
    words(
        "`Delete` (default): the pod is deleted and a fresh one takes its place. `Restart`: its containers are restarted. `Noop`: it returns to the pool as it is.",
        Some("Delete"),
        &["Delete", "Restart", "Noop"],
    )
}

/// `taskResourcePolicyWhenCompleted`, with upstream's default.
pub(super) fn task_resource_policy(_: &mut SchemaGenerator) -> Schema {
    words(
        "What happens to a sandbox whose task ended: `Retain` (default) keeps it, `Release` gives its pod back to the pool.",
        Some("Retain"),
        &["Retain", "Release"],
    )
}

/// Phases of a BatchSandbox, upstream's.
pub(super) fn batch_sandbox_phase(_: &mut SchemaGenerator) -> Schema {
    words(
        "Summary of the sandboxes' state. `Succeed` means that a sandbox is ready, not that a task ended.",
        None,
        &[
            "Pending", "Succeed", "Pausing", "Paused", "Resuming", "Failed",
        ],
    )
}

/// State of one task.
pub(super) fn task_result_state(_: &mut SchemaGenerator) -> Schema {
    words(
        "State of the task.",
        None,
        &["Pending", "Running", "Succeeded", "Failed", "Unknown"],
    )
}

/// Conditions, merged by type as everywhere in Kubernetes.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "nullable": true,
        "description": "What is true of the object now.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status"],
            "properties": {
                "type": { "type": "string", "maxLength": 316, "description": "What the condition is about, in CamelCase." },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds." },
                "reason": { "type": "string", "maxLength": 1024, "description": "Why, in one CamelCase word." },
                "message": { "type": "string", "maxLength": 32768, "description": "Why, in a sentence." },
                "lastTransitionTime": { "type": "string", "format": "date-time", "description": "When `status` last changed." },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0, "description": "The generation that the condition describes." },
            },
        },
    })
}

/// Results of tasks, merged by the task's name.
pub(super) fn task_results(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<super::TaskResult>();
    json_schema!({
        "type": "array",
        "nullable": true,
        "description": "How each task ended or stands, by task name. Bounded: of many tasks the failed ones are kept first.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": item,
    })
}
