//! How a task ended: the facts, and how they look in upstream's fields.

use serde::{Deserialize, Serialize};

use super::Terminated;

/// Reasons of a terminated process, one word each.
pub mod reason {
    /// Exit code 0. Upstream's.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Another exit code, or a signal. Upstream's.
    pub const FAILED: &str = "Failed";
    /// Nobody saw how it ended. Upstream's.
    pub const PROCESS_CRASHED: &str = "ProcessCrashed";
    /// The time limit ended it. Upstream's.
    pub const TASK_TIMEOUT: &str = "TaskTimeout";
    /// The kernel ended it because the container ran out of memory.
    pub const OOM_KILLED: &str = "OOMKilled";
    /// It was asked to stop.
    pub const STOPPED: &str = "Stopped";
    /// It could not be started.
    pub const START_FAILED: &str = "StartFailed";
    /// A newer executor reports an end that this program does not know.
    pub const UNKNOWN: &str = "Unknown";
}

/// Exit code of a task that was lost or ran into its time limit: 128 + `SIGKILL`, as upstream has it.
const KILLED: i32 = 137;

/// Everything known about the end of a task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Whether the kernel killed a process of the task because the container ran out of memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oom_killed: bool,
    /// Whether it was ended because `timeoutSeconds` had passed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed_out: bool,
    /// Who had it stopped, if it did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<StoppedBy>,
    /// Milliseconds from start to end; absent if it never started or nobody saw its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_millis: Option<u64>,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum End {
    /// It called `exit`.
    Exited {
        /// Exit code, 0 to 255.
        code: i32,
    },
    /// A signal ended it.
    Signaled {
        /// Number of the signal.
        signal: i32,
        /// Whether a core was dumped.
        #[serde(default)]
        core_dumped: bool,
    },
    /// It never ran.
    NotStarted {
        /// What failed.
        failure: StartFailure,
        /// The failure in a sentence, with the kernel's reason.
        #[serde(default)]
        message: String,
    },
    /// It ran, and nobody saw how it ended.
    Lost {
        /// What happened around it.
        reason: LossReason,
        /// The same in a sentence.
        #[serde(default)]
        message: String,
    },
    /// Anything that a newer executor reports.
    #[serde(other)]
    Unknown,
}

/// Why a task could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum StartFailure {
    /// No such program.
    NotFound,
    /// The program cannot be executed: permission, format, a directory.
    NotExecutable,
    /// The working directory does not exist or cannot be entered.
    BadWorkingDirectory,
    /// The task itself makes no sense: no command, a reference in its environment.
    Invalid,
    /// No sandbox container, or more than one that could be it.
    NoTarget,
    /// The sandbox container cannot be entered.
    InjectionRefused,
    /// Memory, processes, file descriptors or task slots are used up.
    ResourcesExhausted,
    /// Anything that a newer executor reports.
    #[serde(other)]
    Other,
}

/// What took a task away unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum LossReason {
    /// The sandbox container restarted.
    SandboxRestarted,
    /// The agent, the parent of all tasks in the sandbox, was killed.
    AgentKilled,
    /// The executor came back and found no trace of it.
    ExecutorRestarted,
    /// Anything that a newer executor reports.
    #[serde(other)]
    Other,
}

/// Who had a task stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum StoppedBy {
    /// A request: the task was deleted, or left out of `setTasks`.
    Request,
    /// A task of the same name and another UID.
    Replacement,
    /// Its own time limit.
    Timeout,
    /// The executor, when it shut down.
    Shutdown,
    /// Anything that a newer executor reports.
    #[serde(other)]
    Other,
}

impl Outcome {
    /// A task that ended by itself.
    pub fn of(end: End) -> Self {
        Self {
            end,
            oom_killed: false,
            timed_out: false,
            stopped_by: None,
            duration_millis: None,
        }
    }

    /// The exit code that clients see; 0 if and only if the task succeeded.
    ///
    /// The process's own; 128 plus the number of the signal that ended it; 127 and 126 for a program
    /// that is missing or not executable, as shells have it, 125 for any other failure to start, as
    /// `env` and `timeout` have it; 137, as upstream has it, for a task that was lost or timed out,
    /// whatever its process did when it was told to end.
    pub fn exit_code(&self) -> i32 {
        match &self.end {
            _ if self.timed_out => KILLED,
            End::Exited { code } => *code,
            End::Signaled { signal, .. } => signal.saturating_add(128),
            End::NotStarted {
                failure: StartFailure::NotFound,
                ..
            } => 127,
            End::NotStarted {
                failure: StartFailure::NotExecutable,
                ..
            } => 126,
            End::NotStarted { .. } => 125,
            End::Lost { .. } => KILLED,
            End::Unknown => 255,
        }
    }

    /// Number of the signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self.end {
            End::Signaled { signal, .. } => Some(signal),
            _ => None,
        }
    }

    /// Why it ended, in one word of [`reason`]. The cause that explains most comes first: a task that
    /// was killed for its memory after its time limit has timed out.
    pub fn reason(&self) -> &'static str {
        match &self.end {
            _ if self.timed_out => reason::TASK_TIMEOUT,
            End::Exited { code: 0 } => reason::SUCCEEDED,
            End::NotStarted { .. } => reason::START_FAILED,
            End::Unknown => reason::UNKNOWN,
            _ if self.oom_killed => reason::OOM_KILLED,
            End::Lost { .. } => reason::PROCESS_CRASHED,
            _ if self.stopped_by.is_some() => reason::STOPPED,
            End::Exited { .. } | End::Signaled { .. } => reason::FAILED,
        }
    }

    /// The end in upstream's fields. Times are RFC 3339, UTC, whole seconds.
    pub fn terminated(
        &self,
        started_at: Option<String>,
        finished_at: Option<String>,
    ) -> Terminated {
        let message = match &self.end {
            End::NotStarted { message, .. } | End::Lost { message, .. } => message.clone(),
            End::Signaled {
                signal,
                core_dumped: true,
            } => {
                format!("ended by signal {signal}, core dumped")
            }
            End::Signaled {
                signal,
                core_dumped: false,
            } => format!("ended by signal {signal}"),
            End::Exited { .. } | End::Unknown => String::new(),
        };
        Terminated {
            exit_code: self.exit_code(),
            signal: self.signal().unwrap_or(0),
            reason: self.reason().to_owned(),
            message,
            started_at,
            finished_at,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_false(flag: &bool) -> bool {
    !*flag
}
