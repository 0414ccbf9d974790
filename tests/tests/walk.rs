//! The user's walk from a Pool to sandboxes whose tasks ran, on a real node: the YAML and the commands
//! are those of the documents, as they are printed. The webhook and the operator run as their service
//! accounts; the image that the YAML names is one of our own under that name, since no registry is
//! reached here.

#![cfg(test)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::documents::{self, Run};
use opensandbox_tests::installation::{self, Installation};
use opensandbox_tests::operator::Operator;
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Node, images, node};
use serde_json::Value;

/// Pods start one after the other on a slow machine.
const START: Duration = Duration::from_mins(3);
/// The longest task sleeps for five seconds.
const TASKS: Duration = Duration::from_mins(1);
/// The image that the examples name, as containerd calls it.
const NAMED_BY_EXAMPLES: &str = "docker.io/library/ubuntu:22.04";

/// The node with everything installed.
struct Site {
    // Stopped before the cluster.
    operator: Operator,
    _webhook: Installation,
    node: Arc<Node>,
}

impl Site {
    async fn start() -> Result<Option<Self>> {
        let Some(node) = node::shared().await? else {
            return Ok(None);
        };
        node.import_known(images::SANDBOX).await?;
        node.import_known(images::EXECUTOR).await?;
        node.alias(images::SANDBOX, NAMED_BY_EXAMPLES).await?;
        let webhook =
            Installation::install(node.cluster(), installation::Settings::default()).await?;
        let operator = Operator::start(Administrator::of(node.cluster()), &[]).await?;
        operator.ready().await?;
        Ok(Some(Self {
            operator,
            _webhook: webhook,
            node,
        }))
    }

    async fn kubectl(&self, line: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        self.node
            .cluster()
            .kubectl(&words)
            .await
            .with_context(|| format!("kubectl {line}"))
    }

    async fn apply(&self, example: &str) -> Result<()> {
        let path = installation::repository("examples").join(example);
        let path = path.to_str().context("a path that is text")?;
        self.node.cluster().kubectl(&["apply", "-f", path]).await?;
        Ok(())
    }

    async fn object(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.kubectl(&format!("get {line} -o json")).await?,
        )?)
    }

    /// Waits until an object is as it should be; the error holds the operator's log.
    async fn until(
        &self,
        what: &str,
        bound: Duration,
        object: &str,
        mut reached: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let waited = wait::until(what, bound, async || {
            let seen = self.object(object).await?;
            Ok(if reached(&seen) {
                Probe::Done(seen)
            } else {
                Probe::not_yet(seen["status"].to_string())
            })
        });
        waited
            .await
            .with_context(|| self.operator.program.log().unwrap_or_default())
    }
}

fn number(object: &Value, field: &str) -> i64 {
    object["status"][field].as_i64().unwrap_or_default()
}

/// Columns of a table that kubectl printed, of its only line.
fn row(table: &str) -> Result<Vec<(String, String)>> {
    let mut lines = table.lines();
    let heads = lines.next().context("a table has a head")?;
    let cells = lines.next().context("a table has a line")?;
    Ok(heads
        .split_whitespace()
        .map(str::to_owned)
        .zip(cells.split_whitespace().map(str::to_owned))
        .collect())
}

fn cell(row: &[(String, String)], head: &str) -> Result<String> {
    let cell = row.iter().find(|(name, _)| name == head);
    let (_, text) = cell.with_context(|| format!("no column {head} in {row:?}"))?;
    Ok(text.clone())
}

const POOL: &str = "pool task-enabled-pool";
const SANDBOX: &str = "batchsandbox task-batch-sandbox";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_walk_works_as_printed() -> Result<()> {
    let Some(site) = Site::start().await? else {
        return Ok(());
    };
    site.apply("task-enabled-pool.yaml").await?;
    site.until("warm pods", START, POOL, |pool| {
        number(pool, "available") == 5
    })
    .await?;
    verification(&site).await?;
    site.apply("batch-sandbox.yaml").await?;
    let pods = tasks(&site).await?;
    // A pod that a sandbox holds is none of the pool's idle ones, and those are filled up.
    site.until("the buffer", START, POOL, |pool| {
        number(pool, "allocated") == 3 && number(pool, "available") >= 2
    })
    .await?;
    time_to_live(&site, &pods).await?;
    failing_task(&site).await?;
    site.operator.stop().await
}

/// The commands of the chapters on verification and troubleshooting.
async fn verification(site: &Site) -> Result<()> {
    let pools = row(&site.kubectl("get pools task-enabled-pool").await?)?;
    ensure!(cell(&pools, "TOTAL")? == "5", "{pools:?}");
    let pods = site
        .kubectl("get pods -l pool=task-enabled-pool -o name")
        .await?;
    ensure!(pods.lines().count() == 5, "{pods}");
    let names = site
        .kubectl(
            "get pods -l pool=task-enabled-pool -o jsonpath={.items[0].spec.containers[*].name}",
        )
        .await?;
    ensure!(names == "sandbox-container task-executor", "{names}");
    let pod = pods.lines().next().context("a pod")?;
    for (path, printed) in [
        (
            "{.spec.containers[1].securityContext}",
            r#"{"capabilities":{"add":["SYS_PTRACE"]}}"#,
        ),
        ("{.spec.shareProcessNamespace}", "true"),
    ] {
        let found = site
            .kubectl(&format!("get {pod} -o jsonpath={path}"))
            .await?;
        ensure!(found == printed, "{path}: {found}");
    }
    Ok(())
}

/// The tasks run and end, and the tables say so; returns the pods that they ran in.
async fn tasks(site: &Site) -> Result<Vec<String>> {
    // The second task sleeps; the others are over long before.
    let running = site
        .until("one task left", TASKS, SANDBOX, |sandbox| {
            number(sandbox, "taskSucceed") == 2 && number(sandbox, "taskRunning") == 1
        })
        .await?;
    ensure!(number(&running, "ready") == 3, "{running}");
    let wide = row(&site.kubectl(&format!("get {SANDBOX} -o wide")).await?)?;
    for (head, text) in [("DESIRED", "3"), ("ALLOCATED", "3"), ("TASK_FAILED", "0")] {
        ensure!(cell(&wide, head)? == text, "{head}: {wide:?}");
    }
    let over = site
        .until("every task", TASKS, SANDBOX, |sandbox| {
            number(sandbox, "taskSucceed") == 3
        })
        .await?;
    ensure!(number(&over, "taskRunning") == 0, "{over}");
    ensure!(number(&over, "taskFailed") == 0, "{over}");
    let wide = row(&site.kubectl(&format!("get {SANDBOX} -o wide")).await?)?;
    ensure!(cell(&wide, "TASK_SUCCEED")? == "3", "{wide:?}");
    let described = site.kubectl(&format!("describe {SANDBOX}")).await?;
    ensure!(described.contains("TasksSucceeded"), "{described}");

    let allocation = over
        .pointer("/metadata/annotations/sandbox.opensandbox.io~1alloc-status")
        .and_then(Value::as_str)
        .context("an allocation")?;
    let allocation: Value = serde_json::from_str(allocation)?;
    let pods = allocation["pods"].as_array().context("a list")?;
    let pods: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod.as_str().map(str::to_owned))
        .collect();
    ensure!(pods.len() == 3, "{allocation}");
    // Each task ran where it says, and printed what it prints.
    for (index, pod) in pods.iter().enumerate() {
        let log = site
            .kubectl(&format!("logs {pod} -c task-executor"))
            .await?;
        let line = format!("[task-batch-sandbox-{index} stdout] Task for sandbox {index}");
        ensure!(log.contains(&line), "no {line:?} in {log}");
    }
    Ok(pods)
}

/// The sandboxes end by their time to live; their pods go, others take their place.
async fn time_to_live(site: &Site, pods: &[String]) -> Result<()> {
    let patch = r#"{"spec":{"ttlSecondsAfterFinished":1}}"#;
    let shorten = [
        "patch",
        "batchsandbox",
        "task-batch-sandbox",
        "--type=merge",
        "-p",
        patch,
    ];
    site.node.cluster().kubectl(&shorten).await?;
    site.node
        .cluster()
        .gone(SANDBOX, TASKS)
        .await
        .with_context(|| site.operator.program.log().unwrap_or_default())?;
    site.until("a pool without sandboxes", START, POOL, |pool| {
        number(pool, "allocated") == 0 && number(pool, "available") >= 5
    })
    .await?;
    for pod in pods {
        site.node
            .cluster()
            .gone(&format!("pod {pod}"), START)
            .await?;
    }
    Ok(())
}

/// The example of a task that fails, and after it every command of the documents that only looks, as it is
/// printed.
async fn failing_task(site: &Site) -> Result<()> {
    site.apply("failing-task.yaml").await?;
    let failing = "batchsandbox failing-task";
    site.until("the failure", TASKS, failing, |sandbox| {
        number(sandbox, "taskFailed") == 1
    })
    .await?;
    let wide = row(&site.kubectl(&format!("get {failing} -o wide")).await?)?;
    ensure!(cell(&wide, "TASK_FAILED")? == "1", "{wide:?}");
    let described = site.kubectl(&format!("describe {failing}")).await?;
    ensure!(described.contains("TasksFailed"), "{described}");
    let pod = site
        .kubectl(&format!(
            "get {failing} -o jsonpath={{.status.taskResults[0].pod}}"
        ))
        .await?;
    let mut ran = 0;
    for command in documents::commands()? {
        if documents::run_of(&command.text).is_none_or(|(_, run)| *run != Run::Walk) {
            continue;
        }
        ran += 1;
        let text = command
            .text
            .replace("pool NAME", "pool task-enabled-pool")
            .replace("pool=NAME", "pool=task-enabled-pool")
            .replace("batchsandbox NAME", "batchsandbox failing-task")
            .replace("POD", &pod);
        // Quotes are the shell's, and nothing in them has a space.
        let line = text.replace('\'', "");
        let line = line.strip_prefix("kubectl ").context("a kubectl command")?;
        let printed = site
            .kubectl(line)
            .await
            .with_context(|| command.place.clone())?;
        for expected in &command.prints {
            ensure!(
                printed.contains(expected),
                "{}: {text} does not print {expected:?} but\n{printed}",
                command.place
            );
        }
    }
    ensure!(ran > 20, "only {ran} commands");
    Ok(())
}
