//! The sidecar as the webhook injects it: a ten-line Pool, injected, as a pod of a kubelet. What the
//! injection writes is all that the executor gets.

#![cfg(test)]

use anyhow::{Context as _, Result, anyhow, ensure};
use http::StatusCode;
use opensandbox_api::sidecar::pool::{Context, mutate};
use opensandbox_api::sidecar::{ImagesConfig, InjectionDefault, Settings, Sourced};
use opensandbox_tests::executor::{ExecutorPod, Signer};
use opensandbox_tests::pods::{EXECUTOR, Pod, SANDBOX};
use opensandbox_tests::{images, node};
use serde_json::{Value, json};

#[tokio::test]
async fn a_ten_line_pool_runs_signed_tasks_and_no_others() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("injected").await?;
    node.import_known(images::SANDBOX).await?;
    node.import_known(images::EXECUTOR).await?;
    let key = Signer::new_key()?;

    let pod = Pod::create(&node, &namespace, pod_of_a_pool(&key.verification_key())?).await?;
    pod.wait_ready().await?;
    let pod = ExecutorPod::of(pod).await?;
    let unsigned = pod.client().send("POST", "/setTasks", b"[]").await?;
    ensure!(unsigned.status == StatusCode::UNAUTHORIZED, "{unsigned:?}");
    let pod = pod.signed(key).await?;
    let user = pod.run_ok("user", &["id", "-u"]).await?;
    let exec = pod.exec_ok(SANDBOX, &["id", "-u"]).await?;
    ensure!(user == exec, "{user:?} and not {exec:?}");
    let log = pod.logs(EXECUTOR).await?;
    ensure!(log.contains("[user stdout] "), "{log}");
    pod.delete().await
}

/// A pod as the operator makes one from a Pool that went through the webhook.
fn pod_of_a_pool(verification_key: &str) -> Result<Value> {
    let mut pool = json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": "ten-lines"},
        "spec": {
            "template": {"spec": {"containers": [{
                "name": SANDBOX, "image": images::SANDBOX, "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"],
            }]}},
            "capacitySpec": {"bufferMin": 2, "bufferMax": 10, "poolMin": 5, "poolMax": 20},
        },
    });
    let installation = ImagesConfig {
        namespace: "opensandbox-system".to_owned(),
        task_executor_image: Some(images::EXECUTOR.to_owned()),
        verification_key: Some(verification_key.to_owned()),
    };
    let default = Sourced {
        value: "unused".to_owned(),
        origin: "default".to_owned(),
    };
    let settings = Settings::resolve(None, Some(&installation), &default);
    let context = Context {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings: &settings,
    };
    let mutation = mutate(&pool, None, &context).map_err(|problems| anyhow!("{problems:?}"))?;
    json_patch::patch(&mut pool, &mutation.operations)?;
    let mut pod = pool
        .pointer("/spec/template")
        .cloned()
        .context("a Pool has a template")?;
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("ten-lines");
    Ok(pod)
}
