//! A running server, and clients that can misbehave.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opensandbox_webhook::metrics::Metrics;
use opensandbox_webhook::server::{Drained, Limits, Readiness, Reply, Routes, Server, TlsSource};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

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

/// A server on ports of its own.
///
/// - `/echo` answers with the body it got.
/// - `/panic` panics.
/// - `/gate` waits for a permit of `gate`, counts itself in `inside` meanwhile.
pub(crate) struct Running {
    pub(crate) https: SocketAddr,
    pub(crate) probes: SocketAddr,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gate: Arc<Semaphore>,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<Drained>,
    roots: RootCertStore,
}

impl Running {
    pub(crate) async fn start(limits: Limits) -> Self {
        let (config, roots) = certificate();
        let https = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probes = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (https_address, probe_address) =
            (https.local_addr().unwrap(), probes.local_addr().unwrap());
        let gate = Arc::new(Semaphore::new(0));
        let readiness = Readiness::default();
        let metrics = Arc::new(Metrics::default());
        let (stop, stopped) = oneshot::channel();
        let server = Server {
            limits,
            tls: TlsSource::new(&config),
            routes: routes(&gate),
            readiness: readiness.clone(),
            metrics: Arc::clone(&metrics),
        };
        let done = tokio::spawn(server.serve(https, probes, async {
            // A dropped sender is a test that ends without draining.
            if stopped.await.is_err() {
                pending::<()>().await;
            }
        }));
        until(|| readiness.report().1.contains("[+]serving ok")).await;
        Self {
            https: https_address,
            probes: probe_address,
            readiness,
            metrics,
            gate,
            stop: Some(stop),
            done,
            roots,
        }
    }

    /// Sends the shutdown signal.
    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub(crate) async fn drained(&mut self) -> Drained {
        bounded(&mut self.done).await.unwrap()
    }

    pub(crate) fn has_metric(&self, line: &str) -> bool {
        let text = self.metrics.encode().unwrap();
        text.lines()
            .any(|have| have == format!("opensandbox_webhook_{line}"))
    }

    /// A TLS connection that has negotiated `protocol`.
    pub(crate) async fn tls(&self, protocol: &str) -> TlsStream<TcpStream> {
        let socket = bounded(TcpStream::connect(self.https)).await.unwrap();
        // As Go's clients do; otherwise a body sent after its head waits 40 ms.
        socket.set_nodelay(true).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = bounded(connector.connect(name, socket)).await.unwrap();
        let negotiated = stream.get_ref().1.alpn_protocol();
        assert_eq!(negotiated, Some(protocol.as_bytes()));
        stream
    }

    pub(crate) async fn h1(&self) -> H1<TlsStream<TcpStream>> {
        H1(BufStream::new(self.tls("http/1.1").await))
    }

    /// An HTTP/2 client, and the task of its connection, which ends with the connection.
    pub(crate) async fn h2(
        &self,
    ) -> (
        SendRequest<Full<Bytes>>,
        JoinHandle<Result<(), hyper::Error>>,
    ) {
        let stream = TokioIo::new(self.tls("h2").await);
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                .await
                .unwrap();
        (client, tokio::spawn(connection))
    }

    /// A request of the plain port: its status and body.
    pub(crate) async fn probe(&self, path: &str) -> (u16, String) {
        let socket = bounded(TcpStream::connect(self.probes)).await.unwrap();
        let mut client = H1(BufStream::new(socket));
        client
            .send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .await;
        let answer = client.answer().await.unwrap();
        (answer.status, String::from_utf8(answer.body).unwrap())
    }
}

fn routes(gate: &Arc<Semaphore>) -> Routes {
    let gate = Arc::clone(gate);
    Routes::default()
        .route("/echo", |body: Bytes| async { Reply::ok(body, "allow") })
        .route("/panic", panicking)
        .route("/gate", move |_: Bytes| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Reply::ok("{}", "allow")
            }
        })
}

#[expect(clippy::panic, reason = "what the server has to survive")]
async fn panicking(_: Bytes) -> Reply {
    panic!("a handler's panic, wanted by a test")
}

fn certificate() -> (Arc<ServerConfig>, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (Arc::new(config), roots)
}

/// An HTTP/1.1 client of which every byte can be chosen.
pub(crate) struct H1<S>(pub(crate) BufStream<S>);

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The lines of the head, in lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line == header)
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> H1<S> {
    pub(crate) async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await.unwrap();
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        bounded(async {
            self.0.write_all(bytes).await?;
            self.0.flush().await
        })
        .await
    }

    /// The next answer, or `None` when the connection has ended.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
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
            let head = head.to_lowercase().replace("\r\n", "\n");
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.ok()?;
            Some(Answer { status, head, body })
        })
        .await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &[u8]) -> Option<Answer> {
        let head = post_head(path, &format!("content-length: {}", body.len()));
        self.send_bytes(head.as_bytes()).await.ok()?;
        self.send_bytes(body).await.ok()?;
        self.answer().await
    }

    /// Waits until the server closes the connection.
    pub(crate) async fn closed(&mut self) {
        let mut byte = [0];
        let read = bounded(self.0.read(&mut byte)).await;
        assert_eq!(read.unwrap_or(0), 0, "the server sent something instead");
    }
}

/// The head of a POST of JSON, with one more header.
pub(crate) fn post_head(path: &str, header: &str) -> String {
    format!(
        "POST {path}?timeout=5s HTTP/1.1\r\nhost: x\r\n\
         content-type: application/json\r\n{header}\r\n\r\n"
    )
}
