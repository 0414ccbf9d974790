//! What a BatchSandbox and its Pool say to each other.
//!
//! Two state machines decide: [`crate::pool::Ledger`] which pod a sandbox gets, what becomes of a pod
//! that is given back and how many pods there are; [`crate::sandbox::Machine`] everything about one
//! BatchSandbox. Each object has one writer: the machine of the sandbox writes the BatchSandbox, that of
//! the pool its Pool's status and its pods. So a grant is a proposal: the pod is the sandbox's only when
//! the sandbox has written it into `alloc-status` with the object's version as precondition, and said so.
//!
//! A pod of a pool is at any time exactly one of: idle, reserved for a grant that is not answered yet,
//! held, being recycled, on its way out. Only the ledger moves it from one to the other, and it moves it
//! from held to idle by way of recycling only.
//!
//! Messages between the two are neither lost nor reordered while both run; after a restart both begin
//! anew from what is written on the objects.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::view::{ObjectKey, PodView};

/// Which BatchSandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxRef {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID: an object of the same name made later is another one.
    pub uid: String,
}

/// A pod that a sandbox gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// Name of the pod.
    pub pod: String,
    /// Whether it is proved that no process of a task is left in it. Without that proof the pod must be
    /// deleted, whatever the Pool's recycle strategy is.
    pub clean: bool,
}

/// Whose pod it is where, at a start, several objects name one: that of the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// Whether its annotations cannot be read, so that what it holds is only made out: pods that it gave
    /// back long ago may be among them.
    pub made_out: bool,
    /// Creation of the object. The place in the queue would not do: it changes whenever pods are missing.
    pub created: Timestamp,
}

/// Where a sandbox stands towards its pool. Each statement replaces the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Who speaks.
    pub sandbox: SandboxRef,
    /// What its word counts at a start, where another object names the same pod.
    pub standing: Standing,
    /// Its place in the queue: creation of the object, and the UID among equals. A sandbox that was
    /// satisfied once and wants more queues from then on.
    pub queued: Timestamp,
    /// Pods that its annotations say it holds, released ones excluded. Durable.
    pub holds: Vec<String>,
    /// Pods that it gives back: durable in `alloc-release`, or the object is being deleted. Not in `holds`.
    pub returns: Vec<Return>,
    /// How many more pods it asks for.
    pub wants: u32,
    /// `spec.replicas`, for messages and to tell demands apart that the pool can never meet.
    pub replicas: u32,
}

/// From a sandbox to its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToPool {
    /// Where it stands.
    Statement(Statement),
    /// The answer to [`FromPool::Grant`]; a new statement precedes it if the grant was taken.
    Answer {
        /// Who speaks.
        sandbox: SandboxRef,
        /// Which grant.
        grant: u64,
        /// Whether the pods are durably the sandbox's now. If not, it is certain that they are not.
        taken: bool,
    },
    /// The object is gone or belongs to another pool now: what it held is given back, unproved.
    Left {
        /// Who.
        sandbox: SandboxRef,
    },
}

/// Why a sandbox waits, for its condition `PoolAllocationPending`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// One of [`opensandbox_api::conditions::reason`].
    pub reason: &'static str,
    /// With numbers: how many it waits for, how many are idle, starting, allocated, and the bound. Changes
    /// only when a number that a user acts on changes, so that the status is not rewritten all the time.
    pub message: String,
}

/// From a pool to one of its sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromPool {
    /// These pods are reserved; take them all, or none.
    Grant {
        /// To be named in the answer.
        grant: u64,
        /// Ready pods with an address.
        pods: Vec<Arc<PodView>>,
    },
    /// The recycling of a returned pod is over as far as this sandbox is concerned: it may be named in
    /// `alloc-released`. The pool keeps it from others until a statement no longer names it.
    Recycled {
        /// Name of the pod.
        pod: String,
    },
    /// A pod that the sandbox holds or returns has changed.
    Pod(Arc<PodView>),
    /// A pod that the sandbox holds is gone, or is on its way out and will not come back.
    Lost {
        /// Name of the pod.
        pod: String,
        /// What is known about the cause, in a sentence.
        cause: String,
    },
    /// The sandbox waits, or, with `None`, does not any more.
    Waiting(Option<Waiting>),
}
