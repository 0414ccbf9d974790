//! `BatchSandbox`: one or many sandboxes, from a pool or from a template, with tasks.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{null_as_default, schema};

/// One or many sandboxes with their tasks.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "sandbox.opensandbox.io",
    version = "v1alpha1",
    kind = "BatchSandbox",
    plural = "batchsandboxes",
    singular = "batchsandbox",
    shortname = "bsbx",
    namespaced,
    status = "BatchSandboxStatus",
    derive = "PartialEq",
    doc = "One or many sandboxes, from a pool or from a template, with the tasks that run in them.",
    printcolumn = r#"{"name":"DESIRED","type":"integer","jsonPath":".spec.replicas","description":"Sandboxes wanted."}"#,
    printcolumn = r#"{"name":"TOTAL","type":"integer","jsonPath":".status.replicas","description":"Sandboxes that exist."}"#,
    printcolumn = r#"{"name":"ALLOCATED","type":"integer","jsonPath":".status.allocated","description":"Sandboxes with a node or an address."}"#,
    printcolumn = r#"{"name":"Ready","type":"integer","jsonPath":".status.ready","description":"Sandboxes that are ready."}"#,
    printcolumn = r#"{"name":"TASK_RUNNING","type":"integer","priority":1,"jsonPath":".status.taskRunning","description":"Tasks that run."}"#,
    printcolumn = r#"{"name":"TASK_SUCCEED","type":"integer","priority":1,"jsonPath":".status.taskSucceed","description":"Tasks that ended with exit code 0."}"#,
    printcolumn = r#"{"name":"TASK_FAILED","type":"integer","priority":1,"jsonPath":".status.taskFailed","description":"Tasks that ended otherwise."}"#,
    printcolumn = r#"{"name":"TASK_UNKNOWN","type":"integer","priority":1,"jsonPath":".status.taskUnknown","description":"Tasks whose state is not known."}"#,
    printcolumn = r#"{"name":"EXPIRE","type":"string","jsonPath":".spec.expireTime","description":"When it is deleted."}"#,
    printcolumn = r#"{"name":"AGE","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BatchSandboxSpec {
    /// Sandboxes wanted.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0))]
    pub replicas: i32,

    /// Name of the Pool, in the same namespace, that gives the pods; `*` lets the operator choose
    /// one. Exactly one of `poolRef` and `template` is set, save that `*` may have a template too,
    /// by which the pool is chosen. Immutable, but for `*`, which becomes the name chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_ref: Option<String>,

    /// The pod of a sandbox made without a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_template")]
    pub template: Option<Value>,

    /// Strategic merge patches onto the pod: entry i changes the pod of sandbox i.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "schema::patches")]
    pub shard_patches: Vec<Value>,

    /// When the object is deleted, whatever its state. RFC 3339.
    #[serde(
        default,
        deserialize_with = "time_or_last",
        skip_serializing_if = "Option::is_none"
    )]
    pub expire_time: Option<Time>,

    /// Deletes the object so many seconds after its last task ended. Absent means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<i32>,

    /// The task that runs in each sandbox.
    // Raw JSON here, with a real schema in the CRD; `crate::task` has the typed form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::task_template")]
    pub task_template: Option<Value>,

    /// Strategic merge patches onto `taskTemplate`: entry i changes the task of sandbox i.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "schema::patches")]
    pub shard_task_patches: Vec<Value>,

    /// What happens to a sandbox whose task ended: `Retain` (default) keeps it, `Release` gives its
    /// pod back to the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::task_resource_policy")]
    pub task_resource_policy_when_completed: Option<TaskResourcePolicy>,

    /// Asks for the sandbox to be paused. Refused while `true` until pausing works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<bool>,
}

/// `replicas` of a BatchSandbox that names no number.
fn one_replica() -> i32 {
    1
}

/// Reads `expireTime`. The last two days of the year 9999, which users write for "never", are beyond
/// what our type can hold, and are read as its last moment.
///
/// # Errors
/// It is no time.
pub(crate) fn expire_time(text: &str) -> Result<Timestamp, jiff::Error> {
    text.parse().or_else(|error| {
        // Too late, or no time at all? The same a year before tells.
        let earlier = text
            .strip_prefix("9999-")
            .map(|rest| format!("9998-{rest}"));
        match earlier.map(|text| text.parse::<Timestamp>()) {
            Some(Ok(_)) => Ok(Timestamp::MAX),
            _ => Err(error),
        }
    })
}

fn time_or_last<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Time>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let time = text.as_deref().map(expire_time).transpose();
    time.map(|time| time.map(Time))
        .map_err(serde::de::Error::custom)
}

/// What happens to a sandbox whose task ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TaskResourcePolicy {
    /// The sandbox keeps its pod.
    #[default]
    Retain,
    /// The pod goes back to the pool.
    Release,
}

/// Observed state of a BatchSandbox.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BatchSandboxStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Sandboxes that exist.
    pub replicas: i32,
    /// Sandboxes whose pod has a node or an address.
    pub allocated: i32,
    /// Sandboxes whose pod is ready.
    pub ready: i32,
    /// Tasks that run.
    pub task_running: i32,
    /// Tasks that ended with exit code 0.
    pub task_succeed: i32,
    /// Tasks that ended otherwise.
    pub task_failed: i32,
    /// Tasks that wait for a sandbox.
    pub task_pending: i32,
    /// Tasks whose state is not known.
    pub task_unknown: i32,
    /// Summary of the sandboxes' state. `Succeed` means that a sandbox is ready, not that a task
    /// ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::batch_sandbox_phase")]
    pub phase: Option<BatchSandboxPhase>,
    /// The generation for which `spec.pause` was last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_observed_generation: Option<i64>,
    /// What is true of the sandboxes now.
    #[serde(
        default,
        deserialize_with = "crate::conditions::deserialize",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// How each task ended or stands, by task name. Bounded: of many tasks the failed ones are kept
    /// first.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "schema::task_results")]
    pub task_results: Vec<TaskResult>,
    /// How every task stands, from index 0 on, in words separated by spaces: `S` succeeded, `F`
    /// failed, `-` has not ended, `x` belongs to a sandbox that was scaled away. A number after the
    /// letter says how often the task was begun anew because its pod was lost, `*N` that N tasks in a
    /// row stand so. `S*3 F -1` means: tasks 0 to 2 succeeded, 3 failed, 4 runs for the second time.
    /// The operator goes on from this after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_record: Option<String>,
}

/// Summary of the sandboxes' state, upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the variants are upstream's phase names")]
pub enum BatchSandboxPhase {
    Pending,
    Succeed,
    Pausing,
    Paused,
    Resuming,
    Failed,
}

/// One task's result as it is kept in the status.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskResult {
    /// Name of the task, `<batchsandbox>-<index>`.
    pub name: String,
    /// Index of the sandbox, from 0.
    #[schemars(range(min = 0))]
    pub index: i32,
    /// Which run of the task this is, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub attempt: Option<i32>,
    /// Pod it ran in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// State of the task.
    #[schemars(schema_with = "schema::task_result_state")]
    pub state: TaskResultState,
    /// Exit code, 0 to 255; 128 plus the signal's number if a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it ended, in one word, such as `OOMKilled` or `TaskTimeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The reason in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Last lines that a failed task wrote to standard error, at most 1 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
}

/// State of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TaskResultState {
    /// Waits for a sandbox or to be started.
    Pending,
    /// Runs.
    Running,
    /// Ended with exit code 0.
    Succeeded,
    /// Ended otherwise.
    Failed,
    /// Not known; `reason` says why.
    Unknown,
}
