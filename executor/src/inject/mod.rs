//! Bringing the agent into a running process's container with ptrace, and nothing else.
//!
//! One thread of the target is stopped and made to call the kernel: a memfd is made in it and filled from
//! outside with a program, a child is made with `vfork` semantics, and the child executes the memfd. So
//! the program has everything that the target has: user, capabilities, seccomp filter, namespaces,
//! cgroups, working directory. Then memfd, memory, registers and signal mask are put back, and a call in
//! which the thread slept goes on. The child's parent is the target's parent, which reaps it: a
//! container's main process need not know how.
//!
//! Of this the target sees: the time it takes (a few milliseconds, for one thread), and, if that thread
//! slept in a call that the kernel never begins again by itself (`epoll_wait`), one `EINTR`, as after
//! SIGSTOP and SIGCONT.
//!
//! What is injected inherits, as any program executed: descriptors that are not close-on-exec, ignored
//! signals, resource limits, the process group and session. Its signal mask is empty. Its memfd has mode
//! 0111, so that the kernel keeps it undumpable from its first instruction, unless its user may read any
//! file.
//!
//! Not to be seen beforehand: a seccomp filter that *kills* on `memfd_create` or `execveat` kills the
//! target. And if this program is killed in the middle, the target goes on with the registers of a call
//! of ours, and most likely crashes: nothing in the kernel can undo for a tracer that died.
//!
//! Nothing else in this process may wait for *any* child (`waitpid(-1)`) during an injection: it would
//! take its events away.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

pub use self::failure::{Call, Ending, Failure};
pub use self::precondition::{Finding, Precondition, Verdict, check};

mod arch;
mod borrow;
mod caller;
mod child;
mod failure;
mod image;
mod memory;
mod precondition;
mod process;
mod refusal;
mod steps;
mod threads;
mod tracee;

/// What to inject, and where.
pub struct Request {
    /// The target: a process by its number.
    pub pid: i32,
    /// Its start, in clock ticks since boot (field 22 of `/proc/PID/stat`): another process of the same
    /// number is not touched.
    pub start_time: u64,
    /// A static program of this architecture.
    pub program: File,
    /// Its arguments, the name first; without NUL.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, `NAME=VALUE` each; without NUL.
    pub envp: Vec<Vec<u8>>,
    /// For all of it, the program's own beginning included.
    pub time_limit: Duration,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments and environment may be secret.
        f.debug_struct("Request")
            .field("pid", &self.pid)
            .field("start_time", &self.start_time)
            .field("arguments", &self.argv.len())
            .field("variables", &self.envp.len())
            .field("time_limit", &self.time_limit)
            .finish_non_exhaustive()
    }
}

/// A program that was injected, runs, and has said that it is ready.
#[derive(Debug)]
pub struct Injected {
    /// Its process, by its number here.
    pub pid: i32,
    /// Its start, as [`Request::start_time`].
    pub start_time: u64,
    /// The process for good, even when the number is reused.
    pub pidfd: OwnedFd,
}

/// Injects a program and waits until it stops itself with `SIGSTOP`, which says that it is ready; it goes
/// on from there, untraced.
///
/// Blocks: for a few milliseconds as a rule, for [`Request::time_limit`] at most; only a thread that
/// hangs *inside* a call made for us, where it cannot be put back, is waited for longer.
///
/// # Errors
///
/// See [`Failure`]. The target is then as it was before.
pub fn inject(request: &Request) -> Result<Injected, Failure> {
    // What is traced belongs to a thread. When that thread has ended, whatever happened, nothing is
    // traced any more: the kernel lets go of targets and kills a child that is not ready.
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let tracer = std::thread::Builder::new().name("inject".to_owned());
        let (name, outcome) = tracer
            .spawn_scoped(scope, || {
                (nix::unistd::gettid(), steps::run(request, begun))
            })
            .map_err(|error| Failure::Tracing {
                pid: request.pid,
                step: "starting a thread",
                errno: process::errno(&error),
            })?
            .join()
            .map_err(|_| Failure::Invalid("the injecting thread panicked"))?;
        if outcome.is_err() {
            steps::wait_for_end_of_thread(name.as_raw());
        }
        outcome
    })
}
