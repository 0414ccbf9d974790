//! What operator and executor say to each other: upstream's JSON, and what we add to it.
//!
//! Only data and the pure rules on it: no client, no clock, neither kube nor k8s-openapi, so that the
//! executor stays small. Which route takes which of these is in the executor's documentation.
//!
//! Upstream's fields keep upstream's names, and are written as Go's encoder writes them: a time that
//! is not set is `null`. On reading, unknown fields are ignored and `null` stands for an absent field
//! everywhere, because Go writes `null` for an empty list. Ours are `uid`, `containerId` and `outcome`
//! of a [`Task`] and `gracePeriodSeconds` of a [`Process`]; upstream's programs ignore them.
//!
//! Values of environment variables, arguments and pod templates may be secret: `Debug` prints none of
//! them.

mod outcome;
mod secret;
mod template;
mod watch;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

pub use outcome::{End, LossReason, Outcome, StartFailure, StoppedBy, reason};
pub use secret::{Opaque, Secret};
pub use template::{ProcessTask, TaskSpec, TaskTemplate};
pub use watch::WatchEvent;

/// Seconds between `SIGTERM` and `SIGKILL` of a task that names no other number.
pub const DEFAULT_GRACE_PERIOD_SECONDS: u64 = 10;

/// One task on one executor, as it is ordered and as it is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Name, unique on the executor. Empty if absent: `setTasks` ignores such an entry.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// Ours: which run of which task this is, the text of a
    /// [`TaskIdentity`](crate::names::TaskIdentity). The same name with another UID is another task
    /// and replaces the one before. Absent from upstream's controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Ours: ID of the container to run in, `containerID` of its status in the pod. Absent means that
    /// the executor finds the sandbox container itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// When the task was asked to stop, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
    /// The process to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Upstream's "container mode", which it never implemented. Read so that it can be refused by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template_spec: Option<Opaque>,
    /// State of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_status: Option<ProcessStatus>,
    /// State in upstream's "container mode".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_status: Option<Opaque>,
    /// Ours: how the process ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// A process to run.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Program and its first arguments; not run by a shell.
    #[serde(default, deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// Further arguments.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub args: Vec<String>,
    /// Variables over the environment of the sandbox's main process.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<EnvVar>,
    /// Directory to start in; empty means that of the sandbox's main process.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Seconds until the task is ended. Absent, 0 or less means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Ours: seconds between `SIGTERM` and `SIGKILL`. Absent means
    /// [`DEFAULT_GRACE_PERIOD_SECONDS`]; 0 or less means `SIGKILL` at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
}

impl Process {
    /// The time limit, if there is one.
    pub fn timeout(&self) -> Option<Duration> {
        let seconds = self
            .timeout_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())?;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// Time between `SIGTERM` and `SIGKILL`.
    pub fn grace_period(&self) -> Duration {
        Duration::from_secs(match self.grace_period_seconds {
            None => DEFAULT_GRACE_PERIOD_SECONDS,
            Some(seconds) => u64::try_from(seconds).unwrap_or(0),
        })
    }

    /// Program and all arguments.
    pub fn argv(&self) -> impl Iterator<Item = &str> {
        self.command.iter().chain(&self.args).map(String::as_str)
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            args,
            env,
            working_dir,
            timeout_seconds,
            grace_period_seconds,
        } = self;
        // Arguments often carry tokens.
        f.debug_struct("Process")
            .field("program", &command.first())
            .field("arguments", &(command.len().saturating_sub(1) + args.len()))
            .field("env", env)
            .field("working_dir", working_dir)
            .field("timeout_seconds", timeout_seconds)
            .field("grace_period_seconds", grace_period_seconds)
            .finish()
    }
}

/// One environment variable, as in `core/v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// Its value, taken literally.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Secret::is_empty"
    )]
    pub value: Secret,
    /// A reference. No executor can follow one: upstream's takes it for an empty value; read so that
    /// it can be refused by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<Opaque>,
}

/// State of a process: at most one member is set; none means that it waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessStatus {
    /// Not started yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
    /// Ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminated: Option<Terminated>,
}

impl ProcessStatus {
    /// A process that has not started, and why.
    pub fn waiting(reason: impl Into<String>, message: impl Into<String>) -> Self {
        let waiting = Waiting {
            reason: reason.into(),
            message: message.into(),
        };
        Self {
            waiting: Some(waiting),
            ..Self::default()
        }
    }

    /// A process that runs since then (RFC 3339, UTC).
    pub fn running(started_at: impl Into<String>) -> Self {
        Self {
            running: Some(Running {
                started_at: Some(started_at.into()),
            }),
            ..Self::default()
        }
    }

    /// A process that has ended.
    pub fn terminated(terminated: Terminated) -> Self {
        Self {
            terminated: Some(terminated),
            ..Self::default()
        }
    }
}

/// A process that has not started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Why, in one word; `Pending` from upstream.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub reason: String,
    /// Why, in a sentence.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub message: String,
}

/// A process that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// When it started: RFC 3339, UTC, whole seconds; written as `null` if not known.
    #[serde(default)]
    pub started_at: Option<String>,
}

/// A process that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terminated {
    /// Exit code; 128 plus the signal's number if a signal ended it. See [`Outcome::exit_code`].
    #[serde(default, deserialize_with = "null_as_default")]
    pub exit_code: i32,
    /// Number of the signal that ended it, else 0. Upstream never sets it.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "is_zero"
    )]
    pub signal: i32,
    /// Why it ended, in one word: one of [`reason`].
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub reason: String,
    /// Why it ended, in a sentence.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub message: String,
    /// When it started: RFC 3339, UTC, whole seconds; written as `null` if not known.
    #[serde(default)]
    pub started_at: Option<String>,
    /// When it ended: likewise.
    #[serde(default)]
    pub finished_at: Option<String>,
}

/// A task's state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not started, or nothing is said about it.
    Waiting,
    /// Runs.
    Running,
    /// Ended with exit code 0.
    Succeeded,
    /// Ended otherwise.
    Failed,
}

impl State {
    /// Whether the process will do nothing any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl Task {
    /// The state that the task reports. An ended one counts before a running one, should both be set.
    pub fn state(&self) -> State {
        match &self.process_status {
            Some(ProcessStatus {
                terminated: Some(Terminated { exit_code: 0, .. }),
                ..
            }) => State::Succeeded,
            Some(ProcessStatus {
                terminated: Some(_),
                ..
            }) => State::Failed,
            Some(ProcessStatus {
                running: Some(_), ..
            }) => State::Running,
            Some(_) | None => State::Waiting,
        }
    }
}

/// Reads the body of `setTasks` or the reply of `getTasks`: a list of tasks, `null` for none.
///
/// # Errors
///
/// If it is not JSON, or not a list of tasks.
pub fn tasks_from_json(body: &[u8]) -> Result<Vec<Task>, serde_json::Error> {
    // Go reads a `null` element as a task without a name, which is then ignored.
    let tasks: Option<Vec<Option<Task>>> = serde_json::from_slice(body)?;
    Ok(tasks.unwrap_or_default().into_iter().flatten().collect())
}

/// Body of every error: `{"code":"Bad Request","message":"..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ErrorBody {
    /// The HTTP status in words, as Go names it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub code: String,
    /// What is wrong.
    #[serde(default, deserialize_with = "null_as_default")]
    pub message: String,
}

impl ErrorBody {
    /// The body for an HTTP status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            code: status_text(status).to_owned(),
            message: message.into(),
        }
    }
}

/// Body of `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Health {
    /// `healthy`.
    pub status: String,
}

impl Health {
    /// What an executor that answers says.
    pub fn healthy() -> Self {
        Self {
            status: "healthy".to_owned(),
        }
    }
}

/// The words that Go's `http.StatusText` has for the statuses that an executor sends; empty for
/// others, as there.
pub fn status_text(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Request Entity Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}

/// Reads `null` like an absent field.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_zero(number: &i32) -> bool {
    *number == 0
}
