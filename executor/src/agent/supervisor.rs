//! The process that watches over one task: its parent, and the one that ends it.
//!
//! Between agent and supervisor is a socket of messages, [`Wish`] one way and [`News`] the other. When it
//! closes, the agent is gone, and the task with it. The time limit and the grace period are kept here, so
//! they hold whatever becomes of the executor.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::SIGTERM;
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};

use super::descendants::{Below, Pace};
use super::protocol::{Exit, Stage, StartFault, StopCause};
use super::start::{Outcome, Task, outcome};
use super::supervision::{Action, Event, Said, Supervision};
use super::wait::{child_signals, ready, wait_for};
use crate::clock::unix_millis;
use crate::sys::fd::pidfd_open;
use crate::sys::process::{SingleThread, Waited, close_all_but, signal_group_led_by, wait_any};

/// From agent to supervisor: end the task. Without a grace period, its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Wish {
    /// Why.
    pub cause: StopCause,
    /// Between `SIGTERM` and `SIGKILL`, in milliseconds.
    pub grace_millis: Option<u64>,
}

/// From supervisor to agent. Times are milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum News {
    /// The program runs.
    Running {
        /// Its process.
        pid: i32,
        /// Since when.
        started_at: u64,
    },
    /// It could not be started.
    NotStarted {
        /// Why.
        fault: StartFault,
        /// When.
        at: u64,
    },
    /// It is being stopped.
    Stopping(StopCause),
    /// The leader ended.
    Ended {
        /// The process.
        pid: i32,
        /// How.
        exit: Exit,
        /// By a `SIGKILL` of the supervisor.
        killed: bool,
        /// When it started.
        started_at: u64,
        /// When it ended.
        finished_at: u64,
        /// In between, by the monotonic clock.
        duration_micros: u64,
    },
    /// Nothing is left.
    Gone,
}

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 128;

/// Is the supervisor of `task`, in a process made for it. Returns the process's exit code.
pub fn run(
    proof: &SingleThread,
    task: &Task,
    agent: &OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> u8 {
    close_all_but(&[agent.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()]);
    let setup = || -> Result<SignalFd, Errno> {
        prctl::set_child_subreaper(true)?;
        setsid()?;
        let _ = prctl::set_name(c"task-supervisor");
        child_signals()
    };
    let started = setup()
        .map_err(|errno| StartFault {
            stage: Stage::Setup,
            errno: errno as i32,
        })
        .and_then(|signals| {
            let begun = (Instant::now(), unix_millis());
            let output = Some((stdout.as_fd(), stderr.as_fd()));
            let (pid, result) = task.program.start(proof, output)?;
            Ok((signals, begun, pid, result))
        });
    // The task's alone: their reading ends are to see when the last process of it has closed them.
    drop((stdout, stderr));
    match started {
        Ok((signals, (begun, started_at), pid, result)) => {
            let supervisor = Supervisor {
                agent: Some(agent),
                signals,
                result: Some(result),
                pid,
                // Before it is reaped its number is nobody else's.
                pidfd: pidfd_open(pid).ok(),
                started_at,
                begun,
                supervision: Supervision::new(task.timeout, task.grace),
                pace: Pace::new(begun),
                progress: false,
                lost_track: false,
            };
            supervisor.run()
        }
        Err(fault) => {
            tell(
                agent,
                News::NotStarted {
                    fault,
                    at: unix_millis(),
                },
            );
            tell(agent, News::Gone);
            0
        }
    }
}

struct Supervisor<'a> {
    agent: Option<&'a OwnedFd>,
    signals: SignalFd,
    /// How the start went, as long as that is not known.
    result: Option<OwnedFd>,
    pid: i32,
    pidfd: Option<OwnedFd>,
    started_at: u64,
    begun: Instant,
    supervision: Supervision,
    pace: Pace,
    /// Something was reaped since the last round of killing.
    progress: bool,
    /// The kernel knows no child, and the leader has not been seen to end.
    lost_track: bool,
}

impl Supervisor<'_> {
    fn run(mut self) -> u8 {
        loop {
            let [agent, start] = self.wait();
            if agent {
                self.hear();
            }
            if start {
                self.see_start();
            }
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.reap();
            self.step(Event::Tick);
            if self.supervision.killing() {
                self.kill_if_due();
            }
            if self.supervision.gone() {
                return 0;
            }
            if self.lost_track {
                // Ends without having said so: the agent reports that it does not know.
                return 1;
            }
        }
    }

    /// Waits until something happens. Whether the agent, or the start, has something to say.
    fn wait(&self) -> [bool; 2] {
        let now = Instant::now();
        let deadline = self.supervision.deadline();
        let until_deadline = deadline.map(|at| at.saturating_sub(now - self.begun));
        let until_round = self.supervision.killing().then(|| self.pace.wait(now));
        let limit = until_deadline.into_iter().chain(until_round).min();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        for fd in [self.agent, self.result.as_ref()].into_iter().flatten() {
            fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        }
        wait_for(&mut fds, limit);
        let mut rest = fds.iter().skip(1);
        let agent = self.agent.is_some() && rest.next().is_some_and(ready);
        let start = self.result.is_some() && rest.next().is_some_and(ready);
        [agent, start]
    }

    fn hear(&mut self) {
        let mut message = [0; MAX_MESSAGE];
        while let Some(agent) = self.agent {
            match recv(agent.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                Ok(length) if length > 0 => {
                    let text = message.get(..length).unwrap_or_default();
                    if let Ok(Wish {
                        cause,
                        grace_millis,
                    }) = postcard::from_bytes(text)
                    {
                        let grace = grace_millis.map(Duration::from_millis);
                        self.step(Event::Stop(cause, grace));
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => {
                    self.agent = None;
                    self.step(Event::AgentLost);
                }
            }
        }
    }

    fn see_start(&mut self) {
        let Some(result) = &self.result else { return };
        let event = match outcome(result.as_fd()) {
            Outcome::Pending => return,
            Outcome::Started => Event::Started,
            Outcome::Failed(fault) => Event::StartFailed(fault),
        };
        self.result = None;
        self.step(event);
    }

    fn reap(&mut self) {
        loop {
            match wait_any(false) {
                Waited::Ended(pid, exit) => {
                    self.progress = true;
                    if pid == self.pid {
                        // It says how its start went before it ends.
                        self.see_start();
                        self.step(Event::LeaderEnded(exit));
                    }
                }
                Waited::NoChildren => {
                    self.lost_track = self.supervision.leader_lives();
                    return self.step(Event::NoneLeft);
                }
                Waited::Nothing | Waited::Stopped(_) => break,
            }
        }
        // Cheap, and wrong only towards "has members": those that ended and are not reaped count.
        let group = Pid::from_raw(self.pid);
        if self.supervision.awaits_group() && killpg(group, None) == Err(Errno::ESRCH) {
            self.step(Event::GroupEmpty);
        }
    }

    fn step(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.supervision
            .step(self.begun.elapsed(), event, &mut actions);
        for action in actions {
            match action {
                Action::TerminateGroup => self.terminate_group(),
                Action::TerminateRest => Below::me(&|_| false).signal_all(SIGTERM),
                Action::KillAll => self.pace = Pace::new(Instant::now()),
                Action::Say(said) => self.say(said),
            }
        }
    }

    fn terminate_group(&mut self) {
        let group = Pid::from_raw(self.pid);
        let term = Signal::SIGTERM;
        let result = if self.supervision.leader_lives() {
            killpg(group, term)
        } else {
            // The number of a leader that is reaped may be another's by now.
            let pidfd = self.pidfd.as_ref().map(OwnedFd::as_fd);
            match pidfd.map(|pidfd| signal_group_led_by(pidfd, SIGTERM)) {
                Some(result @ (Ok(()) | Err(Errno::ESRCH))) => result,
                _ if Below::me(&|_| false).has_member_of(self.pid) => killpg(group, term),
                _ => Err(Errno::ESRCH),
            }
        };
        if result == Err(Errno::ESRCH) {
            self.step(Event::GroupEmpty);
        }
    }

    fn kill_if_due(&mut self) {
        let begun = Instant::now();
        if !self.pace.wait(begun).is_zero() {
            return;
        }
        Below::me(&|_| false).kill_round(&mut || self.reap());
        let now = Instant::now();
        self.pace
            .round(now, now - begun, std::mem::take(&mut self.progress));
    }

    fn say(&self, said: Said) {
        let now = unix_millis();
        let news = match said {
            Said::Running => News::Running {
                pid: self.pid,
                started_at: self.started_at,
            },
            Said::NotStarted(fault) => News::NotStarted { fault, at: now },
            Said::Stopping(cause) => News::Stopping(cause),
            Said::Ended { exit, killed } => News::Ended {
                pid: self.pid,
                exit,
                killed,
                started_at: self.started_at,
                finished_at: now.max(self.started_at),
                duration_micros: u64::try_from(self.begun.elapsed().as_micros())
                    .unwrap_or(u64::MAX),
            },
            Said::Gone => News::Gone,
        };
        if let Some(agent) = self.agent {
            tell(agent, news);
        }
    }
}

/// A handful of short messages in a task's life: the socket has room for all of them.
fn tell(agent: &OwnedFd, news: News) {
    let mut buffer = [0; MAX_MESSAGE];
    if let Ok(message) = postcard::to_slice(&news, &mut buffer) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // Fails only when the agent is gone, which is seen elsewhere.
        let _ = send(agent.as_raw_fd(), message, flags);
    }
}
