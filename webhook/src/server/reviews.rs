//! From an HTTP request to a review handler and back.
//!
//! In: requests of the webhook port, and handlers by path. Out: the handler's reply, or a refusal
//! when the request is not a review at all. A handler that panics or takes too long costs its own
//! request and nothing else. Needs no client; knows nothing of what is in a review.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, EXPECT};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use hyper::body::{Body, Incoming};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::body::{self, Budget, Held};
use super::connection::Respond;
use super::health::healthy;
use super::rejection::{Answer, Rejection, ask_to_close, failure, json};
use crate::metrics::Metrics;

/// For how long the rest of a refused body is taken off the wire.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Decides reviews of one path.
///
/// Implemented by `Fn(Bytes) -> impl Future<Output = Reply>` too.
pub trait ReviewHandler: Send + Sync + 'static {
    /// Answers the review in `body`, which is whatever the client sent: at most the body limit
    /// long, and possibly no review at all. Runs on the connection's task, so it must not block;
    /// it is dropped at an await when the handler deadline passes or the client leaves.
    fn handle(&self, body: Bytes) -> impl Future<Output = Reply> + Send;
}

impl<F, R> ReviewHandler for F
where
    F: Fn(Bytes) -> R + Send + Sync + 'static,
    R: Future<Output = Reply> + Send,
{
    fn handle(&self, body: Bytes) -> impl Future<Output = Reply> + Send {
        self(body)
    }
}

/// What a handler says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200 for every review that could be read, denied ones included.
    pub status: StatusCode,
    /// JSON text.
    pub body: Bytes,
    /// The value of the metric label `verdict`; from a small fixed set.
    pub verdict: &'static str,
}

impl Reply {
    /// A reply with status 200.
    pub fn ok(body: impl Into<Bytes>, verdict: &'static str) -> Self {
        Self {
            status: StatusCode::OK,
            body: body.into(),
            verdict,
        }
    }
}

/// [`ReviewHandler`] with its future boxed, so that handlers of several types fit in one table.
trait BoxedHandler: Send + Sync {
    fn handle_boxed(&self, body: Bytes) -> BoxFuture<'_, Reply>;
}

impl<H: ReviewHandler> BoxedHandler for H {
    fn handle_boxed(&self, body: Bytes) -> BoxFuture<'_, Reply> {
        self.handle(body).boxed()
    }
}

/// Handlers by path.
#[derive(Default)]
pub struct Routes {
    table: Vec<(&'static str, Box<dyn BoxedHandler>)>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.table.iter().map(|(path, _)| path))
            .finish()
    }
}

impl Routes {
    /// Sends POST requests for exactly `path` to `handler`. The path without its slash is the
    /// value of the metric label `webhook`. Of two handlers for a path the first is used.
    #[must_use]
    pub fn route(mut self, path: &'static str, handler: impl ReviewHandler) -> Self {
        self.table.push((path, Box::new(handler)));
        self
    }
}

struct Route {
    path: &'static str,
    webhook: &'static str,
    handler: Box<dyn BoxedHandler>,
    duration: Histogram,
}

/// Bounds on reviews.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) requests: usize,
    pub(super) body: u32,
    pub(super) body_read: Duration,
    pub(super) handler: Duration,
}

/// The service behind the webhook port.
pub(super) struct Reviews {
    routes: Vec<Route>,
    bounds: Bounds,
    /// One permit per review: a hundred streams on each of many HTTP/2 connections are more than
    /// the bound on connections alone would hold.
    places: Semaphore,
    budget: Budget,
    metrics: Arc<Metrics>,
}

impl Reviews {
    pub(super) fn new(
        routes: Routes,
        bounds: Bounds,
        budget: Budget,
        metrics: Arc<Metrics>,
    ) -> Self {
        let routes = routes
            .table
            .into_iter()
            .map(|(path, handler)| {
                let webhook = path.trim_start_matches('/');
                Route {
                    path,
                    webhook,
                    handler,
                    duration: metrics.admission_duration(webhook),
                }
            })
            .collect();
        Self {
            routes,
            bounds,
            places: Semaphore::new(bounds.requests),
            budget,
            metrics,
        }
    }

    /// The route of a request that may be a review.
    fn admit(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<&Route, Rejection> {
        let route = self
            .routes
            .iter()
            .find(|route| route.path == path)
            .ok_or(Rejection::BadPath)?;
        if method != Method::POST {
            return Err(Rejection::Method("POST"));
        }
        if !is_json(headers) {
            return Err(Rejection::ContentType);
        }
        Ok(route)
    }

    async fn review(&self, route: &Route, body: &mut Incoming) -> Result<Answer, Rejection> {
        let started = Instant::now();
        let _place = self.places.try_acquire().map_err(|_| Rejection::Busy)?;
        let _in_flight = Raised::new(&self.metrics.in_flight);
        let read = body::read(body, self.bounds.body, &self.budget);
        let held = timeout(self.bounds.body_read, read)
            .await
            .map_err(|_| Rejection::BodyTimeout)??;
        let (answer, verdict) = self.decide(route, held).await;
        route.duration.observe(started.elapsed().as_secs_f64());
        self.metrics.admitted(route.webhook, verdict);
        Ok(answer)
    }

    async fn decide(&self, route: &Route, held: Held) -> (Answer, &'static str) {
        // Kept until the reply is made: the handler's copies of the body live no longer.
        let Held {
            bytes,
            reservations: _reservations,
        } = held;
        // A panic leaves no state of ours half changed: a handler gets the body by value, and
        // what it shares with others are atomics and whole swapped values.
        let reply = AssertUnwindSafe(async { route.handler.handle_boxed(bytes).await });
        match timeout(self.bounds.handler, reply.catch_unwind()).await {
            Ok(Ok(reply)) => (json(reply.status, reply.body), reply.verdict),
            Ok(Err(_)) => {
                self.metrics.handler_panics.inc();
                // The panic's own text may quote the review, so it is left out.
                tracing::error!(webhook = route.webhook, "an admission handler panicked");
                let answer = failure(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "InternalError",
                    "the webhook failed on this review; its log names the webhook",
                );
                (answer, "panic")
            }
            Err(_) => {
                tracing::warn!(webhook = route.webhook, "a review was not decided in time");
                let answer = failure(
                    StatusCode::GATEWAY_TIMEOUT,
                    "Timeout",
                    "the webhook did not decide this review in time",
                );
                (answer, "timeout")
            }
        }
    }

    async fn reject(&self, rejection: Rejection, mut rest: Rest) -> Answer {
        self.metrics.rejected(rejection.reason());
        tracing::debug!(reason = rejection.reason(), "refused a request");
        let mut answer = rejection.answer();
        if rest.version > Version::HTTP_11 {
            // HTTP/2 resets the one stream after its answer.
            return answer;
        }
        let usable = if rejection.breaks_connection() {
            false
        } else if rest.body.is_end_stream() {
            true
        } else if rest.awaits_continue {
            // Reading would invite the very body that was just refused.
            false
        } else {
            let most = u64::from(self.bounds.body) * 2;
            let discard = body::discard(&mut rest.body, most);
            timeout(DISCARD_TIME, discard).await.unwrap_or(false)
        };
        if !usable {
            ask_to_close(answer.headers_mut());
        }
        answer
    }
}

/// What is left of a refused request.
struct Rest {
    body: Incoming,
    version: Version,
    /// The client holds its body back until it is told to continue.
    awaits_continue: bool,
}

impl Respond for Reviews {
    async fn respond(&self, request: Request<Incoming>) -> Answer {
        let (head, mut body) = request.into_parts();
        let path = head.uri.path();
        if path == "/healthz" && (head.method == Method::GET || head.method == Method::HEAD) {
            return healthy();
        }
        let announced = body.size_hint().exact().is_some();
        let outcome = match self.admit(&head.method, path, &head.headers) {
            Ok(route) => self.review(route, &mut body).await,
            Err(rejection) => Err(rejection),
        };
        match outcome {
            Ok(answer) => answer,
            Err(rejection) => {
                // Only a body of unknown length is found too large or without room after some of
                // it was read, which told the client to go on.
                let untouched = announced
                    || matches!(
                        rejection,
                        Rejection::BadPath | Rejection::Method(_) | Rejection::ContentType
                    );
                let rest = Rest {
                    body,
                    version: head.version,
                    awaits_continue: untouched && head.headers.contains_key(EXPECT),
                };
                self.reject(rejection, rest).await
            }
        }
    }
}

/// Whether the content type is `application/json`, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

/// A gauge that is one higher for as long as this lives.
#[derive(Debug)]
pub(super) struct Raised(Gauge);

impl Raised {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn json_is_recognised_with_parameters_and_in_any_case() {
        for (value, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json ;v=1", true),
            ("application/json-patch+json", false),
            ("text/plain", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_json(&headers), expected, "{value:?}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
