//! The sandboxes of a pool: what each said last, what it was told, and the queue of those that wait.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::backoff::Backoff;
use super::waiting::Told;
use crate::protocol::{SandboxRef, Statement};

/// Pods that were offered and not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) id: u64,
    pub(super) pods: Vec<String>,
    /// Whether the demand was met the moment it was heard of.
    pub(super) warm: bool,
}

/// A place in the queue: those that ask for more than the pool can ever hold come last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    oversize: bool,
    queued: Timestamp,
    pub(super) uid: String,
}

/// One sandbox.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) statement: Statement,
    pub(super) grant: Option<Grant>,
    /// Names of the pods that are reserved for it, held by it, or given back by it.
    pub(super) pods: BTreeSet<String>,
    /// Pods that it was told to be lost, as long as it names them.
    pub(super) lost: BTreeSet<String>,
    /// Pods that it was told to be recycled, as long as it names them.
    pub(super) recycled: BTreeSet<String>,
    /// Why it was told to wait.
    pub(super) told: Option<Told>,
    /// Since when its present demand is known here.
    pub(super) since: Option<Timestamp>,
    /// Whether its present demand could not be met at once.
    pub(super) waited: bool,
    /// Offers that it did not take.
    pub(super) declined: Backoff,
    /// Whether what it says comes from objects only: itself, it has not spoken yet.
    pub(super) unheard: bool,
    /// Its place in the queue, and what it lacked when it was put there.
    turn: Option<(Turn, u32)>,
    holds: BTreeSet<String>,
    returns: BTreeMap<String, bool>,
}

impl Member {
    pub(super) fn sandbox(&self) -> &SandboxRef {
        &self.statement.sandbox
    }

    /// How many pods it asks for and has not been offered.
    pub(super) fn lacking(&self) -> u32 {
        let offered = self.grant.as_ref().map_or(0, |grant| grant.pods.len());
        let offered = u32::try_from(offered).unwrap_or(u32::MAX);
        self.statement.wants.saturating_sub(offered)
    }

    /// Whether its statement names this pod.
    pub(super) fn names(&self, pod: &str) -> bool {
        self.holds(pod) || self.returned(pod).is_some()
    }

    pub(super) fn holds(&self, pod: &str) -> bool {
        self.holds.contains(pod)
    }

    /// Whether it gives this pod back, and if so whether clean.
    pub(super) fn returned(&self, pod: &str) -> Option<bool> {
        self.returns.get(pod).copied()
    }

    /// Takes in what it says now, and forgets what it was told of pods that this does not name.
    fn hear(&mut self, statement: Statement) {
        self.holds = statement.holds.iter().cloned().collect();
        self.returns = statement
            .returns
            .iter()
            .map(|returned| (returned.pod.clone(), returned.clean))
            .collect();
        self.lost.retain(|pod| self.holds.contains(pod));
        self.recycled.retain(|pod| self.returns.contains_key(pod));
        self.statement = statement;
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_uid: BTreeMap<String, Member>,
    queue: BTreeSet<Turn>,
    /// Sum of what those in the queue lack.
    lacking: u64,
    /// Sandboxes whose wait may have to be described anew.
    touched: BTreeSet<String>,
    /// Those that wait and have not spoken themselves; see [`super::Ledger::new`].
    provisional: BTreeSet<String>,
    /// Ends of the times in which those who declined are left alone.
    pauses: BTreeSet<(Timestamp, String)>,
}

impl Members {
    pub(super) fn get(&self, uid: &str) -> Option<&Member> {
        self.by_uid.get(uid)
    }

    /// For changes that do not move its place in the queue.
    pub(super) fn get_mut(&mut self, uid: &str) -> Option<&mut Member> {
        self.by_uid.get_mut(uid)
    }

    pub(super) fn uids(&self) -> Vec<String> {
        self.by_uid.keys().cloned().collect()
    }

    /// Takes in a statement.
    pub(super) fn state(&mut self, statement: Statement, unheard: bool) {
        let uid = statement.sandbox.uid.clone();
        if unheard && statement.wants > 0 {
            self.provisional.insert(uid.clone());
        } else {
            self.provisional.remove(&uid);
        }
        if let Some(member) = self.by_uid.get_mut(&uid) {
            member.unheard = unheard;
            if member.statement != statement {
                member.declined.reset();
                member.hear(statement);
            }
            return;
        }
        let mut member = Member {
            statement: statement.clone(),
            grant: None,
            pods: BTreeSet::new(),
            lost: BTreeSet::new(),
            recycled: BTreeSet::new(),
            told: None,
            since: None,
            waited: false,
            declined: Backoff::default(),
            unheard,
            turn: None,
            holds: BTreeSet::new(),
            returns: BTreeMap::new(),
        };
        member.hear(statement);
        self.by_uid.insert(uid, member);
    }

    /// Takes out a sandbox.
    pub(super) fn remove(&mut self, uid: &str) -> Option<Member> {
        let member = self.by_uid.remove(uid)?;
        self.provisional.remove(uid);
        if let Some((turn, lacked)) = &member.turn {
            self.queue.remove(turn);
            self.lacking -= u64::from(*lacked);
        }
        Some(member)
    }

    /// Changes what decides its place in the queue, and moves it there.
    pub(super) fn requeue(
        &mut self,
        uid: &str,
        pool_max: Option<u32>,
        now: Timestamp,
        change: impl FnOnce(&mut Member),
    ) {
        let Some(member) = self.by_uid.get_mut(uid) else {
            return;
        };
        change(member);
        self.touched.insert(uid.to_owned());
        self.place(uid, pool_max, now);
    }

    /// Puts it where it belongs.
    fn place(&mut self, uid: &str, pool_max: Option<u32>, now: Timestamp) {
        let Some(member) = self.by_uid.get_mut(uid) else {
            return;
        };
        if let Some((turn, lacked)) = member.turn.take() {
            self.queue.remove(&turn);
            self.lacking -= u64::from(lacked);
        }
        if member.statement.wants == 0 {
            member.since = None;
            member.waited = false;
        } else if member.since.is_none() {
            member.since = Some(now);
        }
        if member.lacking() == 0 {
            return;
        }
        if let Some(until) = member.declined.waits_until(now) {
            self.pauses.insert((until, uid.to_owned()));
            return;
        }
        let turn = Turn {
            oversize: pool_max.is_some_and(|most| member.statement.replicas > most),
            queued: member.statement.queued,
            uid: uid.to_owned(),
        };
        let lacking = member.lacking();
        self.lacking += u64::from(lacking);
        self.queue.insert(turn.clone());
        member.turn = Some((turn, lacking));
    }

    /// Puts back those whose time to be left alone is over.
    pub(super) fn end_pauses(&mut self, pool_max: Option<u32>, now: Timestamp) {
        while let Some((until, uid)) = self.pauses.first().cloned()
            && until <= now
        {
            self.pauses.pop_first();
            self.requeue(&uid, pool_max, now, |_| {});
        }
    }

    pub(super) fn next_pause(&self) -> Option<Timestamp> {
        self.pauses.first().map(|(until, _)| *until)
    }

    /// Orders the whole queue anew, because `poolMax` changed.
    pub(super) fn requeue_all(&mut self, pool_max: Option<u32>, now: Timestamp) {
        for uid in self.uids() {
            self.requeue(&uid, pool_max, now, |_| {});
        }
    }

    /// Who is next.
    pub(super) fn head(&self) -> Option<&Member> {
        self.queue.first().and_then(|turn| self.get(&turn.uid))
    }

    pub(super) fn queue(&self) -> impl Iterator<Item = &Turn> {
        self.queue.iter()
    }

    /// Whether a sandbox names this pod. Looks at all of them.
    pub(super) fn are_named(&self, pod: &str) -> bool {
        self.by_uid.values().any(|member| member.names(pod))
    }

    /// What all in the queue lack, in pods.
    pub(super) fn lacking(&self) -> u32 {
        u32::try_from(self.lacking).unwrap_or(u32::MAX)
    }

    pub(super) fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }

    pub(super) fn touch(&mut self, uids: impl IntoIterator<Item = String>) {
        self.touched.extend(uids);
    }

    /// Whether a sandbox that waits has not spoken itself since the ledger began.
    pub(super) fn is_provisional(&self) -> bool {
        !self.provisional.is_empty()
    }
}
