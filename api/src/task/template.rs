//! The typed form of `spec.taskTemplate` of a BatchSandbox, after its patches have been applied.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{EnvVar, Process, null_as_default};

/// `spec.taskTemplate` of a BatchSandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskTemplate {
    /// What the task does.
    #[serde(default, deserialize_with = "null_as_default")]
    pub spec: TaskSpec,
}

/// What a task does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// The process that is the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessTask>,
    /// Ends the task after so many seconds. Absent, 0 or less means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Ours: seconds between `SIGTERM` and `SIGKILL` when the task is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
}

/// The process that is a task.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessTask {
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
}

impl TaskTemplate {
    /// The process as an executor is told to run it; `None` if the template has none. Time limits are
    /// those of this template, so of the patched one.
    pub fn process(self) -> Option<Process> {
        let TaskSpec {
            process,
            timeout_seconds,
            grace_period_seconds,
        } = self.spec;
        let ProcessTask {
            command,
            args,
            env,
            working_dir,
        } = process?;
        Some(Process {
            command,
            args,
            env,
            working_dir,
            timeout_seconds,
            grace_period_seconds,
        })
    }
}

impl fmt::Debug for ProcessTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            args,
            env,
            working_dir,
        } = self;
        // Arguments often carry tokens.
        f.debug_struct("ProcessTask")
            .field("program", &command.first())
            .field("arguments", &(command.len().saturating_sub(1) + args.len()))
            .field("env", env)
            .field("working_dir", working_dir)
            .finish()
    }
}
