//! The last lines that a failed task wrote to standard error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use opensandbox_api::task::State;
use opensandbox_api::token::Request;
use tokio::time::timeout;

use super::connection::{self, Connection};
use super::fault::Fault;
use super::list::Tasks;
use super::sessions::Shared;

/// Most bytes of output that are kept.
const MOST: usize = 1024;
/// Most tasks of one executor whose output is asked for: the operator orders one.
const TASKS: usize = 8;

/// A task by its name and UID.
pub(super) type Id = (String, Option<String>);

/// Whom to ask.
#[derive(Clone, Debug)]
pub(super) struct Whom {
    pub(super) ip: String,
    pub(super) pod_uid: String,
    /// Place of the key that it knows.
    pub(super) key: usize,
}

/// What is known of the output of failed tasks.
#[derive(Debug, Default)]
pub(super) struct Tails {
    /// Those that were asked for, each once for an order.
    asked: BTreeSet<Id>,
    /// What is there.
    known: BTreeMap<Id, String>,
    /// What is being fetched.
    pub(super) coming: FuturesUnordered<BoxFuture<'static, (Id, Option<String>)>>,
}

impl Tails {
    /// Begins to fetch what is missing for the failed ones of these tasks. Whether something is being
    /// fetched now.
    pub(super) fn want(&mut self, tasks: &Tasks, shared: &Arc<Shared>, whom: &Whom) -> bool {
        for (id, task) in tasks {
            let asks = task.state() == State::Failed
                && self.asked.len() < TASKS
                && self.asked.insert(id.clone());
            if !asks {
                continue;
            }
            let fetch = fetch(Arc::clone(shared), whom.clone(), id.clone());
            self.coming.push(Box::pin(fetch));
        }
        !self.coming.is_empty()
    }

    /// Something else is ordered: what is there is kept, what is missing may be asked for again.
    pub(super) fn renew(&mut self) {
        self.give_up();
        if self.known.len() >= TASKS {
            self.known.clear();
        }
        self.asked = self.known.keys().cloned().collect();
    }

    /// Waits for nothing any more.
    pub(super) fn give_up(&mut self) {
        self.coming.clear();
    }

    /// One is there, or cannot be had.
    pub(super) fn arrived(&mut self, (id, tail): (Id, Option<String>)) {
        if let Some(tail) = tail {
            self.known.insert(id, tail);
        }
    }

    /// The text of this task, if it is known.
    pub(super) fn of(&self, id: &Id) -> Option<String> {
        self.known.get(id).cloned()
    }
}

async fn fetch(shared: Arc<Shared>, whom: Whom, id: Id) -> (Id, Option<String>) {
    let tail = timeout(shared.settings.order, ask(&shared, &whom, &id.0)).await;
    let tail = match tail {
        Ok(Ok(tail)) => tail,
        Ok(Err(fault)) => {
            tracing::debug!(pod_uid = %whom.pod_uid, ?fault, "no output of a failed task");
            None
        }
        Err(_) => None,
    };
    (id, tail)
}

async fn ask(shared: &Shared, whom: &Whom, name: &str) -> Result<Option<String>, Fault> {
    let Some(_permit) = shared.lanes.attempt(false).await else {
        return Ok(None);
    };
    let settings = &shared.settings;
    let mut connection = Connection::open(&whom.ip, settings.port, settings.connect).await?;
    let name = escaped(name);
    let target = format!("/tasks/{name}/logs?stream=stderr&tail={MOST}&limitBytes={MOST}");
    let request = Request {
        pod_uid: &whom.pod_uid,
        method: "GET",
        target: &target,
    };
    let leave = shared.credentials.leave(whom.key, &request, b"")?;
    let response = connection.ask("GET", &target, Bytes::new(), &leave).await?;
    let offset = response.headers().get("x-log-offset");
    let whole = offset.is_none_or(|offset| offset.as_bytes() == b"0");
    let bytes = connection::read(response, MOST, &shared.memory).await?;
    Ok(lines(&bytes, whole))
}

/// A name as one segment of a path.
fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
            escaped.push('%');
            escaped.push(char::from(DIGITS[usize::from(byte >> 4)]));
            escaped.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    escaped
}

/// The output as text of bounded size; without the rest of a line whose beginning is missing, unless that
/// is all there is. What is no text becomes U+FFFD, control characters but tabs and line feeds too.
fn lines(bytes: &[u8], whole: bool) -> Option<String> {
    let cut = (!whole).then(|| bytes.iter().position(|byte| *byte == b'\n'));
    let bytes = match cut.flatten() {
        Some(end) if end + 1 < bytes.len() => &bytes[end + 1..],
        _ => bytes,
    };
    let mut text: String = String::from_utf8_lossy(bytes)
        .chars()
        .map(|character| match character {
            '\n' | '\t' => character,
            control if control.is_control() => char::REPLACEMENT_CHARACTER,
            other => other,
        })
        .collect();
    text.truncate(text.trim_end().len());
    if text.len() > MOST {
        let start = text.ceil_char_boundary(text.len() - MOST);
        text.drain(..start);
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_its_beginning_is_left_out() {
        let check = |bytes: &str, whole, expected: &str| {
            assert_eq!(
                lines(bytes.as_bytes(), whole).unwrap(),
                expected,
                "{bytes:?}"
            );
        };
        check("one\ntwo\n", true, "one\ntwo");
        check("ne\ntwo\nthree\n", false, "two\nthree");
        check("ne long line", false, "ne long line");
        check("ne long line\n", false, "ne long line");
        check("a\tb\u{1b}[0m\r\n", true, "a\tb\u{fffd}[0m\u{fffd}");
        assert_eq!(lines(b"\n \n", true), None);
        assert_eq!(lines(b"", true), None);
    }

    #[test]
    fn text_is_bounded_whatever_the_bytes_are() {
        for byte in [b'a', 0xff, 0, b'\n'] {
            let text = lines(&[byte; MOST], true).unwrap_or_default();
            assert!(text.len() <= MOST, "{byte}: {}", text.len());
        }
    }

    #[test]
    fn names_are_one_segment() {
        assert_eq!(escaped("a-0._~"), "a-0._~");
        assert_eq!(escaped("../a?b#é %"), "..%2Fa%3Fb%23%C3%A9%20%25");
    }
}
