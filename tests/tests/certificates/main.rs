//! No admission call fails, whatever happens to the certificates: the real webhook, as its service
//! account, rotates, loses and repairs them while the real API server sends it Pools.
//!
//! Each test has its own cluster, because it disturbs the installation, and a [`load::Load`] of 200
//! requests per second that must all be answered. `OPENSANDBOX_SOAK_SECONDS` makes each test repeat
//! what it does until that time is over; without it, what is needed to see every state once.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod authority;
mod bundles;
mod files;
mod leaf;
mod load;
mod peer;
mod replicas;
mod secret;
mod site;
