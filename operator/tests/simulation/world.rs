//! The world: what there is, what will happen next, and the loop that makes it happen.
//!
//! One queue of events in virtual milliseconds; everything random comes from one generator, so that a
//! seed says everything.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use crate::check::Checker;
use crate::executor::{Executors, Request, Step};
use crate::kubelet::{Kubelet, PodStep};
use crate::replica::{Actor, Mail, Replica};
use crate::rng::Rng;
use crate::store::{Kind, Store};
use crate::users::Users;
use crate::writes::Write;

/// Beginning of virtual time.
const EPOCH: i64 = 1_790_000_000_000;
/// More events than this at one instant is a loop.
const MOST_AT_ONCE: u32 = 100_000;

/// What a run is like.
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    /// Writes fail, answers are lost, watches stall.
    pub(crate) faults: bool,
    /// The operator crashes, is paused, hands over.
    pub(crate) crashes: bool,
    /// A paused leader's writes arrive when another leads.
    pub(crate) zombies: bool,
    /// Pods fail, vanish, never start; executors become unreachable.
    pub(crate) losses: bool,
    /// Users write annotations that are the operator's.
    pub(crate) hostile: bool,
    /// Virtual milliseconds before everything calms down.
    pub(crate) turbulence: i64,
}

/// Something that will happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A replica's watch delivers the next change.
    Watch(u32, Kind),
    /// An actor takes the next message from its mailbox.
    Turn(u32, Actor),
    /// Time that an actor asked for has come; only the newest wish counts.
    Wake(u32, Actor, u64),
    /// A write reaches the API server.
    Apply(u64),
    /// An answer reaches an actor.
    Answer(u32, Actor, Box<Mail>),
    /// Something happens to a pod, by UID.
    Pod(String, PodStep),
    /// Dependents of an object that is gone are collected, by its UID.
    Collect(String),
    /// Something happens to a task on an executor.
    Task {
        pod_uid: String,
        task_uid: String,
        step: Step,
    },
    /// A conversation goes on: replica, UID of the sandbox, UID of the pod.
    Converse(u32, String, String),
    /// A request reaches the executor.
    Request {
        replica: u32,
        sandbox: String,
        pod_uid: String,
        request: Request,
    },
    /// A user does something.
    User,
    /// A replica begins to lead: it lists, then decides.
    Start(Option<String>),
    List(u32, Kind),
    Lead(u32),
    /// The leader is lost somehow.
    Crash,
    /// From now on nothing goes wrong any more.
    Calm,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) profile: Profile,
    pub(crate) rng: Rng,
    pub(crate) store: Store,
    pub(crate) executors: Executors,
    pub(crate) kubelet: Kubelet,
    pub(crate) users: Users,
    pub(crate) check: Checker,
    /// The replica that leads, or begins to.
    pub(crate) replica: Option<Replica>,
    pub(crate) replicas: u32,
    /// Writes on their way to the API server.
    pub(crate) writes: BTreeMap<u64, Write>,
    pub(crate) write_count: u64,
    pub(crate) calm: bool,
    pub(crate) trace: Option<Vec<String>>,
    queue: BTreeMap<(i64, u64), Event>,
    sequence: u64,
    now: i64,
    at_once: u32,
    read: BTreeMap<Kind, usize>,
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let profile = Profile {
            faults: rng.chance(700),
            crashes: rng.chance(500),
            zombies: rng.chance(300),
            losses: rng.chance(600),
            hostile: rng.chance(200),
            turbulence: rng.between(5_000, 60_000),
        };
        let mut world = Self {
            profile,
            rng,
            store: Store::default(),
            executors: Executors::default(),
            kubelet: Kubelet::default(),
            users: Users::default(),
            check: Checker::default(),
            replica: None,
            replicas: 0,
            writes: BTreeMap::new(),
            write_count: 0,
            calm: false,
            trace: traced.then(Vec::new),
            queue: BTreeMap::new(),
            sequence: 0,
            now: 0,
            at_once: 0,
            read: BTreeMap::new(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.users_begin();
        self.after(0, Event::Start(None));
        self.after(self.profile.turbulence, Event::Calm);
        if self.profile.crashes {
            let first = self.rng.between(500, 10_000);
            self.after(first, Event::Crash);
        }
    }

    /// Virtual milliseconds since the beginning.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    pub(crate) fn time(&self) -> Timestamp {
        time_at(self.now)
    }

    /// The time as Kubernetes stores it.
    pub(crate) fn stamp(&self) -> String {
        let seconds = Timestamp::from_second(self.time().as_second());
        seconds.unwrap_or_default().to_string()
    }

    pub(crate) fn after(&mut self, millis: i64, event: Event) {
        self.sequence += 1;
        self.queue
            .insert((self.now + millis.max(0), self.sequence), event);
    }

    pub(crate) fn millis_until(&self, time: Timestamp) -> i64 {
        time.as_millisecond().saturating_sub(EPOCH + self.now)
    }

    pub(crate) fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} {}", self.now, what()));
        }
    }

    /// Milliseconds that something takes here.
    pub(crate) fn latency(&mut self) -> i64 {
        let longest = match (self.calm, self.profile.faults) {
            (true, _) => 20,
            (false, true) => 3_000,
            (false, false) => 50,
        };
        self.rng.latency(longest)
    }

    /// Whether something goes wrong, so many times in a thousand.
    pub(crate) fn fault(&mut self, per_mille: u64) -> bool {
        !self.calm && self.profile.faults && self.rng.chance(per_mille)
    }

    /// Lets virtual time pass until then, or until something is wrong.
    pub(crate) fn run_until(&mut self, millis: i64) {
        while self.check.violation.is_none() {
            let Some((&(at, sequence), _)) = self.queue.first_key_value() else {
                break;
            };
            if at > millis {
                break;
            }
            self.at_once = if at == self.now { self.at_once + 1 } else { 0 };
            if self.at_once > MOST_AT_ONCE {
                self.check
                    .fail("something goes on without end at one instant");
            }
            self.now = at;
            if let Some(event) = self.queue.remove(&(at, sequence)) {
                self.happen(event);
                self.react();
            }
        }
        if self.check.violation.is_none() {
            self.now = self.now.max(millis);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Watch(replica, kind) => self.deliver(replica, kind),
            Event::Turn(replica, actor) => self.turn(replica, &actor),
            Event::Wake(replica, actor, token) => self.wake(replica, actor, token),
            Event::Apply(id) => self.apply(id),
            Event::Answer(replica, actor, mail) => self.post(replica, actor, *mail),
            Event::Pod(uid, step) => self.pod_step(&uid, step),
            Event::Collect(uid) => self.collect(&uid),
            Event::Task {
                pod_uid,
                task_uid,
                step,
            } => self.task_step(&pod_uid, &task_uid, step),
            Event::Converse(replica, sandbox, pod_uid) => {
                self.converse(replica, sandbox, pod_uid);
            }
            Event::Request {
                replica,
                sandbox,
                pod_uid,
                request,
            } => self.request(replica, sandbox, pod_uid, &request),
            Event::User => self.user(),
            Event::Start(fence) => self.start(fence),
            Event::List(replica, kind) => self.list(replica, kind),
            Event::Lead(replica) => self.lead(replica),
            Event::Crash => self.crash(),
            Event::Calm => self.calm_down(),
        }
    }

    /// What follows from changes of objects, whoever made them.
    pub(crate) fn react(&mut self) {
        for kind in Kind::ALL {
            let from = self.read.get(&kind).copied().unwrap_or(0);
            let new: Vec<_> = self.store.log(kind)[from..].to_vec();
            self.read.insert(kind, from + new.len());
            for entry in &new {
                let uid = crate::store::uid(&entry.object).to_owned();
                let before = self.check.claims.get(&uid).cloned();
                self.check.observe(kind, entry, self.now);
                let after = self.check.claims.get(&uid);
                if let Some(before) = before.filter(|before| !before.deleting)
                    && after.is_none_or(|after| after.deleting)
                {
                    for pod in before.owned() {
                        self.given_back(&uid, pod);
                    }
                }
                match kind {
                    Kind::Pod => self.pod_changed(entry),
                    Kind::Pool | Kind::Sandbox if entry.gone => {
                        let wait = self.rng.between(1, 300);
                        self.after(wait, Event::Collect(uid));
                    }
                    Kind::Pool | Kind::Sandbox => {}
                }
            }
            if !new.is_empty() {
                self.expect_watch(kind);
            }
        }
    }
}

pub(crate) fn time_at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(EPOCH + millis).unwrap_or_default()
}
