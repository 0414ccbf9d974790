//! The list of tasks: a pure state machine. What is ordered and what agents report goes in; what agents
//! are to do ([`Effect`]) and what clients are told ([`Journal`]) comes out.
//!
//! Invariants, each checked by the property test below:
//!
//! 1. A name is in the list at most once; a task that is replaced keeps its place until it is gone.
//! 2. For one name and uid, and for one entry without uid, at most one `Start` reaches an agent.
//! 3. At most `limit` tasks are started and not ended, those being stopped included.
//! 4. A task that was started leaves the list only when its agent says that nothing of it is left, or
//!    when its agent is lost and its remains have been removed.
//! 5. Once final, an outcome does not change.
//! 6. `Start` is given out only for a slot that is connected.
//!
//! A *slot* is a place where tasks run: the sandbox container, or another that a task names by its ID.

use std::collections::VecDeque;

use opensandbox_api::task::{End, LossReason, Outcome, ProcessStatus, StartFailure, Task};

use super::journal::{Change, Journal};
use super::note::Note;
use super::start;
use crate::agent::protocol::{StopCause, TaskKey, TaskReport, TaskState};
use crate::clock::{rfc3339, unix_millis_of};

/// Tasks in the list at most, whatever their state.
pub const MAX_ENTRIES: usize = 1024;
/// Keys of executors before are far below; an agent that the sandbox forged must not use them up.
const MAX_FOREIGN_KEY: u64 = 1 << 62;
/// Deleted tasks that are remembered by their uid.
const MAX_REMEMBERED: usize = 512;

/// A place where tasks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start it; answered by a report, or by [`Ledger::refused`].
    Start(Slot, TaskKey, Box<Note>),
    /// Stop it.
    Stop(Slot, TaskKey, StopCause),
    /// Have the agent keep this.
    Note(Slot, TaskKey, Box<Note>),
    /// The agent may forget it.
    Forget(Slot, TaskKey),
    /// The list has it no more: so its output can go.
    Removed(TaskKey),
    /// Its leader has ended, or it will never start.
    Finished(TaskKey, String, Box<Outcome>),
    /// Its program runs.
    Started(TaskKey, String, i32),
}

/// The list.
#[derive(Debug)]
pub struct Ledger {
    entries: Vec<Entry>,
    remembered: VecDeque<Remembered>,
    connected: Vec<Slot>,
    limit: usize,
    next_key: u64,
    next_position: u64,
    journal: Journal,
    effects: Vec<Effect>,
}

#[derive(Debug)]
struct Entry {
    key: TaskKey,
    slot: Slot,
    position: u64,
    /// As ordered: without status.
    task: Task,
    phase: Phase,
    /// Why it is being stopped.
    stop: Option<StopCause>,
    /// It leaves the list as soon as nothing of it is left.
    deleted: bool,
    /// What takes its place then.
    replacement: Option<(Slot, Task)>,
    deleted_at: Option<u64>,
}

#[derive(Clone, Debug)]
enum Phase {
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
struct Remembered {
    key: TaskKey,
    slot: Slot,
    uid: String,
    name: String,
    outcome: Outcome,
    started_at: Option<u64>,
    finished_at: u64,
}

/// Why a task was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The name is in use.
    #[error("task {0} already exists")]
    Exists(String),
    /// Too many run.
    #[error("{0} tasks are active already, the most this executor runs at once (--max-tasks)")]
    Busy(usize),
    /// The list is full.
    #[error("the list of tasks is full with {MAX_ENTRIES}: delete some that have ended")]
    Full,
}

impl Ledger {
    /// An empty list. `epoch` differs from those of all executors before, and grows.
    pub fn new(limit: usize, epoch: u64) -> Self {
        Self {
            entries: Vec::new(),
            remembered: VecDeque::new(),
            connected: Vec::new(),
            limit,
            next_key: epoch,
            next_position: epoch,
            journal: Journal::new(epoch),
            effects: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What happened.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// All tasks, the eldest first.
    pub fn list(&self) -> Vec<Task> {
        self.entries.iter().map(Entry::report).collect()
    }

    /// One task.
    pub fn get(&self, name: &str) -> Option<Task> {
        self.find(name).map(Entry::report)
    }

    /// Key of a task.
    pub fn key(&self, name: &str) -> Option<TaskKey> {
        self.find(name).map(|entry| entry.key)
    }

    /// Name of a task.
    pub fn name(&self, key: TaskKey) -> Option<String> {
        let entry = self.entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| entry.task.name.clone())
    }

    /// Where a task is, if it is in the list.
    pub fn slot(&self, key: TaskKey) -> Option<Slot> {
        let entry = self.entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| entry.slot)
    }

    /// Tasks that were started and have not ended.
    pub fn active(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| entry.is_active())
            .count()
    }

    /// Whether this task was started, will never be, or waits for others to end, which may take long.
    pub fn is_settled(&self, key: TaskKey) -> bool {
        let entry = self.entries.iter().find(|entry| entry.key == key);
        entry.is_none_or(|entry| match &entry.phase {
            Phase::Waiting { message, .. } => !message.is_empty(),
            Phase::Starting => false,
            Phase::Running { .. } | Phase::Ended { .. } => true,
        })
    }

    /// Processes that lead the sessions of a slot's tasks.
    pub fn sessions(&self, slot: Slot) -> Vec<i32> {
        let entries = self.entries.iter().filter(|entry| entry.slot == slot);
        entries
            .filter_map(|entry| match entry.phase {
                Phase::Running { pid, .. } => Some(pid),
                _ => None,
            })
            .collect()
    }

    /// Makes `wanted` the list: what is not in it is deleted, what is new is created, what is there
    /// under the same uid stays as it is, and under another uid is replaced. Names are not empty and
    /// not twice. Returns the keys of those that were created, and what was not taken.
    pub fn set(&mut self, wanted: Vec<(Slot, Task)>, now: u64) -> (Vec<TaskKey>, Vec<NotTaken>) {
        let names: std::collections::HashSet<_> =
            wanted.iter().map(|(_, task)| task.name.clone()).collect();
        let unwanted: Vec<_> = self
            .entries
            .iter()
            .map(|entry| entry.task.name.clone())
            .collect();
        for name in unwanted.iter().filter(|name| !names.contains(*name)) {
            self.delete(name, now);
        }
        let mut created = Vec::new();
        let mut not_taken = Vec::new();
        for (slot, task) in wanted {
            let Some(index) = self.index(&task.name) else {
                match self.insert(slot, task) {
                    Ok(key) => created.push(key),
                    Err(error) => not_taken.push(error),
                }
                continue;
            };
            let Some(entry) = self.entries.get_mut(index) else {
                continue;
            };
            if task.uid.is_none() || entry.task.uid == task.uid {
                entry.replacement = None;
                continue;
            }
            entry.replacement = Some((slot, task));
            self.stop_at(index, StopCause::Replacement, now);
        }
        self.schedule();
        (created, not_taken)
    }

    /// Adds one task.
    ///
    /// # Errors
    ///
    /// Its name is in use, or there is no room.
    pub fn create(&mut self, slot: Slot, task: Task) -> Result<TaskKey, NotTaken> {
        if self.find(&task.name).is_some() {
            return Err(NotTaken::Exists(task.name));
        }
        let active = self
            .entries
            .iter()
            .filter(|entry| !entry.has_ended())
            .count();
        if active >= self.limit {
            return Err(NotTaken::Busy(active));
        }
        let key = self.insert(slot, task)?;
        self.schedule();
        Ok(key)
    }

    /// Deletes a task: it is stopped, and leaves the list when nothing of it is left.
    pub fn delete(&mut self, name: &str, now: u64) {
        if let Some(index) = self.index(name) {
            if let Some(entry) = self.entries.get_mut(index) {
                entry.replacement = None;
            }
            self.stop_at(index, StopCause::Request, now);
            self.schedule();
        }
    }

    /// Stops all tasks; they stay in the list.
    pub fn stop_all(&mut self, cause: StopCause) {
        for entry in self.entries.iter_mut().filter(|entry| entry.is_active()) {
            if entry.stop.is_none() {
                entry.stop = Some(cause);
                self.effects
                    .push(Effect::Stop(entry.slot, entry.key, cause));
            }
        }
    }

    /// A slot has an agent that reported all it knows. A start that did not reach it is given again;
    /// what is believed to run and is not known there is lost.
    pub fn connected(&mut self, slot: Slot, known: &[TaskKey], now: u64) {
        if !self.connected.contains(&slot) {
            self.connected.push(slot);
        }
        let mut unknown = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.slot != slot {
                continue;
            }
            if !known.contains(&entry.key) {
                unknown.push(index);
            } else if entry.deleted && !entry.is_done() {
                let cause = entry.stop.unwrap_or(StopCause::Request);
                self.effects.push(Effect::Stop(slot, entry.key, cause));
            }
        }
        for index in unknown.into_iter().rev() {
            let Some(entry) = self.entries.get_mut(index) else {
                continue;
            };
            match entry.phase {
                // An agent that had died would have been lost before: this one lives, and knows every
                // task that it ever started.
                Phase::Starting => {
                    entry.phase = Phase::Waiting {
                        reason: PENDING,
                        message: String::new(),
                    };
                    if entry.deleted {
                        self.stop_at(index, StopCause::Request, now);
                    }
                }
                Phase::Running { .. } => {
                    self.end(index, lost(LossReason::AgentKilled, AGENT_GONE), now, true);
                }
                Phase::Waiting { .. } => {}
                Phase::Ended { .. } => {
                    let note = Box::new(entry.note());
                    self.effects.push(Effect::Note(slot, entry.key, note));
                }
            }
        }
        for remembered in self
            .remembered
            .iter()
            .filter(|remembered| remembered.slot == slot)
        {
            if !known.contains(&remembered.key) {
                let note = Box::new(remembered.note());
                self.effects.push(Effect::Note(slot, remembered.key, note));
            }
        }
        self.schedule();
    }

    /// The agent of a slot is gone, and what was left of its tasks has been removed.
    ///
    /// `oom_killed`: because the container ran out of memory.
    pub fn lost(
        &mut self,
        slot: Slot,
        reason: LossReason,
        message: &str,
        oom_killed: bool,
        now: u64,
    ) {
        self.disconnected(slot);
        for index in (0..self.entries.len()).rev() {
            let Some(entry) = self.entries.get_mut(index) else {
                continue;
            };
            if entry.slot != slot {
                continue;
            }
            match &mut entry.phase {
                Phase::Waiting { .. } => {}
                Phase::Starting | Phase::Running { .. } => {
                    let outcome = Outcome {
                        oom_killed,
                        ..lost(reason, message)
                    };
                    self.end(index, outcome, now, true);
                }
                Phase::Ended { gone, .. } => {
                    *gone = true;
                    self.remove_if_done(index);
                }
            }
        }
    }

    /// The agent of a slot does not answer any more; what that means for its tasks is told by
    /// [`Self::lost`] later. What comes meanwhile waits for the next agent.
    pub fn disconnected(&mut self, slot: Slot) {
        self.connected.retain(|connected| *connected != slot);
    }

    /// No agent can be had for a slot: what waits for it has failed.
    pub fn unreachable(&mut self, slot: Slot, failure: StartFailure, message: &str, now: u64) {
        for index in (0..self.entries.len()).rev() {
            let waits = self.entries.get(index).is_some_and(|entry| {
                entry.slot == slot && matches!(entry.phase, Phase::Waiting { .. })
            });
            if waits {
                self.end(index, not_started(failure, message), now, true);
            }
        }
    }

    /// Says why tasks of a slot still wait.
    pub fn waiting(&mut self, slot: Slot, why: (&'static str, &str)) {
        for entry in self.entries.iter_mut().filter(|entry| entry.slot == slot) {
            if let Phase::Waiting { reason, message } = &mut entry.phase
                && (*reason, message.as_str()) != why
            {
                *reason = why.0;
                why.1.clone_into(message);
                self.journal.push(Change::Modified, entry.report());
            }
        }
    }

    /// Moves a task that has not been given to an agent to another slot.
    pub fn reassign(&mut self, key: TaskKey, slot: Slot) {
        let entry = self.entries.iter_mut().find(|entry| entry.key == key);
        if let Some(entry) = entry
            && matches!(entry.phase, Phase::Waiting { .. } | Phase::Starting)
        {
            entry.slot = slot;
            entry.phase = Phase::Waiting {
                reason: PENDING,
                message: String::new(),
            };
        }
        self.schedule();
    }

    /// Tasks of a slot that wait, with the container that they name.
    pub fn waiters(&self, slot: Slot) -> Vec<(TaskKey, Option<String>)> {
        let entries = self
            .entries
            .iter()
            .filter(|entry| entry.slot == slot && matches!(entry.phase, Phase::Waiting { .. }));
        entries
            .map(|entry| (entry.key, entry.task.container_id.clone()))
            .collect()
    }

    /// A task could not even be ordered.
    pub fn refused(&mut self, key: TaskKey, failure: StartFailure, message: &str, now: u64) {
        let index = self.entries.iter().position(|entry| entry.key == key);
        let Some(index) = index else { return };
        if self
            .entries
            .get(index)
            .is_some_and(|entry| !entry.has_ended())
        {
            self.end(index, not_started(failure, message), now, true);
            self.schedule();
        }
    }

    /// An agent reports on a task.
    pub fn report(&mut self, slot: Slot, report: &TaskReport, now: u64) {
        if report.key.0 < MAX_FOREIGN_KEY {
            self.next_key = self.next_key.max(report.key.0 + 1);
        }
        let index =
            (self.entries.iter()).position(|entry| entry.slot == slot && entry.key == report.key);
        let Some(index) = index else {
            self.restore(slot, report, now);
            return;
        };
        self.apply(index, report, now);
        self.schedule();
    }

    fn apply(&mut self, index: usize, report: &TaskReport, now: u64) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if let Phase::Ended { gone, .. } = &mut entry.phase {
            *gone |= report.gone;
            self.remove_if_done(index);
            return;
        }
        match &report.state {
            TaskState::Starting => {}
            TaskState::Running { pid, started_at } => {
                if !matches!(entry.phase, Phase::Running { .. }) {
                    entry.phase = Phase::Running {
                        pid: *pid,
                        started_at: *started_at,
                    };
                    let name = entry.task.name.clone();
                    self.effects.push(Effect::Started(entry.key, name, *pid));
                    self.journal.push(Change::Modified, entry.report());
                }
            }
            state @ (TaskState::NotStarted { .. }
            | TaskState::Ended { .. }
            | TaskState::Lost { .. }) => {
                let stop = report.stop.or(entry.stop);
                if let Some(outcome) = start::outcome(state, stop, &entry.task) {
                    let (started_at, finished_at) = times(state, now);
                    self.end_at(index, outcome, started_at, finished_at, report.gone);
                }
            }
        }
    }

    /// A task that an executor before this one started.
    fn restore(&mut self, slot: Slot, report: &TaskReport, now: u64) {
        if self
            .remembered
            .iter()
            .any(|remembered| remembered.key == report.key)
        {
            return;
        }
        let Some(note) = report.note.as_deref().and_then(Note::decode) else {
            // Of an executor that wrote notes we cannot read: nobody waits for it.
            self.effects
                .push(Effect::Stop(slot, report.key, StopCause::Request));
            if report.gone {
                self.effects.push(Effect::Forget(slot, report.key));
            }
            return;
        };
        self.next_position = self.next_position.max(note.position.saturating_add(1));
        let Note {
            task,
            position,
            finished,
            deleted,
        } = note;
        if deleted && finished && report.gone {
            self.remember_again(slot, report.key, task, now);
            return;
        }
        let finished = finished.then(|| task.outcome.clone()).flatten();
        let mut entry = Entry {
            key: report.key,
            slot,
            position,
            task: ordered(task.clone()),
            phase: Phase::Starting,
            stop: report.stop,
            deleted,
            replacement: None,
            deleted_at: None,
        };
        if let Some(outcome) = finished {
            let (started_at, finished_at) = reported_times(&task);
            entry.phase = Phase::Ended {
                outcome,
                started_at,
                finished_at: finished_at.unwrap_or(now),
                gone: true,
            };
        }
        let key = report.key;
        // An entry under that name was ordered from this executor before it knew; the elder wins, and
        // if it is another run, it is replaced as by `set`.
        if let Some(index) = self.index(&entry.task.name) {
            let younger = self.entries.remove(index);
            if younger.task.uid != entry.task.uid && younger.task.uid.is_some() && !younger.deleted
            {
                entry.replacement = Some((younger.slot, younger.task));
            }
        }
        let replaced = entry.replacement.is_some();
        let place = self
            .entries
            .partition_point(|other| other.position < entry.position);
        if !deleted {
            self.journal.push(Change::Added, entry.report());
        }
        self.entries.insert(place, entry);
        self.apply(place, report, now);
        if replaced && let Some(index) = self.entries.iter().position(|entry| entry.key == key) {
            self.stop_at(index, StopCause::Replacement, now);
        }
        self.schedule();
    }

    fn remember_again(&mut self, slot: Slot, key: TaskKey, task: Task, now: u64) {
        let (started_at, finished_at) = reported_times(&task);
        if let (Some(uid), Some(outcome)) = (task.uid, task.outcome) {
            self.remembered.push_back(Remembered {
                key,
                slot,
                uid,
                name: task.name,
                outcome,
                started_at,
                finished_at: finished_at.unwrap_or(now),
            });
        } else {
            self.effects.push(Effect::Forget(slot, key));
        }
    }

    fn insert(&mut self, slot: Slot, task: Task) -> Result<TaskKey, NotTaken> {
        let remembered = self.remembered.iter().position(|remembered| {
            Some(&remembered.uid) == task.uid.as_ref() && remembered.name == task.name
        });
        if let Some(remembered) = remembered.and_then(|index| self.remembered.remove(index)) {
            // The same run, ordered again after its deletion: its result is known.
            let entry = Entry {
                key: remembered.key,
                slot: remembered.slot,
                position: self.position(),
                task: ordered(task),
                phase: Phase::Ended {
                    outcome: remembered.outcome,
                    started_at: remembered.started_at,
                    finished_at: remembered.finished_at,
                    gone: true,
                },
                stop: None,
                deleted: false,
                replacement: None,
                deleted_at: None,
            };
            self.effects
                .push(Effect::Note(entry.slot, entry.key, Box::new(entry.note())));
            return Ok(self.add(entry));
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(NotTaken::Full);
        }
        let key = TaskKey(self.next_key);
        self.next_key += 1;
        let entry = Entry {
            key,
            slot,
            position: self.position(),
            task: ordered(task),
            phase: Phase::Waiting {
                reason: PENDING,
                message: String::new(),
            },
            stop: None,
            deleted: false,
            replacement: None,
            deleted_at: None,
        };
        Ok(self.add(entry))
    }

    fn add(&mut self, entry: Entry) -> TaskKey {
        let key = entry.key;
        self.journal.push(Change::Added, entry.report());
        self.entries.push(entry);
        key
    }

    fn position(&mut self) -> u64 {
        let position = self.next_position;
        self.next_position += 1;
        position
    }

    /// Deletes the entry: stops it if there is anything to stop.
    fn stop_at(&mut self, index: usize, cause: StopCause, now: u64) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let again = entry.deleted;
        entry.deleted = true;
        entry.deleted_at.get_or_insert(now);
        match &entry.phase {
            Phase::Waiting { .. } => {
                entry.phase = Phase::Ended {
                    outcome: not_started(StartFailure::Other, "deleted before it was started"),
                    started_at: None,
                    finished_at: now,
                    gone: true,
                };
            }
            Phase::Ended { gone: true, .. } => {}
            Phase::Starting | Phase::Running { .. } | Phase::Ended { .. } if !again => {
                if !entry.has_ended() {
                    entry.stop.get_or_insert(cause);
                }
                self.effects
                    .push(Effect::Stop(entry.slot, entry.key, cause));
                self.journal.push(Change::Modified, entry.report());
            }
            Phase::Starting | Phase::Running { .. } | Phase::Ended { .. } => {}
        }
        self.remove_if_done(index);
    }

    fn end(&mut self, index: usize, outcome: Outcome, now: u64, gone: bool) {
        let started_at = self.entries.get(index).and_then(|entry| match entry.phase {
            Phase::Running { started_at, .. } => Some(started_at),
            _ => None,
        });
        let slot_note = self.entries.get(index).map(|entry| (entry.slot, entry.key));
        self.end_at(index, outcome, started_at, now, gone);
        // The agent has not seen this end: it is told, for the executor after this one.
        if let Some((slot, key)) = slot_note
            && let Some(entry) = self.entries.iter().find(|entry| entry.key == key)
            && self.connected.contains(&slot)
        {
            let note = Box::new(entry.note());
            self.effects.push(Effect::Note(slot, key, note));
        }
    }

    fn end_at(
        &mut self,
        index: usize,
        outcome: Outcome,
        started_at: Option<u64>,
        finished_at: u64,
        gone: bool,
    ) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        entry.phase = Phase::Ended {
            outcome: outcome.clone(),
            started_at,
            finished_at,
            gone,
        };
        let finished = Effect::Finished(entry.key, entry.task.name.clone(), Box::new(outcome));
        self.effects.push(finished);
        self.journal.push(Change::Modified, entry.report());
        self.remove_if_done(index);
    }

    fn remove_if_done(&mut self, index: usize) {
        let done = (self.entries.get(index)).is_some_and(|entry| entry.deleted && entry.is_done());
        if !done {
            return;
        }
        let entry = self.entries.remove(index);
        self.journal.push(Change::Deleted, entry.report());
        self.effects.push(Effect::Removed(entry.key));
        let Entry {
            key,
            slot,
            task,
            phase,
            replacement,
            ..
        } = entry;
        if let (
            Some(uid),
            Phase::Ended {
                outcome,
                started_at,
                finished_at,
                ..
            },
        ) = (task.uid, phase)
        {
            let remembered = Remembered {
                key,
                slot,
                uid,
                name: task.name,
                outcome,
                started_at,
                finished_at,
            };
            self.effects
                .push(Effect::Note(slot, key, Box::new(remembered.note())));
            self.remembered.push_back(remembered);
            if self.remembered.len() > MAX_REMEMBERED
                && let Some(eldest) = self.remembered.pop_front()
            {
                self.effects.push(Effect::Forget(eldest.slot, eldest.key));
            }
        } else {
            self.effects.push(Effect::Forget(slot, key));
        }
        if let Some((slot, task)) = replacement {
            // There is room: one has just left.
            let _ = self.insert(slot, task);
        }
    }

    /// Starts what can be started, in the order in which it came.
    fn schedule(&mut self) {
        let mut active = self.active();
        for entry in &mut self.entries {
            if !matches!(entry.phase, Phase::Waiting { .. })
                || !self.connected.contains(&entry.slot)
            {
                continue;
            }
            if active >= self.limit {
                let Phase::Waiting { reason, message } = &mut entry.phase else {
                    continue;
                };
                if message.is_empty() {
                    *reason = PENDING;
                    *message = format!("{active} tasks run already (--max-tasks)");
                    self.journal.push(Change::Modified, entry.report());
                }
                continue;
            }
            active += 1;
            entry.phase = Phase::Starting;
            let note = Box::new(entry.note());
            self.effects
                .push(Effect::Start(entry.slot, entry.key, note));
        }
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.task.name == name)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| entry.task.name == name)
    }
}

/// Upstream's reason of a task that has not started.
const PENDING: &str = "Pending";
const AGENT_GONE: &str = "the agent in the sandbox container does not know the task any more";

impl Entry {
    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended { gone: true, .. })
    }

    fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running { .. })
    }

    /// As clients see it.
    fn report(&self) -> Task {
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

    fn note(&self) -> Note {
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
    fn note(&self) -> Note {
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

fn lost(reason: LossReason, message: &str) -> Outcome {
    Outcome::of(End::Lost {
        reason,
        message: message.to_owned(),
    })
}

fn not_started(failure: StartFailure, message: &str) -> Outcome {
    Outcome::of(End::NotStarted {
        failure,
        message: message.to_owned(),
    })
}

/// Start and end as a final report has them.
fn reported_times(task: &Task) -> (Option<u64>, Option<u64>) {
    let status = task.process_status.as_ref();
    let terminated = status.and_then(|status| status.terminated.as_ref());
    let time = |time: &Option<String>| time.as_deref().and_then(unix_millis_of);
    terminated.map_or((None, None), |terminated| {
        (time(&terminated.started_at), time(&terminated.finished_at))
    })
}

fn times(state: &TaskState, now: u64) -> (Option<u64>, u64) {
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

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
