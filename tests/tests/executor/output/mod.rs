//! What tasks print: whole where it fits, bounded and counted where it does not, and readable in the
//! log of the executor's container.

#![cfg(test)]

mod flood;
mod log;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use opensandbox_tests::executor::{Client, ExecutorPod, Reply, Stream, task};
use opensandbox_tests::node;
use opensandbox_tests::pods::Recipe;
use opensandbox_tests::wait::{self, Probe};

const BOUND: Duration = Duration::from_mins(2);

/// Bytes of every value, without a line feed for long stretches, on both streams.
const BINARY: &str = r"
import sys
every = bytes(range(256))
sys.stdout.buffer.write(every * 400)
sys.stderr.buffer.write(every[::-1] * 40)
";

#[tokio::test]
async fn output_is_kept_byte_by_byte() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("output").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "output", &recipe).await?;
    let client = pod.client();

    let every: Vec<u8> = (0..=255).collect();
    let reversed: Vec<u8> = (0..=255).rev().collect();
    let finished = pod.run("binary", &["python3", "-c", BINARY]).await?;
    assert!(finished.stdout == every.repeat(400));
    assert!(finished.stderr == reversed.repeat(40));

    // A line longer than anything but the buffer, and nothing at its end.
    let script = "head -c 900000 /dev/zero | tr '\\0' x; printf end";
    let finished = pod.run("one-line", &["sh", "-c", script]).await?;
    let expected = [b"x".repeat(900_000), b"end".to_vec()].concat();
    assert!(finished.stdout == expected);

    // Nothing at all.
    let finished = pod.run("silent", &["true"]).await?;
    assert_eq!((finished.stdout.len(), finished.stderr.len()), (0, 0));

    // Everything that was written before the end is there when the end is told, though somebody
    // else still holds the pipe.
    let script = "seq 10000; sleep 1000 & exit 0";
    client.create(&task("held", &["sh", "-c", script])).await?;
    client.wait_ended("held", BOUND).await?;
    let output = client.stdout("held").await?;
    assert_eq!(output.lines().count(), 10_000);
    client.delete_and_wait("held", BOUND).await?;

    parts(client).await?;
    follow(&pod).await?;
    pod.delete().await
}

/// Offsets, ends and lines.
async fn parts(client: &Client) -> Result<()> {
    let script = "seq 1 5; printf 'last line'; echo err >&2";
    client.create(&task("parts", &["sh", "-c", script])).await?;
    client.wait_ended("parts", BOUND).await?;
    for (query, offset, expected) in [
        ("", 0, "1\n2\n3\n4\n5\nlast line"),
        ("?stream=stdout", 0, "1\n2\n3\n4\n5\nlast line"),
        ("?stream=stderr", 0, "err\n"),
        ("?offset=4", 4, "3\n4\n5\nlast line"),
        ("?offset=19", 19, ""),
        ("?offset=1000", 19, ""),
        ("?tail=6", 13, "t line"),
        ("?tail=0", 19, ""),
        ("?tail=1000", 0, "1\n2\n3\n4\n5\nlast line"),
        ("?tailLines=1", 10, "last line"),
        ("?tailLines=3", 6, "4\n5\nlast line"),
        ("?tailLines=0", 19, ""),
        ("?tailLines=100", 0, "1\n2\n3\n4\n5\nlast line"),
        ("?offset=2&limitBytes=3", 2, "2\n3"),
        ("?follow=true&offset=8", 8, "5\nlast line"),
    ] {
        let reply = client
            .send("GET", &format!("/tasks/parts/logs{query}"), b"")
            .await?;
        assert_eq!(reply.status, 200, "{query}: {}", reply.text());
        assert_eq!(reply.text(), expected, "{query}");
        assert_eq!(header(&reply, "x-log-offset")?, offset, "{query}");
        assert_eq!(header(&reply, "x-log-dropped-bytes")?, 0, "{query}");
    }
    for query in ["?offset=-1", "?tail=x", "?stream=both", "?offset=1&tail=1"] {
        let reply = client
            .send("GET", &format!("/tasks/parts/logs{query}"), b"")
            .await?;
        assert_eq!(reply.status, 400, "{query}: {}", reply.text());
    }
    let reply = client.send("GET", "/tasks/nobody/logs", b"").await?;
    assert_eq!(reply.status, 404, "{}", reply.text());
    client.delete_and_wait("parts", BOUND).await?;
    let reply = client.send("GET", "/tasks/parts/logs", b"").await?;
    assert_eq!(reply.status, 404, "output of a task that is gone");
    Ok(())
}

/// A follower gets what is there, what comes, and the end.
async fn follow(pod: &ExecutorPod<'_>) -> Result<()> {
    let client = pod.client();
    let script =
        "seq 1 5; while [ ! -e /tmp/follow ]; do sleep 0.05; done; echo last; echo err >&2";
    client
        .create(&task("follow", &["sh", "-c", script]))
        .await?;
    wait::until("the first lines", BOUND, async || {
        let output = client.stdout("follow").await?;
        Ok(if output.lines().count() == 5 {
            Probe::Done(())
        } else {
            Probe::not_yet(output)
        })
    })
    .await?;
    let response = client
        .stream("/tasks/follow/logs?follow=true&offset=4")
        .await?;
    ensure!(response.status() == 200, "{}", response.status());
    let mut errors = client
        .stream("/tasks/follow/logs?follow=true&stream=stderr")
        .await?
        .into_body();
    let mut body = response.into_body();
    let mut got = Vec::new();
    while got.len() < "3\n4\n5\n".len() {
        got.extend(
            piece(&mut body)
                .await?
                .context("it ended before the task")?,
        );
    }
    assert_eq!(String::from_utf8_lossy(&got), "3\n4\n5\n");
    pod.run_ok("go", &["touch", "/tmp/follow"]).await?;
    while let Some(piece) = piece(&mut body).await? {
        got.extend(piece);
    }
    assert_eq!(String::from_utf8_lossy(&got), "3\n4\n5\nlast\n");
    let mut got = Vec::new();
    while let Some(piece) = piece(&mut errors).await? {
        got.extend(piece);
    }
    assert_eq!(got, b"err\n");
    client.delete_and_wait("follow", BOUND).await
}

/// What the executor that was killed had read is lost; what comes afterwards is not, and the end is
/// told.
#[tokio::test]
async fn output_goes_on_after_a_restart_of_the_executor() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("restart").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "restart", &recipe).await?;
    let client = pod.client();
    // Never more than a pipe holds while nobody reads.
    let script =
        "i=0; while [ ! -e /tmp/go ]; do i=$((i+1)); echo line $i; sleep 0.02; done; echo last";
    client.create(&task("lines", &["sh", "-c", script])).await?;
    wait::until("lines", BOUND, async || {
        let output = client.stdout("lines").await?;
        Ok(if output.lines().count() > 10 {
            Probe::Done(())
        } else {
            Probe::not_yet(output)
        })
    })
    .await?;
    pod.crash_executor().await?;
    let before = client.stdout("lines").await?.len();
    wait::until("more lines", BOUND, async || {
        let now = client.stdout("lines").await?.len();
        Ok(if now > before + 100 {
            Probe::Done(())
        } else {
            Probe::not_yet(now)
        })
    })
    .await?;
    pod.run_ok("go", &["touch", "/tmp/go"]).await?;
    client.wait_ended("lines", BOUND).await?;
    let output = client.stdout("lines").await?;
    // Without a gap, up to the end.
    let mut lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.pop(), Some("last"), "{output}");
    let number = |line: &str| line.strip_prefix("line ")?.parse::<u32>().ok();
    // The first one may be the rest of a line.
    let numbers: Vec<_> = lines.iter().skip(1).map(|line| number(line)).collect();
    assert!(numbers.len() > 5, "{output}");
    for pair in numbers.windows(2) {
        assert_eq!(pair[0].map(|number| number + 1), pair[1], "{output}");
    }
    pod.delete().await
}

async fn piece(body: &mut Incoming) -> Result<Option<Vec<u8>>> {
    let frame = tokio::time::timeout(BOUND, body.frame()).await;
    let Some(frame) = frame.context("no more output")? else {
        return Ok(None);
    };
    Ok(Some(frame?.into_data().unwrap_or_default().to_vec()))
}

fn header(reply: &Reply, name: &str) -> Result<u64> {
    let value = reply
        .headers
        .get(name)
        .with_context(|| format!("no {name}"))?;
    Ok(value.to_str()?.parse()?)
}

/// Whole output of a task and how many bytes before it are not kept.
async fn kept(client: &Client, name: &str) -> Result<(Vec<u8>, u64)> {
    let target = format!("/tasks/{name}/logs?stream={}", Stream::Stdout);
    let reply = client.send("GET", &target, b"").await?;
    let dropped = header(&reply, "x-log-dropped-bytes")?;
    assert_eq!(header(&reply, "x-log-offset")?, dropped);
    Ok((reply.body.to_vec(), dropped))
}
