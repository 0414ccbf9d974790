//! When a sandbox is over: `expireTime`, and `ttlSecondsAfterFinished` after its last task.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::conditions::{self, batch_sandbox};

use super::machine::Machine;
use crate::time::later;

impl Machine {
    /// When the object is to be deleted, as far as that is known now. A renewal moves it.
    pub(super) fn end_of_life(&self) -> Option<Timestamp> {
        if self.view.deleting {
            return None;
        }
        let spec = self.spec()?;
        let expires = spec.expire_time.as_ref().map(|time| time.0);
        let finished =
            conditions::find(&self.view.status.conditions, batch_sandbox::TASKS_FINISHED)
                .filter(|finished| finished.status == "True")
                .filter(|_| self.all_tasks_have_ended());
        let outlived = finished.and_then(|finished| {
            let ttl = i64::from(spec.ttl_seconds_after_finished?.max(0));
            Some(later(
                finished.last_transition_time.0,
                SignedDuration::from_secs(ttl),
            ))
        });
        [expires, outlived].into_iter().flatten().min()
    }

    /// Whether that time has come.
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        self.end_of_life().is_some_and(|end| end <= now)
    }

    /// Whether there are tasks, and each has ended.
    pub(super) fn all_tasks_have_ended(&self) -> bool {
        let replicas = self.replicas();
        if !self.has_tasks() || replicas == 0 {
            return false;
        }
        (0..replicas)
            .take(super::record::MAX_TASKS)
            .all(|index| self.table.has_ended(index))
            && self.shards() == replicas
    }
}
