//! Which sandbox gets which pods, and when.
//!
//! First come, first served: only the first of the queue is offered pods, all that it lacks or what there
//! is. While more pods are about to come, what there is waits for them for [`TOGETHER`], because each
//! offer is a write of the sandbox's object.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::backoff::{after, has_passed};
use super::members::Grant;
use super::pods::State;
use super::{Ledger, Note};
use crate::protocol::{FromPool, SandboxRef};

/// How long ready pods wait for others, so that they are given together.
const TOGETHER: SignedDuration = SignedDuration::from_millis(50);
/// Longest time that a sandbox which does not take what it is offered is passed over.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(30);

impl Ledger {
    /// Gives the first of the queue all that they lack, as far as there are pods.
    pub(super) fn allocate_whole(&mut self, now: Timestamp) {
        while let Some(head) = self.members.head() {
            let lacking = head.lacking();
            if head.grant.is_some() || lacking > self.pods.counts().usable {
                return;
            }
            let uid = head.sandbox().uid.clone();
            self.offer(&uid, lacking, now);
        }
    }

    /// Gives the first of the queue what there is, unless more is about to come.
    pub(super) fn allocate_part(&mut self, now: Timestamp) {
        let usable = self.pods.counts().usable;
        let Some(head) = self
            .members
            .head()
            .filter(|head| head.grant.is_none() && usable > 0)
        else {
            self.gathering = None;
            return;
        };
        let uid = head.sandbox().uid.clone();
        let more = self.coming() > 0;
        let since = match &self.gathering {
            Some((gathering, since)) if *gathering == uid => *since,
            _ => now,
        };
        if more && !has_passed(since, TOGETHER, now) {
            self.gathering = Some((uid, since));
        } else {
            self.offer(&uid, usable, now);
        }
    }

    /// When the pods that wait for others are given.
    pub(super) fn gathered_at(&self) -> Option<Timestamp> {
        self.gathering
            .as_ref()
            .map(|(_, since)| after(*since, TOGETHER))
    }

    /// Reserves this many usable pods for a sandbox and offers them to it.
    fn offer(&mut self, uid: &str, pods: u32, now: Timestamp) {
        self.gathering = None;
        let mut names = Vec::new();
        let mut views = Vec::new();
        for _ in 0..pods {
            let Some(name) = self.pods.first_usable().map(str::to_owned) else {
                break;
            };
            self.pods.set(&name, State::Reserved(uid.to_owned()));
            if let Some(pod) = self.pods.get(&name) {
                views.push(std::sync::Arc::clone(&pod.view));
                names.push(name);
            }
        }
        let id = self.grants;
        self.grants = self.grants.wrapping_add(1);
        let pool_max = self.pool_max();
        let mut sandbox = None;
        self.members.requeue(uid, pool_max, now, |member| {
            member.pods.extend(names.iter().cloned());
            member.grant = Some(Grant {
                id,
                warm: !member.waited && names.len() as u64 == u64::from(member.statement.wants),
                pods: names,
            });
            sandbox = Some(member.sandbox().clone());
        });
        if let Some(sandbox) = sandbox {
            self.tell(
                sandbox,
                FromPool::Grant {
                    grant: id,
                    pods: views,
                },
            );
        }
    }

    /// Takes the answer to an offer. Another answer than to the offer that is open says nothing.
    pub(super) fn answered(
        &mut self,
        sandbox: &SandboxRef,
        grant: u64,
        taken: bool,
        now: Timestamp,
    ) {
        let open = self
            .members
            .get(&sandbox.uid)
            .and_then(|member| member.grant.as_ref());
        if open.is_none_or(|open| open.id != grant) {
            return;
        }
        if taken {
            self.take(&sandbox.uid, now);
            self.settle_holds(&sandbox.uid, now);
        } else {
            self.decline(&sandbox.uid, now);
        }
    }

    /// The pods of the open offer are the sandbox's from now on.
    pub(super) fn take(&mut self, uid: &str, now: Timestamp) {
        let pool_max = self.pool_max();
        let mut taken = None;
        self.members.requeue(uid, pool_max, now, |member| {
            let grant = member.grant.take();
            // What it asks for now is another demand, if it is not the rest of this one.
            taken = grant.map(|grant| (grant, member.since.unwrap_or(now)));
            if member.statement.wants > 0 && !member.waited {
                member.since = Some(now);
            }
            member.declined.reset();
        });
        let Some((grant, since)) = taken else { return };
        for name in &grant.pods {
            let reserved = |pod: &super::pods::Pod| pod.state == State::Reserved(uid.to_owned());
            if self.pods.get(name).is_some_and(reserved) {
                self.pods.set(name, State::Held(uid.to_owned()));
            }
        }
        let waited = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(0);
        self.note(Note::Allocated {
            pods: u32::try_from(grant.pods.len()).unwrap_or(u32::MAX),
            waited_millis: waited,
            warm: grant.warm,
        });
    }

    fn decline(&mut self, uid: &str, now: Timestamp) {
        let pool_max = self.pool_max();
        let mut pods = Vec::new();
        self.members.requeue(uid, pool_max, now, |member| {
            if let Some(grant) = member.grant.take() {
                pods = grant.pods;
            }
            for name in &pods {
                member.pods.remove(name);
            }
            // A sandbox that declines says what it wants instead; if it says nothing it would be
            // offered the same again and again.
            member.declined.fail_after_first(now, LONGEST_PAUSE);
        });
        for name in pods {
            if self
                .pods
                .get(&name)
                .is_some_and(|pod| pod.sandbox() == Some(uid))
            {
                self.free(&name);
            }
        }
    }

    /// A pod that nobody has: idle again, or on its way out if it is being deleted.
    pub(super) fn free(&mut self, name: &str) {
        let deleting = self.pods.get(name).is_some_and(|pod| pod.view.deleting);
        if deleting {
            self.accept_leaving(name);
        } else {
            self.pods.set(name, State::Idle);
        }
    }
}
