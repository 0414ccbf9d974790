//! Everything about one Pool: which pods there are, and whose they are.
//!
//! A state machine without a client or a clock: [`Ledger::handle`] takes what happened and the time, and
//! says what is to be done. The shell does it and reports back. Invariants, each checked by property
//! tests here and by the simulation of `tests/simulation`:
//!
//! 1. a pod is held by at most one sandbox, and reserved for at most one;
//! 2. no held or reserved pod is retired or deleted by scaling, update or eviction;
//! 3. pods that exist, terminating ones included, and creations under way are at most `poolMax`;
//! 4. a returned pod is not idle before its recycling ended, and not reused while a statement names it;
//! 5. what is asked for waits in the order of the queue, and says why;
//! 6. with nothing to do, nothing is written.
//!
//! ```text
//! ledger      the state, and the order of what follows from an input
//! facts       what the Pool asks for; build: the pod that its template stands for
//! pods        the table of pods, its counts and orders
//! observe     what watches show; statements: what sandboxes say
//! members     the sandboxes and their queue; allocate: who gets what; waiting: what the others are told
//! scale       how many pods there are; births: pods being made; dismiss: how a pod goes
//! recycle     what becomes of returned pods; restart: recycling by restart
//! report      when the status is written; status: what it says
//! ```
//!
//! A ready idle pod is deleted in two steps, mark and delete, because a claim does not write the pod: a
//! replica that was stopped between a decision and its write, while another took over, can then at most
//! mark a pod; the new leader, which sees the mark or not, is not harmed by it. See docs/decisions.

mod allocate;
mod backoff;
mod births;
mod build;
mod dismiss;
mod facts;
mod ledger;
mod members;
mod names;
mod observe;
mod pods;
mod recycle;
mod report;
mod restart;
mod scale;
mod statements;
mod status;
#[cfg(test)]
mod tests;
mod waiting;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::v1alpha1::{CapacitySpec, PoolStatus};
use serde_json::Value;

pub use self::ledger::Ledger;
use crate::protocol::{FromPool, SandboxRef, ToPool};
use crate::view::{PodView, PoolView, Version};
use crate::write::{Event, WriteError};

/// What the injection takes from outside the Pool; follows the ConfigMaps and namespace labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectionFacts {
    /// Label `sandbox.opensandbox.io/task-executor` of the namespace.
    pub namespace_label: Option<String>,
    /// Where neither label says.
    pub default: opensandbox_api::sidecar::InjectionDefault,
    /// Image and verification key.
    pub settings: opensandbox_api::sidecar::Settings,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The Pool is there or has changed.
    Pool(Arc<PoolView>),
    /// There is no such Pool.
    PoolAbsent,
    /// What pods are injected with from now on. Existing pods are not replaced for it.
    Injection(Arc<InjectionFacts>),
    /// A pod with the pool's label is there or has changed.
    Pod(Arc<PodView>),
    /// A pod is gone.
    PodGone {
        /// Name.
        name: String,
        /// UID.
        uid: String,
    },
    /// A sandbox says something.
    Sandbox(ToPool),
    /// Answer to [`Output::CreatePod`].
    Created {
        /// Name.
        name: String,
        /// The pod, or why there is none.
        result: Result<Arc<PodView>, WriteError>,
    },
    /// Answer to [`Output::Retire`].
    Retired {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// The pod with its mark, or why it has none.
        result: Result<Arc<PodView>, WriteError>,
    },
    /// Answer to [`Output::DeletePod`]. The end of the pod itself is seen by the watch.
    Deleted {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// Whether it is being deleted now.
        result: Result<(), WriteError>,
    },
    /// Answer to [`Output::Restart`]: the record is written and the command was run where it could be.
    Restarted {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// The pod as the record was written, or why that failed.
        result: Result<Arc<PodView>, WriteError>,
    },
    /// Answer to [`Output::WriteStatus`].
    StatusWritten(Result<Version, WriteError>),
    /// The time of [`Output::WakeAt`] has come.
    Wake,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Create this pod. Its name was chosen here, so that a creation without a clear answer can be
    /// repeated without making a second pod.
    CreatePod {
        /// Name.
        name: String,
        /// The whole pod.
        pod: Arc<Value>,
    },
    /// Mark this idle pod as on its way out, with its version as precondition.
    Retire {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// Version.
        version: Version,
        /// Why, one word: `ScaleDown`, `Outdated`, `Evicted`.
        reason: &'static str,
    },
    /// Delete this pod, with UID and, if given, version as preconditions.
    DeletePod {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// Version; absent where nothing that may have changed speaks against it.
        version: Option<Version>,
        /// Why, one word, for the metric and the log.
        reason: &'static str,
    },
    /// Restart containers of this pod: write the record as its annotation, then run the command in each.
    Restart {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// Version.
        version: Version,
        /// Containers.
        containers: Vec<String>,
        /// What to run in each.
        command: Vec<String>,
        /// The annotation `restart-record`.
        record: String,
    },
    /// Write the Pool's status, with its version as precondition.
    WriteStatus {
        /// Version that it was computed from.
        version: Version,
        /// The whole status.
        status: Box<PoolStatus>,
    },
    /// Tell a sandbox something.
    ToSandbox {
        /// Whom.
        sandbox: SandboxRef,
        /// What.
        message: FromPool,
    },
    /// Publish an event about the Pool.
    Event(Event),
    /// Count something.
    Note(Note),
    /// Send [`Input::Wake`] at this time. Replaces an earlier wish.
    WakeAt(Timestamp),
}

/// What metrics are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A grant was taken: so many pods, after waiting for so many milliseconds since the demand was known here.
    Allocated {
        /// Pods.
        pods: u32,
        /// Milliseconds.
        waited_millis: u64,
        /// Whether idle pods met the demand at once.
        warm: bool,
    },
    /// A returned pod was recycled this way: `Delete`, `Noop`, `Restart`, `DeleteUnproved`.
    Recycled(&'static str),
    /// A pod that a sandbox held was lost.
    Lost,
    /// The counts changed.
    Census {
        /// Pods that are not being deleted.
        total: u32,
        /// Held by sandboxes.
        allocated: u32,
        /// Ready and idle.
        available: u32,
        /// Made from the current template.
        updated: u32,
        /// Being deleted.
        terminating: u32,
        /// Asked for by sandboxes that wait.
        waiting: u32,
    },
    /// What the Pool asks for changed; nothing of it is known while its spec cannot be followed.
    Asked {
        /// The four numbers.
        capacity: Option<CapacitySpec>,
        /// How it stands to the injection: `current`, `outdated`, `impossible` or `off`.
        injection: Option<&'static str>,
    },
}
