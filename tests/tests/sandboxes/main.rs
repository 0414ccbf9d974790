//! Pools and BatchSandboxes on a real node, with everything that happens to pods there: they fail, are
//! evicted, get the address of another, and their executor is killed or does not answer.
//!
//! The tests share one node and one webhook. Each has a namespace of its own with an operator of its own,
//! which looks after that namespace alone, so that it can be killed and its log is about one test.

mod deletion;
mod edits;
mod identity;
mod policies;
mod replaced;
mod restarts;
mod restricted;
mod runs;
mod site;
mod unreachable;
