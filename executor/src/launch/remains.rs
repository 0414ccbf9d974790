//! What is left of tasks whose agent was killed, and children that have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc::{SIGKILL, SIGSTOP};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::found;
use crate::pod::cgroup;
use crate::pod::proc::{Proc, Stat};
use crate::sys::fd;

/// In which container to look.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// The one of this ID: for an injected agent.
    Container(&'a str),
    /// The executor's: for an agent that is its child.
    Own,
}

/// Processes that tasks left behind in a container: what is in one of these sessions (a task leads one,
/// its ID is the task's pid), supervisors, and the descendants of both. Never a process that came into
/// the container from outside: the main process, what `kubectl exec` started, or an agent. To be asked
/// while no agent runs there, for a supervisor does not show whose it is.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn remains(proc: &Proc, scope: Scope<'_>, sessions: &[i32]) -> io::Result<Vec<Stat>> {
    let own = proc.own_pid()?;
    let place = |pid| proc.cgroup(pid).map(|text| cgroup::place(&text));
    let own_place = place(own);
    let is_member = |pid| match (place(pid), scope, &own_place) {
        (Some(found), Scope::Container(id), _) => found.container_id.as_deref() == Some(id),
        (Some(found), Scope::Own, Some(own)) => {
            found.container_id == own.container_id && found.outside == own.outside
        }
        _ => false,
    };
    let members: BTreeMap<i32, Stat> = proc
        .pids()?
        .into_iter()
        .filter(|pid| is_member(*pid))
        .filter_map(|pid| Some((pid, proc.stat(pid)?)))
        .filter(|(_, stat)| !stat.is_dead())
        .collect();
    // Zero is a parent outside the PID namespace.
    let entered = |stat: &Stat| stat.parent == 0 || stat.pid == own;
    // The number of a task's session, reused by a shell that came in from outside.
    let reused = |session: i32| members.get(&session).is_some_and(entered);
    let mut found: BTreeSet<i32> = members
        .values()
        .filter(|stat| !entered(stat))
        .filter(|stat| {
            (sessions.contains(&stat.session) && !reused(stat.session))
                || (stat.parent != own && found::is_named_agent(proc, stat.pid))
        })
        .map(|stat| stat.pid)
        .collect();
    loop {
        let children: Vec<i32> = members
            .values()
            .filter(|stat| found.contains(&stat.parent) && !found.contains(&stat.pid))
            .filter(|stat| !entered(stat))
            .map(|stat| stat.pid)
            .collect();
        if children.is_empty() {
            break;
        }
        found.extend(children);
    }
    Ok(members
        .into_values()
        .filter(|stat| found.contains(&stat.pid))
        .collect())
}

/// Kills what [`remains`], and returns the number of processes killed once none is left. Everything is
/// stopped before anything is killed, so that nothing is orphaned, and thereby lost sight of, meanwhile.
///
/// # Errors
///
/// `/proc` cannot be read, a process may not be signalled, or some are left after `time_limit`.
pub fn kill_remains(
    proc: &Proc,
    scope: Scope<'_>,
    sessions: &[i32],
    time_limit: Duration,
) -> io::Result<usize> {
    let deadline = Instant::now() + time_limit;
    let mut killed = 0;
    loop {
        let mut stopped: BTreeMap<(i32, u64), OwnedFd> = BTreeMap::new();
        loop {
            let fresh: Vec<Stat> = remains(proc, scope, sessions)?
                .into_iter()
                .filter(|stat| !stopped.contains_key(&(stat.pid, stat.start_time)))
                .collect();
            if fresh.is_empty() || Instant::now() > deadline {
                break;
            }
            for stat in fresh {
                if let Some(pidfd) = pinned(proc, stat) {
                    signal(&pidfd, SIGSTOP)?;
                    stopped.insert((stat.pid, stat.start_time), pidfd);
                }
            }
        }
        if stopped.is_empty() {
            return Ok(killed);
        }
        for pidfd in stopped.values() {
            signal(pidfd, SIGKILL)?;
        }
        for pidfd in stopped.values() {
            if !has_ended(pidfd, deadline)? {
                return Err(io::Error::other(format!(
                    "processes of tasks are left after {} s",
                    time_limit.as_secs()
                )));
            }
        }
        killed += stopped.len();
    }
}

/// Reaps children of this process that have ended: agents, and orphans that came to it as pid 1. Each by
/// its number, never just any: a wait for any child would take away what tracing waits for. Not `spared`, whose
/// end somebody else wants to know.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn reap(proc: &Proc, spared: Option<i32>) -> io::Result<usize> {
    let own = proc.own_pid()?;
    let children = proc.pids()?.into_iter().filter_map(|pid| proc.stat(pid));
    let ended =
        children.filter(|stat| stat.parent == own && stat.is_dead() && Some(stat.pid) != spared);
    let reaped = ended.filter(|stat| {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        waitid(Id::Pid(Pid::from_raw(stat.pid)), flags).is_ok()
    });
    Ok(reaped.count())
}

/// Waits for a child that was killed. One that another thread has reaped is gone just as well.
pub(super) fn reap_child(pidfd: &OwnedFd) {
    let _reaped = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
}

/// A descriptor of the process that was seen, if it is still that one.
fn pinned(proc: &Proc, stat: Stat) -> Option<OwnedFd> {
    let pidfd = fd::pidfd_open(stat.pid).ok()?;
    proc.is_alive(stat.pid, stat.start_time).then_some(pidfd)
}

/// To one that has just ended there is nothing to send.
fn signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    match fd::pidfd_send_signal(pidfd.as_fd(), signal) {
        Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn has_ended(pidfd: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut waiting = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return Ok(result? > 0),
        }
    }
}
