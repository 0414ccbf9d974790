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
//!    Secret and does what follows from it at least once per `slack`. So it sees the retirement and
//!    signs with the successor; or, if its clock makes the successor useless, dates the retirement
//!    anew;
//! 5. no replica begins to sign with a retired authority, whatever the clock does to the others: it
//!    may be dropped at that moment, or have left the bundles and come back between two looks.
//!
//! A replica whose calls fail for longer than `slack` may break 4; it goes on serving, because the
//! alternative is to fail at once. Nor does 3 hold when the Secret is lost while more than
//! [`MAX_RETIRED`] authorities are published: what does not fit into a new one leaves the bundles.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::bundle::Fingerprint;
use crate::clock::{Now, later, until};
use crate::ledger::{Ca, Change, Ledger, MAX_RETIRED};
pub use crate::view::Timing;
use crate::view::{Bundles, Held, Memory, Secret, View};

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
                && !unsettled(base, view, memory)
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
    let ledger = view.secret.usable().or(memory.ledger.as_ref())?;
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
    // The clock left it behind, or jumped back before its birth. One that is valid and settled is
    // better, though not a retired one, see the invariant: its successor settles in seconds.
    current
        .into_iter()
        .chain(next)
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

/// The current authority was never published: the Secret was replaced. What this replica has seen
/// to be good and somebody took from the bundles is another matter: that is put back at once.
fn unsettled(ledger: &Ledger, view: &View, memory: &Memory) -> bool {
    let Some(current) = &ledger.current else {
        return false;
    };
    let replaced = memory
        .leaf
        .as_ref()
        .is_some_and(|leaf| memory.trusted.contains(&leaf.ca) && !ledger.knows(leaf.ca));
    let never = replaced || view.bundles.contradict(current.id);
    never && !memory.trusted.contains(&current.id)
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
    // What is restored from memory may be older than what this replica wrote itself.
    let restored = view.secret.usable().is_none()
        && !(bundles.complete && bundles.all_empty())
        && base
            .current
            .as_ref()
            .is_some_and(|ca| !memory.trusted.contains(&ca.id));
    if restored || bundles.complete && unsettled(base, view, memory) {
        changes.push(Change::Demote);
        return changes;
    }
    // Replicas whose clocks disagree could replace each other's authorities for ever; this makes
    // it slow. A request by a person is not held back.
    let may_make = memory
        .made
        .is_none_or(|made| made + timing.check_interval <= now.mono);
    // Retired ones go only while one signs; until then the limit must not stand in the way.
    let room = base.has_room() || base.current.is_none();
    match (&base.next, &base.current) {
        (None, current) => {
            let due = current.as_ref().is_none_or(|ca| {
                now.wall >= ca.due_at(timing.authority_renew_before) || !ca.valid_at(now.wall)
            });
            if (unhandled.is_some() || due && may_make) && room {
                changes.push(Change::NewNext);
                changes.extend(unhandled.map(|value| Change::Handled(value.to_owned())));
            } else if unhandled.is_some() || due {
                waiting.push("the next authority has to wait for the last rotation".to_owned());
            }
        }
        (Some(next), _) => {
            changes.extend(unhandled.map(|value| Change::Handled(value.to_owned())));
            if !next.valid_at(now.wall) {
                if may_make && room {
                    changes.push(Change::Discard);
                    changes.push(Change::NewNext);
                }
            } else if bundles.complete && memory.settled(next.id, timing, now) && room {
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

#[cfg(test)]
mod tests;
