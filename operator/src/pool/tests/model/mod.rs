//! A small cluster around a ledger: an API server, a kubelet, and sandboxes that behave.
//!
//! Every request, answer, event and message waits until it is its turn, which a test chooses; those of one
//! watch and those between one sandbox and the pool stay in order. After each step the invariants of the
//! ledger are checked against what is really there.

mod checks;
mod sandboxes;
mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use opensandbox_api::v1alpha1::CapacitySpec;

use self::sandboxes::Sandbox;
use super::*;

/// What a test lets happen next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// The oldest request but so many is carried out; how it is answered.
    Request(usize, Fate),
    /// An answer arrives.
    Answer(usize),
    /// The watch of the pods moves on; whether the event comes twice.
    Watch(bool),
    /// The watch of the Pool does.
    WatchPool,
    /// A sandbox reads a message.
    Hear(usize),
    /// A message of a sandbox arrives; whether twice.
    Say(usize, bool),
    /// What becomes of a pod.
    Pod(usize, Life),
    /// What users do.
    NewSandbox(u32),
    Scale(usize, u32),
    Decline(usize),
    Return(usize, usize, bool),
    Delete(usize),
    Edit(Edit),
    /// A sandbox names a pod that was not given to it.
    Steal(usize, usize),
    /// Time passes, in milliseconds.
    Pass(i64),
    /// The operator is started anew.
    Restart,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Works,
    /// It works, and the answer is lost.
    Lost,
    /// It does not, and nobody knows.
    Unclear,
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    Ready,
    Unready,
    Fails,
    Vanishes,
    Deleted,
    Evict,
    Ends,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Edit {
    Numbers(u8, u8, u8, u8),
    Template(u8),
    Recycle(u8),
    Gone,
    Back,
}

pub(super) struct World {
    ledger: Ledger,
    pub(super) now: Timestamp,
    version: u64,
    seed: u64,
    spec: Value,
    pool: Option<PoolView>,
    pool_events: VecDeque<Option<PoolView>>,
    pods: BTreeMap<String, PodView>,
    pod_events: VecDeque<Input>,
    requests: VecDeque<Output>,
    answers: Vec<Input>,
    sandboxes: BTreeMap<String, Sandbox>,
    wake: Option<Timestamp>,
    /// Pods that had a tenant and were not made clean since, by name.
    dirty: BTreeMap<String, String>,
    /// Names that the ledger asked for whose answer was not clear.
    unclear: BTreeSet<String>,
    created: BTreeSet<String>,
}

impl World {
    pub(super) fn new() -> Self {
        let spec = spec((1, 3, 2, 6));
        let pool = (*pool_view(POOL_UID, 1, &spec, &json!({}))).clone();
        let mut world = Self {
            ledger: Self::ledger(Some(Arc::new(pool.clone())), Vec::new(), Vec::new(), 0),
            now: at(0),
            version: 1,
            seed: 0,
            spec,
            pool: Some(pool),
            pool_events: VecDeque::new(),
            pods: BTreeMap::new(),
            pod_events: VecDeque::new(),
            requests: VecDeque::new(),
            answers: Vec::new(),
            sandboxes: BTreeMap::new(),
            wake: None,
            dirty: BTreeMap::new(),
            unclear: BTreeSet::new(),
            created: BTreeSet::new(),
        };
        world.handle(Input::Wake);
        world
    }

    fn ledger(
        pool: Option<Arc<PoolView>>,
        pods: Vec<Arc<PodView>>,
        statements: Vec<Statement>,
        seed: u64,
    ) -> Ledger {
        let key = ObjectKey::new("ns", POOL);
        Ledger::new(
            key,
            pool,
            injection(InjectionDefault::Disabled),
            pods,
            statements,
            seed,
        )
    }

    fn version(&mut self) -> Version {
        self.version += 1;
        Version(self.version)
    }

    fn capacity(&self) -> Option<CapacitySpec> {
        let facts = self.ledger.facts.as_ref()?;
        Some(facts.active()?.capacity)
    }

    /// Gives an input to the ledger, and checks what it says.
    fn handle(&mut self, input: Input) {
        let outputs = self.ledger.handle(input, self.now);
        for output in outputs {
            self.check(&output);
            match output {
                Output::ToSandbox { sandbox, message } => {
                    if let Some(member) = self.sandboxes.get_mut(&sandbox.uid) {
                        member.inbox.push_back(message);
                    }
                }
                Output::WakeAt(at) => self.wake = Some(at),
                Output::Event(_) | Output::Note(_) => {}
                request => self.requests.push_back(request),
            }
        }
    }

    pub(super) fn step(&mut self, turn: Turn) {
        self.created
            .extend(self.requests.iter().filter_map(|request| match request {
                Output::CreatePod { name, .. } => Some(name.clone()),
                _ => None,
            }));
        match turn {
            Turn::Request(number, fate) => self.carry_out(number, fate),
            Turn::Answer(number) => {
                if !self.answers.is_empty() {
                    let answer = self.answers.remove(number % self.answers.len());
                    self.handle(answer);
                }
            }
            Turn::Watch(twice) => {
                if let Some(event) = self.pod_events.pop_front() {
                    if twice {
                        self.handle(event.clone());
                    }
                    self.handle(event);
                }
            }
            Turn::WatchPool => match self.pool_events.pop_front() {
                Some(Some(view)) => self.handle(Input::Pool(Arc::new(view))),
                Some(None) => self.handle(Input::PoolAbsent),
                None => {}
            },
            Turn::Hear(number) => self.with_sandbox(number, Self::hear),
            Turn::Say(number, twice) => self.with_sandbox(number, |world, uid| {
                let sandbox = world.sandboxes.get_mut(uid).unwrap();
                if let Some(message) = sandbox.outbox.pop_front() {
                    if twice {
                        world.handle(Input::Sandbox(message.clone()));
                    }
                    world.handle(Input::Sandbox(message));
                }
            }),
            Turn::Pod(number, life) => self.live(number, life),
            Turn::NewSandbox(replicas) => self.new_sandbox(replicas),
            Turn::Scale(number, replicas) => self.with_sandbox(number, |world, uid| {
                world.sandboxes.get_mut(uid).unwrap().replicas = replicas;
                world.state(uid);
            }),
            Turn::Decline(number) => self.with_sandbox(number, |world, uid| {
                world.sandboxes.get_mut(uid).unwrap().takes = false;
            }),
            Turn::Return(number, pod, clean) => self.with_sandbox(number, |world, uid| {
                world.give_back(uid, pod, clean);
            }),
            Turn::Delete(number) => self.with_sandbox(number, |world, uid| {
                let sandbox = world.sandboxes.get_mut(uid).unwrap();
                sandbox.deleting = true;
                while !world.sandboxes[uid].holds.is_empty() {
                    world.give_back(uid, 0, true);
                }
                world.state(uid);
            }),
            Turn::Edit(edit) => self.edit(edit),
            Turn::Steal(number, pod) => self.with_sandbox(number, |world, uid| {
                let Some(name) = world
                    .pods
                    .keys()
                    .nth(pod % world.pods.len().max(1))
                    .cloned()
                else {
                    return;
                };
                let sandbox = &world.sandboxes[uid];
                let mut statement = sandbox.statement(uid);
                let own = sandbox.holds.contains(&name)
                    || sandbox.returns.iter().any(|returned| returned.pod == name)
                    || !sandbox.outbox.is_empty()
                    || world
                        .ledger
                        .members
                        .get(uid)
                        .is_none_or(|member| member.grant.is_some());
                if !own {
                    statement.holds.push(name);
                    world.handle(Input::Sandbox(ToPool::Statement(statement)));
                    world.state(uid);
                }
            }),
            Turn::Pass(millis) => {
                self.now += SignedDuration::from_millis(millis);
                if self.wake.is_some_and(|wake| wake <= self.now) {
                    self.wake = None;
                    self.handle(Input::Wake);
                }
            }
            Turn::Restart => self.restart(),
        }
        self.held();
    }

    /// The operator is killed and started: of what was asked for some is carried out, nothing answered.
    fn restart(&mut self) {
        for number in (0..self.requests.len()).rev().step_by(2) {
            self.carry_out(number, Fate::Works);
        }
        self.requests.clear();
        self.answers.clear();
        self.pod_events.clear();
        self.pool_events.clear();
        self.unclear.clear();
        self.wake = None;
        self.seed += 1;
        for sandbox in self.sandboxes.values_mut() {
            sandbox.inbox.clear();
            sandbox.outbox.clear();
            sandbox.lost.clear();
        }
        let statements = self
            .sandboxes
            .iter()
            .map(|(uid, sandbox)| sandbox.statement(uid))
            .collect();
        let pods = self.pods.values().cloned().map(Arc::new).collect();
        let pool = self.pool.clone().map(Arc::new);
        self.ledger = Self::ledger(pool, pods, statements, self.seed * 1_000_000);
        self.handle(Input::Wake);
        for uid in self.sandboxes.keys().cloned().collect::<Vec<_>>() {
            self.state(&uid);
        }
    }
}
