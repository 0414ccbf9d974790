//! The sandbox's main process, where the executor was started in its place: `task-executor run -- COMMAND`.
//!
//! To the container it is as if the command had been started itself: it has its standard streams, its
//! environment and its directory, it gets its signals, and its end is the container's, with its exit code.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::engine::Engine;
use crate::sys::fd;

/// What a shell returns for a program that does not exist, and for one that cannot be started.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;
/// And, with the signal's number added, for one that was killed.
const KILLED: i32 = 128;

/// Why there is no main process.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No command was given.
    #[error("no command is given after --")]
    NoCommand,
    /// It cannot be started.
    #[error("{program:?} cannot be started: {source}; correct the command of the container")]
    Command {
        /// What was to be started, as it was given.
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// It runs, or ran, and cannot be watched.
    #[error("the main process cannot be watched: {0}")]
    Watch(#[source] io::Error),
}

impl StartError {
    /// The exit code of a shell that could not start it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            Self::NoCommand | Self::Command { .. } | Self::Watch(_) => NOT_STARTED,
        }
    }
}

/// A main process that was started.
#[derive(Debug)]
pub struct MainProcess {
    pid: i32,
    /// It was told to end.
    terminated: Arc<Notify>,
    /// The exit code of the container, when it has ended.
    ended: JoinHandle<u8>,
}

impl MainProcess {
    /// Starts it, and from now on hands it the signals that this process gets.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub fn start(command: &[OsString]) -> Result<Self, StartError> {
        let (program, arguments) = command.split_first().ok_or(StartError::NoCommand)?;
        // Before there is anybody to hand them to, so that none is lost.
        let signals = signals().map_err(StartError::Watch)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|source| StartError::Command {
                program: program.clone(),
                source,
            })?;
        // Nobody has waited for it yet, so the number cannot have been reused.
        let pid = i32::try_from(child.id())
            .map_err(|error| StartError::Watch(io::Error::other(error)))?;
        let pidfd = Arc::new(fd::pidfd_open(pid).map_err(StartError::Watch)?);
        let terminated = Arc::new(Notify::new());
        for (kind, signal) in signals {
            let hand_over = hand_over(Arc::clone(&pidfd), kind, signal, Arc::clone(&terminated));
            tokio::spawn(hand_over);
        }
        let ended = spawn_blocking(move || wait(&pidfd));
        Ok(Self {
            pid,
            terminated,
            ended,
        })
    }

    /// Its number. Only this module may wait for it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its end, and returns the exit code of the container. SIGTERM, by which the container is to end,
    /// is one to the tasks as well, and they get `patience` for it. Where the main process ends by itself, so
    /// does everything else in the container, at once.
    pub async fn over(self, engine: &Engine, patience: Duration) -> u8 {
        let Self {
            mut ended,
            terminated,
            ..
        } = self;
        let code = tokio::select! {
            code = &mut ended => {
                engine.shut_down(Duration::ZERO).await;
                code
            }
            () = terminated.notified() => tokio::join!(ended, engine.shut_down(patience)).0,
        };
        // A panic of the thread, whose place is in the log.
        code.unwrap_or(NOT_STARTED)
    }
}

async fn hand_over(
    pidfd: Arc<OwnedFd>,
    kind: SignalKind,
    mut signal: Signal,
    terminated: Arc<Notify>,
) {
    while signal.recv().await.is_some() {
        // It may have ended just now.
        let _ended = fd::pidfd_send_signal(pidfd.as_fd(), kind.as_raw_value());
        if kind == SignalKind::terminate() {
            terminated.notify_one();
        }
    }
}

/// Waits for the end of a child. Blocks.
fn wait(pidfd: &OwnedFd) -> u8 {
    loop {
        match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(status) => return exit_code(status),
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "how the main process ended is not known");
                return NOT_STARTED;
            }
        }
    }
}

/// Those that a program may be sent as the first process of its container. What a terminal sends goes to all of
/// its foreground processes anyway.
fn signals() -> io::Result<Vec<(SignalKind, Signal)>> {
    [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ]
    .into_iter()
    .map(|kind| Ok((kind, signal(kind)?)))
    .collect()
}

/// As a shell has it.
fn exit_code(status: WaitStatus) -> u8 {
    let code = match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => KILLED + signal as i32,
        _ => i32::from(NOT_STARTED),
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
