//! What tasks print: bounded buffers, and lines in this container's log.
//!
//! [`Intake`] reads the pipes of a task. What it reads goes to two places: into the task's
//! [`TaskOutput`], exact, bounded per stream and for all tasks together by [`Outputs`], for the API;
//! and to [`Echo`], made readable and rate limited, for `kubectl logs`. What does not fit is dropped and
//! counted in either, so a task is never held up by who reads its output.

mod echo;
mod limit;
mod line;
mod pump;
mod ring;
mod store;
mod writer;

pub use echo::{Echo, EchoCounts, EchoStream};
pub use pump::{AttachError, Attached, Intake};
pub use store::{Chunk, Counts, From, Outputs, TaskOutput};

/// One of the two streams of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// `stdout` or `stderr`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}
