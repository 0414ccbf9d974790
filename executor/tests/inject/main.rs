//! Injection into real processes: what they notice of it, and what is left when it fails.
//!
//! Wants `cc` that can link statically. As root, more is tested than as another user.

#![cfg(target_os = "linux")]
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests a failure is a failed test"
)]
#![expect(
    clippy::panic,
    reason = "in helpers of tests a failure is a failed test"
)]

mod failures;
mod harness;
mod interference;
mod sleepers;
