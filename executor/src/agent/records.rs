//! What the agent knows of one task.

use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::oom::{Attribution, Kills};
use super::protocol::{Stage, StartFault, StopCause, TaskKey, TaskReport, TaskState};
use super::supervisor::News;

/// One task.
#[derive(Debug)]
pub struct Record {
    /// Kept for the executor.
    pub note: Vec<u8>,
    /// Reading ends of its standard output and error.
    pub output: Option<[OwnedFd; 2]>,
    /// The process that watches over it, until it has ended.
    pub supervisor: Option<Supervisor>,
    state: TaskState,
    stop: Option<StopCause>,
    gone: bool,
    /// Its supervisor was killed before all of it was gone.
    orphaned: bool,
    kills_before: Option<u64>,
    /// What is to be told on this connection, or has been.
    pub telling: Telling,
}

/// The process that watches over a task, as the agent sees it.
#[derive(Debug)]
pub struct Supervisor {
    /// Its number, its own until the agent reaps it.
    pub pid: i32,
    /// The agent's end of their socket.
    pub socket: OwnedFd,
}

/// What one connection is told about a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// It is in the queue.
    pub queued: bool,
    /// With its note.
    pub with_note: bool,
    /// It has had the descriptors.
    pub output_told: bool,
}

impl Record {
    /// A task that has just been given to a supervisor.
    pub fn started(
        note: Vec<u8>,
        output: [OwnedFd; 2],
        supervisor: Supervisor,
        kills_before: Option<u64>,
    ) -> Self {
        Self {
            note,
            output: Some(output),
            supervisor: Some(supervisor),
            state: TaskState::Starting,
            stop: None,
            gone: false,
            orphaned: false,
            kills_before,
            telling: Telling::default(),
        }
    }

    /// A task that could not even be given to one.
    pub fn not_started(note: Vec<u8>, fault: StartFault, at: u64) -> Self {
        Self {
            note,
            output: None,
            supervisor: None,
            state: TaskState::NotStarted { fault, at },
            stop: None,
            gone: true,
            orphaned: false,
            kills_before: None,
            telling: Telling::default(),
        }
    }

    /// Nothing is left of it.
    pub fn gone(&self) -> bool {
        self.gone
    }

    /// The report of it, and the descriptors that go with it.
    pub fn report(&self, key: TaskKey) -> (TaskReport, Vec<RawFd>) {
        let fds: Vec<RawFd> = match &self.output {
            Some(output) if !self.telling.output_told => {
                output.iter().map(AsRawFd::as_raw_fd).collect()
            }
            _ => Vec::new(),
        };
        let report = TaskReport {
            key,
            note: self.telling.with_note.then(|| self.note.clone()),
            state: self.state.clone(),
            stop: self.stop,
            gone: self.gone,
            output: !fds.is_empty(),
        };
        (report, fds)
    }

    /// Takes in what its supervisor says.
    pub fn hear(&mut self, news: News, kills: &Kills, attribution: &mut Attribution) {
        match news {
            News::Running { pid, started_at } => {
                self.state = TaskState::Running { pid, started_at };
            }
            News::NotStarted { fault, at } => self.state = TaskState::NotStarted { fault, at },
            News::Stopping(cause) => self.stop = Some(cause),
            News::Ended {
                pid,
                exit,
                killed,
                started_at,
                finished_at,
                duration_micros,
            } => {
                let before = self.kills_before.take();
                let oom_killed = attribution.take(exit, killed, before, kills.count());
                self.state = TaskState::Ended {
                    pid,
                    exit,
                    oom_killed,
                    started_at,
                    finished_at,
                    duration_micros,
                };
            }
            News::Gone => self.gone = true,
        }
    }

    /// Its supervisor was killed. What it has already said holds.
    pub fn orphan(&mut self, at: u64) {
        self.orphaned = true;
        let (pid, started_at) = match self.state {
            TaskState::Starting => (None, None),
            TaskState::Running { pid, started_at } => (Some(pid), Some(started_at)),
            TaskState::NotStarted { .. } | TaskState::Ended { .. } | TaskState::Lost { .. } => {
                return;
            }
        };
        self.state = TaskState::Lost {
            pid,
            started_at,
            at,
        };
    }

    /// No process is left that a killed supervisor watched. Whether that is news of this task.
    pub fn no_orphans(&mut self) -> bool {
        let news = self.orphaned && !self.gone;
        self.gone |= news;
        news
    }

    /// Closes the reading ends if there is nothing more to read and nobody who could write.
    pub fn close_drained_output(&mut self) {
        let drained = |fd: &OwnedFd| {
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            let found = poll(&mut fds, PollTimeout::ZERO);
            let [fd] = fds;
            found == Ok(1) && fd.revents() == Some(PollFlags::POLLHUP)
        };
        if self.gone
            && self
                .output
                .as_ref()
                .is_some_and(|output| output.iter().all(drained))
        {
            self.output = None;
        }
    }
}

/// The kernel's reason as a fault of `stage`.
pub fn fault(stage: Stage, errno: nix::errno::Errno) -> StartFault {
    StartFault {
        stage,
        errno: errno as i32,
    }
}
