//! The operator of OpenSandbox pools: keeps pods warm and gives them to BatchSandboxes.
//!
//! Not built yet. What it will share with the webhook is in `opensandbox-api` already: the arithmetic of
//! pools, the injection of the executor into the pods it makes, strategic merge, conditions. The program
//! exists so that the workspace has its final shape, and it says so instead of pretending to work.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[expect(clippy::print_stderr, reason = "the one thing this program does")]
fn main() -> ExitCode {
    eprintln!(
        "opensandbox-operator {} does not run pools yet: only the API, its CRDs and the admission webhook exist so far ({} is served)",
        env!("CARGO_PKG_VERSION"),
        opensandbox_api::labels::GROUP,
    );
    ExitCode::FAILURE
}
