//! A spec that cannot be read when the operator starts. Our CRD lets none pass; upstream's, which has fewer
//! rules, does, and the objects stay when the CRD is replaced.

use anyhow::{Result, ensure};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use super::{nodes, of_pool, pool, unharmed};
use crate::site::{BOUND, Site, site};

const CRD: &str = "batchsandboxes.sandbox.opensandbox.io";
const POLICY: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/taskResourcePolicyWhenCompleted";

/// Puts another schema in the place of the policy's, and returns the one before.
async fn replace_policy(site: &Site, schema: &Value) -> Result<Value> {
    let text = site.kubectl(&["get", "crd", CRD, "-o", "json"]).await?;
    let crd: Value = serde_json::from_str(&text)?;
    let before = crd.pointer(POLICY).cloned().unwrap_or_default();
    let patch = json!([{"op": "replace", "path": POLICY, "value": schema}]).to_string();
    site.kubectl(&["patch", "crd", CRD, "--type=json", "-p", &patch])
        .await?;
    Ok(before)
}

async fn set_policy(site: &Site, namespace: &str, name: &str, policy: &Value) -> Result<()> {
    let patch = json!({"spec": {"taskResourcePolicyWhenCompleted": policy}}).to_string();
    // A schema that was just changed takes a moment.
    wait::until("the edit to be taken", BOUND, async || {
        let edit = site
            .kubectl(&[
                "patch",
                "batchsandbox",
                name,
                "-n",
                namespace,
                "--type=merge",
                "-p",
                &patch,
            ])
            .await;
        Ok(match edit {
            Ok(_) => Probe::Done(()),
            Err(error) => Probe::not_yet(error),
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_of_an_unreadable_object_are_not_idle_at_the_start() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    nodes(&site).await?;
    let namespace = site.namespace("unreadable").await?;
    let strict = replace_policy(&site, &json!({"type": "string"})).await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    site.create(&namespace, &pool("two", [0, 0, 2, 2])).await?;
    site.create(&namespace, &of_pool("holder", 2, "two"))
        .await?;
    let pods = site.ready(&namespace, "holder", 2).await?;
    operator.stop().await?;
    set_policy(&site, &namespace, "holder", &json!("Burn")).await?;

    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    let message = site
        .condition(
            &namespace,
            "batchsandbox",
            "holder",
            "Quarantined",
            "InvalidSpec",
        )
        .await?;
    ensure!(
        message.contains("Release") && !message.contains("Burn"),
        "{message}"
    );
    site.create(&namespace, &of_pool("eager", 2, "two")).await?;
    let type_ = "PoolAllocationPending";
    let message = site
        .condition(
            &namespace,
            "batchsandbox",
            "eager",
            type_,
            "PoolCapacityExhausted",
        )
        .await?;
    ensure!(message.contains("2 allocated"), "{message}");
    ensure!(site.ready(&namespace, "holder", 2).await? == pods);

    // Mended it goes on with them; deleted it gives them back.
    set_policy(&site, &namespace, "holder", &Value::Null).await?;
    let path = "status.conditions";
    site.until(&namespace, "batchsandbox", "holder", path, |conditions| {
        let all = conditions.as_array().into_iter().flatten();
        all.clone()
            .any(|one| one["type"] == "Quarantined" && one["status"] == "False")
    })
    .await?;
    ensure!(site.ready(&namespace, "holder", 2).await? == pods);
    site.kubectl(&[
        "delete",
        "batchsandbox",
        "holder",
        "-n",
        &namespace,
        "--timeout=60s",
    ])
    .await?;
    site.ready(&namespace, "eager", 2).await?;
    unharmed(&operator).await?;
    replace_policy(&site, &strict).await?;
    operator.stop().await
}
