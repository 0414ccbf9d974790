//! How an agent comes into the sandbox container.

use std::os::fd::OwnedFd;

/// An agent that runs.
#[derive(Debug)]
pub struct Agent {
    /// How it came there.
    pub mode: Mode,
    /// Its process, by number and by descriptor.
    pub pid: i32,
    /// The process for good, even when the number is reused.
    pub pidfd: OwnedFd,
    /// The executor's end of the control socket, see [`protocol`](crate::agent::protocol).
    pub control: OwnedFd,
    /// Whether it was there already, left by an executor before this one.
    pub found: bool,
    /// The environment of the sandbox's main process, `NAME=VALUE` each.
    pub environment: Vec<Vec<u8>>,
    /// ID of the container it is in, if known.
    pub container_id: Option<String>,
    /// What is not as it should be, for people: why it is only the fallback, say.
    pub remark: Option<String>,
}

/// How tasks get into the sandbox container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Injected by ptrace: everything is the sandbox container's.
    Injected,
    /// By chroot from the executor's container: its cgroup and mounts are the executor's.
    Chroot,
    /// The executor runs in the sandbox container itself.
    InContainer,
}
