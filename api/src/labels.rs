//! Every label, annotation, finalizer and field name that more than one program reads or writes.
//!
//! Upstream's keys keep upstream's spelling (a cluster can switch over and back); ours sit under the
//! same group prefix. Constants only: no client, no feature needed.

/// API group of all our kinds.
pub const GROUP: &str = "sandbox.opensandbox.io";

/// Version served and stored.
pub const VERSION: &str = "v1alpha1";

/// Name of the injected container, and of the one a user writes by hand.
pub const TASK_EXECUTOR: &str = "task-executor";

/// Port of the executor's API, upstream's number.
pub const TASK_EXECUTOR_PORT: u16 = 5758;

/// Label on a Pool or on a Namespace: `enabled` or `disabled` decides whether the executor is
/// injected. The Pool's label wins over the Namespace's, that over the installation's default.
///
/// A label, not an annotation, so that the API server can select by it and an opted-out Pool costs
/// no call.
pub const INJECTION: &str = "sandbox.opensandbox.io/task-executor";

/// Annotation on a Pool, written by the injection: what was added and where each value came from.
/// JSON of [`crate::sidecar::Record`].
pub const INJECTION_RECORD: &str = "sandbox.opensandbox.io/task-executor-injection";

/// Annotation on a Pool: any new value asks for the injected values to be taken anew from the
/// current settings. This is how a Pool takes a new executor image:
/// `kubectl annotate pool NAME --overwrite sandbox.opensandbox.io/task-executor-upgrade="$(date +%s)"`.
pub const INJECTION_UPGRADE: &str = "sandbox.opensandbox.io/task-executor-upgrade";

/// Annotation on a Pool, or on a BatchSandbox with a template of its own: where the executor runs,
/// `sidecar` (the default) or `in-container`, see [`crate::sidecar::Mode`].
pub const EXECUTOR_MODE: &str = "sandbox.opensandbox.io/task-executor-mode";

/// Name of the init container that copies the executor for the sandbox container, upstream's.
pub const TASK_EXECUTOR_INSTALLER: &str = "task-executor-installer";

/// Name of the volume that it copies into.
pub const TASK_EXECUTOR_VOLUME: &str = "task-executor";

/// Where that volume is mounted. The programs keep their names in it.
pub const TASK_EXECUTOR_DIRECTORY: &str = "/opt/task-executor";

/// ConfigMap that holds the images, in a Pool's namespace or in the installation's.
pub const IMAGES_CONFIG_MAP: &str = "opensandbox-images";

/// Key of the executor's image in [`IMAGES_CONFIG_MAP`].
pub const TASK_EXECUTOR_IMAGE_KEY: &str = "taskExecutorImage";

/// Key in the installation's [`IMAGES_CONFIG_MAP`]: the operator's public key (Ed25519, base64), by
/// which executors verify that an order comes from the operator. Public, therefore in a ConfigMap.
pub const TASK_EXECUTOR_VERIFICATION_KEY_KEY: &str = "taskExecutorVerificationKey";

/// Image used where neither the Pool nor a ConfigMap names one.
pub const DEFAULT_TASK_EXECUTOR_IMAGE: &str = "opensandbox.io/task-executor:v0.0.1";

/// Environment variable of the executor: name of the container it injects tasks into (upstream's).
pub const MAIN_CONTAINER_NAME_ENV: &str = "MAIN_CONTAINER_NAME";

/// Environment variable of the executor: the operator's public key.
pub const VERIFICATION_KEY_ENV: &str = "TASK_EXECUTOR_VERIFICATION_KEY";

/// Pod annotation by which `kubectl exec` and `kubectl logs` choose a container.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Namespace label by which Pod Security Admission enforces a level.
pub const POD_SECURITY_ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// Annotation on a BatchSandbox: the pods given to it, `{"pods":[..]}` in shard order.
pub const ALLOC_STATUS: &str = "sandbox.opensandbox.io/alloc-status";
/// Annotation on a BatchSandbox: the pods it gives back, `{"pods":[..]}`.
pub const ALLOC_RELEASE: &str = "sandbox.opensandbox.io/alloc-release";
/// Annotation on a BatchSandbox: the pods whose recycling ended, `{"pods":[..]}`.
pub const ALLOC_RELEASED: &str = "sandbox.opensandbox.io/alloc-released";
/// Annotation on a BatchSandbox: pod addresses as a JSON array, in shard order.
pub const ENDPOINTS: &str = "sandbox.opensandbox.io/endpoints";

/// Annotation on a Pod: progress of a recycling by restart.
pub const RESTART_RECORD: &str = "sandbox.opensandbox.io/restart-record";
/// Annotation on a Pool: how pods are recycled by restart.
pub const RESTART_CONFIG: &str = "sandbox.opensandbox.io/restart-config";

/// Label on a pool's pods: the pool's name, upstream's key.
pub const POOL_NAME: &str = "sandbox.opensandbox.io/pool-name";
/// Label on a pool's pods: hash of the template they were made from.
pub const POOL_REVISION: &str = "sandbox.opensandbox.io/pool-revision";
/// Label on a pool's pods: the pool's name, the short key of `kubectl get pods -l pool=NAME`.
pub const POOL: &str = "pool";
/// Label on pods of a BatchSandbox made from a template: shard index, decimal.
pub const POD_INDEX: &str = "batch-sandbox.sandbox.opensandbox.io/pod-index";
/// Label on pods of a BatchSandbox made from a template: its name.
pub const BATCH_SANDBOX_NAME: &str = "batch-sandbox.sandbox.opensandbox.io/name";
/// Label on a pod: its presence asks that an idle pod be replaced.
pub const EVICT: &str = "pool.opensandbox.io/evict";
/// Label on a Pool: names the handler of evictions; only the default exists.
pub const EVICTION_HANDLER: &str = "pool.opensandbox.io/eviction-handler";

/// Finalizer on a BatchSandbox with tasks.
pub const TASK_CLEANUP_FINALIZER: &str = "batch-sandbox.sandbox.opensandbox.io/task-cleanup";
/// Finalizer on a BatchSandbox that holds pods of a pool.
pub const POOL_ALLOCATION_FINALIZER: &str = "pool.sandbox.opensandbox.io/pool-allocation";

/// Label on a pool's pod, ours: the operator has decided to delete this idle pod and gives it to nobody.
/// Its value says why: `ScaleDown`, `Outdated`, `Evicted`.
pub const RETIRING: &str = "sandbox.opensandbox.io/retiring";
/// Annotation on a BatchSandbox, ours: written once by a leader that followed one which had not resigned,
/// so that a write which that one may still send meets another version.
pub const FENCE: &str = "sandbox.opensandbox.io/fence";
