//! The operator's program on a real API server, as the account that config/ gives it: what it may do is
//! enough, who leads, and how it ends. No kubelet: what one would write into a pod's status, the test
//! writes.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod assign;
mod election;
mod hostile;
mod keys;
mod namespaces;
mod site;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use self::site::{BOUND, site};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_gets_pods_and_a_sandbox_gets_them() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let namespace = site.namespace("pooled").await?;
    // The numbers below are of this test alone.
    let operator = site
        .operator(&[&format!("--namespaces={namespace}")])
        .await?;
    site.leads(&operator).await?;
    site.pool(&namespace, "warm", 2).await?;
    let pods = site.pods(&namespace, "warm", 2).await?;
    for (index, pod) in pods.iter().enumerate() {
        ensure!(pod.starts_with("warm-"), "{pod}");
        site.make_ready(&namespace, pod, index).await?;
    }
    site.until(
        &namespace,
        "pool",
        "warm",
        "status.available",
        |available| available == &json!(2),
    )
    .await?;
    site.sandbox(
        &namespace,
        "pair",
        json!({"replicas": 2, "poolRef": "warm"}),
    )
    .await?;
    let path = "metadata.annotations.sandbox\\.opensandbox\\.io/alloc-status";
    site.until(
        &namespace,
        "batchsandbox",
        "pair",
        "status.ready",
        |ready| ready == &json!(2),
    )
    .await?;
    let allocation = site.field(&namespace, "batchsandbox", "pair", path).await?;
    let allocation: serde_json::Value = serde_json::from_str(&allocation)?;
    let given: Vec<_> = allocation["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    ensure!(given.len() == 2, "{allocation}");
    ensure!(
        pods.iter().all(|pod| given.contains(&&json!(pod))),
        "{allocation} of {pods:?}"
    );

    // One write gives the pods and one tells of it, whatever their number.
    let metrics = operator.metrics().await?;
    for line in [
        r#"api_writes_total{kind="batchsandboxes",verb="patch",result="ok"} 1"#,
        r#"api_writes_total{kind="batchsandboxes/status",verb="patch",result="ok"} 1"#,
        "opensandbox_operator_leader 1",
    ] {
        ensure!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    site.kubectl(&[
        "delete",
        "-n",
        &namespace,
        "batchsandbox",
        "pair",
        "--timeout=30s",
    ])
    .await?;
    operator.stop().await?;
    let log = operator.program.log()?;
    ensure!(!log.to_lowercase().contains("forbidden"), "{log}");
    let holder = site.lease_holder().await?;
    ensure!(holder.is_empty(), "the Lease is still held by {holder}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_object_is_no_reason_to_stop() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let namespace = site.namespace("malformed").await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    site.sandbox(
        &namespace,
        "garbage",
        json!({"replicas": 1, "poolRef": "none"}),
    )
    .await?;
    site.kubectl(&[
        "annotate",
        "-n",
        &namespace,
        "batchsandbox",
        "garbage",
        "sandbox.opensandbox.io/alloc-status={{{",
        "--overwrite",
    ])
    .await?;
    site.pool(&namespace, "good", 1).await?;
    site.pods(&namespace, "good", 1).await?;
    ensure!(operator.get("/healthz").await?.0 == 200);
    let metrics = operator.metrics().await?;
    ensure!(!metrics.contains("actor_panics_total{"), "{metrics}");
    operator.stop().await?;

    // It is known for what it is by now, so the next one has nothing to write about it. What other tests left
    // on the cluster is none of its business.
    let next = site
        .operator(&[&format!("--namespaces={namespace}")])
        .await?;
    site.leads(&next).await?;
    site.pool(&namespace, "another", 1).await?;
    site.pods(&namespace, "another", 1).await?;
    let metrics = next.metrics().await?;
    site.kubectl(&[
        "delete",
        "-n",
        &namespace,
        "batchsandbox",
        "garbage",
        "--timeout=30s",
    ])
    .await?;
    next.stop().await?;
    ensure!(
        !metrics.contains(r#"api_writes_total{kind="batchsandboxes"#),
        "{metrics}"
    );
    Ok(())
}

/// Bounds of what is waited for here, so that a test that hangs says where.
#[test]
fn waits_are_bounded() {
    assert!(BOUND <= Duration::from_mins(1));
}
