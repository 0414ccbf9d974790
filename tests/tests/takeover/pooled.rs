//! Pools and sandboxes without tasks, on fake nodes: what one controller made, the other goes on with.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::core::DynamicObject;
use opensandbox_tests::cluster::{Settings, start_or_skip};
use opensandbox_tests::kwok::Kwok;
use opensandbox_tests::upstream::{self, Controller};
use serde_json::{Value, json};

use super::picture::Picture;
use super::site::{Ours, Site, sandbox};

/// A Pool whose pods need no executor and run on a fake node.
fn pool(name: &str, capacity: [i32; 4], recycle: &str) -> Value {
    let [buffer_min, buffer_max, pool_min, pool_max] = capacity;
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": name, "labels": {"sandbox.opensandbox.io/task-executor": "disabled"}},
        "spec": {
            "template": template(),
            "capacitySpec": {"bufferMin": buffer_min, "bufferMax": buffer_max,
                             "poolMin": pool_min, "poolMax": pool_max},
            "scaleStrategy": {"maxUnavailable": "100%"},
            "recycleStrategy": {"type": recycle},
        },
    })
}

fn template() -> Value {
    json!({
        "spec": {
            "nodeName": "fake-0", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "sandbox", "image": "fake", "command": ["sleep", "infinity"]}],
        },
    })
}

/// A BatchSandbox with a template of its own.
fn own_template(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "template": template(),
            "shardPatches": [{"metadata": {"labels": {"patched": "yes"}}}],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_cluster_goes_over_and_back() -> Result<()> {
    let Some(program) = upstream::program(upstream::CONTROLLER)? else {
        return Ok(());
    };
    let audit = Settings {
        audit: true,
        ..Settings::default()
    };
    let Some(cluster) = start_or_skip(audit).await? else {
        return Ok(());
    };
    let site = Site { cluster: &cluster };
    upstream::install(site.administrator()).await?;
    let _kwok = Kwok::start(&cluster, 2).await?;

    let theirs = Controller::start(site.administrator(), program.clone()).await?;
    populate(&site, &theirs).await?;
    theirs.stop().await?;
    // What users do while nobody leads.
    site.delete("batchsandbox", "deleted-meanwhile").await?;
    site.scale("grows-meanwhile", 2).await?;
    let before = site.picture().await?;

    let ours = site.install_ours(&[]).await?;
    adopted(&site, &ours, &before).await?;
    at_work(&site, &ours).await?;
    ours.operator.stop().await?;
    // Again what users do while nobody leads.
    site.delete("batchsandbox", "made-by-ours-deleted-meanwhile")
        .await?;
    site.scale("made-by-ours-grows-meanwhile", 2).await?;
    let before = site.picture().await?;

    let theirs = Controller::start(site.administrator(), program).await?;
    back(&site, &theirs, &before).await?;
    theirs.stop().await
}

/// What users have when ours is installed.
async fn populate(site: &Site<'_>, theirs: &Controller) -> Result<()> {
    let log = || theirs.program.log().unwrap_or_default();
    site.create(&pool("deleting", [2, 4, 4, 14], "Delete"))
        .await?;
    site.create(&pool("reusing", [1, 3, 2, 8], "Noop")).await?;
    site.create(&pool("full", [0, 0, 2, 2], "Delete")).await?;
    for (name, pool, replicas) in [
        ("pair", "deleting", 2),
        ("single", "deleting", 1),
        ("deleted-meanwhile", "deleting", 1),
        ("grows-meanwhile", "deleting", 1),
        ("reused", "reusing", 3),
    ] {
        site.create(&sandbox(name, pool, replicas)).await?;
        site.until_ready(name, usize::try_from(replicas)?, log)
            .await?;
    }
    site.create(&own_template("own", 2)).await?;
    site.until_ready("own", 2, log).await?;
    // Asks for more than there can be: upstream gives what there is.
    site.create(&sandbox("waiting", "full", 3)).await?;
    site.until_ready("waiting", 2, log).await?;
    for name in ["deleting", "reusing", "full"] {
        site.until("a settled pool", "Pool", name, log, |pool| {
            let status = &pool.data["status"];
            let number = |field: &str| status[field].as_i64().unwrap_or_default();
            number("total") > 0 && number("available") + number("allocated") == number("total")
        })
        .await?;
    }
    Ok(())
}

/// Ours goes on with all of it, changes nothing that need not change, and says how it stands.
async fn adopted(site: &Site<'_>, ours: &Ours, before: &Picture) -> Result<()> {
    let log = || ours.operator.program.log().unwrap_or_default();
    site.until_gone("batchsandbox", "deleted-meanwhile", log)
        .await?;
    site.until_ready("grows-meanwhile", 2, log).await?;
    for name in ["deleting", "reusing", "full"] {
        // Idle pods of upstream's revision are replaced once; see docs/migration.md.
        site.until("an adopted pool", "Pool", name, log, |pool| {
            let status = &pool.data["status"];
            has_condition(pool, "Progressing", "False")
                && status["observedGeneration"].as_i64() == pool.metadata.generation
        })
        .await?;
    }
    for (name, ready) in [("pair", 2), ("single", 1), ("reused", 3), ("own", 2)] {
        // A condition that upstream leaves out, rather than to say that it is false.
        let written = |sandbox: &DynamicObject| has_condition(sandbox, "PodFailed", "False");
        site.until("our status", "BatchSandbox", name, log, written)
            .await?;
        site.until_ready(name, ready, log).await?;
    }
    let waits = |sandbox: &DynamicObject| has_condition(sandbox, "PoolAllocationPending", "True");
    site.until("that it waits", "BatchSandbox", "waiting", log, waits)
        .await?;
    let after = site.picture().await?;
    before
        .ensure_untouched(&after, &["grows-meanwhile"], &["deleted-meanwhile"])
        .with_context(log)?;
    let writes = site.writes()?;
    for name in ["pair", "single", "reused", "own", "waiting"] {
        let of_it: Vec<_> = writes
            .iter()
            .filter(|write| write.ends_with(&format!(" {name}")))
            .collect();
        let status = format!("patch batchsandboxes/status {name}");
        ensure!(
            of_it.iter().all(|write| **write == status) && of_it.len() <= 2,
            "{of_it:?} of {writes:#?}"
        );
    }
    Ok(())
}

fn has_condition(object: &DynamicObject, kind: &str, status: &str) -> bool {
    let conditions = object.data["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|one| one["type"] == kind && one["status"] == status)
}

/// Everything that users do works on what was adopted.
async fn at_work(site: &Site<'_>, ours: &Ours) -> Result<()> {
    let log = || ours.operator.program.log().unwrap_or_default();
    for (name, pool, replicas) in [
        ("made-by-ours", "deleting", 2),
        ("made-by-ours-deleted-meanwhile", "deleting", 1),
        ("made-by-ours-grows-meanwhile", "reusing", 1),
    ] {
        site.create(&sandbox(name, pool, replicas)).await?;
        site.until_ready(name, usize::try_from(replicas)?, log)
            .await?;
    }
    let before = site.picture().await?;
    site.scale("pair", 3).await?;
    site.scale("own", 3).await?;
    site.delete("batchsandbox", "single").await?;
    site.until_ready("pair", 3, log).await?;
    site.until_ready("own", 3, log).await?;
    site.until_gone("batchsandbox", "single", log).await?;
    let after = site.picture().await?;
    before.ensure_untouched(&after, &["pair", "own"], &["single"])?;
    site.scale("reused", 1).await?;
    let kept = site.until_ready("reused", 1, log).await?;
    ensure!(kept.len() == 1, "{kept:?}");
    Ok(())
}

/// Upstream's goes on with what ours left.
async fn back(site: &Site<'_>, theirs: &Controller, before: &Picture) -> Result<()> {
    let log = || theirs.program.log().unwrap_or_default();
    site.until_gone("batchsandbox", "made-by-ours-deleted-meanwhile", log)
        .await?;
    site.until_ready("made-by-ours-grows-meanwhile", 2, log)
        .await?;
    site.create(&sandbox("made-by-theirs", "deleting", 1))
        .await?;
    site.until_ready("made-by-theirs", 1, log).await?;
    let after = site.picture().await?;
    before
        .ensure_untouched(
            &after,
            // Pods of the second may have been on their way back.
            &["made-by-ours-grows-meanwhile", "reused"],
            &["made-by-ours-deleted-meanwhile"],
        )
        .with_context(log)?;
    site.scale("pair", 4).await?;
    site.until_ready("pair", 4, log).await?;
    let all = site.api("BatchSandbox").await?;
    let all = all.list(&ListParams::default()).await?.items;
    for sandbox in &all {
        site.delete("batchsandbox", &sandbox.name_any()).await?;
    }
    for sandbox in &all {
        site.until_gone("batchsandbox", &sandbox.name_any(), log)
            .await?;
    }
    for name in ["deleting", "reusing", "full"] {
        site.until("nothing allocated", "Pool", name, log, |pool| {
            let status = &pool.data["status"];
            status["allocated"] == 0 && status["available"] == status["total"]
        })
        .await?;
    }
    ensure!(site.picture().await?.pods() == 0);
    Ok(())
}
