//! Ctrl-C and its like: the demo then ends early, and cleans up before it does.

use std::fs;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{self, SignalKind};

/// The name of the guard's process, which ends by itself, after all that it guards.
const GUARD: &str = "cluster-guard";

/// The signals by which a person or a terminal ends a program.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    /// From now on they do not end the process.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hang_up: unix::signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
        }
    }
}

/// Interrupts the programs that this process started and waits for: builds and kubectl. A terminal
/// does that by itself; whoever sends a signal to this process alone does not.
pub(super) fn interrupt_children() {
    let threads = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    for thread in threads {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if let (true, Ok(pid)) = (name.trim_end() != GUARD, pid.parse()) {
                kill(Pid::from_raw(pid), Signal::SIGINT).ok();
            }
        }
    }
}
