//! The sandbox kills the agent and puts a program of its own in its place. It can then lie about its
//! own tasks, and to nobody's harm: the executor stays, and what it can tell to be false is replaced.

#![cfg(test)]

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{End, LossReason, State};
use opensandbox_tests::Node;
use opensandbox_tests::cluster::TestNamespace;
use opensandbox_tests::executor::{ExecutorPod, host, task};
use opensandbox_tests::pods::{EXECUTOR, MARKER, Pod, SANDBOX};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{images, node};
use serde_json::json;

const BOUND: Duration = Duration::from_mins(1);
const PROGRAM: &str = include_str!("fake_agent.py");
/// A container beside the sandbox, whose processes the sandbox's user could signal itself; what the
/// executor does for it is what is looked at.
const NEIGHBOUR: &str = "neighbour";

async fn start<'a>(
    node: &'a Node,
    namespace: &TestNamespace,
    name: &str,
) -> Result<ExecutorPod<'a>> {
    let mut recipe =
        opensandbox_tests::pods::Recipe::new(["serve", "--auth=none"]).restricted(1000);
    recipe.marked = true;
    let mut manifest = recipe.manifest(name);
    let mut neighbour = manifest["spec"]["containers"][0].clone();
    neighbour["name"] = json!(NEIGHBOUR);
    neighbour["env"] = json!([]);
    neighbour["securityContext"]["runAsUser"] = json!(2000);
    let containers = manifest["spec"]["containers"]
        .as_array_mut()
        .context("containers")?;
    assert!(containers[0]["env"].to_string().contains(MARKER));
    containers.push(neighbour);
    for image in [images::SANDBOX, images::EXECUTOR] {
        node.import_known(image).await?;
    }
    let pod = Pod::create(node, namespace, manifest).await?;
    pod.wait_ready().await?;
    let pod = ExecutorPod::of(pod).await?;
    pod.wait_executor().await?;
    Ok(pod)
}

/// Puts the fake there, and then takes the agent away.
async fn replace_agent(pod: &ExecutorPod<'_>, mode: &str) -> Result<()> {
    for file in ["ready", "heard"] {
        fs::remove_file(pod.file(&format!("/tmp/fake-{file}")).await?).ok();
    }
    let agent = inside(pod.agent().await?)?;
    let neighbour = inside(pod.main_pid(NEIGHBOUR).await?)?;
    pod.exec_ok(SANDBOX, &["python3", "-c", PROGRAM, mode, &neighbour])
        .await?;
    is_there(pod, "/tmp/fake-ready").await?;
    pod.exec_ok(SANDBOX, &["sh", "-c", &format!("kill -KILL {agent}")])
        .await?;
    Ok(())
}

/// A process id as the pod has it.
fn inside(pid: i32) -> Result<String> {
    let ids = host::status(pid, "NSpid").context("it lives")?;
    Ok(ids
        .split_whitespace()
        .last()
        .context("a number")?
        .to_owned())
}

async fn is_there(pod: &ExecutorPod<'_>, path: &str) -> Result<()> {
    let file = pod.file(path).await?;
    wait::until(path, BOUND, async || {
        Ok(if fs::exists(&file)? {
            Probe::Done(())
        } else {
            Probe::not_yet("not there")
        })
    })
    .await
}

/// The executor answers, is small, and is the one it was; and so is the neighbour.
async fn unharmed(pod: &ExecutorPod<'_>, executor: i32) -> Result<()> {
    for _ in 0..20 {
        let reply = pod.client().send("GET", "/getTasks", b"").await?;
        assert_eq!(reply.status.as_u16(), 200);
    }
    assert_eq!(pod.main_pid(EXECUTOR).await?, executor);
    let resident = host::resident_kib(executor).context("it lives")?;
    assert!(resident < 64 << 10, "{resident} KiB");
    let descriptors = host::traces(executor)
        .context("it lives")?
        .descriptors
        .len();
    assert!(descriptors < 256, "{descriptors} descriptors");
    for container in [SANDBOX, NEIGHBOUR, EXECUTOR] {
        assert_eq!(pod.status(container).await?.restart_count, 0, "{container}");
    }
    Ok(())
}

/// A task runs as it should. One that the fake took before it was found out is lost with it, and said
/// to be.
async fn next_runs(pod: &ExecutorPod<'_>, word: &str) -> Result<()> {
    wait::until("a task to run", BOUND, async || {
        let finished = pod.run("next", &["echo", word]).await?;
        if let End::Lost { reason, .. } = finished.outcome()?.end {
            assert_eq!(reason, LossReason::AgentKilled);
            return Ok(Probe::not_yet("it was lost"));
        }
        assert_eq!(finished.task.state(), State::Succeeded);
        assert_eq!(finished.stdout_text(), format!("{word}\n"));
        Ok(Probe::Done(()))
    })
    .await
}

async fn kill_fakes(pod: &ExecutorPod<'_>) -> Result<()> {
    let script = "for p in /proc/[0-9]*; do grep -q '^task-executor-agent' $p/cmdline && kill -KILL ${p#/proc/}; done; true";
    pod.exec_ok(SANDBOX, &["sh", "-c", script]).await?;
    Ok(())
}

#[tokio::test]
async fn what_makes_no_sense_is_replaced() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("forged").await?;
    let pod = start(&node, &namespace, "senseless").await?;
    let executor = pod.main_pid(EXECUTOR).await?;
    for mode in [
        "garbage",
        "huge",
        "largest",
        "silent",
        "lists",
        "proofs",
        "greetings",
        "descriptors",
        "reports-deaf",
    ] {
        replace_agent(&pod, mode).await?;
        is_there(&pod, "/tmp/fake-heard").await.context(mode)?;
        unharmed(&pod, executor).await.context(mode)?;
        next_runs(&pod, mode).await.context(mode)?;
        unharmed(&pod, executor).await.context(mode)?;
    }
    pod.delete().await
}

#[tokio::test]
async fn what_goes_on_and_on_harms_only_its_sandbox() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("forged").await?;
    let pod = start(&node, &namespace, "endless").await?;
    let executor = pod.main_pid(EXECUTOR).await?;
    for mode in ["reports"] {
        replace_agent(&pod, mode).await?;
        is_there(&pod, "/tmp/fake-heard").await.context(mode)?;
        unharmed(&pod, executor).await.context(mode)?;
        // What is named by its ID runs in the neighbour, whatever the sandbox does.
        let mut elsewhere = task("elsewhere", &["cat", "/proc/self/status"]);
        elsewhere.container_id = Some(pod.container_id(NEIGHBOUR).await?);
        let finished = pod.run_task(&elsewhere).await.context(mode)?;
        assert_eq!(finished.task.state(), State::Succeeded, "{mode}");
        assert!(
            finished.stdout_text().contains("2000"),
            "{}",
            finished.stdout_text()
        );
        unharmed(&pod, executor).await.context(mode)?;
        kill_fakes(&pod).await?;
        pod.wait_executor().await.context(mode)?;
        assert_eq!(
            pod.run_ok("next", &["echo", mode]).await?,
            format!("{mode}\n")
        );
    }
    pod.delete().await
}

/// A process that is not the sandbox's is said to be a task; when the agent is gone, what is left of
/// tasks is killed, and that must not be it.
#[tokio::test]
async fn a_lie_about_a_process_does_not_have_it_killed() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("forged").await?;
    let pod = start(&node, &namespace, "liar").await?;
    let (executor, neighbour) = (
        pod.main_pid(EXECUTOR).await?,
        pod.main_pid(NEIGHBOUR).await?,
    );
    replace_agent(&pod, "liar").await?;
    is_there(&pod, "/tmp/fake-heard").await?;
    let client = pod.client();
    client.create(&task("lie", &["true"])).await?;
    client.wait_running("lie", BOUND).await?;
    // The liar goes, and its lie with it; what the executor cleared up was not the neighbour.
    client.delete_and_wait("lie", BOUND).await?;
    assert_eq!(pod.run_ok("next", &["echo", "works"]).await?, "works\n");
    assert_eq!(pod.main_pid(NEIGHBOUR).await?, neighbour);
    unharmed(&pod, executor).await?;

    // The same with an executor that comes back and finds the liar.
    replace_agent(&pod, "liar").await?;
    pod.crash_executor().await?;
    client.create(&task("lie", &["true"])).await?;
    client.wait_running("lie", BOUND).await?;
    kill_fakes(&pod).await?;
    client.wait_ended("lie", BOUND).await?;
    assert_eq!(pod.run_ok("next", &["echo", "works"]).await?, "works\n");
    assert_eq!(pod.main_pid(NEIGHBOUR).await?, neighbour);
    assert_eq!(pod.status(SANDBOX).await?.restart_count, 0);
    pod.delete().await
}
