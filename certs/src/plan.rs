//! Decides the next step of the self-managed mode: what to sign with, what to write into the
//! Secret, whether to publish.
//!
//! In: what was just read ([`View`]), what this replica remembers ([`Memory`]), the [`Timing`] and
//! both clocks; out: a [`Plan`], steps as data. Pure: no client, no key, no certificate.
//!
//! # Invariant
//!
//! A leaf is served (by a replica that is ready) only if its authority was in every published
//! bundle at least `settle` ago; an authority leaves the bundles only when no leaf signed by it
//! can still be served.
//!
//! It holds because
//!
//! 1. an authority signs only after it was `next`, was read back from every configuration, and
//!    stayed there for `settle` on the clock that does not jump ([`Change::Promote`]);
//! 2. the published bundle is a function of the ledger alone. A replica reads the configurations
//!    *before* the Secret and writes a bundle only onto the version it read. So whoever made that
//!    version had read an older Secret, and the bundles follow the versions of the Secret in order;
//! 3. a published certificate that the ledger does not know is taken into the ledger before
//!    anything is published, so a replaced or recreated Secret takes nothing away;
//! 4. a retired authority is dropped `leaf + 3 slack` after its retirement. Every replica reads the
//!    Secret at least once per `slack`, sees the retirement and signs with the successor at once;
//!    or, if its clock makes the successor useless, dates the retirement anew.
//!
//! A replica that cannot read the Secret for longer than `slack` may break 4; it goes on serving,
//! because the alternative is to fail at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::bundle::Fingerprint;
use crate::clock::{Now, later, until};
use crate::ledger::{Ca, Change, Ledger, MAX_RETIRED};

/// All durations of the self-managed mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Life of an authority; it is rotated when four fifths are over. Default 365 days.
    pub authority: Duration,
    /// Life of a leaf; it is renewed when two thirds are over. Default 24 hours.
    pub leaf: Duration,
    /// How far validity begins in the past, for clients whose clock is behind. Default 1 hour.
    pub skew: Duration,
    /// From "read back from every configuration" to "signs": API servers see configurations
    /// through a watch, and this bounds how late. Default 10 seconds.
    pub settle: Duration,
    /// How long a replica may go without reading the Secret. Default 1 hour.
    pub slack: Duration,
    /// Everything is looked at this often even when no watch event arrives. Default 1 minute.
    pub check_interval: Duration,
    /// A call to the API server is given up after this. Default 10 seconds.
    pub api_timeout: Duration,
    /// The handshake through the published bundle is repeated this often when nothing changes.
    /// Default 5 minutes.
    pub prove_interval: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            authority: Duration::from_hours(365 * 24),
            leaf: Duration::from_hours(24),
            skew: Duration::from_hours(1),
            settle: Duration::from_secs(10),
            slack: Duration::from_hours(1),
            check_interval: Duration::from_mins(1),
            api_timeout: Duration::from_secs(10),
            prove_interval: Duration::from_mins(5),
        }
    }
}

impl Timing {
    /// How long a retired authority stays trusted: the last leaf it may have signed, and the time
    /// the last replica needs to notice.
    pub fn overlap(&self) -> Duration {
        self.leaf + self.slack * 3
    }
}

/// What was read from the API server, configurations first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The published bundles.
    pub bundles: Bundles,
    /// The Secret.
    pub secret: Secret,
}

/// The published bundles as read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundles {
    /// One set per webhook of each configuration that could be read.
    pub entries: Vec<BTreeSet<Fingerprint>>,
    /// Configurations that do not exist.
    pub missing: usize,
    /// Every configuration was read or is known not to exist.
    pub complete: bool,
    /// At least one bundle is not what these sets render to (for example has text that is not a
    /// certificate), though the set may be right.
    pub unreadable: bool,
}

impl Bundles {
    fn anywhere(&self, id: Fingerprint) -> bool {
        self.entries.iter().any(|entry| entry.contains(&id))
    }

    fn everywhere(&self, id: Fingerprint) -> bool {
        self.entries.iter().all(|entry| entry.contains(&id))
    }

    /// Somebody may verify with a bundle that lacks it.
    fn contradict(&self, id: Fingerprint) -> bool {
        let mut filled = self.entries.iter().filter(|entry| !entry.is_empty());
        filled.any(|entry| !entry.contains(&id))
    }

    fn all_empty(&self) -> bool {
        self.entries.iter().all(BTreeSet::is_empty)
    }
}

/// The Secret as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Secret {
    /// It could not be read.
    #[default]
    Unknown,
    /// It does not exist.
    Absent,
    /// It exists.
    Present {
        /// The part of it that makes sense.
        ledger: Ledger,
        /// Something in it does not make sense.
        malformed: bool,
        /// The value of the annotation that asks for a rotation.
        rotate: Option<String>,
    },
}

/// The leaf this replica serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The authority that signed it.
    pub ca: Fingerprint,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// When two thirds of its life are over.
    pub renew_at: Timestamp,
}

impl Held {
    /// A leaf that was signed at `now`.
    pub fn new(
        ca: Fingerprint,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Self {
        let life = until(now, not_after);
        Self {
            ca,
            not_before,
            not_after,
            renew_at: later(now, life / 3 * 2),
        }
    }

    /// Whether clients accept it at `now`.
    pub fn valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// What one replica remembers; lost when it ends.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The last good Secret that was read or written.
    pub ledger: Option<Ledger>,
    /// Authorities whose key this replica has.
    pub keys: BTreeMap<Fingerprint, Ca>,
    /// The leaf it serves.
    pub leaf: Option<Held>,
    /// Since when (monotonic) an authority has been in all bundles at every look.
    pub settling: BTreeMap<Fingerprint, Duration>,
    /// Since when (monotonic) an authority has been retired, with the same date, at every look.
    pub retired: BTreeMap<(Fingerprint, Timestamp), Duration>,
    /// When (monotonic) this replica last made an authority because of the clock.
    pub made: Option<Duration>,
    /// Authorities that were seen as the current one and in all bundles: they have settled, and
    /// stay good while they are published.
    pub trusted: BTreeSet<Fingerprint>,
}

impl Memory {
    /// Takes in what was read; before [`plan`].
    pub fn observe(&mut self, view: &View, now: Now) {
        if let Secret::Present {
            ledger,
            malformed: false,
            ..
        } = &view.secret
            && !ledger.is_empty()
        {
            self.ledger = Some(ledger.clone());
        }
        let Some(ledger) = &self.ledger else { return };
        let retired = ledger.retired.iter();
        let retired: BTreeSet<_> = retired.map(|entry| (entry.id, entry.since)).collect();
        self.retired.retain(|id, _| retired.contains(id));
        for id in &retired {
            self.retired.entry(*id).or_insert(now.mono);
        }
        if view.bundles.complete {
            let held = self.leaf.as_ref().map(|leaf| leaf.ca);
            let asked: BTreeSet<_> = ledger.bundle().into_iter().chain(held).collect();
            self.settling
                .retain(|id, _| asked.contains(id) && view.bundles.everywhere(*id));
            for id in asked.into_iter().filter(|id| view.bundles.everywhere(*id)) {
                self.settling.entry(id).or_insert(now.mono);
            }
        }
        let held = self.leaf.as_ref().map(|leaf| leaf.ca);
        self.trusted
            .retain(|id| ledger.knows(*id) || held == Some(*id));
        if let Secret::Present {
            ledger,
            malformed: false,
            ..
        } = &view.secret
            && let Some(current) = &ledger.current
            && view.bundles.complete
            && view.bundles.everywhere(current.id)
        {
            self.trusted.insert(current.id);
        }
    }

    fn settled(&self, id: Fingerprint, timing: &Timing, now: Now) -> bool {
        self.settling
            .get(&id)
            .is_some_and(|since| *since + timing.settle <= now.mono)
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sign a leaf with this authority and serve it.
    Sign(Fingerprint),
    /// Create the Secret from this ledger with these changes.
    Create(Ledger, Vec<Change>),
    /// Replace the Secret, in the version read, by this ledger with these changes.
    Update(Ledger, Vec<Change>),
    /// Publish the bundle of the ledger read, on the configurations read.
    Publish,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// At most one. After [`Step::Sign`] plan again on the same view; after any other, which writes
    /// to the API server, read everything anew.
    pub step: Option<Step>,
    /// Look again after this time even if nothing happens.
    pub look_again: Duration,
    /// The leaf's authority has settled and is published in every configuration. `None`: cannot be
    /// told from this view.
    pub published: Option<bool>,
    /// Why something has to wait, for people.
    pub waiting: Vec<String>,
}

/// Decides the next step.
pub fn plan(view: &View, memory: &Memory, timing: &Timing, now: Now) -> Plan {
    let Now { wall, mono } = now;
    let mut waiting = Vec::new();
    let mut step = None;
    if let Some(ca) = signer(view, memory, timing, now)
        && must_sign(&ca, memory.leaf.as_ref(), wall)
    {
        // Alone: with another leaf in use the rest of the plan may look different.
        return Plan {
            step: Some(Step::Sign(ca.id)),
            look_again: Duration::ZERO,
            published: None,
            waiting,
        };
    }
    match &view.secret {
        Secret::Unknown => waiting.push("the Secret cannot be read".to_owned()),
        Secret::Absent => {
            let base = memory.ledger.clone().unwrap_or_default();
            let changes = changes(&base, None, view, memory, timing, now, &mut waiting);
            step = Some(Step::Create(base, changes));
        }
        Secret::Present {
            ledger,
            malformed,
            rotate,
        } => {
            // An emptied Secret is a deleted one: what is in memory is better than a new authority.
            let repair = *malformed || ledger.is_empty();
            let base = match &memory.ledger {
                Some(remembered) if repair => remembered,
                _ => ledger,
            };
            let unknown = unknown(base, view, memory);
            if !repair
                && unknown.is_empty()
                && out_of_date(base, &view.bundles)
                && unsettled(base, view, memory).is_none()
            {
                step = Some(Step::Publish);
            } else {
                let rotate = rotate.as_deref();
                let changes = changes(base, rotate, view, memory, timing, now, &mut waiting);
                if repair || !changes.is_empty() {
                    step = Some(Step::Update(base.clone(), changes));
                }
            }
        }
    }
    let settling = memory
        .ledger
        .iter()
        .flat_map(Ledger::bundle)
        .filter_map(|id| memory.settling.get(&id))
        .map(|since| (*since + timing.settle).saturating_sub(mono))
        .filter(|wait| !wait.is_zero());
    let renewal = memory.leaf.iter().map(|leaf| until(wall, leaf.renew_at));
    let look_again = settling
        .chain(renewal)
        .fold(timing.check_interval, Duration::min)
        // A deadline that has passed without a step must not turn the loop into a busy one.
        .max(Duration::from_millis(20));
    Plan {
        published: published(view, memory),
        step,
        look_again,
        waiting,
    }
}

/// The authority to sign with: the current one, unless this replica serves a leaf of another that
/// is still good and the current one is not known to be trusted yet.
fn signer(view: &View, memory: &Memory, timing: &Timing, now: Now) -> Option<Ca> {
    let ledger = match &view.secret {
        Secret::Present {
            ledger,
            malformed: false,
            ..
        } if !ledger.is_empty() => ledger,
        _ => memory.ledger.as_ref()?,
    };
    let has_key = |ca: &&Ca| memory.keys.contains_key(&ca.id);
    let current = ledger.current.as_ref().filter(has_key);
    let next = ledger.next.as_ref().filter(has_key);
    let held = memory
        .leaf
        .as_ref()
        .and_then(|leaf| memory.keys.get(&leaf.ca));
    if let (Some(held), Some(current)) = (held, current)
        && current.id != held.id
        && current.valid_at(now.wall)
    {
        let bundles = &view.bundles;
        // Retired means that the successor settled: either it was promoted, or whoever took the
        // retired one up looked at all bundles and demoted a successor that was in none. So this
        // holds whatever this replica can see of the bundles, and it must act at its first look.
        let retired = ledger.retired(held.id).is_some();
        let trusted = bundles.complete
            && bundles.everywhere(current.id)
            && (memory.settled(current.id, timing, now) || !bundles.everywhere(held.id));
        if retired || trusted {
            return Some(current.clone());
        }
    }
    let preferred = held.or(current).or(next)?;
    if preferred.valid_at(now.wall) {
        return Some(preferred.clone());
    }
    // The clock left it behind, or jumped back before its birth. Any authority that is valid and
    // trusted is better: after a jump back, the one before.
    let retired = ledger.retired.iter().rev();
    let retired = retired
        .filter(|entry| !entry.dropped)
        .filter_map(|entry| memory.keys.get(&entry.id));
    current
        .into_iter()
        .chain(next)
        .chain(retired)
        .find(|ca| ca.valid_at(now.wall) && memory.settled(ca.id, timing, now))
        .or(Some(preferred))
        .cloned()
}

fn must_sign(ca: &Ca, leaf: Option<&Held>, now: Timestamp) -> bool {
    let Some(leaf) = leaf else { return true };
    if leaf.ca != ca.id {
        return true;
    }
    // A leaf ends with its authority, so towards that end signing again would give the same.
    let renewable = now >= leaf.renew_at && leaf.not_after < ca.not_after;
    ca.valid_at(now) && (renewable || now < leaf.not_before)
}

/// Certificates that are published or used by this replica, and not in the ledger. Not more than
/// fit: beyond that somebody fills the bundles, and keeping the service up does not depend on it.
fn unknown(ledger: &Ledger, view: &View, memory: &Memory) -> Vec<Fingerprint> {
    let published = view.bundles.entries.iter().flatten().copied();
    let held = memory.leaf.iter().map(|leaf| leaf.ca);
    let mut unknown: Vec<_> = held
        .chain(published)
        .filter(|id| !ledger.knows(*id))
        .collect();
    let mut seen = BTreeSet::new();
    unknown.retain(|id| seen.insert(*id));
    unknown.truncate(MAX_RETIRED.saturating_sub(ledger.retired.len()));
    unknown
}

/// The current authority, if it is one that was never published: the Secret was replaced. What
/// this replica has seen to be good and somebody took from the bundles is another matter: that is
/// put back at once.
fn unsettled<'a>(ledger: &'a Ledger, view: &View, memory: &Memory) -> Option<&'a Ca> {
    let current = ledger.current.as_ref()?;
    let replaced = memory
        .leaf
        .as_ref()
        .is_some_and(|leaf| memory.trusted.contains(&leaf.ca) && !ledger.knows(leaf.ca));
    let never = replaced || view.bundles.contradict(current.id);
    (never && !memory.trusted.contains(&current.id)).then_some(current)
}

fn out_of_date(ledger: &Ledger, bundles: &Bundles) -> bool {
    let desired: BTreeSet<_> = ledger.bundle().into_iter().collect();
    bundles.unreadable || bundles.entries.iter().any(|entry| *entry != desired)
}

fn changes(
    base: &Ledger,
    rotate: Option<&str>,
    view: &View,
    memory: &Memory,
    timing: &Timing,
    now: Now,
    waiting: &mut Vec<String>,
) -> Vec<Change> {
    let bundles = &view.bundles;
    let unknown = unknown(base, view, memory);
    let adopted = !unknown.is_empty();
    let mut changes = Vec::new();
    // Only together with the look at all bundles that may demote the current one, see `signer`.
    if bundles.complete {
        changes.extend(unknown.into_iter().map(Change::Adopt));
    }
    let unhandled = rotate.filter(|value| base.handled.as_deref() != Some(*value));

    if base.is_empty() {
        let untouched = bundles.complete && bundles.all_empty() && !adopted;
        changes.push(if untouched {
            Change::NewCurrent
        } else {
            Change::NewNext
        });
        changes.extend(unhandled.map(|value| Change::Handled(value.to_owned())));
        return changes;
    }
    if bundles.complete && unsettled(base, view, memory).is_some() {
        changes.push(Change::Demote);
        return changes;
    }
    // Replicas whose clocks disagree could replace each other's authorities for ever; this makes
    // it slow. A request by a person is not held back.
    let may_make = memory
        .made
        .is_none_or(|made| made + timing.check_interval <= now.mono);
    match (&base.next, &base.current) {
        (None, current) => {
            let due = current
                .as_ref()
                .is_none_or(|ca| now.wall >= ca.due_at() || !ca.valid_at(now.wall));
            if (unhandled.is_some() || due && may_make) && base.has_room() {
                changes.push(Change::NewNext);
                changes.extend(unhandled.map(|value| Change::Handled(value.to_owned())));
            } else if unhandled.is_some() || due {
                waiting.push("the next authority has to wait for the last rotation".to_owned());
            }
        }
        (Some(next), _) => {
            changes.extend(unhandled.map(|value| Change::Handled(value.to_owned())));
            if !next.valid_at(now.wall) {
                if may_make && base.has_room() {
                    changes.push(Change::Discard);
                    changes.push(Change::NewNext);
                }
            } else if bundles.complete && memory.settled(next.id, timing, now) && base.has_room() {
                changes.push(Change::Promote);
            } else {
                waiting.push(format!(
                    "authority {} is published but has to settle",
                    next.id
                ));
            }
        }
    }
    changes.extend(base.retired.iter().filter_map(|retired| {
        let id = retired.id;
        if retired.dropped {
            return (bundles.complete && !bundles.anywhere(id)).then_some(Change::Forget(id));
        }
        if retired.since > later(now.wall, timing.skew) {
            return Some(Change::Redate(id));
        }
        let seen = memory.retired.get(&(id, retired.since));
        let seen = seen.map_or(Duration::ZERO, |since| now.mono.saturating_sub(*since));
        if memory.leaf.as_ref().is_some_and(|leaf| leaf.ca == id) {
            // Still in use, because the clock left its successor invalid: others must not drop it.
            // Not at every look, each of which the write would cause; see `noticed`.
            return (seen >= timing.slack / 2).then_some(Change::Redate(id));
        }
        let over = now.wall >= later(retired.since, timing.overlap());
        // Seen for so long as well: a wall clock that leapt must not cut the overlap short. A
        // replica that needs it sees it within one `slack` and redates it within one and a half more.
        let noticed = seen >= timing.slack * 3;
        (over && noticed && base.current.is_some()).then_some(Change::Drop(id))
    }));
    changes
}

fn published(view: &View, memory: &Memory) -> Option<bool> {
    let Some(leaf) = &memory.leaf else {
        return Some(false);
    };
    if !memory.trusted.contains(&leaf.ca) {
        return Some(false);
    }
    let bundles = &view.bundles;
    bundles
        .complete
        .then(|| bundles.missing == 0 && bundles.everywhere(leaf.ca))
}
