//! What the agent does before anything else: it may have become a program in the middle of a sandbox's
//! main process, and has everything that process had.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, pipe2, setsid};

use super::oom::Kills;
use super::protocol::{ARG_CHILD, ARG_INJECTED, CONTROL_FD, CONTROL_PEER_FD};
use super::start::FileLimits;
use crate::sys::fd::inherited;
use crate::sys::process::{close_all_but, default_signals, place};

/// A step that failed. Its number is the agent's exit code: there is nobody to write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failed {
    /// To forbid others to read and trace it.
    Dumpable = 10,
    /// Its arguments.
    Arguments = 11,
    /// The control socket.
    Control = 12,
    /// To go where its executor told it to.
    Enter = 13,
    /// Standard input, output and error.
    Streams = 14,
    /// Signals.
    Signals = 15,
    /// To be given the orphans.
    Subreaper = 16,
    /// It has several threads.
    Threads = 17,
    /// To open its own program.
    Program = 18,
    /// To be stopped once.
    Stop = 19,
}

/// An agent that is ready to begin.
#[derive(Debug)]
pub struct Setup {
    /// Its end of the control socket.
    pub control: OwnedFd,
    /// The other end, if it holds that itself.
    pub control_peer: Option<OwnedFd>,
    /// The count of its cgroup.
    pub kills: Kills,
    /// The limit of open files to be put back for tasks, if it was raised.
    pub file_limits: Option<FileLimits>,
}

/// Sets the process up, by the arguments after argv 0.
///
/// # Errors
///
/// The step that failed.
pub fn set_up(arguments: &[String]) -> Result<Setup, Failed> {
    // Before anything else: until then, whoever has the same user can take this process over.
    prctl::set_dumpable(false).map_err(|_| Failed::Dumpable)?;
    let mode = arguments.first().map(String::as_str);
    let (control, control_peer) = match mode {
        Some(ARG_INJECTED) => {
            close_all_but(&[]);
            let (near, far) = control_pair().map_err(|_| Failed::Control)?;
            (near, Some(far))
        }
        Some(ARG_CHILD) => {
            close_all_but(&[CONTROL_FD]);
            let control = inherited(CONTROL_FD).map_err(|_| Failed::Control)?;
            let flags = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
            fcntl(&control, flags).map_err(|_| Failed::Control)?;
            (control, None)
        }
        _ => return Err(Failed::Arguments),
    };
    // The cgroup is that of the process, also if it goes on to another root.
    let kills = Kills::open();
    if mode == Some(ARG_CHILD) {
        enter(arguments.get(1..).unwrap_or_default())?;
    }
    streams().map_err(|_| Failed::Streams)?;
    // Blocked, all of them: no `kill -TERM -1` in a sandbox ends the agent by accident.
    SigSet::all()
        .thread_set_mask()
        .map_err(|_| Failed::Signals)?;
    default_signals();
    prctl::set_child_subreaper(true).map_err(|_| Failed::Subreaper)?;
    // Out of the main process's group and session. Fails for who leads a group: then it is out.
    let _ = setsid();
    let file_limits = raise_file_limit();
    Ok(Setup {
        control,
        control_peer,
        kills,
        file_limits,
    })
}

impl Setup {
    /// Stops an agent that was injected, once, for whoever injected it to let it go.
    ///
    /// # Errors
    ///
    /// It cannot stop itself.
    pub fn await_release(&self) -> Result<(), Failed> {
        if self.control_peer.is_some() {
            raise(Signal::SIGSTOP).map_err(|_| Failed::Stop)?;
        }
        Ok(())
    }
}

/// Where an agent that is a child goes before it starts anything: nowhere, without arguments.
fn enter(arguments: &[String]) -> Result<(), Failed> {
    // The executor reads the reason from standard error.
    crate::launch::chroot::enter(arguments).map_err(|_| Failed::Enter)
}

fn control_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    // They may already be at either number, which `place` would then close.
    let high = FcntlArg::F_DUPFD_CLOEXEC(CONTROL_PEER_FD + 1);
    let far_high = fcntl(&far, high)?;
    let far_high = inherited(far_high)?;
    drop(far);
    let near_high = fcntl(&near, FcntlArg::F_DUPFD_CLOEXEC(CONTROL_PEER_FD + 1))?;
    let near_high = inherited(near_high)?;
    drop(near);
    Ok((
        place(near_high, CONTROL_FD)?,
        place(far_high, CONTROL_PEER_FD)?,
    ))
}

/// Nothing to read, nowhere to write. What a task has as standard input as well.
fn streams() -> Result<(), Errno> {
    let null = open(
        c"/dev/null",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    let null = match null {
        Ok(null) => null,
        // An image without it. A pipe whose writing end is closed is at its end as well.
        Err(_) => pipe2(OFlag::O_CLOEXEC)?.0,
    };
    dup2_stdin(null.as_fd())?;
    dup2_stdout(null.as_fd())?;
    dup2_stderr(null.as_fd())
}

/// Each task takes a few descriptors, of the agent and while they are on their way.
fn raise_file_limit() -> Option<FileLimits> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft >= hard {
        return None;
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    Some((soft, hard))
}
