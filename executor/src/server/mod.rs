//! The HTTP API on port 5758: upstream's routes in upstream's words, and ours beside them.
//!
//! It decides who is served, for how long and with how much memory; what a task does is behind
//! [`Tasks`]. HTTP/1.1 without TLS: what must not be changed on the way is signed.
//!
//! ```text
//! mod          accept, one half of everything for each source
//!   connection   HTTP, time limits (activity)
//!     api          auth -> body -> parse, validate -> Tasks -> answer
//!       streams      watches and logs
//! ```
//!
//! | Route | Answer |
//! | --- | --- |
//! | `POST /setTasks` | 200, all tasks; 400 bad JSON; 500 if some could not be created |
//! | `GET /getTasks`, `GET /tasks` | 200, all tasks |
//! | `GET /tasks?watch=true[&cursor=C]` | 200, a [`WatchEvent`](opensandbox_api::task::WatchEvent) a line |
//! | `POST /tasks` | 201, the task; 400 bad JSON, no name, cannot be run as it is; 500 otherwise |
//! | `GET /tasks/{id}` | 200, the task; 404 |
//! | `DELETE /tasks/{id}` | 204 |
//! | `GET /tasks/{id}/logs` | 200, output; `X-Log-Offset`, `X-Log-Dropped-Bytes`; 404 |
//! | `GET /health` | 200, `{"status":"healthy"}` |
//! | `GET /readyz[?verbose]` | 200 or 503, a [`Readiness`] |
//! | `GET /metrics` | 200, OpenMetrics |
//!
//! Logs: `stream=stdout|stderr` (default `stdout`), one of `offset=N`, `tail=BYTES`, `tailLines=N`, and
//! `limitBytes=N`, `follow=true`. The last three routes are open to everybody.

mod activity;
mod answer;
mod api;
mod auth;
mod body;
mod connection;
mod parse;
mod query;
mod quota;
mod route;
mod streams;
pub mod tasks;
pub mod validate;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use self::activity::{Activity, Patience};
use self::api::Api;
use self::body::Bounds;
use self::connection::{BACKOFF, REFUSAL, Table};
use self::quota::{Quota, Source};
use self::streams::Streams;
use crate::metrics::Metrics;

pub use self::auth::Auth;
pub use self::tasks::{Readiness, Tasks};

/// Bounds of the server. Of what is bounded for all, one source gets half: the sandbox, whatever
/// address of the pod it uses, and every other address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections. For one more, the oldest is closed on which nothing of the operator is going
    /// on; if there is none, the new one gets 503. Default 256: half of it is twice what may run at once.
    pub connections: usize,
    /// Watches and logs at once; further ones get 503. Default 192: half of it is more than one log for each task.
    pub streams: usize,
    /// Bytes of one body; longer ones get 413. Default 4 MiB.
    pub body: usize,
    /// Bytes of all bodies together; further ones get 503. Default 16 MiB.
    pub bodies: usize,
    /// For the head of a request, from its first byte; for the first request of a connection, from its
    /// start. Default 10 s.
    pub header: Duration,
    /// For a whole body. Default 30 s.
    pub body_read: Duration,
    /// Between an answer and the next request. Default 1 min.
    pub idle: Duration,
    /// For a peer that does not take its answer, or is gone without a word. Default 30 s.
    pub write: Duration,
    /// For a peer to close its side of a connection once ours is closed. Default 2 s.
    pub linger: Duration,
    /// Silence after which a watch sends a bookmark. Default 15 s.
    pub bookmark: Duration,
    /// For requests in flight, when the server ends. Default 5 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            streams: 192,
            body: 4 * 1024 * 1024,
            bodies: 16 * 1024 * 1024,
            header: Duration::from_secs(10),
            body_read: Duration::from_secs(30),
            idle: Duration::from_mins(1),
            write: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            bookmark: Duration::from_secs(15),
            drain: Duration::from_secs(5),
        }
    }
}

/// A server that has everything but its socket.
#[derive(Debug)]
pub struct ServerState<T> {
    /// The tasks.
    pub tasks: Arc<T>,
    /// Who may give orders.
    pub auth: Auth,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Bounds.
    pub limits: Limits,
}

/// Serves until `shutdown` resolves; then takes no new connection, ends streams, and finishes requests
/// in flight for at most [`Limits::drain`]. Dropping the future stops everything at once.
pub async fn serve<T: Tasks>(
    listener: TcpListener,
    state: ServerState<T>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let ServerState {
        tasks,
        auth,
        metrics,
        limits,
    } = state;
    let (stop, stopping) = watch::channel(false);
    let port = Port {
        api: Arc::new(Api {
            tasks,
            auth,
            bodies: Bounds {
                each: limits.body,
                time: limits.body_read,
                all: Quota::new(limits.bodies),
            },
            streams: Streams {
                places: Quota::new(limits.streams),
                bookmark: limits.bookmark,
                stopping: stopping.clone(),
                open: metrics.streams.clone(),
            },
            metrics: Arc::clone(&metrics),
        }),
        table: Arc::new(Table::new(limits.connections, metrics.connections.clone())),
        patience: Patience {
            header: limits.header,
            idle: limits.idle,
            write: limits.write,
            linger: limits.linger,
        },
        metrics,
        stopping,
    };
    // A set, so that dropping this future ends the connections too.
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("a connection panicked");
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => port.start(stream, peer, &mut connections),
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    sleep(BACKOFF).await;
                }
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain, all).await.is_err() {
        tracing::warn!("the drain limit has passed, dropping the connections left");
        connections.shutdown().await;
    }
}

/// What all connections have in common.
struct Port<T> {
    api: Arc<Api<T>>,
    table: Arc<Table>,
    patience: Patience,
    metrics: Arc<Metrics>,
    stopping: watch::Receiver<bool>,
}

impl<T: Tasks> Port<T> {
    fn start(&self, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
        let source = Source::of(peer);
        let activity = Arc::new(Activity::new(Instant::now()));
        set_options(&stream, self.patience.write);
        let Some(place) = self.table.admit(source, &activity) else {
            self.metrics.connection_refused();
            // The buffer of a new connection has room for it; if not, closing says enough.
            let _ = stream.try_write(REFUSAL);
            return;
        };
        connections.spawn(connection::serve(
            stream,
            source,
            activity,
            place,
            Arc::clone(&self.api),
            self.patience,
            self.stopping.clone(),
        ));
    }
}

/// Small answers at once, and peers that are gone without a word found out.
fn set_options(stream: &TcpStream, gone_after: Duration) {
    let seconds = u32::try_from(gone_after.as_secs())
        .unwrap_or(u32::MAX)
        .max(1);
    let millis = u32::try_from(gone_after.as_millis()).unwrap_or(u32::MAX);
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpUserTimeout, &millis)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::KeepAlive, &true)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepIdle, &seconds)?))
        .and_then(|()| {
            Ok(setsockopt(
                stream,
                sockopt::TcpKeepInterval,
                &seconds.div_ceil(3),
            )?)
        });
    if let Err(error) = set {
        // The peer has left; reading will say so.
        tracing::debug!(%error, "cannot set the options of a connection");
    }
}
