//! How an agent comes into the sandbox container: it is there already, is injected, is started beside
//! it and enters by chroot, or is simply started, where the executor itself runs in the sandbox.

pub mod chroot;
pub mod decision;
mod found;
mod in_container;
pub mod remains;
mod start;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::{SIGCONT, SIGKILL};
use opensandbox_api::task::StartFailure;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::oom::Kills;
use crate::agent::protocol::{AGENT_NAME, ARG_INJECTED, CONTROL_PEER_FD};
use crate::config::{Config, ModeSetting};
use crate::inject;
use crate::pod::proc::{Environment, Proc};
use crate::pod::target::{Choice, ContainerRef, NoTarget, choose};
use crate::pod::{Main, Pod};
use crate::sys::fd;

pub use decision::{Decision, Place, mode};

/// This program, which is the agent too.
const PROGRAM: &str = "/proc/self/exe";
/// For one injection; it takes 5 ms where all is well.
const INJECTION_LIMIT: Duration = Duration::from_secs(2);
/// Children that have ended wait so long to be reaped.
const REAP_PAUSE: Duration = Duration::from_millis(100);
/// For what tasks left behind to be killed.
const REMAINS_LIMIT: Duration = Duration::from_secs(5);

/// An agent that runs.
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
    /// ID of the container whose tasks it runs, if known.
    pub container_id: Option<String>,
    /// The container's count of processes that were killed because it ran out of memory.
    pub kills: Kills,
    /// The sandbox's main process; `None` in-container, where the executor ends with the sandbox.
    pub target: Option<Target>,
    /// What is not as it should be, for people: why it is only the fallback, say.
    pub remark: Option<String>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment may be secret.
        f.debug_struct("Agent")
            .field("mode", &self.mode)
            .field("pid", &self.pid)
            .field("found", &self.found)
            .field("variables", &self.environment.len())
            .field("container_id", &self.container_id)
            .field("target", &self.target)
            .field("remark", &self.remark)
            .finish_non_exhaustive()
    }
}

/// The main process of the container that an agent serves. Once it has ended, so has the container, and
/// an agent that ended is no surprise.
#[derive(Debug)]
pub struct Target {
    /// Process.
    pub pid: i32,
    /// Pins it, see [`Stat::start_time`](crate::pod::proc::Stat::start_time).
    pub start_time: u64,
    /// 64 hexadecimal digits.
    pub container_id: String,
    /// Readable once the process has ended.
    pub pidfd: OwnedFd,
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

/// Why there is no agent. The texts are for people: what is wrong, with what was seen, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The pod cannot be examined.
    #[error("the pod cannot be examined: {0}; the executor's container needs its own /proc")]
    Proc(#[source] io::Error),
    /// Tasks are for another container, and nothing outside this one can be seen.
    #[error(
        "tasks are for {}, but this is container {} and its PID namespace is not shared; set shareProcessNamespace: true in the pod, or start the executor in the sandbox container with --mode=in-container",
        wanted.as_deref().map_or_else(|| "another container".to_owned(), |name| format!("container {name:?}")),
        own.as_deref().unwrap_or("(name unknown)")
    )]
    NotShared {
        /// Name of the main container, if it is named.
        wanted: Option<String>,
        /// Name of this one.
        own: Option<String>,
    },
    /// No container, or more than one that could be it.
    #[error(transparent)]
    NoTarget(#[from] NoTarget),
    /// It ended while it was looked at.
    #[error(
        "the main process {0} of the sandbox container has just ended; try again when the container has restarted"
    )]
    TargetEnded(i32),
    /// A task's environment begins with that of the main process.
    #[error(
        "the environment of the sandbox's main process {0} cannot be read; run the executor as root with SYS_PTRACE in its securityContext.capabilities.add, and with DAC_OVERRIDE if capabilities are dropped there"
    )]
    Environment(i32),
    /// The sandbox container cannot be entered.
    #[error("the sandbox container cannot be entered: {}", reasons(injection.as_ref(), chroot.as_ref()))]
    Refused {
        /// Why not by injection, if that was tried.
        injection: Option<String>,
        /// Why not by chroot, if that was tried.
        chroot: Option<String>,
    },
    /// No process for the agent.
    #[error("the agent cannot be started: {0}")]
    Start(#[source] io::Error),
}

impl LaunchError {
    /// What a task that could not be started for this reason reports.
    pub const fn failure(&self) -> StartFailure {
        match self {
            Self::NotShared { .. } | Self::NoTarget(_) | Self::TargetEnded(_) => {
                StartFailure::NoTarget
            }
            Self::Proc(_) | Self::Environment(_) | Self::Refused { .. } | Self::Start(_) => {
                StartFailure::InjectionRefused
            }
        }
    }

    /// The way in that was tried and what came of it in one word, for metrics; `None` where nothing was
    /// tried, since there is no container to enter.
    pub const fn attempt(&self) -> Option<(Mode, &'static str)> {
        match self {
            Self::NotShared { .. } | Self::NoTarget(_) | Self::TargetEnded(_) | Self::Proc(_) => {
                None
            }
            Self::Environment(_) => Some((Mode::Injected, "environment")),
            // Where both were tried, the first is the one that should have worked.
            Self::Refused {
                injection: Some(_), ..
            } => Some((Mode::Injected, "refused")),
            Self::Refused { .. } => Some((Mode::Chroot, "refused")),
            Self::Start(_) => Some((Mode::InContainer, "no-process")),
        }
    }

    /// An attempt that failed for a reason outside the pod.
    pub fn failed(reason: String) -> Self {
        Self::Start(io::Error::other(reason))
    }

    /// Whether it may be otherwise a moment later, without anybody changing the pod.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::NotShared { .. } => false,
            Self::NoTarget(none) => !none.ambiguous,
            Self::TargetEnded(_)
            | Self::Proc(_)
            | Self::Environment(_)
            | Self::Refused { .. }
            | Self::Start(_) => true,
        }
    }
}

impl Mode {
    /// As it is written in `/readyz`, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Injected => "inject",
            Self::Chroot => "chroot",
            Self::InContainer => "in-container",
        }
    }
}

fn reasons(injection: Option<&String>, chroot: Option<&String>) -> String {
    let injection = injection.map(|reason| format!("injection: {reason}"));
    let chroot = chroot.map(|reason| format!("chroot: {reason}"));
    let all: Vec<String> = injection.into_iter().chain(chroot).collect();
    all.join("; ")
}

/// Brings an agent into the sandbox container, or finds the one that is there. Blocks for a few
/// milliseconds, at worst some seconds; for a thread of its own, since tracing is a thread's.
///
/// An agent that is found may not answer (a sandbox can put a program of its own there): whoever talks to
/// it kills it by its pidfd then, and calls again.
///
/// # Errors
///
/// See [`LaunchError`].
pub fn launch(config: &Config, wanted: Option<&ContainerRef>) -> Result<Agent, LaunchError> {
    launch_program(&agent_program(), config, wanted)
}

/// [`launch`] with the agent in another program: for whoever is not the executor, a test say.
///
/// # Errors
///
/// See [`LaunchError`].
pub fn launch_program(
    program: &Path,
    config: &Config,
    wanted: Option<&ContainerRef>,
) -> Result<Agent, LaunchError> {
    let proc = Proc::default();
    let pod = Pod::read(&proc, config.pod_uid.as_deref()).map_err(LaunchError::Proc)?;
    match mode(config, &pod)?.place {
        Place::InContainer => in_container::start(program, &proc, &pod, wanted),
        Place::Sidecar => {
            let choice = choose(&pod, config.main_container_name.as_deref(), wanted)?;
            enter(program, &proc, &pod, choice, config.mode)
        }
    }
}

/// The agent's own program beside this one, or this one, which holds it too.
fn agent_program() -> PathBuf {
    let beside = std::env::current_exe().map(|program| program.with_file_name(AGENT_NAME));
    match beside {
        Ok(agent) if agent.is_file() => agent,
        _ => PathBuf::from(PROGRAM),
    }
}

/// Whether a process still runs. A zombie does not.
pub fn is_alive(pid: i32, start_time: u64) -> bool {
    Proc::default().is_alive(pid, start_time)
}

/// Ends an agent that is of no use any more, if it has not ended.
pub fn kill(agent: &Agent) {
    let _ended = fd::pidfd_send_signal(agent.pidfd.as_fd(), SIGKILL);
}

/// Lets an agent go on that sandbox code has stopped; says whether it was.
pub fn wake(agent: &Agent) -> bool {
    let stopped = Proc::default()
        .stat(agent.pid)
        .is_some_and(|stat| stat.state == 'T');
    stopped && fd::pidfd_send_signal(agent.pidfd.as_fd(), SIGCONT).is_ok()
}

/// Whether the container that an agent was in has ended, or does within `patience`: its processes end
/// one after the other. Blocks.
pub fn container_ended(agent: &Agent, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let target = agent.target.as_ref();
    target.is_some_and(|target| remains::has_ended(&target.pidfd, deadline).unwrap_or(false))
}

/// Removes what is left of the tasks of an agent that is gone, and the agent itself if it was a child of
/// this process. `sessions` are the processes of its tasks. Blocks.
///
/// # Errors
///
/// Processes are left.
pub fn clear(agent: &Agent, sessions: &[i32]) -> io::Result<()> {
    let scope = match (agent.mode, agent.container_id.as_deref()) {
        (Mode::Injected, Some(id)) => remains::Scope::Container(id),
        _ => remains::Scope::Own,
    };
    if agent.mode != Mode::Injected {
        remains::reap_child(&agent.pidfd);
    }
    remains::kill_remains(&Proc::default(), scope, sessions, REMAINS_LIMIT)?;
    Ok(())
}

/// Reaps children of this process as they end: agents, and orphans that come to it where it is process 1; but
/// not `spared`, which somebody else waits for. Does not return.
pub async fn reap(spared: Option<i32>) {
    let Ok(mut ended) = signal(SignalKind::child()) else {
        tracing::error!("children that end cannot be noticed");
        return std::future::pending().await;
    };
    while ended.recv().await.is_some() {
        // Every stop of an injection is signalled too, and must not be slowed down by looking around.
        tokio::time::sleep(REAP_PAUSE).await;
        if let Err(error) = remains::reap(&Proc::default(), spared) {
            tracing::warn!(%error, "children that ended cannot be found");
        }
    }
}

fn enter(
    program: &Path,
    proc: &Proc,
    pod: &Pod,
    choice: Choice<'_>,
    setting: ModeSetting,
) -> Result<Agent, LaunchError> {
    let Choice {
        container, main, ..
    } = choice;
    let pidfd = fd::pidfd_open(main.pid).map_err(|_| LaunchError::TargetEnded(main.pid))?;
    // Opened first, compared after: so the descriptor is that of the process that was chosen.
    if !proc.is_alive(main.pid, main.start_time) {
        return Err(LaunchError::TargetEnded(main.pid));
    }
    let Some(Environment(environment)) = main.environment.clone() else {
        return Err(LaunchError::Environment(main.pid));
    };
    let entered = by_setting(program, proc, pod, choice, setting)?;
    Ok(Agent {
        mode: entered.mode,
        pid: entered.pid,
        pidfd: entered.pidfd,
        control: entered.control,
        found: entered.found,
        environment,
        container_id: Some(container.id.clone()),
        kills: Kills::of(&proc.path(main.pid, "root")),
        target: Some(Target {
            pid: main.pid,
            start_time: main.start_time,
            container_id: container.id.clone(),
            pidfd,
        }),
        remark: entered.remark,
    })
}

/// An agent in the container, however it came there.
struct Entered {
    mode: Mode,
    pid: i32,
    pidfd: OwnedFd,
    control: OwnedFd,
    found: bool,
    remark: Option<String>,
}

fn by_setting(
    program: &Path,
    proc: &Proc,
    pod: &Pod,
    choice: Choice<'_>,
    setting: ModeSetting,
) -> Result<Entered, LaunchError> {
    let by_chroot = || chroot::start(program, proc, pod.own.pid, choice.main);
    if setting == ModeSetting::Chroot {
        return by_chroot()
            .map(|started| entered_by_chroot(started, None))
            .map_err(|reason| LaunchError::Refused {
                injection: None,
                chroot: Some(reason.to_string()),
            });
    }
    if let Some(agent) = found::look(proc, choice) {
        return Ok(agent);
    }
    let injection = match injected(program, choice.main) {
        Ok(agent) => return Ok(agent),
        Err(reason) => reason,
    };
    if setting == ModeSetting::Inject {
        return Err(LaunchError::Refused {
            injection: Some(injection),
            chroot: None,
        });
    }
    match by_chroot() {
        Ok(started) => Ok(entered_by_chroot(started, Some(&injection))),
        Err(reason) => Err(LaunchError::Refused {
            injection: Some(injection),
            chroot: Some(reason.to_string()),
        }),
    }
}

fn entered_by_chroot(started: start::Started, injection: Option<&str>) -> Entered {
    let limits = chroot::LIMITS;
    let remark = injection.map_or_else(
        || limits.to_owned(),
        |reason| format!("not injected ({reason}), therefore {limits}"),
    );
    Entered {
        mode: Mode::Chroot,
        pid: started.pid,
        pidfd: started.pidfd,
        control: started.control,
        found: false,
        remark: Some(remark),
    }
}

fn injected(program: &Path, main: &Main) -> Result<Entered, String> {
    let program = File::open(program)
        .map_err(|error| format!("the agent's program cannot be read: {error}"))?;
    let request = inject::Request {
        pid: main.pid,
        start_time: main.start_time,
        program,
        argv: vec![AGENT_NAME.into(), ARG_INJECTED.into()],
        envp: Vec::new(),
        time_limit: INJECTION_LIMIT,
    };
    let inject::Injected { pid, pidfd, .. } =
        inject::inject(&request).map_err(|failure| failure.to_string())?;
    match fd::pidfd_getfd(pidfd.as_fd(), CONTROL_PEER_FD) {
        Ok(control) => Ok(Entered {
            mode: Mode::Injected,
            pid,
            pidfd,
            control,
            found: false,
            remark: None,
        }),
        Err(error) => {
            // Of no use to anybody without its socket. It may have ended by itself.
            let _ended = fd::pidfd_send_signal(pidfd.as_fd(), SIGKILL);
            Err(format!(
                "the agent ran as process {pid}, but its socket cannot be taken: {error}"
            ))
        }
    }
}

#[cfg(test)]
mod tests;
