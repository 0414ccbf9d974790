//! Requests to an executor. Goes in: where it is, and who signs. Comes out: status, headers and body,
//! or what they mean.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use opensandbox_api::task::{State, Task, tasks_from_json};
use opensandbox_api::token::TOO_EARLY;
use tokio::net::TcpStream;

use super::{Signer, Watch};
use crate::wait::{self, Probe};

/// Where an executor listens.
pub const PORT: u16 = 5758;
/// An executor answers within this, or something is wrong.
const BOUND: Duration = Duration::from_secs(30);

/// Which of a task's outputs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Itself, if it has this status.
    ///
    /// # Errors
    /// It has another; the error quotes the body.
    pub fn expect(self, status: StatusCode) -> Result<Self> {
        ensure!(
            self.status == status,
            "not {status} but {}: {}",
            self.status,
            self.text()
        );
        Ok(self)
    }

    /// The body as a task.
    ///
    /// # Errors
    /// It is none.
    pub fn task(&self) -> Result<Task> {
        serde_json::from_slice(&self.body).with_context(|| format!("no task: {}", self.text()))
    }

    /// The body as a list of tasks.
    ///
    /// # Errors
    /// It is none.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        tasks_from_json(&self.body).with_context(|| format!("no tasks: {}", self.text()))
    }
}

/// Asks an executor. Each request has its own connection.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    signer: Option<Signer>,
}

impl Client {
    /// Of the executor of a pod with this address; requests are not signed.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address: (address, PORT).into(),
            signer: None,
        }
    }

    /// The same, and every request is signed.
    #[must_use]
    pub fn signed(mut self, signer: Signer) -> Self {
        self.signer = Some(signer);
        self
    }

    /// Where it sends to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request, signed if the client signs, and reads the answer.
    ///
    /// # Errors
    /// No answer came. One of any status is no error.
    pub async fn send(&self, method: &str, target: &str, body: &[u8]) -> Result<Reply> {
        let deadline = tokio::time::Instant::now() + BOUND;
        loop {
            let token = self.token(method, target, body)?;
            let reply = self
                .send_with(method, target, body, token.as_deref())
                .await?;
            // The operator does likewise: a second later, a new token is good.
            let too_old = token.is_some()
                && reply.status == StatusCode::UNAUTHORIZED
                && reply.text().contains(TOO_EARLY);
            if !too_old || tokio::time::Instant::now() > deadline {
                return Ok(reply);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends a request once, with this token or none, whatever the client does otherwise.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send_with(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
        token: Option<&str>,
    ) -> Result<Reply> {
        let whole = async {
            let response = self.open(method, target, body, token).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, anyhow::Error>(Reply {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        let reply = tokio::time::timeout(BOUND, whole).await;
        let reply = reply.with_context(|| format!("no answer within {} s", BOUND.as_secs()));
        reply
            .and_then(|reply| reply)
            .with_context(|| format!("{method} {target}"))
    }

    /// Sends a request and returns the answer while its body still comes.
    ///
    /// # Errors
    /// No answer came.
    pub async fn stream(&self, target: &str) -> Result<Response<Incoming>> {
        let token = self.token("GET", target, b"")?;
        self.open("GET", target, b"", token.as_deref()).await
    }

    async fn open(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
        token: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends when the answer has been read or dropped.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = Full::new(Bytes::copy_from_slice(body));
        Ok(sender.send_request(request.body(body)?).await?)
    }

    fn token(&self, method: &str, target: &str, body: &[u8]) -> Result<Option<String>> {
        let signer = self.signer.as_ref();
        signer
            .map(|signer| signer.sign(method, target, body))
            .transpose()
    }

    /// `POST /setTasks`: these tasks and no others.
    ///
    /// # Errors
    /// It is not answered with 200.
    pub async fn set_tasks(&self, tasks: &[Task]) -> Result<Vec<Task>> {
        let body = serde_json::to_vec(tasks)?;
        let reply = self.send("POST", "/setTasks", &body).await?;
        reply.expect(StatusCode::OK).context("setTasks")?.tasks()
    }

    /// `GET /getTasks`.
    ///
    /// # Errors
    /// It is not answered with 200.
    pub async fn tasks(&self) -> Result<Vec<Task>> {
        let reply = self.send("GET", "/getTasks", b"").await?;
        reply.expect(StatusCode::OK).context("getTasks")?.tasks()
    }

    /// `POST /tasks`: one more task.
    ///
    /// # Errors
    /// It is not answered with 201.
    pub async fn create(&self, task: &Task) -> Result<Task> {
        let body = serde_json::to_vec(task)?;
        let reply = self.send("POST", "/tasks", &body).await?;
        let reply = reply.expect(StatusCode::CREATED);
        reply
            .with_context(|| format!("create {}", task.name))?
            .task()
    }

    /// `GET /tasks/NAME`; `None` if there is no such task.
    ///
    /// # Errors
    /// It is answered with something else.
    pub async fn get(&self, name: &str) -> Result<Option<Task>> {
        let reply = self.send("GET", &format!("/tasks/{name}"), b"").await?;
        if reply.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(
            reply
                .expect(StatusCode::OK)
                .with_context(|| format!("get {name}"))?
                .task()?,
        ))
    }

    /// `DELETE /tasks/NAME`, which does not wait.
    ///
    /// # Errors
    /// It is not answered with 204.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let reply = self.send("DELETE", &format!("/tasks/{name}"), b"").await?;
        reply
            .expect(StatusCode::NO_CONTENT)
            .with_context(|| format!("delete {name}"))?;
        Ok(())
    }

    /// Deletes a task and waits until the executor knows nothing of it: no process of it is left.
    ///
    /// # Errors
    /// It stays.
    pub async fn delete_and_wait(&self, name: &str, bound: Duration) -> Result<()> {
        self.delete(name).await?;
        wait::until(&format!("the end of task {name}"), bound, async || {
            Ok(match self.get(name).await? {
                Some(task) => Probe::not_yet(format!("{:?}", task.state())),
                None => Probe::Done(()),
            })
        })
        .await
    }

    /// Waits until a task is as it should be.
    ///
    /// # Errors
    /// It is not in time, or it is gone.
    pub async fn wait_for(
        &self,
        name: &str,
        bound: Duration,
        reached: impl Fn(&Task) -> bool,
    ) -> Result<Task> {
        wait::until(&format!("task {name}"), bound, async || {
            let Some(task) = self.get(name).await? else {
                bail!("task {name} is gone");
            };
            Ok(if reached(&task) {
                Probe::Done(task)
            } else {
                Probe::not_yet(format!("{:?} {:?}", task.process_status, task.outcome))
            })
        })
        .await
    }

    /// Waits until a task runs.
    ///
    /// # Errors
    /// It is not in time; it has ended; or it is gone.
    pub async fn wait_running(&self, name: &str, bound: Duration) -> Result<Task> {
        let reached = |task: &Task| task.state() != State::Waiting;
        let task = self.wait_for(name, bound, reached).await?;
        ensure!(
            task.state() == State::Running,
            "task {name} has ended: {:?}",
            task.outcome
        );
        Ok(task)
    }

    /// Waits until a task has ended.
    ///
    /// # Errors
    /// It has not in time, or it is gone.
    pub async fn wait_ended(&self, name: &str, bound: Duration) -> Result<Task> {
        self.wait_for(name, bound, |task| task.state().is_terminal())
            .await
    }

    /// What a task has printed so far.
    ///
    /// # Errors
    /// It is not answered with 200.
    pub async fn output(&self, name: &str, stream: Stream) -> Result<Vec<u8>> {
        let target = format!("/tasks/{name}/logs?stream={stream}");
        let reply = self.send("GET", &target, b"").await?;
        let reply = reply
            .expect(StatusCode::OK)
            .with_context(|| format!("logs of {name}"))?;
        Ok(reply.body.to_vec())
    }

    /// [`Self::output`] on standard output, as text.
    ///
    /// # Errors
    /// Likewise.
    pub async fn stdout(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.output(name, Stream::Stdout).await?).into_owned())
    }

    /// Events after this cursor; all tasks first if there is none.
    ///
    /// # Errors
    /// It is not answered with 200.
    pub async fn watch(&self, cursor: Option<&str>) -> Result<Watch> {
        let cursor = cursor
            .map(|cursor| format!("&cursor={cursor}"))
            .unwrap_or_default();
        let response = self.stream(&format!("/tasks?watch=true{cursor}")).await?;
        ensure!(
            response.status() == StatusCode::OK,
            "watch: {}",
            response.status()
        );
        Ok(Watch::new(response.into_body()))
    }

    /// `GET /readyz`: whether tasks can run, and what it says. Nobody has to sign for it.
    ///
    /// # Errors
    /// No answer came.
    pub async fn readiness(&self) -> Result<Reply> {
        self.send_with("GET", "/readyz?verbose", b"", None).await
    }

    /// Waits until tasks can run. An executor that does not listen yet is waited for too.
    ///
    /// # Errors
    /// They cannot in time; the error says why.
    pub async fn wait_ready(&self, bound: Duration) -> Result<()> {
        wait::until("the executor to be ready", bound, async || {
            Ok(match self.readiness().await {
                Ok(reply) if reply.status == StatusCode::OK => Probe::Done(()),
                Ok(reply) => Probe::not_yet(reply.text()),
                Err(error) => Probe::not_yet(format!("{error:#}")),
            })
        })
        .await
    }

    /// The value of a metric without labels, or the sum over all labels.
    ///
    /// # Errors
    /// It is not answered with 200, or a number is none.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let reply = self.send_with("GET", "/metrics", b"", None).await?;
        let text = reply.expect(StatusCode::OK).context("metrics")?.text();
        let mut sum = 0.0;
        for line in text.lines() {
            let rest = line.strip_prefix(name).unwrap_or_default();
            if rest.starts_with(['{', ' ']) {
                let value = rest.rsplit(' ').next().unwrap_or_default();
                sum += value.parse::<f64>().with_context(|| line.to_owned())?;
            }
        }
        Ok(sum)
    }
}
