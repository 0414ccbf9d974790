//! The state of a pool, and the order in which what follows from an input is decided.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::backoff::Backoff;
use super::births::Births;
use super::build;
use super::facts::{Facts, Rules};
use super::members::Members;
use super::names::Names;
use super::pods::Pods;
use super::report::Report;
use super::waiting::World;
use super::{InjectionFacts, Input, Note, Output};
use crate::protocol::{FromPool, SandboxRef, Statement, ToPool};
use crate::view::{ObjectKey, PodView, PoolView};
use crate::write::Event;

/// The state of one pool.
pub struct Ledger {
    pub(super) key: ObjectKey,
    pub(super) facts: Option<Facts>,
    pub(super) injection: Arc<InjectionFacts>,
    pub(super) pods: Pods,
    pub(super) members: Members,
    /// Creations under way, and whether they work.
    pub(super) births: Births,
    pub(super) names: Names,
    /// What the Pool's status says.
    pub(super) report: Report,
    /// Replacements of pods that do not work.
    pub(super) replacements: Backoff,
    /// Pods of an earlier template that were removed and are to be replaced although the four numbers do
    /// not ask for it.
    pub(super) surge: u32,
    /// ID of the next offer.
    pub(super) grants: u64,
    /// For whom ready pods wait for others, since when.
    pub(super) gathering: Option<(String, Timestamp)>,
    /// What those who wait were told last, and who was the first of them.
    pub(super) world: World,
    pub(super) head: Option<String>,
    pub(super) started: bool,
    /// Whether it was said why pods are deleted although they should be restarted.
    pub(super) explained: bool,
    /// When [`Input::Wake`] was asked for.
    pub(super) wake: Option<Timestamp>,
    pub(super) out: Vec<Output>,
}

/// Without the objects: a template is not for logs.
impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("key", &self.key)
            .field("counts", &self.pods.counts())
            .field("creating", &self.births.pending())
            .field("lacking", &self.members.lacking())
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// The ledger as the objects say it is: the Pool if there is one, every pod with its label, and the
    /// statement of every BatchSandbox that names it, before anything is decided. `seed` varies the names
    /// of pods.
    ///
    /// Says nothing yet: the first [`Self::handle`], of [`Input::Wake`] if there is nothing else, does.
    ///
    /// Statements with `wants` are provisional: a leader before this one may have given such a sandbox
    /// pods by a write that is still on its way. Until each of them has spoken itself, or has left, no
    /// pod is offered, and no idle pod is removed.
    pub fn new(
        key: ObjectKey,
        pool: Option<Arc<PoolView>>,
        injection: Arc<InjectionFacts>,
        pods: Vec<Arc<PodView>>,
        statements: Vec<Statement>,
        seed: u64,
    ) -> Self {
        let mut ledger = Self {
            key,
            facts: pool.map(|view| Facts::new(view, &injection)),
            injection,
            pods: Pods::default(),
            members: Members::default(),
            births: Births::default(),
            names: Names::new(seed),
            report: Report::default(),
            replacements: Backoff::default(),
            surge: 0,
            // An answer to an offer of an earlier ledger must not fit one of this.
            grants: seed,
            gathering: None,
            world: World::default(),
            head: None,
            started: false,
            explained: false,
            wake: None,
            out: Vec::new(),
        };
        ledger.report.adopt(ledger.facts.as_ref());
        ledger.review();
        for pod in pods {
            let owner = ledger.owner(&pod);
            ledger.pods.observe(&pod, owner);
        }
        ledger.claim(statements);
        ledger
    }

    /// Takes what happened at `now` and says what is to be done, in this order.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Output> {
        if !self.started {
            self.started = true;
            self.begin(now);
        }
        match input {
            Input::Pool(view) => self.see_pool(view, now),
            Input::PoolAbsent => self.see_no_pool(now),
            Input::Injection(facts) => self.see_injection(facts, now),
            Input::Pod(view) => self.see_pod(&view, now),
            Input::PodGone { name, uid } => self.see_gone(&name, &uid),
            Input::Sandbox(ToPool::Statement(statement)) => self.hear(statement, now),
            Input::Sandbox(ToPool::Answer {
                sandbox,
                grant,
                taken,
            }) => self.answered(&sandbox, grant, taken, now),
            Input::Sandbox(ToPool::Left { sandbox }) => self.leave(&sandbox, now),
            Input::Created { name, result } => self.created(&name, result, now),
            Input::Retired { name, uid, result } => self.marked(&name, &uid, result, now),
            Input::Deleted { name, uid, result } => self.deleted(&name, &uid, result, now),
            Input::Restarted { name, uid, result } => self.restarted(&name, &uid, result, now),
            Input::StatusWritten(result) => self.status_written(&result, now),
            Input::Wake => {}
        }
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    /// Everything that follows from the state that has been reached. Costs little when nothing does.
    fn settle(&mut self, now: Timestamp) {
        self.ring(now);
        self.members.end_pauses(self.pool_max(), now);
        if let Some(rules) = self.active() {
            // Until the last word of an earlier leader has been heard, idle pods may be somebody's.
            let certain = !self.members.is_provisional();
            if certain {
                self.dismiss_due();
                self.replace_broken(now);
                self.allocate_whole(now);
                self.update(&rules);
            }
            self.scale(&rules, certain, now);
            if certain {
                self.allocate_part(now);
            }
        } else {
            self.gathering = None;
        }
        self.tell_waiting();
        self.report(now);
        self.ask_to_be_woken(now);
    }

    /// What the Pool asks for, if pods may be made and given now.
    pub(super) fn active(&self) -> Option<Arc<Rules>> {
        self.facts.as_ref()?.active().cloned()
    }

    pub(super) fn pool_max(&self) -> Option<u32> {
        self.facts.as_ref()?.pool_max()
    }

    /// Does for each pod whose time has come what its state asks for.
    fn ring(&mut self, now: Timestamp) {
        for name in self.pods.due_timers(now) {
            self.pod_is_due(&name, now);
        }
        self.births_are_due(now);
    }

    fn ask_to_be_woken(&mut self, now: Timestamp) {
        let replacement = self
            .replacements
            .waits_until(now)
            .filter(|_| !self.pods.broken().is_empty());
        let next = [
            self.pods.next_timer(),
            self.births.next_timer(now),
            self.members.next_pause(),
            self.report.next_timer(),
            self.gathered_at(),
            replacement,
        ]
        .into_iter()
        .flatten()
        .min();
        let asked = self.wake.filter(|wake| *wake > now);
        self.wake = asked;
        if let Some(next) = next
            && asked.is_none_or(|asked| next < asked)
        {
            self.wake = Some(next);
            self.out.push(Output::WakeAt(next));
        }
    }

    pub(super) fn tell(&mut self, sandbox: SandboxRef, message: FromPool) {
        self.out.push(Output::ToSandbox { sandbox, message });
    }

    pub(super) fn note(&mut self, note: Note) {
        self.out.push(Output::Note(note));
    }

    pub(super) fn event(
        &mut self,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        self.out.push(Output::Event(Event {
            warning,
            reason,
            action,
            note: build::cut(note),
        }));
    }
}
