//! Bounds on time, connections and memory.

use std::time::Duration;

use task_executor::server::Limits;

use crate::harness::{Running, bounded, head, until};

/// Short enough for a test to wait for it, long enough for no other step to run into it.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn long_bodies_are_refused_however_they_come() {
    let server = Running::open().await;
    let body = vec![b'x'; 10_000_000];
    for chunked in [false, true] {
        let mut client = server.connect().await;
        if chunked {
            client
                .send(head("POST /setTasks", "Transfer-Encoding: chunked\r\n"))
                .await
                .unwrap();
            client.send(format!("{:x}\r\n", body.len())).await.unwrap();
        } else {
            let length = format!("Content-Length: {}\r\n", body.len());
            client.send(head("POST /setTasks", &length)).await.unwrap();
        }
        // The whole body can be sent, and the answer is there to be read.
        client.send(&body).await.unwrap();
        let answer = client.answer(false).await.unwrap();
        assert_eq!(answer.status, 413);
        assert_eq!(answer.json()["code"], "Request Entity Too Large");
        assert_eq!(answer.header("connection"), Some("close"));
        client.closed().await;
    }
    let most = format!("[]{}", " ".repeat(4 * 1024 * 1024 - 2));
    assert_eq!(server.ask("POST /setTasks", &most).await.status, 200);
}

#[tokio::test]
async fn long_heads_are_refused() {
    let server = Running::open().await;
    let mut client = server.connect().await;
    let header = format!("X: {}\r\n", "x".repeat(20_000));
    let answer = client.ask_with("GET /health", &header, "").await.unwrap();
    assert_eq!(answer.status, 431);
    let mut client = server.connect().await;
    let answer = client
        .ask_with("GET /health", &"X: y\r\n".repeat(100), "")
        .await
        .unwrap();
    assert_eq!(answer.status, 431);
    let mut client = server.connect().await;
    let target = format!("/tasks/{}", "x".repeat(8000));
    assert_eq!(
        client
            .ask(&format!("GET {target}"), "")
            .await
            .unwrap()
            .status,
        404
    );
}

#[tokio::test]
async fn slow_head_is_cut_and_idle_connection_is_not() {
    let limits = Limits {
        header: SHORT,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut kept = server.connect().await;
    assert_eq!(kept.ask("GET /health", "").await.unwrap().status, 200);
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.send("GET /health HTTP/1.1\r\nHost:").await.unwrap();
    let mut slow_later = server.connect().await;
    assert_eq!(slow_later.ask("GET /health", "").await.unwrap().status, 200);
    slow_later
        .send("GET /health HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    for client in [&mut silent, &mut slow, &mut slow_later] {
        client.closed().await;
    }
    // More than the header limit has passed since its answer.
    assert_eq!(kept.ask("GET /health", "").await.unwrap().status, 200);
}

#[tokio::test]
async fn idle_connection_is_closed_after_its_own_limit() {
    let limits = Limits {
        idle: SHORT,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut client = server.connect().await;
    assert_eq!(client.ask("GET /health", "").await.unwrap().status, 200);
    client.closed().await;
    until(|| server.has_metric("connections 0")).await;
}

#[tokio::test]
async fn slow_body_is_answered_with_408() {
    let limits = Limits {
        body_read: SHORT,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut client = server.connect().await;
    client
        .send(head("POST /setTasks", "Content-Length: 10\r\n"))
        .await
        .unwrap();
    client.send("[]").await.unwrap();
    let answer = client.answer(false).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (408, Some("close"))
    );
    assert!(answer.message().contains("0.3 s"));
    client.closed().await;
    let mut gone = server.connect().await;
    gone.send(head("POST /setTasks", "Content-Length: 10\r\n"))
        .await
        .unwrap();
    drop(gone);
    until(|| server.has_metric("connections 0")).await;
}

#[tokio::test]
async fn peer_that_takes_nothing_is_dropped() {
    let limits = Limits {
        write: SHORT,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let task = format!(
        r#"{{"name":"a","process":{{"command":["{}"]}}}}"#,
        "x".repeat(100_000)
    );
    assert_eq!(server.ask("POST /tasks", &task).await.status, 201);
    let mut client = server.connect().await;
    // More answers than the sockets' buffers take.
    let many = head("GET /getTasks", "").repeat(400);
    let _ = client.send(many).await;
    until(|| server.has_metric("connections 1")).await;
    until(|| server.has_metric("connections 0")).await;
}

#[tokio::test]
async fn one_source_gets_half_of_the_connections_and_the_newest_is_served() {
    let limits = Limits {
        connections: 128,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(server.connect().await);
    }
    let mut last = server.connect().await;
    assert_eq!(last.ask("GET /health", "").await.unwrap().status, 200);
    until(|| server.has_metric("connections 64")).await;
    // The others' places went to the newest, the oldest first.
    clients[0].closed().await;
    clients[136].closed().await;
    assert_eq!(
        clients[137].ask("GET /health", "").await.unwrap().status,
        200
    );
    assert_eq!(
        clients[199].ask("GET /health", "").await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn requests_in_flight_are_not_cut_off_for_new_connections() {
    let limits = Limits {
        connections: 4,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut client = server.connect().await;
        client
            .send(head("GET /tasks?watch=true", ""))
            .await
            .unwrap();
        assert_eq!(client.head().await.unwrap().status, 200);
        busy.push(client);
    }
    let mut refused = server.connect().await;
    let answer = refused.answer(false).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("1"))
    );
    assert!(answer.message().contains("too many connections"));
    assert!(server.has_metric("connections_refused_total 1"));
    assert_eq!(busy[0].event().await["type"], "reset");
    busy.pop();
    until(|| server.has_metric("connections 1")).await;
    assert_eq!(server.ask("GET /health", "").await.status, 200);
}

#[tokio::test]
async fn one_source_gets_half_of_the_streams() {
    let limits = Limits {
        streams: 32,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut clients = Vec::new();
    for _ in 0..16 {
        let mut client = server.connect().await;
        client
            .send(head("GET /tasks?watch=true", ""))
            .await
            .unwrap();
        assert_eq!(client.head().await.unwrap().status, 200);
        clients.push(client);
    }
    let refused = server.ask("GET /tasks?watch=true", "").await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("1"))
    );
    assert_eq!(server.ask("GET /getTasks", "").await.status, 200);
    clients.pop();
    until(|| server.has_metric("streams 15")).await;
    let mut client = server.connect().await;
    client
        .send(head("GET /tasks?watch=true", ""))
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
}

#[tokio::test]
async fn bodies_together_stay_within_their_bound() {
    let limits = Limits {
        bodies: 1024 * 1024,
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut first = server.connect().await;
    let half = 400 * 1024;
    first
        .send(head(
            "POST /setTasks",
            &format!("Content-Length: {}\r\n", half + 2),
        ))
        .await
        .unwrap();
    first.send(" ".repeat(half)).await.unwrap();
    let body = format!("[]{}", " ".repeat(half));
    bounded(async {
        // Until the server has read the first one.
        while server.ask("POST /setTasks", &body).await.status != 503 {}
    })
    .await;
    assert_eq!(
        server.ask("POST /setTasks", "[]").await.status,
        200,
        "a small one finds room"
    );
    first.send("[]").await.unwrap();
    assert_eq!(first.answer(false).await.unwrap().status, 200);
    assert_eq!(server.ask("POST /setTasks", &body).await.status, 200);
}
