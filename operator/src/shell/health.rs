//! The plain port: is the process alive, are its caches complete, what does it count.
//!
//! In: named checks that other parts pass. Out: `/healthz`, `/readyz` and `/metrics`, in the form that
//! Kubernetes components use themselves. A replica that does not lead is ready too: it can take over.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::metrics::{self, Metrics};

/// Connections served at once; whoever asks more often waits.
const CONNECTIONS: usize = 64;
/// For a request's head.
const HEAD: Duration = Duration::from_secs(10);
/// For a whole connection: probes and scrapes are short.
const CONNECTION: Duration = Duration::from_mins(5);

/// Named conditions that must all hold before this process is ready. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Readiness {
    /// Adds a condition, which does not hold until it is passed.
    pub fn expect(&self, name: &str) {
        let mut checks = self.lock();
        if !checks.iter().any(|(known, _)| known == name) {
            checks.push((name.to_owned(), false));
        }
    }

    /// A condition holds from now on.
    pub fn pass(&self, name: &str) {
        for (known, passed) in self.lock().iter_mut() {
            *passed |= known == name;
        }
    }

    /// Whether every condition holds, and one line for each.
    pub fn report(&self) -> (bool, String) {
        let checks = self.lock();
        let mut report = String::with_capacity(256);
        for (name, passed) in checks.iter() {
            let written = if *passed {
                writeln!(report, "[+]{name} ok")
            } else {
                writeln!(report, "[-]{name} failed: not complete yet")
            };
            written.expect("writing to a string does not fail");
        }
        let ready = checks.iter().all(|(_, passed)| *passed);
        report.push_str(if ready {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
        (ready, report)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, bool)>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers on `listener`, for ever.
pub async fn serve(listener: TcpListener, readiness: Readiness, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // A lack of file descriptors, or a client that went away: neither is a reason to stop.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let readiness = readiness.clone();
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = answer(request.method(), request.uri().path(), &readiness, &metrics);
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // What a client does wrong is its own affair.
            let _ = tokio::time::timeout(CONNECTION, connection).await;
            drop(place);
        });
    }
}

fn answer(
    method: &Method,
    path: &str,
    readiness: &Readiness,
    metrics: &Metrics,
) -> Response<Full<Bytes>> {
    if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    if method != Method::GET && method != Method::HEAD {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        let headers = answer.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match path {
        "/healthz" => text(StatusCode::OK, "ok"),
        "/readyz" => match readiness.report() {
            (true, report) => text(StatusCode::OK, report),
            (false, report) => text(StatusCode::SERVICE_UNAVAILABLE, report),
        },
        _ => match metrics.encode() {
            Ok(metrics) => typed(StatusCode::OK, metrics::CONTENT_TYPE, metrics),
            Err(_) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the metrics could not be formatted\n",
            ),
        },
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_every_check_and_lists_each() {
        let readiness = Readiness::default();
        readiness.expect("pools");
        readiness.expect("pods");
        readiness.pass("pods");
        readiness.pass("unknown");
        readiness.expect("pods");
        assert_eq!(
            readiness.report(),
            (
                false,
                "[-]pools failed: not complete yet\n[+]pods ok\nreadyz check failed\n".to_owned()
            )
        );
        readiness.pass("pools");
        assert!(readiness.report().0);
    }

    #[test]
    fn probes_answer_get_on_three_paths_only() {
        let readiness = Readiness::default();
        let metrics = Metrics::default();
        readiness.expect("one");
        let status = |method: &Method, path: &str| {
            answer(method, path, &readiness, &metrics).status().as_u16()
        };
        assert_eq!(status(&Method::GET, "/healthz"), 200);
        assert_eq!(status(&Method::GET, "/readyz"), 503);
        readiness.pass("one");
        assert_eq!(status(&Method::HEAD, "/readyz"), 200);
        assert_eq!(status(&Method::GET, "/metrics"), 200);
        assert_eq!(status(&Method::POST, "/metrics"), 405);
        assert_eq!(status(&Method::GET, "/"), 404);
    }
}
