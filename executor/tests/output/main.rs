//! Output of tasks: what is kept of it, what the log shows of it, and how it is read.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]
#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    reason = "a test that fails may panic"
)]

mod budget;
mod log;
mod pipes;
mod support;
