//! Real TLS handshakes: before there is a certificate, across replacements, and on connections that
//! were made before one.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod support;

use std::sync::Arc;

use opensandbox_certs::ServingCertificate;
use opensandbox_certs::probe::{self, Endpoint, call};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use support::{LIFE, NAME, authority, listen, names, now};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn connect(
    endpoint: &Endpoint,
    trusted: &CertificateDer<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("ring supports it")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(endpoint.address).await.expect("listens");
    let name = ServerName::try_from(NAME).expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.expect("a handshake")
}

#[tokio::test]
async fn no_call_fails_while_certificates_are_replaced() {
    let (a, b) = (authority("a"), authority("b"));
    let serving = ServingCertificate::new();
    let listener = listen(&serving).await;
    let bundle = [a.certificate().clone(), b.certificate().clone()];
    // Nothing to serve: the handshake fails, the listener stays.
    let refused = call(&listener.endpoint, &bundle).await;
    assert!(
        matches!(refused, Err(probe::Error::Handshake { .. })),
        "{refused:?}"
    );

    serving.replace(a.sign(&names(), now(), LIFE).unwrap().key);
    let swaps = async {
        for round in 0..100 {
            let authority = if round % 2 == 0 { &b } else { &a };
            serving.replace(authority.sign(&names(), now(), LIFE).unwrap().key);
            tokio::task::yield_now().await;
        }
    };
    let calls = async {
        for _ in 0..100 {
            call(&listener.endpoint, &bundle)
                .await
                .expect("every call succeeds");
        }
    };
    tokio::join!(swaps, calls);

    // The last one came from `a`; who trusts only `b` is refused, who trusts only `a` is not.
    let refused = call(&listener.endpoint, &bundle[1..]).await;
    assert!(
        matches!(refused, Err(probe::Error::Handshake { .. })),
        "{refused:?}"
    );
    call(&listener.endpoint, &bundle[..1]).await.unwrap();
}

#[tokio::test]
async fn open_connection_outlives_a_replacement_in_both_versions() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (a, b) = (authority("a"), authority("b"));
        let serving = ServingCertificate::new();
        let listener = listen(&serving).await;
        serving.replace(a.sign(&names(), now(), LIFE).unwrap().key);
        let mut old = connect(&listener.endpoint, a.certificate(), &[version]).await;
        serving.replace(b.sign(&names(), now(), LIFE).unwrap().key);
        let mut new = connect(&listener.endpoint, b.certificate(), &[version]).await;
        for stream in [&mut old, &mut new] {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).await.unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
        }
    }
}

#[tokio::test]
async fn address_and_every_dns_name_verify_and_others_do_not() {
    let authority = authority("a");
    let serving = ServingCertificate::new();
    let listener = listen(&serving).await;
    serving.replace(authority.sign(&names(), now(), LIFE).unwrap().key);
    let bundle = [authority.certificate().clone()];
    let mut endpoint = listener.endpoint.clone();
    for name in names() {
        endpoint.server_name = name;
        call(&endpoint, &bundle).await.unwrap();
    }
    endpoint.server_name = "other.system.svc".to_owned();
    let refused = call(&endpoint, &bundle).await;
    assert!(
        matches!(refused, Err(probe::Error::Handshake { .. })),
        "{refused:?}"
    );
}
