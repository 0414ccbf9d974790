//! The operator of OpenSandbox pools: keeps pods warm and gives them to BatchSandboxes.
//!
//! ```text
//! view        raw objects -> what decisions are made from            pure
//! pool        one Pool: Input -> Output                              pure
//! sandbox     one BatchSandbox: Input -> Output                      pure
//! protocol    what the two say to each other                         data
//! write       what is asked of the API server, and its answers       data
//! assign      which pool for `poolRef: "*"`                          pure
//! keys        the key that orders to executors are signed with    client
//! session     conversations with executors                           network
//! lease       who leads; until when may be written                   client
//! shell       watches, routing, writes, metrics, probes              client
//! ```
//!
//! See docs/operator.md for the way of a claim through these, and docs/decisions for why.

#![forbid(unsafe_code)]

pub mod assign;
pub mod keys;
pub mod lease;
mod pod_security;
pub mod pool;
pub mod protocol;
pub mod sandbox;
pub mod session;
pub mod shell;
mod text;
mod time;
pub mod view;
pub mod write;
