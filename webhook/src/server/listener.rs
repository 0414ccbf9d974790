//! The accept loop of one port.
//!
//! In: a bound listener. Out: one task per connection, at most so many at once. It ends with the
//! phase [`Phase::Closing`] and with nothing else: errors of single connections are passed over,
//! and a lack of file descriptors or memory is waited out. Needs no client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::activity::Patience;
use super::connection::{Respond, Transport, serve};
use super::drain::{Phase, reached};
use super::reviews::Raised;

const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_LAST: Duration = Duration::from_secs(1);

/// Everything that the connections of one port have in common.
pub(super) struct Port<R> {
    pub(super) respond: Arc<R>,
    pub(super) transport: Transport,
    pub(super) patience: Patience,
    pub(super) max_age: Duration,
    /// One permit per connection.
    pub(super) places: Arc<Semaphore>,
    pub(super) connections: Gauge,
    accepted: AtomicU64,
}

impl<R: Respond> Port<R> {
    pub(super) fn new(
        respond: R,
        transport: Transport,
        patience: Patience,
        max_age: Duration,
        places: &Arc<Semaphore>,
        connections: Gauge,
    ) -> Self {
        Self {
            respond: Arc::new(respond),
            transport,
            patience,
            max_age,
            places: Arc::clone(places),
            connections,
            accepted: AtomicU64::new(0),
        }
    }

    /// Accepts on `listener` until the phase comes to closing; the listener is closed then.
    pub(super) async fn run(self, listener: TcpListener, phase: watch::Receiver<Phase>) {
        let mut stop = phase.clone();
        tokio::select! {
            biased;
            () = reached(&mut stop, Phase::Closing) => {}
            () = self.accept_forever(&listener, &phase) => {}
        }
        // Clients whose connection the kernel has completed have been promised service; closing
        // the listener would reset them.
        while let Ok(place) = Arc::clone(&self.places).try_acquire_owned()
            && let Some(Ok((stream, _))) = listener.accept().now_or_never()
        {
            set_nodelay(&stream);
            self.start(stream, place, phase.clone());
        }
    }

    async fn accept_forever(&self, listener: &TcpListener, phase: &watch::Receiver<Phase>) {
        loop {
            // The place comes first: without one, new connections wait in the kernel's backlog
            // and cost this process nothing.
            let place = Arc::clone(&self.places)
                .acquire_owned()
                .await
                .expect("the semaphore of the places is never closed");
            let stream = accept(listener).await;
            self.start(stream, place, phase.clone());
        }
    }

    fn start(&self, stream: TcpStream, place: OwnedSemaphorePermit, phase: watch::Receiver<Phase>) {
        let number = self.accepted.fetch_add(1, Ordering::Relaxed);
        let connection = serve(
            stream,
            self.transport.clone(),
            Arc::clone(&self.respond),
            self.patience,
            spread(self.max_age, number),
            phase,
        );
        let open = Raised::new(&self.connections);
        tokio::spawn(async move {
            connection.await;
            drop(open);
            drop(place);
        });
    }
}

/// The next connection, with Nagle's algorithm off.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut backoff = BACKOFF_FIRST;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                set_nodelay(&stream);
                return stream;
            }
            Err(error) if concerns_one_connection(&error) => {
                tracing::debug!(%error, "a connection was gone before it was accepted");
            }
            Err(error) => {
                tracing::warn!(%error, ?backoff, "cannot accept connections, trying again");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_LAST);
            }
        }
    }
}

/// With Nagle's algorithm a small write waits for the peer's delayed acknowledgement of the one
/// before: 40 ms on first calls and on every HTTP/2 call.
fn set_nodelay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        // The peer has left; reading will say so.
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}

/// accept(2) reports errors that the new connection already has; they say nothing of the next.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// `age` and up to a quarter more, by the connection's number, so that connections opened
/// together do not end together. Multiplying by the golden ratio of 2^64 spreads consecutive
/// numbers evenly.
fn spread(age: Duration, number: u64) -> Duration {
    let part = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
    let part = u32::try_from(part).expect("a number shifted down to 16 bits fits 32");
    age + age / 4 * part / (1 << 16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn accepted_connection_has_nodelay_set() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), accept(&listener));
        assert!(!client.unwrap().nodelay().unwrap(), "the default is off");
        assert!(server.nodelay().unwrap());
    }

    #[test]
    fn ages_are_spread_over_a_quarter_and_the_same_each_time() {
        let age = Duration::from_mins(5);
        let ages: BTreeSet<_> = (0..100).map(|number| spread(age, number)).collect();
        assert_eq!(ages.len(), 100);
        assert!(ages.first().unwrap() >= &age);
        assert!(ages.last().unwrap() < &(age + age / 4));
        let widest = ages
            .iter()
            .zip(ages.iter().skip(1))
            .map(|(one, next)| next.saturating_sub(*one))
            .max();
        assert!(widest.unwrap() < Duration::from_secs(3), "no crowding");
    }

    #[test]
    fn lack_of_descriptors_is_not_the_connections_fault() {
        const EMFILE: i32 = 24;
        const ECONNABORTED: i32 = 103;
        assert!(!concerns_one_connection(&io::Error::from_raw_os_error(
            EMFILE
        )));
        assert!(concerns_one_connection(&io::Error::from_raw_os_error(
            ECONNABORTED
        )));
    }
}
