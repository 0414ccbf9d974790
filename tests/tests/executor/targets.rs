//! Which container a task runs in: the one that is named, else the marked one, else the only other
//! one; and if that is not clear, none.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{End, StartFailure, Task};
use opensandbox_tests::cluster::TestNamespace;
use opensandbox_tests::executor::{ExecutorPod, host, task};
use opensandbox_tests::pods::{EXECUTOR, MARKER, Pod, Recipe, SANDBOX};
use opensandbox_tests::{Node, images, node};
use serde_json::json;

/// Short waits, on a busy machine.
const BOUND: Duration = Duration::from_secs(30);
/// Name of a third container.
const HELPER: &str = "helper";
/// An ID that no container has.
const NOWHERE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A pod with a sandbox, another container like it, and an executor.
async fn three_containers<'a>(
    node: &'a Node,
    namespace: &TestNamespace,
    name: &str,
    marked: bool,
) -> Result<ExecutorPod<'a>> {
    let mut recipe = Recipe::new(["serve", "--auth=none"]).tool(&["sleep"]);
    recipe.marked = marked;
    let mut manifest = recipe.manifest(name);
    let helper = json!({"name": HELPER, "image": images::TOOL, "imagePullPolicy": "IfNotPresent"});
    let containers = manifest["spec"]["containers"]
        .as_array_mut()
        .context("containers")?;
    // Before the sandbox, so that being the first is no reason.
    containers.insert(0, helper);
    for image in [images::TOOL, images::EXECUTOR] {
        node.import_known(image).await?;
    }
    let pod = Pod::create(node, namespace, manifest).await?;
    pod.wait_ready().await?;
    ExecutorPod::of(pod).await
}

/// A task that stays, and is found by its last argument.
fn sleeper(name: &str) -> Task {
    task(name, &[images::TOOL_PROGRAM, "sleep", name])
}

/// Starts [`sleeper`] and says in which of these containers it runs.
async fn container_of(
    pod: &ExecutorPod<'_>,
    task: &Task,
    candidates: &[&'static str],
) -> Result<Vec<&'static str>> {
    let name = &task.name;
    pod.client().create(task).await?;
    pod.client().wait_running(name, BOUND).await?;
    let mut containers = Vec::new();
    for &container in candidates {
        let processes = pod.host_pids(container).await?;
        let is_it = |pid: &i32| {
            host::arguments(*pid)
                .get(2)
                .is_some_and(|last| last == name)
        };
        if processes.iter().any(is_it) {
            containers.push(container);
        }
    }
    pod.client().delete_and_wait(name, BOUND).await?;
    Ok(containers)
}

/// Why a task was not started, in a word and a sentence.
async fn refusal(pod: &ExecutorPod<'_>, task: &Task) -> Result<(StartFailure, String)> {
    let finished = pod.run_task(task).await?;
    match &finished.outcome()?.end {
        End::NotStarted { failure, message } => Ok((*failure, message.clone())),
        other => anyhow::bail!("task {} was started: {other:?}", task.name),
    }
}

#[tokio::test]
async fn the_marked_container_or_the_one_that_is_named() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("targets").await?;
    let pod = three_containers(&node, &namespace, "marked", true).await?;
    pod.wait_executor().await?;
    let all = [HELPER, SANDBOX, EXECUTOR];
    assert_eq!(
        container_of(&pod, &sleeper("by-marker"), &all).await?,
        [SANDBOX]
    );

    let helper = pod.container_id(HELPER).await?;
    for id in [helper.clone(), format!("containerd://{helper}")] {
        let task = Task {
            container_id: Some(id),
            ..sleeper("by-id")
        };
        assert_eq!(container_of(&pod, &task, &all).await?, [HELPER]);
    }
    // Both at once, each by its own agent.
    assert_eq!(
        container_of(&pod, &sleeper("by-marker-again"), &all).await?,
        [SANDBOX]
    );

    for id in [NOWHERE, "no-id", &pod.container_id(EXECUTOR).await?] {
        let task = Task {
            container_id: Some(id.to_owned()),
            ..sleeper("nowhere")
        };
        let reply = pod
            .client()
            .send("POST", "/tasks", &serde_json::to_vec(&task)?)
            .await?;
        if reply.status.is_client_error() {
            assert!(reply.text().contains("containerId"), "{}", reply.text());
            continue;
        }
        let ended = pod.client().wait_ended("nowhere", BOUND).await?;
        let end = ended.outcome.context("an end")?.end;
        let End::NotStarted { failure, message } = end else {
            panic!("it was started: {end:?}");
        };
        let expected = if id == "no-id" {
            StartFailure::Invalid
        } else {
            StartFailure::NoTarget
        };
        assert_eq!(failure, expected, "{message}");
        assert!(
            message.contains(&id[..5]),
            "names what was asked for: {message}"
        );
        pod.client().delete_and_wait("nowhere", BOUND).await?;
    }
    pod.delete().await
}

#[tokio::test]
async fn a_planted_marker_marks_nothing() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("targets").await?;
    let mut recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    recipe.marked = true;
    let mut manifest = recipe.manifest("planted");
    let mut helper = manifest["spec"]["containers"][0].clone();
    helper["name"] = json!(HELPER);
    helper["env"] = json!([]);
    let containers = manifest["spec"]["containers"]
        .as_array_mut()
        .context("containers")?;
    containers.insert(0, helper);
    for image in [images::SANDBOX, images::EXECUTOR] {
        node.import_known(image).await?;
    }
    let pod = Pod::create(&node, &namespace, manifest).await?;
    pod.wait_ready().await?;
    let pod = ExecutorPod::of(pod).await?;
    pod.wait_executor().await?;
    // A child of the main process' container whose parent has ended, with the marker, as a task that
    // was started before might leave it.
    let plant = format!("{MARKER}=true setsid sleep 4711 < /dev/null > /dev/null 2>&1 &");
    pod.exec_ok(HELPER, &["sh", "-c", &plant]).await?;
    assert_eq!(pod.processes_with("4711").await?.len(), 1);
    pod.crash_executor().await?;
    pod.client()
        .create(&task("where", &["sleep", "4712"]))
        .await?;
    pod.client().wait_running("where", BOUND).await?;
    let task = pod.processes_with("4712").await?;
    assert_eq!(task.len(), 1);
    assert!(pod.host_pids(SANDBOX).await?.contains(&task[0]));
    assert!(!pod.host_pids(HELPER).await?.contains(&task[0]));
    pod.delete().await
}

#[tokio::test]
async fn no_container_when_it_is_not_clear_which() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("targets").await?;
    let pod = three_containers(&node, &namespace, "unclear", false).await?;
    let (failure, message) = refusal(&pod, &sleeper("unclear")).await?;
    assert_eq!(failure, StartFailure::NoTarget, "{message}");
    for word in [HELPER, SANDBOX] {
        assert!(message.contains(word), "names {word}: {message}");
    }
    let readiness = pod.client().readiness().await?;
    assert_eq!(readiness.status, 503, "{}", readiness.text());
    assert!(readiness.text().contains(HELPER), "{}", readiness.text());
    // What is named is still clear.
    let task = Task {
        container_id: Some(pod.container_id(HELPER).await?),
        ..sleeper("named")
    };
    assert_eq!(
        container_of(&pod, &task, &[HELPER, SANDBOX, EXECUTOR]).await?,
        [HELPER]
    );
    pod.delete().await
}

#[tokio::test]
async fn the_containers_successor_but_not_under_its_old_id() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("targets").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).tool(&["sleep"]);
    let pod = ExecutorPod::start(&node, &namespace, "restarted", &recipe).await?;
    let old = pod.container_id(SANDBOX).await?;
    let by_id = |name| Task {
        container_id: Some(old.clone()),
        ..sleeper(name)
    };
    assert_eq!(
        container_of(&pod, &by_id("before"), &[SANDBOX, EXECUTOR]).await?,
        [SANDBOX]
    );
    pod.crash(SANDBOX).await?;
    assert_ne!(pod.container_id(SANDBOX).await?, old);
    let (failure, message) = refusal(&pod, &by_id("old")).await?;
    assert_eq!(failure, StartFailure::NoTarget, "{message}");
    let anywhere = sleeper("anywhere");
    assert_eq!(
        container_of(&pod, &anywhere, &[SANDBOX, EXECUTOR]).await?,
        [SANDBOX]
    );
    pod.delete().await
}
