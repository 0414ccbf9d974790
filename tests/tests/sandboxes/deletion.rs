//! BatchSandboxes that are deleted at bad moments: they are gone in bounded time, and leave no pod, no
//! finalizer and no process of a task behind; what they held goes back as the Pool's policy says.

#![cfg(test)]

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use opensandbox_api::conditions::{self, batch_sandbox};
use opensandbox_api::v1alpha1::{BatchSandbox, Pool};
use serde_json::{Value, json};

use super::runs::script;
use super::site::{Site, plain};

/// What a task runs that does not want to end: it ignores SIGTERM, and leaves a process that has left its
/// session. The number is what such processes are found by.
fn stubborn(name: &str, number: u32) -> Value {
    let mut task = script(
        name,
        &format!(
            "trap '' TERM; (setsid sh -c \"trap '' TERM; sleep {number}; :\" &); sleep {number}; left end"
        ),
    );
    task["spec"]["gracePeriodSeconds"] = json!(1);
    task
}

/// UIDs of the pods of a Pool.
async fn uids(site: &Site, pool: &str) -> Result<BTreeSet<String>> {
    let pods = site.pods(pool).await?.into_iter();
    Ok(pods.filter_map(|pod| pod.metadata.uid).collect())
}

/// No process of the tasks that were found by this number is left in these pods.
async fn nothing_runs(site: &Site, pods: &[String], number: u32) -> Result<()> {
    for pod in pods {
        let left = site
            .executor(pod)
            .await?
            .processes_with(&number.to_string())
            .await?;
        ensure!(left.is_empty(), "{left:?} is left in {pod}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_before_it_has_all_its_pods() -> Result<()> {
    let Some(site) = Site::start("allocating").await? else {
        return Ok(());
    };
    let noop = json!({"recycleStrategy": {"type": "Noop"}});
    site.plain_pool("scarce", [0, 2, 2, 2], json!({}), noop)
        .await?;
    site.counts("scarce", 2, 0).await?;
    let pods = uids(&site, "scarce").await?;
    site.sandbox("greedy", json!({"replicas": 3, "poolRef": "scarce"}))
        .await?;
    site.until::<BatchSandbox>("two pods, and that it waits", "greedy", |sandbox| {
        sandbox.status.as_ref().is_some_and(|status| {
            let waits =
                conditions::find(&status.conditions, batch_sandbox::POOL_ALLOCATION_PENDING);
            status.ready == 2 && waits.is_some_and(|waits| waits.status == "True")
        })
    })
    .await?;
    // Somebody waits behind it, and one who waits goes without having had anything.
    for (name, replicas) in [("behind", 2), ("hasty", 1)] {
        site.sandbox(name, json!({"replicas": replicas, "poolRef": "scarce"}))
            .await?;
    }
    site.delete::<BatchSandbox>("hasty").await?;
    site.gone::<BatchSandbox>("hasty").await?;
    site.delete::<BatchSandbox>("greedy").await?;
    site.gone::<BatchSandbox>("greedy").await?;
    site.ready("behind", 2).await?;
    ensure!(uids(&site, "scarce").await? == pods, "the pods are others");

    // With a template of its own, while its pods are being made and never will be.
    let template = plain(&json!({"image": "127.0.0.1:1/nothing:v1"}));
    site.sandbox("unmade", json!({"replicas": 2, "template": template}))
        .await?;
    site.until::<BatchSandbox>("words about the image", "unmade", |sandbox| {
        sandbox.status.as_ref().is_some_and(|status| {
            let failed = conditions::find(&status.conditions, batch_sandbox::POD_FAILED);
            failed.is_some_and(|failed| {
                failed.status == "True" && failed.message.contains("127.0.0.1:1/")
            })
        })
    })
    .await?;
    site.delete::<BatchSandbox>("unmade").await?;
    site.gone::<BatchSandbox>("unmade").await?;
    for pod in ["unmade-0", "unmade-1"] {
        site.gone::<PodObject>(pod).await?;
    }
    site.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_while_its_tasks_run() -> Result<()> {
    let Some(mut site) = Site::start("running").await? else {
        return Ok(());
    };
    let noop = json!({"recycleStrategy": {"type": "Noop"}});
    site.pool("kept", [0, 2, 2, 2], noop).await?;
    site.pool("fresh", [0, 1, 1, 1], json!({})).await?;
    site.counts("kept", 2, 0).await?;
    site.counts("fresh", 1, 0).await?;
    let (kept, fresh) = (uids(&site, "kept").await?, uids(&site, "fresh").await?);
    let sandbox = |pool: &str, replicas: u32, task: Value| json!({"replicas": replicas, "poolRef": pool, "taskTemplate": task});
    site.sandbox("one", sandbox("kept", 2, stubborn("one", 471_101)))
        .await?;
    site.sandbox("two", sandbox("fresh", 1, stubborn("two", 471_102)))
        .await?;
    site.runs.until("one", 2).await?;
    site.runs.until("two", 1).await?;
    let pods = site.held("one").await?;
    for name in ["one", "two"] {
        site.delete::<BatchSandbox>(name).await?;
    }
    for name in ["one", "two"] {
        site.gone::<BatchSandbox>(name).await?;
    }
    // Those that are kept are clean, and the same; the other is another.
    nothing_runs(&site, &pods, 471_101).await?;
    site.counts("kept", 2, 0).await?;
    ensure!(uids(&site, "kept").await? == kept, "the pods are others");
    site.counts("fresh", 1, 0).await?;
    ensure!(
        uids(&site, "fresh").await?.is_disjoint(&fresh),
        "a pod was used again"
    );

    // The same while no operator is there to see it.
    site.sandbox("three", sandbox("kept", 2, stubborn("three", 471_103)))
        .await?;
    site.runs.until("three", 2).await?;
    site.kill_operator().await?;
    site.delete::<BatchSandbox>("three").await?;
    let waits = site.get::<BatchSandbox>("three").await?;
    ensure!(waits.metadata.deletion_timestamp.is_some());
    site.restart_operator().await?;
    site.gone::<BatchSandbox>("three").await?;
    nothing_runs(&site, &pods, 471_103).await?;
    site.counts("kept", 2, 0).await?;
    ensure!(uids(&site, "kept").await? == kept, "the pods are others");
    site.runs.exactly("one", &["start", "start"])?;
    site.runs.exactly("two", &["start"])?;
    site.runs.exactly("three", &["start", "start"])?;
    site.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_while_its_pool_is() -> Result<()> {
    let Some(mut site) = Site::start("poolless").await? else {
        return Ok(());
    };
    site.pool("doomed", [1, 1, 2, 2], json!({})).await?;
    site.counts("doomed", 2, 0).await?;
    let task = stubborn("together", 471_201);
    site.sandbox(
        "together",
        json!({"replicas": 1, "poolRef": "doomed", "taskTemplate": task}),
    )
    .await?;
    site.runs.until("together", 1).await?;
    site.delete::<Pool>("doomed").await?;
    site.delete::<BatchSandbox>("together").await?;
    site.gone::<BatchSandbox>("together").await?;
    site.gone::<Pool>("doomed").await?;
    no_pods(&site, "doomed").await?;

    // The Pool first: whoever held a pod of it says that it is lost, and waits, and can go.
    site.plain_pool("doomed", [0, 0, 1, 1], json!({}), json!({}))
        .await?;
    site.sandbox("orphan", json!({"replicas": 1, "poolRef": "doomed"}))
        .await?;
    site.ready("orphan", 1).await?;
    site.delete::<Pool>("doomed").await?;
    site.gone::<Pool>("doomed").await?;
    no_pods(&site, "doomed").await?;
    let said = site.event("orphan", "PodLost").await?;
    ensure!(said.contains("doomed-"), "{said}");
    let orphan = site
        .until::<BatchSandbox>("that it has no pool", "orphan", |sandbox| {
            sandbox.status.as_ref().is_some_and(|status| {
                let waits =
                    conditions::find(&status.conditions, batch_sandbox::POOL_ALLOCATION_PENDING);
                waits.is_some_and(|waits| waits.reason == conditions::reason::POOL_NOT_FOUND)
            })
        })
        .await?;
    ensure!(orphan.status.context("a status")?.ready == 0);
    // Also by an operator that has seen nothing of all that.
    site.kill_operator().await?;
    site.delete::<BatchSandbox>("orphan").await?;
    site.restart_operator().await?;
    site.gone::<BatchSandbox>("orphan").await?;
    site.end().await
}

async fn no_pods(site: &Site, pool: &str) -> Result<()> {
    for pod in site.pods(pool).await? {
        site.gone::<PodObject>(&pod.metadata.name.context("a name")?)
            .await?;
    }
    Ok(())
}
