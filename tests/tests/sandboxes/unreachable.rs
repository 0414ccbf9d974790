//! Executors that cannot be reached: what is not known is said to be not known, an answer is still
//! believed later, and a deletion does not wait for ever.

#![cfg(test)]

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opensandbox_api::conditions::{self, batch_sandbox};
use opensandbox_api::v1alpha1::{BatchSandbox, TaskResultState};
use opensandbox_tests::pods::EXECUTOR;
use serde_json::json;

use super::runs::script;
use super::site::Site;

/// Drops, or no longer drops, what is sent to a pod from outside of the node.
async fn cut_off(site: &Site, address: &str, action: &str) -> Result<()> {
    let rule = ["-w", action, "FORWARD", "-d", address, "-j", "DROP"];
    site.node.run("iptables", &rule).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_executor_is_not_reached_is_not_known_and_then_runs_once() -> Result<()> {
    let Some(site) = Site::start("cut-off").await? else {
        return Ok(());
    };
    site.pool("lonely", [0, 1, 1, 1], json!({})).await?;
    site.counts("lonely", 1, 0).await?;
    let pods = site.idle("lonely").await?;
    let pod = pods.first().context("a pod")?;
    let address = site.pod(pod).address().await?.to_string();
    // The kubelet is on the node and still finds it ready.
    cut_off(&site, &address, "-I").await?;
    let task = script("late", "left end; echo no luck >&2; exit 4");
    site.sandbox(
        "late",
        json!({"replicas": 1, "poolRef": "lonely", "taskTemplate": task}),
    )
    .await?;
    let unknown = site
        .until::<BatchSandbox>("that the task is not known", "late", |sandbox| {
            sandbox
                .status
                .as_ref()
                .is_some_and(|status| status.task_unknown == 1)
        })
        .await?;
    let status = unknown.status.context("a status")?;
    ensure!(
        status.ready == 1 && status.task_pending + status.task_running == 0,
        "{status:?}"
    );
    let finished = conditions::find(&status.conditions, batch_sandbox::TASKS_FINISHED);
    let finished = finished.context("a condition")?;
    ensure!(
        finished.status == "False" && finished.reason == "ExecutorUnreachable",
        "{finished:?}"
    );
    let result = status.task_results.first().context("a result")?;
    ensure!(result.state == TaskResultState::Unknown, "{result:?}");
    ensure!(
        result.message.as_ref().is_some_and(|said| !said.is_empty()),
        "{result:?}"
    );

    cut_off(&site, &address, "-D").await?;
    let ended = site
        .until::<BatchSandbox>("the end of the task", "late", |sandbox| {
            sandbox.status.as_ref().is_some_and(|status| {
                let result = status.task_results.first();
                status.task_failed == 1 && result.is_some_and(|result| result.stderr_tail.is_some())
            })
        })
        .await?;
    let status = ended.status.context("a status")?;
    ensure!(status.task_unknown == 0, "{status:?}");
    let result = status.task_results.first().context("a result")?;
    ensure!(
        result.exit_code == Some(4) && result.attempt == Some(0),
        "{result:?}"
    );
    ensure!(
        result.stderr_tail.as_deref() == Some("no luck"),
        "{result:?}"
    );
    site.runs.exactly("late", &["start", "end"])?;
    site.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_executor_hangs_is_not_used_again() -> Result<()> {
    let Some(site) = Site::start("hangs").await? else {
        return Ok(());
    };
    let noop = json!({"recycleStrategy": {"type": "Noop"}});
    site.pool("hung", [0, 2, 2, 2], noop).await?;
    site.counts("hung", 2, 0).await?;
    let task = script("hung", "sleep 471301; left end");
    site.sandbox(
        "hung",
        json!({"replicas": 2, "poolRef": "hung", "taskTemplate": task}),
    )
    .await?;
    site.runs.until("hung", 2).await?;
    let held = site.held("hung").await?;
    let [hangs, answers] = <[String; 2]>::try_from(held).ok().context("two pods")?;
    let uid = site.pod(&answers).uid().await?;
    let executor = Pid::from_raw(site.pod(&hangs).main_pid(EXECUTOR).await?);
    kill(executor, Signal::SIGSTOP)?;
    site.delete::<BatchSandbox>("hung").await?;
    site.gone::<BatchSandbox>("hung").await?;
    // Nobody has proved that nothing runs in it; in the other that is proved.
    site.gone::<PodObject>(&hangs).await?;
    site.counts("hung", 2, 0).await?;
    ensure!(site.pod(&answers).uid().await? == uid);
    let left = site
        .executor(&answers)
        .await?
        .processes_with("471301")
        .await?;
    ensure!(left.is_empty(), "{left:?}");
    site.runs.exactly("hung", &["start", "start"])?;
    site.end().await
}
