//! The task executor: injects tasks into the sandbox container of its pod.
//!
//! Not built yet. Its wire types are in `opensandbox-api` already, which this crate uses without the
//! feature `crd`: neither kube nor k8s-openapi belongs into a sidecar. The program exists so that the
//! workspace has its final shape, and it says so instead of pretending to work.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[expect(clippy::print_stderr, reason = "the one thing this program does")]
fn main() -> ExitCode {
    eprintln!(
        "task-executor {} does not run tasks yet: its API will be served on port {}",
        env!("CARGO_PKG_VERSION"),
        opensandbox_api::labels::TASK_EXECUTOR_PORT,
    );
    ExitCode::FAILURE
}
