//! The tasks of a sandbox: how each stands, from what executors say about it.
//!
//! In: what was seen, of which shard, and when. Out: counters, results, the record, and what is worth
//! counting. Who is asked and told what is decided elsewhere; so is whether a report comes from the pod
//! that holds the shard. Rules kept here: a terminal result stays; an attempt is begun once; a task of
//! another identity is nobody's; the counters always add up to the number of tasks. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::names::{SandboxUid, TaskIdentity};
use opensandbox_api::task;
use opensandbox_api::v1alpha1::{BatchSandboxStatus, TaskResult, TaskResultState};

use super::record::{MAX_ATTEMPT, MAX_TASKS, Mark, Record};
use super::text::cut;
use crate::time::{later, whole_seconds};

/// How long an executor may be silent, or a task missing from its list, before the task is unknown.
pub(super) const UNKNOWN_AFTER: SignedDuration = SignedDuration::from_secs(10);

/// Longest message of a result, in bytes.
pub(super) const MAX_MESSAGE: usize = 512;

/// How one task stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    /// Which run of the task this is.
    pub(super) attempt: u32,
    /// Whether its sandbox was scaled away.
    pub(super) removed: bool,
    /// What it does.
    pub(super) state: State,
    /// Pod that it was last ordered to or seen in.
    pub(super) pod: Option<String>,
    /// Whether the executor of that pod has shown it.
    pub(super) seen: bool,
    /// What keeps us from knowing how it stands.
    pub(super) trouble: Option<Trouble>,
}

/// What a task does.
#[derive(Clone, Debug, Default)]
pub(super) enum State {
    /// Not started, as far as is known.
    #[default]
    Open,
    /// Runs.
    Running {
        /// Since when.
        started: Option<Time>,
    },
    /// Ended, for good.
    Ended(Box<Ended>),
}

/// How a task ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended {
    pub(super) succeeded: bool,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) started: Option<Time>,
    pub(super) finished: Option<Time>,
    pub(super) stderr_tail: Option<String>,
}

/// What keeps us from knowing how a task stands.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) since: Timestamp,
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// Whether it ends the task once it has lasted: nobody will ever say more.
    pub(super) fatal: bool,
}

/// Reasons why a task is not known, one word each.
pub(super) mod unknown {
    /// The executor does not answer.
    pub(in super::super) const EXECUTOR_UNREACHABLE: &str = "ExecutorUnreachable";
    /// The executor answers and refuses.
    pub(in super::super) const EXECUTOR_REFUSED: &str = "ExecutorRefused";
    /// The executor has shown the task and does not any more.
    pub(in super::super) const TASK_VANISHED: &str = "TaskVanished";
    /// The pod of the task ended, and its executor with it.
    pub(in super::super) const POD_ENDED: &str = "PodEnded";
}

/// An end of a task, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndNote {
    pub(super) reason: &'static str,
    pub(super) millis: Option<u64>,
}

/// Tasks by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) running: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    pub(super) pending: i32,
    pub(super) unknown: i32,
}

/// All tasks of a sandbox. A task without a cell has not been touched: it waits, attempt 0.
#[derive(Clone, Debug)]
pub(super) struct Table {
    sandbox: String,
    pub(super) uid: Option<SandboxUid>,
    /// Whether executors know no identities, so that names must do.
    pub(super) by_name: bool,
    pub(super) cells: BTreeMap<u32, Cell>,
}

impl Table {
    /// As the status has it.
    pub(super) fn load(
        sandbox: &str,
        uid: &str,
        by_name: bool,
        status: &BatchSandboxStatus,
    ) -> Self {
        let record = Record::read(status.task_record.as_deref());
        let mut cells = BTreeMap::new();
        for (index, (mark, attempt)) in (0_u32..).zip(&record.0) {
            let ended = |succeeded| {
                State::Ended(Box::new(Ended {
                    succeeded,
                    ..Ended::default()
                }))
            };
            let cell = Cell {
                attempt: (*attempt).min(MAX_ATTEMPT),
                removed: *mark == Mark::Removed,
                state: match mark {
                    Mark::Open | Mark::Removed => State::Open,
                    Mark::Succeeded => ended(true),
                    Mark::Failed => ended(false),
                },
                ..Cell::default()
            };
            if *mark != Mark::Open || *attempt > 0 {
                cells.insert(index, cell);
            }
        }
        let mut table = Self {
            sandbox: sandbox.to_owned(),
            uid: SandboxUid::try_from(uid.to_owned()).ok(),
            by_name,
            cells,
        };
        for result in &status.task_results {
            table.load_result(result);
        }
        table
    }

    /// Details of an end that the record knows.
    fn load_result(&mut self, result: &TaskResult) {
        let succeeded = result.state == TaskResultState::Succeeded;
        let attempt = result
            .attempt
            .and_then(|attempt| u32::try_from(attempt).ok());
        let cell = u32::try_from(result.index)
            .ok()
            .and_then(|index| self.cells.get_mut(&index));
        if let Some(cell) = cell
            && attempt.unwrap_or(0) == cell.attempt
            && let State::Ended(ended) = &mut cell.state
            && ended.succeeded == succeeded
        {
            cell.pod.clone_from(&result.pod);
            **ended = Ended {
                succeeded,
                exit_code: result.exit_code,
                signal: result.signal,
                reason: result.reason.clone(),
                message: result.message.clone(),
                started: result.started_at.clone(),
                finished: result.finished_at.clone(),
                stderr_tail: result.stderr_tail.clone(),
            };
        }
    }

    /// Sets an end that another operator knew of and left only as a number.
    pub(super) fn presume_end(&mut self, index: u32, succeeded: bool) {
        let cell = self.cells.entry(index).or_default();
        if !matches!(cell.state, State::Ended(_)) {
            cell.state = State::Ended(Box::new(Ended {
                succeeded,
                message: Some(
                    "ended under another operator, which kept only the number".to_owned(),
                ),
                ..Ended::default()
            }));
        }
    }

    /// The cell of a task that was touched.
    pub(super) fn get(&self, index: u32) -> Option<&Cell> {
        self.cells.get(&index)
    }

    /// Which run task `index` is in.
    pub(super) fn attempt(&self, index: u32) -> u32 {
        self.get(index).map_or(0, |cell| cell.attempt)
    }

    /// Whether task `index` ended.
    pub(super) fn has_ended(&self, index: u32) -> bool {
        self.mark(index).is_end()
    }

    /// Whether task `index` was scaled away and has not been begun anew.
    pub(super) fn is_removed(&self, index: u32) -> bool {
        self.get(index).is_some_and(|cell| cell.removed)
    }

    /// How task `index` stands, for the record.
    pub(super) fn mark(&self, index: u32) -> Mark {
        match self.get(index) {
            Some(cell) if cell.removed => Mark::Removed,
            Some(Cell {
                state: State::Ended(ended),
                ..
            }) if ended.succeeded => Mark::Succeeded,
            Some(Cell {
                state: State::Ended(_),
                ..
            }) => Mark::Failed,
            None | Some(_) => Mark::Open,
        }
    }

    /// The text of the identity of task `index` in its present run.
    pub(super) fn identity(&self, index: u32) -> Option<String> {
        let sandbox = self.uid.clone()?;
        let attempt = self.attempt(index);
        Some(
            TaskIdentity {
                sandbox,
                index,
                attempt,
            }
            .to_string(),
        )
    }

    /// Name of task `index`.
    pub(super) fn name(&self, index: u32) -> String {
        format!("{}-{index}", self.sandbox)
    }

    /// Notes that the task is in this pod from now on.
    pub(super) fn placed(&mut self, index: u32, pod: &str) {
        let cell = self.cells.entry(index).or_default();
        if cell.pod.as_deref() != Some(pod) {
            cell.pod = Some(pod.to_owned());
            cell.seen = false;
            cell.trouble = None;
        }
    }

    /// The pod of an unfinished task is lost, and the task may have been begun in it: it is begun anew.
    /// `None` if the task ended before.
    pub(super) fn begin_anew(&mut self, index: u32, cause: &str, now: Timestamp) -> Option<u32> {
        let cell = self.cells.entry(index).or_default();
        if matches!(cell.state, State::Ended(_)) && !cell.removed {
            return None;
        }
        if cell.attempt >= MAX_ATTEMPT {
            cell.state = State::Ended(Box::new(Ended {
                reason: Some(task::reason::PROCESS_CRASHED.to_owned()),
                message: Some(cut(
                    &format!("its pod was lost {MAX_ATTEMPT} times: {cause}"),
                    MAX_MESSAGE,
                )),
                finished: Some(Time(whole_seconds(now))),
                ..Ended::default()
            }));
            return None;
        }
        *cell = Cell {
            attempt: cell.attempt + 1,
            ..Cell::default()
        };
        Some(cell.attempt)
    }

    /// Tasks from `replicas` on belong to sandboxes that were scaled away. Those that may have been begun,
    /// `started` among them, keep their attempt for ever; the others are forgotten.
    pub(super) fn scaled_to(&mut self, replicas: u32, started: &BTreeSet<u32>) {
        let begun = |cell: &Cell| {
            cell.removed
                || cell.seen
                || cell.attempt > 0
                || cell.pod.is_some()
                || !matches!(cell.state, State::Open)
        };
        self.cells
            .retain(|index, cell| *index < replicas || begun(cell) || started.contains(index));
        let beyond: Vec<u32> = self
            .cells
            .range(replicas..)
            .map(|(index, _)| *index)
            .chain(started.range(replicas..).copied())
            .collect();
        for index in beyond {
            let cell = self.cells.entry(index).or_default();
            *cell = Cell {
                attempt: cell.attempt,
                removed: true,
                ..Cell::default()
            };
        }
    }

    /// Whether there is anything to record.
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Tasks that were scaled away and belong to sandboxes again.
    pub(super) fn removed_below(&self, replicas: u32) -> Vec<u32> {
        let cells = self.cells.range(..replicas);
        cells
            .filter(|(_, cell)| cell.removed)
            .map(|(index, _)| *index)
            .collect()
    }

    /// The state that users see.
    pub(super) fn shown(&self, index: u32, now: Timestamp) -> TaskResultState {
        let Some(cell) = self.get(index).filter(|cell| !cell.removed) else {
            return TaskResultState::Pending;
        };
        match &cell.state {
            State::Ended(ended) if ended.succeeded => TaskResultState::Succeeded,
            State::Ended(_) => TaskResultState::Failed,
            _ if cell.unknown(now).is_some() => TaskResultState::Unknown,
            State::Running { .. } => TaskResultState::Running,
            State::Open => TaskResultState::Pending,
        }
    }

    /// Tasks by state. They add up to `replicas`.
    pub(super) fn counts(&self, replicas: u32, now: Timestamp) -> Counts {
        let mut counts = Counts::default();
        for index in self.cells.range(..replicas).map(|(index, _)| *index) {
            match self.shown(index, now) {
                TaskResultState::Running => counts.running += 1,
                TaskResultState::Succeeded => counts.succeeded += 1,
                TaskResultState::Failed => counts.failed += 1,
                TaskResultState::Unknown => counts.unknown += 1,
                TaskResultState::Pending => {}
            }
        }
        let others = counts.running + counts.succeeded + counts.failed + counts.unknown;
        counts.pending = i32::try_from(replicas).unwrap_or(i32::MAX) - others;
        counts
    }

    /// Tasks that are not known, with what is known about that.
    pub(super) fn unknowns(
        &self,
        replicas: u32,
        now: Timestamp,
    ) -> impl Iterator<Item = (u32, &Trouble)> {
        self.cells
            .range(..replicas)
            .filter_map(move |(index, cell)| Some((*index, cell.unknown(now)?)))
    }

    /// How many tasks the record has.
    pub(super) fn recorded(&self, replicas: u32) -> usize {
        let last = self
            .cells
            .last_key_value()
            .map_or(0, |(index, _)| index + 1);
        let count = usize::try_from(replicas.max(last)).unwrap_or(MAX_TASKS);
        count.min(MAX_TASKS)
    }

    /// How every task stands.
    pub(super) fn record(&self, replicas: u32) -> Record {
        let indices = (0_u32..).take(self.recorded(replicas));
        Record(
            indices
                .map(|index| (self.mark(index), self.attempt(index)))
                .collect(),
        )
    }
}

impl Cell {
    /// What keeps us from knowing how it stands, once that has lasted.
    pub(super) fn unknown(&self, now: Timestamp) -> Option<&Trouble> {
        let open = !self.removed && !matches!(self.state, State::Ended(_));
        self.trouble
            .as_ref()
            .filter(|trouble| open && later(trouble.since, UNKNOWN_AFTER) <= now)
    }
}
