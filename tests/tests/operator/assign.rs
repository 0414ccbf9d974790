//! `poolRef: "*"`: which pool is chosen, by which profile, and what is said where none fits.

use anyhow::{Result, ensure};
use opensandbox_tests::installation::NAMESPACE;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use crate::site::{BOUND, Site, site};

const CONFIG_MAP: &str = "pool-assign-profiles";

/// A Pool of one pod with this image.
async fn pool(site: &Site, namespace: &str, name: &str, image: &str, labels: Value) -> Result<()> {
    site.apply(&json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {
            "template": {"spec": {"containers": [{"name": "main", "image": image}]}},
            "capacitySpec": {"bufferMin": 0, "bufferMax": 1, "poolMin": 0, "poolMax": 1},
        },
    }))
    .await
}

/// A BatchSandbox that leaves the choice to the operator, by the image in its template.
async fn ask(site: &Site, namespace: &str, name: &str, image: &str) -> Result<()> {
    let template = json!({"spec": {"containers": [{"name": "main", "image": image}]}});
    site.apply(&json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"namespace": namespace, "name": name, "labels": {"team": "red"}},
        "spec": {"replicas": 1, "poolRef": "*", "template": template},
    }))
    .await
}

async fn chosen(site: &Site, namespace: &str, name: &str, pool: &str) -> Result<()> {
    let path = "spec";
    site.until(namespace, "batchsandbox", name, path, |spec| {
        spec["poolRef"] == pool
    })
    .await
}

/// What the BatchSandbox says about why it has no pool, as soon as it names all of these.
async fn refused(site: &Site, namespace: &str, name: &str, words: &[&str]) -> Result<()> {
    let path = "status.conditions";
    site.until(namespace, "batchsandbox", name, path, |conditions| {
        conditions.as_array().is_some_and(|all| {
            all.iter().any(|one| {
                let message = one["message"].as_str().unwrap_or_default();
                one["type"] == "PoolAllocationPending"
                    && one["status"] == "True"
                    && one["reason"] == "NoEligiblePool"
                    && words.iter().all(|word| message.contains(word))
            })
        })
    })
    .await
}

async fn profiles(site: &Site, text: &str) -> Result<()> {
    site.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": NAMESPACE, "name": CONFIG_MAP},
        "data": {"profiles": text},
    }))
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_chosen_and_why_none_fits_is_said() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    let namespace = site.namespace("assign").await?;
    ask(&site, &namespace, "early", "python").await?;
    refused(&site, &namespace, "early", &["no Pool in the namespace"]).await?;

    pool(&site, &namespace, "shell", "bash", json!({})).await?;
    let why = [
        "none of 1 pools fits",
        "shell: no container image in common",
    ];
    refused(&site, &namespace, "early", &why).await?;
    // Once there is one that fits, nobody has to ask again.
    pool(&site, &namespace, "snake", "python", json!({})).await?;
    chosen(&site, &namespace, "early", "snake").await?;

    // A chosen pool is kept, and only one that has room is chosen.
    let pods = site.pods(&namespace, "snake", 1).await?;
    for pod in &pods {
        site.make_ready(&namespace, pod, 1).await?;
    }
    let path = "status.ready";
    site.until(&namespace, "batchsandbox", "early", path, |ready| {
        ready == &json!(1)
    })
    .await?;
    let path = "status.allocated";
    site.until(&namespace, "pool", "snake", path, |allocated| {
        allocated == &json!(1)
    })
    .await?;
    ask(&site, &namespace, "late", "python").await?;
    let why = ["snake: 1 pods are wanted, 1 of at most 1 are allocated"];
    refused(&site, &namespace, "late", &why).await?;
    operator.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_decides_and_a_malformed_one_counts_as_none() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    let namespace = site.namespace("profiles").await?;
    pool(&site, &namespace, "a", "python", json!({"team": "blue"})).await?;
    pool(&site, &namespace, "b", "python", json!({"team": "red"})).await?;

    // The built-in profile: the first of equals.
    ask(&site, &namespace, "plain", "python").await?;
    chosen(&site, &namespace, "plain", "a").await?;

    let by_label = json!([{
        "name": "default", "plugins": {"predicate": ["labelselector", "magic"]},
        "pluginConf": [{"name": "labelselector", "args": {"keys": ["team"]}}],
    }]);
    profiles(&site, &by_label.to_string()).await?;
    let warned = |words: &'static str| {
        operator.program.wait_for_line(words, BOUND, move |line| {
            line.contains(CONFIG_MAP) && line.contains(words)
        })
    };
    warned("there is no plugin").await?;
    ask(&site, &namespace, "labelled", "bash").await?;
    chosen(&site, &namespace, "labelled", "b").await?;

    for (number, text) in ["{{{", "null", r#"{"name":"default"}"#]
        .into_iter()
        .enumerate()
    {
        profiles(&site, text).await?;
        let words = "not a JSON array of profiles";
        // Each is said once; a later text must not be taken for an earlier one.
        wait::until(words, BOUND, async || {
            let said = operator.program.log()?.matches(words).count();
            Ok(if said > number {
                Probe::Done(())
            } else {
                Probe::not_yet(said)
            })
        })
        .await?;
        let name = format!("fallback-{number}");
        ask(&site, &namespace, &name, "python").await?;
        chosen(&site, &namespace, &name, "a").await?;
    }
    site.kubectl(&["delete", "configmap", CONFIG_MAP, "-n", NAMESPACE])
        .await?;
    ensure!(operator.get("/healthz").await?.0 == 200);
    operator.stop().await
}
