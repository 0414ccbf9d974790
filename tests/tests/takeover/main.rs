//! A cluster goes from upstream's controller to our operator and back, and each works with the other's
//! executor: the real programs of both, on a real API server.
//!
//! `just takeover CONTROLLER EXECUTOR` runs these with upstream's programs, whose paths they take from
//! `OPENSANDBOX_UPSTREAM_CONTROLLER` and `OPENSANDBOX_UPSTREAM_EXECUTOR`.

#![cfg(test)]

mod picture;
mod pooled;
mod recipes;
mod site;
mod tasks;
