//! One HTTP/1.1 connection to an executor.
//!
//! What hyper reads is bounded here, what it takes is bounded by the caller's deadlines. A connection is
//! reset and not closed when it is dropped: what an executor has not read by then, it shall never read.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::credentials::Leave;
use super::fault::Fault;
use super::memory::Memory;

/// Bounds the head of an answer, and what is read at once: 32 MiB for all connections.
const BUFFER: usize = 16 * 1024;
const HEADERS: usize = 64;
/// Most bytes of an answer that says why not.
const ERROR_BODY: usize = 8 * 1024;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    host: HeaderValue,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects to an executor.
    pub(super) async fn open(ip: &str, port: u16, limit: Duration) -> Result<Self, Fault> {
        let Ok(ip) = ip.parse::<IpAddr>() else {
            return Err(Fault::Unreachable("its pod has no address".to_owned()));
        };
        let address = SocketAddr::new(ip, port);
        let stream = timeout(limit, TcpStream::connect(address))
            .await
            .map_err(|_| {
                let seconds = limit.as_secs_f64();
                Fault::Unreachable(format!("no connection within {seconds} s"))
            })?
            .map_err(|error| Fault::Unreachable(format!("no connection: {error}")))?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_zero_linger())
            .map_err(|error| Fault::Unreachable(format!("no connection: {error}")))?;
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER)
            .max_headers(HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let driver = tokio::spawn(async move {
            // Whoever waits for an answer is told of the error as well.
            let _ = connection.await;
        });
        let host = HeaderValue::from_str(&address.to_string())
            .map_err(|_| Fault::Unreachable("its pod has no address".to_owned()))?;
        Ok(Self {
            sender,
            driver,
            host,
        })
    }

    /// Sends a request; its answer, of which the body still comes. The caller bounds the time.
    pub(super) async fn ask(
        &mut self,
        method: &'static str,
        target: &str,
        body: Bytes,
        leave: &Leave,
    ) -> Result<Response<Incoming>, Fault> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &leave.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|_| {
            Fault::Refused("not sent: the name of the task fits no path".to_owned())
        })?;
        self.sender.ready().await.map_err(|error| broken(&error))?;
        self.sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))
    }
}

/// The whole body of an answer with 200; for any other, what it means.
pub(super) async fn read(
    response: Response<Incoming>,
    most: usize,
    memory: &Memory,
) -> Result<Bytes, Fault> {
    let body = accepted(response, memory).await?;
    collect(body, most, memory).await
}

/// The body of an answer with 200, which still comes; for any other, what it means.
pub(super) async fn accepted(
    response: Response<Incoming>,
    memory: &Memory,
) -> Result<Incoming, Fault> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response.into_body());
    }
    // An answer that ends too soon or never still has its status.
    let body = collect(response.into_body(), ERROR_BODY, memory).await;
    Err(Fault::of_answer(status, &body.unwrap_or_default()))
}

async fn collect(mut body: Incoming, most: usize, memory: &Memory) -> Result<Bytes, Fault> {
    let too_long = || Fault::Unreachable(format!("answers with more than {most} bytes"));
    if body.size_hint().lower() > most as u64 {
        return Err(too_long());
    }
    let mut share = memory.share();
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() else {
            continue;
        };
        let length = collected.len() + data.len();
        if length > most {
            return Err(too_long());
        }
        if !share.resize(length) {
            let why = "answers with more than there is memory for at the moment";
            return Err(Fault::Unreachable(why.to_owned()));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}

/// hyper's errors name neither header nor body of what was sent.
pub(super) fn broken(error: &hyper::Error) -> Fault {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Fault::Unreachable(format!(
        "the connection broke: {error}{}",
        cause.unwrap_or_default()
    ))
}
