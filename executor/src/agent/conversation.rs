//! What is said to the executor, in which order, and when there is room.
//!
//! What waits to be said of a task is not its state but its key: an executor that does not read finds the
//! last state later, and costs no memory meanwhile. Other answers are few: while too many of them wait,
//! no order is taken.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::os::fd::AsFd as _;

use super::connection::{Closed, Connection, Offered};
use super::protocol::{Order, Report, Stage, StartFault, TaskKey, TaskReport, TaskState, VERSION};
use super::records::{Record, Telling, fault};
use crate::clock::unix_millis;

/// Answers that may wait for the executor to read.
const MAX_ANSWERS: usize = 64;
/// After which a frame is offered again whose descriptors there were too many of.
const CONGESTION_PAUSE: Duration = Duration::from_millis(10);

/// All tasks.
pub type Records = BTreeMap<TaskKey, Record>;

/// Something to say besides the states of tasks.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// To the hello.
    Hello,
    /// All tasks have been told of.
    SnapshotEnd,
    /// How a probe went.
    Probe(u64, Option<StartFault>),
    /// A task was not taken on, because there are too many.
    Refused(TaskKey),
}

#[derive(Debug)]
enum Item {
    Answer(Answer),
    Task(TaskKey),
}

/// The conversation with an executor, or none.
#[derive(Debug, Default)]
pub struct Conversation {
    connection: Option<Connection>,
    /// It said hello: nothing is said before.
    greeted: bool,
    queue: VecDeque<Item>,
    answers: usize,
    congested: bool,
}

impl Conversation {
    /// Begins with a new connection, and ends the one before.
    pub fn begin(&mut self, socket: OwnedFd, records: &mut Records) {
        self.end(records);
        self.connection = Connection::new(socket).ok();
    }

    /// Ends. The tasks go on.
    pub fn end(&mut self, records: &mut Records) {
        *self = Self::default();
        for record in records.values_mut() {
            record.telling = Telling::default();
        }
    }

    /// What to wait for, if there is a connection.
    pub fn poll_fd(&self) -> Option<PollFd<'_>> {
        let connection = self.connection.as_ref()?;
        let waiting = !self.queue.is_empty() && !self.congested;
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.has_room());
        flags.set(PollFlags::POLLOUT, waiting || !connection.is_idle());
        Some(PollFd::new(connection.as_fd(), flags))
    }

    /// After which to go on although nothing happened.
    pub fn pause(&self) -> Option<Duration> {
        self.congested.then_some(CONGESTION_PAUSE)
    }

    /// Answers have room, so orders are taken.
    pub fn has_room(&self) -> bool {
        self.answers < MAX_ANSWERS
    }

    /// Reads what is there.
    ///
    /// # Errors
    ///
    /// The connection is to be given up.
    pub fn receive(&mut self) -> Result<(), Closed> {
        let room = self.has_room();
        match &mut self.connection {
            Some(connection) if room => connection.receive(),
            _ => Ok(()),
        }
    }

    /// The next order, as long as there is room for answers.
    ///
    /// # Errors
    ///
    /// The connection is to be given up: it is no order, or does not begin with a hello.
    pub fn next_order(&mut self) -> Result<Option<Order>, Closed> {
        let room = self.has_room();
        let order = match &mut self.connection {
            Some(connection) if room => connection.next_order()?,
            _ => None,
        };
        if order.is_some() && !self.greeted && !matches!(order, Some(Order::Hello { .. })) {
            return Err(Closed);
        }
        Ok(order)
    }

    /// Answers a hello: everything is told, with notes and descriptors.
    pub fn greet(&mut self, records: &mut Records) {
        self.greeted = true;
        self.answer(Answer::Hello);
        for (key, record) in records {
            let queued = record.telling.queued;
            record.telling = Telling {
                queued: true,
                with_note: true,
                output_told: false,
            };
            if !queued {
                self.queue.push_back(Item::Task(*key));
            }
        }
        self.answer(Answer::SnapshotEnd);
    }

    /// Says something, if somebody listens.
    pub fn answer(&mut self, answer: Answer) {
        if self.greeted {
            self.queue.push_back(Item::Answer(answer));
            self.answers += 1;
        }
    }

    /// Has the executor told of a task, once, however much happens before it reads.
    pub fn touch(&mut self, key: TaskKey, record: &mut Record) {
        if self.greeted && !record.telling.queued {
            record.telling.queued = true;
            self.queue.push_back(Item::Task(key));
        }
    }

    /// Says what there is to say, as far as there is room.
    ///
    /// # Errors
    ///
    /// The connection is to be given up.
    pub fn tell(&mut self, records: &mut Records) -> Result<(), Closed> {
        self.congested = false;
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        connection.flush()?;
        while connection.is_idle()
            && let Some(item) = self.queue.front()
        {
            let (report, fds) = match item {
                Item::Answer(answer) => (answer.report(), Vec::new()),
                Item::Task(key) => {
                    let Some(record) = records.get(key) else {
                        // Forgotten meanwhile.
                        self.queue.pop_front();
                        continue;
                    };
                    let (report, fds) = record.report(*key);
                    (Report::Task(Box::new(report)), fds)
                }
            };
            match connection.offer(&report, &fds)? {
                Offered::Taken => {}
                Offered::Full => break,
                Offered::Congested => {
                    self.congested = true;
                    break;
                }
            }
            match self.queue.pop_front() {
                Some(Item::Task(key)) => {
                    if let Some(record) = records.get_mut(&key) {
                        let output_told = record.telling.output_told || !fds.is_empty();
                        record.telling = Telling {
                            output_told,
                            ..Telling::default()
                        };
                    }
                }
                _ => self.answers = self.answers.saturating_sub(1),
            }
        }
        Ok(())
    }
}

impl Answer {
    fn report(self) -> Report {
        match self {
            Self::Hello => Report::Hello { version: VERSION },
            Self::SnapshotEnd => Report::SnapshotEnd,
            Self::Probe(number, failure) => Report::Probe { number, failure },
            Self::Refused(key) => Report::Task(Box::new(TaskReport {
                key,
                note: None,
                state: TaskState::NotStarted {
                    fault: fault(Stage::Fork, Errno::EAGAIN),
                    at: unix_millis(),
                },
                stop: None,
                gone: true,
                output: false,
            })),
        }
    }
}
