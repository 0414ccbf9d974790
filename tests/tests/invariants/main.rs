//! The invariants of pools and sandboxes on a real API server with fake nodes, while users do what they
//! like and the operator is killed every few seconds. Everything that was stored is watched, and judged
//! afterwards in the order of its versions.
//!
//! `OPENSANDBOX_SOAK_SECONDS` makes it longer, `OPENSANDBOX_SEED` repeats what users did.

#![cfg(test)]

mod churn;
mod history;
mod takeover;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use opensandbox_tests::LocalCluster;
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::allocation;
use opensandbox_tests::cluster::{Settings, start_or_skip};
use opensandbox_tests::installation::{self, Installation};
use opensandbox_tests::kwok::Kwok;
use opensandbox_tests::operator::Operator;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::churn::{Churn, Random};
use self::history::History;

/// Where users work.
const NAMESPACE: &str = "default";
/// Without a soak.
const SECONDS: u64 = 40;
/// After it, until nothing is left to do.
const SETTLED: Duration = Duration::from_mins(2);

/// A cluster with fake nodes on which everything is installed but the operator does not run yet.
struct Site {
    // Stopped before the cluster.
    _kwok: Kwok,
    _webhook: Installation,
    cluster: LocalCluster,
}

impl Site {
    async fn start() -> Result<Option<Self>> {
        let Some(cluster) = start_or_skip(Settings::default()).await? else {
            return Ok(None);
        };
        let webhook = Installation::install(&cluster, installation::Settings::default()).await?;
        let kwok = Kwok::start(&cluster, 2).await?;
        Ok(Some(Self {
            _kwok: kwok,
            _webhook: webhook,
            cluster,
        }))
    }

    async fn operator(&self, args: &[&str]) -> Result<Operator> {
        Operator::start(Administrator::of(&self.cluster), args).await
    }

    async fn api(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let kind = GroupVersionKind::gvk("sandbox.opensandbox.io", "v1alpha1", kind);
        let resource = ApiResource::from_gvk(&kind);
        Ok(Api::namespaced_with(
            self.cluster.client().await?,
            NAMESPACE,
            &resource,
        ))
    }

    async fn pods(&self) -> Result<Api<Pod>> {
        Ok(Api::namespaced(self.cluster.client().await?, NAMESPACE))
    }

    async fn create(&self, object: &Value) -> Result<()> {
        self.cluster
            .kubectl_with_input(&["create", "-n", NAMESPACE, "-f", "-"], &object.to_string())
            .await?;
        Ok(())
    }
}

/// A Pool whose pods need no executor and run on a fake node.
fn pool(name: &str, capacity: [i32; 4], recycle: &str) -> Value {
    let [buffer_min, buffer_max, pool_min, pool_max] = capacity;
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": name, "labels": {"sandbox.opensandbox.io/task-executor": "disabled"}},
        "spec": {
            "template": {"spec": {
                "nodeName": "fake-0", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "sandbox", "image": "fake", "command": ["sleep", "infinity"]}],
            }},
            "capacitySpec": {"bufferMin": buffer_min, "bufferMax": buffer_max,
                             "poolMin": pool_min, "poolMax": pool_max},
            "scaleStrategy": {"maxUnavailable": "100%"},
            "recycleStrategy": {"type": recycle},
        },
    })
}

fn seconds() -> Result<u64> {
    match std::env::var("OPENSANDBOX_SOAK_SECONDS") {
        Ok(text) => text.parse().context("OPENSANDBOX_SOAK_SECONDS"),
        Err(_) => Ok(SECONDS),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariants_hold_while_users_churn_and_the_operator_is_killed() -> Result<()> {
    let Some(site) = Site::start().await? else {
        return Ok(());
    };
    for (name, recycle) in [("deleting", "Delete"), ("reusing", "Noop")] {
        site.create(&pool(name, [2, 4, 4, 12], recycle)).await?;
    }
    let history = History::start(&site).await?;
    let administrator = Administrator::of(&site.cluster);
    // Each start leads at once: the lease of one that was killed would outlast the next kill.
    let mut operator = site.operator(&["--leader-elect=false"]).await?;
    operator.ready().await?;
    let mut random = Random::from_environment()?;
    println!("OPENSANDBOX_SEED={}", random.seed());
    let churn = Churn::start(&site, random.fork()).await?;
    let end = Instant::now() + Duration::from_secs(seconds()?);
    let mut kills = 0;
    while Instant::now() < end {
        sleep(Duration::from_millis(1000 + random.below(3000))).await;
        operator.program.kill().await?;
        kills += 1;
        operator.restart(administrator).await?;
    }
    let done = churn.stop().await?;
    operator
        .ready()
        .await
        .context("the operator after the last kill")?;
    let settled = settle(&site).await;
    let seen = history.stop().await?;
    println!(
        "{kills} kills, {done} actions of users, {} versions of objects",
        seen.len()
    );
    let violations = seen.violations();
    ensure!(
        violations.is_empty(),
        "violated:\n{}",
        violations.join("\n")
    );
    settled.with_context(|| operator.program.log().unwrap_or_default())?;
    operator.stop().await
}

/// Waits until the ledger equals the annotations, nothing leaks, and nobody waits without saying why.
async fn settle(site: &Site) -> Result<()> {
    let (pools, sandboxes, pods) = (
        site.api("Pool").await?,
        site.api("BatchSandbox").await?,
        site.pods().await?,
    );
    let all = ListParams::default();
    wait::until("everything to settle", SETTLED, async || {
        let sandboxes = sandboxes.list(&all).await?.items;
        let pods = pods.list(&all).await?.items;
        let exists = |name: &String| {
            pods.iter().any(|pod| {
                let metadata = &pod.metadata;
                metadata.name.as_ref() == Some(name) && metadata.deletion_timestamp.is_none()
            })
        };
        let mut held = BTreeMap::<String, usize>::new();
        for sandbox in &sandboxes {
            let name = sandbox.metadata.name.clone().unwrap_or_default();
            if sandbox.metadata.deletion_timestamp.is_some() {
                return Ok(Probe::not_yet(format!("{name} is still there")));
            }
            // One that was lost stays named until another takes its place.
            let holds = allocation::held(sandbox)
                .iter()
                .filter(|pod| exists(pod))
                .count();
            let pool = sandbox.data["spec"]["poolRef"].as_str().unwrap_or_default();
            *held.entry(pool.to_owned()).or_default() += holds;
            let wanted = sandbox.data["spec"]["replicas"]
                .as_u64()
                .unwrap_or_default();
            let status = &sandbox.data["status"];
            let waits = status["conditions"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|one| one["type"] == "PoolAllocationPending" && one["status"] == "True")
            });
            if u64::try_from(holds)? != wanted && !(waits && u64::try_from(holds)? < wanted) {
                return Ok(Probe::not_yet(format!(
                    "{name} holds {holds} of {wanted}: {status}"
                )));
            }
            if status["ready"].as_u64() != u64::try_from(holds).ok() {
                return Ok(Probe::not_yet(format!("{name} holds {holds}: {status}")));
            }
        }
        for pool in pools.list(&all).await?.items {
            let name = pool.metadata.name.clone().unwrap_or_default();
            let status = &pool.data["status"];
            let held = held.get(&name).copied().unwrap_or_default();
            let exist = pods
                .iter()
                .filter(|pod| {
                    let labels = pod.metadata.labels.as_ref();
                    labels.and_then(|labels| labels.get("pool")) == Some(&name)
                })
                .count();
            let number = |field: &str| status[field].as_u64().unwrap_or(u64::MAX);
            let capacity = |field: &str| {
                pool.data["spec"]["capacitySpec"][field]
                    .as_u64()
                    .unwrap_or_default()
            };
            let (held, exist) = (u64::try_from(held)?, u64::try_from(exist)?);
            let right = number("allocated") == held
                && number("total") == exist
                && number("available") + held == exist
                && (exist <= capacity("poolMax") || exist == held)
                && exist >= capacity("poolMin");
            if !right {
                return Ok(Probe::not_yet(format!(
                    "{name}: {held} held, {exist} exist: {status}"
                )));
            }
        }
        Ok(Probe::Done(()))
    })
    .await
}
