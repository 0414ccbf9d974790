//! Pools that are edited while sandboxes hold pods of them and others come and go.

#![cfg(test)]

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::api::{WatchEvent, WatchParams};
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{BatchSandbox, Pool};
use opensandbox_tests::images;
use opensandbox_tests::pods::SANDBOX;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::site::{BOUND, Site};

/// The pool, and its largest `poolMax`.
const POOL: &str = "edited";
const MOST: usize = 8;

fn capacity([buffer_min, buffer_max, pool_min, pool_max]: [u32; 4]) -> Value {
    json!({"spec": {"capacitySpec": {
        "bufferMin": buffer_min, "bufferMax": buffer_max, "poolMin": pool_min, "poolMax": pool_max,
    }}})
}

/// A template that differs in a variable.
fn version(version: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{
        "name": SANDBOX, "image": images::SANDBOX, "command": ["sleep", "infinity"],
        "env": [{"name": "VERSION", "value": version}],
    }]}}}})
}

fn version_of(pod: &PodObject) -> Option<&str> {
    let container = pod.spec.as_ref()?.containers.first()?;
    container.env.as_ref()?.first()?.value.as_deref()
}

/// UIDs and starts of the containers of the pods that a sandbox holds.
async fn held(site: &Site, name: &str) -> Result<Vec<(String, String)>> {
    let mut held = Vec::new();
    for pod in site.held(name).await? {
        let object = site.pod(&pod).object().await?;
        ensure!(
            object.metadata.deletion_timestamp.is_none(),
            "{pod} is being deleted"
        );
        let uid = object.metadata.uid.context("a UID")?;
        held.push((uid, site.pod(&pod).container_id(SANDBOX).await?));
    }
    Ok(held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_edited_converges_and_leaves_held_pods_alone() -> Result<()> {
    let Some(site) = Site::start("edited").await? else {
        return Ok(());
    };
    let watched = WatchParams::default().labels(&format!("{}={POOL}", labels::POOL_NAME));
    let events = site
        .namespace
        .api::<PodObject>()
        .watch(&watched, "0")
        .await?;
    site.plain_pool(POOL, [1, 1, 2, 4], json!({}), json!({}))
        .await?;
    site.sandbox("stays", json!({"replicas": 2, "poolRef": POOL}))
        .await?;
    site.ready("stays", 2).await?;
    let before = held(&site, "stays").await?;

    let (steps, mut seen) = watch::channel(0);
    let (guests, ()) = tokio::try_join!(visit(&site, &mut seen), edit(&site, steps))?;
    ensure!(guests > 0, "nobody came while the pool was edited");
    ensure!(held(&site, "stays").await? == before, "touched: {before:?}");

    site.delete::<BatchSandbox>("stays").await?;
    site.gone::<BatchSandbox>("stays").await?;
    let pool = site.counts(POOL, 2, 0).await?;
    ensure!(pool.status.and_then(|status| status.updated) == Some(2));
    let last = site.idle(POOL).await?;
    let last = last.first().context("an idle pod")?;
    let end = json!({"metadata": {"labels": {"the-end": ""}}});
    site.edit::<PodObject>(last, end).await?;
    tokio::time::timeout(BOUND, at_most(events, MOST, "the-end")).await??;
    site.end().await
}

/// Numbers up and down, the template once, and twice in a row. Nobody comes any more when `steps` is dropped.
async fn edit(site: &Site, steps: watch::Sender<u32>) -> Result<()> {
    let next = async |edit: Value| {
        steps.send_modify(|step| *step += 1);
        site.edit::<Pool>(POOL, edit).await
    };
    next(capacity([3, 3, 0, 8])).await?;
    site.until::<Pool>("more", POOL, |pool| {
        pool.status
            .as_ref()
            .is_some_and(|status| status.available == 3)
    })
    .await?;
    next(version("2")).await?;
    until_all_are(site, "2", 3).await?;
    // No more than what is held, and then less.
    next(capacity([0, 0, 0, 2])).await?;
    site.counts(POOL, 0, 2).await?;
    next(capacity([0, 0, 0, 1])).await?;
    site.until::<Pool>("that it was seen", POOL, |pool| {
        let generation = pool.metadata.generation;
        pool.status.as_ref().is_some_and(|status| {
            status.observed_generation == generation && (status.total, status.allocated) == (2, 2)
        })
    })
    .await?;
    next(capacity([2, 2, 0, 6])).await?;
    next(version("3")).await?;
    next(version("4")).await?;
    until_all_are(site, "4", 2).await
}

/// Waits until so many pods are free at least, and all that are free are of this version.
async fn until_all_are(site: &Site, version: &str, count: usize) -> Result<()> {
    wait::until("no outdated pod that is free", BOUND, async || {
        let free = site.idle(POOL).await?;
        let pods = site.pods(POOL).await?.into_iter();
        let free: Vec<_> = pods
            .filter(|pod| {
                pod.metadata
                    .name
                    .as_ref()
                    .is_some_and(|name| free.contains(name))
            })
            .collect();
        let versions: Vec<_> = free.iter().map(version_of).collect();
        let all = versions.len() >= count && versions.iter().all(|seen| *seen == Some(version));
        Ok(if all {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{versions:?}"))
        })
    })
    .await
}

/// While the pool is edited: one sandbox for each step, which comes, gets a pod, and goes. Returns how
/// many there were.
async fn visit(site: &Site, steps: &mut watch::Receiver<u32>) -> Result<u32> {
    let mut guests = 0;
    while steps.changed().await.is_ok() {
        let name = format!("guest-{guests}");
        site.sandbox(&name, json!({"replicas": 1, "poolRef": POOL}))
            .await?;
        // There may be no room for it in this step.
        let step = *steps.borrow();
        site.until::<BatchSandbox>("a pod, or the next step", &name, |guest| {
            let next = *steps.borrow() != step;
            next || guest
                .status
                .as_ref()
                .is_some_and(|status| status.ready == 1)
        })
        .await?;
        site.delete::<BatchSandbox>(&name).await?;
        site.gone::<BatchSandbox>(&name).await?;
        guests += 1;
    }
    Ok(guests)
}

/// Of all that was watched until a pod got this label, no more than so many were there at the same time.
async fn at_most(
    events: impl futures::Stream<Item = kube::Result<WatchEvent<PodObject>>>,
    most: usize,
    end: &str,
) -> Result<()> {
    let mut events = std::pin::pin!(events);
    let mut there = BTreeSet::new();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                if pod
                    .metadata
                    .labels
                    .is_some_and(|labels| labels.contains_key(end))
                {
                    return Ok(());
                }
                there.insert(pod.metadata.uid)
            }
            WatchEvent::Deleted(pod) => there.remove(&pod.metadata.uid),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(error) => bail!("{error:?}"),
        };
        ensure!(there.len() <= most, "{} pods at the same time", there.len());
    }
    bail!("the watch ended early")
}
