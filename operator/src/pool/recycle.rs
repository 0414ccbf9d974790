//! What becomes of a pod that is given back.
//!
//! It never is idle again without the proof that its tasks are stopped, nor while a statement names it.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::v1alpha1::RecycleType;

use super::backoff::after;
use super::facts::Rules;
use super::pods::{Owner, Pod, Restarting, State};
use super::restart::{Config, Record, Verdict};
use super::{Ledger, Note, Output};
use crate::protocol::SandboxRef;
use crate::view::{PodPhase, PodView};
use crate::write::WriteError;

/// How long a change is waited for that a write has met, or may have made.
const SETTLING: SignedDuration = SignedDuration::from_secs(1);

/// What is done with a pod that is given back.
enum Way {
    /// It is deleted. `mark` says that another leader could come to another decision.
    Delete {
        unproved: bool,
        mark: bool,
    },
    Restart(Config),
    Keep,
}

impl Ledger {
    /// Recycles a pod that is given back; `tell` is who waits for the end of it.
    pub(super) fn recycle(
        &mut self,
        name: &str,
        tell: Option<&SandboxRef>,
        clean: bool,
        now: Timestamp,
    ) {
        let Some(pod) = self.pods.get(name) else {
            return;
        };
        let Some(uid) = pod.sandbox().map(str::to_owned) else {
            return;
        };
        let view = Arc::clone(&pod.view);
        match self.way(pod, clean) {
            Way::Delete { unproved, mark } => {
                let (kind, reason) = if unproved {
                    ("DeleteUnproved", "Unproved")
                } else {
                    ("Delete", "Recycled")
                };
                self.note(Note::Recycled(kind));
                if tell.is_none() {
                    self.forget(&uid, name);
                }
                self.send_away(name, reason, tell.cloned(), mark);
            }
            Way::Keep => {
                self.note(Note::Recycled("Noop"));
                self.recycled(&uid, name);
            }
            Way::Restart(config) => {
                let restarting = Restarting {
                    record: Record::begin(&uid, &view, &config, now),
                    uid,
                    confirmed: false,
                    asked: None,
                    next: None,
                };
                self.pods.set(name, State::Restarting(Box::new(restarting)));
                self.go_on_restarting(name, now);
            }
        }
        self.explain_restarts();
    }

    fn way(&self, pod: &Pod, clean: bool) -> Way {
        let delete = |mark| Way::Delete {
            unproved: !clean,
            mark,
        };
        let Some(rules) = self.active() else {
            return delete(false);
        };
        if !clean {
            // A leader that comes later may get the proof, and would keep the pod.
            return delete(rules.recycle != RecycleType::Delete);
        }
        let view = &pod.view;
        let reusable = pod.owner == Owner::This
            && !self.pods.is_outdated(pod)
            && !(view.evict || view.retiring || view.deleting || view.has_ended());
        match rules.recycle {
            RecycleType::Noop if reusable => Way::Keep,
            RecycleType::Restart
                if reusable && view.phase == PodPhase::Running && !shares_processes(&rules) =>
            {
                Way::Restart(rules.restart.clone())
            }
            _ => delete(false),
        }
    }

    /// Says once why pods are deleted although they should be restarted.
    fn explain_restarts(&mut self) {
        let Some(rules) = self.active() else { return };
        if self.explained || rules.recycle != RecycleType::Restart || !shares_processes(&rules) {
            return;
        }
        self.explained = true;
        let note = "pods that are given back are deleted instead of restarted: their containers share one process \
                    namespace, where process 1 is none of theirs; use recycleStrategy type Delete"
            .to_owned();
        self.event(true, "RestartImpossible", "Recycle", note);
    }

    /// Takes the next step in the restart of a pod.
    pub(super) fn go_on_restarting(&mut self, name: &str, now: Timestamp) {
        let Some(pod) = self.pods.get(name) else {
            return;
        };
        let State::Restarting(restarting) = &pod.state else {
            return;
        };
        let view = Arc::clone(&pod.view);
        let uid = restarting.uid.clone();
        let rules = self.active().filter(|rules| rules.mold.is_ok());
        let Some(rules) = rules.filter(|_| view.phase == PodPhase::Running && !view.deleting)
        else {
            self.give_up_restarting(name, &uid);
            return;
        };
        if restarting.asked.is_some() {
            return;
        }
        match restarting
            .record
            .verdict(&view, &rules.restart, restarting.confirmed, now)
        {
            Verdict::Done => {
                self.note(Note::Recycled("Restart"));
                self.recycled(&uid, name);
            }
            Verdict::Wait(until) => self.change_restarting(name, |restarting| {
                restarting.next = Some(until);
            }),
            Verdict::GiveUp => self.give_up_restarting(name, &uid),
            Verdict::Try(mut containers) => {
                let mut record = restarting.record.clone();
                if !restarting.confirmed {
                    record.rebase(&view, &rules.restart);
                    containers = record.containers.keys().cloned().collect();
                }
                record.tried(now);
                let text = record.to_annotation();
                self.change_restarting(name, |restarting| {
                    restarting.record = record;
                    restarting.asked = Some(view.version);
                    restarting.next = None;
                });
                self.out.push(Output::Restart {
                    name: name.to_owned(),
                    uid: view.uid.clone(),
                    version: view.version,
                    containers,
                    command: rules.restart.command.clone(),
                    record: text,
                });
            }
        }
    }

    /// Takes the answer to [`Output::Restart`].
    pub(super) fn restarted(
        &mut self,
        name: &str,
        uid: &str,
        result: Result<Arc<PodView>, WriteError>,
        now: Timestamp,
    ) {
        let Some(pod) = self.pods.get_exactly(name, uid) else {
            return;
        };
        let asked = match &pod.state {
            State::Restarting(restarting) => restarting.asked,
            _ => None,
        };
        let changed = asked.is_some_and(|version| pod.view.version > version);
        if asked.is_some() {
            self.change_restarting(name, |restarting| restarting.asked = None);
        }
        match result {
            Ok(view) => {
                self.change_restarting(name, |restarting| restarting.confirmed = true);
                self.see_pod(&view, now);
                self.go_on_restarting(name, now);
            }
            Err(WriteError::Conflict) if asked.is_some() => {
                // What was to be restarted may be another container already: begin anew, with what the
                // pod is now.
                self.begin_again(name, now);
                if changed {
                    self.go_on_restarting(name, now);
                } else {
                    self.look_again_at(name, now);
                }
            }
            Err(WriteError::NotFound) if asked.is_some() => {
                let sandbox = self.pods.get(name).and_then(Pod::sandbox);
                if let Some(sandbox) = sandbox.map(str::to_owned) {
                    self.note(Note::Recycled("Restart"));
                    self.accept_leaving(name);
                    self.forget(&sandbox, name);
                    self.tell_recycled(&sandbox, name);
                }
            }
            // It counts as a try; the next one comes after the interval.
            Err(_) if asked.is_some() => self.go_on_restarting(name, now),
            Err(_) => {}
        }
    }

    fn begin_again(&mut self, name: &str, now: Timestamp) {
        let Some(rules) = self.active() else { return };
        self.pods.change(name, |pod| {
            if let State::Restarting(restarting) = &mut pod.state {
                restarting.record = Record::begin(&restarting.uid, &pod.view, &rules.restart, now);
            }
        });
    }

    /// Looks again a little later, or when the pod changes.
    fn look_again_at(&mut self, name: &str, now: Timestamp) {
        self.change_restarting(name, |restarting| {
            restarting.next = Some(after(now, SETTLING));
        });
    }

    fn change_restarting(&mut self, name: &str, change: impl FnOnce(&mut Restarting)) {
        self.pods.change(name, |pod| {
            if let State::Restarting(restarting) = &mut pod.state {
                change(restarting);
            }
        });
    }

    fn give_up_restarting(&mut self, name: &str, uid: &str) {
        self.note(Note::Recycled("Delete"));
        let tell = self
            .members
            .get(uid)
            .filter(|member| member.names(name))
            .map(|member| member.sandbox().clone());
        if tell.is_none() {
            self.forget(uid, name);
        }
        // A leader that comes later may begin the restart anew and keep the pod.
        self.send_away(name, "Recycled", tell, true);
    }

    /// The pod is clean; it is idle when no statement names it any more.
    fn recycled(&mut self, uid: &str, name: &str) {
        let named = self
            .members
            .get(uid)
            .is_some_and(|member| member.names(name));
        if named {
            self.pods.set(name, State::Recycled(uid.to_owned()));
            self.tell_recycled(uid, name);
        } else {
            self.forget(uid, name);
            self.free(name);
        }
    }
}

/// Whether process 1 of a container is the pod's: then a signal to it ends the whole pod.
fn shares_processes(rules: &Rules) -> bool {
    rules.mold.as_ref().is_ok_and(|mold| mold.shares_processes)
}
