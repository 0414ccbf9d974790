//! The program's command line and its parts put together.

use std::process::ExitCode;

/// Everything that is not the agent.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
