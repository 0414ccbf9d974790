//! Tasks on a real node: each controller with the other's executor, and a task that goes on while the
//! controllers change.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube::core::DynamicObject;
use opensandbox_tests::allocation::held;
use opensandbox_tests::node::start_or_skip;
use opensandbox_tests::upstream::{self, Controller};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Node, Settings, images};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::recipes::{
    SANDBOX, SIZE, beside_the_sandbox, four_ends, in_the_sandbox, ours_unsigned, own_template,
    released,
};
use super::site::{BOUND, NAMESPACE, Ours, Site};

/// One node at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// A node with both images.
async fn node() -> Result<Option<Node>> {
    let Some(node) = Box::pin(start_or_skip(Settings::default())).await? else {
        return Ok(None);
    };
    node.import_known(images::SANDBOX).await?;
    node.import_known(images::EXECUTOR).await?;
    Ok(Some(node))
}

fn number(object: &DynamicObject, field: &str) -> i64 {
    object.data["status"][field].as_i64().unwrap_or_default()
}

/// Counters of tasks: pending, running, succeeded, failed, unknown.
fn counters(sandbox: &DynamicObject) -> [i64; 5] {
    [
        "taskPending",
        "taskRunning",
        "taskSucceed",
        "taskFailed",
        "taskUnknown",
    ]
    .map(|field| number(sandbox, field))
}

impl Site<'_> {
    /// Waits until every pod of a pool is ready and nobody's.
    async fn until_idle(&self, pool: &str, log: impl Fn() -> String) -> Result<()> {
        self.until("idle pods", "Pool", pool, log, |pool| {
            number(pool, "available") == i64::from(SIZE) && number(pool, "allocated") == 0
        })
        .await?;
        Ok(())
    }

    async fn until_counters(
        &self,
        name: &str,
        wanted: [i64; 5],
        log: impl Fn() -> String,
    ) -> Result<DynamicObject> {
        let what = format!("counters {wanted:?}");
        self.until(&what, "BatchSandbox", name, log, |sandbox| {
            counters(sandbox) == wanted
        })
        .await
    }

    /// What a command printed in the sandbox container of a pod.
    async fn exec(&self, pod: &str, argv: &[&str]) -> Result<String> {
        let exec = ["exec", "-n", NAMESPACE, pod, "-c", SANDBOX, "--"];
        self.cluster.kubectl(&[&exec[..], argv].concat()).await
    }

    /// How often the tasks of all these pods ran.
    async fn runs(&self, pods: &[String]) -> Result<usize> {
        let mut runs = 0;
        for pod in pods {
            let lines = self
                .exec(pod, &["sh", "-c", "cat /tmp/ran 2>/dev/null || true"])
                .await?;
            runs += lines.lines().count();
        }
        Ok(runs)
    }

    /// Whether a task's process is in one of these pods.
    async fn is_running(&self, pods: &[String]) -> Result<bool> {
        for pod in pods {
            // The first letter in brackets, so that this shell is not found.
            let found = self
                .exec(pod, &["sh", "-c", "pgrep -f '[s]leep 61' || true"])
                .await?;
            if !found.trim().is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Each of the tasks of [`four_ends`] has begun once, and those that go on do.
    async fn ensure_once(&self, pods: &[String], log: impl Fn() -> String) -> Result<()> {
        let runs = self.runs(pods).await?;
        ensure!(runs == 4, "tasks began {runs} times\n{}", log());
        ensure!(self.is_running(pods).await?, "no task runs\n{}", log());
        Ok(())
    }

    async fn names_of_pods(&self) -> Result<Vec<(String, String)>> {
        let pods = self.pods().await?.into_iter().map(|pod| pod.metadata);
        let names = pods.filter_map(|pod| Some((pod.name?, pod.uid?)));
        Ok(names.collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_operator_runs_tasks_by_upstreams_executor() -> Result<()> {
    let Some(executor) = upstream::program(upstream::EXECUTOR)? else {
        return Ok(());
    };
    let _turn = TURN.lock().await;
    let Some(node) = node().await? else {
        return Ok(());
    };
    let site = Site {
        cluster: node.cluster(),
    };
    let ours = site.install_ours(&["--executor-protocol=upstream"]).await?;
    for (name, pool) in [
        ("in-the-sandbox", in_the_sandbox as fn(&str, &Path) -> Value),
        ("beside-the-sandbox", beside_the_sandbox),
    ] {
        site.create(&pool(name, &executor)).await?;
        by_upstreams_executor(&site, &ours, name)
            .await
            .with_context(|| name.to_owned())?;
        site.delete("pool", name).await?;
    }
    ours.operator.stop().await
}

async fn by_upstreams_executor(site: &Site<'_>, ours: &Ours, pool: &str) -> Result<()> {
    let log = || ours.operator.program.log().unwrap_or_default();
    site.until_idle(pool, log).await?;
    // Twice under one name, on the same pods: nothing of the first is taken for the second's.
    for round in 1..=2 {
        site.create(&four_ends("ends", pool)).await?;
        let sandbox = site.until_counters("ends", [0, 1, 1, 2, 0], log).await?;
        let pods = held(&sandbox);
        for (index, state, codes) in [
            (0, "Succeeded", vec![json!(0)]),
            (1, "Failed", vec![json!(3)]),
            // It says for a moment that time was up, and then how the process ended.
            (2, "Failed", vec![json!(137), json!(143)]),
            (3, "Running", vec![Value::Null]),
        ] {
            let results = &sandbox.data["status"]["taskResults"];
            let result = results
                .as_array()
                .and_then(|all| all.iter().find(|one| one["index"] == index))
                .with_context(|| format!("no result {index} in {results:#}"))?;
            let place = pods.get(index).context("a pod for each")?;
            ensure!(
                result["state"] == state
                    && codes.contains(&result["exitCode"])
                    && result["pod"] == place.as_str(),
                "{result:#}"
            );
        }
        ensure!(site.runs(&pods).await? == round * 4, "round {round}");
        ensure!(site.is_running(&pods).await?);
        site.delete("batchsandbox", "ends").await?;
        site.until_gone("batchsandbox", "ends", log).await?;
        site.until_idle(pool, log).await?;
        ensure!(
            !site.is_running(&pods).await?,
            "a task outlived its sandbox"
        );
    }
    let before = site.names_of_pods().await?;
    site.create(&released("released", pool)).await?;
    let over = site.until_counters("released", [0, 0, 2, 0, 0], log);
    over.await?;
    site.until_idle(pool, log).await?;
    site.delete("batchsandbox", "released").await?;
    site.until_gone("batchsandbox", "released", log).await?;
    let after = site.names_of_pods().await?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_our_executor_go_over_and_back() -> Result<()> {
    Box::pin(goes_over_and_back(&ours_unsigned("pool"), &[])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_upstreams_executor_go_over_and_back() -> Result<()> {
    let Some(executor) = upstream::program(upstream::EXECUTOR)? else {
        return Ok(());
    };
    let pool = in_the_sandbox("pool", &executor);
    Box::pin(goes_over_and_back(&pool, &["--executor-protocol=upstream"])).await
}

async fn goes_over_and_back(pool: &Value, args: &[&str]) -> Result<()> {
    let Some(program) = upstream::program(upstream::CONTROLLER)? else {
        return Ok(());
    };
    let _turn = TURN.lock().await;
    let Some(node) = node().await? else {
        return Ok(());
    };
    let site = Site {
        cluster: node.cluster(),
    };
    upstream::install(site.administrator()).await?;

    let theirs = Controller::start(site.administrator(), program.clone()).await?;
    let log = || theirs.program.log().unwrap_or_default();
    site.create(pool).await?;
    site.until_idle("pool", log).await?;
    site.create(&four_ends("ends", "pool")).await?;
    site.create(&own_template("own", pool)).await?;
    // It does not look at a timeout in a patch.
    let sandbox = site.until_counters("ends", [0, 2, 1, 1, 0], log).await?;
    site.until_counters("own", [0, 1, 0, 0, 0], log).await?;
    let pods = held(&sandbox);
    site.ensure_once(&pods, log).await?;
    theirs.stop().await?;

    let ours = site.install_ours(args).await?;
    let log = || ours.operator.program.log().unwrap_or_default();
    // Another writer of the status, with the same counters and more.
    let sandbox = site
        .until("our status", "BatchSandbox", "ends", log, |sandbox| {
            let recorded = sandbox.data["status"]["taskRecord"].is_string();
            recorded && counters(sandbox) == [0, 2, 1, 1, 0]
        })
        .await?;
    ensure!(held(&sandbox) == pods, "{pods:?}");
    site.ensure_once(&pods, log).await?;
    site.delete("batchsandbox", "own").await?;
    site.until_gone("batchsandbox", "own", log).await?;
    site.until_gone("pod", "own-0", log).await?;
    ours.operator.stop().await?;

    let theirs = Controller::start(site.administrator(), program).await?;
    let log = || theirs.program.log().unwrap_or_default();
    theirs
        .program
        .wait_for_line("a look at tasks", BOUND, |line| {
            line.contains("schedule tasks completed")
        })
        .await?;
    site.until_counters("ends", [0, 2, 1, 1, 0], log).await?;
    site.ensure_once(&pods, log).await?;
    site.delete("batchsandbox", "ends").await?;
    site.until_gone("batchsandbox", "ends", log).await?;
    wait::until("the end of its tasks", BOUND, async || {
        Ok(if site.is_running(&pods).await? {
            Probe::not_yet("one runs")
        } else {
            Probe::Done(())
        })
    })
    .await?;
    theirs.stop().await
}
