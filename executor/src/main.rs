//! The task executor: injects tasks into the sandbox container of its pod.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    // The agent is this program under another name. It must not run anything of the executor's.
    match arguments.next().as_deref() {
        Some(task_executor::agent::protocol::AGENT_NAME) => {
            task_executor::agent::main(&arguments.collect::<Vec<_>>())
        }
        Some(task_executor::agent::protocol::NOOP_NAME) => ExitCode::SUCCESS,
        _ => task_executor::serve::main(),
    }
}
