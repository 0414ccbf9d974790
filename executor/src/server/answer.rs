//! Answers, in the words of Go's HTTP server where upstream's executor leaves them to it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use opensandbox_api::task::ErrorBody;
use serde::Serialize;
use tokio::sync::mpsc;

use super::activity::InFlight;
use super::quota::Permit;

/// Content type of all JSON.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const NOSNIFF: (HeaderName, HeaderValue) = (
    http::header::X_CONTENT_TYPE_OPTIONS,
    HeaderValue::from_static("nosniff"),
);

/// An answer.
pub(super) type Answer = Response<Content>;

/// A stream that had to be ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client was too slow, and what it had not read is not kept any more")]
pub(super) struct Cut;

/// Body of an answer.
#[derive(Debug)]
pub(super) struct Content {
    source: Bytes,
    stream: Option<mpsc::Receiver<Result<Bytes, Cut>>>,
    /// Until the body has been handed over.
    pub(super) in_flight: Option<InFlight>,
    /// For a stream.
    pub(super) permit: Option<Permit>,
}

impl Content {
    /// A body that is whole.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self {
            source: bytes.into(),
            stream: None,
            in_flight: None,
            permit: None,
        }
    }

    /// A body that comes piece by piece.
    pub(super) fn stream(pieces: mpsc::Receiver<Result<Bytes, Cut>>) -> Self {
        Self {
            stream: Some(pieces),
            ..Self::whole(Bytes::new())
        }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(stream) = &mut self.stream {
            return stream
                .poll_recv(cx)
                .map(|piece| piece.map(|piece| piece.map(Frame::data)));
        }
        let whole = std::mem::take(&mut self.source);
        Poll::Ready((!whole.is_empty()).then(|| Ok(Frame::data(whole))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none() && self.source.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.stream {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.source.len() as u64),
        }
    }
}

/// An answer of `status` without anything else.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Answer::new(Content::whole(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

/// An answer with a body of that type.
pub(super) fn typed(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::new(Content::whole(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// JSON with a line feed, as Go's encoder writes it.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            typed(status, JSON, text)
        }
        Err(error) => {
            tracing::error!(%error, "cannot write an answer as JSON");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// An error in upstream's shape.
pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Answer {
    json(status, &ErrorBody::new(status.as_u16(), message))
}

/// No room at the moment.
pub(super) fn busy(message: &str) -> Answer {
    let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, message);
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// 401; `invalid_token` if there was a token (RFC 6750, 3.1).
pub(super) fn unauthorized(message: &str, had_token: bool) -> Answer {
    let mut answer = error(StatusCode::UNAUTHORIZED, message);
    let challenge = if had_token {
        HeaderValue::from_static(r#"Bearer error="invalid_token""#)
    } else {
        HeaderValue::from_static("Bearer")
    };
    answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    answer
}

/// Go's answer for a path that is not there.
pub(super) fn not_found() -> Answer {
    go_text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Go's answer for a path that is there under other methods.
pub(super) fn method_not_allowed(allow: &'static str) -> Answer {
    let mut answer = go_text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

/// Go's answer for what is no request.
pub(super) fn bad_request() -> Answer {
    let mut answer = typed(StatusCode::BAD_REQUEST, TEXT, "400 Bad Request");
    close(&mut answer);
    answer
}

/// Go's redirect to a cleaned path. Up to Go 1.25 its status is 301.
pub(super) fn redirect(method: &Method, path: &str, query: Option<&str>) -> Answer {
    let location = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let Ok(value) = HeaderValue::from_str(&location) else {
        return bad_request();
    };
    let mut answer = if *method == Method::GET || *method == Method::HEAD {
        let mut shown = location.replace('&', "&amp;");
        for (character, entity) in [
            ('<', "&lt;"),
            ('>', "&gt;"),
            ('"', "&#34;"),
            ('\'', "&#39;"),
        ] {
            shown = shown.replace(character, entity);
        }
        let body = format!("<a href=\"{shown}\">Moved Permanently</a>.\n\n");
        typed(StatusCode::MOVED_PERMANENTLY, HTML, body)
    } else {
        empty(StatusCode::MOVED_PERMANENTLY)
    };
    answer.headers_mut().insert(LOCATION, value);
    answer
}

/// Has the connection closed after this answer.
pub(super) fn close(answer: &mut Answer) {
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}

fn go_text(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = typed(status, TEXT, text);
    let (name, value) = NOSNIFF;
    answer.headers_mut().insert(name, value);
    answer
}
