//! The HTTPS server of the webhook, and the plain port for probes and metrics.
//!
//! It decides who is served, for how long and with how much memory; what a review says is the
//! business of the handlers. In: bound listeners, a TLS configuration, handlers by path, readiness
//! checks, metrics, and a future that resolves when the process shall end. Out: answers. Needs no
//! client and knows nothing of Pools.
//!
//! ```text
//! listener     accept, TCP_NODELAY, places, backoff
//!   connection   handshake, HTTP/1.1 or HTTP/2, time limits (activity), age, drain
//!     reviews      path, method, type -> body -> handler -> answer or rejection
//!       body         one body's limit, and the bound on all of them
//! ```
//!
//! Memory is bounded whatever clients do: by the buffers of all connections, the heads of all
//! requests in flight, and the bound on bodies. Under the defaults that is 1,024 times some
//! 100 KiB, 4,096 times some 10 KiB, and 64 MiB at the very worst.

mod activity;
mod body;
mod connection;
mod drain;
mod health;
mod listener;
mod rejection;
mod reviews;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::activity::Patience;
use self::body::Budget;
use self::connection::Transport;
use self::drain::Phase;
use self::health::Probes;
use self::listener::Port;
use self::reviews::{Bounds, Reviews};
use crate::metrics::Metrics;

pub use self::drain::terminated;
pub use self::health::{Check, Readiness};
pub use self::reviews::{Reply, ReviewHandler, Routes};
pub use self::tls::TlsSource;

/// Connections of the plain port at once: a kubelet and a few scrapers.
const PROBE_PLACES: usize = 64;
/// How long requests of the plain port may take to finish when everything else has.
const PROBE_DRAIN: Duration = Duration::from_secs(1);
/// How long dropped connections get to notice it. They do at their next wake-up.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Bounds of the server. The defaults are those of a webhook with `timeoutSeconds: 5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of the HTTPS port, handshakes included; further ones wait in the
    /// kernel's backlog. Default 1024.
    pub connections: usize,
    /// For a TLS handshake. Default 5 s.
    pub handshake: Duration,
    /// For the head of a request, from its first byte; for the first request of a connection,
    /// from the end of the handshake. Default 5 s.
    pub header: Duration,
    /// For a whole body, the wait for memory included. Default 10 s.
    pub body_read: Duration,
    /// For a peer that does not take its answer. Default 10 s.
    pub write: Duration,
    /// For a peer to close its side of a connection once ours is closed, while what it still sends
    /// is read and discarded. Default 2 s.
    pub linger: Duration,
    /// Between an answer and the next request. Default 3 min: twice as long as the API server's
    /// client keeps an idle connection, so that it is always the client who closes, and no
    /// request crosses our close.
    pub idle: Duration,
    /// Age at which the client of a connection is asked to reconnect, so that connections spread
    /// over new replicas; up to a quarter is added, differently for each. Default 5 min.
    pub connection_age: Duration,
    /// Reviews in flight; further ones get 503. HTTP/2 puts up to a hundred on a connection.
    /// Default 4096.
    pub requests: usize,
    /// Bytes of one body; longer ones get 413. Default 8 MiB: a review carries the object twice,
    /// and the API server itself takes 3 MiB.
    pub body: u32,
    /// Bytes of all bodies together. Default 64 MiB.
    pub bodies_in_flight: u32,
    /// How long a body waits for its share of these before it gets 503. Default 2 s.
    pub memory_wait: Duration,
    /// For a handler, before the client gets 504. Default 4 s: below `timeoutSeconds`, so that
    /// the API server reports our answer and not its own impatience.
    pub handler: Duration,
    /// From the signal to the end until no new connection is taken. Readiness is false all the
    /// while, and service is as before. Default 3 s: what endpoints need to reach every node.
    pub drain_delay: Duration,
    /// After that, for requests in flight. Default 20 s.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(5),
            body_read: Duration::from_secs(10),
            write: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            idle: Duration::from_mins(3),
            connection_age: Duration::from_mins(5),
            requests: 4096,
            body: 8 * 1024 * 1024,
            bodies_in_flight: 64 * 1024 * 1024,
            memory_wait: Duration::from_secs(2),
            handler: Duration::from_secs(4),
            drain_delay: Duration::from_secs(3),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Limits {
    fn patience(&self) -> Patience {
        Patience {
            header: self.header,
            idle: self.idle,
            write: self.write,
            linger: self.linger,
            quiet: self.drain_delay,
        }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request in flight was answered and every connection closed.
    Completely,
    /// The time limit passed, and the connections left were dropped.
    TimedOut,
}

/// A server that has everything but its sockets.
#[derive(Debug)]
pub struct Server {
    /// Time and size bounds.
    pub limits: Limits,
    /// The TLS side of the HTTPS port.
    pub tls: TlsSource,
    /// What the HTTPS port serves, besides `GET /healthz`.
    pub routes: Routes,
    /// What `/readyz` of the plain port reports; the server adds a check named `serving`.
    pub readiness: Readiness,
    /// What `/metrics` of the plain port shows.
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Serves reviews on `https` and probes on `probes` until `shutdown` resolves, then drains:
    ///
    /// 1. The check `serving` fails; everything is served as before for [`Limits::drain_delay`],
    ///    in its second half with answers that ask kept connections to go elsewhere.
    /// 2. No new connection is taken; requests in flight are finished, and kept connections closed
    ///    once no request came on them for [`Limits::drain_delay`], all for at most
    ///    [`Limits::drain_timeout`]. The plain port goes on answering.
    /// 3. The plain port is closed, and this returns.
    ///
    /// Dropping the future stops both ports at once.
    pub async fn serve(
        self,
        https: TcpListener,
        probes: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Drained {
        let Self {
            limits,
            tls,
            routes,
            readiness,
            metrics,
        } = self;
        let serving = readiness.register("serving");
        let (https_phase, https_watch) = watch::channel(Phase::Serving);
        let (probe_phase, probe_watch) = watch::channel(Phase::Serving);
        let places = Arc::new(Semaphore::new(limits.connections));
        let probe_places = Arc::new(Semaphore::new(PROBE_PLACES));
        let port = Port::new(
            reviews(&limits, routes, &metrics),
            Transport::Tls {
                acceptor: tls.acceptor(),
                handshake: limits.handshake,
                metrics: Arc::clone(&metrics),
            },
            limits.patience(),
            limits.connection_age,
            &places,
            metrics.connections.clone(),
        );
        let probe_port = Port::new(
            Probes { readiness, metrics },
            Transport::Plain,
            limits.patience(),
            limits.connection_age,
            &probe_places,
            Gauge::default(),
        );
        // A set, so that dropping this future ends the accept loops too.
        let mut loops = JoinSet::new();
        loops.spawn(port.run(https, https_watch));
        loops.spawn(probe_port.run(probes, probe_watch));

        serving.pass();
        shutdown.await;
        serving.fail("draining");
        tracing::info!(delay = ?limits.drain_delay, "no longer ready, still serving");
        sleep(limits.drain_delay / 2).await;
        https_phase.send_replace(Phase::Leaving);
        sleep(limits.drain_delay / 2).await;
        https_phase.send_replace(Phase::Closing);
        tracing::info!(limit = ?limits.drain_timeout, "finishing requests in flight");
        let drained = if free(&places, limits.connections, limits.drain_timeout).await {
            Drained::Completely
        } else {
            tracing::warn!("the drain limit has passed, dropping the connections left");
            https_phase.send_replace(Phase::Aborting);
            free(&places, limits.connections, ABORT_GRACE).await;
            Drained::TimedOut
        };
        probe_phase.send_replace(Phase::Closing);
        free(&probe_places, PROBE_PLACES, PROBE_DRAIN).await;
        probe_phase.send_replace(Phase::Aborting);
        while loops.join_next().await.is_some() {}
        drained
    }
}

fn reviews(limits: &Limits, routes: Routes, metrics: &Arc<Metrics>) -> Reviews {
    let budget = Budget::new(
        limits.bodies_in_flight,
        limits.memory_wait,
        metrics.body_bytes_in_flight.clone(),
    );
    let bounds = Bounds {
        requests: limits.requests,
        body: limits.body,
        body_read: limits.body_read,
        handler: limits.handler,
    };
    Reviews::new(routes, bounds, budget, Arc::clone(metrics))
}

/// Whether all `count` places were given back within `limit`.
async fn free(places: &Semaphore, count: usize, limit: Duration) -> bool {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    timeout(limit, places.acquire_many(count)).await.is_ok()
}
