//! Getting hold of a thread of the target.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::caller::Caller;
use super::failure::{Call, Failure};
use super::memory::Memory;
use super::process::{self, Status};
use super::steps::Context;
use super::tracee::{self, Refusal, Trouble};
use super::{precondition, threads};
use crate::sys::ptrace;

/// A thread other than the last to be tried is given so long to stop, at most.
const SHORT_WAIT: Duration = Duration::from_millis(50);

/// Stops the thread that notices least and borrows it.
pub(super) fn borrow(context: &Context<'_>, main: &Status) -> Result<Caller, Failure> {
    let pid = context.request.pid;
    let begun = Instant::now();
    let candidates = threads::candidates(pid, main).map_err(|_| Failure::NoProcess { pid })?;
    let mut last = Failure::NoProcess { pid };
    for (index, tid) in candidates.iter().copied().enumerate() {
        let now = Instant::now();
        let left = context.until.saturating_duration_since(now);
        // What is left after the last one is for an orderly failure.
        let patience = if index + 1 == candidates.len() {
            left * 3 / 4
        } else {
            (left / 4).min(SHORT_WAIT)
        };
        match tracee::stop(tid, now + patience) {
            Ok(()) => return borrow_stopped(context, tid),
            Err(Refusal::Ended | Refusal::Seize(Errno::ESRCH)) => {
                last = Failure::TargetEnded { pid }
            }
            Err(Refusal::Seize(errno)) => return Err(refused(context, tid, errno)),
            Err(Refusal::GroupStop) => return Err(Failure::Stopped { pid }),
            Err(Refusal::Kernel(errno)) => return Err(context.kernel("stopping a thread", errno)),
            Err(Refusal::Late) => {
                let state = Status::of(pid, tid).map_or('?', |status| status.state());
                last = Failure::Stuck {
                    pid,
                    waited: begun.elapsed(),
                    state,
                };
            }
        }
    }
    Err(last)
}

/// `PTRACE_SEIZE` was refused.
fn refused(context: &Context<'_>, tid: i32, errno: Errno) -> Failure {
    let pid = context.request.pid;
    let Ok(status) = Status::of(pid, tid) else {
        return Failure::NoProcess { pid };
    };
    match errno {
        _ if matches!(status.state(), 'Z' | 'X') => Failure::Zombie { pid },
        _ if status.tracer() != 0 => Failure::AlreadyTraced {
            pid,
            tracer: status.tracer(),
        },
        _ => Failure::PtraceRefused {
            pid,
            errno,
            because: precondition::why_refused(&status),
        },
    }
}

fn borrow_stopped(context: &Context<'_>, tid: i32) -> Result<Caller, Failure> {
    examine(context, tid).map_err(|failure| {
        // It stands where it was stopped, with nothing changed. Unless it was killed, which then is why.
        match ptrace::resume(tid, ptrace::Resume::Detached, 0) {
            Ok(()) => failure,
            Err(_) => Failure::TargetEnded {
                pid: context.request.pid,
            },
        }
    })
}

fn examine(context: &Context<'_>, tid: i32) -> Result<Caller, Failure> {
    let pid = context.request.pid;
    // It cannot be reused any more, so this time it counts.
    if process::start_time(pid) != Ok(context.request.start_time) {
        return Err(Failure::NoProcess { pid });
    }
    let tracing = |errno| context.trouble(Trouble::from(errno), Call::Getpid);
    let Some(mut registers) = ptrace::registers(tid).map_err(tracing)? else {
        let found = "one of another register width, as 32-bit programs are".to_owned();
        return Err(Failure::ForeignArchitecture { pid, found });
    };
    let memory =
        Memory::open(pid, tid).map_err(|errno| context.kernel("opening its memory", errno))?;
    let at = memory.find_instruction(&registers).map_err(tracing)?;
    let at = at.ok_or(Failure::NoInstruction { pid })?;
    memory.leave_restartable_sequence(tid, &mut registers);
    Caller::borrow(pid, tid, &registers, at, context.until)
        .map_err(|trouble| context.trouble(trouble, Call::Getpid))
}
