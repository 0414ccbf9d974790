//! Everything about one BatchSandbox: its pods, its tasks, its annotations and status, its end.
//!
//! A state machine without a client or a clock, like [`crate::pool`]. It is the only writer of its
//! object: at most one write is under way, each with the version of the object as precondition.
//! Invariants, each checked by property tests here and by the simulation:
//!
//! 1. a granted pod is in `alloc-status` before anything else is done with it: no task is sent to it, no
//!    grant is answered with `taken` before the write was;
//! 2. a warm pooled sandbox costs two writes until it is ready: one of annotations and finalizers, one of
//!    the status, whatever `replicas` is;
//! 3. entry i of `alloc-status` is the pod of shard i: a lost pod is replaced in its place;
//! 4. the task of shard i with attempt k is started at most once; a terminal result stays;
//! 5. a pod is returned only when its tasks are proved stopped, or with `clean: false` after a bound;
//! 6. an object that is deleted is gone in bounded time, whatever the pool and the executors do;
//! 7. with nothing to do, nothing is written.

mod allocation;
mod away;
mod claim;
mod conditions;
mod endpoints;
mod facts;
mod fault;
mod intent;
mod leaving;
mod life;
mod machine;
mod orders;
mod own_pods;
mod record;
mod results;
mod source;
mod status;
mod task_order;
mod task_reports;
mod tasks;
mod template;
mod text;
mod unseen;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::pool::InjectionFacts;
use crate::protocol::{FromPool, ToPool};
use crate::session::{Order, Report};
use crate::view::{PodView, SandboxView, Version};
use crate::write::{Event, SandboxStatusWrite, SandboxWrite, WriteError};

pub use claim::statement;
pub use machine::Machine;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The object is there or has changed. Also the answer to [`Output::Read`].
    Object(Arc<SandboxView>),
    /// There is no such object any more.
    Absent,
    /// The pool says something.
    Pool(FromPool),
    /// Answer to [`Output::Assign`]: the pool chosen for `poolRef: "*"`, or why there is none.
    Assigned(Result<String, String>),
    /// What pods made from the sandbox's own template are injected with.
    Injection(Arc<InjectionFacts>),
    /// A pod made from the sandbox's own template is there or has changed.
    Pod(Arc<PodView>),
    /// Such a pod is gone.
    PodGone {
        /// Name.
        name: String,
        /// UID.
        uid: String,
    },
    /// Answer to [`Output::Write`].
    Written(Result<Arc<SandboxView>, WriteError>),
    /// Answer to [`Output::WriteStatus`].
    StatusWritten(Result<Arc<SandboxView>, WriteError>),
    /// Answer to [`Output::Delete`].
    Deleted(Result<(), WriteError>),
    /// Answer to [`Output::CreatePod`].
    PodCreated {
        /// Name.
        name: String,
        /// The pod, or why there is none.
        result: Result<Arc<PodView>, WriteError>,
    },
    /// Answer to [`Output::DeletePod`].
    PodDeleted {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// Whether it is being deleted now.
        result: Result<(), WriteError>,
    },
    /// An executor has something to say.
    Report(Report),
    /// The time of [`Output::WakeAt`] has come.
    Wake,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Write annotations, finalizers, `poolRef`.
    Write(SandboxWrite),
    /// Write the status.
    WriteStatus(SandboxStatusWrite),
    /// Delete the object itself, in the background: it has expired.
    Delete {
        /// Version as precondition, so that an extension of `expireTime` wins.
        version: Version,
    },
    /// Read the object anew: a write had no clear answer, or met a conflict.
    Read,
    /// Choose a pool for `poolRef: "*"`.
    Assign,
    /// Tell a pool of the namespace something.
    ToPool {
        /// Its name.
        pool: String,
        /// What.
        message: ToPool,
    },
    /// Create a pod from the sandbox's own template. Its name is fixed, `<sandbox>-<index>`.
    CreatePod {
        /// Name.
        name: String,
        /// The whole pod.
        pod: Arc<Value>,
    },
    /// Delete such a pod.
    DeletePod {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// Why, one word.
        reason: &'static str,
    },
    /// What is wanted of executors: the whole list, which replaces the one before.
    Sessions(Vec<Order>),
    /// Publish an event about the object.
    Event(Event),
    /// Count something.
    Note(Note),
    /// Send [`Input::Wake`] at this time. Replaces an earlier wish.
    WakeAt(Timestamp),
    /// The object is gone and nothing is left to do: the machine can be dropped.
    Done,
}

/// What metrics are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Every sandbox is ready, so many milliseconds after the creation of the object.
    Ready {
        /// Milliseconds.
        millis: u64,
        /// Whether its pods come from a pool.
        pooled: bool,
    },
    /// A task ended.
    TaskEnded {
        /// Reason of its result, such as `Succeeded` or `OOMKilled`.
        reason: String,
        /// Milliseconds that it ran.
        millis: Option<u64>,
    },
    /// The object was set aside.
    Quarantined,
}

/// What the shell knows when the machine is made.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Injection for pods of a template of its own.
    pub injection: Arc<InjectionFacts>,
    /// Text to be written into the annotation [`opensandbox_api::labels::FENCE`] of every object that waits
    /// for pods, before it asks for any: set after a leader was lost without having resigned. It takes
    /// the version away from under whatever that leader may still send.
    pub fence: Option<String>,
    /// Whether executors are upstream's: they know no `uid`, so that the name alone tells tasks apart.
    pub upstream_executors: bool,
}
