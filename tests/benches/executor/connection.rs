//! One connection to an executor that is kept, and the stream of its events: what is measured is the
//! executor, not the opening of connections.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use opensandbox_api::task::{State, Task, WatchEvent, tasks_from_json};
use opensandbox_tests::executor::{Client, Watch};
use tokio::net::TcpStream;

/// Nothing takes longer.
const BOUND: Duration = Duration::from_secs(30);

/// A connection that is kept.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn send(
        &mut self,
        method: &str,
        target: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "executor")
            .body(Full::new(body))?;
        let whole = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        let answer = tokio::time::timeout(BOUND, whole).await;
        answer
            .context("no answer")?
            .with_context(|| format!("{method} {target}"))
    }

    async fn expect(
        &mut self,
        (method, target): (&str, &str),
        body: Bytes,
        expected: StatusCode,
    ) -> Result<Bytes> {
        let (status, body) = self.send(method, target, body).await?;
        let text = String::from_utf8_lossy(&body);
        ensure!(status == expected, "{method} {target}: {status} {text}");
        Ok(body)
    }

    /// `POST /tasks`.
    pub(crate) async fn create(&mut self, body: Bytes) -> Result<()> {
        self.expect(("POST", "/tasks"), body, StatusCode::CREATED)
            .await?;
        Ok(())
    }

    /// `POST /setTasks`.
    pub(crate) async fn set(&mut self, body: Bytes) -> Result<()> {
        self.expect(("POST", "/setTasks"), body, StatusCode::OK)
            .await?;
        Ok(())
    }

    /// `DELETE /tasks/NAME`.
    pub(crate) async fn delete(&mut self, name: &str) -> Result<()> {
        let target = format!("/tasks/{name}");
        self.expect(("DELETE", &target), Bytes::new(), StatusCode::NO_CONTENT)
            .await?;
        Ok(())
    }

    /// `GET /getTasks`.
    pub(crate) async fn list(&mut self) -> Result<Vec<Task>> {
        let body = self
            .expect(("GET", "/getTasks"), Bytes::new(), StatusCode::OK)
            .await?;
        Ok(tasks_from_json(&body)?)
    }
}

/// The events of an executor.
pub(crate) struct Events(Watch);

impl Events {
    /// From now on, of an executor without tasks.
    pub(crate) async fn follow(client: &Client) -> Result<Self> {
        let mut watch = client.watch(None).await?;
        watch
            .until(BOUND, |event| matches!(event, WatchEvent::Bookmark { .. }))
            .await?;
        Ok(Self(watch))
    }

    /// Waits until so many tasks have succeeded; any other end is an error.
    pub(crate) async fn succeeded(&mut self, mut count: usize) -> Result<()> {
        while count > 0 {
            let event = self.0.next(BOUND).await?.context("the stream ended")?;
            let (WatchEvent::Added { task, .. } | WatchEvent::Modified { task, .. }) = event else {
                continue;
            };
            match task.state() {
                State::Succeeded => count -= 1,
                State::Failed => anyhow::bail!("{}: {:?}", task.name, task.outcome),
                State::Waiting | State::Running => {}
            }
        }
        Ok(())
    }

    /// Waits until so many tasks are gone.
    pub(crate) async fn gone(&mut self, mut count: usize) -> Result<()> {
        while count > 0 {
            let event = self.0.next(BOUND).await?.context("the stream ended")?;
            if matches!(event, WatchEvent::Deleted { .. }) {
                count -= 1;
            }
        }
        Ok(())
    }
}
