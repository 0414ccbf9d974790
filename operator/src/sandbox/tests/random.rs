//! Random stories: a pool, executors, users and an API server that answer late, wrongly or not at all.
//! After every step the invariants of the module hold, and in the end everything comes to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::json;

use super::world::{World, exited, running, with_spec};
use crate::protocol::FromPool;
use crate::sandbox::{Input, Machine, Output};
use crate::session::{State, Work};
use crate::view::{PodView, SandboxView};
use crate::write::WriteError;

/// What may happen next. Numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The oldest open request is answered as it should be.
    Answer,
    /// The next write conflicts with a change by somebody else.
    Conflict,
    /// A write is applied or not, and the answer is lost.
    Unclear(bool),
    /// A write is refused.
    Refuse,
    /// The watch brings the object, or an input is repeated.
    See,
    /// The watch brings an object that is long outdated.
    Stale(u8),
    Grant(u8),
    /// The pool offers a pod that the sandbox gave back.
    Again(u8),
    Lose(u8),
    Recycle(u8),
    PodSeen(u8),
    TaskRuns(u8),
    TaskEnds(u8, bool),
    Cleared(u8),
    Silent(u8),
    Scale(u8),
    Delete,
    Deface,
    Restart,
    Pass(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::Answer),
        2 => Just(Step::Conflict),
        2 => any::<bool>().prop_map(Step::Unclear),
        1 => Just(Step::Refuse),
        3 => Just(Step::See),
        2 => any::<u8>().prop_map(Step::Stale),
        6 => any::<u8>().prop_map(Step::Grant),
        2 => any::<u8>().prop_map(Step::Again),
        2 => any::<u8>().prop_map(Step::Lose),
        4 => any::<u8>().prop_map(Step::Recycle),
        3 => any::<u8>().prop_map(Step::PodSeen),
        4 => any::<u8>().prop_map(Step::TaskRuns),
        4 => any::<(u8, bool)>().prop_map(|(n, ok)| Step::TaskEnds(n, ok)),
        4 => any::<u8>().prop_map(Step::Cleared),
        1 => any::<u8>().prop_map(Step::Silent),
        2 => (0..5_u8).prop_map(Step::Scale),
        1 => Just(Step::Delete),
        1 => Just(Step::Deface),
        1 => Just(Step::Restart),
        2 => (0..40_u8).prop_map(Step::Pass),
    ]
}

/// The story so far, as others than the machine know it.
struct Story {
    world: World,
    /// Every pod that was ever offered, by name.
    pods: BTreeMap<String, Arc<PodView>>,
    next_pod: u32,
    /// Where each identity was ordered.
    ordered: BTreeMap<String, String>,
    /// Identities whose pod was told to stop everything.
    stopped: BTreeSet<String>,
    /// Results that were durable once, by index.
    ends: BTreeMap<i32, (String, i32)>,
    statuses: usize,
    defaced: bool,
    outstanding: Option<u64>,
    grants: u64,
    answers: usize,
    /// Pods that were recycled, in any order.
    recycled: BTreeSet<String>,
    /// Objects as they were.
    past: Vec<Arc<SandboxView>>,
}

impl Story {
    fn new(policy: &str, replicas: u8) -> Self {
        let world = with_spec(json!({
            "replicas": replicas, "poolRef": "warm",
            "taskTemplate": {"spec": {"process": {"command": ["a"]}}},
            "taskResourcePolicyWhenCompleted": policy,
        }));
        let mut story = Self {
            world,
            pods: BTreeMap::new(),
            next_pod: 0,
            ordered: BTreeMap::new(),
            stopped: BTreeSet::new(),
            ends: BTreeMap::new(),
            statuses: 0,
            defaced: false,
            outstanding: None,
            grants: 0,
            answers: 0,
            recycled: BTreeSet::new(),
            past: Vec::new(),
        };
        story.world.see();
        story
    }

    fn entries(&self) -> Vec<String> {
        let text = self.world.view.alloc_status.as_deref();
        let value: serde_json::Value =
            serde_json::from_str(text.unwrap_or("{}")).unwrap_or_default();
        serde_json::from_value(value["pods"].clone()).unwrap_or_default()
    }

    fn choose(&self, number: u8) -> Option<String> {
        let orders = &self.world.orders;
        let index = usize::from(number).checked_rem(orders.len())?;
        Some(orders[index].pod.clone())
    }

    fn take(&mut self, step: Step) {
        if self.world.done {
            return;
        }
        self.past.push(Arc::new(self.world.view.clone()));
        match step {
            Step::Answer => {
                if let Some(output) = self.world.open.pop_front() {
                    self.world.answer(output);
                }
            }
            Step::Conflict if !self.world.gone => self.world.bump(),
            Step::Unclear(applied) => self.lose_answer(applied),
            Step::Refuse => self.refuse(),
            Step::See => {
                self.world.see();
            }
            Step::Stale(number) => {
                let index = usize::from(number) % self.past.len();
                let view = Arc::clone(&self.past[index]);
                self.world.give(Input::Object(view));
            }
            Step::Restart => self.restart(),
            Step::Pass(seconds) => {
                self.world.now += SignedDuration::from_secs(seconds.into());
                if self.world.wake.is_some_and(|wake| wake <= self.world.now) {
                    self.world.wake = None;
                    self.world.give(Input::Wake);
                }
            }
            Step::Scale(_) | Step::Delete | Step::Deface | Step::Conflict => self.user(step),
            Step::Grant(number) => self.grant(number),
            Step::Again(number) => self.offer_again(number),
            Step::Lose(number) => {
                let entries = self.entries();
                if let Some(index) = usize::from(number).checked_rem(entries.len()) {
                    self.world.lose(&entries[index]);
                }
            }
            Step::Recycle(number) => {
                let returns = self.returns();
                if let Some(index) = usize::from(number).checked_rem(returns.len()) {
                    self.recycle(&returns[index]);
                }
            }
            Step::PodSeen(number) => {
                let entries = self.entries();
                if let Some(index) = usize::from(number).checked_rem(entries.len())
                    && let Some(pod) = self.pods.get(&entries[index])
                {
                    let pod = Arc::clone(pod);
                    self.world.give(Input::Pool(FromPool::Pod(pod)));
                }
            }
            Step::TaskRuns(_) | Step::TaskEnds(..) | Step::Cleared(_) | Step::Silent(_) => {
                self.executor(step);
            }
        }
    }

    fn executor(&mut self, step: Step) {
        match step {
            Step::TaskRuns(number) => self.task(number, running),
            Step::TaskEnds(number, ok) => self.task(number, |task| exited(task, i32::from(!ok))),
            Step::Cleared(number) => {
                if let Some(pod) = self.choose(number) {
                    self.world.lists(&pod, vec![]);
                }
            }
            Step::Silent(number) => {
                if let Some(pod) = self.choose(number) {
                    let since = self.world.now;
                    let message = "timeout".to_owned();
                    self.world
                        .reports(&pod, State::Unreachable { since, message });
                }
            }
            _ => {}
        }
    }

    fn user(&mut self, step: Step) {
        if self.world.view.deleting || self.world.gone {
            return;
        }
        match step {
            Step::Scale(replicas) => self.world.scale(i32::from(replicas)),
            Step::Delete => self.world.delete(),
            Step::Deface => {
                self.defaced = true;
                self.world.view.alloc_status = Some(r#"{"pods":["foreign"]}"#.to_owned());
                self.world.bump();
            }
            _ => {}
        }
        self.world.see();
    }

    fn restart(&mut self) {
        // What a user wrote while nobody looked is what the next process begins with.
        if self.defaced || self.world.gone {
            return;
        }
        self.outstanding = None;
        self.world.open.clear();
        self.world.orders.clear();
        let view = Arc::new(self.world.view.clone());
        self.past.clear();
        self.past.push(Arc::clone(&view));
        self.world.machine = Machine::new(view, Vec::new(), self.world.setting.clone());
        self.world.see();
    }

    fn refuse(&mut self) {
        if let Some(Output::Write(_)) = self.world.open.front() {
            self.world.open.pop_front();
            self.world.give(Input::Written(Err(WriteError::Refused {
                reason: "Forbidden".to_owned(),
                message: "no".to_owned(),
            })));
        }
    }

    fn returns(&self) -> Vec<String> {
        let last = self.world.statements.last();
        let returns = last.map_or(&[][..], |(_, last)| &last.returns);
        returns.iter().map(|back| back.pod.clone()).collect()
    }

    fn recycle(&mut self, pod: &str) {
        self.recycled.insert(pod.to_owned());
        self.world.recycled(pod);
    }

    /// As a pool does that recycles by doing nothing.
    fn offer_again(&mut self, number: u8) {
        let Some((_, last)) = self.world.statements.last() else {
            return;
        };
        let named = |pod: &String| {
            last.holds.contains(pod) || last.returns.iter().any(|back| back.pod == *pod)
        };
        let free: Vec<String> = self
            .recycled
            .iter()
            .filter(|pod| !named(pod))
            .cloned()
            .collect();
        if self.outstanding.is_some() || last.wants == 0 || free.is_empty() {
            return;
        }
        let pod = &free[usize::from(number) % free.len()];
        let Some(pod) = self.pods.get(pod).cloned() else {
            return;
        };
        self.recycled.remove(&pod.key.name);
        self.offer(vec![pod]);
    }

    fn offer(&mut self, pods: Vec<Arc<PodView>>) {
        self.grants += 1;
        self.outstanding = Some(self.grants);
        let grant = self.grants;
        self.world
            .give(Input::Pool(FromPool::Grant { grant, pods }));
    }

    fn lose_answer(&mut self, applied: bool) {
        let unclear = || WriteError::Unclear {
            message: "no answer".to_owned(),
        };
        match self.world.open.front().cloned() {
            Some(Output::Write(write)) => {
                self.world.open.pop_front();
                if applied {
                    let _ = self.world.apply(&write);
                }
                self.world.give(Input::Written(Err(unclear())));
            }
            Some(Output::WriteStatus(write)) => {
                self.world.open.pop_front();
                if applied && write.version == self.world.view.version && !self.world.gone {
                    self.world.bump();
                    self.world.view.status = (*write.status).clone();
                }
                self.world.give(Input::StatusWritten(Err(unclear())));
            }
            _ => {}
        }
    }

    fn grant(&mut self, number: u8) {
        let Some((_, statement)) = self.world.statements.last() else {
            return;
        };
        if self.outstanding.is_some() || statement.wants == 0 {
            return;
        }
        let count = 1 + u32::from(number) % statement.wants;
        let mut pods = Vec::new();
        for _ in 0..count {
            self.next_pod += 1;
            let name = format!("p{}", self.next_pod);
            let pod = self.world.pod(&name);
            self.pods.insert(name, Arc::clone(&pod));
            pods.push(pod);
        }
        self.grants += 1;
        self.outstanding = Some(self.grants);
        let grant = self.grants;
        self.world
            .give(Input::Pool(FromPool::Grant { grant, pods }));
    }

    fn task(
        &mut self,
        number: u8,
        change: impl Fn(&opensandbox_api::task::Task) -> opensandbox_api::task::Task,
    ) {
        if let Some(pod) = self.choose(number)
            && let Some(task) = self.world.task(&pod).cloned()
        {
            self.world.lists(&pod, vec![change(&task)]);
        }
    }

    fn check(&mut self) {
        let entries = self.entries();
        // Answers come only after the write, and say what is durable.
        for (grant, _) in self.world.answers.split_off(0) {
            assert_eq!(
                self.outstanding.take(),
                Some(grant),
                "answered twice, or another"
            );
            self.answers += 1;
        }
        let writes = self.world.open.iter().filter(|output| {
            matches!(
                output,
                Output::Write(_) | Output::WriteStatus(_) | Output::Delete { .. }
            )
        });
        assert!(writes.count() <= 1, "two writes at once");
        for order in &self.world.orders {
            if order.work == Work::Clear {
                let here = self
                    .ordered
                    .iter()
                    .filter(|(_, pod)| **pod == order.pod_uid);
                self.stopped.extend(here.map(|(uid, _)| uid.clone()));
            }
            let Work::Run(task) = &order.work else {
                continue;
            };
            assert!(
                entries.contains(&order.pod) || self.defaced || self.world.gone,
                "ordered to a pod that is not held"
            );
            let uid = task.uid.clone().unwrap();
            let before = self
                .ordered
                .entry(uid.clone())
                .or_insert_with(|| order.pod_uid.clone());
            assert_eq!(*before, order.pod_uid, "{uid} was begun twice");
            assert!(
                !self.stopped.contains(&uid),
                "{uid} was stopped and begun again"
            );
        }
        if let Some((_, last)) = self.world.statements.last() {
            let held = |pod: &String| last.holds.contains(pod);
            let foreign = self.world.orders.iter().find(|order| !held(&order.pod));
            assert_eq!(foreign, None, "an order for a pod that may be another's");
        }
        if !self.defaced {
            let unique: BTreeSet<&String> = entries.iter().collect();
            assert_eq!(unique.len(), entries.len());
            let known = |pod: &String| self.pods.contains_key(pod) || pod.contains('~');
            assert!(entries.iter().all(known));
        }
        for (_, statement) in &self.world.statements {
            for returned in &statement.returns {
                assert!(!statement.holds.contains(&returned.pod));
            }
        }
        for status in &self.world.statuses[self.statuses.min(self.world.statuses.len())..] {
            let sum = status.task_pending
                + status.task_running
                + status.task_succeed
                + status.task_failed
                + status.task_unknown;
            let replicas = self.world.view.spec.as_ref().unwrap().replicas;
            assert!(
                sum == replicas || status.observed_generation != Some(self.world.view.generation)
            );
        }
        self.statuses = self.world.statuses.len();
        let results = &self.world.view.status.task_results;
        for result in results.iter().filter(|result| result.exit_code.is_some()) {
            let end = (
                result.attempt.unwrap_or(0).to_string(),
                result.exit_code.unwrap(),
            );
            let before = self.ends.entry(result.index).or_insert_with(|| end.clone());
            // A shard that was scaled away and came back runs anew, as another attempt.
            if before.0 == end.0 {
                assert_eq!(*before, end, "a terminal result changed");
            } else {
                *before = end;
            }
        }
    }

    /// Everybody does what they should: it must come to rest.
    fn calm_down(&mut self) {
        // Longer than any wait of the machine, with nothing happening.
        const QUIET: u32 = 12;
        let mut quiet = 0;
        let mut before = (0, 0);
        while quiet < QUIET {
            let written = (self.world.writes.len(), self.world.statuses.len());
            quiet = if written == before { quiet + 1 } else { 0 };
            before = written;
            self.world.settle_gently();
            self.check();
            if self.world.done {
                return;
            }
            for pod in self.entries() {
                if let Some(pod) = self.pods.get(&pod) {
                    self.world.give(Input::Pool(FromPool::Pod(Arc::clone(pod))));
                }
            }
            self.grant(0);
            for pod in self.returns() {
                self.recycle(&pod);
            }
            for order in self.world.orders.clone() {
                if !self.world.orders.contains(&order) {
                    // What another executor said has changed or ended it.
                    continue;
                }
                match &order.work {
                    Work::Run(task) => self.world.lists(&order.pod, vec![exited(task, 0)]),
                    Work::Look | Work::Clear => self.world.lists(&order.pod, vec![]),
                }
            }
            self.world.settle_gently();
            self.world.pass(30);
        }
    }
}

impl World {
    /// As `settle`, for a world in which a request may have been dropped.
    fn settle_gently(&mut self) {
        self.see();
        self.settle();
    }
}

proptest! {
    #[test]
    fn invariants_hold_in_every_story(
        release in any::<bool>(),
        replicas in 0..5_u8,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut story = Story::new(if release { "Release" } else { "Retain" }, replicas);
        story.check();
        for step in steps {
            story.take(step);
            story.check();
        }
        story.calm_down();
        if story.world.view.deleting || story.world.gone {
            prop_assert!(story.world.done, "a deleted object is still there");
        } else {
            let status = &story.world.view.status;
            let replicas = story.world.view.spec.as_ref().unwrap().replicas;
            prop_assert_eq!(story.world.last_statement().wants, 0);
            prop_assert_eq!(
                status.task_succeed + status.task_failed,
                replicas,
                "{:?} {:?} {:?}",
                story.world.last_statement(),
                status.task_record,
                story.world.orders
            );
            let (writes, statuses) = (story.world.writes.len(), story.world.statuses.len());
            story.world.pass(600);
            prop_assert_eq!(story.world.writes.len(), writes, "it writes with nothing to do");
            prop_assert_eq!(story.world.statuses.len(), statuses, "it writes with nothing to do");
        }
    }
}
