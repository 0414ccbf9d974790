//! What no client of ours would send: answered cleanly, and the executor goes on as if nothing had
//! been.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe};
use proptest::prelude::{Strategy as _, any, prop_oneof};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::raw::{call, exchange};
use super::{bytes, ended, error, run, set_and_wait};
use crate::processes::status_bytes;
use crate::settings::number;

const MIB: usize = 1024 * 1024;
/// How much more memory it may hold afterwards.
const GROWTH: u64 = 32 << 20;

#[tokio::test]
async fn garbage_is_refused_and_harms_nobody() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("hostile").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "hostile", &recipe).await?;
    let to = pod.client().address();
    let executor = pod.main_pid(EXECUTOR).await?;
    let idle = status_bytes(executor, "VmRSS")?;
    let standing = json!([{"name": "standing", "process": {"command": ["sleep", "1000"]}}]);
    call(to, "POST /setTasks", &bytes(&standing)).await?;

    large(to).await?;
    odd_but_right(to).await?;
    no_http(to).await?;
    random(to).await?;

    assert_eq!(run(to, "after", "echo fine").await?, "fine\n");
    let list = call(to, "GET /getTasks", b"").await?.json()?;
    assert_eq!(super::names(&list), ["standing"], "{list}");
    assert_eq!(pod.main_pid(EXECUTOR).await?, executor, "it was restarted");
    let after = status_bytes(executor, "VmRSS")?;
    assert!(after <= idle + GROWTH, "{idle} bytes before, {after} after");
    set_and_wait(to, &json!([])).await?;
    pod.delete().await
}

async fn large(to: SocketAddr) -> Result<()> {
    for route in ["POST /setTasks", "POST /tasks"] {
        // Right JSON, and far too much of it.
        let argument = "x".repeat(10 * MIB);
        let body = json!([{"name": "large", "process": {"command": ["true", argument]}}]);
        let reply = call(to, route, &bytes(&body)).await.context(route)?;
        error(&reply, 413, "Request Entity Too Large", "")?;
        // The same without a length.
        let head = format!("{route} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        let mut request = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        for _ in 0..10 {
            request.extend_from_slice(format!("{MIB:x}\r\n").as_bytes());
            request.extend_from_slice(&vec![b' '; MIB]);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
        let reply = exchange(to, &request).await.context(route)?;
        error(&reply, 413, "Request Entity Too Large", "")?;
        // Ten at once.
        let body = bytes(&body);
        let all = (0..10).map(|_| call(to, route, &body));
        for reply in futures::future::join_all(all).await {
            let status = reply.context(route)?.status;
            ensure!(status == 413 || status == 503, "{status}");
        }
    }
    // Deeper than anybody nests, and more values than anybody needs.
    let deep = format!("{}{}", "[".repeat(MIB), "]".repeat(MIB));
    error(
        &call(to, "POST /setTasks", deep.as_bytes()).await?,
        400,
        "Bad Request",
        "",
    )?;
    let many = format!("[{}{{}}]", "{},".repeat(MIB));
    error(
        &call(to, "POST /setTasks", many.as_bytes()).await?,
        400,
        "Bad Request",
        "",
    )?;
    let path = format!("GET /tasks/{}", "x".repeat(100_000));
    let reply = call(to, &path, b"").await?;
    ensure!(
        matches!(reply.status, 400 | 404 | 414 | 431),
        "{}",
        reply.status
    );
    Ok(())
}

/// Unknown fields and unusual names are no errors.
async fn odd_but_right(to: SocketAddr) -> Result<()> {
    let odd = json!({
        "apiVersion": "v9", "kind": "Task", "metadata": {"name": "other"}, "spec": [1, {"a": null}],
        "name": "名前 ü.🦀", "uid": null, "deletionTimestamp": "2020-01-01T00:00:00Z",
        "process": {
            "command": ["printf", "%s"], "args": ["Grüße 🦀"], "env": null, "workingDir": null,
            "execMode": "Local", "lifecycle": {"preStart": {"exec": {}}}, "timeoutSeconds": null,
        },
        // Nobody is told how it ended before it did.
        "processStatus": {"terminated": {"exitCode": 0, "reason": "Succeeded"}},
        "outcome": {"end": {"kind": "exited", "code": 0}},
        "podTemplateSpec": null, "podStatus": null,
    });
    let reply = call(to, "POST /tasks", &bytes(&odd)).await?;
    ensure!(reply.status == 201, "{}", reply.text());
    let task = reply.json()?;
    assert_eq!(task.get("name"), odd.get("name"));
    assert!(task.get("deletionTimestamp").is_none(), "{task}");
    let path = "%E5%90%8D%E5%89%8D%20%C3%BC.%F0%9F%A6%80";
    let task = ended(to, path).await?;
    let end = task
        .pointer("/processStatus/terminated")
        .context("an end")?;
    assert_eq!(end.get("exitCode"), Some(&json!(0)));
    assert!(end.get("startedAt").is_some_and(Value::is_string), "{task}");
    let output = call(to, &format!("GET /tasks/{path}/logs"), b"").await?;
    assert_eq!(output.text(), "Grüße 🦀");
    assert_eq!(
        call(to, &format!("DELETE /tasks/{path}"), b"")
            .await?
            .status,
        204
    );
    super::gone(to, path).await
}

/// Bytes that are no request: refused or the connection closed, and nothing else.
async fn no_http(to: SocketAddr) -> Result<()> {
    let pieces: [&[u8]; 7] = [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /getTasks HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /setTasks HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n[]",
        b"POST /setTasks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n[]",
    ];
    for piece in pieces {
        let mut stream = TcpStream::connect(to).await?;
        // It may close before everything is written.
        let _ = stream.write_all(piece).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
        let read = tokio::time::timeout(super::BOUND, read).await;
        let _ = read.context("the connection stays open")?;
        let text = String::from_utf8_lossy(&answer);
        let refused =
            answer.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 505");
        ensure!(refused, "{:?}: {text}", String::from_utf8_lossy(piece));
    }
    Ok(())
}

/// Random bodies: a list of tasks, or a reason why not, and never a failure of the executor.
async fn random(to: SocketAddr) -> Result<()> {
    let word = || "[a-z]{0,8}".prop_map(Value::from);
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word(),
    ];
    let key = "name|uid|process|command|args|env|workingDir|timeoutSeconds|containerId|[a-z]{1,6}";
    let value = leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..6)
                .prop_map(|fields| fields.into_iter().collect::<Value>()),
        ]
    });
    let any_bytes = proptest::collection::vec(any::<u8>(), 0..64);
    let body = prop_oneof![
        any_bytes,
        value.prop_map(|value| value.to_string().into_bytes())
    ];
    let mut runner = TestRunner::default();
    for _ in 0..number("OPENSANDBOX_BODIES", 200) {
        let tree = body.new_tree(&mut runner);
        let body = tree.map_err(|error| anyhow::anyhow!("{error}"))?.current();
        let reply = call(to, "POST /tasks", &body).await?;
        let shown = String::from_utf8_lossy(&body);
        let told = matches!(reply.status, 400 | 500) && reply.json().is_ok();
        ensure!(
            told || reply.status == 201,
            "{} {}: {shown}",
            reply.status,
            reply.text()
        );
        if reply.status == 201 {
            let name = reply
                .json()?
                .get("name")
                .and_then(Value::as_str)
                .map(str::to_owned);
            call(
                to,
                &format!("DELETE /tasks/{}", name.context("a name")?),
                b"",
            )
            .await?;
        }
    }
    Ok(())
}
