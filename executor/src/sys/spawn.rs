//! Starts a program with a descriptor at a number of its own choice, which [`Command`] cannot do.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Starts `command` with a copy of `passed` at descriptor `number`, which must be above 2.
///
/// # Errors
///
/// The program cannot be started, or descriptors are used up.
pub fn spawn_with(
    mut command: Command,
    passed: BorrowedFd<'_>,
    number: RawFd,
) -> io::Result<Child> {
    // `Command` makes a pipe of its own by which the child tells that exec failed. Were `number` free
    // here, that pipe could get it and be overwritten in the child: so it is kept busy meanwhile.
    let _occupied = duplicate(passed, number)?;
    let source = duplicate(passed, number + 1)?;
    let source_number = source.as_raw_fd();
    let place = move || {
        // SAFETY: dup2 takes two integers. The source is open: `source` lives past the fork. The two
        // differ, so that the copy is not close-on-exec.
        if unsafe { libc::dup2(source_number, number) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure calls dup2 and reads errno, which are
    // async-signal-safe, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(place) };
    command.spawn()
}

/// A close-on-exec copy at `lowest` or above.
fn duplicate(fd: BorrowedFd<'_>, lowest: RawFd) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: a descriptor that the kernel has just made for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
