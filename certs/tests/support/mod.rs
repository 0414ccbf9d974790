//! A real TLS listener and certificates for it.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use opensandbox_certs::ServingCertificate;
use opensandbox_certs::authority::{Authority, Lifetime};
use opensandbox_certs::probe::Endpoint;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub(crate) const NAME: &str = "webhook.system.svc";

pub(crate) const LIFE: Lifetime = Lifetime {
    valid: Duration::from_hours(1),
    skew: Duration::from_mins(5),
};

#[expect(
    clippy::disallowed_methods,
    reason = "the TLS client checks against the real clock"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

pub(crate) fn authority(name: &str) -> Authority {
    Authority::generate(name, now(), LIFE).expect("an authority")
}

pub(crate) fn names() -> Vec<String> {
    vec![NAME.to_owned(), "127.0.0.1".to_owned()]
}

/// A listener that answers each line of each connection with a status line. Ends when dropped.
pub(crate) struct Listener {
    pub(crate) endpoint: Endpoint,
    _tasks: JoinSet<()>,
}

pub(crate) async fn listen(serving: &ServingCertificate) -> Listener {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(any).await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let acceptor = TlsAcceptor::from(serving.rustls_config(&[b"http/1.1"]));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                // A handshake that fails is what some tests are about.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut bytes = [0; 1024];
                while let Ok(1..) = stream.read(&mut bytes).await {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Listener {
        endpoint: Endpoint {
            address,
            server_name: NAME.to_owned(),
            path: "/healthz".to_owned(),
        },
        _tasks: tasks,
    }
}
