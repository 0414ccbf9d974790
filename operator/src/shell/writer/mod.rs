//! Everything that this program writes, and how it is kept from writing what it must not.
//!
//! In: what a machine decided. Out: the object as it was written, or why not. Each write waits for its
//! turn (a bound on all together, apart for pods and for what sandboxes wait for), then asks whether
//! this process still leads, then is sent, without retries of the client's own, and given up after 10 s.
//! Machines decide what becomes of a failure.

mod body;
mod classify;
mod exec;
mod lane;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{PartialObjectMeta, Request as Path};
use opensandbox_api::v1alpha1::{BatchSandbox, Pool, PoolStatus};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use tokio::sync::Semaphore;

pub use self::body::sandbox as sandbox_patch;
pub use self::classify::{Request, classify};
use self::lane::Lane;
use super::metrics::Metrics;
use crate::lease::Leadership;
use crate::view::parse::{self, RawPod};
use crate::view::{ObjectKey, PodView, SandboxView, Version};
use crate::write::{SandboxStatusWrite, SandboxWrite, WriteError};

/// Name under which fields are managed.
pub const FIELD_MANAGER: &str = "opensandbox-operator";

/// Until a write without an answer is given up.
const DEADLINE: Duration = Duration::from_secs(10);
/// Writes at once of objects that somebody waits for: BatchSandboxes, and status of Pools.
const OBJECTS: u32 = 96;
/// Writes at once of pods, at most; fewer while others write (see `lane.rs`).
const PODS: usize = 32;

const POD: &str = "pods";
const SANDBOX: &str = "batchsandboxes";
const SANDBOX_STATUS: &str = "batchsandboxes/status";
const POOL_STATUS: &str = "pools/status";

/// Shared by all actors.
pub struct Writer {
    client: kube::Client,
    leadership: Leadership,
    metrics: Arc<Metrics>,
    objects: Semaphore,
    pods: Lane,
    closed: AtomicBool,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

/// A request, if one can be made.
type Made = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// A write on its way to be sent.
struct Sending {
    kind: &'static str,
    verb: &'static str,
    request: Request,
}

impl Writer {
    /// A writer that asks `leadership` before each write.
    pub fn new(client: kube::Client, leadership: Leadership, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            leadership,
            metrics,
            objects: Semaphore::new(OBJECTS as usize),
            pods: Lane::new(PODS),
            closed: AtomicBool::new(false),
        }
    }

    /// Sends nothing from now on, and waits until what was sent is answered, at most so long. Whether
    /// everything was.
    pub async fn close(&self, bound: Duration) -> bool {
        self.closed.store(true, Ordering::Release);
        let all = async {
            // It is never closed.
            let _ = self.objects.acquire_many(OBJECTS).await;
            self.pods.empty().await;
        };
        tokio::time::timeout(bound, all).await.is_ok()
    }

    /// Whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn check(&self) -> Result<(), WriteError> {
        if self.is_closed() {
            return Err(WriteError::Fenced);
        }
        self.leadership.check()
    }

    /// Creates a pod.
    pub async fn create_pod(&self, namespace: &str, pod: &Value) -> Result<PodView, WriteError> {
        let body = serde_json::to_vec(pod).map_err(|_| malformed())?;
        let request = pods(namespace).create(&created_by_us(), body);
        let sending = Sending {
            kind: POD,
            verb: "create",
            request: Request::Create,
        };
        let pod: RawPod = self.send_pod(sending, request).await?;
        Ok(pod.into())
    }

    /// Waits as long as a write that no BatchSandbox waits for should give way to those that one waits for:
    /// at most so long.
    pub async fn give_precedence(&self, patience: Duration) {
        self.pods.held_back(patience).await;
    }

    /// Whether BatchSandboxes wait for pods of a pool. To be called when it changes.
    pub fn pods_are_awaited(&self, awaited: bool) {
        self.pods.awaited(awaited);
    }

    /// Deletes a pod, if it is still this one, and, with a version, still as it was.
    pub async fn delete_pod(
        &self,
        key: &ObjectKey,
        uid: &str,
        version: Option<Version>,
    ) -> Result<(), WriteError> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: version.map(|version| version.to_string()),
        });
        let request = pods(&key.namespace).delete(&key.name, &params);
        let sending = change(POD, "delete");
        self.send_pod::<IgnoredAny>(sending, request)
            .await
            .map(drop)
    }

    /// Marks a pod as on its way out.
    pub async fn retire_pod(
        &self,
        key: &ObjectKey,
        version: Version,
        reason: &str,
    ) -> Result<PodView, WriteError> {
        self.patch_pod(key, &body::retire(version, reason)).await
    }

    /// Writes the record of a restart, then runs the command in each container. What goes wrong with the
    /// command is logged: whether it worked is seen by the containers.
    pub async fn restart_pod(
        &self,
        key: &ObjectKey,
        version: Version,
        record: &str,
        containers: &[String],
        command: &[String],
    ) -> Result<PodView, WriteError> {
        let view = self.patch_pod(key, &body::restart(version, record)).await?;
        if self.check().is_ok() {
            exec::run(&self.client, key, containers, command).await;
        }
        Ok(view)
    }

    async fn patch_pod(&self, key: &ObjectKey, patch: &Value) -> Result<PodView, WriteError> {
        let request = pods(&key.namespace).patch(&key.name, &patched_by_us(), &Patch::Merge(patch));
        let pod: RawPod = self.send_pod(change(POD, "patch"), request).await?;
        Ok(pod.into())
    }

    /// Writes a Pool's status; returns its new version.
    pub async fn write_pool_status(
        &self,
        key: &ObjectKey,
        version: Version,
        status: &PoolStatus,
    ) -> Result<Version, WriteError> {
        let patch = body::pool_status(version, status);
        let request = path::<Pool>(&key.namespace).patch_subresource(
            "status",
            &key.name,
            &patched_by_us(),
            &Patch::Merge(&patch),
        );
        let sending = change(POOL_STATUS, "patch");
        let object: PartialObjectMeta<Pool> = self.send_object(sending, request).await?;
        Ok(parse::version(&object.metadata))
    }

    /// Writes annotations, finalizers and `poolRef` of a BatchSandbox.
    pub async fn write_sandbox(
        &self,
        key: &ObjectKey,
        write: &SandboxWrite,
    ) -> Result<SandboxView, WriteError> {
        let patch = body::sandbox(write);
        let request = path::<BatchSandbox>(&key.namespace).patch(
            &key.name,
            &patched_by_us(),
            &Patch::Merge(&patch),
        );
        let sending = change(SANDBOX, "patch");
        let object: DynamicObject = self.send_object(sending, request).await?;
        Ok(object.into())
    }

    /// Writes the status of a BatchSandbox.
    pub async fn write_sandbox_status(
        &self,
        key: &ObjectKey,
        write: &SandboxStatusWrite,
    ) -> Result<SandboxView, WriteError> {
        let patch = body::sandbox_status(write);
        let request = path::<BatchSandbox>(&key.namespace).patch_subresource(
            "status",
            &key.name,
            &patched_by_us(),
            &Patch::Merge(&patch),
        );
        let sending = change(SANDBOX_STATUS, "patch");
        let object: DynamicObject = self.send_object(sending, request).await?;
        Ok(object.into())
    }

    /// Deletes a BatchSandbox in the background, if it is still as it was.
    pub async fn delete_sandbox(
        &self,
        key: &ObjectKey,
        uid: &str,
        version: Version,
    ) -> Result<(), WriteError> {
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_string()),
        });
        let request = path::<BatchSandbox>(&key.namespace).delete(&key.name, &params);
        let sending = change(SANDBOX, "delete");
        self.send_object::<IgnoredAny>(sending, request)
            .await
            .map(drop)
    }

    /// Reads a BatchSandbox, from the store and not from a cache; `None` if there is none.
    pub async fn read_sandbox(&self, key: &ObjectKey) -> Result<Option<SandboxView>, WriteError> {
        let request = path::<BatchSandbox>(&key.namespace)
            .get(&key.name, &kube::api::GetParams::default())
            .map_err(|_| malformed())?;
        let answer = tokio::time::timeout(DEADLINE, self.client.request::<DynamicObject>(request));
        match answer.await.map_err(|_| late())? {
            Ok(object) => Ok(Some(object.into())),
            Err(error) => match classify(Request::Change, &error) {
                WriteError::NotFound => Ok(None),
                other => Err(other),
            },
        }
    }

    /// Pods wait for a turn in their lane.
    async fn send_pod<T: DeserializeOwned>(
        &self,
        sending: Sending,
        request: Made,
    ) -> Result<T, WriteError> {
        self.send(self.pods.turn(), sending, request).await
    }

    /// What somebody waits for goes before pods.
    async fn send_object<T: DeserializeOwned>(
        &self,
        sending: Sending,
        request: Made,
    ) -> Result<T, WriteError> {
        let _before_pods = self.pods.give_way();
        self.send(self.objects.acquire(), sending, request).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        turn: impl Future,
        sending: Sending,
        request: Made,
    ) -> Result<T, WriteError> {
        let Sending {
            kind,
            verb,
            request: what,
        } = sending;
        let request = request.map_err(|_| malformed())?;
        self.metrics.writes_in_flight.inc();
        let _turn = turn.await;
        let (result, took) = if let Err(fenced) = self.check() {
            (Err(fenced), None)
        } else {
            let began = Instant::now();
            let answer = self.client.request::<T>(request);
            let result = match tokio::time::timeout(DEADLINE, answer).await {
                Ok(answer) => answer.map_err(|error| classify(what, &error)),
                Err(_) => Err(late()),
            };
            (result, Some(began.elapsed()))
        };
        self.metrics.writes_in_flight.dec();
        match &result {
            Ok(_) => self.metrics.written(kind, verb, "ok", took),
            Err(error) => {
                self.metrics.written(kind, verb, error.category(), took);
                self.metrics.failed(error.category());
            }
        }
        result
    }
}

fn change(kind: &'static str, verb: &'static str) -> Sending {
    Sending {
        kind,
        verb,
        request: Request::Change,
    }
}

fn path<K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    namespace: &str,
) -> Path {
    Path::new(K::url_path(&(), Some(namespace)))
}

fn pods(namespace: &str) -> Path {
    path::<RawPod>(namespace)
}

fn patched_by_us() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn created_by_us() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// No request can be made of it: an object whose name is none.
fn malformed() -> WriteError {
    WriteError::Refused {
        reason: "BadRequest".to_owned(),
        message: "no request can be made of this".to_owned(),
    }
}

fn late() -> WriteError {
    WriteError::Unclear {
        message: format!("no answer within {} s", DEADLINE.as_secs()),
    }
}
