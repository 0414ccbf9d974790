//! What is killed, by whomever, and what is true afterwards.

mod agent;
mod executor;
mod sandbox;

use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{End, LossReason, Task};
use opensandbox_tests::executor::{ExecutorPod, host};
use opensandbox_tests::wait::{self, Probe};

/// Short waits, on a busy machine.
const BOUND: Duration = Duration::from_mins(1);

/// How a task was lost, which it is to be.
fn loss(task: &Task) -> Result<LossReason> {
    let outcome = task
        .outcome
        .as_ref()
        .with_context(|| format!("{} has no outcome", task.name))?;
    match &outcome.end {
        End::Lost { reason, .. } => Ok(*reason),
        other => anyhow::bail!("task {} was not lost: {other:?}", task.name),
    }
}

/// Waits until no process of the pod has this in an argument.
async fn none_left(pod: &ExecutorPod<'_>, marker: &str) -> Result<()> {
    wait::until(
        &format!("no process with {marker} to be left"),
        BOUND,
        async || {
            let left = pod.processes_with(marker).await?;
            let left: Vec<_> = left.into_iter().map(host::arguments).collect();
            Ok(if left.is_empty() {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("{left:?}"))
            })
        },
    )
    .await
}

/// Waits until no process of the pod is left that has ended.
async fn no_zombies(pod: &ExecutorPod<'_>) -> Result<()> {
    wait::until("no process to be left that has ended", BOUND, async || {
        let zombies = pod.zombies().await?;
        Ok(if zombies.is_empty() {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{zombies:?}"))
        })
    })
    .await
}

/// Waits until a process has ended.
async fn ended(pid: i32) -> Result<()> {
    wait::until(&format!("the end of process {pid}"), BOUND, async || {
        Ok(if host::lives(pid) {
            Probe::not_yet("it lives")
        } else {
            Probe::Done(())
        })
    })
    .await
}
