//! Objects of the API server, reduced to what decisions are made from.
//!
//! In: raw objects as a watch or a write returned them. Out: views without a client behind them, small
//! enough that ten thousand pods fit in some ten megabytes. Pure. Whether what an annotation or a spec
//! says makes sense is decided elsewhere; here a value that cannot be read is kept as text.

pub mod parse;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::v1alpha1::{BatchSandboxSpec, BatchSandboxStatus, PoolSpec, PoolStatus};
use serde_json::{Value, json};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `resourceVersion` of an object. Kubernetes lets clients compare versions of the same object as
/// numbers since 1.35, and has always counted them up before; what is no number is taken for the oldest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPhase {
    /// Accepted, not all containers started.
    #[default]
    Pending,
    /// At least one container runs.
    Running,
    /// Every container ended with 0.
    Succeeded,
    /// Every container ended, one with failure.
    Failed,
    /// The node does not answer.
    Unknown,
}

/// What keeps a pod from running, as its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Reason of a waiting or failed container or of the pod, such as `ErrImagePull`, `Unschedulable`, `Evicted`.
    pub reason: String,
    /// The same in a sentence; bounded.
    pub message: String,
    /// Whether this is an error (`ErrImagePull`, `CrashLoopBackOff`), or only something not done yet.
    pub error: bool,
}

/// State of one container of a pod, init containers excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Name.
    pub name: String,
    /// ID with its runtime's prefix; absent until it was created.
    pub id: Option<String>,
    /// Whether it runs now.
    pub running: bool,
}

/// The controller that owns an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Kind, such as `Pool`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// The `ownerReferences` of an object that this object of ours controls.
pub(crate) fn controlled_by(kind: &str, name: &str, uid: &str) -> Value {
    json!([{
        "apiVersion": parse::api_version(),
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// A pod.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of a pod, each as Kubernetes has it"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID.
    pub uid: String,
    /// Version of the object.
    pub version: Version,
    /// When it was created.
    pub created: Timestamp,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The controller that owns it.
    pub owner: Option<Owner>,
    /// Label `sandbox.opensandbox.io/pool-name`.
    pub pool: Option<String>,
    /// Label `sandbox.opensandbox.io/pool-revision`.
    pub revision: Option<String>,
    /// Label `batch-sandbox.sandbox.opensandbox.io/name`.
    pub sandbox: Option<String>,
    /// Label `batch-sandbox.sandbox.opensandbox.io/pod-index`.
    pub index: Option<u32>,
    /// Whether the label `pool.opensandbox.io/evict` is there.
    pub evict: bool,
    /// Whether it has been marked for deletion, see [`opensandbox_api::labels::RETIRING`].
    pub retiring: bool,
    /// Phase.
    pub phase: PodPhase,
    /// Whether the condition `Ready` is true.
    pub ready: bool,
    /// Since when the condition `Ready` has the status it has.
    pub ready_since: Option<Timestamp>,
    /// Whether it has a node.
    pub scheduled: bool,
    /// Its address.
    pub ip: Option<String>,
    /// What keeps it from running.
    pub trouble: Option<Trouble>,
    /// Its containers with a status.
    pub containers: Vec<ContainerView>,
    /// Annotation `sandbox.opensandbox.io/restart-record`.
    pub restart_record: Option<String>,
}

impl PodView {
    /// Whether it runs, is ready, and is not on its way out: what a sandbox may be given.
    pub fn is_usable(&self) -> bool {
        self.phase == PodPhase::Running && self.ready && !self.deleting && !self.retiring
    }

    /// Whether it ended and will never run again.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }
}

/// A Pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolView {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID.
    pub uid: String,
    /// Version of the object.
    pub version: Version,
    /// Generation of the spec.
    pub generation: i64,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The spec, or why it cannot be read.
    pub spec: Result<Arc<PoolSpec>, String>,
    /// The status as stored, as far as it can be read.
    pub status: PoolStatus,
    /// The whole object as JSON, for the injection and for the labels and annotations that few look at.
    pub raw: Arc<Value>,
}

/// A BatchSandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxView {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID.
    pub uid: String,
    /// Version of the object.
    pub version: Version,
    /// Generation of the spec.
    pub generation: i64,
    /// When it was created.
    pub created: Timestamp,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// All finalizers, ours and others'.
    pub finalizers: Vec<String>,
    /// Label `sandbox.opensandbox.io/task-executor`, for sandboxes with a template of their own.
    pub injection: Option<String>,
    /// Annotation `sandbox.opensandbox.io/task-executor-mode`, for the same.
    pub executor_mode: Option<String>,
    /// Labels, for the assignment of a pool.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Annotation `sandbox.opensandbox.io/alloc-status`.
    pub alloc_status: Option<String>,
    /// Annotation `sandbox.opensandbox.io/alloc-release`.
    pub alloc_release: Option<String>,
    /// Annotation `sandbox.opensandbox.io/alloc-released`.
    pub alloc_released: Option<String>,
    /// Annotation `sandbox.opensandbox.io/endpoints`.
    pub endpoints: Option<String>,
    /// Annotation [`opensandbox_api::labels::FENCE`].
    pub fence: Option<String>,
    /// The spec, or why it cannot be read.
    pub spec: Result<Arc<BatchSandboxSpec>, String>,
    /// `spec.poolRef` of a spec that cannot be read as a whole: what the object holds is that Pool's.
    pub unread_pool_ref: Option<String>,
    /// The status as stored, as far as it can be read; the default where there is none.
    pub status: BatchSandboxStatus,
}
