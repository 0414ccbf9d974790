//! Giving pods back: which, when it is proved that nothing of a task is left in them, and when they are
//! free of this sandbox.
//!
//! `decided -> proved or given up -> durable in alloc-release -> told to the pool -> recycled -> trimmed
//! or named in alloc-released`. In an object that is being deleted the deletion stands for alloc-release.
//! Pods of a template leave with their object only, and nobody recycles them: with the proof it may go.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Output;
use super::machine::{Machine, Pod, event};
use crate::time::later;

/// How long an executor may be unreachable before its pod is given back unproved.
const UNREACHABLE: SignedDuration = SignedDuration::from_secs(30);

/// How long the proof may take in all. Longer than any sensible grace period of a task.
const UNPROVED: SignedDuration = SignedDuration::from_mins(5);

/// How long a deletion waits for the pool to recycle a pod. The pod stays the pool's to deal with.
const UNRECYCLED: SignedDuration = SignedDuration::from_mins(5);

/// A pod that is being given back. There is no way back from this.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    since: Timestamp,
    /// Since when its executor does not answer.
    pub(super) unreachable: Option<Timestamp>,
    /// Whether the proof is there; `false` if it was given up.
    pub(super) proof: Option<bool>,
    /// When the pool was told.
    returned: Option<Timestamp>,
    /// Whether the pool is done with it.
    pub(super) recycled: bool,
}

impl Leaving {
    fn new(since: Timestamp) -> Self {
        Self {
            since,
            unreachable: None,
            proof: None,
            returned: None,
            recycled: false,
        }
    }
}

impl Machine {
    /// Decides which pods are given back, and how far each is.
    pub(super) fn settle_leaving(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let deleting = self.view.deleting;
        if self.quarantine().is_some() && !deleting {
            return;
        }
        let pooled = self.source.pool().is_some();
        let decided = if pooled {
            self.pods_given_back()
        } else if deleting {
            self.pods.keys().cloned().collect()
        } else {
            return;
        };
        let mut overdue = Vec::new();
        for name in decided {
            let durable = deleting || self.held.release.contains(&name);
            let Some(pod) = self.pods.get_mut(&name) else {
                continue;
            };
            let leaving = pod.leaving.get_or_insert_with(|| Leaving::new(now));
            if leaving.proof.is_none() {
                let gone = pod.lost.is_some();
                let ended = pod.view.as_ref().is_some_and(|view| view.has_ended());
                let unreachable = leaving
                    .unreachable
                    .is_some_and(|since| later(since, UNREACHABLE) <= now);
                let unseen = pod.view.as_ref().is_none_or(|view| view.ip.is_none());
                let never_seen = unseen && later(leaving.since, UNREACHABLE) <= now;
                if !pod.touched && !gone && !ended {
                    leaving.proof = Some(true);
                } else if gone
                    || ended
                    || unreachable
                    || never_seen
                    || later(leaving.since, UNPROVED) <= now
                {
                    leaving.proof = Some(false);
                }
            }
            let nothing_to_recycle = pod.lost.is_some() || (!pooled && leaving.proof.is_some());
            if nothing_to_recycle && durable {
                leaving.recycled = true;
            }
            if leaving.proof.is_some() && durable {
                let returned = *leaving.returned.get_or_insert(now);
                if deleting && !leaving.recycled && later(returned, UNRECYCLED) <= now {
                    leaving.recycled = true;
                    overdue.push(name);
                }
            }
        }
        for name in overdue {
            out.push(event(
                true,
                "PodNotRecycled",
                "Release",
                &format!("the pool did not recycle pod {name} in time; the sandbox does not wait for it any longer"),
            ));
        }
    }

    /// Pods of a pool that this sandbox gives back.
    fn pods_given_back(&self) -> Vec<String> {
        let shards = self.shards();
        let leaves = |index: u32, name: &String| {
            self.view.deleting
                || index >= shards
                || self.held.release.contains(name)
                || self.is_over(index)
                // Decided by an earlier process, and recorded: its task may be stopped already.
                || self.table.is_removed(index)
                || self.pods.get(name).is_some_and(|pod| pod.leaving.is_some())
        };
        (0_u32..)
            .zip(&self.held.entries)
            .filter(|(index, name)| !self.held.released.contains(*name) && leaves(*index, name))
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// The executor of a pod that leaves lists nothing.
    pub(super) fn is_clear(&mut self, name: &str) {
        if let Some(leaving) = self.pods.get_mut(name).and_then(|pod| pod.leaving.as_mut()) {
            leaving.unreachable = None;
            leaving.proof.get_or_insert(true);
        }
    }

    /// The pool is done with a pod.
    pub(super) fn recycled(&mut self, name: &str) {
        if let Some(leaving) = self.pods.get_mut(name).and_then(|pod| pod.leaving.as_mut())
            && leaving.returned.is_some()
        {
            leaving.recycled = true;
        }
    }

    /// Whether every pod is back, so that the object may go.
    pub(super) fn everything_is_back(&self) -> bool {
        let is_back = |pod: &Pod| pod.leaving.as_ref().is_some_and(|leaving| leaving.recycled);
        if self.source.pool().is_none() {
            return self.pods.values().all(is_back);
        }
        self.held
            .current()
            .all(|(_, name)| self.pods.get(name).is_some_and(is_back))
    }

    pub(super) fn leaving_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        self.pods
            .values()
            .filter_map(|pod| pod.leaving.as_ref())
            .filter(|leaving| !leaving.recycled)
            .flat_map(|leaving| match leaving.proof {
                None => [
                    leaving.unreachable.map(|since| later(since, UNREACHABLE)),
                    Some(later(leaving.since, UNREACHABLE)),
                    Some(later(leaving.since, UNPROVED)),
                ],
                Some(_) if self.view.deleting => [
                    leaving.returned.map(|since| later(since, UNRECYCLED)),
                    None,
                    None,
                ],
                Some(_) => [None, None, None],
            })
            .flatten()
            .filter(|at| *at > now)
            .min()
    }
}
