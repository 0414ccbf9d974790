//! The connections: who gets one, and one from its beginning to its end.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Sleep, sleep_until};

use super::activity::{Activity, InFlight, Patience, Watched};
use super::api::Api;
use super::quota::{Source, lock};
use super::tasks::Tasks;

/// The most that is buffered of a connection's input and output: it bounds the head of a request.
const BUFFER: usize = 16 * 1024;
const HEADERS: usize = 64;

/// The open connections.
#[derive(Debug)]
pub(super) struct Table {
    most: usize,
    open: Mutex<Open>,
    count: Gauge,
}

#[derive(Debug, Default)]
struct Open {
    /// By number, so the oldest first.
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    source: Source,
    activity: Arc<Activity>,
    evicted: Arc<Notify>,
}

impl Open {
    fn count(&self, source: Source) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.source == source)
            .count()
    }

    /// Makes place for one more of `source`, at the cost of the oldest connection on which nothing of
    /// the operator is going on: of the same source if that has its half, else of the one that has most.
    fn make_place(&mut self, most: usize, source: Source) -> bool {
        let of_source = if self.count(source) >= most.div_ceil(2) {
            Some(source)
        } else if self.entries.len() >= most {
            None
        } else {
            return true;
        };
        let victim = self
            .entries
            .iter()
            .filter(|(_, entry)| of_source.is_none_or(|source| entry.source == source))
            .filter(|(_, entry)| !entry.activity.is_trusted())
            // Of those that are equal the last is taken, so the order is turned around.
            .rev()
            .max_by_key(|(_, entry)| self.count(entry.source))
            .map(|(number, _)| *number);
        match victim.and_then(|number| self.entries.remove(&number)) {
            Some(entry) => {
                entry.evicted.notify_one();
                true
            }
            None => false,
        }
    }
}

impl Table {
    /// At most so many, and half of it for each source; `count` follows their number.
    pub(super) fn new(most: usize, count: Gauge) -> Self {
        Self {
            most,
            open: Mutex::default(),
            count,
        }
    }

    /// A place for a connection, if there is one or one can be made.
    pub(super) fn admit(
        self: &Arc<Self>,
        source: Source,
        activity: &Arc<Activity>,
    ) -> Option<Place> {
        let mut open = lock(&self.open);
        if !open.make_place(self.most, source) {
            return None;
        }
        let number = open.next;
        open.next += 1;
        let evicted = Arc::new(Notify::new());
        let entry = Entry {
            source,
            activity: Arc::clone(activity),
            evicted: Arc::clone(&evicted),
        };
        open.entries.insert(number, entry);
        self.count.inc();
        Some(Place {
            table: Arc::clone(self),
            number,
            evicted,
        })
    }
}

/// A connection's place in the [`Table`], given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Table>,
    number: u64,
    /// The place is given to another one.
    evicted: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.table.open).entries.remove(&self.number);
        self.table.count.dec();
    }
}

/// Serves a connection until it is closed by its peer, by a time limit, or because the server ends.
pub(super) async fn serve<T: Tasks>(
    stream: TcpStream,
    source: Source,
    activity: Arc<Activity>,
    place: Place,
    api: Arc<Api<T>>,
    patience: Patience,
    mut stopping: watch::Receiver<bool>,
) {
    let stream = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
    let requests = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let in_flight = InFlight::begin(&requests);
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.respond(request, source, in_flight).await) }
    });
    let connection = http1::Builder::new()
        // Both limits on the head are kept by `Activity`.
        .header_read_timeout(None)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .serve_connection(stream, service);
    let mut connection = pin!(connection);
    let mut alarm = pin!(sleep_until(Instant::now() + patience.header));
    let mut is_stopping = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    // Peers that leave in the middle of something are their own business.
                    tracing::debug!(%error, "a connection broke");
                }
                return;
            }
            () = overdue(&activity, &patience, alarm.as_mut()) => {
                tracing::debug!("dropped a connection that took too long");
                return;
            }
            () = place.evicted.notified() => {
                tracing::debug!("dropped a connection for another one");
                return;
            }
            _ = stopping.wait_for(|stopping| *stopping), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Resolves when a limit has passed. Polled again after each progress of the connection, which may
/// have moved the limits.
async fn overdue(activity: &Activity, patience: &Patience, mut alarm: Pin<&mut Sleep>) {
    poll_fn(|cx| {
        loop {
            let Some(at) = activity.due(patience) else {
                return Poll::Pending;
            };
            if at <= Instant::now() {
                return Poll::Ready(());
            }
            if alarm.deadline() != at {
                alarm.as_mut().reset(at);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// What is sent to who gets no connection; written at once or not at all.
pub(super) const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\ncontent-length: 96\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
    {\"code\":\"Service Unavailable\",\"message\":\"too many connections at once, close one or try again\"}\n";

/// Time between accept errors that do not concern a single connection.
pub(super) const BACKOFF: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Source {
        Source::Peer([192, 0, 2, last].into())
    }

    fn table(most: usize) -> Arc<Table> {
        Arc::new(Table::new(most, Gauge::default()))
    }

    fn idle() -> Arc<Activity> {
        Arc::new(Activity::new(Instant::now()))
    }

    /// An activity with a request of the operator's.
    fn trusted() -> (Arc<Activity>, InFlight) {
        let activity = idle();
        let mut request = InFlight::begin(&activity);
        request.trust();
        (activity, request)
    }

    fn numbers(table: &Table) -> Vec<u64> {
        lock(&table.open).entries.keys().copied().collect()
    }

    #[test]
    fn one_source_cannot_take_the_others_places() {
        let table = table(4);
        let operator = table.admit(peer(1), &idle()).unwrap();
        let _sandbox: Vec<_> = (0..10)
            .map(|_| table.admit(Source::ThisHost, &idle()).unwrap())
            .collect();
        assert_eq!(
            numbers(&table),
            [0, 9, 10],
            "its own oldest ones made place"
        );
        assert_eq!(table.count.get(), 11, "until they have noticed");
        drop(operator);
        assert_eq!(numbers(&table), [9, 10]);
    }

    #[test]
    fn in_a_full_table_the_largest_source_gives_its_oldest() {
        let table = table(4);
        let _open: Vec<_> = [peer(1), peer(2), peer(2), peer(3)]
            .map(|source| table.admit(source, &idle()).unwrap())
            .into();
        let _new = table.admit(peer(4), &idle()).unwrap();
        assert_eq!(numbers(&table), [0, 2, 3, 4]);
    }

    #[test]
    fn what_the_operator_has_in_flight_is_never_given_up() {
        let table = table(4);
        let (activity, request) = trusted();
        let _watches: Vec<_> = (0..2)
            .map(|_| table.admit(peer(1), &activity).unwrap())
            .collect();
        assert!(table.admit(peer(1), &idle()).is_none(), "it has its half");
        let _others: Vec<_> = (0..9)
            .map(|number| table.admit(peer(2 + number), &idle()).unwrap())
            .collect();
        assert_eq!(numbers(&table), [0, 1, 9, 10]);
        drop(request);
        assert!(table.admit(peer(1), &idle()).is_some());
    }

    #[test]
    fn refusal_has_the_length_it_says() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len())),
            "{}",
            body.len()
        );
        let body: opensandbox_api::task::ErrorBody = serde_json::from_str(body).unwrap();
        assert_eq!(body.code, "Service Unavailable");
    }
}
