//! How a pod goes: marked first if a claim could rest on it, then deleted.
//!
//! A claim is not written on the pod, so that a version cannot protect a ready idle pod from a replica
//! that was stopped between its decision and its write. Therefore the pod is marked first: a mark that
//! comes too late harms nobody.
//!
//! The end of a pod is seen by the watch, unless the watch was interrupted for the whole life of the pod,
//! which is known from the answer to its creation then. Such a pod is deleted again until there is none.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::backoff::{Backoff, after};
use super::births::SHOWN_WITHIN;
use super::pods::{Leaving, State, Step};
use super::{Ledger, Output};
use crate::protocol::SandboxRef;
use crate::view::{PodView, Version};
use crate::write::WriteError;

/// Longest time between two tries of the same write.
const LONGEST_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// Reason of those that go because a user's label asks for it.
const EVICTED: &str = "Evicted";
/// Reason of a deletion that is repeated, because the watch does not show that the pod is being deleted.
const UNSEEN: &str = "Unseen";

impl Ledger {
    /// Sends an idle pod away.
    pub(super) fn dismiss(&mut self, name: &str, reason: &'static str) {
        self.send_away(name, reason, None, true);
    }

    /// Sends a pod away: an idle one, or one that was given back. `mark` says whether some claim could
    /// still rest on it; `tell` who is to hear of it when that is certain.
    pub(super) fn send_away(
        &mut self,
        name: &str,
        reason: &'static str,
        tell: Option<SandboxRef>,
        mark: bool,
    ) {
        let leaving = Leaving {
            step: Step::Deleting,
            asked: false,
            reason,
            idle: self
                .pods
                .get(name)
                .is_some_and(|pod| pod.state == State::Idle),
            mark,
            tell,
            version: None,
            backoff: Backoff::default(),
            next: None,
        };
        self.pods.set(name, State::Leaving(Box::new(leaving)));
        self.go_on_leaving(name);
    }

    /// Sends the next write for a pod on its way out.
    pub(super) fn go_on_leaving(&mut self, name: &str) {
        let Some(pod) = self.pods.get(name) else {
            return;
        };
        let State::Leaving(leaving) = &pod.state else {
            return;
        };
        let (view, reason) = (Arc::clone(&pod.view), leaving.reason);
        if leaving.asked || leaving.step == Step::Accepted {
            return;
        }
        if view.deleting {
            self.accept_leaving(name);
            return;
        }
        let mark = leaving.mark && pod.needs_mark() && !view.retiring;
        let version = (leaving.mark && !view.retiring).then_some(view.version);
        self.change_leaving(name, |leaving| {
            leaving.step = if mark { Step::Marking } else { Step::Deleting };
            leaving.asked = true;
            leaving.version = version;
            leaving.next = None;
        });
        let (name, uid) = (name.to_owned(), view.uid.clone());
        self.out.push(if mark {
            Output::Retire {
                name,
                uid,
                version: view.version,
                reason,
            }
        } else {
            Output::DeletePod {
                name,
                uid,
                version,
                reason,
            }
        });
    }

    fn change_leaving(&mut self, name: &str, change: impl FnOnce(&mut Leaving)) {
        self.pods.change(name, |pod| {
            if let State::Leaving(leaving) = &mut pod.state {
                change(leaving);
            }
        });
    }

    /// Whether an answer is waited for in this step.
    fn is_asked(&self, name: &str, uid: &str, step: Step) -> bool {
        self.pods.get_exactly(name, uid).is_some_and(|pod| {
            matches!(&pod.state, State::Leaving(leaving) if leaving.asked && leaving.step == step)
        })
    }

    /// Takes the answer to [`Output::Retire`].
    pub(super) fn marked(
        &mut self,
        name: &str,
        uid: &str,
        result: Result<Arc<PodView>, WriteError>,
        now: Timestamp,
    ) {
        let asked = self.is_asked(name, uid, Step::Marking);
        if asked {
            self.change_leaving(name, |leaving| leaving.asked = false);
        }
        match result {
            Ok(view) => {
                // The version that was written is known before any watch shows it.
                if self.pods.get_exactly(name, uid).is_some() {
                    self.see_pod(&view, now);
                }
                if asked {
                    self.go_on_leaving(name);
                }
            }
            Err(error) if asked => self.leaving_failed(name, &error, now),
            Err(_) => {}
        }
    }

    /// Takes the answer to [`Output::DeletePod`].
    pub(super) fn deleted(
        &mut self,
        name: &str,
        uid: &str,
        result: Result<(), WriteError>,
        now: Timestamp,
    ) {
        if !self.is_asked(name, uid, Step::Deleting) {
            return;
        }
        self.change_leaving(name, |leaving| leaving.asked = false);
        match result {
            Ok(()) => {
                self.accept_leaving(name);
                let look = after(now, SHOWN_WITHIN);
                self.change_leaving(name, |leaving| leaving.next = Some(look));
            }
            Err(error) => self.leaving_failed(name, &error, now),
        }
    }

    fn leaving_failed(&mut self, name: &str, error: &WriteError, now: Timestamp) {
        let Some(pod) = self.pods.get(name) else {
            return;
        };
        let State::Leaving(leaving) = &pod.state else {
            return;
        };
        match (error, leaving.version) {
            // Without a version only another UID can be in conflict: this pod is gone. The watch may never
            // have shown it, and then says nothing of its end either.
            (WriteError::NotFound, _) | (WriteError::Conflict, None) => {
                let uid = pod.view.uid.clone();
                self.accept_leaving(name);
                self.see_gone(name, &uid);
            }
            (WriteError::Conflict, Some(version)) if leaving.idle => {
                self.reconsider(name, version);
            }
            _ => self.change_leaving(name, |leaving| {
                leaving.next = Some(leaving.backoff.fail(now, LONGEST_RETRY));
            }),
        }
    }

    /// An idle pod has changed since its end was decided: it is idle again, until the change is seen.
    fn reconsider(&mut self, name: &str, decided_from: Version) {
        self.pods.set(name, State::Idle);
        self.pods.outrun(name, decided_from);
    }

    /// A pod is being deleted; who waits for that is told.
    pub(super) fn accept_leaving(&mut self, name: &str) {
        let before = self.pods.change(name, |pod| {
            let reason = match &pod.state {
                State::Leaving(leaving) => leaving.reason,
                _ => "Deleted",
            };
            let accepted = Leaving {
                step: Step::Accepted,
                asked: false,
                reason,
                idle: false,
                mark: false,
                tell: None,
                version: None,
                backoff: Backoff::default(),
                next: None,
            };
            std::mem::replace(&mut pod.state, State::Leaving(Box::new(accepted)))
        });
        let Some(State::Leaving(leaving)) = before else {
            return;
        };
        if let Some(sandbox) = &leaving.tell {
            self.forget(&sandbox.uid, name);
            self.tell_recycled(&sandbox.uid, name);
        }
        if leaving.reason == EVICTED {
            let note = format!("evicted idle pod {name}, as its label asks");
            self.event(false, "PodEvicted", "Evict", note);
        }
    }

    /// Idle pods that must go whatever the numbers say: marked before a restart, or to be evicted.
    pub(super) fn dismiss_due(&mut self) {
        while let Some(name) = self.pods.first_due().map(str::to_owned) {
            let evict = self.pods.get(&name).is_some_and(|pod| pod.view.evict);
            self.dismiss(&name, if evict { EVICTED } else { "Retiring" });
        }
    }

    /// Something was to be done for this pod at this time.
    pub(super) fn pod_is_due(&mut self, name: &str, now: Timestamp) {
        let Some(pod) = self.pods.get(name) else {
            return;
        };
        match &pod.state {
            State::Idle => {
                // A change that was not seen by now may have been followed by an end that never is. The
                // deletion has a version as precondition and finds out.
                self.pods.change(name, |pod| {
                    pod.broken = true;
                    pod.outrun = false;
                });
            }
            State::Restarting(_) => self.go_on_restarting(name, now),
            State::Leaving(_) => {
                self.change_leaving(name, |leaving| {
                    leaving.next = None;
                    if leaving.step == Step::Accepted {
                        leaving.step = Step::Deleting;
                        leaving.reason = UNSEEN;
                    }
                });
                self.go_on_leaving(name);
            }
            _ => {}
        }
    }
}
