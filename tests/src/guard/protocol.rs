//! What a process and its guard say to each other: one JSON value per line, requests on the guard's
//! standard input, messages on its standard output.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Names a request, and the program that a [`Request::Start`] starts.
pub(crate) type Id = u64;

/// What the guard is asked to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    /// Start a program; answered by [`Message::Started`] or [`Message::Failed`].
    Start(Id, Start),
    /// Stop it: SIGTERM, then SIGKILL when its grace is over. Its end is told as
    /// [`Message::Exited`]; asking again, or for one that ended, does nothing.
    Stop(Id),
    /// Send a signal, by number.
    Signal(Id, i32),
}

/// A program to start.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Start {
    /// Path of the program; the first argument is this path too.
    pub program: PathBuf,
    /// Arguments after the first.
    pub args: Vec<String>,
    /// Added to the guard's environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; the guard's own if absent.
    pub working_directory: Option<PathBuf>,
    /// File that receives standard output and standard error, appended.
    pub log: PathBuf,
    /// Higher ranks are stopped before lower ones, and newer programs before older ones of the same
    /// rank.
    pub rank: u32,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace_ms: u64,
}

/// What the guard tells.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Message {
    /// The guard runs; said once, first.
    Ready {
        /// The directory that lives as long as the guard.
        directory: PathBuf,
    },
    /// The program runs.
    Started(Id, i32),
    /// The request failed.
    Failed(Id, String),
    /// The program ended.
    Exited(Id, Exit),
}

/// How a program ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The last lines of its log.
    pub log_tail: String,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "ended with code {code}")?,
            (None, Some(signal)) => write!(f, "was ended by signal {signal}")?,
            (None, None) => f.write_str("ended")?,
        }
        if self.log_tail.is_empty() {
            f.write_str("; its log is empty")
        } else {
            write!(f, "; its log ends with:\n{}", self.log_tail)
        }
    }
}
