//! Annotations that lie: a sandbox claims pods that are not its.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use opensandbox_tests::operator::Operator;
use serde_json::{Value, json};

use super::{
    ALLOC_RELEASE, ALLOC_RELEASED, ALLOC_STATUS, arena, claim, of_pool, pool, sandbox, unharmed,
};
use crate::site::{Site, site};

/// Sandboxes that lie about what they hold, and what each of them names.
async fn liars(
    site: &Site,
    namespace: &str,
    lies: &[(&str, String)],
    era: &str,
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (word, pods) in lies {
        for (kind, annotations) in [
            ("holds", json!({ALLOC_STATUS: pods})),
            ("returns", json!({ALLOC_STATUS: pods, ALLOC_RELEASE: pods})),
            (
                "returned",
                json!({ALLOC_STATUS: pods, ALLOC_RELEASE: pods, ALLOC_RELEASED: pods}),
            ),
            ("releases", json!({ALLOC_RELEASE: pods})),
            ("released", json!({ALLOC_RELEASED: pods})),
        ] {
            let name = format!("{era}-{word}-{kind}");
            let spec = json!({"replicas": 1, "poolRef": "shared"});
            let mut object = sandbox(&name, &spec, &annotations);
            object["metadata"]["finalizers"] =
                json!(["pool.sandbox.opensandbox.io/pool-allocation"]);
            site.create(namespace, &object).await?;
            names.push(name);
        }
    }
    Ok(names)
}

/// The pod is what it was: the same, alive, and nobody else's.
async fn untouched(site: &Site, namespace: &str, pods: &[(String, Value)]) -> Result<()> {
    for (pod, uid) in pods {
        let now = site.object(namespace, "pod", pod).await?;
        ensure!(now["metadata"]["uid"] == *uid, "{pod} was replaced");
        ensure!(
            now["metadata"].get("deletionTimestamp").is_none(),
            "{pod} is being deleted"
        );
    }
    Ok(())
}

async fn with_uids(
    site: &Site,
    namespace: &str,
    pods: &BTreeSet<String>,
) -> Result<Vec<(String, Value)>> {
    let mut all = Vec::new();
    for pod in pods {
        let object = site.object(namespace, "pod", pod).await?;
        all.push((pod.clone(), object["metadata"]["uid"].clone()));
    }
    Ok(all)
}

/// Each liar ends with one pod, which is nobody else's and none of these.
async fn contained(
    site: &Site,
    namespace: &str,
    liars: &[String],
    theirs: &BTreeSet<String>,
) -> Result<()> {
    for liar in liars {
        let got = site.ready(namespace, liar, 1).await?;
        ensure!(got.is_disjoint(theirs), "{liar} has {got:?}");
    }
    site.nobody_shares(namespace).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_the_pods_of_others_gets_his_own() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let (crowded, quiet, operator) = arena(&site, "hostile").await?;
    site.create(&crowded, &pool("shared", [2, 4, 4, 100]))
        .await?;
    site.create(&crowded, &pool("other", [2, 2, 2, 4])).await?;
    site.create(&quiet, &pool("shared", [1, 4, 2, 8])).await?;
    for namespace in [&crowded, &quiet] {
        site.create(namespace, &of_pool("victim", 2, "shared"))
            .await?;
    }
    let victims = site.ready(&crowded, "victim", 2).await?;
    let far = site.ready(&quiet, "victim", 2).await?;
    // Somebody's own pod, with the label of the pool.
    site.create(
        &crowded,
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "stray", "labels": {"sandbox.opensandbox.io/pool-name": "shared"}},
            "spec": super::template()["spec"],
        }),
    )
    .await?;
    let stray = BTreeSet::from(["stray".to_owned()]);
    let others: BTreeSet<String> = site.pods(&crowded, "other", 2).await?.into_iter().collect();
    let kept = with_uids(&site, &crowded, &(&victims | &(&stray | &others))).await?;
    let far_kept = with_uids(&site, &quiet, &far).await?;
    let lies = [
        ("victim", claim(&victims)),
        ("far", claim(&far)),
        ("stray", claim(&stray)),
        ("other", claim(&others)),
        (
            "nobody",
            claim(&["nobody".to_owned(), "../../etc".to_owned()]),
        ),
    ];
    let all = &(&victims | &far) | &(&stray | &others);

    let running = liars(&site, &crowded, &lies, "live").await?;
    contained(&site, &crowded, &running, &all).await?;
    let judge = async |operator: &Operator| -> Result<()> {
        ensure!(site.ready(&crowded, "victim", 2).await? == victims);
        ensure!(site.ready(&quiet, "victim", 2).await? == far);
        untouched(&site, &crowded, &kept).await?;
        untouched(&site, &quiet, &far_kept).await?;
        unharmed(operator).await
    };
    judge(&operator).await?;

    // While nobody looks: new lies, and old objects whose truth is overwritten.
    operator.stop().await?;
    let asleep = liars(&site, &crowded, &lies, "dark").await?;
    for (liar, (_, pods)) in running.iter().zip(lies.iter().cycle()) {
        if liar.ends_with("-holds") {
            site.annotate(&crowded, liar, &json!({ALLOC_STATUS: pods}))
                .await?;
        }
    }
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    contained(&site, &crowded, &asleep, &all).await?;
    contained(&site, &crowded, &running, &all).await?;
    judge(&operator).await?;

    // And who behaves gets pods all the while.
    site.create(&crowded, &of_pool("late", 2, "shared")).await?;
    site.ready(&crowded, "late", 2).await?;
    site.kubectl(&[
        "delete",
        "batchsandbox",
        "--all",
        "-n",
        &crowded,
        "--timeout=60s",
    ])
    .await?;
    ensure!(site.ready(&quiet, "victim", 2).await? == far);
    untouched(&site, &quiet, &far_kept).await?;
    let log = operator.program.log()?;
    ensure!(!log.contains("panic"), "{log}");
    operator.stop().await
}
