//! One accepted connection, from its handshake to its end.
//!
//! In: a socket and the service to put behind it. Out: nothing; the connection is served until it
//! is closed by the peer, by a time limit, by its age or by the drain. Needs no client.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::activity::{Activity, Cause, InFlight, Patience, Watched};
use super::drain::{Phase, reached};
use super::rejection::{Answer, ask_to_close};
use super::tls::{ALPN_H2, failure_reason};
use crate::metrics::Metrics;

/// The most that HTTP/1 buffers of one connection's input. It bounds the head of a request, and
/// with it what many connections take together.
const H1_BUFFER: usize = 64 * 1024;
const H1_HEADERS: usize = 64;
/// Flow control of HTTP/2, per stream and per connection: what a peer may send before it is read.
/// 64 KiB is the protocol's own default; more would let each idle connection hold more.
const H2_WINDOW: u32 = 65_535;
const H2_STREAMS: u32 = 100;
/// Headers of one request; those of the API server take some hundred bytes.
const H2_HEADERS: u32 = 8 * 1024;
const H2_SEND_BUFFER: usize = 64 * 1024;
/// An HTTP/2 peer that is gone without a word is found by a ping.
const H2_PING: Duration = Duration::from_secs(30);

/// Answers requests of one port.
pub(super) trait Respond: Send + Sync + 'static {
    fn respond(&self, request: Request<Incoming>) -> impl Future<Output = Answer> + Send;
}

/// What lies between the socket and HTTP.
#[derive(Clone)]
pub(super) enum Transport {
    Plain,
    Tls {
        acceptor: TlsAcceptor,
        handshake: Duration,
        metrics: Arc<Metrics>,
    },
}

/// Serves `stream`; `retire_after` is the age from which on its peer is asked to reconnect.
pub(super) async fn serve<R: Respond>(
    stream: TcpStream,
    transport: Transport,
    respond: Arc<R>,
    patience: Patience,
    retire_after: Duration,
    mut phase: watch::Receiver<Phase>,
) {
    match transport {
        Transport::Plain => {
            serve_http(stream, false, respond, patience, retire_after, phase).await;
        }
        Transport::Tls {
            acceptor,
            handshake,
            metrics,
        } => {
            let accepted = tokio::select! {
                accepted = timeout(handshake, acceptor.accept(stream)) => accepted,
                () = reached(&mut phase, Phase::Aborting) => return,
            };
            let stream = match accepted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    let reason = failure_reason(&error);
                    metrics.handshake_failed(reason);
                    tracing::debug!(reason, %error, "a TLS handshake failed");
                    return;
                }
                Err(_) => {
                    metrics.handshake_failed("timeout");
                    tracing::debug!(reason = "timeout", "a TLS handshake failed");
                    return;
                }
            };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_H2);
            serve_http(stream, h2, respond, patience, retire_after, phase).await;
        }
    }
}

async fn serve_http<S, R>(
    stream: S,
    h2: bool,
    respond: Arc<R>,
    patience: Patience,
    retire_after: Duration,
    phase: watch::Receiver<Phase>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Respond,
{
    let start = Instant::now();
    let activity = Arc::new(Activity::new(start));
    let stream = TokioIo::new(Watched::new(stream, Arc::clone(&activity), !h2));
    let requests = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let respond = Arc::clone(&respond);
        let in_flight = InFlight::begin(&requests);
        async move {
            let version = request.version();
            let mut answer = respond.respond(request).await;
            if version <= Version::HTTP_11 && in_flight.is_last() {
                ask_to_close(answer.headers_mut());
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let watch = Watch {
        activity,
        patience,
        h2,
        retire_at: Some(start + retire_after),
        closing: None,
        phase: Phase::Serving,
    };
    if h2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING)
            .max_concurrent_streams(H2_STREAMS)
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .max_header_list_size(H2_HEADERS)
            .max_send_buf_size(H2_SEND_BUFFER)
            .serve_connection(stream, service);
        drive(connection, watch, phase).await;
    } else {
        let connection = http1::Builder::new()
            // Both limits on the head are kept by the watch, see the module `activity`.
            .header_read_timeout(None)
            .max_buf_size(H1_BUFFER)
            .max_headers(H1_HEADERS)
            .serve_connection(stream, service);
        drive(connection, watch, phase).await;
    }
}

/// What is to be done with a connection.
enum Order {
    /// Its peer shall reconnect when that costs nothing.
    Retire,
    /// Finish what is in flight, then close.
    Close,
    /// Drop it.
    Abort(Cause),
}

/// Decides when a connection gets an [`Order`].
struct Watch {
    activity: Arc<Activity>,
    patience: Patience,
    h2: bool,
    /// Taken when it has passed.
    retire_at: Option<Instant>,
    /// Since when the connection is being closed.
    closing: Option<Instant>,
    phase: Phase,
}

impl Watch {
    /// The order that holds at `now`, or when to look again.
    fn order(&self, now: Instant) -> Result<Order, Option<Instant>> {
        let quiet = (self.closing.is_none() && self.phase >= Phase::Closing)
            .then(|| self.activity.quiet_from(&self.patience))
            .flatten();
        if quiet.is_some_and(|at| at <= now) {
            return Ok(Order::Close);
        }
        let due = self.activity.due(&self.patience, self.closing);
        if let Some((at, cause)) = due
            && at <= now
        {
            // Nothing is lost on an idle connection, so it is closed as the protocols want it.
            return if cause == Cause::Idle && self.closing.is_none() {
                Ok(Order::Close)
            } else {
                Ok(Order::Abort(cause))
            };
        }
        if let Some(at) = self.retire_at
            && at <= now
        {
            return Ok(Order::Retire);
        }
        Err(due
            .map(|(at, _)| at)
            .into_iter()
            .chain(quiet)
            .chain(self.retire_at)
            .min())
    }

    /// Waits for the next order. Polled again after each progress of the connection, which may
    /// have moved the limits; `alarm` is set anew only when it would ring too late.
    async fn next(&self, mut alarm: Pin<&mut Sleep>) -> Order {
        poll_fn(|cx| {
            loop {
                match self.order(Instant::now()) {
                    Ok(order) => return Poll::Ready(order),
                    Err(None) => return Poll::Pending,
                    Err(Some(at)) => {
                        if alarm.deadline() > at || alarm.is_elapsed() {
                            alarm.as_mut().reset(at);
                        }
                    }
                }
                if alarm.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

async fn drive<C>(connection: C, mut watch: Watch, mut phase: watch::Receiver<Phase>)
where
    C: GracefulConnection,
    C::Error: std::error::Error,
{
    let mut connection = pin!(connection);
    let mut alarm = pin!(sleep_until(Instant::now() + watch.patience.header));
    loop {
        let next_phase = following(watch.phase);
        let order = tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    // Peers that leave in the middle of something are their own business.
                    tracing::debug!(%error, "a connection broke");
                }
                return;
            }
            order = watch.next(alarm.as_mut()) => order,
            () = reached(&mut phase, next_phase) => {
                watch.phase = next_phase;
                match next_phase {
                    Phase::Aborting => return,
                    _ => Order::Retire,
                }
            }
        };
        match order {
            Order::Retire => {
                watch.retire_at = None;
                watch.activity.retire();
                // HTTP/1 asks with its next answer, as a close from here could cross a request.
                // HTTP/2 can say which requests it still takes.
                if watch.h2 && watch.closing.is_none() {
                    watch.closing = Some(Instant::now());
                    connection.as_mut().graceful_shutdown();
                }
            }
            Order::Close => {
                watch.closing = Some(Instant::now());
                connection.as_mut().graceful_shutdown();
            }
            Order::Abort(cause) => {
                tracing::debug!(?cause, "dropped a connection");
                return;
            }
        }
    }
}

/// The next phase to wait for.
fn following(phase: Phase) -> Phase {
    match phase {
        Phase::Serving => Phase::Leaving,
        Phase::Leaving => Phase::Closing,
        Phase::Closing | Phase::Aborting => Phase::Aborting,
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

    fn watch(phase: Phase) -> Watch {
        let start = Instant::now();
        Watch {
            activity: Arc::new(Activity::new(start)),
            patience: PATIENCE,
            h2: false,
            retire_at: Some(start + Duration::from_mins(5)),
            closing: None,
            phase,
        }
    }

    #[test]
    fn closing_phase_closes_connections_that_stay_idle_only() {
        let watch = watch(Phase::Closing);
        let now = Instant::now();
        assert!(
            watch.order(now).is_err(),
            "a fresh connection gets its request served"
        );
        let request = InFlight::begin(&watch.activity);
        assert!(watch.order(now).is_err());
        drop(request);
        let Err(Some(next)) = watch.order(now) else {
            panic!("a connection that has just been used may be used again");
        };
        assert!(next >= now + PATIENCE.quiet);
        assert!(matches!(watch.order(next), Ok(Order::Close)));
    }

    #[test]
    fn old_connection_is_retired_once_even_with_a_request_in_flight() {
        let mut watch = watch(Phase::Serving);
        let _request = InFlight::begin(&watch.activity);
        let old = Instant::now() + Duration::from_secs(301);
        assert!(matches!(watch.order(old), Ok(Order::Retire)));
        watch.retire_at = None;
        assert!(matches!(watch.order(old), Err(None)));
    }

    #[test]
    fn missing_first_request_aborts_and_a_missing_next_one_closes() {
        let watch = watch(Phase::Serving);
        let later = Instant::now() + Duration::from_secs(200);
        assert!(matches!(
            watch.order(later),
            Ok(Order::Abort(Cause::Header))
        ));
        drop(InFlight::begin(&watch.activity));
        assert!(matches!(watch.order(later), Ok(Order::Close)));
    }
}
