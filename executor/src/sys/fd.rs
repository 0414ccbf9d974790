//! Descriptors that come from elsewhere: inherited, taken from another process, received on a socket.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// A pidfd of a process, close-on-exec. Names the process even after its pid has been reused.
///
/// # Errors
///
/// There is no such process (`ESRCH`), or the kernel or a seccomp filter refuses.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    own(fd)
}

/// A copy of descriptor `number` of the process behind `pidfd`, close-on-exec. Needs the right to trace
/// that process.
///
/// # Errors
///
/// No such descriptor (`EBADF`), no such process (`ESRCH`), not allowed (`EPERM`).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    own(fd)
}

/// Sends a signal to the process behind `pidfd`, and to no other.
///
/// # Errors
///
/// It has ended (`ESRCH`), or it is not ours to signal (`EPERM`).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null `info` is allowed and means what `kill` sends; the rest are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes a descriptor that this process was started with, once.
///
/// # Errors
///
/// It is not open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller is the one that takes it: a program does so at its start,
    // before anything else could have opened a descriptor of this number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Owns the descriptors that a received message carried.
pub fn received(message: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Result<Vec<OwnedFd>, Errno> {
    let mut owned = Vec::new();
    for control in message.cmsgs()? {
        if let nix::sys::socket::ControlMessageOwned::ScmRights(numbers) = control {
            for number in numbers {
                // SAFETY: the kernel has just put it into our table for this message, and the message
                // is read once: nobody else owns it.
                owned.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok(owned)
}

fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(result).unwrap_or(-1);
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
