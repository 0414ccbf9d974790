//! The HTTPS server with real sockets and a real TLS client: protocols, refusals, bounds, drain.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests a failure is a failed test"
)]

mod drain;
mod harness;
mod limits;
mod requests;
