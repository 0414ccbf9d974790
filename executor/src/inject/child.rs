//! The child that becomes the injected program.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::caller::{Caller, PATIENCE, Progress};
use super::failure::{Call, Ending};
use super::process;
use super::tracee::{self, Trouble};
use crate::sys::fd;
use crate::sys::ptrace::{self, Resume, Stop};

/// `AT_EMPTY_PATH`
const EMPTY_PATH: u64 = 0x1000;

/// How long a program is retried that somebody has open for writing.
const BUSY: Duration = Duration::from_millis(50);
/// How long a killed child is given to end.
const DYING: Duration = Duration::from_secs(1);

/// What to execute: addresses in the target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub(super) memfd: i32,
    pub(super) empty: u64,
    pub(super) argv: u64,
    pub(super) envp: u64,
}

/// A child that has executed the program, traced, and stands before its first instruction: what it does
/// next would only delay its parent, which is to be given back first.
#[derive(Debug)]
pub(super) struct Child {
    pid: i32,
    pidfd: OwnedFd,
    start_time: u64,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExecError {
    Refused(Errno),
    Trouble(Trouble),
}

impl<T: Into<Trouble>> From<T> for ExecError {
    fn from(trouble: T) -> Self {
        Self::Trouble(trouble.into())
    }
}

impl Child {
    /// Takes the child that `parent` has just made and lets it execute the program. If it cannot, there is
    /// no child any more.
    pub(super) fn execute(
        parent: &Caller,
        pid: i32,
        program: Program,
        until: Instant,
    ) -> Result<Self, ExecError> {
        let mut caller = parent.child(pid);
        let executed = Self::begin(&mut caller, pid, program, until);
        if executed.is_err() && caller.end().is_err() {
            kill(pid);
        }
        executed
    }

    fn begin(
        caller: &mut Caller,
        pid: i32,
        program: Program,
        until: Instant,
    ) -> Result<Self, ExecError> {
        // Until it has stopped it is nothing to end: so it is waited for whatever the time.
        tracee::wait(pid, Instant::now() + PATIENCE)?;
        if Instant::now() >= until {
            return Err(Trouble::Late.into());
        }
        exec(caller, program)?;
        // Its parent's, with all blocked.
        ptrace::set_signal_mask(pid, 0)?;
        let pidfd = fd::pidfd_open(pid).map_err(|error| process::errno(&error))?;
        let start_time = process::start_time(pid)?;
        Ok(Self {
            pid,
            pidfd,
            start_time,
        })
    }

    /// Its process, by its number here.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it begin, waits until it stops itself, and lets it go on, untraced. `number` is its pid where
    /// it lives.
    pub(super) fn ready(
        self,
        number: i32,
        until: Instant,
    ) -> Result<(i32, u64, OwnedFd), NotReady> {
        match self.wait_for_stop(number, until) {
            Ok(()) => Ok((self.pid, self.start_time, self.pidfd)),
            Err(reason) => {
                if !matches!(reason, NotReady::Ended(_)) {
                    kill(self.pid);
                }
                Err(reason)
            }
        }
    }

    fn wait_for_stop(&self, number: i32, until: Instant) -> Result<(), NotReady> {
        let lost = |trouble| match trouble {
            Trouble::Ended | Trouble::Fault(_) => NotReady::Ended(Ending::Unknown),
            Trouble::Late => NotReady::Late,
            Trouble::Kernel(errno) => NotReady::Kernel(errno),
        };
        // ESRCH, here and below: killed meanwhile, which the next wait tells.
        let _ = ptrace::resume(self.pid, Resume::Freely, 0);
        loop {
            let signal = match tracee::wait_or_end(self.pid, until).map_err(lost)? {
                Stop::Exited(code) => return Err(NotReady::Ended(Ending::Exited(code))),
                Stop::Killed(signal) => return Err(NotReady::Ended(Ending::Killed(signal))),
                // Sandbox code may send one too: only its own counts. Suppressed either way.
                Stop::Signal(libc::SIGSTOP) => {
                    let origin =
                        ptrace::signal_origin(self.pid).map_err(|errno| lost(errno.into()))?;
                    if origin.code <= 0 && origin.sender == number {
                        let gone = ptrace::resume(self.pid, Resume::Detached, 0);
                        return gone.map_err(|errno| lost(errno.into()));
                    }
                    0
                }
                Stop::Signal(signal) => signal,
                Stop::SystemCall | Stop::Event { .. } => 0,
            };
            let _ = ptrace::resume(self.pid, Resume::Freely, signal);
        }
    }

    /// Ends it.
    pub(super) fn kill(self) {
        kill(self.pid);
    }
}

/// Why a program is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotReady {
    Ended(Ending),
    Late,
    Kernel(Errno),
}

fn exec(caller: &mut Caller, program: Program) -> Result<(), ExecError> {
    let number = u64::from(program.memfd.unsigned_abs());
    let arguments = [
        number,
        program.empty,
        program.argv,
        program.envp,
        EMPTY_PATH,
        0,
    ];
    let busy_until = Instant::now() + BUSY;
    loop {
        let mut progress = caller.call(Call::Execveat, arguments)?;
        loop {
            match progress {
                Progress::Event(libc::PTRACE_EVENT_EXEC) => return Ok(()),
                Progress::Event(_) => progress = caller.go_on()?,
                Progress::Returned(result) => {
                    let errno = Errno::from_raw(i32::try_from(-result).unwrap_or(libc::EIO));
                    if errno != Errno::ETXTBSY || Instant::now() >= busy_until {
                        return Err(ExecError::Refused(errno));
                    }
                    break;
                }
            }
        }
    }
}

/// Kills a child and waits until it has ended. If we may not, the end of this thread does it.
fn kill(pid: i32) {
    if nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
        // Of another user, and we lack CAP_KILL: ptrace may, if it stands at a signal or a call.
        let _ = ptrace::resume(pid, Resume::Freely, libc::SIGKILL);
    }
    let until = Instant::now() + DYING;
    loop {
        match tracee::wait_or_end(pid, until) {
            Ok(Stop::Exited(_) | Stop::Killed(_)) | Err(_) => return,
            // Stopped for something else before it died.
            Ok(_) => {}
        }
    }
}
