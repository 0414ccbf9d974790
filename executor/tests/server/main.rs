//! The HTTP API over real sockets, before a list of tasks that is a fake.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests a failure is a failed test"
)]

mod auth;
mod fake;
mod garbage;
mod harness;
mod limits;
mod streams;
mod upstream;
