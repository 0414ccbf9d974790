//! What happened to the tasks lately, so that a client that was cut off goes on where it was.
//!
//! Pure. A cursor is `EPOCH-NUMBER`: the epoch is the executor's, so that a cursor of the one before is
//! not mistaken for ours.

use std::collections::VecDeque;
use std::sync::Arc;

use opensandbox_api::task::{Task, WatchEvent};

/// Events that are kept at most.
const MAX_EVENTS: usize = 2048;
/// Bytes of tasks in kept events, roughly. Tasks carry their arguments and environment.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// What happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there.
    Added,
    /// It is in another state.
    Modified,
    /// It is gone.
    Deleted,
}

/// The latest changes.
#[derive(Debug)]
pub struct Journal {
    epoch: u64,
    /// Number of the latest event; 0 is before the first.
    last: u64,
    events: VecDeque<(Change, Arc<Task>, usize)>,
    bytes: usize,
}

impl Journal {
    /// An empty one. `epoch` differs from those of all executors before.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            last: 0,
            events: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Adds a change.
    pub fn push(&mut self, change: Change, task: Task) {
        let bytes = weight(&task);
        self.last += 1;
        self.bytes += bytes;
        self.events.push_back((change, Arc::new(task), bytes));
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > 1) {
            if let Some((_, _, bytes)) = self.events.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// Number of the latest event.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The text of a position.
    pub fn cursor(&self, number: u64) -> String {
        format!("{:x}-{number}", self.epoch)
    }

    /// The position that a cursor names, if what came after it is still known.
    pub fn position(&self, cursor: &str) -> Option<u64> {
        let (epoch, number) = cursor.split_once('-')?;
        if u64::from_str_radix(epoch, 16).ok()? != self.epoch {
            return None;
        }
        let number = number.parse().ok()?;
        self.knows(number).then_some(number)
    }

    /// Whether everything after position `number` is still here.
    pub fn knows(&self, number: u64) -> bool {
        number <= self.last && self.last - number <= self.events.len() as u64
    }

    /// The event that follows position `number`, if there is one yet.
    pub fn after(&self, number: u64) -> Option<WatchEvent> {
        let missing = self.last.checked_sub(number)?;
        let index = self
            .events
            .len()
            .checked_sub(usize::try_from(missing).ok()?)?;
        let (change, task, _) = self.events.get(index)?;
        let cursor = self.cursor(number + 1);
        let task = Box::new(Task::clone(task));
        Some(match change {
            Change::Added => WatchEvent::Added { cursor, task },
            Change::Modified => WatchEvent::Modified { cursor, task },
            Change::Deleted => WatchEvent::Deleted { cursor, task },
        })
    }
}

fn weight(task: &Task) -> usize {
    let process = task.process.as_ref().map_or(0, |process| {
        let strings = process.command.iter().chain(&process.args).map(String::len);
        let env = process.env.iter();
        strings.sum::<usize>()
            + env
                .map(|variable| variable.name.len() + variable.value.expose().len())
                .sum::<usize>()
    });
    512 + task.name.len() + process
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str) -> Task {
        Task {
            name: name.to_owned(),
            ..Task::default()
        }
    }

    #[test]
    fn a_known_cursor_goes_on_where_it_was() {
        let mut journal = Journal::new(0xabc);
        let start = journal.cursor(0);
        for name in ["a", "b", "c"] {
            journal.push(Change::Added, task(name));
        }
        let mut position = journal.position(&start).unwrap();
        let mut names = Vec::new();
        while let Some(event) = journal.after(position) {
            position = journal.position(event.cursor().unwrap()).unwrap();
            let WatchEvent::Added { task, .. } = event else {
                panic!("{event:?}")
            };
            names.push(task.name);
        }
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn a_cursor_of_another_executor_or_of_the_future_or_too_old_is_unknown() {
        let mut journal = Journal::new(1);
        for number in 0..MAX_EVENTS + 10 {
            journal.push(Change::Modified, task(&number.to_string()));
        }
        assert_eq!(journal.position("2-5"), None);
        assert_eq!(journal.position("1-9"), None);
        assert_eq!(journal.position("1-10"), Some(10));
        assert_eq!(journal.position("1-99999999"), None);
        for garbage in ["", "-", "1", "x-1", "1-x", "1--1", "\u{1f980}-1"] {
            assert_eq!(journal.position(garbage), None, "{garbage}");
        }
        assert!(journal.after(journal.last()).is_none());
    }

    #[test]
    fn large_tasks_leave_early() {
        let mut journal = Journal::new(1);
        for _ in 0..50 {
            let mut large = task("large");
            large.process = Some(opensandbox_api::task::Process {
                command: vec!["x".repeat(100_000)],
                ..Default::default()
            });
            journal.push(Change::Modified, large);
        }
        assert!(journal.events.len() < 25, "{}", journal.events.len());
        assert!(journal.knows(50) && !journal.knows(1));
    }
}
