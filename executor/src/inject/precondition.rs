//! What can be said before a target is touched.

use std::fmt;

use nix::errno::Errno;

use super::failure::Failure;
use super::process::{self, Status};

/// What an injection needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The target exists and has not ended.
    Alive,
    /// Nobody has stopped it.
    NotStopped,
    /// Nobody traces it.
    NotTraced,
    /// It is a program of this architecture.
    Architecture,
    /// We may trace it.
    MayTrace,
    /// The kernel allows memfds that can be executed.
    ExecutableMemfd,
    /// Its seccomp filter, which cannot be seen, lets the calls through.
    Seccomp,
}

impl fmt::Display for Precondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "target is alive",
            Self::NotStopped => "target is not stopped",
            Self::NotTraced => "target is not traced",
            Self::Architecture => "target has this architecture",
            Self::MayTrace => "ptrace is allowed",
            Self::ExecutableMemfd => "executable memfds are allowed",
            Self::Seccomp => "target's seccomp filter",
        })
    }
}

/// Whether a precondition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Holds,
    /// It does not: an injection would fail.
    Fails,
    /// Only an attempt can tell.
    Unknown,
}

/// What was found about one precondition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub precondition: Precondition,
    /// Whether it holds.
    pub verdict: Verdict,
    /// A sentence for people.
    pub detail: String,
}

/// Looks at a target without touching it: all in `/proc`. For people; [`inject`](super::inject()) asks
/// again.
pub fn check(pid: i32) -> Vec<Finding> {
    let status = match Status::of(pid, pid) {
        Ok(status) => status,
        Err(errno) => {
            let detail = format!("process {pid}: {}", errno.desc());
            return vec![finding(Precondition::Alive, Verdict::Fails, detail)];
        }
    };
    vec![
        alive(pid, &status),
        stopped(pid, &status),
        traced(pid, &status),
        architecture(pid),
        may_trace(pid, &status),
        memfd(),
        seccomp(pid, &status),
    ]
}

fn finding(precondition: Precondition, verdict: Verdict, detail: String) -> Finding {
    Finding {
        precondition,
        verdict,
        detail,
    }
}

fn of(precondition: Precondition, failure: Option<Failure>, otherwise: String) -> Finding {
    match failure {
        Some(failure) => finding(precondition, Verdict::Fails, failure.to_string()),
        None => finding(precondition, Verdict::Holds, otherwise),
    }
}

fn alive(pid: i32, status: &Status) -> Finding {
    let state = status.state();
    let failure = matches!(state, 'Z' | 'X').then_some(Failure::Zombie { pid });
    of(
        Precondition::Alive,
        failure,
        format!("process {pid} is in state {state}"),
    )
}

fn stopped(pid: i32, status: &Status) -> Finding {
    let failure = (status.state() == 'T').then_some(Failure::Stopped { pid });
    of(
        Precondition::NotStopped,
        failure,
        format!("process {pid} is not stopped"),
    )
}

fn traced(pid: i32, status: &Status) -> Finding {
    let tracer = status.tracer();
    let failure =
        (tracer != 0 || status.state() == 't').then_some(Failure::AlreadyTraced { pid, tracer });
    of(
        Precondition::NotTraced,
        failure,
        format!("process {pid} has no tracer"),
    )
}

fn architecture(pid: i32) -> Finding {
    let failure =
        process::foreign_program(pid).map(|found| Failure::ForeignArchitecture { pid, found });
    of(
        Precondition::Architecture,
        failure,
        format!("{} expected", super::arch::NAME),
    )
}

fn may_trace(pid: i32, status: &Status) -> Finding {
    let because = why_refused(status);
    let own = Status::own();
    let capable = own.as_ref().is_ok_and(Status::may_trace);
    if process::setting("kernel/yama/ptrace_scope") == Some(3) {
        return finding(Precondition::MayTrace, Verdict::Fails, because);
    }
    if capable {
        let detail = "we have CAP_SYS_PTRACE".to_owned();
        return finding(Precondition::MayTrace, Verdict::Holds, detail);
    }
    let same_user = own.is_ok_and(|own| own.user() == status.user());
    let verdict = if same_user {
        Verdict::Unknown
    } else {
        Verdict::Fails
    };
    finding(
        Precondition::MayTrace,
        verdict,
        format!("process {pid}: {because}"),
    )
}

fn memfd() -> Finding {
    match process::setting("vm/memfd_noexec") {
        Some(level @ 2..) => finding(
            Precondition::ExecutableMemfd,
            Verdict::Fails,
            format!("vm.memfd_noexec is {level}: no memfd may be executed"),
        ),
        Some(level) => finding(
            Precondition::ExecutableMemfd,
            Verdict::Holds,
            format!("vm.memfd_noexec is {level}"),
        ),
        None => finding(
            Precondition::ExecutableMemfd,
            Verdict::Holds,
            "this kernel has no vm.memfd_noexec".to_owned(),
        ),
    }
}

fn seccomp(pid: i32, status: &Status) -> Finding {
    match status.seccomp() {
        0 => finding(
            Precondition::Seccomp,
            Verdict::Holds,
            format!("process {pid} has no seccomp filter"),
        ),
        1 => finding(
            Precondition::Seccomp,
            Verdict::Fails,
            format!("process {pid} is in strict seccomp mode: any call would kill it"),
        ),
        _ => finding(
            Precondition::Seccomp,
            Verdict::Unknown,
            format!(
                "process {pid} has a seccomp filter; it must allow mmap, memfd_create, clone, execveat, \
                 close and munmap, and fchmod where we lack CAP_FOWNER"
            ),
        ),
    }
}

/// Refuses a target that is known to be unfit.
pub(super) fn refuse_unfit(pid: i32, start_time: u64) -> Result<Status, Failure> {
    let gone = |_| Failure::NoProcess { pid };
    let status = Status::of(pid, pid).map_err(gone)?;
    if process::start_time(pid).map_err(gone)? != start_time {
        return Err(Failure::NoProcess { pid });
    }
    let tracer = status.tracer();
    match status.state() {
        // The main thread may have ended before the others.
        'Z' | 'X' if process::threads(pid).is_ok_and(|threads| threads.len() > 1) => {}
        'Z' | 'X' => return Err(Failure::Zombie { pid }),
        't' => return Err(Failure::AlreadyTraced { pid, tracer }),
        'T' => return Err(Failure::Stopped { pid }),
        _ => {}
    }
    if tracer != 0 {
        return Err(Failure::AlreadyTraced { pid, tracer });
    }
    if status.seccomp() == 1 {
        let call = super::failure::Call::Mmap;
        return Err(Failure::SeccompRefused {
            pid,
            call,
            errno: Errno::EPERM,
        });
    }
    if let Some(found) = process::foreign_program(pid) {
        return Err(Failure::ForeignArchitecture { pid, found });
    }
    Ok(status)
}

/// Why the kernel may have refused to trace a process, as far as can be seen.
pub(super) fn why_refused(target: &Status) -> String {
    let scope = process::setting("kernel/yama/ptrace_scope");
    if scope == Some(3) {
        return "kernel.yama.ptrace_scope is 3: nobody may trace on this node".to_owned();
    }
    let own = Status::own();
    if own.as_ref().is_ok_and(Status::may_trace) {
        return "we have CAP_SYS_PTRACE, so a security module (AppArmor, SELinux), a seccomp filter of \
                ours, a user namespace, or a tracer outside this PID namespace is in the way"
            .to_owned();
    }
    let mut reasons = vec!["we lack CAP_SYS_PTRACE (capabilities.add: [SYS_PTRACE])".to_owned()];
    if let (Ok(Some(ours)), Some(its)) = (own.map(|own| own.user()), target.user())
        && ours != its
    {
        reasons.push(format!("it runs as user {its}, we as {ours}"));
    }
    if let Some(scope @ 1..) = scope {
        reasons.push(format!("kernel.yama.ptrace_scope is {scope}"));
    }
    reasons.join(", ")
}
