//! The watch, and output of tasks.

use std::time::Duration;

use serde_json::json;
use task_executor::server::Limits;
use task_executor::server::tasks::Stream;

use crate::harness::{Client, Running, head, until};

/// More output than the sockets' buffers take.
const TOTAL: usize = 32 * 1024 * 1024;

async fn stream(server: &Running, target: &str) -> Client {
    let mut client = server.connect().await;
    client
        .send(head(&format!("GET {target}"), ""))
        .await
        .unwrap();
    let answer = client.head().await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    client
}

#[tokio::test]
async fn watch_tells_everything_and_then_changes() {
    let server = Running::open().await;
    server.tasks.add("a");
    server.tasks.add("b");
    let mut client = server.connect().await;
    client
        .send(head("GET /tasks?watch=true", ""))
        .await
        .unwrap();
    let answer = client.head().await.unwrap();
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(
        client.event().await,
        json!({"type": "reset", "cursor": "2"})
    );
    for name in ["a", "b"] {
        let event = client.event().await;
        assert_eq!(
            (&event["type"], &event["task"]["name"]),
            (&json!("added"), &json!(name))
        );
    }
    assert_eq!(
        client.event().await,
        json!({"type": "bookmark", "cursor": "2"})
    );
    server.tasks.add("c");
    assert_eq!(client.event().await["task"]["name"], "c");
    assert_eq!(server.ask("DELETE /tasks/a", "").await.status, 204);
    let event = client.event().await;
    assert_eq!(
        (&event["type"], &event["cursor"]),
        (&json!("deleted"), &json!("4"))
    );
    assert!(server.has_metric("streams 1"));
    drop(client);
    until(|| server.has_metric("streams 0") && server.tasks.listeners() == 0).await;
}

#[tokio::test]
async fn watch_resumes_where_it_was_cut_off() {
    let server = Running::open().await;
    server.tasks.add("a");
    let mut client = stream(&server, "/tasks?watch=true").await;
    let mut cursor = String::new();
    for _ in 0..3 {
        cursor = client.event().await["cursor"].as_str().unwrap().to_owned();
    }
    drop(client);
    server.tasks.add("b");
    server.tasks.add("c");
    let mut client = stream(&server, &format!("/tasks?watch=true&cursor={cursor}")).await;
    for name in ["b", "c"] {
        assert_eq!(client.event().await["task"]["name"], name);
    }
    let mut client = stream(&server, "/tasks?watch=1&cursor=of-another-life").await;
    assert_eq!(client.event().await["type"], "reset");
    assert_eq!(server.ask("GET /tasks?watch=perhaps", "").await.status, 400);
}

#[tokio::test]
async fn silent_watch_sends_bookmarks_with_the_last_cursor() {
    let limits = Limits {
        bookmark: Duration::from_millis(20),
        ..Limits::default()
    };
    let server = Running::limited(limits).await;
    let mut client = stream(&server, "/tasks?watch=true").await;
    assert_eq!(client.event().await["type"], "reset");
    for _ in 0..4 {
        assert_eq!(
            client.event().await,
            json!({"type": "bookmark", "cursor": "0"})
        );
    }
    server.tasks.add("a");
    let mut event = client.event().await;
    while event["type"] == "bookmark" {
        event = client.event().await;
    }
    assert_eq!(event["task"]["name"], "a");
    while event["cursor"] != "1" || event["type"] != "bookmark" {
        event = client.event().await;
    }
}

#[tokio::test]
async fn event_longer_than_a_piece_comes_whole() {
    let server = Running::open().await;
    let mut client = stream(&server, "/tasks?watch=true&cursor=0").await;
    let long = "y".repeat(100 * 1024);
    let task = json!({"name": "a", "process": {"command": ["echo", &long]}});
    assert_eq!(
        server.ask("POST /tasks", &task.to_string()).await.status,
        201
    );
    assert_eq!(
        client.event().await["task"]["process"]["command"][1],
        json!(long)
    );
}

#[tokio::test]
async fn logs_from_every_start() {
    let server = Running::open().await;
    server.tasks.add("a");
    server
        .tasks
        .print("a", Stream::Stdout, b"one\ntwo\nthree\n");
    server.tasks.print("a", Stream::Stderr, b"bad\n");
    for (query, text, offset) in [
        ("", "one\ntwo\nthree\n", "0"),
        ("?stream=stderr", "bad\n", "0"),
        ("?offset=4", "two\nthree\n", "4"),
        ("?offset=400", "", "14"),
        ("?tail=3", "ee\n", "11"),
        ("?tail=0", "", "14"),
        ("?tailLines=2", "two\nthree\n", "4"),
        ("?tailLines=9", "one\ntwo\nthree\n", "0"),
        ("?limitBytes=5", "one\nt", "0"),
        ("?limitBytes=0", "", "0"),
        ("?offset=4&limitBytes=3&follow=true", "two", "4"),
    ] {
        let answer = server.ask(&format!("GET /tasks/a/logs{query}"), "").await;
        assert_eq!((answer.status, answer.text()), (200, text), "{query}");
        assert_eq!(answer.header("x-log-offset"), Some(offset), "{query}");
        assert_eq!(answer.header("x-log-dropped-bytes"), Some("0"), "{query}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/octet-stream")
        );
    }
    server.tasks.drop_output("a", Stream::Stdout, 8);
    let answer = server.ask("GET /tasks/a/logs?offset=3", "").await;
    assert_eq!(answer.text(), "three\n");
    assert_eq!(answer.header("x-log-offset"), Some("8"));
    assert_eq!(answer.header("x-log-dropped-bytes"), Some("5"));
    assert_eq!(server.ask("GET /tasks/no/logs", "").await.status, 404);
    for wrong in ["stream=both", "tail=-1", "tail=1&offset=2", "follow=x"] {
        let answer = server.ask(&format!("GET /tasks/a/logs?{wrong}"), "").await;
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(!answer.message().is_empty());
    }
}

#[tokio::test]
async fn followed_log_goes_on_until_the_output_ends() {
    let server = Running::open().await;
    server.tasks.add("a");
    server.tasks.print("a", Stream::Stdout, b"one\n\xff");
    let mut client = stream(&server, "/tasks/a/logs?follow=true").await;
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"one\n\xff");
    server.tasks.print("a", Stream::Stdout, b"two\n");
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"two\n");
    let big = vec![b'z'; 300 * 1024];
    server.tasks.print("a", Stream::Stdout, &big);
    server.tasks.end_output("a", Stream::Stdout);
    let mut rest = Vec::new();
    while let Some(piece) = client.chunk().await.unwrap() {
        assert!(piece.len() <= 16 * 1024, "piece by piece");
        rest.extend(piece);
    }
    assert_eq!(rest.len(), big.len());
    assert_eq!(
        client.ask("GET /health", "").await.unwrap().status,
        200,
        "the connection is kept"
    );
}

#[tokio::test]
async fn reader_slower_than_the_output_is_cut_off_and_told_on_return() {
    let server = Running::open().await;
    server.tasks.add("a");
    server.tasks.print("a", Stream::Stdout, &vec![b'x'; TOTAL]);
    let mut client = stream(&server, "/tasks/a/logs?follow=true").await;
    let mut read = client.chunk().await.unwrap().unwrap().len();
    server
        .tasks
        .drop_output("a", Stream::Stdout, TOTAL as u64 - 10);
    let cut = loop {
        match client.chunk().await {
            Ok(Some(piece)) => read += piece.len(),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(cut, "it would take this for the end");
    assert!(read < TOTAL - 10);
    let answer = server
        .ask(&format!("GET /tasks/a/logs?offset={read}"), "")
        .await;
    let missed = (TOTAL - 10 - read).to_string();
    assert_eq!(answer.header("x-log-dropped-bytes"), Some(missed.as_str()));
    assert_eq!(answer.text(), "xxxxxxxxxx");
}

#[tokio::test]
async fn shutdown_ends_streams_and_finishes_requests() {
    let mut server = Running::open().await;
    server.tasks.add("a");
    let mut watch = stream(&server, "/tasks?watch=true&cursor=1").await;
    let mut log = stream(&server, "/tasks/a/logs?follow=true").await;
    let mut idle = server.connect().await;
    assert_eq!(idle.ask("GET /health", "").await.unwrap().status, 200);
    let mut slow = server.connect().await;
    slow.send(head("POST /setTasks", "Content-Length: 2\r\n"))
        .await
        .unwrap();
    slow.send("[").await.unwrap();
    until(|| server.has_metric("connections 4")).await;
    server.stop();
    assert_eq!(watch.chunk().await.unwrap(), None, "ended, not cut");
    assert_eq!(log.chunk().await.unwrap(), None);
    idle.closed().await;
    slow.send("]").await.unwrap();
    assert_eq!(slow.answer(false).await.unwrap().status, 200);
    drop((watch, log, slow));
    server.stopped().await;
    assert!(server.has_metric("connections 0"));
}
