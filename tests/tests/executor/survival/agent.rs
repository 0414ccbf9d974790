//! The agent, or the part of it that watches over a task, is killed or stopped by the sandbox's own
//! user, who may do that to every process of its own.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{LossReason, State, reason};
use opensandbox_tests::executor::{ExecutorPod, host, task};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe, SANDBOX};

use super::{BOUND, loss, no_zombies, none_left};

/// Sends a signal to the agent: the parent of the parent.
const TO_AGENT: &str = r#"
agent=$(awk '/^PPid:/ {print $2}' /proc/$PPID/status)
kill "$0" "$agent" && echo sent
"#;

async fn agent_is_killed(recipe: &Recipe, name: &str) -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("agent").await?;
    let pod = ExecutorPod::start(&node, &namespace, name, recipe).await?;
    let client = pod.client();
    let main = pod.main_pid(SANDBOX).await?;
    for round in 0..3 {
        let agent = pod.agent().await?;
        // Also what has left its session and its parent.
        let escaped = "setsid sh -c 'sleep 4716 & sleep 4716' & sleep 4716";
        for other in ["one", "two"] {
            client.create(&task(other, &["sh", "-c", escaped])).await?;
            client.wait_running(other, BOUND).await?;
        }
        let killer = format!("{TO_AGENT}\nsleep 4716");
        client
            .create(&task("killer", &["sh", "-c", &killer, "-KILL"]))
            .await?;
        for name in ["one", "two", "killer"] {
            let lost = client.wait_ended(name, BOUND).await?;
            assert_eq!(
                loss(&lost)?,
                LossReason::AgentKilled,
                "{name} in round {round}"
            );
            let terminated = lost.process_status.and_then(|status| status.terminated);
            let terminated = terminated.context("a terminated task")?;
            assert_eq!(terminated.exit_code, 137);
            assert_eq!(terminated.reason, reason::PROCESS_CRASHED);
            assert!(
                terminated.message.contains("agent"),
                "{}",
                terminated.message
            );
        }
        assert!(!host::lives(agent));
        none_left(&pod, "4716").await?;
        for name in ["one", "two", "killer"] {
            client.delete_and_wait(name, BOUND).await?;
        }
        assert_eq!(pod.run_ok("next", &["echo", "works"]).await?, "works\n");
    }
    no_zombies(&pod).await?;
    assert_eq!(pod.main_pid(SANDBOX).await?, main);
    for container in [SANDBOX, EXECUTOR] {
        assert_eq!(pod.status(container).await?.restart_count, 0, "{container}");
    }
    pod.delete().await
}

#[tokio::test]
async fn killed_by_a_task_it_is_told_and_replaced() -> Result<()> {
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    agent_is_killed(&recipe, "user").await
}

#[tokio::test]
async fn killed_by_a_task_of_root_it_is_told_and_replaced() -> Result<()> {
    agent_is_killed(&Recipe::new(["serve", "--auth=none"]), "root").await
}

#[tokio::test]
async fn a_task_that_kills_who_watches_over_it_is_lost_alone() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("agent").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "watcher", &recipe).await?;
    let client = pod.client();
    client
        .create(&task("bystander", &["sleep", "4718"]))
        .await?;
    client.wait_running("bystander", BOUND).await?;
    let agent = pod.agent().await?;
    let script = "setsid sleep 4717 & kill -KILL $PPID; sleep 4717";
    client
        .create(&task("killer", &["sh", "-c", script]))
        .await?;
    let lost = client.wait_ended("killer", BOUND).await?;
    loss(&lost)?;
    none_left(&pod, "4717").await?;
    assert_eq!(pod.agent().await?, agent);
    let bystander = client.get("bystander").await?.context("it is known")?;
    assert_eq!(bystander.state(), State::Running);
    assert_eq!(pod.processes_with("4718").await?.len(), 1);
    assert_eq!(pod.run_ok("next", &["echo", "works"]).await?, "works\n");
    client.delete_and_wait("bystander", BOUND).await?;
    client.delete_and_wait("killer", BOUND).await?;
    no_zombies(&pod).await?;
    pod.delete().await
}

#[tokio::test]
async fn stopped_by_a_task_it_holds_up_nobody_but_its_tasks() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("agent").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "stopped", &recipe).await?;
    let client = pod.client();
    let agent = pod.agent().await?;
    client
        .create(&task("stopper", &["sh", "-c", TO_AGENT, "-STOP"]))
        .await?;
    opensandbox_tests::wait::until("the agent to be stopped", BOUND, async || {
        let state = host::stat(agent).map(|stat| stat.state);
        Ok(if state == Some('T') {
            opensandbox_tests::wait::Probe::Done(())
        } else {
            opensandbox_tests::wait::Probe::not_yet(format!("{state:?}"))
        })
    })
    .await?;
    // Every answer comes, and quickly compared to what a client waits for.
    let answers = async {
        for (method, target, status) in [
            ("GET", "/health", 200),
            ("GET", "/getTasks", 200),
            ("GET", "/tasks/stopper", 200),
            ("GET", "/metrics", 200),
            ("DELETE", "/tasks/stopper", 204),
        ] {
            let reply = client.send(method, target, b"").await?;
            assert_eq!(
                reply.status.as_u16(),
                status,
                "{method} {target}: {}",
                reply.text()
            );
        }
        client.create(&task("later", &["echo", "later"])).await?;
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(20), answers)
        .await
        .context("no answers")??;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::SIGCONT)?;
    // It goes on, or it was replaced meanwhile; the task is done in either case.
    let later = client.wait_ended("later", BOUND).await?;
    if later.state() == State::Succeeded {
        assert_eq!(client.stdout("later").await?, "later\n");
    } else {
        assert_eq!(loss(&later)?, LossReason::AgentKilled);
    }
    assert_eq!(pod.run_ok("next", &["echo", "works"]).await?, "works\n");

    // An executor that comes back wakes it, or replaces it.
    let agent = pod.agent().await?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::SIGSTOP)?;
    pod.crash_executor().await?;
    assert_eq!(pod.run_ok("last", &["echo", "works"]).await?, "works\n");
    assert_eq!(pod.status(SANDBOX).await?.restart_count, 0);
    pod.delete().await
}
