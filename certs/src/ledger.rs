//! What the Secret says, reduced to names: which authority signs, which one is coming, which ones
//! are still trusted; and the changes that can be made to it.
//!
//! Pure data. In: [`Change`]s that the planner chose; out: the next ledger. It knows neither keys
//! nor certificates (see `secret` for those) and needs no client.

use std::time::Duration;

use jiff::Timestamp;

use crate::bundle::Fingerprint;
use crate::clock::{earlier, until};

/// How many retired authorities are remembered. Nine certificates of about 600 bytes keep every
/// `caBundle` below 6 kB; a rotation beyond that waits until the oldest is dropped.
pub const MAX_RETIRED: usize = 8;

/// An authority: its name and its validity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ca {
    /// Names the certificate.
    pub id: Fingerprint,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
}

impl Ca {
    /// Whether clients accept it at `now`.
    pub fn valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// When it is to be rotated, as [`Timing::authority_renew_before`](crate::view::Timing) has it.
    /// Where that says nothing, the last fifth of its life is left for the rotation: at one year, 73
    /// days in which somebody may notice that it does not work.
    pub(crate) fn due_at(&self, renew_before: Option<Duration>) -> Timestamp {
        let left = renew_before.unwrap_or_else(|| until(self.not_before, self.not_after) / 5);
        earlier(self.not_after, left).max(self.not_before)
    }
}

/// An authority that signs no more but may still be needed to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// Names the certificate.
    pub id: Fingerprint,
    /// When it was last known to sign.
    pub since: Timestamp,
    /// Set once it has to leave the bundles; the entry goes when it has left all of them. Until
    /// then it tells "dropped on purpose" from "unknown", so nobody takes it up again.
    pub dropped: bool,
}

/// The state all replicas share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Signs. Was published everywhere for the settling time before it got here.
    pub current: Option<Ca>,
    /// Published, but nothing is signed with it yet.
    pub next: Option<Ca>,
    /// Oldest first.
    pub retired: Vec<Retired>,
    /// The last rotation request that was handled.
    pub handled: Option<String>,
}

/// One change of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Make an authority and sign with it at once: nothing is published that it could break.
    NewCurrent,
    /// Make an authority and publish it first.
    NewNext,
    /// The request with this value is done (the value is the user's).
    Handled(String),
    /// `next` signs from now on; `current` is retired.
    Promote,
    /// `current` was not published anywhere though others are: it has to wait like any `next`.
    Demote,
    /// `next` is of no use; as it was published it is retired.
    Discard,
    /// A certificate that is published, or in use by this replica, but not in the ledger.
    Adopt(Fingerprint),
    /// Nothing it signed is served any more.
    Drop(Fingerprint),
    /// Dropped, and gone from all bundles.
    Forget(Fingerprint),
    /// Its retirement begins now: it is still in use, or was dated by a clock that ran ahead.
    Redate(Fingerprint),
}

impl Ledger {
    /// Nobody signs and nobody will.
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.next.is_none()
    }

    /// What has to be published: a function of the ledger and nothing else, so replicas agree.
    pub fn bundle(&self) -> Vec<Fingerprint> {
        let signing = self.current.iter().chain(&self.next).map(|ca| ca.id);
        let kept = self.retired.iter().filter(|retired| !retired.dropped);
        signing.chain(kept.map(|retired| retired.id)).collect()
    }

    /// Whether the ledger has an entry for it, be it only "dropped".
    pub fn knows(&self, id: Fingerprint) -> bool {
        self.signs(id)
            || self.next.as_ref().is_some_and(|ca| ca.id == id)
            || self.retired(id).is_some()
    }

    /// Whether it is the one that signs.
    pub fn signs(&self, id: Fingerprint) -> bool {
        self.current.as_ref().is_some_and(|ca| ca.id == id)
    }

    /// Its entry among the retired.
    pub fn retired(&self, id: Fingerprint) -> Option<&Retired> {
        self.retired.iter().find(|retired| retired.id == id)
    }

    /// Room for one more rotation.
    pub(crate) fn has_room(&self) -> bool {
        self.retired.len() < MAX_RETIRED
    }

    /// Carries out one change at wall time `now`; `make` makes an authority.
    pub fn apply<E>(
        &mut self,
        change: &Change,
        now: Timestamp,
        make: &mut dyn FnMut() -> Result<Ca, E>,
    ) -> Result<(), E> {
        match change {
            Change::NewCurrent => {
                let fresh = make()?;
                self.retire(self.current.as_ref().map(|ca| ca.id), now);
                self.current = Some(fresh);
            }
            Change::NewNext => {
                let fresh = make()?;
                self.retire(self.next.as_ref().map(|ca| ca.id), now);
                self.next = Some(fresh);
            }
            Change::Handled(value) => self.handled = Some(value.clone()),
            Change::Promote => {
                if let Some(next) = self.next.take() {
                    if self.current.is_none() {
                        // Replicas that hold one of these had no successor to change to until now.
                        let kept = self.retired.iter_mut().filter(|entry| !entry.dropped);
                        kept.for_each(|entry| entry.since = now);
                    }
                    self.retire(self.current.as_ref().map(|ca| ca.id), now);
                    self.retired.retain(|retired| retired.id != next.id);
                    self.current = Some(next);
                }
            }
            Change::Demote => {
                if let Some(current) = self.current.take() {
                    self.retire(self.next.as_ref().map(|ca| ca.id), now);
                    self.next = Some(current);
                }
            }
            Change::Discard => {
                let discarded = self.next.take();
                self.retire(discarded.map(|ca| ca.id), now);
            }
            Change::Adopt(id) => {
                if !self.knows(*id) {
                    self.retire(Some(*id), now);
                }
            }
            Change::Drop(id) => self.entry(*id, |retired| retired.dropped = true),
            Change::Redate(id) => self.entry(*id, |retired| retired.since = now),
            Change::Forget(id) => self.retired.retain(|retired| retired.id != *id),
        }
        Ok(())
    }

    fn entry(&mut self, id: Fingerprint, edit: impl FnOnce(&mut Retired)) {
        if let Some(retired) = self.retired.iter_mut().find(|retired| retired.id == id) {
            edit(retired);
        }
    }

    fn retire(&mut self, id: Option<Fingerprint>, now: Timestamp) {
        let Some(id) = id else { return };
        self.retired.retain(|retired| retired.id != id);
        self.retired.push(Retired {
            id,
            since: now,
            dropped: false,
        });
    }
}
