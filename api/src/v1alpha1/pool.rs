//! `Pool`: pods kept warm for sandboxes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;

/// Keeps pods warm so that a sandbox is ready in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "sandbox.opensandbox.io",
    version = "v1alpha1",
    kind = "Pool",
    plural = "pools",
    singular = "pool",
    namespaced,
    status = "PoolStatus",
    derive = "PartialEq",
    doc = "Keeps pods warm so that a sandbox is ready in milliseconds.",
    printcolumn = r#"{"name":"TOTAL","type":"integer","jsonPath":".status.total","description":"Pods of the pool."}"#,
    printcolumn = r#"{"name":"ALLOCATED","type":"integer","jsonPath":".status.allocated","description":"Pods given to sandboxes."}"#,
    printcolumn = r#"{"name":"AVAILABLE","type":"integer","jsonPath":".status.available","description":"Ready pods that no sandbox holds."}"#,
    printcolumn = r#"{"name":"UPDATED","type":"integer","jsonPath":".status.updated","description":"Pods made from the current template."}"#,
    printcolumn = r#"{"name":"AGE","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// The pods of the pool, as in any workload. The executor's sidecar is added to it on admission
    /// unless the label `sandbox.opensandbox.io/task-executor` says `disabled`.
    // Raw JSON: fields of any Kubernetes version are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_template")]
    pub template: Option<Value>,

    /// How many pods the pool keeps.
    pub capacity_spec: CapacitySpec,

    /// How fast the pool grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_strategy: Option<ScaleStrategy>,

    /// How idle pods are replaced after the template changed. Pods held by sandboxes are never
    /// touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,

    /// What happens to a pod that a sandbox gives back. Absent means `Delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recycle_strategy: Option<RecycleStrategy>,
}

/// The four numbers of a pool, in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CapacitySpec {
    /// Most idle pods kept ready, in pods. At least `bufferMin`.
    #[schemars(range(min = 0))]
    pub buffer_max: i32,
    /// Fewest idle pods kept ready, in pods. 0 means that a claim may wait for a pod to start.
    #[schemars(range(min = 0))]
    pub buffer_min: i32,
    /// Most pods in all, idle and held by sandboxes, terminating ones included. At least `poolMin`.
    #[schemars(range(min = 0))]
    pub pool_max: i32,
    /// Fewest pods in all.
    #[schemars(range(min = 0))]
    pub pool_min: i32,
}

/// How fast a pool grows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleStrategy {
    /// Most pods that may be not ready at once while the pool grows: a positive number, or a
    /// percentage from `1%` to `100%` of the pods wanted, rounded up. Absent means `25%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::max_unavailable")]
    pub max_unavailable: Option<IntOrString>,
}

/// How idle pods are replaced after the template changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// Most pods that may be not ready at once while idle pods are replaced: a positive number, or a
    /// percentage from `1%` to `100%` of the pool's pods, rounded up. Absent means `25%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::max_unavailable")]
    pub max_unavailable: Option<IntOrString>,
}

/// What happens to a pod that a sandbox gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecycleStrategy {
    /// `Delete` (default): the pod is deleted and a fresh one takes its place. `Restart`: its
    /// containers are restarted. `Noop`: it returns to the pool as it is.
    #[serde(default, rename = "type")]
    #[schemars(schema_with = "schema::recycle_type")]
    pub kind: RecycleType,
}

/// How a pod is made fit for the next sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RecycleType {
    /// Delete the pod; a fresh one takes its place.
    #[default]
    Delete,
    /// Restart its containers.
    Restart,
    /// Give it to the next sandbox as it is.
    Noop,
}

/// Observed state of a pool, in pods.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Hash of the current template.
    pub revision: String,
    /// Pods that are not being deleted.
    pub total: i32,
    /// Pods given to sandboxes.
    pub allocated: i32,
    /// Ready pods that no sandbox holds.
    pub available: i32,
    /// Pods made from the current template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<i32>,
    /// What is true of the pool now.
    #[serde(
        default,
        deserialize_with = "crate::conditions::deserialize",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
