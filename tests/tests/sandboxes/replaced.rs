//! Idle pods that fail, vanish, or cannot be started are replaced, and the Pool says what is wrong with
//! them; the pods of sandboxes are left to their sandboxes.

#![cfg(test)]

use std::collections::BTreeMap;
use std::slice;

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod as PodObject;
use k8s_openapi::jiff::Timestamp;
use kube::api::{EvictParams, WatchEvent, WatchParams};
use opensandbox_api::conditions::{self, batch_sandbox, pool};
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{BatchSandbox, Pool};
use opensandbox_tests::pods::SANDBOX;
use opensandbox_tests::wait::{self, Probe};
use serde_json::json;

use super::site::{BOUND, Site};

/// What a condition of a Pool says, if it has this status.
fn says(object: &Pool, type_: &str, status: &str) -> Option<String> {
    let found = conditions::find(&object.status.as_ref()?.conditions, type_)?;
    (found.status == status).then(|| found.message.clone())
}

async fn uid(site: &Site, pod: &str) -> Result<String> {
    site.pod(pod).uid().await
}

/// Waits until none of these pods is idle any more and others are in their place.
async fn others(site: &Site, pool: &str, gone: &[String], count: usize) -> Result<Vec<String>> {
    wait::until(&format!("other idle pods in {pool}"), BOUND, async || {
        let idle = site.idle(pool).await?;
        let replaced = !idle.iter().any(|name| gone.contains(name)) && idle.len() == count;
        Ok(if replaced {
            Probe::Done(idle)
        } else {
            Probe::not_yet(format!("{idle:?}"))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_not_ready_any_more_is_told_and_not_given_and_replaced() -> Result<()> {
    let Some(site) = Site::start("unready").await? else {
        return Ok(());
    };
    let container = json!({
        "command": ["sh", "-c", "touch /tmp/well; exec sleep infinity"],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/well"]},
                           "periodSeconds": 1, "failureThreshold": 1},
    });
    site.plain_pool("moody", [1, 1, 2, 2], container, json!({}))
        .await?;
    site.sandbox("holder", json!({"replicas": 1, "poolRef": "moody"}))
        .await?;
    site.ready("holder", 1).await?;
    site.counts("moody", 1, 1).await?;
    let held = site.held("holder").await?;
    let idle = site.idle("moody").await?;
    let (held, idle) = (
        held.first().context("a pod")?,
        idle.first().context("a pod")?,
    );
    let before = uid(&site, held).await?;
    for pod in [held, idle] {
        site.pod(pod).exec_ok(SANDBOX, &["rm", "/tmp/well"]).await?;
    }

    let seen = site
        .until::<Pool>("words about it", "moody", |pool| {
            let said = says(pool, pool::READY, "False").unwrap_or_default();
            said.starts_with("0 idle pods are ready, bufferMin is 1; 1 pods: ContainersNotReady:")
                && said.contains(SANDBOX)
        })
        .await?;
    ensure!(seen.status.is_some_and(|status| status.total == 2));
    site.until::<BatchSandbox>("words about it", "holder", |sandbox| {
        let status = sandbox.status.as_ref();
        let ready =
            status.and_then(|status| conditions::find(&status.conditions, batch_sandbox::READY));
        ready.is_some_and(|ready| {
            ready.status == "False" && ready.message == "0 of 1 sandboxes are ready"
        })
    })
    .await?;
    // What is not ready is not given; what is well again is.
    site.sandbox("next", json!({"replicas": 1, "poolRef": "moody"}))
        .await?;
    site.until::<BatchSandbox>("its reason to wait", "next", |sandbox| {
        let status = sandbox.status.as_ref();
        status.is_some_and(|status| {
            conditions::is_true(&status.conditions, batch_sandbox::POOL_ALLOCATION_PENDING)
        })
    })
    .await?;
    site.pod(idle)
        .exec_ok(SANDBOX, &["touch", "/tmp/well"])
        .await?;
    site.ready("next", 1).await?;
    ensure!(site.held("next").await? == slice::from_ref(idle));
    // Not if it stays so.
    site.delete::<BatchSandbox>("next").await?;
    site.gone::<BatchSandbox>("next").await?;
    site.counts("moody", 1, 1).await?;
    let idle = site.idle("moody").await?;
    site.pod(idle.first().context("a pod")?)
        .exec_ok(SANDBOX, &["rm", "/tmp/well"])
        .await?;
    let said = site.event("moody", "PodsReplaced").await?;
    ensure!(said.contains("ContainersNotReady"), "{said}");
    others(&site, "moody", &idle, 1).await?;
    site.counts("moody", 1, 1).await?;
    // Whoever holds a pod that is not ready keeps it.
    ensure!(site.held("holder").await? == slice::from_ref(held));
    ensure!(uid(&site, held).await? == before);
    site.pod(held)
        .exec_ok(SANDBOX, &["touch", "/tmp/well"])
        .await?;
    site.ready("holder", 1).await?;
    site.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_end_or_crash_are_replaced() -> Result<()> {
    let Some(site) = Site::start("failed").await? else {
        return Ok(());
    };
    tokio::try_join!(failed(&site), crashing(&site), hopeless(&site))?;
    site.end().await
}

/// Of pods that never start again, one that failed is replaced; so is that of a sandbox, which says so.
async fn failed(site: &Site) -> Result<()> {
    let container =
        json!({"command": ["sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 3"]});
    let never = json!({"template": {"spec": {"restartPolicy": "Never"}}});
    site.plain_pool("mortal", [2, 2, 0, 5], container, never)
        .await?;
    site.sandbox("keeper", json!({"replicas": 1, "poolRef": "mortal"}))
        .await?;
    site.ready("keeper", 1).await?;
    site.counts("mortal", 2, 1).await?;
    let held = site.held("keeper").await?;
    let idle = site.idle("mortal").await?;
    let ends = idle.first().context("an idle pod")?;
    site.pod(ends)
        .exec_ok(SANDBOX, &["touch", "/tmp/end"])
        .await?;
    let said = site.event("mortal", "PodsReplaced").await?;
    ensure!(
        said.contains("Error: container sandbox-container: ended with exit code 3"),
        "{said}"
    );
    others(site, "mortal", slice::from_ref(ends), 2).await?;
    site.counts("mortal", 2, 1).await?;
    ensure!(site.held("keeper").await? == held, "replaced by scaling");

    let ends = held.first().context("a pod")?;
    site.pod(ends)
        .exec_ok(SANDBOX, &["touch", "/tmp/end"])
        .await?;
    let said = site.event("keeper", "PodLost").await?;
    ensure!(
        said.contains(ends) && said.contains("exit code 3"),
        "{said}"
    );
    site.gone::<PodObject>(ends).await?;
    site.ready("keeper", 1).await?;
    ensure!(site.held("keeper").await? != held);
    site.counts("mortal", 2, 1).await?;
    Ok(())
}

/// A container that crashes again and again.
async fn crashing(site: &Site) -> Result<()> {
    site.plain_pool("sickly", [1, 1, 0, 2], json!({}), json!({}))
        .await?;
    site.counts("sickly", 1, 0).await?;
    let sick = json!({"spec": {"template": {"spec": {"containers": [
        {"name": SANDBOX, "image": opensandbox_tests::images::SANDBOX, "command": ["sh", "-c", "exit 1"]},
    ]}}}});
    site.edit::<Pool>("sickly", sick).await?;
    site.until::<Pool>("words about the crash", "sickly", |pool| {
        let said = says(pool, pool::READY, "False").unwrap_or_default();
        said.contains("CrashLoopBackOff: container sandbox-container:")
    })
    .await?;
    let said = site.event("sickly", "PodsReplaced").await?;
    ensure!(said.contains("CrashLoopBackOff"), "{said}");
    Ok(())
}

/// Pods that fail at once, each time: what replaces them comes later and later.
async fn hopeless(site: &Site) -> Result<()> {
    let container = json!({"command": ["false"]});
    let never = json!({"template": {"spec": {"restartPolicy": "Never"}}});
    let watched = WatchParams::default().labels(&format!("{}=hopeless", labels::POOL_NAME));
    let mut events = Box::pin(
        site.namespace
            .api::<PodObject>()
            .watch(&watched, "0")
            .await?,
    );
    site.plain_pool("hopeless", [1, 1, 0, 1], container, never)
        .await?;
    let mut made = BTreeMap::<String, Timestamp>::new();
    let seen = async {
        while made.len() < 5 {
            let event = events.try_next().await?.context("the watch ended")?;
            if let WatchEvent::Added(pod) = event {
                let created = pod.metadata.creation_timestamp.context("a time")?;
                made.insert(pod.metadata.uid.context("a UID")?, created.0);
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(BOUND, seen)
        .await
        .context("five pods")??;
    let mut times: Vec<_> = made.into_values().collect();
    times.sort_unstable();
    let (second, fifth) = (times[1], times[4]);
    // 1 s, 2 s and 4 s lie between them, and times are in whole seconds. Later is always possible.
    ensure!(fifth.duration_since(second).as_secs() >= 6, "{times:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_cannot_be_had_is_told_until_the_template_is_mended() -> Result<()> {
    let Some(site) = Site::start("unpulled").await? else {
        return Ok(());
    };
    // Nobody listens there.
    let container = json!({"image": "127.0.0.1:1/nothing:v1"});
    site.plain_pool("unpulled", [2, 2, 0, 3], container, json!({}))
        .await?;
    site.until::<Pool>("words about the image", "unpulled", |pool| {
        let said = says(pool, pool::READY, "False").unwrap_or_default();
        said.starts_with("0 idle pods are ready, bufferMin is 2; ")
            && (said.contains("ErrImagePull") || said.contains("ImagePullBackOff"))
            && said.contains("127.0.0.1:1/nothing:v1")
    })
    .await?;
    let first = site.idle("unpulled").await?;
    let said = site.event("unpulled", "PodsReplaced").await?;
    ensure!(said.contains("127.0.0.1:1/nothing:v1"), "{said}");
    others(&site, "unpulled", &first, 2).await?;
    // A sandbox that waits for such pods hears of it as well.
    site.sandbox("waits", json!({"replicas": 2, "poolRef": "unpulled"}))
        .await?;
    site.until::<BatchSandbox>("its reason to wait", "waits", |sandbox| {
        let status = sandbox.status.as_ref();
        status.is_some_and(|status| {
            conditions::is_true(&status.conditions, batch_sandbox::POOL_ALLOCATION_PENDING)
        })
    })
    .await?;

    let image = json!({"spec": {"template": {"spec": {"containers": [
        {"name": SANDBOX, "image": opensandbox_tests::images::SANDBOX, "command": ["sleep", "infinity"]},
    ]}}}});
    site.edit::<Pool>("unpulled", image).await?;
    site.ready("waits", 2).await?;
    site.until::<Pool>("no more words about it", "unpulled", |pool| {
        says(pool, pool::READY, "True").is_some_and(|said| !said.contains("Image"))
    })
    .await?;
    site.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_are_deleted_or_evicted_are_replaced() -> Result<()> {
    let Some(site) = Site::start("deleted").await? else {
        return Ok(());
    };
    let noop = json!({"recycleStrategy": {"type": "Noop"}});
    site.plain_pool("prey", [2, 2, 0, 8], json!({}), noop)
        .await?;
    site.sandbox("keeper", json!({"replicas": 2, "poolRef": "prey"}))
        .await?;
    site.ready("keeper", 2).await?;
    site.counts("prey", 2, 2).await?;

    // Idle ones, each in another way.
    let mut idle = site.idle("prey").await?;
    let (by_hand, by_api) = (idle.remove(0), idle.remove(0));
    site.delete::<PodObject>(&by_hand).await?;
    let pods = site.namespace.api::<PodObject>();
    pods.evict(&by_api, &EvictParams::default()).await?;
    let idle = others(&site, "prey", &[by_hand, by_api], 2).await?;
    site.counts("prey", 2, 2).await?;
    let by_label = idle.first().context("an idle pod")?;
    let evict = json!({"metadata": {"labels": {labels::EVICT: ""}}});
    site.edit::<PodObject>(by_label, evict.clone()).await?;
    let said = site.event("prey", "PodEvicted").await?;
    ensure!(said.contains(by_label), "{said}");
    others(&site, "prey", slice::from_ref(by_label), 2).await?;

    // Those of a sandbox: the label waits until they are given back; the others are lost and replaced.
    let held = site.held("keeper").await?;
    let [labelled, evicted] = <[String; 2]>::try_from(held).ok().context("two pods")?;
    site.edit::<PodObject>(&labelled, evict).await?;
    pods.evict(&evicted, &EvictParams::default()).await?;
    let said = site.event("keeper", "PodLost").await?;
    ensure!(said.contains(&evicted), "{said}");
    site.gone::<PodObject>(&evicted).await?;
    site.ready("keeper", 2).await?;
    let now = site.held("keeper").await?;
    ensure!(
        now.first() == Some(&labelled) && now.get(1) != Some(&evicted),
        "{now:?}"
    );
    let endpoints = site
        .get::<BatchSandbox>("keeper")
        .await?
        .metadata
        .annotations;
    let endpoints = endpoints.and_then(|all| all.get(labels::ENDPOINTS).cloned());
    let mut addresses = Vec::new();
    for pod in &now {
        addresses.push(site.pod(pod).address().await?.to_string());
    }
    ensure!(
        endpoints == Some(serde_json::to_string(&addresses)?),
        "{endpoints:?} of {addresses:?}"
    );

    site.delete::<BatchSandbox>("keeper").await?;
    site.gone::<BatchSandbox>("keeper").await?;
    // Although it would be kept as it is, were there no label.
    site.gone::<PodObject>(&labelled).await?;
    site.counts("prey", 2, 0).await?;
    site.end().await
}
