//! What is wanted of the executors of the pods, and what their reports mean.
//!
//! A task is ordered only to a pod that is durably the sandbox's and ready. What an earlier process may
//! have ordered is looked for first. A report counts only for the pod, by its UID, that holds a shard
//! now.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::labels;
use opensandbox_api::task::reason;

use super::Output;
use super::facts::has_finalizer;
use super::machine::{Machine, task_ended};
use super::task_order;
use super::tasks::{State as TaskState, Trouble, UNKNOWN_AFTER, unknown};
use super::text::cut;
use crate::session::{Order, Report, State, Work};
use crate::time::later;
use crate::view::PodView;

/// How long the conversation goes on after a failure, for the last lines of its output.
const TAIL: SignedDuration = SignedDuration::from_secs(2);

/// How long a conversation that is not needed any more may go on: withdrawals are no hurry, and of many
/// tasks that end together one list says all.
const WITHDRAW: SignedDuration = SignedDuration::from_millis(200);

/// The last list of orders.
#[derive(Debug, Default)]
pub(super) struct Orders {
    said: Vec<Said>,
    /// Failed tasks whose last lines may still come, and until when.
    tails: BTreeMap<u32, Timestamp>,
    /// When a shorter list is said.
    withdraw_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Said {
    kind: Kind,
    attempt: u32,
    order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Look,
    Run,
    Clear,
}

/// An order as it is to be.
struct Wanted {
    index: u32,
    attempt: u32,
    kind: Kind,
    pod: Arc<PodView>,
}

impl Wanted {
    fn is_said(&self, said: &Said) -> bool {
        said.kind == self.kind
            && (said.attempt == self.attempt || self.kind == Kind::Clear)
            && said.order.pod_uid == self.pod.uid
            && Some(&said.order.ip) == self.pod.ip.as_ref()
    }
}

impl Orders {
    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        self.tails
            .values()
            .copied()
            .chain(self.withdraw_at)
            .filter(|at| *at > now)
            .min()
    }

    /// Nothing is wanted of anybody any more.
    pub(super) fn withdraw_all(&mut self, out: &mut Vec<Output>) {
        if !self.said.is_empty() {
            self.said.clear();
            out.push(Output::Sessions(Vec::new()));
        }
    }
}

impl Machine {
    /// Says what is wanted of executors, if that has changed.
    pub(super) fn settle_orders(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.quarantine().is_some() && !self.view.deleting {
            return;
        }
        self.orders.tails.retain(|_, until| *until > now);
        let shards = self.shards();
        let members: Vec<(u32, String)> = self
            .members()
            .map(|(index, name, _)| (index, name.clone()))
            .collect();
        let mut wanted = Vec::new();
        for (index, name) in members {
            let Some(kind) = self.work_for(index, &name, shards, now, out) else {
                continue;
            };
            let view = self.pods.get(&name).and_then(|pod| pod.view.clone());
            if let Some(pod) = view.filter(|view| view.ip.is_some()) {
                wanted.push(Wanted {
                    index,
                    attempt: self.table.attempt(index),
                    kind,
                    pod,
                });
            }
        }
        self.say_orders(wanted, now, out);
    }

    fn say_orders(&mut self, wanted: Vec<Wanted>, now: Timestamp, out: &mut Vec<Output>) {
        let said: HashMap<&str, &Said> = self
            .orders
            .said
            .iter()
            .map(|said| (said.order.pod_uid.as_str(), said))
            .collect();
        let is_said = |wanted: &Wanted| {
            said.get(wanted.pod.uid.as_str())
                .is_some_and(|said| wanted.is_said(said))
        };
        let all_said = wanted.iter().all(is_said);
        if all_said && wanted.len() == said.len() {
            self.orders.withdraw_at = None;
            return;
        }
        if all_said && self.may_withdraw_later(&wanted) {
            let at = *self
                .orders
                .withdraw_at
                .get_or_insert_with(|| later(now, WITHDRAW));
            if at > now {
                return;
            }
        }
        self.orders.withdraw_at = None;
        let mut before: HashMap<String, Said> = std::mem::take(&mut self.orders.said)
            .into_iter()
            .map(|said| (said.order.pod_uid.clone(), said))
            .collect();
        let mut list = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let kept = before
                .remove(&wanted.pod.uid)
                .filter(|said| wanted.is_said(said));
            if let Some(said) = kept.or_else(|| self.order(&wanted)) {
                list.push(said);
            }
        }
        let orders = list.iter().map(|said| said.order.clone()).collect();
        self.orders.said = list;
        out.push(Output::Sessions(orders));
    }

    /// Whether every pod whose order is withdrawn stays with this sandbox: only then is it no hurry.
    fn may_withdraw_later(&self, wanted: &[Wanted]) -> bool {
        let kept: HashSet<&str> = wanted
            .iter()
            .map(|wanted| wanted.pod.uid.as_str())
            .collect();
        self.orders
            .said
            .iter()
            .map(|said| &said.order)
            .filter(|order| !kept.contains(order.pod_uid.as_str()))
            .all(|order| {
                self.pods.get(&order.pod).is_some_and(|pod| {
                    let same = pod
                        .view
                        .as_ref()
                        .is_some_and(|view| view.uid == order.pod_uid);
                    same && pod.lost.is_none() && pod.leaving.is_none()
                })
            })
    }

    fn order(&self, wanted: &Wanted) -> Option<Said> {
        let Wanted {
            index,
            attempt,
            kind,
            pod,
        } = wanted;
        let work = match kind {
            Kind::Look => Work::Look,
            Kind::Clear => Work::Clear,
            Kind::Run => {
                let mut task = task_order::build(self.spec()?, *index).ok()?;
                task.name = self.table.name(*index);
                task.uid = if self.setting.upstream_executors {
                    None
                } else {
                    Some(self.table.identity(*index)?)
                };
                Work::Run(Box::new(task))
            }
        };
        Some(Said {
            kind: *kind,
            attempt: *attempt,
            order: Order {
                pod: pod.key.name.clone(),
                pod_uid: pod.uid.clone(),
                ip: pod.ip.clone()?,
                work,
            },
        })
    }

    /// What is wanted of the executor of a pod now.
    fn work_for(
        &mut self,
        index: u32,
        name: &str,
        shards: u32,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) -> Option<Kind> {
        let pod = self.pods.get(name)?;
        if pod.lost.is_some() {
            return None;
        }
        if let Some(leaving) = &pod.leaving {
            let unproved = pod.touched && leaving.proof.is_none();
            let kind = if self.may_clear(index, name) {
                Kind::Clear
            } else {
                Kind::Look
            };
            return unproved.then_some(kind);
        }
        let view = pod.view.clone()?;
        let (looked, ordered) = (pod.looked, pod.ordered);
        if self.view.deleting || !self.has_tasks() || index >= shards {
            return None;
        }
        let cell = self.table.get(index);
        if cell.is_some_and(|cell| matches!(cell.state, TaskState::Ended(_)) && !cell.removed) {
            let kind = if ordered { Kind::Run } else { Kind::Look };
            return self.orders.tails.contains_key(&index).then_some(kind);
        }
        if cell.is_some_and(|cell| cell.removed) {
            return None;
        }
        let seen = cell.is_some_and(|cell| cell.seen);
        if self.table.is_fatal(index) {
            return Some(Kind::Look);
        }
        if ordered {
            return Some(Kind::Run);
        }
        if !looked || seen {
            return Some(Kind::Look);
        }
        if !view.is_usable() || view.ip.is_none() || !self.attempt_may_begin(index) {
            return None;
        }
        if !has_finalizer(&self.view, labels::TASK_CLEANUP_FINALIZER) {
            // The object must not be gone before what is begun now is stopped.
            return None;
        }
        self.begin(index, name, now, out)
    }

    /// Whether the task in a pod that leaves may be stopped: only once the object says that this run of it
    /// is over. Were that not so, a process that goes on from here could begin the same run again.
    fn may_clear(&self, index: u32, name: &str) -> bool {
        self.view.deleting || self.held.release.contains(name) || self.removal_is_durable(index)
    }

    /// Whether the executor of a pod has been told to stop everything.
    fn is_clearing(&self, pod_uid: &str) -> bool {
        self.orders
            .said
            .iter()
            .any(|said| said.kind == Kind::Clear && said.order.pod_uid == pod_uid)
    }

    /// Whether the present run of a task may be begun: the first may always, later ones once it is
    /// recorded that the one before is over.
    fn attempt_may_begin(&self, index: u32) -> bool {
        self.table.attempt(index) == 0 || self.attempt_is_durable(index)
    }

    fn begin(
        &mut self,
        index: u32,
        name: &str,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) -> Option<Kind> {
        let built = match self.spec().map(|spec| task_order::build(spec, index))? {
            Ok(_) if self.table.identity(index).is_none() => {
                Err("metadata.uid: makes no identity of a task".to_owned())
            }
            Ok(_) => Ok(()),
            Err(invalid) => Err(invalid.to_string()),
        };
        if let Err(message) = built {
            let note = self.table.fail(index, reason::START_FAILED, &message, now);
            out.push(task_ended(note));
            return None;
        }
        self.table.placed(index, name);
        if let Some(pod) = self.pods.get_mut(name) {
            pod.ordered = true;
            pod.touched = true;
        }
        Some(Kind::Run)
    }

    /// What an executor says.
    pub(super) fn report(&mut self, report: Report, now: Timestamp, out: &mut Vec<Output>) {
        let of_report = |view: &Arc<PodView>| view.uid == report.pod_uid;
        let name = self
            .pods
            .iter()
            .find(|(_, pod)| pod.view.as_ref().is_some_and(of_report))
            .map(|(name, _)| name.clone());
        let Some(name) = name else { return };
        let clearing = self.is_clearing(&report.pod_uid);
        let Some(pod) = self.pods.get_mut(&name).filter(|pod| pod.lost.is_none()) else {
            return;
        };
        if let Some(leaving) = &mut pod.leaving {
            match report.state {
                State::Tasks(list) if list.is_empty() && clearing => self.is_clear(&name),
                State::Tasks(_) => leaving.unreachable = None,
                State::Unreachable { since, .. } => leaving.unreachable = Some(since.min(now)),
                State::Refused { .. } => {
                    leaving.unreachable.get_or_insert(now);
                }
            }
            return;
        }
        if matches!(report.state, State::Tasks(_)) {
            pod.looked = true;
        }
        let found = pod.found;
        let Some(index) = self.index_of(&name) else {
            return;
        };
        if !self.has_tasks() || index >= self.shards() || self.view.deleting {
            return;
        }
        match report.state {
            State::Tasks(list) => {
                let ended = self.table.observe(index, (&name, found), &list, now);
                self.follow_tail(index, now, ended.is_some());
                out.extend(ended.map(task_ended));
            }
            State::Unreachable { since, message } => self.trouble(
                index,
                since.min(now),
                unknown::EXECUTOR_UNREACHABLE,
                &message,
            ),
            State::Refused { message } => {
                let known_at_once = now.checked_sub(UNKNOWN_AFTER).unwrap_or(now);
                self.trouble(index, known_at_once, unknown::EXECUTOR_REFUSED, &message);
            }
        }
    }

    fn trouble(&mut self, index: u32, since: Timestamp, reason: &'static str, message: &str) {
        if !self.table.is_fatal(index) {
            let trouble = Trouble {
                since,
                reason,
                message: cut(message, 256),
                fatal: false,
            };
            self.table.troubled(index, trouble);
        }
    }

    /// Goes on listening for the last lines of a failed task, for a moment.
    fn follow_tail(&mut self, index: u32, now: Timestamp, ended_now: bool) {
        let lacks_tail = self.table.get(index).is_some_and(|cell| {
            matches!(&cell.state, TaskState::Ended(ended)
                if !ended.succeeded && ended.stderr_tail.is_none())
        });
        if !lacks_tail {
            self.orders.tails.remove(&index);
        } else if ended_now && !self.setting.upstream_executors {
            self.orders.tails.insert(index, later(now, TAIL));
        }
    }
}
