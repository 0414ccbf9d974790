//! What a client of the webhook's port sees: the certificate served, and whether an authority verifies
//! it. Goes in: a port and the authorities to trust, nothing else. Comes out: the leaf.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A certificate, DER.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Certificate(Vec<u8>);

/// The certificates in a PEM text.
pub(crate) fn certificates(pem: &[u8]) -> Result<BTreeSet<Certificate>> {
    let all = CertificateDer::pem_slice_iter(pem).map(|one| Ok(Certificate(one?.to_vec())));
    all.collect::<Result<_>>().context("certificates in PEM")
}

/// Makes a new connection that trusts only `authorities`, as the API server does, and tells what was
/// served.
pub(crate) async fn served<'a>(
    port: u16,
    authorities: impl IntoIterator<Item = &'a Certificate>,
) -> Result<Certificate> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(CertificateDer::from(authority.0.as_slice()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let chain = stream
        .get_ref()
        .1
        .peer_certificates()
        .context("a server shows a certificate")?;
    Ok(Certificate(
        chain.first().context("a chain has a leaf")?.to_vec(),
    ))
}
