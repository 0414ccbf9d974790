//! One object, its API server and the other ends of its machine, all of which answer when told to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::labels;
use opensandbox_api::task::{End, Outcome, ProcessStatus, Task};
use opensandbox_api::v1alpha1::BatchSandboxStatus;
use serde_json::Value;

use super::{at, facts, object, spec};
use crate::protocol::{FromPool, Statement, ToPool};
use crate::sandbox::{Input, Machine, Note, Output, Setting};
use crate::session::{Order, Report, Seen, State, Work};
use crate::view::{ContainerView, ObjectKey, Owner, PodPhase, PodView, SandboxView, Version};
use crate::write::{Event, SandboxWrite, WriteError};

pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) view: SandboxView,
    pub(super) now: Timestamp,
    pub(super) setting: Setting,
    /// Writes and other requests that have no answer yet.
    pub(super) open: VecDeque<Output>,
    pub(super) writes: Vec<SandboxWrite>,
    pub(super) statuses: Vec<BatchSandboxStatus>,
    pub(super) statements: Vec<(String, Statement)>,
    pub(super) answers: Vec<(u64, bool)>,
    pub(super) left: u32,
    pub(super) orders: Vec<Order>,
    pub(super) events: Vec<Event>,
    pub(super) notes: Vec<Note>,
    pub(super) wake: Option<Timestamp>,
    pub(super) done: bool,
    /// Template pods by name.
    pub(super) cluster: BTreeMap<String, PodView>,
    /// The object is gone.
    pub(super) gone: bool,
    serial: u64,
}

pub(super) fn pooled(replicas: i32) -> World {
    World::new(object("box", replicas))
}

pub(super) fn with_spec(value: Value) -> World {
    let mut view = object("box", 1);
    view.spec = Ok(Arc::new(spec(value)));
    World::new(view)
}

impl World {
    pub(super) fn new(view: SandboxView) -> Self {
        let setting = Setting {
            injection: Arc::new(facts()),
            fence: None,
            upstream_executors: false,
        };
        Self::with_setting(view, setting)
    }

    pub(super) fn with_setting(view: SandboxView, setting: Setting) -> Self {
        Self {
            machine: Machine::new(Arc::new(view.clone()), Vec::new(), setting.clone()),
            view,
            now: at(0),
            setting,
            open: VecDeque::new(),
            writes: Vec::new(),
            statuses: Vec::new(),
            statements: Vec::new(),
            answers: Vec::new(),
            left: 0,
            orders: Vec::new(),
            events: Vec::new(),
            notes: Vec::new(),
            wake: None,
            done: false,
            cluster: BTreeMap::new(),
            gone: false,
            serial: 1000,
        }
    }

    /// The operator restarts: nothing but the objects remains.
    pub(super) fn restart(&mut self) {
        let pods = self.cluster.values().cloned().map(Arc::new).collect();
        self.machine = Machine::new(Arc::new(self.view.clone()), pods, self.setting.clone());
        self.open.clear();
        self.orders.clear();
        self.statements.clear();
        self.writes.clear();
        self.statuses.clear();
        self.wake = None;
        self.begin();
    }

    /// Gives one input, and keeps what comes out.
    pub(super) fn give(&mut self, input: Input) -> usize {
        let out = self.machine.handle(input, self.now);
        let count = out
            .iter()
            .filter(|output| !matches!(output, Output::WakeAt(_)))
            .count();
        for output in out {
            match output {
                Output::ToPool { pool, message } => match message {
                    ToPool::Statement(statement) => self.statements.push((pool, statement)),
                    ToPool::Answer { grant, taken, .. } => self.answers.push((grant, taken)),
                    ToPool::Left { .. } => self.left += 1,
                },
                Output::Sessions(orders) => self.orders = orders,
                Output::Event(event) => self.events.push(event),
                Output::Note(note) => self.notes.push(note),
                Output::WakeAt(wake) => self.wake = Some(wake),
                Output::Done => self.done = true,
                Output::Write(write) => {
                    self.writes.push(write.clone());
                    self.open.push_back(Output::Write(write));
                }
                Output::WriteStatus(write) => {
                    self.statuses.push((*write.status).clone());
                    self.open.push_back(Output::WriteStatus(write));
                }
                other => self.open.push_back(other),
            }
        }
        count
    }

    /// The first input, and everything that follows from it.
    pub(super) fn begin(&mut self) {
        self.see();
        self.settle();
    }

    /// The watch brings the present object.
    pub(super) fn see(&mut self) -> usize {
        if self.gone {
            return self.give(Input::Absent);
        }
        self.give(Input::Object(Arc::new(self.view.clone())))
    }

    /// Answers everything with what the API server would do, until nothing is open.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some(output) = self.open.pop_front() else {
                return;
            };
            self.answer(output);
        }
        panic!("it does not come to rest");
    }

    pub(super) fn answer(&mut self, output: Output) {
        match output {
            Output::Write(write) => {
                let result = self.apply(&write);
                self.give(Input::Written(result));
                if self.gone {
                    self.give(Input::Absent);
                }
            }
            Output::WriteStatus(write) => {
                let result = if self.gone {
                    Err(WriteError::NotFound)
                } else if write.version == self.view.version {
                    self.bump();
                    self.view.status = stored(&write.status);
                    Ok(Arc::new(self.view.clone()))
                } else {
                    Err(WriteError::Conflict)
                };
                self.give(Input::StatusWritten(result));
            }
            Output::Delete { version } => {
                let result = if version == self.view.version {
                    self.delete();
                    Ok(())
                } else {
                    Err(WriteError::Conflict)
                };
                self.give(Input::Deleted(result));
                self.see();
            }
            Output::Read => {
                self.see();
            }
            Output::Assign | Output::WakeAt(_) => {}
            Output::CreatePod { name, .. } => {
                let result = if self.cluster.contains_key(&name) {
                    Err(WriteError::AlreadyExists)
                } else {
                    let pod = self.own_pod(&name);
                    self.cluster.insert(name.clone(), pod.clone());
                    Ok(Arc::new(pod))
                };
                let made = result.clone();
                self.give(Input::PodCreated { name, result });
                if let Ok(pod) = made {
                    self.give(Input::Pod(pod));
                }
            }
            Output::DeletePod { name, uid, .. } => {
                let there = self.cluster.get(&name).is_some_and(|pod| pod.uid == uid);
                self.give(Input::PodDeleted {
                    name: name.clone(),
                    uid: uid.clone(),
                    result: there.then_some(()).ok_or(WriteError::NotFound),
                });
                if there {
                    self.cluster.remove(&name);
                    self.give(Input::PodGone { name, uid });
                }
            }
            other => panic!("needs no answer: {other:?}"),
        }
    }

    /// What the API server does with a write.
    pub(super) fn apply(&mut self, write: &SandboxWrite) -> Result<Arc<SandboxView>, WriteError> {
        if self.gone {
            return Err(WriteError::NotFound);
        }
        if write.version != self.view.version {
            return Err(WriteError::Conflict);
        }
        self.bump();
        for (key, text) in &write.annotations {
            let field = match *key {
                labels::ALLOC_STATUS => &mut self.view.alloc_status,
                labels::ALLOC_RELEASE => &mut self.view.alloc_release,
                labels::ALLOC_RELEASED => &mut self.view.alloc_released,
                labels::ENDPOINTS => &mut self.view.endpoints,
                labels::FENCE => &mut self.view.fence,
                other => panic!("writes {other}"),
            };
            field.clone_from(text);
        }
        if let Some(finalizers) = &write.finalizers {
            self.view.finalizers.clone_from(finalizers);
        }
        if let Some(pool) = &write.pool_ref {
            self.edit_spec(|spec| spec["poolRef"] = Value::from(pool.clone()));
        }
        if self.view.deleting && self.view.finalizers.is_empty() {
            self.gone = true;
        }
        Ok(Arc::new(self.view.clone()))
    }

    pub(super) fn bump(&mut self) {
        self.view.version = Version(self.view.version.0 + 1);
    }

    /// A user edits the spec.
    pub(super) fn edit_spec(&mut self, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::to_value(self.view.spec.as_deref().unwrap()).unwrap();
        edit(&mut value);
        self.view.spec = Ok(Arc::new(spec(value)));
        self.view.generation += 1;
        self.bump();
    }

    pub(super) fn scale(&mut self, replicas: i32) {
        self.edit_spec(|spec| spec["replicas"] = Value::from(replicas));
    }

    /// A user deletes the object.
    pub(super) fn delete(&mut self) {
        self.bump();
        if self.view.finalizers.is_empty() {
            self.gone = true;
        } else {
            self.view.deleting = true;
        }
    }

    /// Time passes; the machine is woken when it asked for it.
    pub(super) fn pass(&mut self, seconds: i64) {
        let end = self.now + SignedDuration::from_secs(seconds);
        while let Some(wake) = self.wake.filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.wake = None;
            self.give(Input::Wake);
            self.settle();
        }
        self.now = end;
    }

    /// A ready pod of the pool.
    pub(super) fn pod(&mut self, name: &str) -> Arc<PodView> {
        self.serial += 1;
        Arc::new(PodView {
            pool: Some("warm".to_owned()),
            owner: None,
            sandbox: None,
            index: None,
            ..ready_pod(name, self.serial)
        })
    }

    /// A pod of the template, not ready.
    pub(super) fn own_pod(&mut self, name: &str) -> PodView {
        self.serial += 1;
        let index = name.rsplit('-').next().unwrap().parse().unwrap();
        PodView {
            phase: PodPhase::Pending,
            ready: false,
            ip: None,
            index: Some(index),
            ..ready_pod(name, self.serial)
        }
    }

    /// The pods of the template become ready.
    pub(super) fn run_own_pods(&mut self) {
        let names: Vec<String> = self.cluster.keys().cloned().collect();
        for name in names {
            self.change_own_pod(&name, |pod| {
                pod.phase = PodPhase::Running;
                pod.ready = true;
                pod.ip = Some(format!("10.1.0.{}", pod.index.unwrap()));
            });
        }
        self.settle();
    }

    pub(super) fn change_own_pod(&mut self, name: &str, change: impl FnOnce(&mut PodView)) {
        self.serial += 1;
        let pod = self.cluster.get_mut(name).unwrap();
        change(pod);
        pod.version = Version(self.serial);
        let pod = Arc::new(pod.clone());
        self.give(Input::Pod(pod));
    }

    /// Deletes a pod of the template by hand.
    pub(super) fn lose_own_pod(&mut self, name: &str) {
        let pod = self.cluster.remove(name).unwrap();
        self.give(Input::PodGone {
            name: name.to_owned(),
            uid: pod.uid,
        });
        self.settle();
    }

    /// The pool offers pods of these names.
    pub(super) fn grant(&mut self, id: u64, names: &[&str]) {
        let pods = names.iter().map(|name| self.pod(name)).collect();
        self.give(Input::Pool(FromPool::Grant { grant: id, pods }));
    }

    pub(super) fn lose(&mut self, pod: &str) {
        self.give(Input::Pool(FromPool::Lost {
            pod: pod.to_owned(),
            cause: "its node is gone".to_owned(),
        }));
    }

    pub(super) fn recycled(&mut self, pod: &str) {
        self.give(Input::Pool(FromPool::Recycled {
            pod: pod.to_owned(),
        }));
    }

    /// The order for a pod.
    pub(super) fn order(&self, pod: &str) -> Option<&Order> {
        self.orders.iter().find(|order| order.pod == pod)
    }

    /// The task that is ordered to a pod.
    pub(super) fn task(&self, pod: &str) -> Option<&Task> {
        match &self.order(pod)?.work {
            Work::Run(task) => Some(task),
            _ => None,
        }
    }

    /// What the executor of a pod that has an order lists.
    pub(super) fn lists(&mut self, pod: &str, tasks: Vec<Task>) {
        let tasks = tasks
            .into_iter()
            .map(|task| Seen {
                task,
                stderr_tail: None,
            })
            .collect();
        self.reports(pod, State::Tasks(tasks));
    }

    pub(super) fn reports(&mut self, pod: &str, state: State) {
        let pod_uid = self.order(pod).expect("it has an order").pod_uid.clone();
        self.give(Input::Report(Report { pod_uid, state }));
    }

    pub(super) fn last_statement(&self) -> &Statement {
        &self.statements.last().expect("it spoke").1
    }

    pub(super) fn last_status(&self) -> &BatchSandboxStatus {
        self.statuses.last().expect("it wrote a status")
    }

    pub(super) fn condition(&self, type_: &str) -> Option<(String, String, String)> {
        let condition = opensandbox_api::conditions::find(&self.view.status.conditions, type_)?;
        Some((
            condition.status.clone(),
            condition.reason.clone(),
            condition.message.clone(),
        ))
    }

    pub(super) fn reasons(&self) -> Vec<&'static str> {
        self.events.iter().map(|event| event.reason).collect()
    }
}

/// A status as it comes back from the API server.
fn stored(status: &BatchSandboxStatus) -> BatchSandboxStatus {
    serde_json::from_value(serde_json::to_value(status).unwrap()).unwrap()
}

fn ready_pod(name: &str, serial: u64) -> PodView {
    PodView {
        key: ObjectKey::new("ns", name),
        uid: format!("pod-{serial}"),
        version: Version(serial),
        created: at(0),
        deleting: false,
        owner: Some(Owner {
            kind: "BatchSandbox".to_owned(),
            name: "box".to_owned(),
            uid: "uid-of-box".to_owned(),
        }),
        pool: None,
        revision: None,
        sandbox: Some("box".to_owned()),
        index: Some(0),
        evict: false,
        retiring: false,
        phase: PodPhase::Running,
        ready: true,
        ready_since: Some(at(0)),
        scheduled: true,
        ip: Some(format!("10.0.{}.{}", serial / 256 % 256, serial % 256)),
        trouble: None,
        containers: Vec::<ContainerView>::new(),
        restart_record: None,
    }
}

/// The ordered task, running.
pub(super) fn running(task: &Task) -> Task {
    Task {
        process_status: Some(ProcessStatus::running("2026-06-01T00:00:00Z")),
        ..task.clone()
    }
}

/// The ordered task, ended with this code.
pub(super) fn exited(task: &Task, code: i32) -> Task {
    let outcome = Outcome::of(End::Exited { code });
    let terminated = outcome.terminated(
        Some("2026-06-01T00:00:00Z".to_owned()),
        Some("2026-06-01T00:00:05Z".to_owned()),
    );
    Task {
        process_status: Some(ProcessStatus::terminated(terminated)),
        outcome: Some(outcome),
        ..task.clone()
    }
}
