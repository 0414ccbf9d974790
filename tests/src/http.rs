//! One GET, for health endpoints. Goes in: a URL and, for https, whom to trust and who to be. Comes
//! out: status and body. One connection per call, so a program that restarts is never asked through
//! a connection to its predecessor.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A health endpoint answers at once or is not healthy.
const BOUND: Duration = Duration::from_secs(5);

/// Whom an https client trusts, and the certificate it shows, if any.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts the certificates in `authorities` (PEM); shows `identity` (certificate and key, PEM).
    ///
    /// # Errors
    /// A PEM that does not parse, or a key that does not fit its certificate.
    pub fn new(authorities: &str, identity: Option<(&str, &str)>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            roots.add(authority.context("authority is not PEM")?)?;
        }
        ensure!(!roots.is_empty(), "no certificate among the authorities");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match identity {
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
                    .collect::<Result<Vec<_>, _>>()?;
                config
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
            None => config.with_no_client_auth(),
        };
        Ok(Self(Arc::new(config)))
    }
}

/// GETs `url`; `tls` is needed for https. Bounded by 5 s in all.
///
/// # Errors
/// Whatever kept an answer from coming. An answer of any status is not an error.
pub async fn get(url: &str, tls: Option<&Tls>) -> Result<(StatusCode, String)> {
    tokio::time::timeout(BOUND, exchange(url, tls))
        .await
        .with_context(|| format!("no answer from {url} within {} s", BOUND.as_secs()))?
        .with_context(|| format!("GET {url}"))
}

async fn exchange(url: &str, tls: Option<&Tls>) -> Result<(StatusCode, String)> {
    let uri: Uri = url.parse()?;
    let host = uri.host().context("URL has no host")?;
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await?;
    if !secure {
        return send(&uri, stream).await;
    }
    let Some(Tls(config)) = tls else {
        bail!("https needs to know whom to trust");
    };
    let name = ServerName::try_from(host.to_owned())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    send(&uri, connector.connect(name, stream).await?).await
}

async fn send<S>(uri: &Uri, stream: S) -> Result<(StatusCode, String)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let host = uri.authority().context("URL has no authority")?.as_str();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
