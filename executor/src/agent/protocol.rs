//! What executor and agent say to each other.
//!
//! Two sockets. The *control* socket lives as long as the agent: a `SOCK_SEQPACKET` pair whose near end
//! is [`CONTROL_FD`] of the agent. A message on it carries one descriptor, a `SOCK_STREAM` socket, which
//! from then on is *the connection*; the one before is dropped. So an executor that came back, holding
//! nothing, starts with a clean stream, and only who can take a descriptor out of the agent
//! (`pidfd_getfd`, which needs `PTRACE_MODE_ATTACH`) can be an executor: sandbox code cannot, because the
//! agent is not dumpable.
//!
//! On the connection: frames of a length (`u32`, little endian, at most [`MAX_FRAME`]) and that many
//! bytes of postcard, [`Order`] one way and [`Report`] the other. Enum variants and fields are only ever
//! appended, and only with a new [`VERSION`], because an executor of a newer image meets the agent that
//! an older one left.
//!
//! A [`TaskReport`] is a whole state, not a change: seeing one twice, or only the last, does no harm.
//! Where [`TaskReport::output`] is set, the frame's first byte carries two descriptors, the reading ends
//! of the task's standard output and standard error. The agent keeps its own copies, so that output
//! waits in the pipes while no executor is there.
//!
//! Neither side believes the other's lengths: the agent runs as the sandbox's user, and a sandbox can
//! put a program of its own in its place. It can then lie about tasks of that sandbox, and nothing else.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

/// Version of this protocol.
pub const VERSION: u32 = 1;
/// The agent's end of the control socket, in the agent.
pub const CONTROL_FD: RawFd = 3;
/// The other end, in an injected agent: an executor takes it from there.
pub const CONTROL_PEER_FD: RawFd = 4;
/// Longest frame, in bytes.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;

/// Name of the agent in argv 0 and of the memfd it is executed from.
pub const AGENT_NAME: &str = "task-executor-agent";
/// Name of the process that does nothing and ends with 0: [`Order::Probe`].
pub const NOOP_NAME: &str = "task-executor-noop";
/// argv 1 of an agent that was injected: it makes its control socket itself, and stops itself once
/// (`SIGSTOP`, seen by the tracer alone) when it is ready to be let go.
pub const ARG_INJECTED: &str = "injected";
/// argv 1 of an agent that is a child of its executor: the control socket is at [`CONTROL_FD`]. It ends,
/// with all tasks, when its executor does.
pub const ARG_CHILD: &str = "child";

/// Chosen by the executor, one per run of a task, unique in an agent's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct TaskKey(pub u64);

/// From executor to agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Order {
    /// First on every connection; answered by [`Report::Hello`], one [`Report::Task`] with its note for
    /// every task the agent knows, and [`Report::SnapshotEnd`].
    Hello {
        /// [`VERSION`] of the executor.
        version: u32,
    },
    /// Start a task. One whose key is known is not started again.
    Start(Box<StartOrder>),
    /// End a task: `SIGTERM` to its process group, `SIGKILL` after the grace period, then every
    /// descendant. For a task whose leader has ended, what it left behind is killed likewise.
    /// Asked again, the shorter grace period holds.
    Stop {
        /// Which.
        key: TaskKey,
        /// Why; the first reason is the one reported.
        cause: StopCause,
        /// Between `SIGTERM` and `SIGKILL`, in milliseconds; `None` is the task's own.
        grace_millis: Option<u64>,
    },
    /// Replace the note of a task. One that is not known is kept as a task that was never started here,
    /// of which nothing is left: the executor tells an agent what the one before it knew.
    Note {
        /// Which.
        key: TaskKey,
        /// What the agent keeps for the executor and does not read.
        note: Vec<u8>,
    },
    /// Forget a task of which nothing is left ([`TaskReport::gone`]); ignored for another.
    Forget {
        /// Which.
        key: TaskKey,
    },
    /// Start a process that does nothing, as a task would be, and say how it ended.
    Probe {
        /// Repeated in the answer.
        number: u64,
    },
    /// Kill all tasks and end.
    Shutdown,
}

/// A task to start.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct StartOrder {
    /// Which.
    pub key: TaskKey,
    /// Kept for the executor, see [`Order::Note`].
    pub note: Vec<u8>,
    /// Program and arguments, without NUL; not empty. A program without `/` is searched in the `PATH`
    /// of [`Self::env`].
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `NAME=VALUE` each, without NUL.
    pub env: Vec<Vec<u8>>,
    /// Directory to start in; `None` is the agent's, which is the one the main process had.
    pub working_directory: Option<Vec<u8>>,
    /// Time limit in milliseconds.
    pub timeout_millis: Option<u64>,
    /// Between `SIGTERM` and `SIGKILL`, in milliseconds.
    pub grace_millis: u64,
}

impl std::fmt::Debug for StartOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Arguments and environment may be secret.
        f.debug_struct("StartOrder")
            .field("key", &self.key)
            .field("arguments", &self.argv.len())
            .field("variables", &self.env.len())
            .field("timeout_millis", &self.timeout_millis)
            .field("grace_millis", &self.grace_millis)
            .finish_non_exhaustive()
    }
}

/// Why a task is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum StopCause {
    /// It was deleted.
    Request,
    /// Another of its name comes.
    Replacement,
    /// Its time limit.
    Timeout,
    /// The executor ends.
    Shutdown,
}

/// From agent to executor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Report {
    /// Answers [`Order::Hello`].
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
    },
    /// The state of a task.
    Task(Box<TaskReport>),
    /// Every task that was known at [`Order::Hello`] has been reported.
    SnapshotEnd,
    /// Answers [`Order::Probe`].
    Probe {
        /// That of the order.
        number: u64,
        /// Why no process could be started, if none could.
        failure: Option<StartFault>,
    },
}

/// All there is to say about a task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TaskReport {
    /// Which.
    pub key: TaskKey,
    /// In a snapshot: the note.
    pub note: Option<Vec<u8>>,
    /// Its state.
    pub state: TaskState,
    /// Why it is being stopped, or was.
    pub stop: Option<StopCause>,
    /// No process of it is left. Only then is it stopped.
    pub gone: bool,
    /// Two descriptors come with this frame.
    pub output: bool,
}

/// State of a task in the agent. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum TaskState {
    /// Being started.
    Starting,
    /// Its program runs.
    Running {
        /// Its process, which leads a session and a process group.
        pid: i32,
        /// Since when.
        started_at: u64,
    },
    /// It could not be started.
    NotStarted {
        /// Why.
        fault: StartFault,
        /// When.
        at: u64,
    },
    /// Its leader has ended.
    Ended {
        /// The process.
        pid: i32,
        /// How.
        exit: Exit,
        /// The kernel killed it because the container ran out of memory.
        oom_killed: bool,
        /// When it started.
        started_at: u64,
        /// When it ended.
        finished_at: u64,
        /// From start to end by the monotonic clock, in microseconds.
        duration_micros: u64,
    },
    /// The process that watches over it was killed: nobody knows how it ended.
    Lost {
        /// Its process, if it had started.
        pid: Option<i32>,
        /// When it started.
        started_at: Option<u64>,
        /// When the loss was seen.
        at: u64,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Exit {
    /// By `exit`.
    Code(i32),
    /// By a signal.
    Signal {
        /// Its number.
        signal: i32,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
}

/// What failed when a task was to be started, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct StartFault {
    /// The step.
    pub stage: Stage,
    /// The kernel's reason.
    pub errno: i32,
}

/// A step of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Stage {
    /// Pipes and descriptors.
    Pipes,
    /// A process for it.
    Fork,
    /// A session of its own, signals, standard streams.
    Setup,
    /// The working directory.
    WorkingDirectory,
    /// The program.
    Exec,
    /// The order itself: a NUL in a string, no program.
    Invalid,
}
