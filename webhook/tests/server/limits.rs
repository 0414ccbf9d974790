//! Bounds on time, connections and memory.

use std::time::Duration;

use futures::future::join_all;
use opensandbox_webhook::server::Limits;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::harness::{Running, bounded, post_head, until};

/// Short enough for a test to wait for it, long enough for no other step to run into it.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn slow_header_is_cut_and_idle_connection_is_not() {
    let limits = Limits {
        header: SHORT,
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut kept = server.h1().await;
    assert_eq!(kept.post("/echo", b"{}").await.unwrap().status, 200);

    let mut silent = server.h1().await;
    let mut slow = server.h1().await;
    slow.send("POST /echo HTTP/1.1\r\nhost:").await;
    let mut slow_later = server.h1().await;
    assert_eq!(slow_later.post("/echo", b"{}").await.unwrap().status, 200);
    slow_later.send("POST /echo HTTP/1.1\r\nhost:").await;
    for client in [&mut silent, &mut slow, &mut slow_later] {
        client.closed().await;
    }

    // More than the header limit has passed since its answer.
    assert_eq!(kept.post("/echo", b"{}").await.unwrap().status, 200);
}

#[tokio::test]
async fn idle_connection_is_closed_after_its_own_limit() {
    let limits = Limits {
        idle: SHORT,
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut client = server.h1().await;
    assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);
    client.closed().await;
    let (mut h2, connection) = server.h2().await;
    let request =
        http::Request::get("https://localhost/healthz").body(http_body_util::Full::default());
    bounded(h2.send_request(request.unwrap())).await.unwrap();
    bounded(connection).await.unwrap().unwrap();
    until(|| server.has_metric("connections 0")).await;
}

#[tokio::test]
async fn handshake_that_never_ends_blocks_nobody_and_is_cut() {
    let limits = Limits {
        handshake: Duration::from_secs(2),
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let silent = join_all((0..20).map(|_| TcpStream::connect(server.https))).await;
    let mut client = server.h1().await;
    assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);
    for socket in silent {
        let mut socket = socket.unwrap();
        let read = bounded(socket.read_u8()).await;
        assert!(read.is_err(), "cut without a word");
    }
    assert!(server.has_metric(r#"tls_handshake_failures_total{reason="timeout"} 20"#));
    until(|| server.has_metric("connections 1")).await;
}

#[tokio::test]
async fn what_is_not_tls_is_counted_and_dropped() {
    let server = Running::start(Limits::default()).await;
    let socket = TcpStream::connect(server.https).await.unwrap();
    let mut client = crate::harness::H1(tokio::io::BufStream::new(socket));
    client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    until(|| server.has_metric(r#"tls_handshake_failures_total{reason="not_tls"} 1"#)).await;
    drop(TcpStream::connect(server.https).await.unwrap());
    until(|| server.has_metric(r#"tls_handshake_failures_total{reason="closed"} 1"#)).await;
}

#[tokio::test]
async fn slow_body_is_answered_with_408_and_its_connection_closed() {
    let limits = Limits {
        body_read: SHORT,
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut client = server.h1().await;
    client.send(&post_head("/echo", "content-length: 10")).await;
    client.send("12345").await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 408);
    assert!(answer.has("connection: close"));
    client.closed().await;
    assert!(server.has_metric(r#"http_rejections_total{reason="timeout"} 1"#));
}

#[tokio::test]
async fn handler_that_takes_too_long_is_answered_with_504() {
    let limits = Limits {
        handler: SHORT,
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut client = server.h1().await;
    assert_eq!(client.post("/gate", b"{}").await.unwrap().status, 504);
    assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);
    assert!(server.has_metric(r#"admission_requests_total{webhook="gate",verdict="timeout"} 1"#));
}

#[tokio::test]
async fn bodies_together_stay_within_their_bound() {
    const BODY: usize = 600 * 1024;
    let limits = Limits {
        bodies_in_flight: 1024 * 1024,
        memory_wait: SHORT,
        handler: Duration::from_mins(1),
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut first = server.h1().await;
    let head = post_head("/gate", &format!("content-length: {BODY}"));
    first.send(&head).await;
    first.send_bytes(&vec![b'x'; BODY]).await.unwrap();
    until(|| server.has_metric(&format!("body_in_flight_bytes {BODY}"))).await;

    let others = (0..4).map(|number| {
        let server = &server;
        async move {
            let mut client = server.h1().await;
            let body = vec![b'x'; BODY];
            let answer = if number % 2 == 0 {
                client.post("/gate", &body).await
            } else {
                let head = post_head("/gate", "transfer-encoding: chunked");
                client.send(&format!("{head}{BODY:x}\r\n")).await;
                client.send_bytes(&body).await.unwrap();
                client.send("\r\n0\r\n\r\n").await;
                client.answer().await
            };
            let answer = answer.unwrap();
            assert_eq!(answer.status, 503);
            assert!(answer.has("retry-after: 1"));
        }
    });
    join_all(others).await;
    let mut small = server.h1().await;
    assert_eq!(
        small.post("/echo", b"{}").await.unwrap().status,
        200,
        "a small body finds room next to the large one"
    );

    server.gate.add_permits(2);
    assert_eq!(first.answer().await.unwrap().status, 200);
    until(|| server.has_metric("body_in_flight_bytes 0")).await;
    let answer = first.post("/gate", &vec![b'x'; BODY]).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(server.has_metric(r#"http_rejections_total{reason="busy"} 4"#));
}

#[tokio::test]
async fn reviews_beyond_the_bound_are_refused_at_once() {
    let limits = Limits {
        requests: 1,
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut first = server.h1().await;
    first.send(&post_head("/gate", "content-length: 0")).await;
    until(|| server.has_metric("admission_requests_in_flight 1")).await;
    let mut second = server.h1().await;
    assert_eq!(second.post("/echo", b"{}").await.unwrap().status, 503);
    server.gate.add_permits(1);
    assert_eq!(first.answer().await.unwrap().status, 200);
    assert_eq!(second.post("/echo", b"{}").await.unwrap().status, 200);
}

#[tokio::test]
async fn connection_beyond_the_bound_waits_for_a_place() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut first = server.h1().await;
    let second = server.h1();
    tokio::pin!(second);
    // Two connections compete for one thread here: while the first makes its calls, the second
    // has every chance to get on, were it let.
    for _ in 0..20 {
        tokio::select! {
            biased;
            _ = &mut second => unreachable!("there was no place"),
            answer = first.post("/echo", b"{}") => assert_eq!(answer.unwrap().status, 200),
        }
    }
    assert!(server.has_metric("connections 1"));
    drop(first);
    let mut second = second.await;
    assert_eq!(second.post("/echo", b"{}").await.unwrap().status, 200);
}

#[tokio::test]
async fn old_connection_is_asked_to_leave_with_an_answer() {
    let limits = Limits {
        connection_age: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut client = server.h1().await;
    bounded(async {
        loop {
            let answer = client.post("/echo", b"{}").await.unwrap();
            assert_eq!(answer.status, 200);
            if answer.has("connection: close") {
                break;
            }
        }
    })
    .await;
    client.closed().await;

    let (mut h2, connection) = server.h2().await;
    let request =
        http::Request::get("https://localhost/healthz").body(http_body_util::Full::default());
    bounded(h2.send_request(request.unwrap())).await.unwrap();
    bounded(connection).await.unwrap().unwrap();
}
