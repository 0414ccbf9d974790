//! TLS of the webhook port: what is offered, and why handshakes fail.
//!
//! In: a rustls configuration whose resolver swaps certificates underneath. Out: an acceptor, and
//! a bounded reason for every handshake that came to nothing. Needs no client; knows nothing of
//! where certificates come from.

use std::io;
use std::sync::Arc;

use rustls::server::NoServerSessionStorage;
use rustls::{Error as TlsError, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// HTTP/2 as ALPN names it (RFC 7301 registry).
pub(super) const ALPN_H2: &[u8] = b"h2";
const ALPN_H1: &[u8] = b"http/1.1";

/// The TLS side of the webhook port.
#[derive(Debug, Clone)]
pub struct TlsSource {
    config: Arc<ServerConfig>,
}

impl TlsSource {
    /// Serves with `config`. Its certificate resolver is kept, so certificates that it swaps are
    /// used by the next handshake. Two things are set here, as they belong to the server and not
    /// to the certificates:
    ///
    /// - ALPN offers `h2` and `http/1.1`, in this order.
    /// - Sessions are not resumed: the API server's client keeps no session cache, so tickets
    ///   would cost two encryptions and two writes per connection and never be used.
    pub fn new(config: &Arc<ServerConfig>) -> Self {
        let mut config = ServerConfig::clone(config);
        config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_H1.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Self {
            config: Arc::new(config),
        }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

/// Why a handshake failed, as a value of the metric label `reason`.
pub(super) fn failure_reason(error: &io::Error) -> &'static str {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls {
        // The client refused us: an unknown authority shows up here, as "unknown_ca".
        Some(TlsError::AlertReceived(_)) => "refused_by_client",
        Some(TlsError::InvalidMessage(_) | TlsError::InappropriateMessage { .. }) => "not_tls",
        Some(TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol) => "incompatible",
        // Port scans and TCP health checks connect and leave.
        None if error.kind() == io::ErrorKind::UnexpectedEof
            || error.kind() == io::ErrorKind::ConnectionReset =>
        {
            "closed"
        }
        Some(_) | None => "other",
    }
}
