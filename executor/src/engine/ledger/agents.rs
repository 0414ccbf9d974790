//! What agents say, and that they come and go.

use opensandbox_api::task::{LossReason, Outcome, StartFailure, Task};

use super::entry::{
    AGENT_GONE, Entry, Phase, Remembered, lost, not_started, process, reported_times, times,
};
use super::{Effect, Ledger, MAX_FOREIGN_KEY, MAX_REMEMBERED, Slot};
use crate::agent::protocol::{StopCause, TaskKey, TaskReport, TaskState};
use crate::engine::journal::Change;
use crate::engine::note::Note;
use crate::engine::start;

impl Ledger {
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
                    entry.phase = Phase::waiting();
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
            entry.phase = Phase::waiting();
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

    pub(super) fn apply(&mut self, index: usize, report: &TaskReport, now: u64) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if let Phase::Ended { gone, .. } = &mut entry.phase {
            *gone |= report.gone;
            self.remove_if_done(index);
            return;
        }
        let running = matches!(entry.phase, Phase::Running { .. });
        // Of one that is over soon, its end is all that is heard.
        if let Some(pid) = process(&report.state)
            && !running
        {
            let name = entry.task.name.clone();
            self.effects.push(Effect::Started(name, pid));
        }
        match &report.state {
            TaskState::Starting => {}
            TaskState::Running { pid, started_at } => {
                if !running {
                    entry.phase = Phase::Running {
                        pid: *pid,
                        started_at: *started_at,
                    };
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
    pub(super) fn restore(&mut self, slot: Slot, report: &TaskReport, now: u64) {
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
        let mut entry = Entry::new(report.key, slot, position, task.clone(), Phase::Starting);
        entry.stop = report.stop;
        entry.deleted = deleted;
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

    pub(super) fn remember_again(&mut self, slot: Slot, key: TaskKey, task: Task, now: u64) {
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

    pub(super) fn end(&mut self, index: usize, outcome: Outcome, now: u64, gone: bool) {
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

    pub(super) fn end_at(
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

    pub(super) fn remove_if_done(&mut self, index: usize) {
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
}
