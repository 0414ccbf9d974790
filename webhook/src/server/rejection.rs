//! Requests that never reach a handler, and what is said to their senders.
//!
//! In: the reason. Out: a response whose body is a Kubernetes `Status`, because the API server's
//! client shows the message of one to the user, and a bounded reason for the metrics. Pure.

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;

/// The response type of every service here.
pub(super) type Answer = Response<Full<Bytes>>;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why a request was refused before any handler saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    /// No route has this path.
    BadPath,
    /// The route has another method; the value is the `Allow` header.
    Method(&'static str),
    ContentType,
    TooLarge,
    /// Too many requests in flight, or no memory for the body within the wait limit.
    Busy,
    /// The body did not arrive within the read limit.
    BodyTimeout,
    /// The body ended early or was malformed on the wire.
    Truncated,
}

impl Rejection {
    /// The value of the metric label `reason`.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::BadPath => "bad_path",
            Self::Method(_) => "method",
            Self::ContentType => "content_type",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::BodyTimeout => "timeout",
            Self::Truncated => "truncated",
        }
    }

    /// Whether the sender may be in the middle of a body that nobody will read, so that the
    /// connection cannot be used again.
    pub(super) const fn breaks_connection(self) -> bool {
        matches!(self, Self::BodyTimeout | Self::Truncated)
    }

    pub(super) fn answer(self) -> Answer {
        let (status, reason, message) = match self {
            Self::BadPath => (StatusCode::NOT_FOUND, "NotFound", "no such path"),
            Self::Method(_) => (
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "this path does not have that method",
            ),
            Self::ContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                "the content type must be application/json",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                "the review is larger than this webhook reads",
            ),
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                "too many reviews at once, try again",
            ),
            Self::BodyTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "Timeout",
                "the review did not arrive in time",
            ),
            Self::Truncated => (
                StatusCode::BAD_REQUEST,
                "BadRequest",
                "the review ended early",
            ),
        };
        let mut answer = failure(status, reason, message);
        let headers = answer.headers_mut();
        match self {
            Self::Method(allow) => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            // The API server's client repeats a 5xx that says when to, within the timeout of the
            // webhook. A second is the smallest value the header can carry.
            Self::Busy => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        answer
    }
}

/// A Kubernetes `Status` of a failure. `reason` and `message` go into JSON as they are, so they
/// must not need escapes; all of them are literals of this program.
pub(super) fn failure(status: StatusCode, reason: &'static str, message: &'static str) -> Answer {
    let body = format!(
        concat!(
            r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","#,
            r#""message":"{}","reason":"{}","code":{}}}"#
        ),
        message,
        reason,
        status.as_u16()
    );
    json(status, Bytes::from(body))
}

/// A response of JSON text. hyper adds the content length, as the size is known.
pub(super) fn json(status: StatusCode, body: Bytes) -> Answer {
    typed(status, JSON, body)
}

/// A response of plain text.
pub(super) fn text(status: StatusCode, body: Bytes) -> Answer {
    typed(
        status,
        HeaderValue::from_static("text/plain; charset=utf-8"),
        body,
    )
}

/// A response of any content type.
pub(super) fn typed(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// Asks an HTTP/1 peer to close the connection after this answer.
pub(super) fn ask_to_close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn every_rejection_is_a_readable_status_of_the_same_code() {
        for (rejection, code) in [
            (Rejection::BadPath, 404),
            (Rejection::Method("POST"), 405),
            (Rejection::ContentType, 415),
            (Rejection::TooLarge, 413),
            (Rejection::Busy, 503),
            (Rejection::BodyTimeout, 408),
            (Rejection::Truncated, 400),
        ] {
            let answer = rejection.answer();
            assert_eq!(answer.status(), code);
            assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
            assert_eq!(
                answer.headers().contains_key(RETRY_AFTER),
                rejection == Rejection::Busy
            );
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(status["kind"], "Status");
            assert_eq!(status["code"], code);
        }
    }
}
