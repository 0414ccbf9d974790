//! The agent as an executor meets it: the real program, started as a child, spoken to in its protocol.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "integration tests, and their helpers"
)]

#[path = "agent/client.rs"]
mod client;
#[path = "agent/connections.rs"]
mod connections;
#[path = "agent/ends.rs"]
mod ends;
#[path = "agent/hostile.rs"]
mod hostile;
#[path = "agent/injected.rs"]
mod injected;
#[path = "agent/starts.rs"]
mod starts;
#[path = "agent/stops.rs"]
mod stops;
#[path = "agent/surroundings.rs"]
mod surroundings;
