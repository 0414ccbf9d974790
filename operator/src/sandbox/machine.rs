//! The state of one BatchSandbox, what comes in, and the order in which it is decided.
//!
//! Every input changes what is known; after each, all decisions are taken anew from what is known, and
//! only what differs from what was said before goes out. So a repeated input changes nothing, and
//! inputs that come while a write is under way are all in the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::allocation::Allocation;
use super::claim::Claim;
use super::facts::{has_pool_finalizer, may_have_tasks};
use super::leaving::Leaving;
use super::orders::Orders;
use super::own_pods::OwnPods;
use super::record::Record;
use super::source::Source;
use super::tasks::{EndNote, Table};
use super::write::Writer;
use super::{Input, Note, Output, Setting};
use crate::view::{PodView, SandboxView};
use crate::write::Event;

/// The state of one BatchSandbox.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, each noted once"
)]
pub struct Machine {
    pub(super) setting: Setting,
    /// The newest object seen.
    pub(super) view: Arc<SandboxView>,
    /// Where its pods come from.
    pub(super) source: Source,
    /// When the first object was handled.
    pub(super) begun: Option<Timestamp>,
    /// Whether it has been looked for what was lost before this process began.
    pub(super) reviewed: bool,
    /// Whether the object is gone and everything was said.
    pub(super) done: bool,
    /// What the object durably holds; while `unreadable`, what can be made out.
    pub(super) held: Allocation,
    /// Why the annotations could not be read at the start, until they can be.
    pub(super) unreadable: Option<String>,
    /// Pods by name: those that are held, and those made from the template.
    pub(super) pods: BTreeMap<String, Pod>,
    /// The tasks.
    pub(super) table: Table,
    /// What the stored status records of the tasks.
    pub(super) durable: Record,
    pub(super) writer: Writer,
    pub(super) claim: Claim,
    pub(super) own: OwnPods,
    pub(super) orders: Orders,
    /// Whether it has been noted that every sandbox is ready.
    ready_noted: bool,
    quarantine_noted: bool,
    wake: Option<Timestamp>,
}

/// One pod of the sandbox.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of a pod's history"
)]
#[derive(Clone, Debug, Default)]
pub(super) struct Pod {
    /// As it was last seen; absent until the pool says how it is.
    pub(super) view: Option<Arc<PodView>>,
    /// Why it is lost, if it is.
    pub(super) lost: Option<String>,
    /// Whether another process, which may have been upstream's, gave it to this sandbox.
    pub(super) found: bool,
    /// Whether a task may have been begun in it.
    pub(super) touched: bool,
    /// Whether it is known what its executor had when this process found it.
    pub(super) looked: bool,
    /// Whether its task has been ordered by this process.
    pub(super) ordered: bool,
    /// That it is being given back.
    pub(super) leaving: Option<Leaving>,
}

impl Pod {
    /// A pod that nothing has been done with.
    pub(super) fn fresh(view: Arc<PodView>) -> Self {
        Self {
            view: Some(view),
            looked: true,
            ..Self::default()
        }
    }

    /// A pod that an earlier process may have done something with.
    pub(super) fn found(view: Option<Arc<PodView>>, touched: bool) -> Self {
        Self {
            view,
            found: true,
            touched,
            ..Self::default()
        }
    }

    /// The address, if there is one.
    pub(super) fn ip(&self) -> Option<&str> {
        self.view.as_ref()?.ip.as_deref()
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The spec may hold secrets.
        f.debug_struct("Machine")
            .field("key", &self.view.key)
            .field("uid", &self.view.uid)
            .field("version", &self.view.version)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine for this object. `pods` are those made from its own template that are known already,
    /// by the UID of their owner. Says nothing before the first [`Self::handle`].
    pub fn new(view: Arc<SandboxView>, pods: Vec<Arc<PodView>>, setting: Setting) -> Self {
        let table = Table::load(
            &view.key.name,
            &view.uid,
            setting.upstream_executors,
            &view.status,
        );
        let durable = Record::read(view.status.task_record.as_deref());
        let ready_noted = opensandbox_api::conditions::is_true(
            &view.status.conditions,
            opensandbox_api::conditions::batch_sandbox::READY,
        );
        let source = Source::of(&view);
        let claim = Claim::new(&view);
        let touched = may_have_tasks(&view);
        let mut machine = Self {
            setting,
            source,
            begun: None,
            reviewed: false,
            done: false,
            held: Allocation::default(),
            unreadable: None,
            pods: BTreeMap::new(),
            table,
            durable,
            writer: Writer::default(),
            claim,
            own: OwnPods::default(),
            orders: Orders::default(),
            ready_noted,
            quarantine_noted: false,
            wake: None,
            view,
        };
        machine.read_annotations();
        for pod in pods {
            let name = pod.key.name.clone();
            machine.pods.insert(name, Pod::found(Some(pod), touched));
        }
        machine
    }

    /// Takes what happened at `now` and says what is to be done, in this order.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Output> {
        let mut out = Vec::new();
        if self.done {
            return out;
        }
        self.take(input, now, &mut out);
        if self.begun.is_some() && !self.done {
            self.decide(now, &mut out);
        }
        out
    }

    fn take(&mut self, input: Input, now: Timestamp, out: &mut Vec<Output>) {
        match input {
            Input::Object(view) => {
                if view.uid != self.view.uid {
                    self.gone(out);
                    return;
                }
                self.object(view);
                self.begun.get_or_insert(now);
            }
            Input::Absent => self.gone(out),
            Input::Pool(message) => self.pool_says(message, now, out),
            Input::Assigned(result) => self.assigned(result, now),
            Input::Injection(facts) => self.setting.injection = facts,
            Input::Pod(pod) => {
                self.own.unseen.remove(&pod.key.name);
                self.own_pod(pod, now, out);
            }
            Input::PodGone { name, uid } => self.own_pod_gone(&name, &uid, now, out),
            Input::Written(result) => self.written(result, now, out),
            Input::StatusWritten(result) => self.status_written(result, now, out),
            Input::Deleted(result) => self.deleted(result, now, out),
            Input::PodCreated { name, result } => self.own_pod_created(&name, result, now, out),
            Input::PodDeleted { name, uid, result } => {
                self.own_pod_deleted(&name, &uid, &result, now, out);
            }
            Input::Report(report) => self.report(report, now, out),
            Input::Wake => self.wake = None,
        }
    }

    fn decide(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        self.resolve(now, out);
        self.settle_source(now, out);
        self.review(now, out);
        self.settle_tasks(now, out);
        self.settle_leaving(now, out);
        self.settle_grant(now);
        // Before the pool hears that a pod is free: the next sandbox must not meet our order there.
        self.settle_orders(now, out);
        self.say(now, out);
        self.settle_own_pods(now, out);
        self.note_quarantine(out);
        self.note_ready(now, out);
        self.settle_writes(now, out);
        self.ask_to_be_woken(now, out);
    }

    /// The object is gone: nothing of it is held any more.
    pub(super) fn gone(&mut self, out: &mut Vec<Output>) {
        if self.done {
            return;
        }
        self.done = true;
        self.leave_pool(out);
        self.orders.withdraw_all(out);
        out.push(Output::Done);
    }

    /// Whatever the annotations say, once at the start, and again while they cannot be read.
    pub(super) fn read_annotations(&mut self) {
        self.held = Allocation::default();
        self.unreadable = None;
        let given_up = self.view.deleting && !has_pool_finalizer(&self.view);
        if self.source.pool().is_none() || given_up {
            return;
        }
        match Allocation::read(&self.view) {
            Ok(held) => self.held = held,
            Err(unreadable) => {
                self.unreadable = Some(unreadable.to_string());
                self.held = Allocation::made_out(&self.view);
            }
        }
        let touched = may_have_tasks(&self.view);
        let current: BTreeSet<String> = self.held.current().map(|(_, pod)| pod.clone()).collect();
        self.pods.retain(|name, _| current.contains(name));
        for name in current {
            self.pods
                .entry(name)
                .or_insert_with(|| Pod::found(None, touched));
        }
        self.presume_ends();
    }

    /// Pods that upstream's operator gave back had tasks that ended; it kept only how many.
    fn presume_ends(&mut self) {
        let known = self.unreadable.is_none() && self.view.status.task_record.is_none();
        if !known || !self.has_tasks() {
            return;
        }
        let mut succeeded = self.view.status.task_succeed;
        for (index, pod) in (0_u32..).zip(self.held.entries.clone()) {
            if self.held.released.contains(&pod) {
                self.table.presume_end(index, succeeded > 0);
                succeeded -= 1;
            }
        }
    }

    /// Tasks whose pods are gone are begun anew; those that cannot be resolved any more end.
    fn settle_tasks(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.quarantine().is_some() {
            return;
        }
        let shards = self.shards();
        let replicas = self.replicas();
        let started: BTreeSet<u32> = self
            .members()
            .filter(|(index, _, pod)| *index >= replicas && pod.touched)
            .map(|(index, _, _)| index)
            .collect();
        // In an object that is being deleted too: what was scaled away is over, however often the spec
        // is changed until the object is gone.
        self.table.scaled_to(replicas, &started);
        if self.view.deleting {
            return;
        }
        for index in self.table.removed_below(shards) {
            if !self.has_place(index) {
                self.table.begin_anew(index, "scaled away", now);
            }
        }
        for note in self.table.settle(now) {
            out.push(task_ended(note));
        }
    }

    /// An unfinished task whose pod is lost is begun anew in the next one, and that is said.
    pub(super) fn task_lost_its_pod(
        &mut self,
        index: u32,
        pod: &str,
        cause: &str,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        if !self.has_tasks() || index >= self.shards() {
            return;
        }
        if let Some(attempt) = self.table.begin_anew(index, cause, now) {
            out.push(event(
                true,
                "TaskRestarted",
                "Restart",
                &format!(
                    "task {} is begun anew, attempt {attempt}: its pod {pod} was lost: {cause}",
                    self.table.name(index)
                ),
            ));
        }
    }

    fn note_quarantine(&mut self, out: &mut Vec<Output>) {
        match self.quarantine() {
            Some((reason, message)) if !self.quarantine_noted => {
                self.quarantine_noted = true;
                out.push(Output::Note(Note::Quarantined));
                let known = opensandbox_api::conditions::is_true(
                    &self.view.status.conditions,
                    opensandbox_api::conditions::batch_sandbox::QUARANTINED,
                );
                if !known {
                    out.push(event(true, reason, "Quarantine", &message));
                }
            }
            Some(_) => {}
            None => self.quarantine_noted = false,
        }
    }

    fn note_ready(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.ready_noted || self.view.deleting {
            return;
        }
        let census = self.census();
        if self.replicas() == 0 || census.ready < census.wanted || census.wanted == 0 {
            return;
        }
        self.ready_noted = true;
        let millis = now.duration_since(self.view.created).as_millis();
        out.push(Output::Note(Note::Ready {
            millis: u64::try_from(millis).unwrap_or(0),
            pooled: self.source.pool().is_some(),
        }));
    }

    fn ask_to_be_woken(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let next = [
            self.writer.deadline(now),
            self.claim.deadline(now),
            self.own.deadline(now),
            self.orders.deadline(now),
            self.table.deadline(now),
            self.leaving_deadline(now),
            self.end_of_life(),
            self.status_waits_until(now),
        ]
        .into_iter()
        .flatten()
        .filter(|at| *at > now)
        .min();
        if let Some(at) = next
            && self.wake != Some(at)
        {
            self.wake = Some(at);
            out.push(Output::WakeAt(at));
        }
    }
}

pub(super) fn event(
    warning: bool,
    reason: &'static str,
    action: &'static str,
    note: &str,
) -> Output {
    Output::Event(Event {
        warning,
        reason,
        action,
        note: super::text::cut(note, 1024),
    })
}

pub(super) fn task_ended(note: EndNote) -> Output {
    Output::Note(Note::TaskEnded {
        reason: note.reason.to_owned(),
        millis: note.millis,
    })
}
