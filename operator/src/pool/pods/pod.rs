//! One pod, and what it is there for.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::pool::backoff::{Backoff, after};
use crate::pool::restart::Record;
use crate::protocol::SandboxRef;
use crate::view::{PodView, Version};

/// How long an idle pod may take to become ready until it is replaced.
const READY_BOUND: SignedDuration = SignedDuration::from_mins(5);
/// The same for one that was ready and whose containers run on: it has nothing to start or to fetch.
const UNREADY_BOUND: SignedDuration = SignedDuration::from_secs(30);
/// How long an idle pod may report an error until it is replaced: the kubelet's second try of an image
/// comes after 10 s.
const ERROR_BOUND: SignedDuration = SignedDuration::from_secs(15);

/// Whose a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Owner {
    /// This Pool's.
    This,
    /// Of an earlier Pool of this name.
    Earlier,
    /// Somebody else's: it only carries the label.
    Other,
}

/// What a pod is there for.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::pool) enum State {
    /// Free, or on the way to be.
    Idle,
    /// Offered to the sandbox of this UID.
    Reserved(String),
    /// The sandbox's of this UID.
    Held(String),
    /// Given back, and being restarted.
    Restarting(Box<Restarting>),
    /// Given back and clean, but still named by the sandbox of this UID.
    Recycled(String),
    /// On its way out.
    Leaving(Box<Leaving>),
}

/// A pod that is recycled by restart.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::pool) struct Restarting {
    /// UID of the sandbox that gave it back.
    pub(in crate::pool) uid: String,
    /// How far it has come.
    pub(in crate::pool) record: Record,
    /// Whether the record was written.
    pub(in crate::pool) confirmed: bool,
    /// The version of the write whose answer is waited for.
    pub(in crate::pool) asked: Option<Version>,
    /// When to look again.
    pub(in crate::pool) next: Option<Timestamp>,
}

/// How far a pod on its way out has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Step {
    /// The mark is being written.
    Marking,
    /// Its deletion is being asked for.
    Deleting,
    /// It is being deleted, or gone; the watch should say so.
    Accepted,
}

/// A pod on its way out.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::pool) struct Leaving {
    pub(in crate::pool) step: Step,
    /// Whether an answer is waited for.
    pub(in crate::pool) asked: bool,
    /// Why, one word.
    pub(in crate::pool) reason: &'static str,
    /// Whether it was idle, and may be so again.
    pub(in crate::pool) idle: bool,
    /// Whether some claim could rest on it, so that it must be marked before it is deleted if it is ready.
    pub(in crate::pool) mark: bool,
    /// Version that the write under way has as precondition.
    pub(in crate::pool) version: Option<Version>,
    /// The sandbox that gave it back and waits for the end of its recycling.
    pub(in crate::pool) tell: Option<SandboxRef>,
    pub(in crate::pool) backoff: Backoff,
    /// When to try again, or to ask whether it is gone.
    pub(in crate::pool) next: Option<Timestamp>,
}

/// One pod.
#[derive(Clone, Debug)]
pub(in crate::pool) struct Pod {
    pub(in crate::pool) view: Arc<PodView>,
    pub(in crate::pool) state: State,
    pub(in crate::pool) owner: Owner,
    /// It was not ready for too long, or reports an error for too long.
    pub(in crate::pool) broken: bool,
    /// Whether it was seen ready, with the containers that run in it now.
    pub(in crate::pool) was_ready: bool,
    /// A write found that the pod has changed; nothing is done with it until the change is seen.
    pub(in crate::pool) outrun: bool,
}

impl Pod {
    /// Whether it may be given to a sandbox now.
    pub(super) fn is_usable(&self) -> bool {
        self.view.is_usable() && self.view.ip.is_some() && !self.view.evict && !self.outrun
    }

    /// Since when it is as ready or not ready as it is.
    fn since(&self) -> Timestamp {
        let created = self.view.created;
        self.view
            .ready_since
            .map_or(created, |since| since.max(created))
    }

    /// When it is to be looked at again if nothing happens to it.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        match &self.state {
            State::Idle if self.owner == Owner::This && !self.view.ready && !self.is_broken() => {
                let error = self
                    .view
                    .trouble
                    .as_ref()
                    .is_some_and(|trouble| trouble.error);
                let bound = match (error, self.was_ready) {
                    (true, _) => ERROR_BOUND,
                    (false, true) => UNREADY_BOUND,
                    (false, false) => READY_BOUND,
                };
                Some(after(self.since(), bound))
            }
            State::Restarting(restarting) => restarting.next,
            // Once it was seen to be deleted, its end is seen as well.
            State::Leaving(leaving) if leaving.step == Step::Accepted && self.view.deleting => None,
            State::Leaving(leaving) => leaving.next,
            _ => None,
        }
    }

    /// Whether it will not do and must be replaced.
    pub(in crate::pool) fn is_broken(&self) -> bool {
        self.broken || self.view.has_ended()
    }

    /// Whether it is ready, so that a claim could rest on it.
    pub(in crate::pool) fn needs_mark(&self) -> bool {
        self.view.is_usable()
    }

    /// UID of the sandbox that it is reserved for, held by, or given back by.
    pub(in crate::pool) fn sandbox(&self) -> Option<&str> {
        match &self.state {
            State::Idle => None,
            State::Reserved(uid) | State::Held(uid) | State::Recycled(uid) => Some(uid),
            State::Restarting(restarting) => Some(&restarting.uid),
            State::Leaving(leaving) => leaving.tell.as_ref().map(|sandbox| sandbox.uid.as_str()),
        }
    }
}
