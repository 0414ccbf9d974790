//! What a connection is doing, and until when it may go on doing it.
//!
//! In: reads, writes and requests of one connection. Out: the instant at which it has to be ended,
//! with the cause. Needs no client; the decision [`Activity::due`] is pure.
//!
//! hyper's own header limit also runs while a kept connection waits for its next request. Set to
//! seconds it would close idle connections under the API server, which does not repeat a POST
//! that meets such a close; set to minutes it would let a slow header block a place that long. So
//! the two are told apart here: the header limit runs from the first byte of a request, the idle
//! limit from the last answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// The mark of "not so at the moment" in the fields that hold an instant.
const NEVER: u64 = 0;

/// Time limits of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the head of a request, from its first byte; for the first request, from the start.
    pub(super) header: Duration,
    /// Between an answer and the next request.
    pub(super) idle: Duration,
    /// For a peer that does not take what is written to it.
    pub(super) write: Duration,
    /// For a peer that does not close its side of a connection of which ours is closed.
    pub(super) linger: Duration,
    /// Between an answer and the close of a connection, where nothing new is accepted any more.
    pub(super) quiet: Duration,
}

/// Why a connection has to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Header,
    Idle,
    Write,
    Linger,
}

/// Shared by the driver of a connection, its stream and its requests. Instants are microseconds
/// since `start`, plus one so that zero stays free for [`NEVER`].
///
/// All of it is advisory timing, so relaxed ordering is enough: a value read late is read again
/// at the next wake-up.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    in_flight: AtomicU32,
    served: AtomicBool,
    last: AtomicBool,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
    shut_since: AtomicU64,
}

impl Activity {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            in_flight: AtomicU32::new(0),
            served: AtomicBool::new(false),
            last: AtomicBool::new(false),
            idle_since: AtomicU64::new(NEVER),
            head_since: AtomicU64::new(NEVER),
            stalled_since: AtomicU64::new(NEVER),
            shut_since: AtomicU64::new(NEVER),
        }
    }

    fn now(&self) -> u64 {
        let micros = self.start.elapsed().as_micros();
        u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1
    }

    fn at(&self, mark: u64) -> Instant {
        self.start + Duration::from_micros(mark - 1)
    }

    /// The next answer has to ask the peer to close the connection.
    pub(super) fn retire(&self) {
        self.last.store(true, Ordering::Relaxed);
    }

    /// Whether an answer made now has to ask the peer to close the connection.
    pub(super) fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }

    /// Whether nothing would be lost by closing now: some request has been answered, none is in
    /// flight, and none has begun to arrive. A connection without a request so far is not idle:
    /// its peer has just paid for a handshake and is about to send one.
    pub(super) fn is_idle(&self) -> bool {
        self.served.load(Ordering::Relaxed)
            && self.in_flight.load(Ordering::Relaxed) == 0
            && self.head_since.load(Ordering::Relaxed) == NEVER
    }

    /// From when on an idle connection may be closed by a server that goes away; `None` while it is
    /// not idle. A client does not repeat a POST that crosses our close, and one that has used a
    /// connection a moment ago is likely to use it again in the next.
    pub(super) fn quiet_from(&self, patience: &Patience) -> Option<Instant> {
        let since = self.idle_since.load(Ordering::Relaxed);
        (self.is_idle() && since != NEVER).then(|| self.at(since) + patience.quiet)
    }

    /// When the connection has to be ended if nothing else happens; `None` while requests are
    /// in flight, which have limits of their own. `closing` is the instant since which the
    /// connection is being closed, from where on only the header limit is left to it.
    pub(super) fn due(
        &self,
        patience: &Patience,
        closing: Option<Instant>,
    ) -> Option<(Instant, Cause)> {
        let stalled = self.stalled_since.load(Ordering::Relaxed);
        let write = (stalled != NEVER).then(|| (self.at(stalled) + patience.write, Cause::Write));
        let shut = self.shut_since.load(Ordering::Relaxed);
        let linger = (shut != NEVER).then(|| (self.at(shut) + patience.linger, Cause::Linger));
        let quiet = (self.in_flight.load(Ordering::Relaxed) == 0).then(|| {
            let head = self.head_since.load(Ordering::Relaxed);
            let idle = self.idle_since.load(Ordering::Relaxed);
            if let Some(since) = closing {
                (since + patience.header, Cause::Idle)
            } else if head != NEVER {
                (self.at(head) + patience.header, Cause::Header)
            } else if idle != NEVER {
                (self.at(idle) + patience.idle, Cause::Idle)
            } else {
                (self.start + patience.header, Cause::Header)
            }
        });
        write
            .into_iter()
            .chain(linger)
            .chain(quiet)
            .min_by_key(|(instant, _)| *instant)
    }
}

/// A request in flight, from its head read to its answer made.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        activity.served.store(true, Ordering::Relaxed);
        activity.head_since.store(NEVER, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }

    pub(super) fn is_last(&self) -> bool {
        self.0.is_last()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that reports to an [`Activity`].
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    /// Whether bytes between requests are the head of a next one. So in HTTP/1; in HTTP/2 they
    /// may be pings and window updates.
    heads: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, heads: bool) -> Self {
        Self {
            stream,
            activity,
            heads,
        }
    }

    fn note_write<T>(&self, outcome: &Poll<io::Result<T>>) {
        let stalled = &self.activity.stalled_since;
        if outcome.is_ready() {
            stalled.store(NEVER, Ordering::Relaxed);
        } else if stalled.load(Ordering::Relaxed) == NEVER {
            stalled.store(self.activity.now(), Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.heads
            && buf.filled().len() > before
            && self.activity.in_flight.load(Ordering::Relaxed) == 0
            && self.activity.head_since.load(Ordering::Relaxed) == NEVER
        {
            let now = self.activity.now();
            self.activity.head_since.store(now, Ordering::Relaxed);
        }
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_write(&outcome);
        outcome
    }

    /// Closes our side, then reads and discards until the peer has closed its own.
    ///
    /// Closing the socket at once would answer whatever the peer still sends, be it an HTTP/2 window
    /// update for the answer it has just begun to read, with a reset; and a reset takes the answers
    /// away that the peer has not read yet. With Go's client that fails every request in flight.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.shut_since.load(Ordering::Relaxed) == NEVER {
            let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
            self.note_write(&outcome);
            ready!(outcome)?;
            let now = self.activity.now();
            self.activity.shut_since.store(now, Ordering::Relaxed);
        }
        loop {
            let mut discarded = [0; 1024];
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
        quiet: Duration::from_secs(3),
    };

    #[test]
    fn first_request_is_due_within_the_header_limit() {
        let start = Instant::now();
        let activity = Activity::new(start);
        assert_eq!(
            activity.due(&PATIENCE, None),
            Some((start + PATIENCE.header, Cause::Header))
        );
        assert!(!activity.is_idle());
    }

    #[test]
    fn request_in_flight_has_no_limit_here_and_the_idle_limit_follows_it() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let request = InFlight::begin(&activity);
        assert_eq!(activity.due(&PATIENCE, None), None);
        assert!(!activity.is_idle());
        drop(request);
        assert!(activity.is_idle());
        assert!(matches!(
            activity.due(&PATIENCE, None),
            Some((_, Cause::Idle))
        ));
    }

    #[tokio::test]
    async fn bytes_between_requests_start_the_header_limit_in_http1_only() {
        for heads in [true, false] {
            let activity = Arc::new(Activity::new(Instant::now()));
            drop(InFlight::begin(&activity));
            let mut stream = Watched::new(&b"POST"[..], Arc::clone(&activity), heads);
            tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap();
            let (_, cause) = activity.due(&PATIENCE, None).unwrap();
            assert_eq!(cause, if heads { Cause::Header } else { Cause::Idle });
            assert_eq!(activity.is_idle(), !heads);
        }
    }

    #[tokio::test]
    async fn peer_that_takes_nothing_is_due_even_with_a_request_in_flight() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let _request = InFlight::begin(&activity);
        let (near, mut far) = tokio::io::duplex(1);
        let mut stream = Watched::new(near, Arc::clone(&activity), true);
        let write = tokio::io::AsyncWriteExt::write_all(&mut stream, b"ab");
        tokio::pin!(write);
        assert!(futures::poll!(write.as_mut()).is_pending());
        assert!(matches!(
            activity.due(&PATIENCE, None),
            Some((_, Cause::Write))
        ));
        tokio::io::AsyncReadExt::read_u8(&mut far).await.unwrap();
        write.await.unwrap();
        assert_eq!(activity.due(&PATIENCE, None), None);
    }

    #[test]
    fn closing_leaves_the_header_limit_only() {
        let start = Instant::now();
        let activity = Arc::new(Activity::new(start));
        drop(InFlight::begin(&activity));
        let closing = start + Duration::from_mins(1);
        assert_eq!(
            activity.due(&PATIENCE, Some(closing)),
            Some((closing + PATIENCE.header, Cause::Idle))
        );
    }

    #[tokio::test]
    async fn closed_connection_is_read_until_the_peer_closes_it_too() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Watched::new(near, Arc::clone(&activity), false);
        let shutdown = tokio::io::AsyncWriteExt::shutdown(&mut stream);
        tokio::pin!(shutdown);
        assert!(futures::poll!(shutdown.as_mut()).is_pending());
        let mut rest = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut far, &mut rest)
            .await
            .unwrap();
        assert!(matches!(
            activity.due(&PATIENCE, None),
            Some((_, Cause::Linger))
        ));
        // More than fits at once, so that writing ends only if it is read.
        let writing = async {
            tokio::io::AsyncWriteExt::write_all(&mut far, &[0; 4096])
                .await
                .unwrap();
            drop(far);
        };
        let (shut, ()) = tokio::join!(shutdown, writing);
        shut.unwrap();
    }
}
