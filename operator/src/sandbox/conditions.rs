//! The conditions of a sandbox. What is false stays as `False`, so that it can be waited for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use opensandbox_api::conditions::{self, NewCondition, batch_sandbox, reason};

use super::fault::Fault;
use super::machine::Machine;
use super::record::MAX_TASKS;
use super::source::Source;
use super::status::Census;
use super::text::cut;

/// Longest message of a condition, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Reasons of conditions that only this machine has.
mod own_reason {
    /// A sandbox asks for pods, and the pool has not said yet why it waits.
    pub(super) const REQUESTED: &str = "Requested";
    /// The annotations have no room for more names of pods.
    pub(super) const TOO_MANY_REPLICAS: &str = "TooManyReplicas";
    /// The API server refused the write of a claim.
    pub(super) const WRITE_REFUSED: &str = "WriteRefused";
    /// `poolRef` was changed while pods are held.
    pub(super) const POOL_REF_KEPT: &str = "PoolRefKept";
    /// Pausing does not work yet.
    pub(super) const NOT_SUPPORTED: &str = "NotSupported";
    /// No pause is asked for.
    pub(super) const NOT_REQUESTED: &str = "NotRequested";
    /// The sandbox is being deleted.
    pub(super) const DELETING: &str = "Deleting";
}

impl Machine {
    fn set(
        &self,
        conditions: &mut Vec<Condition>,
        type_: &'static str,
        (holds, reason, message): (bool, &str, &str),
        now: Timestamp,
    ) {
        let new = NewCondition {
            type_,
            status: holds.into(),
            reason: reason.to_owned(),
            message: cut(message, MAX_MESSAGE),
            observed_generation: Some(self.view.generation),
        };
        conditions::set(conditions, new, now);
    }

    /// Of an object that is set aside only that is said: the rest stays as it was.
    pub(super) fn set_quarantine(
        &self,
        conditions: &mut Vec<Condition>,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        let state = (true, reason, message);
        self.set(conditions, batch_sandbox::QUARANTINED, state, now);
    }

    pub(super) fn set_conditions(
        &self,
        conditions: &mut Vec<Condition>,
        census: Census,
        fault: Option<&Fault>,
        now: Timestamp,
    ) {
        let all_ready = census.ready >= census.wanted;
        let progress = format!("{} of {} sandboxes are ready", census.ready, census.wanted);
        let ready = if all_ready {
            (true, reason::PODS_READY, progress.as_str())
        } else {
            (false, reason::PODS_NOT_READY, progress.as_str())
        };
        self.set(conditions, batch_sandbox::READY, ready, now);
        let progressing = if self.view.deleting {
            (true, own_reason::DELETING, "")
        } else if !all_ready {
            (true, reason::PODS_NOT_READY, progress.as_str())
        } else if self.members().any(|(_, _, pod)| pod.leaving.is_some()) {
            (true, reason::SCALING_DOWN, progress.as_str())
        } else {
            (false, reason::STABLE, "")
        };
        self.set(conditions, batch_sandbox::PROGRESSING, progressing, now);
        let failed = match fault {
            Some(fault) => (true, fault.reason.as_str(), fault.message.as_str()),
            None => (false, reason::PODS_HEALTHY, ""),
        };
        self.set(conditions, batch_sandbox::POD_FAILED, failed, now);
        if let Some((waits, reason, message)) = self.allocation_condition(census) {
            let pending = (waits, reason, message.as_str());
            let type_ = batch_sandbox::POOL_ALLOCATION_PENDING;
            self.set(conditions, type_, pending, now);
        }
        if self.has_tasks() {
            let (finished, reason, message) = self.tasks_condition(now);
            let finished = (finished, reason, message.as_str());
            self.set(conditions, batch_sandbox::TASKS_FINISHED, finished, now);
        }
        let pause = self.spec().and_then(|spec| spec.pause) == Some(true);
        let refused = if pause {
            "pausing is not supported yet; remove spec.pause or set it to false"
        } else {
            ""
        };
        let rare = [
            (
                batch_sandbox::PAUSE_FAILED,
                pause,
                if pause {
                    own_reason::NOT_SUPPORTED
                } else {
                    own_reason::NOT_REQUESTED
                },
                refused,
            ),
            (batch_sandbox::QUARANTINED, false, reason::READABLE, ""),
        ];
        for (type_, holds, reason, message) in rare {
            if holds || conditions::find(conditions, type_).is_some() {
                self.set(conditions, type_, (holds, reason, message), now);
            }
        }
    }

    /// Whether the sandbox waits for pods of a pool, and why; `None` if it has nothing to do with one.
    fn allocation_condition(&self, census: Census) -> Option<(bool, &'static str, String)> {
        let holds = |reason: &'static str, message: String| Some((true, reason, message));
        if let Some(wanted) = &self.claim.rejected_source {
            let wanted = wanted.pool().unwrap_or("none");
            return holds(
                own_reason::POOL_REF_KEPT,
                format!(
                    "poolRef was changed to {:?} while pods of {:?} are held; it is followed once they are given back",
                    cut(wanted, 80),
                    self.source.pool().unwrap_or("its own template"),
                ),
            );
        }
        match &self.source {
            Source::Assign => match &self.claim.no_pool {
                Some(why) => holds(reason::NO_ELIGIBLE_POOL, why.clone()),
                None => holds(own_reason::REQUESTED, "a pool is being chosen".to_owned()),
            },
            Source::Pool(_) => {
                if let Some(refused) = &self.writer.refused {
                    return holds(
                        own_reason::WRITE_REFUSED,
                        format!("the API server refused to change the object: {refused}"),
                    );
                }
                if self.claim.wants > 0 {
                    let stored = &self.view.status.conditions;
                    let known = conditions::is_true(stored, batch_sandbox::POOL_ALLOCATION_PENDING);
                    if self.claim.waiting.is_none() && known {
                        // After a start, until the pool speaks, what it said before holds.
                        return None;
                    }
                    return match &self.claim.waiting {
                        Some(waiting) => holds(waiting.reason, waiting.message.clone()),
                        None => holds(
                            own_reason::REQUESTED,
                            format!("{} pods are asked for", self.claim.wants),
                        ),
                    };
                }
                if self.shards() < self.replicas() {
                    return holds(
                        own_reason::TOO_MANY_REPLICAS,
                        format!(
                            "spec.replicas is {}, and the annotations of one object have room for the names of {} pods; use several BatchSandboxes",
                            self.replicas(),
                            self.shards(),
                        ),
                    );
                }
                Some((
                    false,
                    reason::ALLOCATED,
                    format!("{} pods are allocated", census.replicas),
                ))
            }
            Source::Template if self.shards() < self.replicas() => holds(
                own_reason::TOO_MANY_REPLICAS,
                format!(
                    "spec.replicas is {}, and one BatchSandbox has at most {MAX_TASKS} sandboxes; use several",
                    self.replicas()
                ),
            ),
            Source::Template | Source::Nothing => None,
        }
    }

    /// Whether every task ended.
    fn tasks_condition(&self, now: Timestamp) -> (bool, &'static str, String) {
        let replicas = self.replicas();
        let counts = self.table.counts(replicas, now);
        let ended = counts.succeeded + counts.failed;
        if self.all_tasks_have_ended() {
            let reason = if counts.failed > 0 {
                reason::TASKS_FAILED
            } else {
                reason::TASKS_SUCCEEDED
            };
            let message = format!("{ended} tasks ended, {} of them failed", counts.failed);
            return (true, reason, message);
        }
        if let Some((index, trouble)) = self.table.unknowns(replicas, now).next() {
            return (
                false,
                trouble.reason,
                format!(
                    "{} tasks are not known, the first of them {}: {}",
                    counts.unknown,
                    self.table.name(index),
                    trouble.message
                ),
            );
        }
        let message = format!("{ended} of {replicas} tasks ended");
        (false, reason::TASKS_UNFINISHED, message)
    }
}
