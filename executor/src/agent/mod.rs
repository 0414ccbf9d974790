//! The agent: the parent of all tasks in one sandbox container.
//!
//! A single thread and no allocation to speak of: it lives in the sandbox's memory.

pub mod protocol;

/// The program `task-executor-agent`, entered before anything else of this program has run.
/// `arguments` are those after argv 0.
pub fn main(_arguments: &[String]) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
