//! The status: counters, phase, results. Computed from what is known; only the times of transitions
//! come from the status before.
//!
//! Phases are upstream's: `Failed` while a container cannot run, else `Succeed` as soon as one sandbox
//! is ready, else `Pending`.

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::v1alpha1::{BatchSandboxPhase, BatchSandboxStatus};

use super::machine::Machine;
use super::results;
use super::source::Source;
use crate::view::{PodPhase, PodView};

/// How many sandboxes there are, and how they are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Census {
    /// Sandboxes that are to be ready.
    pub(super) wanted: i32,
    pub(super) replicas: i32,
    allocated: i32,
    pub(super) ready: i32,
}

impl Machine {
    /// Pods that count: those of shards that exist and are not given back.
    pub(super) fn counted(&self) -> impl Iterator<Item = (&String, &PodView)> {
        let shards = self.shards();
        self.members()
            .filter(move |(index, name, pod)| {
                *index < shards
                    && pod.lost.is_none()
                    && pod.leaving.is_none()
                    && !self.held.release.contains(*name)
            })
            .filter_map(|(_, name, pod)| Some((name, pod.view.as_deref()?)))
    }

    /// How many sandboxes there are, and how they are.
    pub(super) fn census(&self) -> Census {
        let replicas = self.replicas();
        let over = (0..self.shards())
            .filter(|index| self.is_over(*index))
            .count();
        let mut census = Census {
            wanted: number(usize::try_from(replicas).unwrap_or(usize::MAX)) - number(over),
            ..Census::default()
        };
        for (_, view) in self.counted() {
            census.replicas += 1;
            if view.scheduled || view.ip.is_some() {
                census.allocated += 1;
            }
            if view.phase == PodPhase::Running && view.ready && !view.deleting {
                census.ready += 1;
            }
        }
        census
    }

    /// The status as it is to be stored.
    pub(super) fn status(&self, now: Timestamp) -> BatchSandboxStatus {
        let mut status = self.view.status.clone();
        status.observed_generation = Some(self.view.generation);
        if let Some((reason, message)) = self.quarantine() {
            self.set_quarantine(&mut status.conditions, reason, &message, now);
            return status;
        }
        let census = self.census();
        let fault = self.fault();
        self.set_conditions(&mut status.conditions, census, fault.as_ref(), now);
        status.replicas = census.replicas;
        status.allocated = census.allocated;
        status.ready = census.ready;
        if !self.is_paused() {
            status.phase = Some(if fault.is_some_and(|fault| fault.fails) {
                BatchSandboxPhase::Failed
            } else if census.ready > 0 {
                BatchSandboxPhase::Succeed
            } else {
                BatchSandboxPhase::Pending
            });
        }
        self.tasks_status(&mut status, now);
        status
    }

    /// How many shards may have had a pod, so that their tasks may have been begun. Those that wait for
    /// their first pod are not recorded: a process that goes on from here takes a task that is recorded,
    /// and whose shard has no pod, for one that has lost it.
    fn placed(&self) -> u32 {
        match &self.source {
            Source::Template => self.shards(),
            _ => u32::try_from(self.held.entries.len()).unwrap_or(u32::MAX),
        }
    }

    fn tasks_status(&self, status: &mut BatchSandboxStatus, now: Timestamp) {
        let replicas = if self.has_tasks() { self.replicas() } else { 0 };
        let counts = self.table.counts(replicas, now);
        status.task_running = counts.running;
        status.task_succeed = counts.succeeded;
        status.task_failed = counts.failed;
        status.task_pending = counts.pending;
        status.task_unknown = counts.unknown;
        status.task_results = results::list(&self.table, replicas, now);
        // Without a task template the record of earlier tasks stays: attempts are never used again.
        if self.has_tasks() || !self.table.is_empty() {
            let placed = replicas.min(self.placed());
            status.task_record = self.table.record(placed).text();
        }
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
