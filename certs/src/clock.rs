//! Reads the two clocks; everything else in this crate gets the time as a parameter.
//!
//! Wall time decides on validity (certificates carry it); time since the start of the process
//! decides on waiting (a jump of the wall clock must neither shorten nor lengthen a wait).
//! Needs no client.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall time.
    pub wall: Timestamp,
    /// Time since some fixed point, never going back (the start of the process).
    pub mono: Duration,
}

/// The clocks of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the module that reads the clock"
    )]
    pub(crate) fn now(&self) -> Now {
        Now {
            wall: Timestamp::now(),
            mono: self.start.elapsed(),
        }
    }
}

/// `at + by`, held at the end of representable time.
pub(crate) fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| at.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}

/// `at - by`, held at the beginning of representable time.
pub(crate) fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| at.checked_sub(by).ok())
        .unwrap_or(Timestamp::MIN)
}

/// From `from` until `to`; zero when `to` is in the past.
pub(crate) fn until(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
