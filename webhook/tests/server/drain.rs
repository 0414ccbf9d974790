//! Going away without losing a request.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use opensandbox_webhook::server::{Drained, Limits};
use tokio::net::TcpStream;

use crate::harness::{Running, bounded, post_head, until};

fn at_once() -> Limits {
    Limits {
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_mins(1),
        handler: Duration::from_mins(1),
        ..Limits::default()
    }
}

#[tokio::test]
async fn draining_server_is_not_ready_but_serves_new_connections() {
    let limits = Limits {
        drain_delay: Duration::from_hours(1),
        ..Limits::default()
    };
    let mut server = Running::start(limits).await;
    let mut kept = server.h1().await;
    assert_eq!(kept.post("/echo", b"{}").await.unwrap().status, 200);
    assert_eq!(server.probe("/readyz").await.0, 200);
    server.stop();
    until(|| !server.readiness.is_ready()).await;
    let (status, report) = server.probe("/readyz").await;
    assert_eq!(status, 503);
    assert!(report.contains("[-]serving failed: draining"), "{report}");
    assert_eq!(server.probe("/healthz").await.0, 200);
    let mut new = server.h1().await;
    for client in [&mut kept, &mut new] {
        let answer = client.post("/echo", b"{}").await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(!answer.has("connection: close"), "not yet");
    }
}

#[tokio::test]
async fn requests_in_flight_are_finished_and_nothing_new_is_taken() {
    let mut server = Running::start(at_once()).await;
    let mut idle = server.h1().await;
    assert_eq!(idle.post("/echo", b"{}").await.unwrap().status, 200);
    let fresh = server.h1().await;
    let mut busy = server.h1().await;
    busy.send(&post_head("/gate", "content-length: 0")).await;
    let mut half = server.h1().await;
    assert_eq!(half.post("/echo", b"{}").await.unwrap().status, 200);
    let head = post_head("/echo", "content-length: 2");
    half.send(&head[..40]).await;
    until(|| server.has_metric("admission_requests_in_flight 1")).await;

    server.stop();
    idle.closed().await;
    bounded(async {
        while TcpStream::connect(server.https).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!(server.probe("/readyz").await.0, 503, "the plain port stays");

    half.send(&head[40..]).await;
    half.send("{}").await;
    server.gate.add_permits(1);
    let mut fresh = fresh;
    for (name, answer) in [
        ("busy", busy.answer().await.unwrap()),
        ("half", half.answer().await.unwrap()),
        ("fresh", fresh.post("/echo", b"{}").await.unwrap()),
    ] {
        assert_eq!(answer.status, 200, "{name}");
        assert!(answer.has("connection: close"), "{name}");
    }
    assert_eq!(server.drained().await, Drained::Completely);
    assert!(server.has_metric("connections 0"));
    assert!(TcpStream::connect(server.probes).await.is_err());
}

#[tokio::test]
async fn http2_streams_are_finished_before_their_connection_ends() {
    let mut server = Running::start(at_once()).await;
    let (mut client, connection) = server.h2().await;
    let request = Request::post("https://localhost/gate")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap();
    let answer = tokio::spawn(client.send_request(request));
    until(|| server.has_metric("admission_requests_in_flight 1")).await;
    server.stop();
    bounded(async {
        while TcpStream::connect(server.https).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    server.gate.add_permits(1);
    let answer = bounded(answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    bounded(answer.into_body().collect()).await.unwrap();
    bounded(connection).await.unwrap().unwrap();
    assert_eq!(server.drained().await, Drained::Completely);
}

#[tokio::test]
async fn drain_ends_at_its_limit() {
    let limits = Limits {
        drain_timeout: Duration::from_millis(50),
        ..at_once()
    };
    let mut server = Running::start(limits).await;
    let mut stuck = server.h1().await;
    stuck.send(&post_head("/gate", "content-length: 0")).await;
    let _silent = TcpStream::connect(server.https).await.unwrap();
    until(|| server.has_metric("admission_requests_in_flight 1")).await;
    server.stop();
    assert_eq!(server.drained().await, Drained::TimedOut);
    stuck.closed().await;
    assert!(server.has_metric("connections 0"));
}
