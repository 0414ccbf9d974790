//! Conversations with executors: one per pod that runs, or may still run, a task.
//!
//! In: for each pod what shall be true of its executor ([`Order`]). Out: what is ([`Report`]). Orders are
//! declarative: a conversation goes on until the order is withdrawn, and repeats what it says until the
//! executor agrees. Each request is signed for the pod's UID, so that an executor at a reused address
//! refuses it and never gets another sandbox's command.

//!
//! ```text
//! sessions        which conversations there are; starts and ends them
//!   conversation  one executor: orders, and what is believed and reported of it
//!     watching      ours: its watch
//!     polling       upstream's: asked every second
//!     tail          the last words of a failed task
//!     list          tasks as an executor lists them, cut to what is reported
//!     voice         what is reported, and when that is new
//!     doubts        orders without an answer that an executor may still receive
//!     lanes         who may open a connection now
//!     connection    HTTP/1.1 to one address, with deadlines and bounds
//!     credentials   a token for each request, while this replica leads
//!     fault, backoff        what an error means, and when the next attempt is
//!     lines, memory, pace   what a hostile executor may send, hold and cost
//! ```

mod backoff;
mod connection;
mod conversation;
mod credentials;
mod doubts;
mod fault;
mod lanes;
mod lines;
mod list;
mod memory;
mod pace;
mod polling;
mod sessions;
mod tail;
mod voice;
mod watching;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::task::Task;

pub use self::credentials::Credentials;
pub use self::sessions::{Delivery, Protocol, Sessions, Settings};

/// What shall be true of one executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Address of the pod.
    pub ip: String,
    /// What is wanted.
    pub work: Work,
}

/// What is wanted of an executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Say what tasks there are, change nothing.
    Look,
    /// Have exactly this task: started once, whatever is repeated.
    Run(Box<Task>),
    /// Have no task: whatever runs is stopped, until nothing of it is left.
    Clear,
}

/// What an executor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// UID of the pod whose executor it is.
    pub pod_uid: String,
    /// What it says.
    pub state: State,
}

/// What an executor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// All its tasks. Empty means that nothing of any task is left.
    Tasks(Vec<Seen>),
    /// It does not answer, or not sensibly; the conversation goes on trying.
    Unreachable {
        /// Since when.
        since: Timestamp,
        /// What came instead, without anything secret.
        message: String,
    },
    /// It answers, and refuses: the order itself will not do.
    Refused {
        /// Its words.
        message: String,
    },
}

/// One task as an executor sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The task: its name, `uid` and state. What was ordered (`process`) is left out, texts are cut.
    pub task: Task,
    /// The last lines it wrote to standard error, at most 1 KiB, if it failed.
    pub stderr_tail: Option<String>,
}
