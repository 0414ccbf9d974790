//! Which thread of the target to borrow.
//!
//! One thread is stopped for the injection; the others run on. A call that the kernel begins again by
//! itself shows nothing of it; `epoll_wait` and its like end with `EINTR` once. So one that sleeps in the
//! former is taken if there is any, and else the main thread if it can be.

use nix::errno::Errno;
use nix::libc;

use super::process::{self, Status};

/// So many threads are looked at: more would take longer than it is worth.
const LOOKED_AT: usize = 64;

/// How little a thread notices, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    /// Sleeps in a call that is begun again.
    Restarts,
    /// Runs.
    Runs,
    /// Sleeps in a call that is begun again, unless a socket has a time limit.
    Likely,
    /// Sleeps in a call that may end with `EINTR`.
    Sleeps,
    /// In uninterruptible sleep: may never stop.
    Stuck,
}

/// The threads to try, best first, and none that cannot be.
pub(super) fn candidates(pid: i32, main: &Status) -> Result<Vec<i32>, Errno> {
    let main_fitness = fitness(pid, pid, main);
    if main_fitness == Some(Fitness::Restarts) {
        return Ok(vec![pid]);
    }
    let mut found: Vec<(Fitness, i32)> = main_fitness
        .map(|fitness| (fitness, pid))
        .into_iter()
        .collect();
    for tid in process::threads(pid)?.into_iter().skip(1).take(LOOKED_AT) {
        // What is injected must have what the process has, not what one thread of it has.
        let status = Status::of(pid, tid)
            .ok()
            .filter(|status| main.state() == 'Z' || status.passes_on_as(main));
        if let Some(fitness) = status.and_then(|status| fitness(pid, tid, &status)) {
            found.push((fitness, tid));
        }
    }
    // Stable: the main thread comes first among equals.
    found.sort_by_key(|(fitness, _)| *fitness);
    Ok(found.into_iter().map(|(_, tid)| tid).collect())
}

/// `None` for a thread that cannot be taken.
fn fitness(pid: i32, tid: i32, status: &Status) -> Option<Fitness> {
    match status.state() {
        'R' => Some(Fitness::Runs),
        'D' => Some(Fitness::Stuck),
        'S' => Some(match process::sleeping_in(pid, tid) {
            Some((number, _)) if RESTARTED.contains(&number) => Fitness::Restarts,
            Some((number, _)) if USUALLY_RESTARTED.contains(&number) => Fitness::Likely,
            _ => Fitness::Sleeps,
        }),
        _ => None,
    }
}

/// See signal(7), "Interruption of system calls and library functions by stop signals".
const RESTARTED: &[i64] = &[
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_rt_sigsuspend,
    libc::SYS_wait4,
    libc::SYS_waitid,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

const USUALLY_RESTARTED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_connect,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_openat,
];
