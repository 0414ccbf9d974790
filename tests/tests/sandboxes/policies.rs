//! When sandboxes end by themselves, and what becomes of their pods when their tasks have ended.

#![cfg(test)]

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::conditions::{self, batch_sandbox};
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::BatchSandbox;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use super::runs::script;
use super::site::{BOUND, Site};

/// A finalizer of the test, so that an object that is deleted can still be looked at.
const HOLD: &str = "test.opensandbox.io/hold";
/// The operator's finalizers.
const PODS: &str = labels::POOL_ALLOCATION_FINALIZER;
const TASKS: &str = labels::TASK_CLEANUP_FINALIZER;

fn hold(finalizers: &[&str]) -> Value {
    json!({"metadata": {"finalizers": finalizers}})
}

/// Waits until an object is being deleted and nobody but the test keeps it, lets it go, and returns when
/// its deletion was asked for.
async fn let_go(site: &Site, name: &str) -> Result<Timestamp> {
    let object = site
        .until::<BatchSandbox>("its end", name, |sandbox| {
            let deleted = sandbox.metadata.deletion_timestamp.is_some();
            deleted && sandbox.metadata.finalizers.as_deref() == Some(&[HOLD.to_owned()])
        })
        .await?;
    site.edit::<BatchSandbox>(name, hold(&[])).await?;
    site.gone::<BatchSandbox>(name).await?;
    Ok(object.metadata.deletion_timestamp.context("a time")?.0)
}

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_end_when_their_time_has_come_and_not_before() -> Result<()> {
    let Some(site) = Site::start("times").await? else {
        return Ok(());
    };
    site.pool("times", [1, 1, 1, 6], json!({})).await?;
    site.counts("times", 1, 0).await?;
    let before = site.idle("times").await?;

    // One that is over before it began gets nothing.
    let mut past = json!({"replicas": 1, "poolRef": "times", "expireTime": "2020-02-02T02:02:02Z"});
    past["taskTemplate"] = script("past", "left end");
    site.sandbox("past", past).await?;
    site.gone::<BatchSandbox>("past").await?;
    site.runs.exactly("past", &[])?;
    ensure!(
        site.idle("times").await? == before,
        "a pod was used for one that was over"
    );

    tokio::try_join!(renewed(&site), finished(&site), empty(&site))?;
    site.counts("times", 1, 0).await?;
    site.end().await
}

/// One whose end is near, and then a little further.
async fn renewed(site: &Site) -> Result<()> {
    site.sandbox("near", json!({"replicas": 1, "poolRef": "times"}))
        .await?;
    let made = site.ready("near", 1).await?.metadata;
    let made = made.creation_timestamp.context("a time")?.0;
    site.edit::<BatchSandbox>("near", hold(&[HOLD, PODS]))
        .await?;
    // By the clock of the API server, which is also that of the deletion.
    let at = |after: i64| json!({"spec": {"expireTime": (made + seconds(after)).to_string()}});
    site.edit::<BatchSandbox>("near", at(3600)).await?;
    site.edit::<BatchSandbox>("near", at(12)).await?;
    let ended = let_go(site, "near").await?;
    ensure!(
        ended >= made + seconds(12),
        "{ended}: before {made} and 12 s"
    );
    Ok(())
}

/// One that lives two seconds longer than its last task.
async fn finished(site: &Site) -> Result<()> {
    let mut spec = json!({"replicas": 2, "poolRef": "times", "ttlSecondsAfterFinished": 2});
    spec["taskTemplate"] = script("finished", "wait_for $TURN; left end; exit $CODE");
    let task = |turn: &str, code: &str| {
        let env = json!([{"name": "TURN", "value": turn}, {"name": "CODE", "value": code}]);
        json!({"spec": {"process": {"env": env}}})
    };
    spec["shardTaskPatches"] = json!([task("first", "0"), task("last", "5")]);
    site.sandbox("finished", spec).await?;
    site.runs.until("finished", 2).await?;
    site.edit::<BatchSandbox>("finished", hold(&[HOLD, PODS, TASKS]))
        .await?;
    site.runs.open("first")?;
    site.until::<BatchSandbox>("the end of one task", "finished", |sandbox| {
        let status = sandbox.status.as_ref();
        status.is_some_and(|status| (status.task_succeed, status.task_running) == (1, 1))
    })
    .await?;
    let alive = site.get::<BatchSandbox>("finished").await?;
    ensure!(
        alive.metadata.deletion_timestamp.is_none(),
        "one task still runs"
    );
    site.runs.open("last")?;
    let over = site
        .until::<BatchSandbox>("the end of both", "finished", |sandbox| {
            sandbox.status.as_ref().is_some_and(|status| {
                conditions::is_true(&status.conditions, batch_sandbox::TASKS_FINISHED)
            })
        })
        .await?;
    let status = over.status.context("a status")?;
    let finished = conditions::find(&status.conditions, batch_sandbox::TASKS_FINISHED);
    let finished = finished.context("a condition")?;
    ensure!(
        finished.reason == conditions::reason::TASKS_FAILED,
        "{finished:?}"
    );
    let ended = let_go(site, "finished").await?;
    let earliest = finished.last_transition_time.0 + seconds(2);
    ensure!(ended >= earliest, "{ended}: before {earliest}");
    site.runs
        .exactly("finished", &["start", "start", "end", "end"])
}

/// Without a task nothing ends, so it lives until somebody deletes it.
async fn empty(site: &Site) -> Result<()> {
    let spec = json!({"replicas": 1, "poolRef": "times", "ttlSecondsAfterFinished": 0});
    site.sandbox("empty", spec).await?;
    let empty = site.ready("empty", 1).await?;
    ensure!(empty.metadata.deletion_timestamp.is_none());
    let status = empty.status.context("a status")?;
    ensure!(!conditions::is_true(
        &status.conditions,
        batch_sandbox::TASKS_FINISHED
    ));
    site.delete::<BatchSandbox>("empty").await?;
    site.gone::<BatchSandbox>("empty").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_ended_tasks_are_kept_or_go_back_as_the_policies_say() -> Result<()> {
    let Some(site) = Site::start("policies").await? else {
        return Ok(());
    };
    tokio::try_join!(
        ended(&site, "Retain", "Delete"),
        ended(&site, "Release", "Delete"),
        ended(&site, "Release", "Noop"),
    )?;
    site.end().await
}

/// Tasks end with 0 and with 6, one after the other, in pods of a Pool that recycles in this way.
async fn ended(site: &Site, policy: &str, recycle: &str) -> Result<()> {
    let name = format!("{policy}-{recycle}").to_lowercase();
    let strategy = json!({"recycleStrategy": {"type": recycle}});
    site.pool(&name, [0, 2, 2, 2], strategy).await?;
    site.counts(&name, 2, 0).await?;
    // Later the pod of the task that ends first may have another in its place.
    let both = site.pods(&name).await?;
    let before: BTreeSet<_> = both
        .into_iter()
        .filter_map(|pod| pod.metadata.uid)
        .collect();
    let mut spec =
        json!({"replicas": 2, "poolRef": name, "taskResourcePolicyWhenCompleted": policy});
    // What it leaves behind in the pod would go on.
    spec["taskTemplate"] = script(&name, "sleep 471401 & left end");
    spec["shardTaskPatches"] = json!([
        {},
        script(
            &name,
            &format!("sleep 471401 & wait_for {name}-last; left end; exit 6")
        ),
    ]);
    site.sandbox(&name, spec).await?;
    site.runs.until(&name, 3).await?;
    let first = site
        .until::<BatchSandbox>("one to succeed and the other to run", &name, |sandbox| {
            let status = sandbox.status.as_ref();
            status.is_some_and(|status| (status.task_succeed, status.task_running) == (1, 1))
        })
        .await?;
    ensure!(first.metadata.deletion_timestamp.is_none());
    site.runs.open(&format!("{name}-last"))?;
    let over = site
        .until::<BatchSandbox>("the end of both", &name, |sandbox| {
            let status = sandbox.status.as_ref();
            status.is_some_and(|status| (status.task_succeed, status.task_failed) == (1, 1))
        })
        .await?;
    let code = over.status.context("a status")?.task_results;
    let code = code
        .iter()
        .find(|result| result.index == 1)
        .and_then(|result| result.exit_code);
    ensure!(code == Some(6), "{code:?}");

    let same = || async {
        let pods = site.pods(&name).await?.into_iter();
        let pods: BTreeSet<_> = pods.filter_map(|pod| pod.metadata.uid).collect();
        Ok::<_, anyhow::Error>(pods.intersection(&before).count())
    };
    if policy == "Retain" {
        site.ready(&name, 2).await?;
        ensure!(site.held(&name).await?.len() == 2);
        let pool = site.counts(&name, 0, 2).await?;
        ensure!(pool.status.is_some_and(|status| status.total == 2));
        ensure!(same().await? == 2);
    } else {
        // Asked for first: all of this may be over before the Pool's status has begun to tell of it.
        let same_after = if recycle == "Noop" { 2 } else { 0 };
        let back = wait::until("both pods to be given back", BOUND, async || {
            let (held, same) = (site.held(&name).await?, same().await?);
            Ok(if held.is_empty() && same == same_after {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("{held:?} are held, {same} of the first pods there"))
            })
        });
        back.await?;
        site.counts(&name, 2, 0).await?;
        ensure!(same().await? == same_after);
        for pod in site.idle(&name).await? {
            let left = site.executor(&pod).await?.processes_with("471401").await?;
            ensure!(left.is_empty(), "{left:?} is left in {pod}");
        }
        // What was said of the tasks stays said.
        let object = site.get::<BatchSandbox>(&name).await?;
        let status = object.status.context("a status")?;
        ensure!(
            (status.task_succeed, status.task_failed) == (1, 1),
            "{status:?}"
        );
        ensure!(
            conditions::is_true(&status.conditions, batch_sandbox::READY),
            "{status:?}"
        );
        // The pods are there for others, also for one of the same name.
        site.delete::<BatchSandbox>(&name).await?;
        site.gone::<BatchSandbox>(&name).await?;
        let again = format!("{name}-again");
        let spec =
            json!({"replicas": 2, "poolRef": name, "taskTemplate": script(&again, "left end")});
        site.sandbox(&name, spec).await?;
        site.until::<BatchSandbox>("the end of both", &name, |sandbox| {
            sandbox
                .status
                .as_ref()
                .is_some_and(|status| status.task_succeed == 2)
        })
        .await?;
        site.runs
            .exactly(&again, &["start", "start", "end", "end"])?;
    }
    site.runs.exactly(&name, &["start", "start", "end", "end"])
}
