//! Proves that calls can succeed: a handshake and one request to the process's own listener,
//! trusting the published bundle and nothing else, as the API server does.
//!
//! In: a goal and every change of it; out: the `proved` of the status. Needs a network, no
//! Kubernetes client. It does not know where bundle and certificate come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use crate::bundle::Fingerprint;
use crate::complaints::{Complaints, chain};
use crate::status::{Board, Writer};

/// One attempt may take this long; a handshake takes milliseconds.
const ATTEMPT: Duration = Duration::from_secs(5);
/// First and longest pause between attempts that fail.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// What was proved stays proved until this many attempts in a row failed, so that one slow moment
/// does not take the replica out of service. With the pauses above this is below a second.
const FAILURES: u32 = 4;

/// Where and how to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The process's own listener. An unspecified address (`0.0.0.0`) means loopback.
    pub address: SocketAddr,
    /// What the certificate has to be valid for: a DNS name or an address.
    pub server_name: String,
    /// The path to ask for; any HTTP answer will do.
    pub path: String,
}

/// What is to be proved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Not yet known; the reason is told by whoever knows it.
    #[default]
    Unknown,
    /// There is nothing to verify with, for this reason.
    Impossible(&'static str),
    /// The certificate served is verified by each of these bundles.
    Prove {
        leaf: Option<Fingerprint>,
        bundles: Vec<Vec<CertificateDer<'static>>>,
    },
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server name is neither a DNS name nor an address.
    #[error("{0:?} is not a name of a server")]
    Name(String),
    /// The listener does not accept.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The certificate does not verify, or the peer does not speak TLS.
    #[error("the handshake with {address} failed")]
    Handshake {
        /// With whom.
        address: SocketAddr,
        /// The TLS library's reason.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the request was not answered")]
    Request(#[source] std::io::Error),
    /// The answer does not begin with an HTTP status line.
    #[error("the answer is not HTTP")]
    Answer,
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// One call that trusts `bundle` only.
pub async fn call(endpoint: &Endpoint, bundle: &[CertificateDer<'static>]) -> Result<(), Error> {
    tokio::time::timeout(ATTEMPT, attempt(endpoint, bundle))
        .await
        .map_err(|_| Error::Timeout(ATTEMPT))?
}

async fn attempt(endpoint: &Endpoint, bundle: &[CertificateDer<'static>]) -> Result<(), Error> {
    let name = endpoint.server_name.as_str();
    let server = ServerName::try_from(name.to_owned()).map_err(|_| Error::Name(name.to_owned()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(bundle.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("ring supports TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // The API server's client for webhooks asks for this and nothing else.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];

    let address = reachable(endpoint.address);
    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| Error::Connect { address, source })?;
    stream
        .set_nodelay(true)
        .map_err(|source| Error::Connect { address, source })?;
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(server, stream)
        .await
        .map_err(|source| Error::Handshake { address, source })?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: certificate-probe\r\nConnection: close\r\n\r\n",
        endpoint.path
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(Error::Request)?;
    let mut start = [0; 7];
    stream
        .read_exact(&mut start)
        .await
        .map_err(Error::Request)?;
    if start == *b"HTTP/1." {
        Ok(())
    } else {
        Err(Error::Answer)
    }
}

fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Proves every goal, again after each change and every `again`. Ends when the sender is gone.
pub(crate) async fn keep_proving(
    endpoint: &Endpoint,
    again: Duration,
    mut goals: watch::Receiver<Goal>,
    board: &Board,
) {
    let mut complaints = Complaints::default();
    let mut failures = 0;
    loop {
        let goal = goals.borrow_and_update().clone();
        let pause = match goal {
            Goal::Unknown => again,
            Goal::Impossible(reason) => {
                board.write(Writer::Probe, reason.to_owned(), |status| {
                    status.proved = true;
                });
                again
            }
            Goal::Prove { bundles, .. } => match all(endpoint, &bundles).await {
                Ok(()) => {
                    failures = 0;
                    complaints.clear("own listener");
                    board.write(Writer::Probe, String::new(), |status| status.proved = true);
                    again
                }
                Err(error) => {
                    failures += 1;
                    let text = chain(&error);
                    complaints.raise("own listener", text.clone());
                    board.write(Writer::Probe, text, |status| {
                        status.proved &= failures < FAILURES;
                    });
                    PAUSE
                        .1
                        .min(PAUSE.0 * 2_u32.saturating_pow(failures.min(10)))
                }
            },
        };
        tokio::select! {
            changed = goals.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn all(endpoint: &Endpoint, bundles: &[Vec<CertificateDer<'static>>]) -> Result<(), Error> {
    for bundle in bundles {
        call(endpoint, bundle).await?;
    }
    Ok(())
}
