//! The descriptors between agent, supervisor and task.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::pipe2;

/// All of a task's, of which none is inherited by a program.
#[derive(Debug)]
pub struct Channels {
    /// Reading ends of standard output and error.
    pub output: [OwnedFd; 2],
    /// Their writing ends.
    pub writing: [OwnedFd; 2],
    /// The agent's end of the socket between agent and supervisor.
    pub near: OwnedFd,
    /// The supervisor's.
    pub far: OwnedFd,
}

/// Makes them.
///
/// # Errors
///
/// There are too many descriptors already.
pub fn channels() -> Result<Channels, Errno> {
    let (stdout, stdout_writing) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_writing) = pipe2(OFlag::O_CLOEXEC)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let (output, writing) = ([stdout, stderr], [stdout_writing, stderr_writing]);
    Ok(Channels {
        output,
        writing,
        near,
        far,
    })
}
