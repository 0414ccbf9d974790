//! A cluster reduced to what the rotation depends on: one Secret with compare-and-swap, two webhook
//! configurations with their history, replicas that read and write in single steps.

mod action;
mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use opensandbox_certs::bundle::Fingerprint;
use opensandbox_certs::clock::Now;
use opensandbox_certs::ledger::{Ca, Change, Ledger};
use opensandbox_certs::plan::{Step, plan};
use opensandbox_certs::view::{Bundles, Held, Memory, Secret, Timing, View};

pub(crate) use self::action::{Action, action};

pub(crate) const REPLICAS: usize = 3;
/// Webhooks of each configuration.
const CONFIGURATIONS: [usize; 2] = [2, 1];

fn timing() -> Timing {
    Timing {
        authority: Duration::from_mins(10),
        leaf: Duration::from_mins(1),
        skew: Duration::from_secs(30),
        settle: Duration::from_secs(10),
        slack: Duration::from_secs(20),
        check_interval: Duration::from_secs(5),
        ..Timing::default()
    }
}

type Entries = Vec<BTreeSet<Fingerprint>>;

/// What a configuration said from one moment to another.
#[derive(Debug, Clone)]
struct Version {
    entries: Entries,
    /// Written by somebody else: nobody can promise that it verifies anything.
    foreign: bool,
    until: Option<Duration>,
}

#[derive(Debug, Default)]
struct Configuration {
    resource_version: u64,
    exists: bool,
    history: Vec<Version>,
}

#[derive(Debug, Clone)]
pub(crate) struct Stored {
    resource_version: u64,
    pub(crate) ledger: Ledger,
    malformed: bool,
    rotate: Option<String>,
    /// Written by somebody else.
    foreign: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Replica {
    memory: Memory,
    pub(crate) published: bool,
    /// When a pass last came to its end: everything read, and nothing left to do.
    rested: Duration,
    /// Configurations read in this pass: version and content; `None` for a missing one.
    read: Vec<Option<(u64, Entries)>>,
    failed_reads: bool,
    pending: Option<(Step, Option<u64>, Ledger)>,
}

#[derive(Debug)]
pub(crate) struct World {
    mono: Duration,
    jumped: SignedDuration,
    pub(crate) secret: Option<Stored>,
    configurations: Vec<Configuration>,
    pub(crate) replicas: Vec<Option<Replica>>,
    authorities: BTreeMap<Fingerprint, Ca>,
    versions: u64,
    rotations: u32,
    backup: Entries,
    pub(crate) promotions: u32,
    pub(crate) drops: u32,
    pub(crate) unchecked: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            mono: Duration::from_secs(1000),
            jumped: SignedDuration::ZERO,
            secret: None,
            configurations: Vec::new(),
            replicas: (0..REPLICAS).map(|_| None).collect(),
            authorities: BTreeMap::new(),
            versions: 0,
            rotations: 0,
            backup: Vec::new(),
            promotions: 0,
            drops: 0,
            unchecked: false,
        };
        for webhooks in CONFIGURATIONS {
            world.configurations.push(Configuration::default());
            let index = world.configurations.len() - 1;
            world.write(index, vec![BTreeSet::new(); webhooks], true);
        }
        world
    }

    fn now(&self) -> Now {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let passed = SignedDuration::try_from(self.mono).expect("small");
        Now {
            wall: start + passed + self.jumped,
            mono: self.mono,
        }
    }

    fn version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    fn write(&mut self, index: usize, entries: Entries, foreign: bool) {
        let version = self.version();
        let mono = self.mono;
        let configuration = &mut self.configurations[index];
        configuration.resource_version = version;
        configuration.exists = true;
        if let Some(last) = configuration.history.last_mut() {
            last.until.get_or_insert(mono);
        }
        configuration.history.push(Version {
            entries,
            foreign,
            until: None,
        });
    }

    fn make(&mut self) -> Ca {
        let mut bytes = [0; 32];
        let number = self.authorities.len() as u64 + 1;
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let wall = self.now().wall;
        let ca = Ca {
            id: Fingerprint::from_bytes(bytes),
            not_before: wall - timing().skew,
            not_after: wall + timing().authority,
        };
        self.authorities.insert(ca.id, ca.clone());
        ca
    }

    /// One read or one write of a replica. Whether nothing is left to do.
    pub(crate) fn step(&mut self, index: usize, fail: bool) -> bool {
        let Some(mut replica) = self.replicas[index].take() else {
            return true;
        };
        let mut rests = false;
        if let Some((step, version, ledger)) = replica.pending.take() {
            self.carry_out(&mut replica, step, version, &ledger);
        } else if replica.read.len() < CONFIGURATIONS.len() {
            let configuration = &self.configurations[replica.read.len()];
            let read = configuration.exists.then(|| {
                let last = configuration.history.last().expect("one version");
                (configuration.resource_version, last.entries.clone())
            });
            replica.failed_reads |= fail;
            replica.read.push(if fail { None } else { read });
        } else if fail {
            replica.read.clear();
            replica.failed_reads = false;
        } else {
            self.decide(&mut replica);
            rests = replica.pending.is_none();
            if rests {
                replica.rested = self.mono;
            }
        }
        self.replicas[index] = Some(replica);
        rests
    }

    fn decide(&mut self, replica: &mut Replica) {
        let now = self.now();
        let found = replica.read.iter().flatten();
        let entries: Entries = found.flat_map(|(_, entries)| entries.clone()).collect();
        let missing = replica.read.iter().filter(|read| read.is_none()).count();
        let bundles = Bundles {
            entries,
            missing: if replica.failed_reads { 0 } else { missing },
            complete: !replica.failed_reads,
            unreadable: false,
        };
        let secret = match &self.secret {
            None => Secret::Absent,
            Some(stored) => {
                let ledger = if stored.malformed {
                    Ledger::default()
                } else {
                    stored.ledger.clone()
                };
                for ca in ledger.current.iter().chain(&ledger.next) {
                    replica.memory.keys.insert(ca.id, ca.clone());
                }
                Secret::Present {
                    ledger,
                    malformed: stored.malformed,
                    rotate: stored.rotate.clone(),
                }
            }
        };
        let view = View { bundles, secret };
        replica.memory.observe(&view, now);
        let mut next = plan(&view, &replica.memory, &timing(), now);
        for _ in 0..3 {
            let Some(Step::Sign(id)) = next.step else {
                break;
            };
            replica.memory.leaf = Some(self.sign(id));
            replica.memory.observe(&view, now);
            next = plan(&view, &replica.memory, &timing(), now);
        }
        assert!(
            !matches!(next.step, Some(Step::Sign(_))),
            "signs without end"
        );
        replica.published = next.published.unwrap_or(replica.published);
        match next.step {
            None => {
                replica.read.clear();
                replica.failed_reads = false;
            }
            Some(step) => {
                let version = self.secret.as_ref().map(|stored| stored.resource_version);
                let ledger = self.secret.as_ref().map(|stored| stored.ledger.clone());
                replica.pending = Some((step, version, ledger.unwrap_or_default()));
            }
        }
    }

    fn sign(&self, id: Fingerprint) -> Held {
        let wall = self.now().wall;
        let end = (wall + timing().leaf).min(self.authorities[&id].not_after);
        Held::new(id, wall - timing().skew, end, wall, None)
    }

    /// What a replica does from memory between two passes, and when no call is answered.
    fn local_look(&mut self, index: usize) {
        let now = self.now();
        let Some(mut replica) = self.replicas[index].take() else {
            return;
        };
        let next = plan(&View::default(), &replica.memory, &timing(), now);
        if let Some(Step::Sign(id)) = next.step {
            replica.memory.leaf = Some(self.sign(id));
        }
        self.replicas[index] = Some(replica);
    }

    fn carry_out(
        &mut self,
        replica: &mut Replica,
        step: Step,
        version: Option<u64>,
        published: &Ledger,
    ) {
        let read = std::mem::take(&mut replica.read);
        replica.failed_reads = false;
        match step {
            Step::Sign(_) => {}
            Step::Publish => {
                let bundle: BTreeSet<_> = published.bundle().into_iter().collect();
                for (index, read) in read.into_iter().enumerate() {
                    let Some((version, entries)) = read else {
                        continue;
                    };
                    let configuration = &self.configurations[index];
                    let same = configuration.exists && configuration.resource_version == version;
                    if same && entries.iter().any(|entry| *entry != bundle) {
                        self.write(index, vec![bundle.clone(); entries.len()], false);
                    }
                }
            }
            Step::Create(ledger, changes) | Step::Update(ledger, changes) => {
                let stored = self.secret.as_ref().map(|stored| stored.resource_version);
                let wall = self.now().wall;
                let mut ledger = ledger;
                for change in &changes {
                    let new = matches!(change, Change::NewCurrent | Change::NewNext);
                    let ca = new.then(|| self.make());
                    if let Some(ca) = &ca {
                        replica.memory.keys.insert(ca.id, ca.clone());
                        replica.memory.made = Some(self.mono);
                    }
                    let mut make = || ca.clone().ok_or(());
                    ledger.apply(change, wall, &mut make).expect("an authority");
                }
                if stored != version {
                    return;
                }
                self.promotions += u32::from(changes.contains(&Change::Promote));
                let dropped = |change: &Change| matches!(change, Change::Drop(_));
                self.drops += u32::from(changes.iter().any(dropped));
                let rotate = self.secret.take().and_then(|stored| stored.rotate);
                self.secret = Some(Stored {
                    resource_version: self.version(),
                    ledger,
                    malformed: false,
                    rotate,
                    foreign: false,
                });
            }
        }
    }

    /// A whole pass, undisturbed: what a timer or a watch event starts.
    pub(crate) fn pass(&mut self, index: usize) {
        let mut steps = 0;
        while !self.step(index, false) {
            steps += 1;
            assert!(steps < 60, "never rests: {:#?}", self.replicas[index]);
        }
    }

    pub(crate) fn advance(&mut self, seconds: u64) {
        for _ in 0..seconds {
            // The assumption of the invariant: a pass comes to its end at least once per slack.
            for index in 0..REPLICAS {
                let late = self.replicas[index].as_ref().is_some_and(|replica| {
                    self.mono + Duration::from_secs(1) >= replica.rested + timing().slack
                });
                if late {
                    self.pass(index);
                    self.check();
                }
            }
            self.mono += Duration::from_secs(1);
            self.check();
        }
    }

    pub(crate) fn act(&mut self, action: &Action) {
        match *action {
            Action::Advance(seconds) => self.advance(seconds),
            Action::Step(index, fail) => {
                self.step(index, fail);
            }
            Action::Pass(index) => self.pass(index),
            Action::LocalLook(index) => self.local_look(index),
            Action::Crash(index) => self.replicas[index] = None,
            Action::Start(index) => {
                let rested = self.mono;
                self.replicas[index].get_or_insert_with(|| Replica {
                    rested,
                    ..Replica::default()
                });
            }
            Action::DeleteSecret => self.secret = None,
            Action::ReplaceSecret => {
                let ledger = Ledger {
                    current: Some(self.make()),
                    ..Ledger::default()
                };
                self.secret = Some(Stored {
                    resource_version: self.version(),
                    ledger,
                    malformed: false,
                    rotate: None,
                    foreign: true,
                });
            }
            Action::SpoilSecret => {
                let version = self.version();
                if let Some(stored) = &mut self.secret {
                    stored.malformed = true;
                    stored.resource_version = version;
                }
            }
            Action::WipeBundle(index) if self.configurations[index].exists => {
                self.write(index, vec![BTreeSet::new(); CONFIGURATIONS[index]], true);
            }
            Action::RestoreBundle(index) if self.configurations[index].exists => {
                let entry = self.backup.first().cloned().unwrap_or_default();
                self.write(index, vec![entry; CONFIGURATIONS[index]], true);
            }
            Action::DeleteConfiguration(index) => {
                let mono = self.mono;
                let configuration = &mut self.configurations[index];
                configuration.exists = false;
                if let Some(last) = configuration.history.last_mut() {
                    last.until.get_or_insert(mono);
                }
            }
            Action::CreateConfiguration(index) if !self.configurations[index].exists => {
                self.write(index, vec![BTreeSet::new(); CONFIGURATIONS[index]], true);
            }
            Action::Jump(seconds) => self.jumped += SignedDuration::from_secs(seconds),
            Action::Rotate => {
                self.rotations += 1;
                let version = self.version();
                if let Some(stored) = &mut self.secret {
                    stored.rotate = Some(self.rotations.to_string());
                    stored.resource_version = version;
                }
                let last = self.configurations[0].history.last();
                self.backup = last.map(|last| last.entries.clone()).unwrap_or_default();
            }
            Action::WipeBundle(_) | Action::RestoreBundle(_) | Action::CreateConfiguration(_) => {}
        }
    }
}
