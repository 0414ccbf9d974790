//! A running server, and a client of which every byte can be chosen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use task_executor::config::AuthSetting;
use task_executor::metrics::Metrics;
use task_executor::server::{Auth, Limits, ServerState, serve};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake::Fake;

/// A bound on every wait of these tests; reached only when something hangs.
const HANGS: Duration = Duration::from_mins(1);

/// Waits for `future`, or fails the test.
pub(crate) async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, future)
        .await
        .expect("the test hangs")
}

/// Polls until `holds`, or fails the test.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    bounded(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A server on a port of its own; it ends with this value.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) tasks: Fake,
    pub(crate) metrics: Arc<Metrics>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Running {
    /// Serves everybody.
    pub(crate) async fn open() -> Self {
        Self::start(
            Auth::new(AuthSetting::None, None, None, 0),
            Limits::default(),
        )
        .await
    }

    pub(crate) async fn limited(limits: Limits) -> Self {
        Self::start(Auth::new(AuthSetting::None, None, None, 0), limits).await
    }

    pub(crate) async fn start(auth: Auth, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Fake::new();
        let metrics = Arc::new(Metrics::default());
        let state = ServerState {
            tasks: Arc::new(tasks.clone()),
            auth,
            metrics: Arc::clone(&metrics),
            limits,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, state, async {
            let _ = stopped.await;
        }));
        Self {
            address,
            tasks,
            metrics,
            stop: Some(stop),
            serving,
        }
    }

    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub(crate) async fn stopped(&mut self) {
        bounded(&mut self.serving).await.unwrap();
    }

    pub(crate) fn has_metric(&self, line: &str) -> bool {
        let text = self.metrics.encode().unwrap();
        text.lines()
            .any(|have| have == format!("task_executor_{line}"))
    }

    pub(crate) async fn connect(&self) -> Client {
        let socket = bounded(TcpStream::connect(self.address)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Client(BufStream::new(socket))
    }

    /// One request on a connection of its own, such as `GET /getTasks`.
    pub(crate) async fn ask(&self, request: &str, body: &str) -> Answer {
        let mut client = self.connect().await;
        client.ask(request, body).await.expect("no answer")
    }
}

pub(crate) struct Client(pub(crate) BufStream<TcpStream>);

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (have, value) = line.split_once(": ")?;
            have.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{self:?}"
        );
        assert_eq!(self.body.last(), Some(&b'\n'), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The message of an error in upstream's shape.
    pub(crate) fn message(&self) -> String {
        let value = self.json();
        assert_eq!(value.as_object().unwrap().len(), 2, "{value}");
        assert!(value["code"].is_string());
        value["message"].as_str().unwrap().to_owned()
    }
}

/// The head of `request`, such as `POST /tasks`, with more header lines, each with its end.
pub(crate) fn head(request: &str, headers: &str) -> String {
    format!("{request} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        bounded(async {
            self.0.write_all(bytes.as_ref()).await?;
            self.0.flush().await
        })
        .await
    }

    pub(crate) async fn ask(&mut self, request: &str, body: &str) -> Option<Answer> {
        self.ask_with(request, "", body).await
    }

    pub(crate) async fn ask_with(
        &mut self,
        request: &str,
        headers: &str,
        body: &str,
    ) -> Option<Answer> {
        let length = if body.is_empty() && !request.starts_with("POST") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let text = head(request, &format!("{length}{headers}")) + body;
        // A server that refuses may close before it has read everything.
        let _ = self.send(text).await;
        let is_head = request.starts_with("HEAD ");
        self.answer(is_head).await
    }

    /// The head of the next answer, or `None` when the connection has ended.
    pub(crate) async fn head(&mut self) -> Option<Answer> {
        bounded(async {
            let mut head = String::new();
            loop {
                let before = head.len();
                if self.0.read_line(&mut head).await.ok()? == 0 {
                    return None;
                }
                if &head[before..] == "\r\n" {
                    break;
                }
            }
            let head = head.replace("\r\n", "\n");
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            Some(Answer {
                status,
                head,
                body: Vec::new(),
            })
        })
        .await
    }

    pub(crate) async fn answer(&mut self, is_head: bool) -> Option<Answer> {
        let mut answer = self.head().await?;
        if !is_head {
            if answer.header("transfer-encoding") == Some("chunked") {
                while let Some(piece) = self.chunk().await.expect("the stream was cut") {
                    answer.body.extend(piece);
                }
            } else {
                let length = answer
                    .header("content-length")
                    .map_or(0, |length| length.parse().unwrap());
                answer.body = vec![0; length];
                bounded(self.0.read_exact(&mut answer.body)).await.ok()?;
            }
        }
        Some(answer)
    }

    /// The next chunk, `None` at the end; an error if the connection ends before that.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, std::io::Error> {
        bounded(async {
            let mut size = String::new();
            self.0.read_line(&mut size).await?;
            let size = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
            let mut piece = vec![0; size + 2];
            self.0.read_exact(&mut piece).await?;
            piece.truncate(size);
            Ok((size > 0).then_some(piece))
        })
        .await
    }

    /// The next line of a stream of which each chunk ends with a line.
    pub(crate) async fn event(&mut self) -> Value {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.extend(
                self.chunk()
                    .await
                    .expect("the stream was cut")
                    .expect("the stream ended"),
            );
        }
        serde_json::from_slice(&line).unwrap()
    }

    /// Waits until the server closes the connection, whatever it still sends.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = bounded(self.0.read_to_end(&mut rest)).await;
    }
}
