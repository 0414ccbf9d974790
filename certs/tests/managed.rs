//! The self-managed mode without an API server: it waits, says why, and ends when told to. What it
//! does with one is tested with a real one, elsewhere.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use opensandbox_certs::managed::{self, Error, Settings};
use opensandbox_certs::probe::Endpoint;
use opensandbox_certs::publish::Target;
use opensandbox_certs::view::Timing;
use opensandbox_certs::{ServingCertificate, Status, Trigger};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

fn settings(names: &[&str]) -> Settings {
    Settings {
        namespace: "system".to_owned(),
        secret: "webhook-ca".to_owned(),
        labels: BTreeMap::new(),
        annotation_prefix: "certs.example".to_owned(),
        authority_name: "webhook".to_owned(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        configurations: vec![
            Target::Mutating("webhook".to_owned()),
            Target::Validating("webhook".to_owned()),
        ],
        field_manager: "webhook-certs".to_owned(),
        endpoint: Endpoint {
            address: SocketAddr::from(([127, 0, 0, 1], 9)),
            server_name: "webhook.system.svc".to_owned(),
            path: "/healthz".to_owned(),
        },
        timing: Timing {
            api_timeout: Duration::from_millis(100),
            ..Timing::default()
        },
        trigger: Trigger::default(),
    }
}

/// A client for a server that accepts connections and never answers.
async fn silent() -> (TcpListener, kube::Client) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(any).await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let uri = format!("http://{address}").parse().expect("a URI");
    let client = kube::Client::try_from(kube::Config::new(uri)).expect("a client");
    (listener, client)
}

#[tokio::test]
async fn silent_api_server_is_waited_for_and_named_in_the_status() {
    let (_listener, client) = silent().await;
    let serving = ServingCertificate::new();
    let (sender, mut status) = watch::channel(Status::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let settings = settings(&["webhook.system.svc"]);
    let running = tokio::spawn(managed::run(
        client,
        settings,
        serving.clone(),
        sender,
        shutdown,
    ));
    let told = status.wait_for(|status| {
        status.reason.contains("Secret system/webhook-ca")
            && status
                .reason
                .contains("ValidatingWebhookConfiguration webhook")
    });
    let told = tokio::time::timeout(Duration::from_mins(1), told).await;
    assert!(told.is_ok_and(|told| told.is_ok_and(|status| !status.ready())));
    assert_eq!(serving.serves(), None);
    drop(stop);
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn names_that_no_certificate_can_hold_are_refused_at_the_start() {
    let run = async |names: &[&str]| {
        let (_listener, client) = silent().await;
        let (sender, _status) = watch::channel(Status::default());
        let serving = ServingCertificate::new();
        managed::run(client, settings(names), serving, sender, async {}).await
    };
    assert!(matches!(run(&[]).await, Err(Error::NoName)));
    let refused = run(&["webhook.system.svc", "not a name"]).await;
    assert!(matches!(refused, Err(Error::Name(name)) if name == "not a name"));
}
