//! One leader after the other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use opensandbox_tests::allocation::held;
use opensandbox_tests::wait::{self, Probe};
use serde_json::json;

use super::history::History;
use super::{Site, pool};

/// A lease outlives its holder by 15 seconds.
const TAKEN_OVER: Duration = Duration::from_mins(1);

async fn allocated(site: &Site, name: &str, wanted: usize) -> Result<()> {
    let sandboxes = site.api("BatchSandbox").await?;
    wait::until(
        &format!("{name} to hold {wanted}"),
        TAKEN_OVER,
        async || {
            let sandbox = sandboxes.get(name).await?;
            let holds = held(&sandbox).len();
            Ok(if holds == wanted {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("holds {holds}: {}", sandbox.data["status"]))
            })
        },
    )
    .await
}

fn sandbox(name: &str, replicas: u32) -> serde_json::Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "poolRef": "shared"},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_was_stopped_past_its_lease_does_no_harm() -> Result<()> {
    let Some(site) = Site::start().await? else {
        return Ok(());
    };
    site.create(&pool("shared", [2, 4, 4, 8], "Delete")).await?;
    let history = History::start(&site).await?;
    let first = site.operator(&[]).await?;
    first.ready().await?;
    site.create(&sandbox("before", 2)).await?;
    allocated(&site, "before", 2)
        .await
        .with_context(|| first.program.log().unwrap_or_default())?;

    let second = site.operator(&[]).await?;
    second.ready().await?;
    first.program.signal(Signal::SIGSTOP)?;
    for number in 0..3 {
        site.create(&sandbox(&format!("meanwhile-{number}"), 1))
            .await?;
    }
    for number in 0..3 {
        allocated(&site, &format!("meanwhile-{number}"), 1)
            .await
            .with_context(|| second.program.log().unwrap_or_default())?;
    }
    first.program.signal(Signal::SIGCONT)?;
    // It sees that it does not lead any more, says so, and ends.
    let exit = first.program.wait_for_exit(TAKEN_OVER).await?;
    ensure!(
        exit.code != Some(0),
        "the leader that lost its lease ended with {exit}"
    );
    site.create(&sandbox("after", 1)).await?;
    allocated(&site, "after", 1)
        .await
        .with_context(|| second.program.log().unwrap_or_default())?;
    let violations = history.stop().await?.violations();
    ensure!(
        violations.is_empty(),
        "violated:\n{}",
        violations.join("\n")
    );
    second.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_ends_in_order_hands_over_at_once() -> Result<()> {
    let Some(site) = Site::start().await? else {
        return Ok(());
    };
    site.create(&pool("shared", [2, 4, 4, 8], "Delete")).await?;
    let first = site.operator(&[]).await?;
    first.ready().await?;
    site.create(&sandbox("before", 1)).await?;
    allocated(&site, "before", 1)
        .await
        .with_context(|| first.program.log().unwrap_or_default())?;
    let second = site.operator(&[]).await?;
    second.ready().await?;
    first.stop().await?;
    site.create(&sandbox("after", 1)).await?;
    allocated(&site, "after", 1)
        .await
        .with_context(|| second.program.log().unwrap_or_default())?;
    second.stop().await
}
