//! The steps with pods: a warm Pool, sandboxes with tasks, a task that fails and why. Without a node, what
//! is stored of them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::live::{Live, Seen};
use super::stage::Stage;
use crate::installation::repository;

const TASKS: &str = "examples/batch-sandbox.yaml";
const FAILING: &str = "examples/failing-task.yaml";
const POOL: &str = "task-enabled-pool";
/// Pods of a pool start within this, or something is wrong.
const WARM: Duration = Duration::from_mins(3);
/// The longest task of the examples sleeps for five seconds.
const ENDED: Duration = Duration::from_mins(1);

/// The operator keeps pods ready.
pub(super) async fn warm_pool(stage: &Stage<'_>) -> Result<()> {
    let terminal = stage.terminal;
    terminal.step("The operator keeps a Pool warm")?;
    let warm = |seen: &Seen| seen.object("Pool", POOL)["status"]["available"] == 5;
    Live::new(stage).until("five warm pods", WARM, warm).await?;
    stage.kubectl(&["get", "pools", POOL]).await?;
    let selector = format!("pool={POOL}");
    stage.kubectl(&["get", "pods", "-l", &selector]).await?;
    let names = "jsonpath={.items[0].spec.containers[*].name}";
    let names = ["get", "pods", "-l", &selector, "-o", names];
    let names = stage.kubectl(&names).await?;
    terminal.note("")?;
    stage.expect(
        "its pods have the sandbox and the executor",
        names.trim(),
        "sandbox-container task-executor",
    )
}

fn counts(sandbox: &Value, counters: &[(&str, i64)]) -> bool {
    let status = &sandbox["status"];
    counters
        .iter()
        .all(|(name, count)| status[*name].as_i64() == Some(*count))
}

/// Sandboxes from the pool, with a task of its own in each.
pub(super) async fn tasks(stage: &Stage<'_>) -> Result<()> {
    let terminal = stage.terminal;
    let name = "task-batch-sandbox";
    terminal.step("Three sandboxes, three tasks")?;
    terminal.command(&format!("cat {TASKS}"))?;
    terminal.output(&std::fs::read_to_string(repository(TASKS))?)?;
    stage.apply_example(TASKS).await?;
    let get = ["get", "batchsandbox", name, "-o", "wide"];
    let mut table = Live::new(stage);
    table
        .until("all but the sleeping task", ENDED, |seen| {
            let sandbox = seen.object("BatchSandbox", name);
            counts(sandbox, &[("taskSucceed", 2), ("taskRunning", 1)])
        })
        .await?;
    let ended = table
        .until("every task", ENDED, |seen| {
            counts(seen.object("BatchSandbox", name), &[("taskSucceed", 3)])
        })
        .await?;
    stage.kubectl(&get).await?;
    let ended = ended.object("BatchSandbox", name);
    let allocation = ended
        .pointer("/metadata/annotations/sandbox.opensandbox.io~1alloc-status")
        .and_then(Value::as_str)
        .context("a sandbox with pods says which")?;
    let allocation: Value = serde_json::from_str(allocation)?;
    let mut logs = String::new();
    for pod in allocation["pods"].as_array().into_iter().flatten() {
        let pod = pod.as_str().unwrap_or_default();
        logs += &stage.kubectl(&["logs", pod, "-c", "task-executor"]).await?;
    }
    terminal.note("")?;
    for index in 0..3 {
        let line = format!("[task-batch-sandbox-{index} stdout] Task for sandbox {index}");
        stage.expect(
            &format!("task {index} ran in its sandbox"),
            &logs.contains(&line),
            &true,
        )?;
    }
    stage.expect(
        "none failed",
        &ended.pointer("/status/taskFailed"),
        &Some(&json!(0)),
    )?;
    stage.kubectl(&["delete", "batchsandbox", name]).await?;
    Ok(())
}

/// A task that fails, and where it says why.
pub(super) async fn failing_task(stage: &Stage<'_>) -> Result<()> {
    let terminal = stage.terminal;
    let name = "failing-task";
    terminal.step("A task fails, and says why")?;
    terminal.command(&format!("cat {FAILING}"))?;
    terminal.output(&std::fs::read_to_string(repository(FAILING))?)?;
    stage.apply_example(FAILING).await?;
    let failed = |seen: &Seen| counts(seen.object("BatchSandbox", name), &[("taskFailed", 1)]);
    Live::new(stage).until("the failure", ENDED, failed).await?;
    stage
        .kubectl(&["get", "batchsandbox", name, "-o", "wide"])
        .await?;
    let field = async |field: &str| {
        let path = format!("jsonpath={{.status.taskResults[0].{field}}}");
        stage
            .kubectl(&["get", "batchsandbox", name, "-o", &path])
            .await
    };
    let reason = field("reason").await?;
    let code = field("exitCode").await?;
    let said = field("stderrTail").await?;
    let pod = field("pod").await?;
    let pod = pod.trim();
    let log = stage.kubectl(&["logs", pod, "-c", "task-executor"]).await?;
    terminal.note("")?;
    stage.expect("its reason is in the status", reason.trim(), "Failed")?;
    stage.expect("with the exit code", code.trim(), "1")?;
    let missing = "/no/such/file: No such file or directory";
    stage.expect_words("and the last that it said", &said, &[missing])?;
    let lines = ["[failing-task-0 stdout] reading", missing];
    stage.expect_words("all of its output is in the log", &log, &lines)
}

/// A BatchSandbox is accepted; without a node there is nothing to run it.
pub(super) async fn batch_sandbox(stage: &Stage<'_>) -> Result<()> {
    stage
        .terminal
        .step("A BatchSandbox with a task for each sandbox is accepted")?;
    let text = stage.apply_example(TASKS).await?;
    stage
        .kubectl(&["get", "batchsandbox", "task-batch-sandbox", "-o", "wide"])
        .await?;
    stage.terminal.note("")?;
    let stored = stage.stored("batchsandbox", "task-batch-sandbox").await?;
    stage.expect_kept("stored as written", &text, &stored)?;
    stage
        .terminal
        .note("  It stays pending: there is no node here on which its pods could run.")
}
