//! The images that are made here, in containers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ContainerState;
use opensandbox_tests::pods::{EXECUTOR, Pod, Recipe, SANDBOX, threads_of};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{images, node};

const BOUND: Duration = Duration::from_mins(1);
const MIB: u64 = 1 << 20;

fn alone() -> Recipe {
    Recipe {
        executor_args: None,
        ..Recipe::new(Vec::<String>::new())
    }
}

#[tokio::test]
async fn debian_runs_what_tasks_call() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("debian").await?;
    let pod = Pod::start(&node, &namespace, "debian", &alone()).await?;
    let commands: [(&[&str], &str); 4] = [
        (&["bash", "-c", "echo $((6 * 7))"], "42"),
        (
            &["python3", "-c", "import json; print(json.dumps([1]))"],
            "[1]",
        ),
        (&["node", "-e", "console.log(6 * 7)"], "42"),
        (&["ps", "-o", "pid=", "-p", "1"], "1"),
    ];
    for (argv, expected) in commands {
        let printed = pod.exec_ok(SANDBOX, argv).await?;
        ensure!(printed.trim() == expected, "{argv:?} printed {printed:?}");
    }
    pod.delete().await
}

#[tokio::test]
async fn the_executors_image_is_small_and_starts() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let image = tokio::task::spawn_blocking(images::executor).await??;
    let size = image.size_bytes()?;
    ensure!(size <= 10 * MIB, "{size} bytes");
    node.import(&image).await?;
    node.import_known(images::TOOL).await?;
    let namespace = node.namespace("executor").await?;
    let manifest = Recipe::new(["--version"])
        .tool(&["sleep"])
        .manifest("executor");
    let pod = Pod::create(&node, &namespace, manifest).await?;
    // Whatever it does with its arguments, it has run, and not failed to start.
    let ran = |state: Option<&ContainerState>| {
        state.is_some_and(|state| {
            state.running.is_some()
                || state.terminated.as_ref().is_some_and(|end| {
                    !matches!(
                        end.reason.as_deref(),
                        Some("StartError" | "ContainerCannotRun")
                    )
                })
        })
    };
    pod.wait_for("the start of the executor", BOUND, |object| {
        let statuses = object
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_deref());
        statuses.unwrap_or_default().iter().any(|status| {
            status.name == EXECUTOR
                && (ran(status.state.as_ref()) || ran(status.last_state.as_ref()))
        })
    })
    .await?;
    pod.delete().await
}

#[tokio::test]
async fn a_sandbox_without_a_shell_has_threads() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("tool").await?;
    let recipe = alone().tool(&["threads", "3"]).restricted(1000);
    let pod = Pod::start(&node, &namespace, "threads", &recipe).await?;
    let main = pod.main_pid(SANDBOX).await?;
    wait::until("all threads", BOUND, async || {
        Ok(match threads_of(main).len() {
            4 => Probe::Done(()),
            count => Probe::not_yet(count),
        })
    })
    .await?;
    let ids = pod.exec_ok(SANDBOX, &[images::TOOL_PROGRAM, "ids"]).await?;
    ensure!(ids.starts_with("uid=1000 gid=1000 "), "{ids}");
    let shell = pod.exec(SANDBOX, &["sh", "-c", "true"]).await?;
    ensure!(shell.code != 0, "there is a shell");
    pod.delete().await
}

#[tokio::test]
async fn memory_beyond_the_limit_is_an_oom_kill() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    node.import_known(images::TOOL).await?;
    let namespace = node.namespace("memory").await?;
    let mut recipe = alone().tool(&["alloc", "100"]);
    recipe.resources = serde_json::json!({"limits": {"memory": "32Mi"}});
    recipe.pod_extra = serde_json::json!({"restartPolicy": "Never"});
    let pod = Pod::create(&node, &namespace, recipe.manifest("memory")).await?;
    let ended = |object: &k8s_openapi::api::core::v1::Pod| {
        let phase = object
            .status
            .as_ref()
            .and_then(|status| status.phase.clone());
        phase.as_deref() == Some("Failed")
    };
    pod.wait_for("the end", BOUND, ended).await?;
    let state = pod.status(SANDBOX).await?.state;
    let end = state
        .and_then(|state| state.terminated)
        .context("it ended")?;
    ensure!(end.reason.as_deref() == Some("OOMKilled"), "{end:?}");
    pod.delete().await
}
