//! What a connection is doing, and until when it may go on doing it.
//!
//! hyper's own header limit also runs while a kept connection waits for its next request. Here the two
//! are told apart: the header limit runs from the first byte of a request, the idle limit from the last
//! answer. Besides, hyper has no limit for a peer that takes nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::quota::lock;

/// Time limits of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the head of a request, from its first byte; for the first request, from the start.
    pub(super) header: Duration,
    /// Between an answer and the next request.
    pub(super) idle: Duration,
    /// For a peer that does not take what is written to it.
    pub(super) write: Duration,
    /// For a peer that does not close its side of a connection of which ours is closed.
    pub(super) linger: Duration,
}

/// Shared by the driver of a connection, its stream and its requests.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests of which the answer is not yet handed over.
    in_flight: u32,
    /// Those of them whose sender is known to be the operator.
    trusted: u32,
    served: bool,
    /// Since when there was no request.
    quiet_since: Instant,
    head_since: Option<Instant>,
    stalled_since: Option<Instant>,
    shut_since: Option<Instant>,
}

impl Activity {
    pub(super) fn new(start: Instant) -> Self {
        Self(Mutex::new(State {
            in_flight: 0,
            trusted: 0,
            served: false,
            quiet_since: start,
            head_since: None,
            stalled_since: None,
            shut_since: None,
        }))
    }

    /// Whether a request is answered that must not be cut off for another connection's sake.
    pub(super) fn is_trusted(&self) -> bool {
        lock(&self.0).trusted > 0
    }

    /// When the connection has to be dropped if nothing else happens.
    pub(super) fn due(&self, patience: &Patience) -> Option<Instant> {
        let state = lock(&self.0);
        let write = state.stalled_since.map(|since| since + patience.write);
        let linger = state.shut_since.map(|since| since + patience.linger);
        let quiet = (state.in_flight == 0).then(|| match state.head_since {
            Some(since) => since + patience.header,
            None if state.served => state.quiet_since + patience.idle,
            None => state.quiet_since + patience.header,
        });
        write.into_iter().chain(linger).chain(quiet).min()
    }
}

/// A request in flight, from its head read to its answer handed over.
#[derive(Debug)]
pub(super) struct InFlight {
    activity: Arc<Activity>,
    trusted: bool,
}

impl InFlight {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        let mut state = lock(&activity.0);
        state.in_flight += 1;
        state.served = true;
        state.head_since = None;
        drop(state);
        Self {
            activity: Arc::clone(activity),
            trusted: false,
        }
    }

    /// The request is the operator's.
    pub(super) fn trust(&mut self) {
        if !self.trusted {
            self.trusted = true;
            lock(&self.activity.0).trusted += 1;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = lock(&self.activity.0);
        state.in_flight -= 1;
        state.trusted -= u32::from(self.trusted);
        state.quiet_since = Instant::now();
    }
}

/// A socket that reports to an [`Activity`].
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }

    fn note_write<T>(&self, outcome: &Poll<io::Result<T>>) {
        let stalled = &mut lock(&self.activity.0).stalled_since;
        if outcome.is_ready() {
            *stalled = None;
        } else {
            stalled.get_or_insert_with(Instant::now);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            let mut state = lock(&self.activity.0);
            if state.in_flight == 0 {
                state.head_since.get_or_insert_with(Instant::now);
            }
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_write(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes our side, then reads and discards until the peer has closed its own.
    ///
    /// Closing the socket at once would answer what the peer still sends, such as the rest of a body
    /// that was refused, with a reset; and a reset takes the answer away before it is read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if lock(&self.activity.0).shut_since.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            lock(&self.activity.0).shut_since = Some(Instant::now());
        }
        loop {
            let mut discarded = [0; 4096];
            let mut discarded = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut discarded)) {
                Ok(()) if !discarded.filled().is_empty() => {}
                // The end, or a peer that is gone; nothing was to be learned from it.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        header: Duration::from_secs(5),
        idle: Duration::from_mins(3),
        write: Duration::from_secs(10),
        linger: Duration::from_secs(2),
    };

    #[test]
    fn header_limit_comes_first_and_the_idle_limit_after_an_answer() {
        let start = Instant::now();
        let activity = Arc::new(Activity::new(start));
        assert_eq!(activity.due(&PATIENCE), Some(start + PATIENCE.header));
        let request = InFlight::begin(&activity);
        assert_eq!(
            activity.due(&PATIENCE),
            None,
            "requests have limits of their own"
        );
        drop(request);
        assert!(activity.due(&PATIENCE).unwrap() >= start + PATIENCE.idle);
        lock(&activity.0).head_since = Some(start);
        assert_eq!(activity.due(&PATIENCE), Some(start + PATIENCE.header));
    }

    #[test]
    fn stalled_write_and_missing_close_are_due_with_a_request_in_flight() {
        let start = Instant::now();
        let activity = Arc::new(Activity::new(start));
        let _request = InFlight::begin(&activity);
        lock(&activity.0).stalled_since = Some(start);
        assert_eq!(activity.due(&PATIENCE), Some(start + PATIENCE.write));
        lock(&activity.0).shut_since = Some(start);
        assert_eq!(activity.due(&PATIENCE), Some(start + PATIENCE.linger));
    }

    #[test]
    fn trust_ends_with_the_request() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let mut request = InFlight::begin(&activity);
        assert!(!activity.is_trusted());
        request.trust();
        request.trust();
        assert!(activity.is_trusted());
        drop(request);
        assert!(!activity.is_trusted());
    }
}
