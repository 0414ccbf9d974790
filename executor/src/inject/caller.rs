//! Making a stopped thread call the kernel for us, and putting everything back.
//!
//! While it is borrowed, the thread blocks all signals that can be blocked and that the kernel does not
//! raise for what the thread itself does: they wait in the kernel, with all they carry, and are
//! delivered when it is let go. A stop of the whole process (SIGSTOP) takes effect on all other threads
//! at once, and on this one when it is let go.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::Options;
use nix::unistd::Pid;

use super::failure::Call;
use super::process::Status;
use super::tracee::{self, Trouble};
use super::{arch, memory::Memory};
use crate::sys::ptrace::{self, Registers, Resume, Stop};

/// How long an undoing may take. Longer than any time limit on purpose: a thread that is inside the
/// kernel for us cannot be let go as it was, and it loses nothing while it is there.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What a call returns, seen from outside, when it wants to be made again: `ERESTARTSYS`,
/// `ERESTARTNOINTR`, `ERESTARTNOHAND`. `clone` does so whenever a signal is on its way.
const INTERRUPTED: std::ops::RangeInclusive<i64> = -514..=-512;

/// `si_code` of a `SIGSYS` that a seccomp filter raised.
const SYS_SECCOMP: i32 = 1;

/// Signals that the kernel raises for what a thread does. Blocking them would make the kernel reset their
/// handlers when it has to raise one.
const SYNCHRONOUS: [i32; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has returned this.
    Returned(i64),
    /// A `PTRACE_EVENT_*` in the middle of it.
    Event(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// In no call, and stopped.
    Stopped,
    /// Let go to make a call, not yet there.
    Entering,
    /// In the call.
    Inside,
}

/// A thread that calls for us.
#[derive(Debug)]
pub(super) struct Caller {
    pid: i32,
    tid: i32,
    saved: Registers,
    /// Blocked signals to be put back; `None` for a thread that has nothing to go back to.
    mask: Option<u64>,
    /// Where the system call instruction is.
    at: u64,
    phase: Phase,
    /// What it calls, or called last.
    call: Call,
    /// Whether it has called at all, or stands where it was stopped.
    has_called: bool,
    /// Signals that were taken from it and that it has still to get.
    held: Vec<i32>,
    /// The `SIGSYS` of a seccomp filter is on its way to it, for a call of ours.
    refusal_pending: bool,
    until: Instant,
}

impl Caller {
    /// Borrows a thread that is stopped in the signal path.
    pub(super) fn borrow(
        pid: i32,
        tid: i32,
        saved: &Registers,
        at: u64,
        until: Instant,
    ) -> Result<Self, Trouble> {
        let mask = ptrace::signal_mask(tid)?;
        ptrace::set_signal_mask(tid, all_but_synchronous())?;
        Ok(Self {
            mask: Some(mask),
            ..Self::stopped(pid, tid, saved, at, until)
        })
    }

    /// The child that this one's `vfork` made, traced and stopped, with all of its parent's registers.
    pub(super) fn child(&self, tid: i32) -> Self {
        Self::stopped(tid, tid, &self.saved, self.at, self.until)
    }

    fn stopped(pid: i32, tid: i32, saved: &Registers, at: u64, until: Instant) -> Self {
        Self {
            pid,
            tid,
            saved: *saved,
            mask: None,
            at,
            phase: Phase::Stopped,
            call: Call::Getpid,
            has_called: false,
            held: Vec::new(),
            refusal_pending: false,
            until,
        }
    }

    /// Its thread.
    pub(super) fn tid(&self) -> i32 {
        self.tid
    }

    /// Its process's memory.
    pub(super) fn memory(&self) -> Result<Memory, Errno> {
        Memory::open(self.pid, self.tid)
    }

    /// Whether its process, and any child it has from now on, dies if this thread ends without having
    /// let it go.
    pub(super) fn kill_when_abandoned(&self, on: bool) -> Result<(), Errno> {
        let mut options = tracee::OPTIONS;
        options.set(Options::PTRACE_O_EXITKILL, on);
        nix::sys::ptrace::setoptions(Pid::from_raw(self.tid), options)
    }

    /// From here on things are put back, whatever the time.
    pub(super) fn be_patient(&mut self) {
        self.until = Instant::now() + PATIENCE;
    }

    /// Makes it call; again if a stop of the process came in between, which the kernel would do as well.
    pub(super) fn call(&mut self, call: Call, arguments: [u64; 6]) -> Result<Progress, Trouble> {
        loop {
            let progress = self.call_once(call, arguments)?;
            match progress {
                Progress::Returned(result) if INTERRUPTED.contains(&result) => {
                    if Instant::now() >= self.until {
                        return Err(Trouble::Late);
                    }
                }
                _ => return Ok(progress),
            }
        }
    }

    fn call_once(&mut self, call: Call, arguments: [u64; 6]) -> Result<Progress, Trouble> {
        self.settle()?;
        self.call = call;
        let number = number(call);
        arch::prepare_call(self.tid, &self.saved, self.at, number, arguments)?;
        self.has_called = true;
        self.phase = Phase::Entering;
        ptrace::resume(self.tid, Resume::ToSystemCall, 0)?;
        let progress = self.advance()?;
        // A filter that answers with SIGSYS puts the registers back as they were before the call: a
        // refusal then looks like a result.
        if let Progress::Returned(result) = progress
            && (result == number || result.cast_unsigned() == arguments[0])
            && Status::of(self.pid, self.tid).is_ok_and(|status| status.is_pending(libc::SIGSYS))
        {
            self.refusal_pending = true;
            return Ok(Progress::Returned(-i64::from(libc::ENOSYS)));
        }
        Ok(progress)
    }

    /// Goes on with a call after an event.
    pub(super) fn go_on(&mut self) -> Result<Progress, Trouble> {
        ptrace::resume(self.tid, Resume::ToSystemCall, 0)?;
        self.advance()
    }

    fn advance(&mut self) -> Result<Progress, Trouble> {
        loop {
            match tracee::wait(self.tid, self.until)? {
                Stop::SystemCall if self.phase == Phase::Entering => {
                    self.phase = Phase::Inside;
                    ptrace::resume(self.tid, Resume::ToSystemCall, 0)?;
                }
                Stop::SystemCall => {
                    self.phase = Phase::Stopped;
                    let registers = ptrace::registers(self.tid)?.ok_or(Errno::EIO)?;
                    return Ok(Progress::Returned(arch::result(&registers)));
                }
                Stop::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    ..
                } => {
                    ptrace::resume(self.tid, Resume::ToSystemCall, 0)?;
                }
                Stop::Event { event, .. } => return Ok(Progress::Event(event)),
                Stop::Signal(signal) => self.take_signal(signal, Resume::ToSystemCall)?,
                Stop::Exited(_) | Stop::Killed(_) => return Err(Trouble::Ended),
            }
        }
    }

    /// Brings it back from a call that took too long. What the call returned after all, if it was made.
    pub(super) fn settle(&mut self) -> Result<Option<i64>, Trouble> {
        if self.phase == Phase::Stopped {
            return Ok(None);
        }
        let mut result = None;
        tracee::interrupt(self.tid)?;
        while self.phase != Phase::Stopped {
            match tracee::wait(self.tid, self.until)? {
                Stop::SystemCall if self.phase == Phase::Inside => {
                    self.phase = Phase::Stopped;
                    result = ptrace::registers(self.tid)?.as_ref().map(arch::result);
                }
                Stop::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    ..
                } if self.phase == Phase::Entering => {
                    self.phase = Phase::Stopped;
                }
                Stop::SystemCall => {
                    self.phase = Phase::Inside;
                    ptrace::resume(self.tid, Resume::ToSystemCall, 0)?;
                }
                Stop::Signal(signal) => self.take_signal(signal, Resume::ToSystemCall)?,
                Stop::Event {
                    event: libc::PTRACE_EVENT_VFORK,
                    ..
                } => {
                    let child = tracee::event_message(self.tid)?;
                    tracee::wait(child, self.until)?;
                    self.child(child).end()?;
                    ptrace::resume(self.tid, Resume::ToSystemCall, 0)?;
                }
                _ => ptrace::resume(self.tid, Resume::ToSystemCall, 0)?,
            }
        }
        Ok(result)
    }

    /// A signal that could not be blocked.
    fn take_signal(&mut self, signal: i32, how: Resume) -> Result<(), Trouble> {
        if signal == libc::SIGSTOP {
            // Takes effect on the process; this thread stops for it when it is let go.
            return Ok(ptrace::resume(self.tid, how, signal)?);
        }
        let origin = ptrace::signal_origin(self.tid)?;
        if signal == libc::SIGSYS && origin.code == SYS_SECCOMP {
            self.refusal_pending = false;
        } else if origin.code > 0 {
            // For what it did at our command. It would do it again and again.
            self.phase = Phase::Stopped;
            return Err(Trouble::Fault(signal));
        } else {
            self.held.push(signal);
        }
        Ok(ptrace::resume(self.tid, how, 0)?)
    }

    /// Puts it back to where it was and lets it go.
    pub(super) fn give_back(mut self) -> Result<(), (Trouble, Call)> {
        self.restore().map_err(|trouble| (trouble, self.call))
    }

    fn restore(&mut self) -> Result<(), Trouble> {
        self.be_patient();
        self.settle()?;
        if self.refusal_pending {
            // It comes before the next call, and is taken away there.
            self.call(Call::Getpid, [0; 6])?;
        }
        if self.has_called {
            self.stop_in_signal_path()?;
        }
        ptrace::set_registers(self.tid, &self.saved)?;
        if let Some(mask) = self.mask {
            ptrace::set_signal_mask(self.tid, mask)?;
        }
        ptrace::resume(self.tid, Resume::Detached, 0)?;
        for signal in std::mem::take(&mut self.held) {
            // The first was sent by ptrace; for others, as well as we may.
            let _ = ptrace::send_signal(self.pid, self.tid, signal);
        }
        Ok(())
    }

    /// The kernel begins an interrupted call again only on its way out of the signal path.
    fn stop_in_signal_path(&mut self) -> Result<(), Trouble> {
        arch::prepare_leave(self.tid, &self.saved, self.at)?;
        tracee::interrupt(self.tid)?;
        let signal = if self.held.is_empty() {
            0
        } else {
            self.held.remove(0)
        };
        ptrace::resume(self.tid, Resume::Freely, signal)?;
        loop {
            match tracee::wait(self.tid, self.until)? {
                Stop::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    ..
                } => return Ok(()),
                Stop::Signal(signal) => self.take_signal(signal, Resume::Freely)?,
                _ => ptrace::resume(self.tid, Resume::Freely, 0)?,
            }
        }
    }

    /// Makes a child end that has executed nothing.
    pub(super) fn end(mut self) -> Result<(), Trouble> {
        const CODE: u64 = 127;
        self.be_patient();
        match self.call(Call::ExitGroup, [CODE, 0, 0, 0, 0, 0]) {
            Ok(_) => Err(Trouble::Kernel(Errno::EIO)),
            Err(Trouble::Ended) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }
}

fn all_but_synchronous() -> u64 {
    SYNCHRONOUS
        .iter()
        .fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1)))
}

fn number(call: Call) -> i64 {
    match call {
        Call::Mmap => libc::SYS_mmap,
        Call::Munmap => libc::SYS_munmap,
        Call::MemfdCreate => libc::SYS_memfd_create,
        Call::Fchmod => libc::SYS_fchmod,
        Call::Close => libc::SYS_close,
        Call::Clone => libc::SYS_clone,
        Call::Execveat => libc::SYS_execveat,
        Call::ExitGroup => libc::SYS_exit_group,
        Call::Getpid => libc::SYS_getpid,
    }
}
