//! The events of `GET /tasks?watch=true`: one JSON object a line, resumable.
//!
//! A stream begins with [`WatchEvent::Reset`], every task as [`WatchEvent::Added`] and a
//! [`WatchEvent::Bookmark`]; then come changes. Each event has a cursor. A client that was cut off asks
//! with `&cursor=CURSOR`, the last one it has acted on, and gets what came after it; an executor that
//! does not know the cursor any more, because it restarted or too much has happened, begins anew with
//! `reset`. So a client never misses a state, and may see the same one twice.

use serde::{Deserialize, Serialize};

use super::Task;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum WatchEvent {
    /// Forget every task: what follows is the whole state.
    Reset {
        /// Where the stream stands.
        cursor: String,
    },
    /// A task is there.
    Added {
        /// Where the stream stands after it.
        cursor: String,
        /// The task.
        task: Box<Task>,
    },
    /// A task changed.
    Modified {
        /// Where the stream stands after it.
        cursor: String,
        /// The task as it is now.
        task: Box<Task>,
    },
    /// A task is gone: no process of it is left, and the executor forgets it.
    Deleted {
        /// Where the stream stands after it.
        cursor: String,
        /// The task as it was last.
        task: Box<Task>,
    },
    /// Nothing happened: the state so far is complete, or the connection is still alive.
    Bookmark {
        /// Where the stream stands.
        cursor: String,
    },
    /// Anything that a newer executor sends; to be ignored.
    #[serde(other)]
    Unknown,
}

impl WatchEvent {
    /// What to resume from after this event, if it says.
    pub fn cursor(&self) -> Option<&str> {
        match self {
            Self::Reset { cursor }
            | Self::Added { cursor, .. }
            | Self::Modified { cursor, .. }
            | Self::Deleted { cursor, .. }
            | Self::Bookmark { cursor } => Some(cursor),
            Self::Unknown => None,
        }
    }

    /// The event as one line, with its line feed. JSON escapes every line feed inside.
    ///
    /// # Errors
    ///
    /// None for any task that was read from JSON.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(line)
    }

    /// Reads one line.
    ///
    /// # Errors
    ///
    /// If it is not an event.
    pub fn from_line(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}
