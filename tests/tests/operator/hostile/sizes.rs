//! Specs that ask for far more than there is, or are as large as the API server takes them.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{arena, of_pool, pool, sandbox, template, unharmed};
use crate::site::{Site, site};

/// Nearly 1 MB, of which a pod may consist.
fn large_template() -> Value {
    let mut large = template();
    large["spec"]["containers"][0]["env"] = json!([{"name": "BULK", "value": "x".repeat(900_000)}]);
    large
}

async fn behaves(site: &Site, namespace: &str, name: &str, pool: &str) -> Result<()> {
    site.create(namespace, &of_pool(name, 2, pool)).await?;
    site.ready(namespace, name, 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_too_much_waits_and_is_told_why() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let (crowded, quiet, operator) = arena(&site, "huge").await?;
    site.create(&crowded, &pool("ten", [2, 4, 4, 10])).await?;
    site.create(&crowded, &pool("empty", [0, 0, 0, 0])).await?;
    for namespace in [&crowded, &quiet] {
        site.create(namespace, &pool("calm", [1, 4, 2, 10])).await?;
    }
    behaves(&site, &crowded, "first", "ten").await?;
    let first = site.ready(&crowded, "first", 2).await?;

    let hogs = [("hog", "ten"), ("starved", "empty"), ("lost", "missing")];
    for (name, pool) in hogs {
        site.create(&crowded, &of_pool(name, 10_000, pool)).await?;
    }
    let tasks = json!({
        "replicas": 1_000, "poolRef": "ten",
        "taskTemplate": {"spec": {"process": {"command": ["true"]}}},
        "shardTaskPatches": (0..1_000)
            .map(|index| json!({"spec": {"process": {"args": [index.to_string()]}}}))
            .collect::<Vec<_>>(),
    });
    site.create(&crowded, &sandbox("tasks", &tasks, &json!({})))
        .await?;

    // Each is told what it waits for, and what it can do about it.
    for (name, reason, words) in [
        (
            "hog",
            "PoolCapacityExhausted",
            "raise poolMax to 10000 or lower replicas",
        ),
        (
            "tasks",
            "PoolCapacityExhausted",
            "raise poolMax to 1000 or lower replicas",
        ),
        (
            "starved",
            "PoolCapacityExhausted",
            "raise poolMax to 10000 or lower replicas",
        ),
        (
            "lost",
            "PoolNotFound",
            "there is no Pool missing; create it",
        ),
    ] {
        let type_ = "PoolAllocationPending";
        let message = site
            .condition(&crowded, "batchsandbox", name, type_, reason)
            .await?;
        ensure!(
            message.contains(words) && message.len() <= 1024,
            "{name}: {message}"
        );
    }
    for (namespace, name) in [(&crowded, "second"), (&quiet, "only")] {
        behaves(&site, namespace, name, "calm").await?;
    }
    let pods = site.objects(&crowded, "pods").await?;
    let of_ten = pods
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["pool"] == "ten");
    ensure!(of_ten.count() <= 10);
    site.nobody_shares(&crowded).await?;
    unharmed(&operator).await?;

    // A restart finds them as they are; whoever came before keeps what it had.
    operator.stop().await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    ensure!(site.ready(&crowded, "first", 2).await? == first);
    behaves(&site, &quiet, "another", "calm").await?;
    unharmed(&operator).await?;
    for name in ["hog", "tasks", "starved", "lost"] {
        site.kubectl(&[
            "delete",
            "batchsandbox",
            name,
            "-n",
            &crowded,
            "--timeout=60s",
        ])
        .await?;
    }
    behaves(&site, &crowded, "third", "ten").await?;
    operator.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_templates_and_many_patches_cost_nobody_else_anything() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let (crowded, quiet, operator) = arena(&site, "large").await?;
    for namespace in [&crowded, &quiet] {
        site.create(namespace, &pool("calm", [1, 4, 2, 10])).await?;
    }
    let mut large = pool("large", [1, 2, 2, 4]);
    large["spec"]["template"] = large_template();
    site.create(&crowded, &large).await?;

    let patches: Vec<_> = (0..1_000)
        .map(|index| json!({"metadata": {"labels": {"shard": index.to_string()}}}))
        .collect();
    let spec = json!({"replicas": 3, "template": template(), "shardPatches": patches});
    site.create(&crowded, &sandbox("patched", &spec, &json!({})))
        .await?;
    let own = json!({"replicas": 2, "template": large_template()});
    site.create(&crowded, &sandbox("own", &own, &json!({})))
        .await?;
    // What no pod can be: the pods are refused, the object says so.
    let mut impossible = template();
    impossible["metadata"] = json!({"annotations": {"bulk": "x".repeat(900_000)}});
    let spec = json!({"replicas": 2, "template": impossible});
    site.create(&crowded, &sandbox("impossible", &spec, &json!({})))
        .await?;
    let mut refusing = pool("refusing", [1, 2, 2, 4]);
    refusing["spec"]["template"] = impossible;
    site.create(&crowded, &refusing).await?;

    for (name, replicas) in [("patched", 3), ("own", 2)] {
        let path = "status.ready";
        site.until(&crowded, "batchsandbox", name, path, |ready| {
            ready == &json!(replicas)
        })
        .await?;
    }
    for (index, shard) in ["0", "1", "2"].into_iter().enumerate() {
        let pod = site
            .object(&crowded, "pod", &format!("patched-{index}"))
            .await?;
        ensure!(pod["metadata"]["labels"]["shard"] == shard);
    }
    behaves(&site, &crowded, "user", "large").await?;
    let message = site
        .condition(
            &crowded,
            "batchsandbox",
            "impossible",
            "PodFailed",
            "PodRefused",
        )
        .await?;
    ensure!(
        message.contains("annotations") && message.len() <= 1024,
        "{message}"
    );
    let message = site
        .condition(
            &crowded,
            "pool",
            "refusing",
            "PodCreationFailed",
            "PodRefused",
        )
        .await?;
    ensure!(
        message.contains("annotations") && message.len() <= 1024,
        "{message}"
    );
    for (namespace, name) in [(&crowded, "second"), (&quiet, "only")] {
        behaves(&site, namespace, name, "calm").await?;
    }
    unharmed(&operator).await?;
    let log = operator.program.log()?;
    ensure!(!log.contains("xxxxxxxxxx"), "a template is in the log");
    site.kubectl(&[
        "delete",
        "batchsandbox",
        "--all",
        "-n",
        &crowded,
        "--timeout=60s",
    ])
    .await?;
    operator.stop().await
}
