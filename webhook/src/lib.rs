//! The admission webhook of OpenSandbox pools.

#![forbid(unsafe_code)]

pub mod admission;
pub mod cli;
pub mod facts;
pub mod metrics;
pub mod serve;
pub mod server;
