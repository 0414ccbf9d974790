//! Pods on the shared node.

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::pods::{EXECUTOR, Pod, Recipe, SANDBOX};
use opensandbox_tests::{images, node};
use serde_json::json;

/// A recipe with a second container that does not depend on the executor.
fn two_containers() -> Recipe {
    let mut recipe = Recipe::new(["print", "from the sidecar"]).tool(&["sleep"]);
    recipe.executor_extra = json!({"image": images::TOOL, "args": ["sleep"]});
    recipe
}

#[tokio::test]
async fn a_pod_runs_and_is_entered() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("exec").await?;
    let pod = Pod::start(&node, &namespace, "two", &two_containers()).await?;
    let output = pod
        .exec(SANDBOX, &[images::TOOL_PROGRAM, "print", "hello"])
        .await?;
    ensure!(output.stdout == "hello\n" && output.code == 0, "{output:?}");
    let output = pod
        .exec(SANDBOX, &[images::TOOL_PROGRAM, "error", "oh"])
        .await?;
    ensure!(
        output.stdout.is_empty() && output.stderr == "oh\n",
        "{output:?}"
    );
    let output = pod
        .exec(EXECUTOR, &[images::TOOL_PROGRAM, "exit", "7"])
        .await?;
    ensure!(output.code == 7, "{output:?}");

    // One process namespace, two control groups.
    let (sandbox, sidecar) = (pod.main_pid(SANDBOX).await?, pod.main_pid(EXECUTOR).await?);
    let namespace_of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    ensure!(namespace_of(sandbox)? == namespace_of(sidecar)?);
    ensure!(pod.host_pids(SANDBOX).await? == [sandbox]);
    pod.delete().await.context("delete")
}

#[tokio::test]
async fn what_a_container_prints_is_its_log() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    node.import_known(images::TOOL).await?;
    let namespace = node.namespace("logs").await?;
    let mut recipe = two_containers().tool(&["print", "from the sandbox"]);
    recipe.pod_extra = json!({"restartPolicy": "Never"});
    recipe.executor_extra = json!({"image": images::TOOL, "args": ["print", "from the sidecar"]});
    let pod = Pod::create(&node, &namespace, recipe.manifest("printing")).await?;
    let bound = std::time::Duration::from_mins(1);
    pod.wait_for("the end", bound, |object| {
        let phase = object
            .status
            .as_ref()
            .and_then(|status| status.phase.clone());
        phase.as_deref() == Some("Succeeded")
    })
    .await?;
    ensure!(pod.logs(SANDBOX).await? == "from the sandbox\n");
    ensure!(pod.logs(EXECUTOR).await? == "from the sidecar\n");
    pod.delete().await
}

#[tokio::test]
async fn a_container_that_crashes_comes_back() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("crash").await?;
    let pod = Pod::start(&node, &namespace, "crash", &two_containers()).await?;
    let before = (pod.main_pid(SANDBOX).await?, pod.main_pid(EXECUTOR).await?);
    pod.crash(EXECUTOR).await?;
    let after = (pod.main_pid(SANDBOX).await?, pod.main_pid(EXECUTOR).await?);
    ensure!(
        before.0 == after.0 && before.1 != after.1,
        "{before:?} {after:?}"
    );
    ensure!(pod.status(EXECUTOR).await?.restart_count == 1);
    pod.delete().await
}

#[tokio::test]
async fn a_pod_reaches_the_api_server_as_a_service() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("service").await?;
    let recipe = Recipe {
        executor_args: None,
        ..Recipe::new(Vec::<String>::new())
    };
    let pod = Pod::start(&node, &namespace, "client", &recipe).await?;
    // Verified, and logged in, with what every pod is given.
    let script = "
import ssl, urllib.request
at = '/var/run/secrets/kubernetes.io/serviceaccount/'
request = urllib.request.Request('https://10.96.0.1/version')
request.add_header('Authorization', 'Bearer ' + open(at + 'token').read())
trust = ssl.create_default_context(cafile=at + 'ca.crt')
print(urllib.request.urlopen(request, timeout=20, context=trust).status)";
    let status = pod.exec_ok(SANDBOX, &["python3", "-c", script]).await?;
    ensure!(status == "200\n", "{status}");
    pod.delete().await
}

#[tokio::test]
async fn a_pod_that_cannot_start_says_why() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("broken").await?;
    let mut recipe = two_containers();
    recipe.pod_extra = json!({"restartPolicy": "Never"});
    recipe.command = Some(vec!["/nonexistent".to_owned()]);
    let error = Pod::start(&node, &namespace, "broken", &recipe).await;
    let error = format!("{:#}", error.err().context("it cannot start")?);
    ensure!(error.contains("/nonexistent"), "{error}");
    Ok(())
}
