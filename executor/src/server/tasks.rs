//! What the API asks of the list of tasks.

use std::future::Future;

use opensandbox_api::task::{Task, WatchEvent};
use serde::Serialize;
use serde_json::Value;

use crate::metrics::Measured;

pub use crate::output::Stream;

/// The list of tasks. All calls return at once or after a bounded wait.
///
/// Tasks that come in have a name, no other one of the same list has it, and they have passed
/// [`check`](super::validate::check), except where [`Wanted::refusal`] says otherwise.
pub trait Tasks: Send + Sync + 'static {
    /// See [`Self::watch`].
    type Watch: Watch;
    /// See [`Self::logs`].
    type Log: Log;

    /// Makes the list be `wanted`: stops tasks that are not named; leaves a task that is there under
    /// its name (and its UID, if `wanted` has one) as it is, even if it differs and even if it is
    /// [refused](Wanted::refusal); replaces one with another UID; creates the others.
    ///
    /// Returns all tasks, including those that are being stopped.
    fn set(&self, wanted: Vec<Wanted>) -> impl Future<Output = Result<Vec<Task>, SetError>> + Send;

    /// Creates a task and returns it.
    fn create(&self, task: Task) -> impl Future<Output = Result<Task, CreateError>> + Send;

    /// All tasks, in any order.
    fn list(&self) -> Vec<Task>;

    /// The task of that name.
    fn get(&self, name: &str) -> Option<Task>;

    /// Asks a task to stop; nothing if there is none of that name.
    fn delete(&self, name: &str);

    /// Events after `cursor`; without one, or if it is not known, from the beginning: `reset`, every
    /// task, `bookmark`.
    fn watch(&self, cursor: Option<&str>) -> Self::Watch;

    /// Output of a task; `None` if there is no such task.
    fn logs(&self, name: &str, stream: Stream) -> Option<Self::Log>;

    /// Whether tasks can be started, and if not, why.
    fn readiness(&self) -> Readiness;

    /// What is counted, for `/metrics`.
    fn measured(&self) -> Measured;
}

/// One entry of `setTasks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The task.
    pub task: Task,
    /// Why it must not be created, in a sentence; to be told if it would have to be.
    pub refusal: Option<String>,
}

/// Some tasks could not be created; everything else was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetError {
    /// One for each, such as `failed to create task NAME: ...`. Without values of environment
    /// variables or arguments.
    pub messages: Vec<String>,
}

/// A task could not be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateError {
    /// What is wrong. Without values of environment variables or arguments.
    pub message: String,
    /// Of which kind that is.
    pub kind: CreateErrorKind,
}

/// Kinds of [`CreateError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateErrorKind {
    /// The task makes no sense here: 400.
    Invalid,
    /// There is one of that name: 500, as upstream has it.
    Exists,
    /// No room for another one: 500, likewise.
    Full,
    /// Anything else: 500.
    Other,
}

/// Events of the list of tasks.
pub trait Watch: Send + 'static {
    /// Waits for the next event.
    fn next(&mut self) -> impl Future<Output = WatchEvent> + Send;
}

/// Output of one stream of one task, of which the latest bytes are kept. Offsets count all bytes that
/// the task ever printed, including those that are not kept any more.
pub trait Log: Send + 'static {
    /// At most `max` bytes from `start` on, or what is left of them.
    fn read(&self, start: Start, max: usize) -> Chunk;

    /// Waits until there is more than `beyond` bytes were ever printed, or nothing will come any more.
    fn changed(&self, beyond: u64) -> impl Future<Output = ()> + Send;
}

/// Where to start reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this offset.
    Offset(u64),
    /// So many bytes before the present end.
    Tail(u64),
    /// So many lines before the present end; a last line without line feed is one.
    TailLines(u64),
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset of the first byte; the end of the output if there is none.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Of the bytes asked for, how many before `offset` are not kept any more.
    pub dropped_before: u64,
    /// How many bytes were ever printed.
    pub printed: u64,
    /// Nothing will come any more.
    pub end: bool,
}

/// Body of `GET /readyz`; it is read without a token, so it must not tell of tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether tasks can be started.
    pub ready: bool,
    /// How tasks get in, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// Why tasks cannot be started, with the remedy; what is fine, if they can.
    pub reason: String,
    /// What this pod allows and why; shown with `?verbose`.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub details: Value,
}
