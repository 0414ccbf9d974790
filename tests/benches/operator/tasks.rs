//! Tasks on a real node: from the moment at which a task ends in its sandbox until a client sees it in
//! the status of the BatchSandbox.

use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event};
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::installation::{self, Installation};
use opensandbox_tests::operator::Operator;
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Node, images, node};
use serde_json::{Value, json};

use super::controller::Contender;
use super::print;
use super::scenario::Row;
use super::times::Times;

/// Pods of the pool, which are reused.
const PODS: usize = 2;
/// Pods start, and sandboxes end, within this.
const BOUND: Duration = Duration::from_mins(3);
/// How long a task waits before it ends, so that nothing else is going on then.
const LASTING: &str = "0.3";
const ENDED: &str = "/tmp/ended";

/// `count` sandboxes with one task each, one after the other; `None` where there is no node.
pub(crate) async fn all(contender: &Contender, count: usize) -> Result<Option<Vec<Row>>> {
    let Some(node) = node::shared().await? else {
        return Ok(None);
    };
    node.import_known(images::SANDBOX).await?;
    node.import_known(images::EXECUTOR).await?;
    let _webhook = Installation::install(node.cluster(), installation::Settings::default()).await?;
    let administrator = Administrator::of(node.cluster());
    let program = contender.program.clone();
    let operator = Operator::start_program(administrator, program, &[]).await?;
    operator.ready().await?;
    let site = Site {
        pools: api(&node, "Pool").await?,
        sandboxes: api(&node, "BatchSandbox").await?,
        node: &node,
    };
    site.pool().await?;
    let (mut started, mut seen) = (Vec::new(), Vec::new());
    for index in 0..count {
        let times = site.one(&format!("t{index}")).await?;
        started.push(times.started);
        seen.push(times.seen);
    }
    let (started, seen) = (Times::of(started), Times::of(seen));
    let rows = vec![
        Row::new("created to task started, p50", started.at(500), "ms"),
        Row::new("task ended to seen in status, p50", seen.at(500), "ms"),
        Row::new("task ended to seen in status, p99", seen.at(990), "ms"),
    ];
    for row in &rows {
        let shown = row.value.map(|value| row.shown(value)).unwrap_or_default();
        print(&format!("  {}: {shown}", row.name));
    }
    operator.stop().await?;
    Ok(Some(rows))
}

async fn api(node: &Node, kind: &str) -> Result<Api<DynamicObject>> {
    let kind = GroupVersionKind::gvk("sandbox.opensandbox.io", "v1alpha1", kind);
    let client = node.cluster().client().await?;
    let resource = ApiResource::from_gvk(&kind);
    Ok(Api::namespaced_with(client, "default", &resource))
}

struct Site<'a> {
    pools: Api<DynamicObject>,
    sandboxes: Api<DynamicObject>,
    node: &'a Node,
}

/// Of one task.
struct Measured {
    /// From the creation of its BatchSandbox to its first instruction.
    started: Duration,
    /// From its last instruction to the watch event that says so.
    seen: Duration,
}

impl Site<'_> {
    async fn pool(&self) -> Result<()> {
        let pool = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
            "metadata": {"name": "tasks"},
            "spec": {
                "template": {"spec": {"containers": [
                    {"name": "sandbox", "image": images::SANDBOX, "command": ["sleep", "infinity"]},
                ]}},
                "capacitySpec": {"bufferMin": PODS, "bufferMax": PODS, "poolMin": PODS, "poolMax": PODS},
                "recycleStrategy": {"type": "Noop"},
            },
        });
        let pool: DynamicObject = serde_json::from_value(pool)?;
        self.pools.create(&PostParams::default(), &pool).await?;
        self.warm().await
    }

    async fn warm(&self) -> Result<()> {
        wait::until("a warm pool", BOUND, async || {
            let status = self.pools.get("tasks").await?.data["status"].take();
            let available = status["available"].as_u64() == u64::try_from(PODS).ok();
            Ok(if available {
                Probe::Done(())
            } else {
                Probe::not_yet(status.to_string())
            })
        })
        .await
    }

    async fn one(&self, name: &str) -> Result<Measured> {
        let script =
            format!("a=$EPOCHREALTIME; sleep {LASTING}; echo \"$a $EPOCHREALTIME\" > {ENDED}");
        let sandbox = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
            "metadata": {"name": name},
            "spec": {
                "replicas": 1, "poolRef": "tasks",
                "taskTemplate": {"spec": {"process": {"command": ["bash", "-c", script]}}},
            },
        });
        let sandbox: DynamicObject = serde_json::from_value(sandbox)?;
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = pin!(watcher::watcher(self.sandboxes.clone(), only));
        // The list is empty; what follows comes by the watch.
        while !matches!(events.try_next().await?, Some(Event::InitDone)) {}
        let created = now()?;
        self.sandboxes
            .create(&PostParams::default(), &sandbox)
            .await?;
        let begin = Instant::now();
        let (object, at) = loop {
            ensure!(begin.elapsed() < BOUND, "{name} does not end");
            let event = events.try_next().await?.context("a watch does not end")?;
            if let Event::Apply(object) = event {
                ensure!(
                    object.data["status"]["taskFailed"].as_u64().unwrap_or(0) == 0,
                    "{name} failed"
                );
                if object.data["status"]["taskSucceed"] == 1 {
                    break (object, now()?);
                }
            }
        };
        let times = self.file(&object).await?;
        let (start, end) = times.trim().split_once(' ').context("two times")?;
        let measured = Measured {
            started: seconds(start)?.saturating_sub(created),
            seen: at.saturating_sub(seconds(end)?),
        };
        self.sandboxes
            .delete(name, &DeleteParams::default())
            .await?;
        while !matches!(events.try_next().await?, Some(Event::Delete(_))) {}
        self.warm().await?;
        Ok(measured)
    }

    /// What the task left in its sandbox.
    async fn file(&self, sandbox: &DynamicObject) -> Result<String> {
        let annotations = sandbox.metadata.annotations.as_ref();
        let allocation = annotations
            .and_then(|all| all.get("sandbox.opensandbox.io/alloc-status"))
            .context("an allocation")?;
        let allocation: Value = serde_json::from_str(allocation)?;
        let pod = allocation["pods"][0].as_str().context("a pod")?;
        self.node
            .cluster()
            .kubectl(&["exec", pod, "-c", "sandbox", "--", "cat", ENDED])
            .await
    }
}

/// Since 1970: sandboxes share this machine's clock.
#[expect(clippy::disallowed_methods, reason = "compared with what a task reads")]
fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// Bash's `EPOCHREALTIME`: seconds with a fraction.
fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
