//! HTTP by hand: the bytes of a request go out as a test wrote them, the answer is taken apart as it
//! came. One connection per exchange.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer comes within this, or something is wrong.
const BOUND: Duration = Duration::from_mins(1);

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// The value of a header, if it is there once.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value.as_str())
    }

    /// The body as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, one JSON value and a line feed.
    pub(super) fn json(&self) -> Result<serde_json::Value> {
        let text = std::str::from_utf8(&self.body).context("a body that is no UTF-8")?;
        let kind = self.header("content-type");
        ensure!(kind == Some("application/json"), "{kind:?}: {text}");
        let line = text.strip_suffix('\n').context("no line feed at the end")?;
        serde_json::from_str(line).with_context(|| format!("no JSON: {text}"))
    }
}

/// Sends `METHOD /path` with this body.
pub(super) async fn call(address: SocketAddr, request: &str, body: &[u8]) -> Result<Reply> {
    let has_body = !body.is_empty() || request.starts_with("POST");
    let length = if has_body {
        format!("Content-Length: {}\r\n", body.len())
    } else {
        String::new()
    };
    let head = format!("{request} HTTP/1.1\r\nHost: executor\r\nConnection: close\r\n{length}\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    exchange(address, &bytes)
        .await
        .with_context(|| request.to_owned())
}

/// Sends these bytes and reads until the other side closes.
pub(super) async fn exchange(address: SocketAddr, request: &[u8]) -> Result<Reply> {
    let head = request.starts_with(b"HEAD ");
    let answer = tokio::time::timeout(BOUND, async {
        let mut stream = TcpStream::connect(address).await?;
        let (mut reader, mut writer) = stream.split();
        let mut answer = Vec::new();
        let write = async {
            // A server may answer and close before it has read all.
            let _ = writer.write_all(request).await;
            std::future::pending::<()>().await;
        };
        let read = async {
            let end = reader.read_to_end(&mut answer).await;
            // Nor does it have to read the rest of a request that it refused.
            if answer.is_empty() { end } else { Ok(0) }
        };
        tokio::select! {
            end = read => end?,
            () = write => 0,
        };
        Ok::<_, anyhow::Error>(answer)
    })
    .await
    .context("no answer in time")??;
    parse(&answer, head)
}

fn parse(answer: &[u8], head: bool) -> Result<Reply> {
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .with_context(|| format!("no head: {}", String::from_utf8_lossy(answer)))?;
    let (head_bytes, rest) = answer.split_at(end);
    let text = std::str::from_utf8(head_bytes).context("a head that is no UTF-8")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .with_context(|| format!("no status line: {first}"))?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut reply = Reply {
        status,
        headers,
        body: rest.get(4..).unwrap_or_default().to_owned(),
    };
    if reply.header("transfer-encoding") == Some("chunked") {
        reply.body = dechunk(&reply.body)?;
    } else if let (Some(length), false) = (reply.header("content-length"), head) {
        let length: usize = length.parse().context("a length")?;
        ensure!(
            reply.body.len() == length,
            "{} of {length} bytes",
            reply.body.len()
        );
    }
    Ok(reply)
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|bytes| bytes == b"\r\n")
            .context("a chunk without length")?;
        let (length, after) = rest.split_at(end);
        let length = usize::from_str_radix(std::str::from_utf8(length)?, 16)?;
        if length == 0 {
            return Ok(body);
        }
        let chunk = after
            .get(2..2 + length)
            .context("a chunk that is cut off")?;
        body.extend_from_slice(chunk);
        rest = after
            .get(2 + length + 2..)
            .context("a body that is cut off")?;
    }
}
