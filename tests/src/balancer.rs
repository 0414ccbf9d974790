//! What a Service does for a webhook: connections go to replicas that say they are ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::http;

/// How often readiness is asked for. A kubelet asks every few seconds; tests have less patience.
const PERIOD: Duration = Duration::from_millis(100);

/// A process behind the balancer.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Its HTTPS port on 127.0.0.1.
    pub https: u16,
    /// Its plain port on 127.0.0.1, where `/readyz` is.
    pub probes: u16,
}

#[derive(Debug)]
struct State {
    backend: Backend,
    ready: AtomicBool,
}

/// A TCP balancer on a port of 127.0.0.1. Dropping it closes the port and every connection.
#[derive(Debug)]
pub struct Balancer {
    port: u16,
    // Aborted on drop.
    _tasks: JoinSet<()>,
}

impl Balancer {
    /// Starts one.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn start(backends: Vec<Backend>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let states: Arc<[State]> = backends
            .into_iter()
            .map(|backend| State {
                backend,
                ready: AtomicBool::new(false),
            })
            .collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_readiness(Arc::clone(&states)));
        tasks.spawn(accept(listener, states));
        Ok(Self {
            port,
            _tasks: tasks,
        })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn watch_readiness(states: Arc<[State]>) {
    loop {
        for state in &*states {
            let url = format!("http://127.0.0.1:{}/readyz", state.backend.probes);
            let ready = http::get(&url, None)
                .await
                .is_ok_and(|(status, _)| status.is_success());
            state.ready.store(ready, Ordering::Relaxed);
        }
        sleep(PERIOD).await;
    }
}

async fn accept(listener: TcpListener, states: Arc<[State]>) {
    let turn = AtomicUsize::new(0);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let first = turn.fetch_add(1, Ordering::Relaxed);
                connections.spawn(forward(client, Arc::clone(&states), first));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// To the next ready backend; without one the connection is closed, as a Service without endpoints
/// refuses it.
async fn forward(mut client: TcpStream, states: Arc<[State]>, first: usize) {
    let in_turn = (0..states.len()).map(|offset| &states[(first + offset) % states.len()]);
    for state in in_turn.filter(|state| state.ready.load(Ordering::Relaxed)) {
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", state.backend.https)).await else {
            continue;
        };
        // Small writes must not wait for acknowledgements here either.
        if client
            .set_nodelay(true)
            .and_then(|()| server.set_nodelay(true))
            .is_ok()
        {
            // How a connection ends is the business of its two ends.
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
        return;
    }
}
