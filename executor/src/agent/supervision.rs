//! What is to be done about one task, and what is to be said of it: a pure state machine.
//!
//! In: what happened, and when (since the task was forked, by the monotonic clock). Out: what to do. It
//! knows no process, no signal, no clock. What holds, whatever comes in, in whatever order:
//!
//! - [`Said::Gone`] is said once, last, and only after [`Event::NoneLeft`].
//! - Each of the other things is said at most once; a leader either starts or does not.
//! - The first reason to stop is the one that counts. A grace period only ever becomes shorter.
//! - A time limit acts only while the leader lives: what it left behind when it ended by itself may stay,
//!   as it may under any shell, until a stop.
//! - A program that runs is asked ([`Action::TerminateGroup`]) before it is killed, unless there is no
//!   grace at all. [`Action::KillAll`] comes once, and never before its time.
//!
//! Who is asked: the task's process group, and nobody else, because a leader that shuts its helpers down
//! in order must be able to. Once the group is empty there is nobody to wait for but those who know of
//! nothing, such as a server started with `setsid`: they are asked then ([`Action::TerminateRest`]), and
//! have what is left of the grace period.

use std::time::Duration;

use super::protocol::{Exit, StartFault, StopCause};

/// Signal number of `SIGKILL`, everywhere on Linux.
const SIGKILL: i32 = 9;

/// Something that happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its program was executed.
    Started,
    /// It was not, and its process ends.
    StartFailed(StartFault),
    /// The leader ended.
    LeaderEnded(Exit),
    /// Its process group has no member any more.
    GroupEmpty,
    /// No process of it is left.
    NoneLeft,
    /// Somebody wants its end; `None` is its own grace period.
    Stop(StopCause, Option<Duration>),
    /// The agent is gone: nobody could ever stop it again.
    AgentLost,
    /// Time passed.
    Tick,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send `SIGTERM` to its process group; say [`Event::GroupEmpty`] when that has no member, now or
    /// later.
    TerminateGroup,
    /// Send `SIGTERM` to every process of it.
    TerminateRest,
    /// Kill every process of it, until there is none.
    KillAll,
    /// Tell the agent.
    Say(Said),
}

/// Something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The program runs.
    Running,
    /// It could not be started.
    NotStarted(StartFault),
    /// It is being stopped.
    Stopping(StopCause),
    /// The leader ended.
    Ended {
        /// How.
        exit: Exit,
        /// By our `SIGKILL`.
        killed: bool,
    },
    /// Nothing is left.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leader {
    Starting,
    Running,
    Failed,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stop {
    kill_at: Duration,
    asked: bool,
    rest_asked: bool,
    killing: bool,
}

/// One task.
#[derive(Debug)]
pub struct Supervision {
    timeout: Option<Duration>,
    grace: Duration,
    now: Duration,
    leader: Leader,
    stop: Option<Stop>,
    gone: bool,
}

impl Supervision {
    /// A task that has just been forked, with its time limit and grace period.
    pub fn new(timeout: Option<Duration>, grace: Duration) -> Self {
        Self {
            timeout,
            grace,
            now: Duration::ZERO,
            leader: Leader::Starting,
            stop: None,
            gone: false,
        }
    }

    /// Takes in what happened at `now`, and adds what to do about it to `actions`.
    pub fn step(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) {
        if self.gone {
            return;
        }
        self.now = self.now.max(now);
        match event {
            Event::Started if self.leader == Leader::Starting => {
                self.leader = Leader::Running;
                actions.push(Action::Say(Said::Running));
                self.ask(actions);
            }
            Event::StartFailed(fault) if self.leader == Leader::Starting => {
                self.leader = Leader::Failed;
                actions.push(Action::Say(Said::NotStarted(fault)));
            }
            Event::LeaderEnded(exit) if self.leader_lives() => {
                self.leader = Leader::Ended;
                let ours = matches!(
                    exit,
                    Exit::Signal {
                        signal: SIGKILL,
                        ..
                    }
                );
                let killed = ours && self.killing();
                actions.push(Action::Say(Said::Ended { exit, killed }));
            }
            Event::GroupEmpty => self.ask_rest(actions),
            // With a leader that lives, it would not be true: whoever says so has lost track.
            Event::NoneLeft if !self.leader_lives() => {
                self.gone = true;
                actions.push(Action::Say(Said::Gone));
                return;
            }
            Event::Stop(cause, grace) => {
                self.begin_stop(cause, grace.unwrap_or(self.grace), actions);
            }
            Event::AgentLost => self.begin_stop(StopCause::Shutdown, Duration::ZERO, actions),
            _ => {}
        }
        self.pass_time(actions);
    }

    /// When [`Event::Tick`] is due next, if nothing else happens.
    pub fn deadline(&self) -> Option<Duration> {
        match self.stop {
            _ if self.gone => None,
            Some(stop) if stop.killing => None,
            Some(stop) => Some(stop.kill_at),
            None if self.leader_lives() => self.timeout,
            None => None,
        }
    }

    /// Everything of it is to be killed: [`Action::KillAll`] was given, and something is left.
    pub fn killing(&self) -> bool {
        !self.gone && self.stop.is_some_and(|stop| stop.killing)
    }

    /// Its group was asked to end, and is not yet known to have done so.
    pub fn awaits_group(&self) -> bool {
        let waits = |stop: Stop| stop.asked && !stop.rest_asked && !stop.killing;
        !self.gone && !self.leader_lives() && self.stop.is_some_and(waits)
    }

    /// The leader is starting or runs.
    pub fn leader_lives(&self) -> bool {
        matches!(self.leader, Leader::Starting | Leader::Running)
    }

    /// Nothing is left, and that has been said.
    pub fn gone(&self) -> bool {
        self.gone
    }

    fn begin_stop(&mut self, cause: StopCause, grace: Duration, actions: &mut Vec<Action>) {
        let kill_at = self.now.saturating_add(grace);
        if let Some(stop) = &mut self.stop {
            stop.kill_at = stop.kill_at.min(kill_at);
            return;
        }
        self.stop = Some(Stop {
            kill_at,
            asked: false,
            rest_asked: false,
            killing: false,
        });
        actions.push(Action::Say(Said::Stopping(cause)));
        if !grace.is_zero() {
            self.ask(actions);
        }
    }

    /// Asks the group to end, if it is to be stopped. Not before its program runs: until then it is in
    /// the group of who watches it.
    fn ask(&mut self, actions: &mut Vec<Action>) {
        let started = matches!(self.leader, Leader::Running | Leader::Ended);
        if let Some(stop) = &mut self.stop
            && started
            && !stop.asked
            && !stop.killing
        {
            stop.asked = true;
            actions.push(Action::TerminateGroup);
        }
    }

    fn ask_rest(&mut self, actions: &mut Vec<Action>) {
        if self.awaits_group()
            && let Some(stop) = &mut self.stop
        {
            stop.rest_asked = true;
            actions.push(Action::TerminateRest);
        }
    }

    fn pass_time(&mut self, actions: &mut Vec<Action>) {
        if self.stop.is_none()
            && self.leader_lives()
            && self.timeout.is_some_and(|timeout| timeout <= self.now)
        {
            self.begin_stop(StopCause::Timeout, self.grace, actions);
        }
        if let Some(stop) = &mut self.stop
            && !stop.killing
            && stop.kill_at <= self.now
        {
            stop.killing = true;
            actions.push(Action::KillAll);
        }
    }
}

#[cfg(test)]
mod tests;
