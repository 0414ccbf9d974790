//! One replica of the operator: caches, actors and mailboxes, wired as the program wires them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::sidecar;
use opensandbox_operator::pool::{self, InjectionFacts, Ledger};
use opensandbox_operator::protocol::{FromPool, Statement};
use opensandbox_operator::sandbox::{self, Machine, Setting};
use opensandbox_operator::session::Report;
use opensandbox_operator::view::{ObjectKey, PodView, PoolView, SandboxView, Version};

use crate::session::Conversation;
use crate::store::{self, Entry, Kind, NAMESPACE};
use crate::story::Line;
use crate::views;
use crate::world::{Event, World};
use crate::writes::Op;

/// Who decides something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    /// The ledger of a pool, by name.
    Pool(String),
    /// The machine of a BatchSandbox, by UID.
    Sandbox(String),
}

impl Actor {
    fn name(&self) -> String {
        match self {
            Self::Pool(name) => format!("pool {name}"),
            Self::Sandbox(uid) => uid.clone(),
        }
    }
}

/// What an actor is told.
#[derive(Clone, Debug)]
pub(crate) enum Mail {
    Pool(pool::Input),
    Sandbox(sandbox::Input),
    /// A report, and the order for which it was made.
    Report(u64, Report),
}

/// A replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: u32,
    fence: Option<String>,
    pub(crate) leads: bool,
    pools: BTreeMap<String, Arc<PoolView>>,
    sandboxes: BTreeMap<String, Arc<SandboxView>>,
    pods: BTreeMap<String, Arc<PodView>>,
    /// How far each watch has read the log of its kind; absent before it has listed.
    position: BTreeMap<Kind, usize>,
    /// Watches with a delivery under way.
    busy: BTreeSet<Kind>,
    ledgers: BTreeMap<String, Ledger>,
    machines: BTreeMap<String, (String, Machine)>,
    /// By UID of the sandbox: the newest version of the object that its machine has heard of.
    heard: BTreeMap<String, Version>,
    mail: BTreeMap<Actor, VecDeque<Mail>>,
    wakes: BTreeMap<Actor, u64>,
    wishes: u64,
    pub(crate) conversations: BTreeMap<(String, String), Conversation>,
    /// Lists of orders so far.
    pub(crate) orders: u64,
    /// Orders to run a task that are on their way, by UID of the pod.
    pub(crate) doubts: BTreeMap<String, u32>,
    /// Tasks that an executor has shown: they are not ordered again.
    pub(crate) shown: BTreeSet<String>,
}

fn facts() -> Arc<InjectionFacts> {
    Arc::new(InjectionFacts {
        namespace_label: None,
        default: sidecar::InjectionDefault::Enabled,
        settings: sidecar::Settings::built_in(),
    })
}

impl World {
    /// The replica with this number, if it is the one that is there.
    pub(crate) fn live(&mut self, id: u32) -> Option<&mut Replica> {
        self.replica.as_mut().filter(|replica| replica.id == id)
    }

    /// A replica comes up with the lease in its hand, or restarts.
    pub(crate) fn start(&mut self, fence: Option<String>) {
        self.replicas += 1;
        let id = self.replicas;
        self.say(|| format!("replica {id} starts, fence {fence:?}"));
        self.replica = Some(Replica {
            id,
            fence,
            leads: false,
            pools: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            pods: BTreeMap::new(),
            position: BTreeMap::new(),
            busy: BTreeSet::new(),
            ledgers: BTreeMap::new(),
            machines: BTreeMap::new(),
            heard: BTreeMap::new(),
            mail: BTreeMap::new(),
            wakes: BTreeMap::new(),
            wishes: 0,
            conversations: BTreeMap::new(),
            orders: 0,
            doubts: BTreeMap::new(),
            shown: BTreeSet::new(),
        });
        for kind in Kind::ALL {
            let wait = self.rng.between(1, 100);
            self.after(wait, Event::List(id, kind));
        }
        self.after(101, Event::Lead(id));
    }

    pub(crate) fn list(&mut self, id: u32, kind: Kind) {
        let position = self.store.log(kind).len();
        let objects: Vec<Entry> = self.store.entries(kind).collect();
        let Some(replica) = self.live(id) else { return };
        replica.position.insert(kind, position);
        for entry in &objects {
            replica.cache(kind, entry);
        }
    }

    /// Everything is listed: from now on it decides.
    pub(crate) fn lead(&mut self, id: u32) {
        let seed = self.rng.next();
        let Some(replica) = self.live(id) else { return };
        let mut names: BTreeSet<String> = replica.pools.keys().cloned().collect();
        names.extend(replica.pods.values().filter_map(|pod| pod.pool.clone()));
        let statements = replica.sandboxes.values();
        names.extend(statements.filter_map(|view| Some(sandbox::statement(view)?.0)));
        let stated: Vec<Statement> = names
            .iter()
            .flat_map(|name| replica.found(name, seed))
            .collect();
        let mut first = Vec::new();
        for view in replica.sandboxes.clone().into_values() {
            first.push(replica.meet(&view));
        }
        replica.leads = true;
        for name in replica.ledgers.keys() {
            first.push((Actor::Pool(name.clone()), Mail::Pool(pool::Input::Wake)));
        }
        let maxima: Vec<(String, i32)> = replica.maxima().collect();
        for (pool, maximum) in maxima {
            self.check.saw_maximum(&pool, maximum);
        }
        self.check.note_start(&stated);
        self.say(|| format!("replica {id} leads"));
        for (actor, mail) in first {
            self.post(id, actor, mail);
        }
    }

    /// There is something new for a watch to deliver.
    pub(crate) fn expect_watch(&mut self, kind: Kind) {
        let wait = self.latency();
        let Some(replica) = &mut self.replica else {
            return;
        };
        let id = replica.id;
        if replica.position.contains_key(&kind) && replica.busy.insert(kind) {
            self.after(wait, Event::Watch(id, kind));
        }
    }

    /// The watch of a kind delivers one change, or, after a break, how things stand now.
    pub(crate) fn deliver(&mut self, id: u32, kind: Kind) {
        let breaks = self.fault(10);
        let repeats = self.fault(30);
        let end = self.store.log(kind).len();
        let Some(replica) = self.live(id) else { return };
        replica.busy.remove(&kind);
        let Some(&position) = replica.position.get(&kind) else {
            return;
        };
        let mut entries = Vec::new();
        if breaks {
            replica.position.insert(kind, end);
            entries = self.difference(kind);
        } else if position < end {
            entries.push(self.store.log(kind)[position].clone());
            if let Some(replica) = self.live(id).filter(|_| !repeats) {
                replica.position.insert(kind, position + 1);
            }
        }
        for entry in entries {
            let mails = match self.live(id) {
                Some(replica) => replica.cache(kind, &entry),
                None => Vec::new(),
            };
            for (actor, mail) in mails {
                self.post(id, actor, mail);
            }
        }
        if self
            .live(id)
            .is_some_and(|replica| replica.position.get(&kind) < Some(&end))
        {
            self.expect_watch(kind);
        }
    }

    /// What a list says after a watch broke: everything there is, and what is not there any more.
    fn difference(&self, kind: Kind) -> Vec<Entry> {
        let Some(replica) = &self.replica else {
            return Vec::new();
        };
        let known: Vec<&String> = match kind {
            Kind::Pool => replica.pools.keys().collect(),
            Kind::Sandbox => replica.sandboxes.keys().collect(),
            Kind::Pod => replica.pods.keys().collect(),
        };
        let log = self.store.log(kind);
        let vanished = known
            .into_iter()
            .filter(|name| self.store.get(kind, name).is_none());
        let gone = vanished.filter_map(|name| {
            let last = log
                .iter()
                .rev()
                .find(|entry| entry.gone && entry.name == *name)?;
            Some(last.clone())
        });
        gone.chain(self.store.entries(kind)).collect()
    }

    /// Puts a message into a mailbox.
    pub(crate) fn post(&mut self, id: u32, actor: Actor, mail: Mail) {
        let wait = self.rng.between(0, 2);
        let seed = self.rng.next();
        let Some(replica) = self.live(id) else { return };
        let mut founded = None;
        match &actor {
            Actor::Pool(name) => {
                if !replica.ledgers.contains_key(name) {
                    let stated = replica.found(name, seed);
                    let maximum = replica.pools.get(name).map(|view| maximum(view));
                    founded = Some((name.clone(), maximum.unwrap_or(0), stated));
                }
            }
            Actor::Sandbox(uid) if !replica.machines.contains_key(uid) => return,
            Actor::Sandbox(_) => {}
        }
        replica
            .mail
            .entry(actor.clone())
            .or_default()
            .push_back(mail);
        if let Some((name, maximum, stated)) = founded {
            self.check.saw_maximum(&name, maximum);
            self.check.note_start(&stated);
        }
        self.after(wait, Event::Turn(id, actor));
    }

    pub(crate) fn wake(&mut self, id: u32, actor: Actor, token: u64) {
        let Some(replica) = self.live(id) else { return };
        if replica.wakes.get(&actor) != Some(&token) {
            return;
        }
        replica.wakes.remove(&actor);
        let mail = match actor {
            Actor::Pool(_) => Mail::Pool(pool::Input::Wake),
            Actor::Sandbox(_) => Mail::Sandbox(sandbox::Input::Wake),
        };
        self.post(id, actor, mail);
    }

    fn wish(&mut self, id: u32, actor: &Actor, time: Timestamp) {
        let wait = self.millis_until(time);
        let Some(replica) = self.live(id) else { return };
        replica.wishes += 1;
        let token = replica.wishes;
        replica.wakes.insert(actor.clone(), token);
        self.after(wait, Event::Wake(id, actor.clone(), token));
    }

    /// An actor takes one message and does what follows.
    pub(crate) fn turn(&mut self, id: u32, actor: &Actor) {
        let now = self.time();
        let Some(replica) = self.live(id) else { return };
        let Some(mail) = replica.mail.get_mut(actor).and_then(VecDeque::pop_front) else {
            return;
        };
        if let (Actor::Pool(name), Mail::Pool(pool::Input::Pool(view))) = (actor, &mail) {
            let maximum = maximum(view);
            let name = name.clone();
            self.check.saw_maximum(&name, maximum);
        }
        let Some(replica) = self.live(id) else { return };
        let mail = match (actor, mail) {
            (Actor::Sandbox(uid), Mail::Report(serial, report)) => {
                // A report of before the last change of the order says nothing about it.
                let key = (uid.clone(), report.pod_uid.clone());
                match replica.conversations.get(&key) {
                    Some(conversation) if conversation.is_for(serial) => {}
                    _ => return,
                }
                Mail::Sandbox(sandbox::Input::Report(report))
            }
            (_, mail) => mail,
        };
        self.say(|| format!("{} <- {}", actor.name(), Line(&mail)));
        let Some(replica) = self.live(id) else { return };
        match (actor, mail) {
            (Actor::Pool(name), Mail::Pool(input)) => {
                let Some(ledger) = replica.ledgers.get_mut(name) else {
                    return;
                };
                match catch_unwind(AssertUnwindSafe(|| ledger.handle(input, now))) {
                    Ok(outputs) => self.perform_pool(id, name, outputs),
                    Err(_) => self.check.fail(format!("the ledger of {name} panicked")),
                }
            }
            (Actor::Sandbox(uid), Mail::Sandbox(input)) => {
                replica.hears(uid, &input);
                let Some((name, machine)) = replica.machines.get_mut(uid) else {
                    return;
                };
                let name = name.clone();
                match catch_unwind(AssertUnwindSafe(|| machine.handle(input, now))) {
                    Ok(outputs) => self.perform_sandbox(id, &name, uid, outputs),
                    Err(_) => self.check.fail(format!("the machine of {name} panicked")),
                }
            }
            (Actor::Pool(_), Mail::Sandbox(_) | Mail::Report(..))
            | (Actor::Sandbox(_), Mail::Pool(_) | Mail::Report(..)) => {
                self.check.fail("the simulation mixed mailboxes up");
            }
        }
    }

    fn perform_pool(&mut self, id: u32, pool: &str, outputs: Vec<pool::Output>) {
        let actor = Actor::Pool(pool.to_owned());
        for output in outputs {
            self.say(|| format!("pool {pool} -> {}", Line(&output)));
            let op = match output {
                pool::Output::CreatePod { name, pod } => {
                    self.check_creation(id, pool, &name, &pod);
                    Op::CreatePod { name, pod }
                }
                pool::Output::Retire {
                    name,
                    uid,
                    version,
                    reason,
                } => Op::Retire {
                    name,
                    uid,
                    version,
                    reason,
                },
                pool::Output::DeletePod {
                    name,
                    uid,
                    version,
                    reason,
                } => Op::DeletePod {
                    name,
                    uid,
                    version,
                    reason,
                },
                pool::Output::Restart {
                    name,
                    uid,
                    version,
                    containers,
                    command: _,
                    record,
                } => Op::Restart {
                    name,
                    uid,
                    version,
                    containers,
                    record,
                },
                pool::Output::WriteStatus { version, status } => Op::PoolStatus {
                    name: pool.to_owned(),
                    version,
                    status,
                },
                pool::Output::ToSandbox { sandbox, message } => {
                    if let FromPool::Grant { pods, .. } = &message {
                        self.check_grant(pool, &sandbox, pods);
                    }
                    let mail = Mail::Sandbox(sandbox::Input::Pool(message));
                    self.post(id, Actor::Sandbox(sandbox.uid), mail);
                    continue;
                }
                pool::Output::WakeAt(time) => {
                    self.wish(id, &actor, time);
                    continue;
                }
                pool::Output::Event(_) | pool::Output::Note(_) => continue,
            };
            self.issue(id, actor.clone(), op);
        }
    }

    fn perform_sandbox(&mut self, id: u32, name: &str, uid: &str, outputs: Vec<sandbox::Output>) {
        let actor = Actor::Sandbox(uid.to_owned());
        let owned = || name.to_owned();
        for output in outputs {
            self.say(|| format!("{name} -> {}", Line(&output)));
            let op = match output {
                sandbox::Output::Write(write) => Op::Sandbox {
                    name: owned(),
                    write,
                },
                sandbox::Output::WriteStatus(write) => Op::SandboxStatus {
                    name: owned(),
                    write,
                },
                sandbox::Output::Delete { version } => Op::DeleteSandbox {
                    name: owned(),
                    version,
                },
                sandbox::Output::Read => Op::Read { name: owned() },
                sandbox::Output::CreatePod { name, pod } => Op::CreatePod { name, pod },
                sandbox::Output::DeletePod { name, uid, reason } => Op::DeletePod {
                    name,
                    uid,
                    version: None,
                    reason,
                },
                sandbox::Output::Assign => {
                    let answer = self.assign();
                    let wait = self.latency();
                    let mail = Box::new(Mail::Sandbox(sandbox::Input::Assigned(answer)));
                    self.after(wait, Event::Answer(id, actor.clone(), mail));
                    continue;
                }
                sandbox::Output::ToPool { pool, message } => {
                    let heard = self.live(id).map(|replica| replica.heard_of(uid));
                    self.check_message(&pool, &message, heard.unwrap_or_default());
                    let mail = Mail::Pool(pool::Input::Sandbox(message));
                    self.post(id, Actor::Pool(pool), mail);
                    continue;
                }
                sandbox::Output::Sessions(orders) => {
                    self.set_orders(id, uid, orders);
                    continue;
                }
                sandbox::Output::WakeAt(time) => {
                    self.wish(id, &actor, time);
                    continue;
                }
                sandbox::Output::Done => {
                    if let Some(replica) = self.live(id) {
                        replica.machines.remove(uid);
                        replica.heard.remove(uid);
                        replica.mail.remove(&actor);
                        replica.wakes.remove(&actor);
                        replica.conversations.retain(|(of, _), _| of != uid);
                    }
                    return;
                }
                sandbox::Output::Event(_) | sandbox::Output::Note(_) => continue,
            };
            self.issue(id, actor.clone(), op);
        }
    }

    /// A pool for `poolRef: "*"`.
    fn assign(&mut self) -> Result<String, String> {
        let names: Vec<String> = match &self.replica {
            Some(replica) => replica.pools.keys().cloned().collect(),
            None => Vec::new(),
        };
        let chosen = self.rng.pick(&names).cloned();
        chosen.ok_or_else(|| "there is no pool".to_owned())
    }
}

impl Replica {
    /// Takes a change into the caches. Says who has to hear of it.
    fn cache(&mut self, kind: Kind, entry: &Entry) -> Vec<(Actor, Mail)> {
        let Entry { name, object, gone } = entry;
        let mut mails = Vec::new();
        match kind {
            Kind::Pool => {
                let input = if *gone {
                    self.pools.remove(name);
                    pool::Input::PoolAbsent
                } else {
                    let view = Arc::new(views::pool(object));
                    self.pools.insert(name.clone(), Arc::clone(&view));
                    pool::Input::Pool(view)
                };
                mails.push((Actor::Pool(name.clone()), Mail::Pool(input)));
            }
            Kind::Sandbox => {
                let uid = store::uid(object).to_owned();
                let before = self.sandboxes.get(name).map(|view| view.uid.clone());
                if *gone {
                    self.sandboxes.remove(name);
                    let mail = Mail::Sandbox(sandbox::Input::Absent);
                    mails.push((Actor::Sandbox(uid), mail));
                } else {
                    let view = Arc::new(views::sandbox(object));
                    self.sandboxes.insert(name.clone(), Arc::clone(&view));
                    if let Some(before) = before.filter(|before| *before != uid) {
                        let mail = Mail::Sandbox(sandbox::Input::Absent);
                        mails.push((Actor::Sandbox(before), mail));
                    }
                    if self.machines.contains_key(&uid) {
                        let mail = Mail::Sandbox(sandbox::Input::Object(view));
                        mails.push((Actor::Sandbox(uid), mail));
                    } else if self.leads {
                        mails.push(self.meet(&view));
                    }
                }
            }
            Kind::Pod => {
                let view = Arc::new(views::pod(object));
                if *gone {
                    self.pods.remove(name);
                } else {
                    self.pods.insert(name.clone(), Arc::clone(&view));
                }
                if let Some(pool) = &view.pool {
                    let input = if *gone {
                        pool::Input::PodGone {
                            name: name.clone(),
                            uid: view.uid.clone(),
                        }
                    } else {
                        pool::Input::Pod(Arc::clone(&view))
                    };
                    mails.push((Actor::Pool(pool.clone()), Mail::Pool(input)));
                }
                if let Some(owner) = view
                    .owner
                    .as_ref()
                    .filter(|owner| owner.kind == "BatchSandbox")
                {
                    let input = if *gone {
                        sandbox::Input::PodGone {
                            name: name.clone(),
                            uid: view.uid.clone(),
                        }
                    } else {
                        sandbox::Input::Pod(Arc::clone(&view))
                    };
                    mails.push((Actor::Sandbox(owner.uid.clone()), Mail::Sandbox(input)));
                }
            }
        }
        if self.leads { mails } else { Vec::new() }
    }

    /// Makes the ledger of a pool from what the caches hold. Returns what the sandboxes said.
    fn found(&mut self, name: &str, seed: u64) -> Vec<Statement> {
        let pods = self.pods.values();
        let pods = pods.filter(|pod| pod.pool.as_deref() == Some(name));
        let statements = self.sandboxes.values();
        let statements: Vec<Statement> = statements
            .filter_map(|view| sandbox::statement(view))
            .filter(|(pool, _)| pool == name)
            .map(|(_, statement)| statement)
            .collect();
        let ledger = Ledger::new(
            ObjectKey::new(NAMESPACE, name),
            self.pools.get(name).cloned(),
            facts(),
            pods.cloned().collect(),
            statements.clone(),
            seed,
        );
        self.ledgers.insert(name.to_owned(), ledger);
        statements
    }

    /// Makes the machine of a BatchSandbox. Says what it has to hear first.
    fn meet(&mut self, view: &Arc<SandboxView>) -> (Actor, Mail) {
        let setting = Setting {
            injection: facts(),
            // Nobody can have claimed for an object that was made later.
            fence: self.fence.clone().filter(|_| !self.leads),
            upstream_executors: false,
        };
        let pods = self.pods.values().filter(|pod| {
            let owner = pod.owner.as_ref();
            owner.is_some_and(|owner| owner.uid == view.uid)
        });
        let machine = Machine::new(Arc::clone(view), pods.cloned().collect(), setting);
        self.machines
            .insert(view.uid.clone(), (view.key.name.clone(), machine));
        let input = sandbox::Input::Object(Arc::clone(view));
        (Actor::Sandbox(view.uid.clone()), Mail::Sandbox(input))
    }

    /// Notes the version of the object that its machine is told.
    fn hears(&mut self, uid: &str, input: &sandbox::Input) {
        let (sandbox::Input::Object(view)
        | sandbox::Input::Written(Ok(view))
        | sandbox::Input::StatusWritten(Ok(view))) = input
        else {
            return;
        };
        let heard = self.heard.entry(uid.to_owned()).or_default();
        *heard = view.version.max(*heard);
    }

    fn heard_of(&self, uid: &str) -> Version {
        self.heard.get(uid).copied().unwrap_or_default()
    }

    fn maxima(&self) -> impl Iterator<Item = (String, i32)> {
        let pools = self.pools.iter();
        pools.map(|(name, view)| (name.clone(), maximum(view)))
    }
}

fn maximum(view: &PoolView) -> i32 {
    view.spec
        .as_ref()
        .map_or(0, |spec| spec.capacity_spec.pool_max)
}
