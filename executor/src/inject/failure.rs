//! Why an injection failed.

use std::fmt;
use std::time::Duration;

use nix::errno::Errno;

/// Why nothing was injected. Whatever it is, the target is as it was, except where it ended by itself
/// ([`Self::TargetEnded`]), and for [`Self::NotRestored`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The request cannot be meant.
    #[error("cannot inject: {0}")]
    Invalid(&'static str),
    /// The program to inject cannot be read.
    #[error("cannot read the program to inject: {0}")]
    Program(Errno),
    /// No process of this number, or the number now belongs to another.
    #[error("process {pid} no longer exists")]
    NoProcess {
        /// The target.
        pid: i32,
    },
    /// It has ended and waits to be reaped.
    #[error("process {pid} has ended (zombie)")]
    Zombie {
        /// The target.
        pid: i32,
    },
    /// Somebody has stopped it, by SIGSTOP, say.
    #[error("process {pid} is stopped (state T): continue it with SIGCONT")]
    Stopped {
        /// The target.
        pid: i32,
    },
    /// A debugger is there already.
    #[error("process {pid} is already traced{}: a process has one tracer at most", by(*.tracer))]
    AlreadyTraced {
        /// The target.
        pid: i32,
        /// The tracer; 0 for one outside this PID namespace.
        tracer: i32,
    },
    /// 32 bits, or another instruction set.
    #[error("process {pid} is no {} program but {found}", super::arch::NAME)]
    ForeignArchitecture {
        /// The target.
        pid: i32,
        /// What it is.
        found: String,
    },
    /// The kernel does not let us trace it.
    #[error("ptrace of process {pid} was refused ({errno}): {because}")]
    PtraceRefused {
        /// The target.
        pid: i32,
        /// The kernel's answer.
        errno: Errno,
        /// What speaks against it, as far as can be seen.
        because: String,
    },
    /// None of its threads came to a halt.
    #[error(
        "no thread of process {pid} stopped within {} ms (state of the last: {state})",
        waited.as_millis()
    )]
    Stuck {
        /// The target.
        pid: i32,
        /// How long was waited.
        waited: Duration,
        /// State of the last one tried, as in `/proc/PID/stat`; D is uninterruptible sleep.
        state: char,
    },
    /// No system call instruction in anything it has mapped.
    #[error("process {pid} has no system call instruction mapped")]
    NoInstruction {
        /// The target.
        pid: i32,
    },
    /// It may not have a memfd that can be executed.
    #[error("memfd_create was refused in process {pid} ({errno}): {because}")]
    MemfdRefused {
        /// The target.
        pid: i32,
        /// The kernel's answer.
        errno: Errno,
        /// What it means.
        because: &'static str,
    },
    /// Its seccomp filter does not let a call through that is needed.
    #[error("the seccomp filter of process {pid} refuses {call} ({errno})")]
    SeccompRefused {
        /// The target.
        pid: i32,
        /// The call.
        call: Call,
        /// The filter's answer.
        errno: Errno,
    },
    /// Another call failed in it.
    #[error("{call} failed in process {pid} ({errno}): {because}")]
    CallFailed {
        /// The target.
        pid: i32,
        /// The call.
        call: Call,
        /// The kernel's answer.
        errno: Errno,
        /// What it means.
        because: &'static str,
    },
    /// It ended, was killed, or executed another program in the middle.
    #[error("process {pid} ended during the injection")]
    TargetEnded {
        /// The target.
        pid: i32,
    },
    /// The injected program ended, or was killed, before it said that it is ready.
    #[error("the injected program {} before it was ready", how)]
    AgentEnded {
        /// How it ended.
        how: Ending,
    },
    /// The injected program ran, and did not say in time that it is ready. It was killed.
    #[error("the injected program was not ready within {} ms", waited.as_millis())]
    AgentNotReady {
        /// How long was waited.
        waited: Duration,
    },
    /// The time limit passed in the middle.
    #[error("the injection into process {pid} took longer than {} ms (at: {step})", limit.as_millis())]
    TimeLimit {
        /// The target.
        pid: i32,
        /// The limit.
        limit: Duration,
        /// Where it was.
        step: Call,
    },
    /// A thread hung inside a call made for us, past all patience, and could not be put back.
    #[error("a thread of process {pid} hangs in {step} and could not be put back: it may crash")]
    NotRestored {
        /// The target.
        pid: i32,
        /// Where it hangs.
        step: Call,
    },
    /// The kernel said something that it should not have.
    #[error("tracing process {pid} failed at {step} ({errno})")]
    Tracing {
        /// The target.
        pid: i32,
        /// Where it was.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl Failure {
    /// A fixed word for the kind of failure, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Program(_) => "program_unreadable",
            Self::NoProcess { .. } => "no_process",
            Self::Zombie { .. } => "zombie",
            Self::Stopped { .. } => "stopped",
            Self::AlreadyTraced { .. } => "already_traced",
            Self::ForeignArchitecture { .. } => "foreign_architecture",
            Self::PtraceRefused { .. } => "ptrace_refused",
            Self::Stuck { .. } => "stuck",
            Self::NoInstruction { .. } => "no_instruction",
            Self::MemfdRefused { .. } => "memfd_refused",
            Self::SeccompRefused { .. } => "seccomp_refused",
            Self::CallFailed { .. } => "call_failed",
            Self::TargetEnded { .. } => "target_ended",
            Self::AgentEnded { .. } => "agent_ended",
            Self::AgentNotReady { .. } => "agent_not_ready",
            Self::TimeLimit { .. } => "time_limit",
            Self::NotRestored { .. } => "not_restored",
            Self::Tracing { .. } => "tracing",
        }
    }
}

fn by(tracer: i32) -> String {
    match tracer {
        0 => " from outside this PID namespace".to_owned(),
        pid => format!(" by process {pid}"),
    }
}

/// What the target is made to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the system call of that name")]
pub enum Call {
    Mmap,
    Munmap,
    MemfdCreate,
    Fchmod,
    Close,
    Clone,
    Execveat,
    ExitGroup,
    Getpid,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mmap => "mmap",
            Self::Munmap => "munmap",
            Self::MemfdCreate => "memfd_create",
            Self::Fchmod => "fchmod",
            Self::Close => "close",
            Self::Clone => "clone",
            Self::Execveat => "execveat",
            Self::ExitGroup => "exit_group",
            Self::Getpid => "getpid",
        })
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By `exit`.
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// Nobody told.
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "ended with code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}
