//! Seizing a thread, waiting for it, letting it go.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace as requests;
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;

use crate::sys::ptrace::{self, Resume, Stop};

/// What a traced thread reports: system calls told apart from `SIGTRAP`, children of `vfork`, programs
/// executed.
pub(super) const OPTIONS: requests::Options = requests::Options::PTRACE_O_TRACESYSGOOD
    .union(requests::Options::PTRACE_O_TRACEVFORK)
    .union(requests::Options::PTRACE_O_TRACEEXEC);

/// Between looks, at first and at most. Nearly every stop comes within some 20 µs.
const SHORTEST_SLEEP: Duration = Duration::from_micros(10);
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

/// Has the calling thread woken as soon as its sleep is over: the kernel would add 50 µs.
pub(super) fn wake_promptly() {
    // Without, it is only slower.
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Why a tracee does not do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It has ended.
    Ended,
    /// Not in time.
    Late,
    /// It got a signal for something it did wrong itself, while it did what we told it.
    Fault(i32),
    /// The kernel refused.
    Kernel(Errno),
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        match errno {
            // Not a stopped tracee: it was, so it has been killed. And: not a tracee.
            Errno::ESRCH | Errno::ECHILD => Self::Ended,
            other => Self::Kernel(other),
        }
    }
}

/// Waits for the next thing a tracee does. `Ok` is never the end of it.
pub(super) fn wait(tid: i32, until: Instant) -> Result<Stop, Trouble> {
    match wait_or_end(tid, until)? {
        Stop::Exited(_) | Stop::Killed(_) => Err(Trouble::Ended),
        stop => Ok(stop),
    }
}

/// Waits for the next thing a tracee does, its end included.
pub(super) fn wait_or_end(tid: i32, until: Instant) -> Result<Stop, Trouble> {
    poll_until(until, || ptrace::poll(tid).map_err(Trouble::from))?.ok_or(Trouble::Late)
}

/// Asks again and again until there is an answer; `None` if there is none in time.
pub(super) fn poll_until<T, E>(
    until: Instant,
    mut ask: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let mut pause = SHORTEST_SLEEP;
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        let now = Instant::now();
        if now >= until {
            return Ok(None);
        }
        // Sleeping, not yielding: who yields is made to wait by everybody else on a busy node.
        sleep(pause.min(until - now));
        pause = (pause * 5 / 4).min(LONGEST_SLEEP);
    }
}

fn sleep(time: Duration) {
    // Woken early by a signal is as good: the caller looks again.
    let _ = nix::poll::ppoll(&mut [], Some(TimeSpec::from_duration(time)), None);
}

/// Why a thread could not be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The kernel's answer to `PTRACE_SEIZE`.
    Seize(Errno),
    /// Its process is stopped.
    GroupStop,
    /// It did not stop in time. It stays seized until the calling thread ends: only a stopped one can be
    /// let go.
    Late,
    /// It has ended.
    Ended,
    /// The kernel's answer to something else.
    Kernel(Errno),
}

/// Seizes a thread and stops it in the signal path. Signals that come first are delivered.
pub(super) fn stop(tid: i32, until: Instant) -> Result<(), Refusal> {
    requests::seize(Pid::from_raw(tid), OPTIONS).map_err(Refusal::Seize)?;
    halt(tid, until).map_err(|trouble| match trouble {
        Halt::GroupStop => {
            let _ = ptrace::resume(tid, Resume::Detached, 0);
            Refusal::GroupStop
        }
        Halt::Trouble(Trouble::Late) => Refusal::Late,
        Halt::Trouble(Trouble::Ended | Trouble::Fault(_)) => Refusal::Ended,
        Halt::Trouble(Trouble::Kernel(errno)) => Refusal::Kernel(errno),
    })
}

enum Halt {
    GroupStop,
    Trouble(Trouble),
}

impl<T: Into<Trouble>> From<T> for Halt {
    fn from(trouble: T) -> Self {
        Self::Trouble(trouble.into())
    }
}

fn halt(tid: i32, until: Instant) -> Result<(), Halt> {
    requests::interrupt(Pid::from_raw(tid))?;
    loop {
        match wait(tid, until)? {
            Stop::Event {
                event: libc::PTRACE_EVENT_STOP,
                signal: libc::SIGTRAP,
            } => return Ok(()),
            Stop::Event {
                event: libc::PTRACE_EVENT_STOP,
                ..
            } => return Err(Halt::GroupStop),
            Stop::Signal(signal) => ptrace::resume(tid, Resume::Freely, signal)?,
            // It was in a vfork, or executed a program, as it was seized.
            Stop::Event { event, .. } => {
                if event == libc::PTRACE_EVENT_VFORK {
                    let_go_of_stranger(tid, until)?;
                }
                ptrace::resume(tid, Resume::Freely, 0)?;
            }
            _ => ptrace::resume(tid, Resume::Freely, 0)?,
        }
    }
}

/// The target began a vfork of its own in the moment it was seized: its child is traced as well.
fn let_go_of_stranger(parent: i32, until: Instant) -> Result<(), Trouble> {
    let child = event_message(parent)?;
    wait(child, until)?;
    Ok(ptrace::resume(child, Resume::Detached, 0)?)
}

/// What `PTRACE_GETEVENTMSG` says: for a new process, its number.
pub(super) fn event_message(tid: i32) -> Result<i32, Errno> {
    let message = requests::getevent(Pid::from_raw(tid))?;
    i32::try_from(message).map_err(|_| Errno::EIO)
}

/// Asks a tracee to stop as soon as it can, once.
pub(super) fn interrupt(tid: i32) -> Result<(), Errno> {
    requests::interrupt(Pid::from_raw(tid))
}
