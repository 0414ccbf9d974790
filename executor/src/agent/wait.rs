//! Waiting for descriptors and children.

use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A descriptor that can be read when a child has ended. `SIGCHLD` must be blocked.
///
/// # Errors
///
/// No descriptor is to be had.
pub fn child_signals() -> Result<SignalFd, Errno> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Waits until one of `fds` is ready or, if there is a `limit`, until that has passed.
pub fn wait_for(fds: &mut [PollFd<'_>], limit: Option<Duration>) {
    // In whole milliseconds, upwards: a wait that ends early would be repeated at once.
    let millis = limit.map(|limit| limit.as_nanos().div_ceil(1_000_000));
    let timeout = millis.map_or(PollTimeout::NONE, |millis| {
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    });
    // Nothing is ready after an error; every caller looks at everything again.
    let _ = poll(fds, timeout);
}

/// Whether there is something to do about it: data, room, an end, an error.
pub fn ready(fd: &PollFd<'_>) -> bool {
    fd.any().unwrap_or(true)
}
