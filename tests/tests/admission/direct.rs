//! A client of the webhook's port that does what no API server does.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::Api;
use opensandbox_tests::installation::NAME;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::site::{BOUND, Site};

/// Connects as the API server does, trusting what is published.
pub(crate) async fn connect(site: &Site) -> Result<TlsStream<TcpStream>> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(site.cluster.client().await?);
    let configuration = configurations.get(NAME).await?;
    let webhook = configuration
        .webhooks
        .into_iter()
        .flatten()
        .next()
        .context("it has webhooks")?;
    let bundle = webhook
        .client_config
        .ca_bundle
        .context("the bundle is published")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bundle.0) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let port = site.webhook.replicas()[0].https;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(connector
        .connect(ServerName::try_from("127.0.0.1")?, stream)
        .await?)
}

/// One connection that is kept.
pub(crate) async fn sender(site: &Site) -> Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connect(site).await?)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Status and body of one exchange.
pub(crate) async fn post(
    sender: &mut SendRequest<Full<Bytes>>,
    path: &str,
    content_type: &str,
    body: Vec<u8>,
) -> Result<(u16, String)> {
    let request = http::Request::post(path)
        .header("host", "127.0.0.1")
        .header("content-type", content_type)
        .body(Full::new(Bytes::from(body)))?;
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Sends `text` as it is and reads until the webhook closes: what it answered, if anything.
pub(crate) async fn raw(site: &Site, text: &[u8], then_close: bool) -> Result<String> {
    let mut stream = connect(site).await?;
    // It may be closed before all is sent. How it ends is not asked; that it ends is.
    stream.write_all(text).await.ok();
    if then_close {
        stream.shutdown().await.ok();
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut answer));
    read.await
        .context("the connection stays open for ever")?
        .ok();
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Status of what [`raw`] read, if it was an answer.
pub(crate) fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}
