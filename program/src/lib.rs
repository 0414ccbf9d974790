//! What every program does alike when it starts: its log, its panics, durations on its command line, the
//! signals that end it, and, with the feature `cluster`, its way to a cluster.
//!
//! Knows nothing of our kinds, and no other crate of ours.

#![forbid(unsafe_code)]

#[cfg(feature = "cluster")]
pub mod cluster;
pub mod metrics_table;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::ValueEnum;
use jiff::SignedDuration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Format of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(
    missing_docs,
    reason = "the variants are help texts of command lines otherwise"
)]
pub enum LogFormat {
    Json,
    Text,
}

/// Starts the log, which goes to standard error: in this format, or as text on a terminal and as JSON
/// elsewhere. `level` is a level or a filter; one that cannot be read is said, and `info` taken.
pub fn start_log(format: Option<LogFormat>, level: &str) {
    let terminal = std::io::stderr().is_terminal();
    let filter = tracing_subscriber::EnvFilter::try_new(level);
    let rejected = filter.as_ref().err().map(ToString::to_string);
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    }) {
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .init(),
        LogFormat::Text => log.with_ansi(terminal).init(),
    }
    if let Some(error) = rejected {
        tracing::warn!(level, error, "the log level cannot be read; using info");
    }
}

/// A panic's message can quote an object, a review or a task, and with it a secret: only its place is
/// handed to `log`, which is the program's so that the line has the program's target.
pub fn panic_without_words(log: fn(place: Option<&str>)) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string);
        log(place.as_deref());
    }));
}

/// SIGTERM (how Kubernetes ends a pod) and SIGINT (Ctrl-C), which end a program in order.
#[derive(Debug)]
pub struct Terminated {
    terminate: Signal,
    interrupt: Signal,
}

impl Terminated {
    /// Installs the handlers: from now on neither ends the process by itself.
    ///
    /// # Errors
    ///
    /// They cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the first of either since [`Self::listen`].
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Reads a duration as people write it on a command line: `90s`, `10m`, `24h`.
///
/// # Errors
///
/// It cannot be read, or is negative: what is wrong, in a sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    let signed: SignedDuration = text
        .parse()
        .map_err(|error: jiff::Error| error.to_string())?;
    Duration::try_from(signed).map_err(|_| "must not be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("24h"), Ok(Duration::from_hours(24)));
        assert_eq!(duration("-1s"), Err("must not be negative".to_owned()));
        assert!(duration("soon").is_err());
    }
}
