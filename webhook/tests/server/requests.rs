//! What is answered to what.

use bytes::Bytes;
use futures::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full};
use opensandbox_webhook::server::Limits;

use crate::harness::{Running, bounded, post_head, until};

#[tokio::test]
async fn http1_round_trips_on_one_kept_connection() {
    let server = Running::start(Limits::default()).await;
    let mut client = server.h1().await;
    for size in [2, 10_000, 3_000_000, 0, 100] {
        let body = vec![b'x'; size];
        let answer = client.post("/echo", &body).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.has("content-type: application/json"));
        assert!(answer.has(&format!("content-length: {size}")));
        assert!(!answer.has("connection: close"));
        assert_eq!(answer.body, body);
    }
    assert!(server.has_metric(r#"admission_requests_total{webhook="echo",verdict="allow"} 5"#));
    assert!(server.has_metric(r#"admission_duration_seconds_count{webhook="echo"} 5"#));
    assert!(server.has_metric("connections 1"));
    until(|| server.has_metric("body_in_flight_bytes 0")).await;
}

#[tokio::test]
async fn http1_takes_chunked_bodies_and_expect_continue() {
    let server = Running::start(Limits::default()).await;
    let mut client = server.h1().await;
    let head = post_head("/echo", "transfer-encoding: chunked");
    client.send(&head).await;
    client.send("3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().body, b"{\"a\":1}");

    let head = post_head("/echo", "content-length: 2\r\nexpect: 100-continue");
    client.send(&head).await;
    assert_eq!(client.answer().await.unwrap().status, 100);
    client.send("{}").await;
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.body), (200, b"{}".to_vec()));
}

#[tokio::test]
async fn http2_round_trips_side_by_side_on_one_connection() {
    let server = Running::start(Limits::default()).await;
    let (client, _connection) = server.h2().await;
    let requests = (0..50).map(|number| {
        let mut client = client.clone();
        async move {
            let body = Bytes::from(vec![b'x'; number * 1000]);
            let request = Request::post("https://localhost/echo?timeout=5s")
                .header("content-type", "application/json")
                .body(Full::new(body.clone()))
                .unwrap();
            let answer = bounded(client.send_request(request)).await.unwrap();
            assert_eq!(answer.status(), 200);
            let back = bounded(answer.into_body().collect()).await.unwrap();
            assert_eq!(back.to_bytes(), body);
        }
    });
    join_all(requests).await;
    assert!(server.has_metric(r#"admission_requests_total{webhook="echo",verdict="allow"} 50"#));
}

#[tokio::test]
async fn http2_refuses_a_large_body_and_serves_the_next() {
    let server = Running::start(Limits::default()).await;
    let (mut client, _connection) = server.h2().await;
    for (size, status) in [(9 << 20, 413), (10, 200)] {
        let request = Request::post("https://localhost/echo")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(vec![b'x'; size])))
            .unwrap();
        let answer = bounded(client.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), status);
    }
}

#[tokio::test]
async fn webhook_port_answers_its_self_probe() {
    let server = Running::start(Limits::default()).await;
    let mut client = server.h1().await;
    client
        .send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.body), (200, b"ok".to_vec()));
}

#[tokio::test]
async fn plain_port_reports_health_readiness_and_metrics() {
    let server = Running::start(Limits::default()).await;
    let check = server.readiness.register("bundle");
    assert_eq!(server.probe("/healthz").await, (200, "ok".to_owned()));
    let (status, report) = server.probe("/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(
        report,
        "[+]serving ok\n[-]bundle failed: not checked yet\nreadyz check failed\n"
    );
    check.pass();
    assert_eq!(server.probe("/readyz").await.0, 200);
    let (status, metrics) = server.probe("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.ends_with("# EOF\n"));
    assert_eq!(server.probe("/nothing").await.0, 404);
}

#[tokio::test]
async fn wrong_path_method_and_type_are_refused_and_the_connection_goes_on() {
    let server = Running::start(Limits::default()).await;
    let mut client = server.h1().await;
    let body = "x".repeat(200_000);
    let tail = format!("host: x\r\ncontent-length: {}\r\n", body.len());

    client
        .send(&format!("POST /none HTTP/1.1\r\n{tail}\r\n{body}"))
        .await;
    assert_eq!(client.answer().await.unwrap().status, 404);

    client
        .send(&format!("PUT /echo HTTP/1.1\r\n{tail}\r\n{body}"))
        .await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 405);
    assert!(answer.has("allow: post"));

    for content_type in ["", "content-type: text/plain\r\n"] {
        client
            .send(&format!(
                "POST /echo HTTP/1.1\r\n{tail}{content_type}\r\n{body}"
            ))
            .await;
        let answer = client.answer().await.unwrap();
        assert_eq!(answer.status, 415);
        let status: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(status["reason"], "UnsupportedMediaType");
    }

    assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);
    for (reason, count) in [("bad_path", 1), ("method", 1), ("content_type", 2)] {
        let line = format!("http_rejections_total{{reason=\"{reason}\"}} {count}");
        assert!(server.has_metric(&line), "{line}");
    }
}

#[tokio::test]
async fn nine_mebibytes_are_refused_whether_announced_or_not() {
    let server = Running::start(Limits::default()).await;
    let body = vec![b'x'; 9 << 20];

    let mut client = server.h1().await;
    let answer = client.post("/echo", &body).await.unwrap();
    assert_eq!(answer.status, 413);
    assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);

    let head = post_head("/echo", "transfer-encoding: chunked");
    client.send(&head).await;
    for part in body.chunks(1 << 20) {
        client.send(&format!("{:x}\r\n", part.len())).await;
        client.send_bytes(part).await.unwrap();
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 413);
    assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);

    let header = format!("content-length: {}\r\nexpect: 100-continue", body.len());
    client.send(&post_head("/echo", &header)).await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 413, "the body is not asked for");
    assert!(answer.has("connection: close"));
    client.closed().await;

    assert!(server.has_metric(r#"http_rejections_total{reason="too_large"} 3"#));
    until(|| server.has_metric("body_in_flight_bytes 0")).await;
}

#[tokio::test]
async fn eight_mebibytes_are_read() {
    let server = Running::start(Limits::default()).await;
    let mut client = server.h1().await;
    let body = vec![b'x'; 8 << 20];
    let answer = client.post("/echo", &body).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, body.len()));
}

#[tokio::test]
async fn truncated_bodies_leave_nothing_behind() {
    let server = Running::start(Limits::default()).await;
    for header in ["content-length: 1000", "transfer-encoding: chunked"] {
        let mut client = server.h1().await;
        client.send(&post_head("/echo", header)).await;
        client.send("5\r\nhello").await;
        until(|| server.has_metric("admission_requests_in_flight 1")).await;
        drop(client);
        until(|| server.has_metric("admission_requests_in_flight 0")).await;
    }
    let mut client = server.h1().await;
    assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);
    until(|| server.has_metric("connections 1")).await;
    assert!(server.has_metric("body_in_flight_bytes 0"));
}

#[tokio::test]
async fn panic_in_a_handler_costs_one_request() {
    let server = Running::start(Limits::default()).await;
    let mut client = server.h1().await;
    for count in 1..=2 {
        let answer = client.post("/panic", b"{}").await.unwrap();
        assert_eq!(answer.status, 500);
        let status: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(status["code"], 500);
        assert!(server.has_metric(&format!("handler_panics_total {count}")));
        assert_eq!(client.post("/echo", b"{}").await.unwrap().status, 200);
    }
    assert!(server.has_metric(r#"admission_requests_total{webhook="panic",verdict="panic"} 2"#));
    assert!(server.has_metric("admission_requests_in_flight 0"));
    assert!(server.has_metric("body_in_flight_bytes 0"));
}
