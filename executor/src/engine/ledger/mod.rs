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
//! 7. Of a program that ran, its start is told once, and before its end.
//!
//! A *slot* is a place where tasks run: the sandbox container, or another that a task names by its ID.

mod agents;
mod entry;

use std::collections::{HashSet, VecDeque};

use opensandbox_api::task::{Outcome, StartFailure, Task};

use self::entry::{Entry, PENDING, Phase, Remembered, not_started};
use super::journal::{Change, Journal};
use super::note::Note;
use crate::agent::protocol::{StopCause, TaskKey};

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
    Started(String, i32),
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
        self.by_key(key).map(|entry| entry.task.name.clone())
    }

    /// Where a task is, if it is in the list.
    pub fn slot(&self, key: TaskKey) -> Option<Slot> {
        self.by_key(key).map(|entry| entry.slot)
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
        self.by_key(key).is_none_or(|entry| match &entry.phase {
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
        let names: HashSet<_> = wanted.iter().map(|(_, task)| task.name.clone()).collect();
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

    fn insert(&mut self, slot: Slot, task: Task) -> Result<TaskKey, NotTaken> {
        let remembered = self.remembered.iter().position(|remembered| {
            Some(&remembered.uid) == task.uid.as_ref() && remembered.name == task.name
        });
        if let Some(remembered) = remembered.and_then(|index| self.remembered.remove(index)) {
            // The same run, ordered again after its deletion: its result is known.
            let phase = Phase::Ended {
                outcome: remembered.outcome,
                started_at: remembered.started_at,
                finished_at: remembered.finished_at,
                gone: true,
            };
            let Remembered { key, slot, .. } = remembered;
            let entry = Entry::new(key, slot, self.position(), task, phase);
            self.effects
                .push(Effect::Note(entry.slot, entry.key, Box::new(entry.note())));
            return Ok(self.add(entry));
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(NotTaken::Full);
        }
        let key = TaskKey(self.next_key);
        self.next_key += 1;
        let entry = Entry::new(key, slot, self.position(), task, Phase::waiting());
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

    fn by_key(&self, key: TaskKey) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| entry.task.name == name)
    }
}

#[cfg(test)]
mod tests;
