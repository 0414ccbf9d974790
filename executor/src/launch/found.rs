//! The agent that an executor before this one left in the sandbox container.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};

use super::{Entered, Mode};
use crate::agent::protocol::{AGENT_NAME, CONTROL_PEER_FD};
use crate::pod::proc::{Proc, Stat};
use crate::pod::target::Choice;
use crate::sys::fd;

/// Looks for it. Of several the oldest counts; one whose socket cannot be taken is passed over.
pub(super) fn look(proc: &Proc, choice: Choice<'_>) -> Option<Entered> {
    let mut candidates: Vec<&Stat> = choice
        .container
        .processes
        .iter()
        // Injection makes it a child of whoever is the main process's parent, outside the container.
        // Supervisors are its children, and orphans are taken in by the pause process.
        .filter(|process| process.parent == choice.main.parent && process.pid != choice.main.pid)
        .filter(|process| !process.is_dead() && is_agent(proc, process.pid))
        .collect();
    candidates.sort_by_key(|process| (process.start_time, process.pid));
    candidates.into_iter().find_map(|process| {
        let pidfd = fd::pidfd_open(process.pid).ok()?;
        if !proc.is_alive(process.pid, process.start_time) {
            return None;
        }
        let control = fd::pidfd_getfd(pidfd.as_fd(), CONTROL_PEER_FD).ok()?;
        is_control_socket(&control).then_some(Entered {
            mode: Mode::Injected,
            pid: process.pid,
            pidfd,
            control,
            found: true,
            remark: None,
        })
    })
}

/// Whether a process executes an injected agent: by what it runs and by what it was started as. A sandbox
/// can imitate both; it can then lie about its own tasks, see [`protocol`](crate::agent::protocol).
fn is_agent(proc: &Proc, pid: i32) -> bool {
    let expected = format!("/memfd:{AGENT_NAME} (deleted)");
    proc.executable(pid).as_deref() == Some(Path::new(&expected)) && is_named_agent(proc, pid)
}

/// Whether a process was started as an agent. The supervisors of tasks, which it forks, are too.
pub(super) fn is_named_agent(proc: &Proc, pid: i32) -> bool {
    proc.first_argument(pid).as_deref() == Some(AGENT_NAME.as_bytes())
}

fn is_control_socket(socket: &OwnedFd) -> bool {
    getsockopt(socket, sockopt::SockType) == Ok(SockType::SeqPacket)
        && getsockname::<UnixAddr>(socket.as_raw_fd()).is_ok()
}
