//! Who calls: a client that does what the API server's does.
//!
//! It trusts the published `caBundle` and nothing else, keeps no TLS sessions, and sets TCP_NODELAY. Its
//! connections belong to the bundle they were opened under: a new bundle means new connections, which
//! the next calls open and whose handshakes these calls pay for. Beyond that, a new serving certificate
//! means new connections too. The API server would not notice, but the point of a rotation is that the
//! new certificate is shown to somebody.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::runtime::watcher;
use opensandbox_tests::LocalCluster;
use opensandbox_tests::installation::{Installation, NAME};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::reviews::Review;

/// What the configurations allow a call: `timeoutSeconds: 5`.
const BOUND: Duration = Duration::from_secs(5);
/// How often the webhook is asked what it serves.
const LOOK: Duration = Duration::from_millis(250);
const LEAF_EXPIRY: &str =
    "opensandbox_webhook_certificate_expiry_timestamp_seconds{kind=\"leaf\"} ";

/// What a connection is opened under.
#[derive(Clone)]
pub(crate) struct Published {
    /// Grows with every change.
    generation: u64,
    bundle: Vec<u8>,
    /// Certificates in the bundle.
    pub(crate) authorities: usize,
    /// Tells one serving certificate from the next.
    pub(crate) leaf_expiry: String,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Published {
    fn new(generation: u64, bundle: Vec<u8>, leaf_expiry: String) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&bundle) {
            roots.add(authority.context("the published bundle is not PEM")?)?;
        }
        let config = |protocol: &[u8]| -> Result<_> {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            config.resumption = Resumption::disabled();
            Ok(Arc::new(config))
        };
        Ok(Self {
            generation,
            http1: config(b"http/1.1")?,
            http2: config(b"h2")?,
            authorities: roots.len(),
            bundle,
            leaf_expiry,
        })
    }
}

/// Where the calls go.
pub(crate) struct Endpoint {
    port: u16,
    published: watch::Receiver<Published>,
    seen: Mutex<Seen>,
    _following: JoinSet<()>,
}

/// What the connections so far were shown.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) handshakes: usize,
    pub(crate) certificates: BTreeSet<Vec<u8>>,
}

impl Endpoint {
    /// The first replica of an installation, and the bundle that is published for it.
    ///
    /// # Errors
    /// Nothing is published.
    pub(crate) async fn of(cluster: &LocalCluster, installation: &Installation) -> Result<Self> {
        let replica = &installation.replicas()[0];
        let mut bundles = Box::pin(bundles(cluster.client().await?));
        let bundle = bundles.try_next().await?.context("the watch ended")?;
        let leaf_expiry = leaf_expiry(replica.probes).await?;
        let (sender, published) = watch::channel(Published::new(0, bundle, leaf_expiry)?);
        let mut following = JoinSet::new();
        following.spawn(follow(bundles, replica.probes, sender));
        let seen = Mutex::default();
        Ok(Self {
            port: replica.https,
            published,
            seen,
            _following: following,
        })
    }

    /// What is published now.
    pub(crate) fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    /// What connections were shown since this was asked last.
    pub(crate) fn take_seen(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn connect(&self, config: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .context("connect")?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1])));
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(name, stream).await.context("handshake")?;
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.handshakes += 1;
        seen.certificates
            .extend(shown.map(|certificate| certificate.to_vec()));
        drop(seen);
        Ok(stream)
    }

    async fn open(&self) -> Result<Open> {
        let published = self.published.borrow().clone();
        let stream = self.connect(&published.http1).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends when the sender is dropped.
        tokio::spawn(connection);
        Ok(Open {
            sender,
            generation: published.generation,
        })
    }

    /// One HTTP/2 connection, as `count` lanes.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) async fn streams(&self, count: usize) -> Result<Vec<Lane>> {
        let published = self.published.borrow().clone();
        let stream = TokioIo::new(self.connect(&published.http2).await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        let lane = || Lane::Stream {
            sender: sender.clone(),
            port: self.port,
        };
        Ok((0..count).map(|_| lane()).collect())
    }
}

/// The bundle of the mutating configuration, and each that follows it.
fn bundles(client: kube::Client) -> impl Stream<Item = Result<Vec<u8>>> + Send {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    watcher::watch_object(configurations, NAME).map(|configuration| {
        let configuration = configuration?.context("the configuration is gone")?;
        let webhooks = configuration.webhooks.unwrap_or_default();
        let webhook = webhooks
            .into_iter()
            .next()
            .context("a configuration has a webhook")?;
        Ok(webhook
            .client_config
            .ca_bundle
            .context("no bundle is published")?
            .0)
    })
}

/// When the certificate that is served ends, as the webhook's metrics say.
async fn leaf_expiry(probes: u16) -> Result<String> {
    let url = format!("http://127.0.0.1:{probes}/metrics");
    let (_, metrics) = opensandbox_tests::http::get(&url, None).await?;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(LEAF_EXPIRY));
    Ok(value.context("the webhook says what it serves")?.to_owned())
}

/// Passes on what changes, until somebody drops this. What cannot be read is read again: the calls
/// fail if it matters.
async fn follow(
    mut bundles: impl Stream<Item = Result<Vec<u8>>> + Send + Unpin,
    probes: u16,
    sender: watch::Sender<Published>,
) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        let Published {
            generation,
            bundle,
            leaf_expiry: expiry,
            ..
        } = sender.borrow().clone();
        let (bundle_now, expiry_now) = tokio::select! {
            Some(Ok(changed)) = bundles.next() => (changed, expiry.clone()),
            _ = look.tick() => match leaf_expiry(probes).await {
                Ok(changed) => (bundle.clone(), changed),
                Err(_) => continue,
            },
        };
        if (&bundle_now, &expiry_now) != (&bundle, &expiry)
            && let Ok(published) = Published::new(generation + 1, bundle_now, expiry_now)
        {
            sender.send_replace(published);
        }
    }
}

/// A connection of HTTP/1.1.
pub(crate) struct Open {
    sender: http1::SendRequest<Full<Bytes>>,
    generation: u64,
}

/// One call at a time.
pub(crate) enum Lane {
    /// On a connection that is kept.
    Kept {
        endpoint: Arc<Endpoint>,
        open: Option<Open>,
    },
    /// Each on a connection of its own.
    Fresh { endpoint: Arc<Endpoint> },
    /// On a connection that all streams share.
    Stream {
        sender: http2::SendRequest<Full<Bytes>>,
        port: u16,
    },
}

impl Lane {
    /// Kept connections, none of them open yet.
    pub(crate) fn kept(endpoint: &Arc<Endpoint>, count: usize) -> Vec<Self> {
        let lane = || Self::Kept {
            endpoint: Arc::clone(endpoint),
            open: None,
        };
        (0..count).map(|_| lane()).collect()
    }

    /// New connections, at most `count` at a time.
    pub(crate) fn fresh(endpoint: &Arc<Endpoint>, count: usize) -> Vec<Self> {
        (0..count)
            .map(|_| Self::Fresh {
                endpoint: Arc::clone(endpoint),
            })
            .collect()
    }

    /// Sends a review and checks the answer. Never tried twice.
    ///
    /// # Errors
    /// Whatever the API server would call a failed call.
    pub(crate) async fn call(&mut self, review: &Review) -> Result<()> {
        let call = async {
            match self {
                Self::Kept { endpoint, open } => kept(endpoint, open, review).await,
                Self::Fresh { endpoint } => {
                    let mut open = endpoint.open().await?;
                    let request = http1_request(endpoint.port, review)?;
                    answered(open.sender.send_request(request).await?, review)
                        .await
                        .map(drop)
                }
                Self::Stream { sender, port } => {
                    let uri = format!("https://127.0.0.1:{port}{}", review.path);
                    let request = Request::post(uri)
                        .header(header::CONTENT_TYPE, "application/json")
                        .body(review.request())?;
                    answered(sender.send_request(request).await?, review)
                        .await
                        .map(drop)
                }
            }
        };
        tokio::time::timeout(BOUND, call)
            .await
            .context("no answer in time")?
    }
}

async fn kept(endpoint: &Endpoint, open: &mut Option<Open>, review: &Review) -> Result<()> {
    let generation = endpoint.published.borrow().generation;
    // Taken out, so that a connection on which something failed is not used again.
    let mut usable = open.take().filter(|open| open.generation == generation);
    if let Some(open) = &mut usable
        && open.sender.ready().await.is_err()
    {
        usable = None;
    }
    let mut connection = match usable {
        Some(open) => open,
        None => endpoint.open().await?,
    };
    let request = http1_request(endpoint.port, review)?;
    let stays = answered(connection.sender.send_request(request).await?, review).await?;
    *open = stays.then_some(connection);
    Ok(())
}

fn http1_request(port: u16, review: &Review) -> Result<Request<Full<Bytes>>> {
    Ok(Request::post(review.path)
        .header(header::HOST, format!("127.0.0.1:{port}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .body(review.request())?)
}

/// Reads and checks an answer; whether the connection may be used again.
async fn answered(response: http::Response<Incoming>, review: &Review) -> Result<bool> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("read the answer")?.to_bytes();
    ensure!(head.status == StatusCode::OK, "{}", head.status);
    review.check(&body)?;
    Ok(head
        .headers
        .get(header::CONNECTION)
        .is_none_or(|value| value != "close"))
}
