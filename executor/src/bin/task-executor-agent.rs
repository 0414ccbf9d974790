//! The agent alone: what the executor injects if it finds it beside itself. The executor's own program
//! would do as well, and does where this one is missing; but all of a program is copied into the
//! sandbox, and this one is a fifth of it.

use std::process::ExitCode;

use task_executor::agent;
use task_executor::agent::protocol::NOOP_NAME;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() == Some(NOOP_NAME) {
        return ExitCode::SUCCESS;
    }
    agent::main(&arguments.collect::<Vec<_>>())
}
