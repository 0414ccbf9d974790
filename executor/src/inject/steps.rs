//! The steps of an injection, in order, and undoing them.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::caller::{Caller, Progress};
use super::child::{Child, ExecError, NotReady, Program};
use super::failure::{Call, Failure};
use super::image::{self, FillError, Strings};
use super::refusal::meaning;
use super::tracee::{self, Trouble};
use super::{Injected, Request, borrow, precondition};
use crate::agent::protocol::AGENT_NAME;

/// How long the end of a thread is waited for.
const END_OF_THREAD: Duration = Duration::from_secs(5);

const PROTECTION: u64 = (libc::PROT_READ | libc::PROT_WRITE).unsigned_abs() as u64;
const MAPPING: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).unsigned_abs() as u64;
/// See the kernel's `include/uapi/linux/memfd.h`.
const MFD_CLOEXEC: u64 = 1;
const MFD_ALLOW_SEALING: u64 = 2;
/// Since Linux 6.3; without it, `vm.memfd_noexec` decides.
const MFD_EXEC: u64 = 0x10;
const VFORK: u64 =
    (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT | libc::SIGCHLD).unsigned_abs() as u64;

/// All of it, on the thread that traces.
pub(super) fn run(request: &Request, begun: Instant) -> Result<Injected, Failure> {
    validate(request)?;
    tracee::wake_promptly();
    let context = Context {
        request,
        until: begun + request.time_limit,
    };
    let main = precondition::refuse_unfit(request.pid, request.start_time)?;
    let mut caller = borrow::borrow(&context, &main)?;
    let brought = context.bring_in(&mut caller, main.seccomp());
    let given_back = caller.give_back();
    match (brought, given_back) {
        (Ok((child, number)), Ok(())) => context.wait_until_ready(child, number),
        (Err(failure), Ok(())) => Err(failure),
        (brought, Err((trouble, step))) => {
            if let Ok((child, _)) = brought {
                child.kill();
            }
            Err(context.not_given_back(trouble, step))
        }
    }
}

fn validate(request: &Request) -> Result<(), Failure> {
    if request.argv.is_empty() {
        return Err(Failure::Invalid(
            "no arguments: the first is the program's name",
        ));
    }
    if request
        .argv
        .iter()
        .chain(&request.envp)
        .any(|text| text.contains(&0))
    {
        return Err(Failure::Invalid(
            "an argument or variable contains a NUL byte",
        ));
    }
    if request.pid <= 0 || request.pid.unsigned_abs() == std::process::id() {
        return Err(Failure::Invalid(
            "the target must be another process, by its pid",
        ));
    }
    Ok(())
}

/// What is to be done, and until when.
pub(super) struct Context<'a> {
    pub(super) request: &'a Request,
    pub(super) until: Instant,
}

impl Context<'_> {
    /// Everything between borrowing a thread and giving it back, which the caller does.
    fn bring_in(&self, caller: &mut Caller, seccomp: u32) -> Result<(Child, i32), Failure> {
        let strings = Strings::new(&self.request.argv, &self.request.envp, AGENT_NAME);
        let step = Step {
            context: self,
            seccomp,
        };
        let arguments = [0, strings.len(), PROTECTION, MAPPING, u64::MAX, 0];
        let undo = |caller: &mut Caller, base| unmap(caller, base, strings.len());
        let base = step.call(caller, Call::Mmap, arguments, undo)?;
        let outcome = step.with_memory(caller, &strings, base);
        undo(caller, base);
        outcome
    }

    fn wait_until_ready(&self, child: Child, number: i32) -> Result<Injected, Failure> {
        let pid = child.pid();
        match child.ready(number, self.until) {
            Ok((pid, start_time, pidfd)) => Ok(Injected {
                pid,
                start_time,
                pidfd,
            }),
            Err(NotReady::Ended(how)) => Err(Failure::AgentEnded { how }),
            Err(NotReady::Late) => Err(Failure::AgentNotReady {
                waited: self.request.time_limit,
            }),
            Err(NotReady::Kernel(errno)) => Err(Failure::Tracing {
                pid,
                step: "waiting for the injected program",
                errno,
            }),
        }
    }

    fn not_given_back(&self, trouble: Trouble, step: Call) -> Failure {
        let pid = self.request.pid;
        match trouble {
            Trouble::Ended => Failure::TargetEnded { pid },
            _ => Failure::NotRestored { pid, step },
        }
    }

    /// The kernel refused something that it should not have.
    pub(super) fn kernel(&self, step: &'static str, errno: Errno) -> Failure {
        let pid = self.request.pid;
        match errno {
            Errno::ESRCH | Errno::ENOENT => Failure::TargetEnded { pid },
            errno => Failure::Tracing { pid, step, errno },
        }
    }

    /// What it means that a tracee does not do what it was told.
    pub(super) fn trouble(&self, trouble: Trouble, step: Call) -> Failure {
        let pid = self.request.pid;
        match trouble {
            Trouble::Ended => Failure::TargetEnded { pid },
            Trouble::Late => Failure::TimeLimit {
                pid,
                limit: self.request.time_limit,
                step,
            },
            Trouble::Fault(_) => Failure::CallFailed {
                pid,
                call: step,
                errno: Errno::EFAULT,
                because: "the thread faulted at the system call instruction",
            },
            Trouble::Kernel(errno) => self.kernel("a remote call", errno),
        }
    }
}

/// Steps with a borrowed thread.
#[derive(Clone, Copy)]
struct Step<'a> {
    context: &'a Context<'a>,
    seccomp: u32,
}

impl Step<'_> {
    /// A call whose result has to be undone if it comes too late.
    fn call(
        self,
        caller: &mut Caller,
        call: Call,
        arguments: [u64; 6],
        undo: impl Fn(&mut Caller, u64),
    ) -> Result<u64, Failure> {
        let result = match caller.call(call, arguments) {
            Ok(Progress::Returned(result)) => result,
            Ok(Progress::Event(_)) => return Err(self.context.kernel("a remote call", Errno::EIO)),
            Err(trouble) => {
                caller.be_patient();
                if let Ok(Some(late)) = caller.settle()
                    && let Ok(late) = value(late)
                {
                    undo(caller, late);
                }
                return Err(self.context.trouble(trouble, call));
            }
        };
        value(result).map_err(|errno| self.explain(call, errno))
    }

    fn with_memory(
        self,
        caller: &mut Caller,
        strings: &Strings,
        base: u64,
    ) -> Result<(Child, i32), Failure> {
        let memory = caller.memory();
        memory
            .and_then(|memory| memory.write(base, &strings.bytes(base)))
            .map_err(|errno| self.context.kernel("writing its memory", errno))?;
        let memfd = self.make_memfd(caller, strings.name(base))?;
        let outcome = self.with_memfd(caller, strings, base, memfd);
        close(caller, memfd);
        outcome
    }

    fn make_memfd(self, caller: &mut Caller, name: u64) -> Result<u64, Failure> {
        let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
        let make = |caller: &mut Caller, flags| {
            self.call(caller, Call::MemfdCreate, [name, flags, 0, 0, 0, 0], close)
        };
        match make(caller, flags | MFD_EXEC) {
            // A kernel that does not know the flag, and has no setting that asks for it.
            Err(Failure::MemfdRefused {
                errno: Errno::EINVAL,
                ..
            }) => make(caller, flags),
            other => other,
        }
    }

    fn with_memfd(
        self,
        caller: &mut Caller,
        strings: &Strings,
        base: u64,
        memfd: u64,
    ) -> Result<(Child, i32), Failure> {
        let pid = self.context.request.pid;
        let number =
            i32::try_from(memfd).map_err(|_| self.context.kernel("its memfd", Errno::EBADF))?;
        let filled = image::fill(pid, caller.tid(), number, &self.context.request.program);
        let has_mode = filled.map_err(|error| match error {
            FillError::Program(errno) => Failure::Program(errno),
            FillError::Memfd(errno) => self.context.kernel("filling its memfd", errno),
        })?;
        if !has_mode {
            let arguments = [memfd, image::MODE.into(), 0, 0, 0, 0];
            self.call(caller, Call::Fchmod, arguments, |_, _| ())?;
        }
        let (argv, envp) = strings.lists(base);
        let program = Program {
            memfd: number,
            empty: strings.empty(base),
            argv,
            envp,
        };
        self.make_child(caller, program)
    }

    fn make_child(self, caller: &mut Caller, program: Program) -> Result<(Child, i32), Failure> {
        // The child inherits it from its first moment: even if its parent is killed before it tells which
        // child it has, none is left that nobody knows.
        caller
            .kill_when_abandoned(true)
            .map_err(|errno| self.context.trouble(errno.into(), Call::Clone))?;
        let outcome = self.clone_and_execute(caller, program);
        // Fails only if it has ended, or hangs: then the end of this thread is the end of it, too.
        let _ = caller.settle();
        let _ = caller.kill_when_abandoned(false);
        outcome
    }

    fn clone_and_execute(
        self,
        caller: &mut Caller,
        program: Program,
    ) -> Result<(Child, i32), Failure> {
        let trouble = |trouble| self.context.trouble(trouble, Call::Clone);
        let mut progress = caller
            .call(Call::Clone, [VFORK, 0, 0, 0, 0, 0])
            .map_err(trouble)?;
        let mut child = None;
        loop {
            match progress {
                Progress::Event(libc::PTRACE_EVENT_VFORK) => {
                    let made = tracee::event_message(caller.tid());
                    let made = made.map_err(|errno| trouble(errno.into()))?;
                    child = Some(Child::execute(caller, made, program, self.context.until));
                    // It waits for its child, which has executed the program or ended.
                    caller.be_patient();
                    progress = self.finish_clone(caller, &mut child)?;
                }
                Progress::Event(_) => progress = caller.go_on().map_err(trouble)?,
                Progress::Returned(result) => {
                    let number = value(result).map_err(|errno| self.explain(Call::Clone, errno))?;
                    let number = i32::try_from(number).unwrap_or(0);
                    return match child {
                        Some(Ok(child)) => Ok((child, number)),
                        Some(Err(error)) => Err(self.not_executed(error)),
                        None => Err(self.context.kernel("making a child", Errno::EIO)),
                    };
                }
            }
        }
    }

    /// Goes on with `clone`; without a parent that returns from it, a child is not left either.
    fn finish_clone(
        self,
        caller: &mut Caller,
        child: &mut Option<Result<Child, ExecError>>,
    ) -> Result<Progress, Failure> {
        caller.go_on().map_err(|trouble| {
            if let Some(Ok(child)) = child.take() {
                child.kill();
            }
            self.context.trouble(trouble, Call::Clone)
        })
    }

    fn not_executed(self, error: ExecError) -> Failure {
        match error {
            ExecError::Refused(errno) => self.explain(Call::Execveat, errno),
            ExecError::Trouble(trouble) => self.context.trouble(trouble, Call::Execveat),
        }
    }

    /// What it means that a call was refused.
    fn explain(self, call: Call, errno: Errno) -> Failure {
        let pid = self.context.request.pid;
        // What filters answer with; the calls themselves answer otherwise.
        if self.seccomp == 2 && matches!(errno, Errno::EPERM | Errno::ENOSYS) {
            return Failure::SeccompRefused { pid, call, errno };
        }
        let because = meaning(call, errno);
        match call {
            Call::MemfdCreate => Failure::MemfdRefused {
                pid,
                errno,
                because,
            },
            call => Failure::CallFailed {
                pid,
                call,
                errno,
                because,
            },
        }
    }
}

/// The result of a call, or its error.
fn value(result: i64) -> Result<u64, Errno> {
    match i32::try_from(result) {
        Ok(negative @ -4095..=-1) => Err(Errno::from_raw(-negative)),
        _ => Ok(result.cast_unsigned()),
    }
}

fn unmap(caller: &mut Caller, base: u64, length: u64) {
    undo(caller, Call::Munmap, [base, length, 0, 0, 0, 0]);
}

fn close(caller: &mut Caller, descriptor: u64) {
    undo(caller, Call::Close, [descriptor, 0, 0, 0, 0, 0]);
}

/// Neither call can fail for what was just made, except in a process that has ended.
fn undo(caller: &mut Caller, call: Call, arguments: [u64; 6]) {
    caller.be_patient();
    let _ = caller.call(call, arguments);
}

/// Waits until a thread of this process has ended, and with it all that it traced. The thread that joins
/// it goes on a little earlier.
pub(super) fn wait_for_end_of_thread(tid: i32) {
    let path = format!("/proc/self/task/{tid}");
    let until = Instant::now() + END_OF_THREAD;
    let gone = || Ok::<_, ()>((!std::path::Path::new(&path).exists()).then_some(()));
    let _ = tracee::poll_until(until, gone);
}
