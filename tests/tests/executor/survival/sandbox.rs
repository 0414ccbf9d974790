//! The sandbox container ends: with it its tasks, and the agent.

#![cfg(test)]

use anyhow::Result;
use opensandbox_api::task::LossReason;
use opensandbox_tests::executor::{ExecutorPod, task_of};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe, SANDBOX};

use super::{BOUND, loss, no_zombies, none_left};

#[tokio::test]
async fn its_tasks_are_lost_and_the_next_runs_in_its_successor() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("sandbox").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "restarts", &recipe).await?;
    let client = pod.client();
    for round in 0..2 {
        let agent = pod.agent().await?;
        let tasks = ["one", "two"].map(|name| {
            let script = "setsid sleep 4719 & sleep 4719";
            task_of(name, &format!("{name}-{round}"), &["sh", "-c", script])
        });
        client.set_tasks(&tasks).await?;
        for task in &tasks {
            client.wait_running(&task.name, BOUND).await?;
        }
        pod.crash(SANDBOX).await?;
        for task in &tasks {
            let lost = client.wait_ended(&task.name, BOUND).await?;
            assert_eq!(loss(&lost)?, LossReason::SandboxRestarted, "round {round}");
            assert_eq!(lost.uid, task.uid);
        }
        // The order is repeated: what was lost stays lost.
        client.set_tasks(&tasks).await?;
        none_left(&pod, "4719").await?;
        pod.wait_executor().await?;
        let directory = pod.run_ok("next", &["cat", "/proc/1/cmdline"]).await?;
        assert!(!directory.is_empty());
        assert_ne!(pod.agent().await?, agent);
        assert!(pod.processes_with("4719").await?.is_empty());
    }
    assert_eq!(pod.status(EXECUTOR).await?.restart_count, 0);
    no_zombies(&pod).await?;
    pod.delete().await
}
