//! Conversations with executors, as the session module holds them: declarative, in order, repeated.

use std::collections::BTreeSet;

use opensandbox_operator::session::{Order, Report, State, Work};

use crate::executor::{Request, Step, uid_of};
use crate::replica::{Actor, Mail};
use crate::world::{Event, World, time_at};

/// One conversation.
#[derive(Debug)]
pub(crate) struct Conversation {
    order: Order,
    said: Option<State>,
    failing_since: Option<i64>,
    /// A request is on its way; the next waits for its answer.
    asking: bool,
    /// A look is planned already.
    planned: bool,
    /// Which order this is of those for this pod: a report made for an earlier one is dropped.
    serial: u64,
}

impl Conversation {
    /// Whether its order is still the one with this number.
    pub(crate) fn is_for(&self, serial: u64) -> bool {
        self.serial == serial
    }
}

impl World {
    /// The whole list of a sandbox's orders replaces the one before.
    pub(crate) fn set_orders(&mut self, id: u32, sandbox: &str, orders: Vec<Order>) {
        let wait = self.latency();
        let Some(replica) = self.live(id) else { return };
        let wanted: BTreeSet<String> = orders.iter().map(|order| order.pod_uid.clone()).collect();
        if wanted.len() != orders.len() {
            self.check
                .fail(format!("{sandbox}: two orders for one pod"));
            return;
        }
        replica
            .conversations
            .retain(|(of, pod), _| of != sandbox || wanted.contains(pod));
        replica.orders += 1;
        let serial = replica.orders;
        let mut fresh = Vec::new();
        for order in orders {
            let key = (sandbox.to_owned(), order.pod_uid.clone());
            match replica.conversations.get_mut(&key) {
                Some(conversation) if conversation.order == order => continue,
                Some(conversation) => {
                    conversation.order = order;
                    conversation.said = None;
                    conversation.serial = serial;
                }
                None => {
                    let conversation = Conversation {
                        order,
                        said: None,
                        failing_since: None,
                        asking: false,
                        planned: false,
                        serial,
                    };
                    replica.conversations.insert(key.clone(), conversation);
                }
            }
            fresh.push(key);
        }
        for (sandbox, pod) in fresh {
            self.plan(id, sandbox, pod, wait);
        }
    }

    fn plan(&mut self, id: u32, sandbox: String, pod: String, wait: i64) {
        let Some(replica) = self.live(id) else { return };
        let key = (sandbox, pod);
        let Some(conversation) = replica.conversations.get_mut(&key) else {
            return;
        };
        if !std::mem::replace(&mut conversation.planned, true) {
            self.after(wait, Event::Converse(id, key.0, key.1));
        }
    }

    /// Something about an executor changed: those who listen hear of it.
    pub(crate) fn executor_changed(&mut self, pod_uid: &str) {
        let Some(replica) = &self.replica else { return };
        let id = replica.id;
        let listeners: Vec<String> = replica
            .conversations
            .keys()
            .filter(|(_, pod)| pod == pod_uid)
            .map(|(sandbox, _)| sandbox.clone())
            .collect();
        for sandbox in listeners {
            let wait = self.latency();
            self.plan(id, sandbox, pod_uid.to_owned(), wait);
        }
    }

    /// Looks at the executor, asks it for what is wanted, reports what is new.
    pub(crate) fn converse(&mut self, id: u32, sandbox: String, pod_uid: String) {
        let now = self.now();
        let key = (sandbox, pod_uid);
        let Some(replica) = self.replica.as_mut().filter(|replica| replica.id == id) else {
            return;
        };
        let Some(conversation) = replica.conversations.get_mut(&key) else {
            return;
        };
        conversation.planned = false;
        let executor = self
            .executors
            .at(&conversation.order.ip)
            .filter(|(_, executor)| executor.reachable);
        let state = match executor {
            None => {
                let since = *conversation.failing_since.get_or_insert(now);
                State::Unreachable {
                    since: time_at(since),
                    message: "connection refused".to_owned(),
                }
            }
            Some((uid, _)) if *uid != key.1 => State::Refused {
                message: "the token is for another pod".to_owned(),
            },
            Some((uid, _)) => {
                conversation.failing_since = None;
                let seen = self.executors.seen(uid);
                let runs = matches!(conversation.order.work, Work::Run(_));
                if seen.is_empty() && !runs && replica.doubts.contains_key(&key.1) {
                    // What may still arrive forbids to say that there is nothing.
                    let wait = self.rng.between(50, 500);
                    self.plan(id, key.0, key.1, wait);
                    return;
                }
                State::Tasks(seen)
            }
        };
        let mut request = None;
        if let State::Tasks(seen) = &state {
            request = match &conversation.order.work {
                Work::Look => None,
                Work::Run(task) => {
                    let there = seen.iter().any(|seen| seen.task.uid == task.uid);
                    if there {
                        replica.shown.insert(uid_of(task));
                    }
                    (!replica.shown.contains(&uid_of(task))).then(|| Request::Run(task.clone()))
                }
                Work::Clear => {
                    let stopped = seen
                        .iter()
                        .all(|seen| seen.task.deletion_timestamp.is_some());
                    (!stopped).then_some(Request::Clear)
                }
            };
        }
        let serial = conversation.serial;
        let fails = !matches!(state, State::Tasks(_));
        let new = conversation.said.as_ref() != Some(&state);
        conversation.said = Some(state.clone());
        let asks = request.filter(|_| !conversation.asking);
        conversation.asking |= asks.is_some();
        if new {
            let report = Report {
                pod_uid: key.1.clone(),
                state,
            };
            let mail = Mail::Report(serial, report);
            self.post(id, Actor::Sandbox(key.0.clone()), mail);
        }
        if let Some(request) = asks {
            let wait = self.latency();
            if let (Request::Run(_), Some(replica)) = (&request, self.live(id)) {
                *replica.doubts.entry(key.1.clone()).or_default() += 1;
            }
            let event = Event::Request {
                replica: id,
                sandbox: key.0.clone(),
                pod_uid: key.1.clone(),
                request,
            };
            self.after(wait, event);
        }
        if fails {
            let wait = self.rng.between(100, 5_000);
            self.plan(id, key.0, key.1, wait);
        }
    }

    /// A request reaches the executor, whatever became of the conversation meanwhile; unless who sent it
    /// does not lead any more: its token has expired.
    pub(crate) fn request(&mut self, id: u32, sandbox: String, pod_uid: String, request: &Request) {
        let lost = self.fault(50);
        let Some(replica) = self.live(id) else { return };
        if let (Request::Run(_), Some(doubts)) = (request, replica.doubts.get_mut(&pod_uid)) {
            *doubts -= 1;
            if *doubts == 0 {
                replica.doubts.remove(&pod_uid);
            }
        }
        let reachable = self
            .executors
            .pods
            .get(&pod_uid)
            .is_some_and(|executor| executor.reachable);
        if reachable && !lost {
            self.say(|| format!("executor of {pod_uid} takes {request:?}"));
            for (task_uid, step) in self.executors.accept(&pod_uid, request) {
                let wait = match step {
                    Step::Stopped => self.rng.between(0, 3_000),
                    Step::Start | Step::End => self.rng.between(0, 20),
                };
                self.after(
                    wait,
                    Event::Task {
                        pod_uid: pod_uid.clone(),
                        task_uid,
                        step,
                    },
                );
            }
        }
        let key = (sandbox, pod_uid);
        if let Some(replica) = self.live(id)
            && let Some(conversation) = replica.conversations.get_mut(&key)
        {
            conversation.asking = false;
        }
        let wait = self.rng.between(0, 100);
        self.plan(id, key.0, key.1.clone(), wait);
        self.executor_changed(&key.1);
    }

    /// Something happens to a task.
    pub(crate) fn task_step(&mut self, pod_uid: &str, task_uid: &str, step: Step) {
        let now = self.time();
        let ends = self.executors.step(pod_uid, task_uid, step, now);
        self.say(|| format!("task {task_uid} in {pod_uid}: {step:?}"));
        if let Some(wait) = ends {
            self.check_started(pod_uid, task_uid);
            let event = Event::Task {
                pod_uid: pod_uid.to_owned(),
                task_uid: task_uid.to_owned(),
                step: Step::End,
            };
            self.after(wait, event);
        }
        self.executor_changed(pod_uid);
    }
}
