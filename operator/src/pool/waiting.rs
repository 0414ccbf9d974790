//! What a sandbox that waits is told.
//!
//! A message is composed with the numbers of the moment, but only when something changed that a user acts
//! on: the reason, what is lacking, the bound. Each telling is a write of a status.

use opensandbox_api::conditions::reason;

use super::Ledger;
use super::members::Member;
use crate::protocol::{FromPool, Waiting};

/// What decides about the words for one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    reason: &'static str,
    lacking: u32,
    replicas: u32,
    pool_max: u32,
}

/// What decides about the words for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct World {
    /// Why nothing can be given at all.
    stopped: Option<&'static str>,
    pool_max: u32,
    /// Whether all that is asked for fits under `poolMax`.
    short: bool,
}

impl Ledger {
    /// Tells those who wait why, and those who do not any more that it is over.
    pub(super) fn tell_waiting(&mut self) {
        let world = self.world();
        let head = self
            .members
            .head()
            .map(|member| member.sandbox().uid.clone());
        if world == self.world {
            for uid in [head.clone(), std::mem::replace(&mut self.head, head)] {
                self.members.touch(uid);
            }
        } else {
            let waiting: Vec<String> = self.members.queue().map(|turn| turn.uid.clone()).collect();
            self.members.touch(waiting);
            self.world = world;
            self.head = head;
        }
        for uid in self.members.take_touched() {
            self.tell_one_waiting(&uid);
        }
    }

    fn world(&self) -> World {
        let Some(facts) = &self.facts else {
            return World {
                stopped: Some(reason::POOL_NOT_FOUND),
                ..World::default()
            };
        };
        let stopped = if facts.view.deleting {
            Some(reason::POOL_DELETED)
        } else if facts.rules.is_err() {
            Some(reason::INVALID_SPEC)
        } else if self.births.failure().is_some() {
            Some(reason::POD_REFUSED)
        } else {
            None
        };
        let pool_max = facts.rules.as_ref().map_or(0, |rules| rules.pool_max);
        let taken = self.pods.counts().taken();
        World {
            stopped,
            pool_max,
            short: taken.saturating_add(self.members.lacking()) > pool_max,
        }
    }

    fn tell_one_waiting(&mut self, uid: &str) {
        let Some(member) = self.members.get(uid) else {
            return;
        };
        let told = self.told(member);
        // One that has not spoken may hold by now what it is taken to wait for.
        if member.told == told || member.unheard {
            return;
        }
        let message = FromPool::Waiting(told.as_ref().map(|told| Waiting {
            reason: told.reason,
            message: self.words(told),
        }));
        let sandbox = member.sandbox().clone();
        if let Some(member) = self.members.get_mut(uid) {
            member.waited |= told.is_some();
            member.told = told;
        }
        self.tell(sandbox, message);
    }

    fn told(&self, member: &Member) -> Option<Told> {
        let lacking = member.lacking();
        if lacking == 0 {
            return None;
        }
        let pool_max = self.world.pool_max;
        let taken = self.pods.counts().taken();
        let is_head = self.head.as_deref() == Some(member.sandbox().uid.as_str());
        let reason = match self.world.stopped {
            Some(reason) => reason,
            None if member.statement.replicas > pool_max => reason::POOL_CAPACITY_EXHAUSTED,
            None if is_head && taken.saturating_add(lacking) <= pool_max => reason::PODS_STARTING,
            None if is_head || self.world.short => reason::POOL_CAPACITY_EXHAUSTED,
            None => reason::WAITING_FOR_EARLIER,
        };
        Some(Told {
            reason,
            lacking,
            replicas: member.statement.replicas,
            pool_max,
        })
    }

    fn words(&self, told: &Told) -> String {
        let Told {
            reason,
            lacking,
            replicas,
            pool_max,
        } = told;
        let pool = &self.key.name;
        let counts = self.pods.counts();
        let numbers = format!(
            "waits for {lacking} of {replicas} pods; when this was written, pool {pool} had {} idle, {} starting, \
             {} allocated, {} terminating, of at most {pool_max}",
            counts.usable,
            self.coming(),
            counts.taken(),
            counts.leaving,
        );
        match *reason {
            reason::POOL_NOT_FOUND => {
                format!(
                    "waits for {lacking} of {replicas} pods; there is no Pool {pool}; create it"
                )
            }
            reason::POOL_DELETED => format!(
                "waits for {lacking} of {replicas} pods; Pool {pool} is being deleted; create it anew or name another one"
            ),
            reason::INVALID_SPEC => format!(
                "waits for {lacking} of {replicas} pods; the spec of Pool {pool} breaks a rule, see its condition Quarantined"
            ),
            reason::POD_REFUSED => {
                format!(
                    "{numbers}; new pods cannot be made, see condition PodCreationFailed of the Pool"
                )
            }
            reason::POOL_CAPACITY_EXHAUSTED if replicas > pool_max => format!(
                "{numbers}; it can never hold all of them: raise poolMax to {replicas} or lower replicas"
            ),
            reason::POOL_CAPACITY_EXHAUSTED => {
                format!(
                    "{numbers}; it waits until others give pods back, or until poolMax is raised"
                )
            }
            reason::WAITING_FOR_EARLIER => {
                format!("{numbers}; sandboxes that came earlier are first")
            }
            _ => format!("{numbers}; pods are being started"),
        }
    }
}
