//! The fallback where nothing can be injected: an agent that is a child of the executor and enters the
//! sandbox container's root directory, as its user. It needs neither the right to trace (where users are
//! the same) nor the target's help, but it has limits: [`LIMITS`].

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{ChildStderr, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::stat::{Mode as FileMode, umask};
use nix::unistd::{Gid, Uid, chroot, dup2_stderr, fchdir, setgroups, setresgid, setresuid};

use super::start::{self, Started};
use crate::pod::Main;
use crate::pod::proc::Proc;
use crate::pod::status::{Capabilities, Ids, Status, capability};
use crate::sys::capability as sets;
use crate::sys::fd;

/// What is not the sandbox container's for tasks that came this way.
pub const LIMITS: &str = "by chroot: tasks are in the executor's cgroup (its limits count, not the sandbox's) and under its seccomp profile, and /proc/self/mountinfo is empty for them";

/// First argument of an agent that enters by chroot; the process and its start time follow.
pub const ARG_CHROOT: &str = "chroot";

/// What the child writes when it is where it should be. Anything else is why it is not.
const ENTERED: &[u8] = b"entered";
/// For entering; it takes a millisecond.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Longest reason read from the child, in bytes.
const REASON_LIMIT: u64 = 4096;

/// Why an agent cannot enter by chroot.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something about a process cannot be read.
    #[error("process {0} cannot be examined: it has ended, or its /proc entries cannot be read")]
    Unreadable(i32),
    /// Rights are missing.
    #[error("{}", describe(.0))]
    Missing(Vec<Need>),
    /// No child.
    #[error("no process for the agent: {0}")]
    Start(#[source] io::Error),
    /// The child says why.
    #[error("{0}")]
    Child(String),
    /// The child says nothing.
    #[error("the agent did not say in {} s that it had entered", TIME_LIMIT.as_secs())]
    Silent,
    /// The agent was told nonsense.
    #[error("arguments {0:?} are not {ARG_CHROOT} PID START_TIME")]
    Arguments(Vec<String>),
    /// The process is another one by now.
    #[error("process {0} has ended")]
    Ended(i32),
    /// The kernel refuses a step.
    #[error("{step}: {source}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A right that the executor lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Number of the capability.
    pub capability: u32,
    /// What for.
    pub purpose: &'static str,
}

fn describe(needs: &[Need]) -> String {
    let missing = needs.iter().map(|need| {
        format!(
            "{} is missing {}",
            capability::name(need.capability),
            need.purpose
        )
    });
    let missing: Vec<String> = missing.collect();
    let remedy = "run the executor as root with these in securityContext.capabilities.add";
    format!("{}; {remedy}", missing.join(", "))
}

/// What `own` lacks to enter the container of `target`.
pub fn missing(own: &Status, target: &Status) -> Vec<Need> {
    let users_differ = own.uids != target.uids;
    let groups_differ = own.gids != target.gids || !same_groups(own, target);
    let exceeds = target.capabilities.permitted & !own.capabilities.permitted != 0;
    let needs = [
        (
            true,
            capability::SYS_CHROOT,
            "to enter the sandbox's root directory",
        ),
        (
            users_differ,
            capability::SETUID,
            "to become the sandbox's user",
        ),
        (
            groups_differ,
            capability::SETGID,
            "to take the sandbox's groups",
        ),
        (
            users_differ || own.gids != target.gids || exceeds,
            capability::SYS_PTRACE,
            "to open the root directory of a process with other rights",
        ),
    ];
    needs
        .into_iter()
        .filter(|(needed, number, _)| {
            *needed && !capability::has(own.capabilities.effective, *number)
        })
        .map(|(_, capability, purpose)| Need {
            capability,
            purpose,
        })
        .collect()
}

fn same_groups(one: &Status, other: &Status) -> bool {
    let sorted = |status: &Status| {
        let mut groups = status.groups.clone();
        groups.sort_unstable();
        groups
    };
    sorted(one) == sorted(other)
}

/// Starts an agent and waits until it has entered.
pub(super) fn start(
    program: &Path,
    proc: &Proc,
    own_pid: i32,
    main: &Main,
) -> Result<Started, Failure> {
    let status = |pid| proc.status(pid).ok_or(Failure::Unreadable(pid));
    let needs = missing(&status(own_pid)?, &status(main.pid)?);
    if !needs.is_empty() {
        return Err(Failure::Missing(needs));
    }
    let arguments = [
        ARG_CHROOT.to_owned(),
        main.pid.to_string(),
        main.start_time.to_string(),
    ];
    let mut started = start::agent(program, &arguments, Stdio::piped()).map_err(Failure::Start)?;
    let answer = started.stderr.take().map_or(Err(Failure::Silent), answer);
    let failure = match answer {
        Ok(text) if text == ENTERED => return Ok(started),
        Ok(text) => Failure::Child(match text.as_slice() {
            [] => "the agent ended before it had entered".to_owned(),
            reason => String::from_utf8_lossy(reason).trim().to_owned(),
        }),
        Err(failure) => failure,
    };
    // Gone already, or of no use.
    let _gone = fd::pidfd_send_signal(started.pidfd.as_fd(), SIGKILL);
    super::remains::reap_child(&started.pidfd);
    Err(failure)
}

/// All that the child writes, until it closes its end.
fn answer(stderr: ChildStderr) -> Result<Vec<u8>, Failure> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut pipe = File::from(OwnedFd::from(stderr)).take(REASON_LIMIT);
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut waiting = [PollFd::new(pipe.get_ref().as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, timeout) {
            Ok(0) => return Err(Failure::Silent),
            Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) | Err(_) => {}
        }
        let mut part = [0; 512];
        let length = pipe.read(&mut part).map_err(Failure::Start)?;
        if length == 0 {
            return Ok(text);
        }
        text.extend(part.iter().take(length));
    }
}

/// Enters, in the agent, as the first thing it does: with [`ARG_CHROOT`] and what follows it. Without
/// arguments there is nothing to enter. The process must have one thread. Afterwards it has the root and
/// working directory, IDs, groups and umask of the target, no capability that the target has not, and no
/// descriptor of where it was; standard error is `/dev/null`.
///
/// `SYS_CHROOT` is never kept: with it, a root of this kind can be left.
///
/// # Errors
///
/// The agent must end then, for it is half-way. The reason has been written to standard error, where the
/// executor reads it.
pub fn enter(arguments: &[String]) -> Result<(), Failure> {
    if arguments.is_empty() {
        return Ok(());
    }
    let entered = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(|source| step("open /dev/null", source))
        .and_then(|null| enter_container(arguments).map(|()| null));
    let null = match entered {
        Ok(null) => null,
        Err(failure) => {
            // Nobody is left to tell if this fails too.
            let _told = write!(io::stderr(), "{failure}");
            return Err(failure);
        }
    };
    io::stderr()
        .write_all(ENTERED)
        .map_err(|source| step("answer", source))?;
    dup2_stderr(&null).map_err(|errno| step("close standard error", errno.into()))
}

fn enter_container(arguments: &[String]) -> Result<(), Failure> {
    let (pid, start_time) =
        parse(arguments).ok_or_else(|| Failure::Arguments(arguments.to_vec()))?;
    let proc = Proc::default();
    let own_pid = proc
        .own_pid()
        .map_err(|source| step("read /proc/self", source))?;
    let own = proc.status(own_pid).ok_or(Failure::Unreadable(own_pid))?;
    let directory = |name| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(&proc.path(pid, name), flags, FileMode::empty())
    };
    let root = directory("root").map_err(|errno| step("open the sandbox's root", errno.into()))?;
    let cwd =
        directory("cwd").map_err(|errno| step("open the sandbox's directory", errno.into()))?;
    let target = proc.status(pid).ok_or(Failure::Unreadable(pid))?;
    // Compared after everything was read, so that all of it is of this process.
    if !proc.is_alive(pid, start_time) {
        return Err(Failure::Ended(pid));
    }
    fchdir(&root).map_err(|errno| step("enter the sandbox's root", errno.into()))?;
    chroot(".").map_err(|errno| step("chroot", errno.into()))?;
    fchdir(&cwd).map_err(|errno| step("enter the sandbox's directory", errno.into()))?;
    drop((root, cwd));
    become_target(&own, &target)
}

fn parse(arguments: &[String]) -> Option<(i32, u64)> {
    match arguments {
        [kind, pid, start_time] if kind == ARG_CHROOT => {
            Some((pid.parse().ok()?, start_time.parse().ok()?))
        }
        _ => None,
    }
}

/// The order matters: the bounding set and groups need capabilities that the change of user takes away.
fn become_target(own: &Status, target: &Status) -> Result<(), Failure> {
    let wanted = wanted(own.capabilities, target.capabilities);
    // From here on no exec gives anything that is not held already; so it does not matter that the
    // bounding set stays as it is where SETPCAP is missing.
    prctl::set_no_new_privs().map_err(|errno| step("set no_new_privs", errno.into()))?;
    if capability::has(own.capabilities.effective, capability::SETPCAP) {
        let surplus = own.capabilities.bounding & !wanted.bounding;
        for number in (0..u64::BITS).filter(|number| capability::has(surplus, *number)) {
            sets::drop_from_bounding_set(number)
                .map_err(|source| step("drop from the bounding set", source))?;
        }
    }
    sets::clear_ambient().map_err(|source| step("clear ambient capabilities", source))?;
    if wanted.permitted != 0 {
        prctl::set_keepcaps(true).map_err(|errno| step("keep capabilities", errno.into()))?;
    }
    if !same_groups(own, target) {
        let groups: Vec<Gid> = target.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(|errno| step("setgroups", errno.into()))?;
    }
    let Ids {
        real,
        effective,
        saved,
    } = target.gids;
    setresgid(
        Gid::from_raw(real),
        Gid::from_raw(effective),
        Gid::from_raw(saved),
    )
    .map_err(|errno| step("setresgid", errno.into()))?;
    let Ids {
        real,
        effective,
        saved,
    } = target.uids;
    setresuid(
        Uid::from_raw(real),
        Uid::from_raw(effective),
        Uid::from_raw(saved),
    )
    .map_err(|errno| step("setresuid", errno.into()))?;
    sets::set(sets::Sets {
        permitted: wanted.permitted,
        effective: wanted.effective,
        inheritable: wanted.inheritable,
    })
    .map_err(|source| step("set capabilities", source))?;
    for number in (0..u64::BITS).filter(|number| capability::has(wanted.ambient, *number)) {
        sets::raise_ambient(number).map_err(|source| step("raise ambient capabilities", source))?;
    }
    prctl::set_keepcaps(false).map_err(|errno| step("keep no capabilities", errno.into()))?;
    if let Some(mask) = target.umask {
        umask(FileMode::from_bits_truncate(mask));
    }
    // A change of user makes a process dumpable again where fs.suid_dumpable is 1.
    prctl::set_dumpable(false).map_err(|errno| step("make undumpable", errno.into()))
}

/// What both have, without `SYS_CHROOT`.
fn wanted(own: Capabilities, target: Capabilities) -> Capabilities {
    let allowed = own.permitted & !capability::bit(capability::SYS_CHROOT);
    let permitted = target.permitted & allowed;
    let inheritable = target.inheritable & permitted;
    Capabilities {
        inheritable,
        permitted,
        effective: target.effective & permitted,
        bounding: target.bounding & own.bounding & !capability::bit(capability::SYS_CHROOT),
        ambient: target.ambient & inheritable,
    }
}

const fn step(step: &'static str, source: io::Error) -> Failure {
    Failure::Step { step, source }
}

#[cfg(test)]
mod tests;
