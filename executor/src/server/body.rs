//! Reading request bodies into memory, with a bound on one, on all, and on the time it takes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::answer::{self, Answer};
use super::quota::{Permit, Quota, Source};

/// Bounds on bodies.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Bytes of one.
    pub(super) each: usize,
    /// Time for one.
    pub(super) time: Duration,
    /// Bytes of all that are held.
    pub(super) all: Quota,
}

/// A whole body, and the memory it is counted with as long as this lives.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _permit: Permit,
}

/// Why a body was not read. The connection cannot be used any more then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    TooLarge(usize),
    Slow(Duration),
    NoRoom,
    Broken,
}

impl Problem {
    pub(super) fn answer(self) -> Answer {
        let mut answer = match self {
            Self::TooLarge(most) => answer::error(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("request body is longer than {most} bytes; send less at once"),
            ),
            Self::Slow(limit) => answer::error(
                StatusCode::REQUEST_TIMEOUT,
                format!(
                    "request body did not arrive within {} s",
                    limit.as_secs_f64()
                ),
            ),
            Self::NoRoom => answer::busy("too many request bodies at once, try again"),
            Self::Broken => {
                answer::error(StatusCode::BAD_REQUEST, "request body ended before its end")
            }
        };
        answer::close(&mut answer);
        answer
    }
}

/// Reads `body` to its end.
pub(super) async fn read(
    body: &mut Incoming,
    source: Source,
    bounds: &Bounds,
) -> Result<Held, Problem> {
    if body.size_hint().lower() > bounds.each as u64 {
        return Err(Problem::TooLarge(bounds.each));
    }
    timeout(bounds.time, collect(body, source, bounds))
        .await
        .map_err(|_| Problem::Slow(bounds.time))?
}

/// Memory is counted as it is taken and not as it is announced: to announce costs a client nothing.
async fn collect(body: &mut Incoming, source: Source, bounds: &Bounds) -> Result<Held, Problem> {
    let most = body
        .size_hint()
        .upper()
        .and_then(|most| usize::try_from(most).ok());
    let most = most.map_or(bounds.each, |most| most.min(bounds.each));
    let mut permit = bounds.all.take(source, 0).ok_or(Problem::NoRoom)?;
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Problem::Broken)?.into_data() else {
            continue;
        };
        let needed = collected.len() + data.len();
        if needed > bounds.each {
            return Err(Problem::TooLarge(bounds.each));
        }
        if needed > collected.capacity() {
            let grown = needed.max(collected.capacity() * 2).min(most);
            let more = grown - collected.capacity();
            if !permit.grow(more) {
                return Err(Problem::NoRoom);
            }
            collected.reserve(grown - collected.len());
        }
        collected.extend_from_slice(&data);
    }
    Ok(Held {
        bytes: collected.freeze(),
        _permit: permit,
    })
}
