//! Starts an agent that is a child of this process, with the control socket at its place.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::agent::protocol::{AGENT_NAME, ARG_CHILD, CONTROL_FD};
use crate::sys::{fd, spawn};

/// A child that is an agent.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Our end of the control socket.
    pub(super) control: OwnedFd,
    /// What it writes there, if that was piped.
    pub(super) stderr: Option<ChildStderr>,
}

/// Starts it, with further arguments. It ends when the control socket does, and is a zombie then until
/// [`reap`](super::remains::reap).
pub(super) fn agent(program: &Path, arguments: &[String], stderr: Stdio) -> io::Result<Started> {
    let (control, far_end) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let mut command = Command::new(program);
    command
        .arg0(AGENT_NAME)
        .arg(ARG_CHILD)
        .args(arguments)
        // It has no use for the executor's, and tasks get their environment with the order.
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let mut child = spawn::spawn_with(command, far_end.as_fd(), CONTROL_FD)?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // Nobody has waited for it yet, so the number cannot have been reused.
    let pidfd = fd::pidfd_open(pid)?;
    Ok(Started {
        pid,
        pidfd,
        control,
        stderr: child.stderr.take(),
    })
}
