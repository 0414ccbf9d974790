//! The HTTP API over real sockets, before a list of tasks that is a fake.

mod auth;
mod fake;
mod garbage;
mod harness;
mod limits;
mod streams;
mod upstream;
