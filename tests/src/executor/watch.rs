//! The stream of `GET /tasks?watch=true`.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use opensandbox_api::task::WatchEvent;

/// Events as they come.
#[derive(Debug)]
pub struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
    events: VecDeque<WatchEvent>,
    cursor: Option<String>,
}

impl Watch {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: Vec::new(),
            events: VecDeque::new(),
            cursor: None,
        }
    }

    /// What to resume from after the last event that [`Self::next`] returned.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// The next event; `None` when the executor closed the stream.
    ///
    /// # Errors
    /// None comes in time, the connection broke, or it is no event.
    pub async fn next(&mut self, bound: Duration) -> Result<Option<WatchEvent>> {
        let next = tokio::time::timeout(bound, self.receive()).await;
        let next = next.with_context(|| format!("no event within {} s", bound.as_secs()))??;
        if let Some(cursor) = next.as_ref().and_then(WatchEvent::cursor) {
            self.cursor = Some(cursor.to_owned());
        }
        Ok(next)
    }

    /// Events up to one that is as it should be, which is the last.
    ///
    /// # Errors
    /// As [`Self::next`], or the stream ends before.
    pub async fn until(
        &mut self,
        bound: Duration,
        reached: impl Fn(&WatchEvent) -> bool,
    ) -> Result<Vec<WatchEvent>> {
        let mut events = Vec::new();
        loop {
            let Some(event) = self.next(bound).await? else {
                bail!("the stream ended after {events:?}");
            };
            events.push(event);
            if events.last().is_some_and(&reached) {
                return Ok(events);
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<WatchEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else {
                ensure!(
                    self.buffer.is_empty(),
                    "the stream ended in the middle of a line"
                );
                return Ok(None);
            };
            if let Ok(data) = frame?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.buffer.drain(..=end).collect();
                let line = String::from_utf8(line)?;
                let event = WatchEvent::from_line(&line);
                self.events
                    .push_back(event.with_context(|| format!("no event: {line}"))?);
            }
        }
    }
}
