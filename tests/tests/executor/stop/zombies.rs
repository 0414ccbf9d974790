//! Many tasks, each with orphans: no zombie and no process is left of them.

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use opensandbox_tests::executor::{ExecutorPod, task};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe, SANDBOX};

use super::{BOUND, left_as};
use crate::observer::Observer;
use crate::processes::{status_bytes, zombies};
use crate::settings::number;

/// How much more memory executor and agent may hold after all these tasks, however many they were.
const GROWTH: u64 = 16 * 1024 * 1024;

#[tokio::test]
async fn many_tasks_leave_no_zombie() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("zombies").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "zombies", &recipe).await?;
    let before = pod.host_pids(SANDBOX).await?;
    let observer = Observer::start(pod.client()).await?;
    let executor = pod.main_pid(EXECUTOR).await?;
    let idle = status_bytes(executor, "VmRSS")?;

    let (client, observer) = (pod.client(), &observer);
    let tasks = (0..number("OPENSANDBOX_TASKS", 300)).map(|index| async move {
        let name = format!("task-{index}");
        // Orphans that end before the task, after it, and those of a program that never waits.
        let script = match index % 4 {
            0 => "(true &); (setsid true &)",
            1 => "sleep 0.05 & sleep 0.03 &",
            2 => "true & exec sleep 0.02",
            _ => "exit 0",
        };
        client.create(&task(&name, &["sh", "-c", script])).await?;
        observer.ended(&name, BOUND).await?;
        client.delete(&name).await?;
        observer.gone(&name, BOUND).await?;
        anyhow::Ok(())
    });
    futures::stream::iter(tasks)
        .buffer_unordered(32)
        .try_collect::<()>()
        .await
        .context(pod.executor_log_tail().await)?;

    let started = client.metric("task_executor_tasks_started_total").await?;
    let ended = client.metric("task_executor_tasks_ended_total").await?;
    assert_eq!(format!("{started}"), format!("{ended}"), "counted");
    assert_eq!(zombies(&pod).await?, Vec::<String>::new());
    left_as(&pod, &before).await?;
    let after = status_bytes(executor, "VmRSS")?;
    assert!(after <= idle + GROWTH, "{idle} bytes before, {after} after");
    pod.delete().await
}
