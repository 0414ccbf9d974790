//! What the watches show: the Pool, its pods, and what the injection depends on.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::conditions::{self, pool as condition};

use super::births::Sighting;
use super::facts::Facts;
use super::pods::{Owner, Pod, Seen, State};
use super::{InjectionFacts, Ledger, Note};
use crate::protocol::FromPool;
use crate::view::{PodView, PoolView};

impl Ledger {
    pub(super) fn see_pool(&mut self, view: Arc<PoolView>, now: Timestamp) {
        if view.version < self.report.version() {
            return;
        }
        let before = self.facts.take();
        let same = before
            .as_ref()
            .is_some_and(|before| before.view.uid == view.uid);
        let facts = match &before {
            Some(before) => before.newer(view, &self.injection),
            None => Facts::new(view, &self.injection),
        };
        if !same {
            // What is under way carries the UID of the earlier Pool.
            self.births.clear();
            self.surge = 0;
            self.replacements.reset();
        }
        self.report.adopt(Some(&facts));
        self.replace_facts(before.as_ref(), Some(facts), now);
    }

    pub(super) fn see_no_pool(&mut self, now: Timestamp) {
        let before = self.facts.take();
        self.report.adopt(None);
        self.surge = 0;
        self.replace_facts(before.as_ref(), None, now);
    }

    pub(super) fn see_injection(&mut self, injection: Arc<InjectionFacts>, now: Timestamp) {
        if injection == self.injection {
            return;
        }
        self.injection = injection;
        if let Some(before) = self.facts.take() {
            let facts = Facts::new(Arc::clone(&before.view), &self.injection);
            self.report.look_again();
            self.replace_facts(Some(&before), Some(facts), now);
        }
    }

    /// Goes on with other facts.
    fn replace_facts(&mut self, before: Option<&Facts>, facts: Option<Facts>, now: Timestamp) {
        let unchanged = match (before, &facts) {
            (Some(before), Some(facts)) => match (&before.rules, &facts.rules) {
                (Ok(before), Ok(now)) => Arc::ptr_eq(before, now),
                (Err(before), Err(now)) => before == now,
                _ => false,
            },
            _ => false,
        };
        let before_uid = before.map(|before| before.view.uid.clone());
        let before_max = before.and_then(Facts::pool_max);
        self.facts = facts;
        let uid = self.facts.as_ref().map(|facts| facts.view.uid.clone());
        if unchanged && before_uid == uid {
            return;
        }
        if before_uid != uid || self.pods.revision() != self.revision().as_deref() {
            self.review();
        }
        if before_max != self.pool_max() {
            self.members.requeue_all(self.pool_max(), now);
        }
        // What was refused may be allowed now.
        self.births.try_again();
        self.report_problems(before);
    }

    /// Events for what is wrong with the Pool as it was found, unless an earlier leader left it aside.
    pub(super) fn report_problems_at_start(&mut self) {
        let known = self.facts.as_ref().is_some_and(|facts| {
            let stored = &facts.view.status.conditions;
            facts.rules.is_err() && conditions::is_true(stored, condition::QUARANTINED)
        });
        if !known {
            self.report_problems(None);
        }
    }

    /// Events for what is wrong with the Pool now and was not before.
    fn report_problems(&mut self, before: Option<&Facts>) {
        let Some(facts) = &self.facts else { return };
        match &facts.rules {
            Err(problem) => {
                let known = before.is_some_and(|before| before.rules.is_err());
                if !known {
                    let note = format!("the Pool is left alone until it is mended: {problem}");
                    self.event(true, "Quarantined", "Read", note);
                }
            }
            Ok(rules) => {
                let Some(problem) = rules.restart_problem.clone() else {
                    return;
                };
                let known = before
                    .and_then(|before| before.rules.as_ref().ok())
                    .is_some_and(|before| before.restart_problem.as_ref() == Some(&problem));
                if !known {
                    self.event(true, "InvalidRestartConfig", "Read", problem);
                }
            }
        }
    }

    /// The revision of pods made now.
    pub(super) fn revision(&self) -> Option<String> {
        let facts = self.facts.as_ref()?;
        facts
            .rules
            .as_ref()
            .ok()
            .map(|rules| rules.revision.clone())
    }

    /// Looks at all pods anew.
    pub(super) fn review(&mut self) {
        let revision = self.revision();
        let facts = self.facts.as_ref();
        self.pods
            .review(revision.as_deref(), |pod| owner(facts, &self.key.name, pod));
    }

    /// Whose a pod is. Without a Pool whatever carries the label stays what it is.
    pub(super) fn owner(&self, pod: &PodView) -> Owner {
        owner(self.facts.as_ref(), &self.key.name, pod)
    }

    pub(super) fn see_pod(&mut self, view: &Arc<PodView>, now: Timestamp) {
        let name = &view.key.name;
        let owner = self.owner(view);
        let new = match self.pods.observe(view, owner) {
            Seen::Stale => return,
            Seen::New => true,
            Seen::Changed => false,
            Seen::Replaced(earlier) => {
                self.mourn(*earlier, "another pod has its name");
                true
            }
        };
        let sighting = self.births.seen(name, new, owner == Owner::This, now);
        if new && self.facts.is_some() && owner == Owner::This && self.is_second(name, sighting) {
            // Whoever had the first one still names it, and names alone stand on the objects.
            self.dismiss(name, "Repeated");
        }
        let Some(pod) = self.pods.get(name) else {
            return;
        };
        if pod.state == State::Idle && view.ready && self.replacements.is_failing() {
            self.replacements.forgive();
            self.report.trouble_is_over();
        }
        if let Some(sandbox) = pod.sandbox()
            && !matches!(pod.state, State::Reserved(_))
            && let Some(member) = self.members.get(sandbox)
        {
            let sandbox = member.sandbox().clone();
            self.tell(sandbox, FromPool::Pod(Arc::clone(view)));
        }
        self.look_at(name, now);
    }

    /// Whether another pod had this name before, which a sandbox may still name.
    fn is_second(&self, name: &str, sighting: Sighting) -> bool {
        match sighting {
            Sighting::First => false,
            Sighting::Again => true,
            Sighting::Unasked => self.members.are_named(name),
        }
    }

    pub(super) fn see_gone(&mut self, name: &str, uid: &str) {
        if let Some(pod) = self.pods.gone(name, uid) {
            self.mourn(pod, "it is gone");
        }
    }

    /// Does what follows from what is known of a pod.
    pub(super) fn look_at(&mut self, name: &str, now: Timestamp) {
        let Some(pod) = self.pods.get(name) else {
            return;
        };
        let (deleting, ended) = (pod.view.deleting, pod.view.has_ended());
        match &pod.state {
            State::Idle if deleting => self.accept_leaving(name),
            State::Held(uid) if deleting || ended => {
                let uid = uid.clone();
                let cause = cause(pod);
                self.note(Note::Lost);
                self.forget(&uid, name);
                if deleting {
                    self.accept_leaving(name);
                } else {
                    // It never runs again, and takes the room of the one that replaces it.
                    self.send_away(name, "Ended", None, false);
                }
                self.lose(&uid, name, cause);
            }
            State::Recycled(uid) if deleting => {
                let uid = uid.clone();
                self.accept_leaving(name);
                self.forget(&uid, name);
            }
            State::Restarting(_) => self.go_on_restarting(name, now),
            State::Leaving(leaving) if deleting && leaving.step != super::pods::Step::Accepted => {
                self.accept_leaving(name);
            }
            _ => {}
        }
    }

    /// Does what follows from the end of a pod that has been taken out.
    fn mourn(&mut self, pod: Pod, why: &str) {
        let name = &pod.view.key.name;
        match pod.state {
            State::Held(uid) => {
                self.note(Note::Lost);
                self.forget(&uid, name);
                let trouble = trouble(&pod.view);
                self.lose(&uid, name, format!("pod {name}: {why}{trouble}"));
            }
            State::Recycled(uid) => self.forget(&uid, name),
            State::Restarting(restarting) => {
                self.note(Note::Recycled("Restart"));
                self.forget(&restarting.uid, name);
                self.tell_recycled(&restarting.uid, name);
            }
            State::Leaving(leaving) => {
                if let Some(sandbox) = leaving.tell {
                    self.forget(&sandbox.uid, name);
                    self.tell_recycled(&sandbox.uid, name);
                }
            }
            // The answer to the offer says whether a sandbox has lost it.
            State::Idle | State::Reserved(_) => {}
        }
    }
}

fn owner(facts: Option<&Facts>, pool: &str, pod: &PodView) -> Owner {
    let Some(facts) = facts else {
        return Owner::This;
    };
    match &pod.owner {
        Some(owner) if owner.uid == facts.view.uid => Owner::This,
        Some(owner) if owner.kind == "Pool" && owner.name == pool => Owner::Earlier,
        _ => Owner::Other,
    }
}

fn cause(pod: &Pod) -> String {
    let name = &pod.view.key.name;
    let what = if pod.view.deleting {
        "is being deleted"
    } else {
        "has ended"
    };
    format!("pod {name} {what}{}", trouble(&pod.view))
}

fn trouble(view: &PodView) -> String {
    view.trouble
        .as_ref()
        .map(|trouble| super::build::cut(format!(" ({}: {})", trouble.reason, trouble.message)))
        .unwrap_or_default()
}
