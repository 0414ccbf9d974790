//! Answers that go on: the watch, and output of tasks.
//!
//! Each has a producer of its own that hands over one piece at a time, at most [`PIECE`] bytes, and
//! waits until the connection takes it; so a slow client costs itself time and this program nothing.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use opensandbox_api::task::WatchEvent;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::answer::{self, Answer, Content, Cut};
use super::query::LogQuery;
use super::quota::{Quota, Source};
use super::tasks::{Chunk, Log, Start, Watch};

/// Most bytes handed over at once. Two of them and the connection's own buffer are the most that a
/// stream holds, besides the event that is being sent.
const PIECE: usize = 16 * 1024;

const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// Offset of the first byte sent.
const OFFSET: HeaderName = HeaderName::from_static("x-log-offset");
/// Of the bytes asked for, how many before that one are not kept any more.
const DROPPED: HeaderName = HeaderName::from_static("x-log-dropped-bytes");

type Pieces = mpsc::Sender<Result<Bytes, Cut>>;

/// What all streams have in common.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) places: Quota,
    /// Silence after which a watch sends a bookmark.
    pub(super) bookmark: Duration,
    /// Becomes true when the server ends.
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) open: Gauge,
}

impl Streams {
    /// Events, one a line, until the client leaves.
    pub(super) fn watch(&self, source: Source, events: impl Watch) -> Answer {
        let bookmark = self.bookmark;
        let produce = move |pieces: Pieces| async move {
            // An error means that the client has left.
            let _ = send_events(events, bookmark, &pieces).await;
        };
        let mut answer = self.start(source, produce);
        if answer.status() == StatusCode::OK {
            let headers = answer.headers_mut();
            headers.insert(http::header::CONTENT_TYPE, NDJSON);
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        answer
    }

    /// Output from where `query` says, to its present end, or with `follow` to its last end.
    pub(super) fn log(&self, source: Source, log: impl Log, query: LogQuery) -> Answer {
        let first = log.read(query.start, most(query.limit_bytes));
        let (offset, dropped) = (first.offset, first.dropped_before);
        let produce = move |pieces: Pieces| async move {
            // Likewise.
            let _ = send_output(log, first, query, &pieces).await;
        };
        let mut answer = self.start(source, produce);
        if answer.status() == StatusCode::OK {
            let headers = answer.headers_mut();
            headers.insert(http::header::CONTENT_TYPE, BYTES);
            headers.insert(OFFSET, offset.into());
            headers.insert(DROPPED, dropped.into());
        }
        answer
    }

    fn start<F>(&self, source: Source, produce: impl FnOnce(Pieces) -> F) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(permit) = self.places.take(source, 1) else {
            return answer::busy("too many watches and logs at once, end one or try again");
        };
        let (pieces, content) = mpsc::channel(1);
        let left = pieces.clone();
        let produced = produce(pieces);
        let mut stopping = self.stopping.clone();
        let open = self.open.clone();
        open.inc();
        tokio::spawn(async move {
            tokio::select! {
                () = produced => {}
                () = left.closed() => {}
                // An error means that the server is gone.
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
            open.dec();
        });
        let mut content = Content::stream(content);
        content.permit = Some(permit);
        Response::new(content)
    }
}

/// The client has left.
struct Left;

async fn send(pieces: &Pieces, piece: Result<Bytes, Cut>) -> Result<(), Left> {
    pieces.send(piece).await.map_err(|_| Left)
}

async fn send_events(
    mut events: impl Watch,
    bookmark: Duration,
    pieces: &Pieces,
) -> Result<(), Left> {
    let mut cursor = None;
    loop {
        let event = {
            // Kept over bookmarks, so that no event is lost with a dropped wait.
            let mut next = pin!(events.next());
            loop {
                tokio::select! {
                    event = &mut next => break event,
                    () = sleep(bookmark), if cursor.is_some() => {
                        let cursor = cursor.clone().unwrap_or_default();
                        send_event(&WatchEvent::Bookmark { cursor }, pieces).await?;
                    }
                }
            }
        };
        send_event(&event, pieces).await?;
        if let Some(at) = event.cursor() {
            cursor = Some(at.to_owned());
        }
    }
}

async fn send_event(event: &WatchEvent, pieces: &Pieces) -> Result<(), Left> {
    let line = match event.to_line() {
        Ok(line) => line,
        Err(error) => {
            tracing::error!(%error, "cannot write an event as JSON");
            return Err(Left);
        }
    };
    let mut line = Bytes::from(line);
    while !line.is_empty() {
        let piece = line.split_to(line.len().min(PIECE));
        send(pieces, Ok(piece)).await?;
    }
    Ok(())
}

async fn send_output(
    log: impl Log,
    first: Chunk,
    query: LogQuery,
    pieces: &Pieces,
) -> Result<(), Left> {
    // Without `follow`: what was there at the beginning.
    let present_end = first.printed;
    let mut left = query.limit_bytes;
    let mut at = first.offset;
    let mut chunk = first;
    loop {
        if chunk.offset != at {
            // The client would take what follows for the continuation. Cut off, it asks for this offset
            // again and is told what it missed.
            tracing::debug!("cut off a client that was slower than the output it reads");
            return send(pieces, Err(Cut)).await;
        }
        if !query.follow {
            let wanted = present_end.saturating_sub(at);
            chunk
                .bytes
                .truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        }
        let length = chunk.bytes.len() as u64;
        at += length;
        left = left.map(|left| left.saturating_sub(length));
        let nothing = chunk.bytes.is_empty();
        if !nothing {
            send(pieces, Ok(chunk.bytes.into())).await?;
        }
        if left == Some(0) || (!query.follow && at >= present_end) {
            return Ok(());
        }
        if nothing {
            if chunk.end || !query.follow {
                return Ok(());
            }
            log.changed(at).await;
        }
        chunk = log.read(Start::Offset(at), most(left));
    }
}

/// How much to read at once if so much is still to be sent.
fn most(left: Option<u64>) -> usize {
    left.and_then(|left| usize::try_from(left).ok())
        .map_or(PIECE, |left| left.min(PIECE))
}
