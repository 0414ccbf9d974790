//! What a person with kubectl gets: real Pools and BatchSandboxes on a real API server, with the real
//! webhook installed from config/.
//!
//! One process, so that the tests share one API server and one installation ([`site::shared`]) and keep
//! apart by namespaces. A test that disturbs the installation has its own ([`site::own`]).
//! `OPENSANDBOX_CASES` sets the number of random cases.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod access;
mod apply_client_side;
mod apply_server_side;
mod batch_sandboxes;
mod calls;
mod direct;
mod edits;
mod hostile;
mod images;
mod modes;
mod offline;
mod outage;
mod pools;
mod random;
mod refusals;
mod seed;
mod site;
mod table;
mod warnings;

#[path = "../../../api/tests/support/mod.rs"]
mod support;
