//! The certificate a TLS listener serves, replaceable at any moment.
//!
//! In: a certificate with its key; out: a `rustls` server configuration that is made once and
//! serves whatever was put in last. Needs no client and does not know where certificates come from.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::bundle::Fingerprint;

/// What a listener serves now. Clones share it.
#[derive(Clone, Default)]
pub struct ServingCertificate {
    slot: Arc<ArcSwapOption<CertifiedKey>>,
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCertificate")
            .field("serves", &self.serves())
            .finish()
    }
}

impl ServingCertificate {
    /// Nothing to serve yet: handshakes fail until [`replace`](Self::replace).
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves this from the next handshake on. Connections that exist keep what they have.
    pub fn replace(&self, key: Arc<CertifiedKey>) {
        self.slot.store(Some(key));
    }

    /// The certificate served now.
    pub fn serves(&self) -> Option<Fingerprint> {
        let key = self.slot.load();
        key.as_ref()
            .and_then(|key| key.cert.first())
            .map(Fingerprint::of)
    }

    /// A configuration for the listener: TLS 1.2 and 1.3, ring, no client certificates, the given
    /// application protocols in order of preference. It stays right through every replacement.
    ///
    /// Sessions are not resumed: the API server does not try to, tickets would cost each handshake
    /// two more messages, and a resumed session would not show the new certificate.
    pub fn rustls_config(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("ring supports TLS 1.2 and 1.3");
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.slot.load_full()
    }
}
