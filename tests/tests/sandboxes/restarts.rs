//! `recycleStrategy: {type: Restart}`: a pod that is given back stays, and everything in its containers is started
//! again.

#![cfg(test)]

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{BatchSandbox, Pool};
use opensandbox_tests::pods::SANDBOX;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use super::site::{BOUND, Site, plain};

/// What somebody leaves running, to be found by.
const LEFT: &str = "471402";
/// The first process of a container ends by SIGTERM only if it says what to do then.
const ENDS: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_the_sidecar_is_restarted_and_given_again() -> Result<()> {
    let Some(site) = Site::start("restarts").await? else {
        return Ok(());
    };
    tokio::try_join!(alone(&site), in_container(&site))?;
    site.end().await
}

/// The sandbox without an executor.
async fn alone(site: &Site) -> Result<()> {
    let container = json!({"command": ["bash", "-c", ENDS]});
    site.plain_pool("alone", [0, 1, 1, 1], container, restart())
        .await?;
    given_back(site, "alone", json!({"replicas": 1, "poolRef": "alone"})).await
}

/// With the executor inside: tasks end with the container, and others can be given afterwards.
async fn in_container(site: &Site) -> Result<()> {
    let mut spec = json!({
        "template": plain(&json!({})),
        "capacitySpec": {"bufferMin": 0, "bufferMax": 1, "poolMin": 1, "poolMax": 1},
    });
    json_patch::merge(&mut spec, &restart());
    let pool = json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": "inside", "annotations": {labels::EXECUTOR_MODE: "in-container"}},
        "spec": spec,
    });
    site.create::<Pool>(pool).await?;
    let leaves = format!("sleep {LEFT} & exit 0");
    let task = json!({"spec": {"process": {"command": ["bash", "-c", leaves]}}});
    let spec = json!({"replicas": 1, "poolRef": "inside", "taskTemplate": task});
    given_back(site, "inside", spec.clone()).await?;
    site.sandbox("inside-again", spec).await?;
    succeeded(site, "inside-again").await
}

/// Waits until the one task of a sandbox has succeeded.
async fn succeeded(site: &Site, name: &str) -> Result<()> {
    site.until::<BatchSandbox>("the task", name, |sandbox| {
        let status = sandbox.status.as_ref();
        status.is_some_and(|status| status.task_succeed == 1)
    })
    .await?;
    Ok(())
}

fn restart() -> Value {
    json!({"recycleStrategy": {"type": "Restart"}})
}

/// A sandbox holds the only pod of the pool of this name, and is deleted: the pod stays and is clean.
async fn given_back(site: &Site, name: &str, spec: Value) -> Result<()> {
    site.counts(name, 1, 0).await?;
    let [pod] = site.idle(name).await?.try_into().unwrap_or_default();
    let uid = async || {
        let object = site.pod(&pod).object().await?;
        object.metadata.uid.context("a stored object has a uid")
    };
    let before = uid().await?;
    let restarts = site.pod(&pod).status(SANDBOX).await?.restart_count;
    let with_tasks = spec.get("taskTemplate").is_some();
    site.sandbox(name, spec).await?;
    site.ready(name, 1).await?;
    if with_tasks {
        succeeded(site, name).await?;
    }
    ensure!(site.held(name).await? == [pod.as_str()]);
    site.delete::<BatchSandbox>(name).await?;
    site.gone::<BatchSandbox>(name).await?;
    let restarted = wait::until("the restart of the container", BOUND, async || {
        let status = site.pod(&pod).status(SANDBOX).await?;
        Ok(if status.restart_count > restarts && status.ready {
            Probe::Done(())
        } else {
            Probe::not_yet(format!(
                "{} restarts, {:?}",
                status.restart_count, status.state
            ))
        })
    });
    restarted.await?;
    site.counts(name, 1, 0).await?;
    ensure!(uid().await? == before, "another pod has the name {pod}");
    let processes = site
        .pod(&pod)
        .exec_ok(SANDBOX, &["ps", "-eo", "args"])
        .await?;
    ensure!(!processes.contains(LEFT), "{processes}");
    Ok(())
}
