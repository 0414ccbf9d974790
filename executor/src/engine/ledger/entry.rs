//! One task of the list: what was ordered, how far it is, and how it looks to clients and in notes.

use opensandbox_api::task::{End, LossReason, Outcome, ProcessStatus, StartFailure, Task};

use super::Slot;
use crate::agent::protocol::{StopCause, TaskKey, TaskState};
use crate::clock::{rfc3339, unix_millis_of};
use crate::engine::note::Note;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: TaskKey,
    pub(super) slot: Slot,
    pub(super) position: u64,
    /// As ordered: without status.
    pub(super) task: Task,
    pub(super) phase: Phase,
    /// Why it is being stopped.
    pub(super) stop: Option<StopCause>,
    /// It leaves the list as soon as nothing of it is left.
    pub(super) deleted: bool,
    /// What takes its place then.
    pub(super) replacement: Option<(Slot, Task)>,
    pub(super) deleted_at: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Waiting {
        reason: &'static str,
        message: String,
    },
    Starting,
    Running {
        pid: i32,
        started_at: u64,
    },
    Ended {
        outcome: Outcome,
        started_at: Option<u64>,
        finished_at: u64,
        gone: bool,
    },
}

#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) key: TaskKey,
    pub(super) slot: Slot,
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) outcome: Outcome,
    pub(super) started_at: Option<u64>,
    pub(super) finished_at: u64,
}

/// Upstream's reason of a task that has not started.
pub(super) const PENDING: &str = "Pending";
pub(super) const AGENT_GONE: &str =
    "the agent in the sandbox container does not know the task any more";

impl Phase {
    /// As a task begins.
    pub(super) fn waiting() -> Self {
        Self::Waiting {
            reason: PENDING,
            message: String::new(),
        }
    }
}

impl Entry {
    /// One that nobody stops.
    pub(super) fn new(key: TaskKey, slot: Slot, position: u64, task: Task, phase: Phase) -> Self {
        Self {
            key,
            slot,
            position,
            task: ordered(task),
            phase,
            stop: None,
            deleted: false,
            replacement: None,
            deleted_at: None,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended { gone: true, .. })
    }

    pub(super) fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running { .. })
    }

    /// As clients see it.
    pub(super) fn report(&self) -> Task {
        let mut task = self.task.clone();
        // Upstream never says that a task is being deleted; to who gives uids we do.
        if task.uid.is_some() {
            task.deletion_timestamp = self.deleted_at.map(rfc3339);
        }
        let status = match &self.phase {
            Phase::Waiting { reason, message } => ProcessStatus::waiting(*reason, message.as_str()),
            Phase::Starting => ProcessStatus::waiting(PENDING, ""),
            Phase::Running { started_at, .. } => ProcessStatus::running(rfc3339(*started_at)),
            Phase::Ended {
                outcome,
                started_at,
                finished_at,
                ..
            } => {
                task.outcome = Some(outcome.clone());
                let started_at = started_at.map(rfc3339);
                ProcessStatus::terminated(
                    outcome.terminated(started_at, Some(rfc3339(*finished_at))),
                )
            }
        };
        task.process_status = Some(status);
        task
    }

    pub(super) fn note(&self) -> Note {
        let ended = self.has_ended();
        Note {
            task: if ended {
                self.report()
            } else {
                self.task.clone()
            },
            position: self.position,
            finished: ended,
            deleted: self.deleted,
        }
    }
}

impl Remembered {
    pub(super) fn note(&self) -> Note {
        let started_at = self.started_at.map(rfc3339);
        let finished_at = Some(rfc3339(self.finished_at));
        Note {
            task: Task {
                name: self.name.clone(),
                uid: Some(self.uid.clone()),
                process_status: Some(ProcessStatus::terminated(
                    self.outcome.terminated(started_at, finished_at),
                )),
                outcome: Some(self.outcome.clone()),
                ..Task::default()
            },
            position: 0,
            finished: true,
            deleted: true,
        }
    }
}

/// What was ordered, without what a client may have sent along of a status.
fn ordered(task: Task) -> Task {
    Task {
        deletion_timestamp: None,
        process_status: None,
        pod_status: None,
        outcome: None,
        ..task
    }
}

pub(super) fn lost(reason: LossReason, message: &str) -> Outcome {
    Outcome::of(End::Lost {
        reason,
        message: message.to_owned(),
    })
}

pub(super) fn not_started(failure: StartFailure, message: &str) -> Outcome {
    Outcome::of(End::NotStarted {
        failure,
        message: message.to_owned(),
    })
}

/// Start and end as a final report has them.
pub(super) fn reported_times(task: &Task) -> (Option<u64>, Option<u64>) {
    let status = task.process_status.as_ref();
    let terminated = status.and_then(|status| status.terminated.as_ref());
    let time = |time: &Option<String>| time.as_deref().and_then(unix_millis_of);
    terminated.map_or((None, None), |terminated| {
        (time(&terminated.started_at), time(&terminated.finished_at))
    })
}

/// The process that a task was started as.
pub(super) fn process(state: &TaskState) -> Option<i32> {
    match state {
        TaskState::Running { pid, .. } | TaskState::Ended { pid, .. } => Some(*pid),
        TaskState::Lost { pid, .. } => *pid,
        TaskState::Starting | TaskState::NotStarted { .. } => None,
    }
}

pub(super) fn times(state: &TaskState, now: u64) -> (Option<u64>, u64) {
    match state {
        TaskState::Ended {
            started_at,
            finished_at,
            ..
        } => (Some(*started_at), *finished_at),
        TaskState::NotStarted { at, .. } => (None, *at),
        TaskState::Lost { started_at, at, .. } => (*started_at, *at),
        TaskState::Starting | TaskState::Running { .. } => (None, now),
    }
}
