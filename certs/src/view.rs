//! What the planner of the self-managed mode decides on: what was read, what a replica remembers, and
//! the durations.
//!
//! Pure data, names instead of certificates. [`Memory::observe`] is the only thing that happens here:
//! it turns one look at the API server into "since when". Needs no client.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::bundle::Fingerprint;
use crate::clock::{Now, earlier, until};
use crate::ledger::{Ca, Ledger};

/// All durations of the self-managed mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Life of an authority. Default 365 days.
    pub authority: Duration,
    /// An authority is rotated when this much of its life is left. Default: a fifth of it.
    pub authority_renew_before: Option<Duration>,
    /// Life of a leaf. Default 24 hours.
    pub leaf: Duration,
    /// A leaf is renewed when this much of its life is left. Default: a third of it.
    pub leaf_renew_before: Option<Duration>,
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
            authority_renew_before: None,
            leaf: Duration::from_hours(24),
            leaf_renew_before: None,
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
    pub(crate) fn anywhere(&self, id: Fingerprint) -> bool {
        self.entries.iter().any(|entry| entry.contains(&id))
    }

    pub(crate) fn everywhere(&self, id: Fingerprint) -> bool {
        self.entries.iter().all(|entry| entry.contains(&id))
    }

    /// Somebody may verify with a bundle that lacks it.
    pub(crate) fn contradict(&self, id: Fingerprint) -> bool {
        let mut filled = self.entries.iter().filter(|entry| !entry.is_empty());
        filled.any(|entry| !entry.contains(&id))
    }

    pub(crate) fn all_empty(&self) -> bool {
        self.entries.iter().all(BTreeSet::is_empty)
    }
}

/// The Secret as read.
#[expect(
    clippy::large_enum_variant,
    reason = "one value per look, and nearly always the large one"
)]
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

impl Secret {
    /// The ledger, if it can be relied on.
    pub(crate) fn usable(&self) -> Option<&Ledger> {
        match self {
            Self::Present {
                ledger,
                malformed: false,
                ..
            } if !ledger.is_empty() => Some(ledger),
            _ => None,
        }
    }
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
    /// When it is to be renewed.
    pub renew_at: Timestamp,
}

impl Held {
    /// A leaf that was signed at `now`, to be renewed as [`Timing::leaf_renew_before`] has it.
    pub fn new(
        ca: Fingerprint,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Timestamp,
        renew_before: Option<Duration>,
    ) -> Self {
        let left = renew_before.unwrap_or_else(|| until(now, not_after) / 3);
        Self {
            ca,
            not_before,
            not_after,
            renew_at: earlier(not_after, left).max(now),
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
    /// Takes in what was read; before the planner.
    pub fn observe(&mut self, view: &View, now: Now) {
        if let Some(ledger) = view.secret.usable() {
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
        if let Some(ledger) = view.secret.usable()
            && let Some(current) = &ledger.current
            && view.bundles.complete
            && view.bundles.everywhere(current.id)
        {
            self.trusted.insert(current.id);
        }
    }

    pub(crate) fn settled(&self, id: Fingerprint, timing: &Timing, now: Now) -> bool {
        self.settling
            .get(&id)
            .is_some_and(|since| *since + timing.settle <= now.mono)
    }
}
