//! The stream of events: in order, complete, and resumable at every point of it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use opensandbox_api::task::{State, WatchEvent};
use opensandbox_tests::executor::{Client, ExecutorPod, Watch, task, task_of};
use opensandbox_tests::node;
use opensandbox_tests::pods::Recipe;

const BOUND: Duration = Duration::from_mins(1);

#[tokio::test]
async fn events_come_in_order_and_can_be_resumed() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("watch").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "watch", &recipe).await?;
    let client = pod.client();

    let mut watch = client.watch(None).await?;
    let beginning = watch.until(BOUND, is_bookmark).await?;
    assert_eq!(kinds(&beginning), ["reset", "bookmark"]);

    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 3";
    client.create(&task("one", &["sh", "-c", script])).await?;
    client.wait_running("one", BOUND).await?;
    pod.run_ok("go", &["touch", "/tmp/go"]).await?;
    client.wait_ended("one", BOUND).await?;
    client.delete("one").await?;
    client.create(&task_of("last", "u.0.1", &["true"])).await?;
    client.wait_ended("last", BOUND).await?;
    client.delete("last").await?;
    let events = watch.until(BOUND, |event| is_gone(event, "last")).await?;
    assert_eq!(
        of(&events, "one"),
        [
            "added Waiting",
            "modified Running",
            "modified Failed",
            "deleted Failed"
        ]
    );
    for name in ["go", "last"] {
        let seen = of(&events, name);
        assert_eq!(seen.first().map(String::as_str), Some("added Waiting"));
        assert_eq!(seen.last().map(String::as_str), Some("deleted Succeeded"));
    }

    // From every point on: exactly what came after it.
    let cursors: Vec<_> = events.iter().filter_map(WatchEvent::cursor).collect();
    assert_eq!(cursors.len(), events.len());
    for (index, cursor) in cursors.iter().enumerate() {
        let rest = events.get(index + 1..).unwrap_or_default();
        let mut resumed = client.watch(Some(cursor)).await?;
        if rest.is_empty() {
            let next = next_of(client, &mut resumed).await?;
            assert_eq!(kinds(&[next]), ["added"]);
            continue;
        }
        let again = resumed.until(BOUND, |event| is_gone(event, "last")).await?;
        assert_eq!(again, rest, "after {cursor}");
    }

    // From nowhere: everything.
    for cursor in ["nonsense", "0", "9999999999999999999-1", "%00"] {
        let mut anew = client.watch(Some(cursor)).await?;
        let all = anew.until(BOUND, is_bookmark).await?;
        let (first, last) = (all.first(), all.last());
        let told = matches!(first, Some(WatchEvent::Reset { .. }));
        assert!(told && last.is_some_and(is_bookmark), "{cursor}: {all:?}");
    }
    // A bad query is no watch.
    let reply = client.send("GET", "/tasks?watch=maybe", b"").await?;
    assert_eq!(reply.status, 400, "{}", reply.text());
    let reply = client.send("GET", "/tasks", b"").await?;
    assert_eq!(reply.tasks()?, client.tasks().await?);
    pod.delete().await
}

/// The next event, brought about by a new task.
async fn next_of(client: &Client, watch: &mut Watch) -> Result<WatchEvent> {
    client.create(&task("new", &["true"])).await?;
    let next = watch.next(BOUND).await?.context("the stream ended")?;
    let WatchEvent::Added { task, .. } = &next else {
        bail!("{next:?}");
    };
    assert_eq!(task.name, "new");
    client.delete_and_wait("new", BOUND).await?;
    Ok(next)
}

fn is_bookmark(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Bookmark { .. })
}

fn is_gone(event: &WatchEvent, name: &str) -> bool {
    matches!(event, WatchEvent::Deleted { task, .. } if task.name == name)
}

fn kinds(events: &[WatchEvent]) -> Vec<&'static str> {
    events.iter().map(kind).collect()
}

fn kind(event: &WatchEvent) -> &'static str {
    match event {
        WatchEvent::Reset { .. } => "reset",
        WatchEvent::Added { .. } => "added",
        WatchEvent::Modified { .. } => "modified",
        WatchEvent::Deleted { .. } => "deleted",
        WatchEvent::Bookmark { .. } => "bookmark",
        WatchEvent::Unknown => "unknown",
    }
}

/// What was told of a task, without repetitions.
fn of(events: &[WatchEvent], name: &str) -> Vec<String> {
    let mut seen: Vec<String> = events
        .iter()
        .filter_map(|event| match event {
            WatchEvent::Added { task, .. }
            | WatchEvent::Modified { task, .. }
            | WatchEvent::Deleted { task, .. }
                if task.name == name =>
            {
                let state: State = task.state();
                Some(format!("{} {state:?}", kind(event)))
            }
            _ => None,
        })
        .collect();
    seen.dedup();
    seen
}
