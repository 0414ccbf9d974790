//! Signalling everything below a process, also what forks faster than one can look.
//!
//! Everything that a supervisor has started is below it: it is a subreaper, so what loses its parent
//! becomes its child. `/proc` says who the children are; the rest is a race, which these rules win:
//!
//! - A child of ours cannot change its number: only we could free it, and we do not reap during a walk.
//!   It is signalled as soon as it is seen, before anything is read about it.
//! - A deeper one that is signalled alone is opened as a pidfd first, then found to be below us, then
//!   signalled through the pidfd.
//! - A session that is not ours was begun by one of ours, and is inherited only. So all of a process group
//!   in it is ours, and signalling a group is atomic against `fork`.
//! - Everything is stopped before anything is killed, walk after walk until a walk finds nothing new:
//!   what is stopped does not fork, and its slots stay taken, where killing would make room for more.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::libc::{SIGKILL, SIGSTOP};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getsid};

use super::processes::{Children, Status};
use crate::sys::fd::{pidfd_open, pidfd_send_signal};

/// Walks in which everything is stopped, at most, before it is killed. A process that wakes others could
/// otherwise go on for ever.
const STOP_WALKS: usize = 24;
/// Between two rounds of killing, at first; doubled while nothing ends, such as what waits for a disk.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Below whom to look: this process, apart from some of its children and what is below them.
pub struct Below<'a> {
    me: i32,
    my_session: i32,
    spared: &'a dyn Fn(i32) -> bool,
}

impl std::fmt::Debug for Below<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Below")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl<'a> Below<'a> {
    /// Below this process, without the children for which `spared` holds.
    pub fn me(spared: &'a dyn Fn(i32) -> bool) -> Self {
        let my_session = getsid(None).map_or(0, Pid::as_raw);
        Self {
            me: Pid::this().as_raw(),
            my_session,
            spared,
        }
    }

    /// Sends `signal` to each process below.
    pub fn signal_all(&self, signal: i32) {
        self.walk(Some(signal), &mut |pid, parent, _| {
            if parent == self.me {
                return;
            }
            // Opened first, and only then found to be below us: the number may have been given anew.
            match pidfd_open(pid) {
                Ok(pidfd) if self.has_parent(pid, parent) => {
                    let _ = pidfd_send_signal(pidfd.as_fd(), signal);
                }
                Ok(_) => {}
                Err(_) => signal_child(pid, signal),
            }
        });
    }

    fn has_parent(&self, pid: i32, parent: i32) -> bool {
        let now = Status::read(pid).map(|status| status.parent);
        now == Some(parent) || now == Some(self.me)
    }

    /// Whether one of the process group and session `leader` is below, and has not ended.
    pub fn has_member_of(&self, leader: i32) -> bool {
        let mut found = false;
        self.walk(None, &mut |_, _, status| {
            found |= status.is_some_and(|status| {
                status.session == leader && status.group == leader && !status.over
            });
        });
        found
    }

    /// Whether there is no child but those spared.
    pub fn is_empty(&self) -> bool {
        Children::now().of(self.me, 1).into_iter().all(self.spared)
    }

    /// Kills what is below; `reap` is called between walks. What is left afterwards needs another round.
    pub fn kill_round(&self, reap: &mut dyn FnMut()) {
        let mut known = HashSet::new();
        for _ in 0..STOP_WALKS {
            reap();
            if self.stop_all(&mut known) == 0 {
                break;
            }
        }
        self.kill_all();
        reap();
    }

    /// Stops what is below. Returns how many processes were not in `known`, to which they are added.
    fn stop_all(&self, known: &mut HashSet<(i32, u64)>) -> usize {
        let mut groups = HashSet::new();
        let mut fresh = 0;
        self.walk(Some(SIGSTOP), &mut |pid, _, status| {
            let Some(status) = status else { return };
            // A group exists as long as a member does, and this one was seen in it just now.
            if status.session != self.my_session && groups.insert(status.group) {
                signal_group(status.group, SIGSTOP);
            }
            if !status.over && known.insert((pid, status.started)) {
                fresh += 1;
            }
        });
        fresh
    }

    /// Kills what is below, once all of it has been seen: the children of who ends are not below it.
    fn kill_all(&self) {
        let mut groups = HashSet::new();
        let mut children = Vec::new();
        self.walk(None, &mut |pid, parent, status| {
            if parent == self.me {
                children.push(pid);
            }
            if let Some(status) = status
                && status.session != self.my_session
            {
                groups.insert(status.group);
            }
        });
        for group in groups {
            signal_group(group, SIGKILL);
        }
        for child in children {
            signal_child(child, SIGKILL);
        }
    }

    /// Visits each process below, parents before children, with its parent and what is known of it.
    /// Children of ours get the signal `at_once` before anything else.
    fn walk(&self, at_once: Option<i32>, visit: &mut dyn FnMut(i32, i32, Option<&Status>)) {
        let children = Children::now();
        let mut waiting: Vec<(i32, i32)> = Vec::new();
        for child in children.of(self.me, 1) {
            if !(self.spared)(child) {
                if let Some(signal) = at_once {
                    signal_child(child, signal);
                }
                waiting.push((child, self.me));
            }
        }
        let mut seen: HashSet<i32> = waiting.iter().map(|(child, _)| *child).collect();
        while let Some((pid, parent)) = waiting.pop() {
            let status = Status::read(pid);
            let is_below = |status: &Status| status.parent == parent || status.parent == self.me;
            if parent != self.me && !status.as_ref().is_some_and(is_below) {
                continue;
            }
            visit(pid, parent, status.as_ref());
            let threads = status.map_or(1, |status| status.threads);
            for child in children.of(pid, threads) {
                if seen.insert(child) {
                    waiting.push((child, pid));
                }
            }
        }
    }
}

fn signal_child(pid: i32, signal: i32) {
    if let Ok(signal) = Signal::try_from(signal) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn signal_group(group: i32, signal: i32) {
    // 1 and less mean something else to `kill`.
    if let Ok(signal) = Signal::try_from(signal)
        && group > 1
    {
        let _ = killpg(Pid::from_raw(group), signal);
    }
}

/// When to kill the next time, so that it takes at most half of a processor.
#[derive(Debug)]
pub struct Pace {
    next: Instant,
    pause: Duration,
}

impl Pace {
    /// At once.
    pub fn new(now: Instant) -> Self {
        Self {
            next: now,
            pause: FIRST_PAUSE,
        }
    }

    /// How long to wait for the next round; zero if it is due.
    pub fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// A round ended at `now` that took `took`, after which something had ended or not.
    pub fn round(&mut self, now: Instant, took: Duration, progress: bool) {
        self.pause = if progress {
            FIRST_PAUSE
        } else {
            (self.pause * 2).min(LONGEST_PAUSE)
        };
        self.next = now + self.pause.max(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killing_slows_down_only_while_nothing_ends() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.wait(start), Duration::ZERO);
        let mut waits = Vec::new();
        for progress in [true, false, false, true] {
            pace.round(start, Duration::ZERO, progress);
            waits.push(pace.wait(start).as_millis());
        }
        assert_eq!(waits, [1, 2, 4, 1]);
        pace.round(start, Duration::from_millis(30), true);
        assert_eq!(
            pace.wait(start).as_millis(),
            30,
            "a long round is followed by a long pause"
        );
        for _ in 0..20 {
            pace.round(start, Duration::ZERO, false);
        }
        assert_eq!(pace.wait(start), LONGEST_PAUSE);
    }
}
