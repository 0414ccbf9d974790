//! Conversations with executors: the real program as a process, and made-up ones that misbehave.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "integration tests, and their helpers"
)]

mod answers;
mod bounds;
mod desk;
mod executor;
mod fake;
mod hostile;
mod process;
mod upstream;
