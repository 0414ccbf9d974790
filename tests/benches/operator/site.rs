//! A fresh API server with fake nodes, the CRDs and nothing else; pools and sandboxes are made here, and
//! what the API server counted is read here.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::api::{DeleteParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use opensandbox_tests::cluster::{LocalCluster, Settings, start_or_skip};
use opensandbox_tests::installation::{list, repository};
use opensandbox_tests::kwok::Kwok;
use opensandbox_tests::upstream;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

/// Nodes that pods name, in turn.
const NODES: u32 = 4;
/// Pods of the largest pool become ready within this.
const WARM: Duration = Duration::from_mins(10);

/// The place of one contender.
pub(crate) struct Site {
    // Stopped before the cluster.
    _kwok: Kwok,
    pub(crate) cluster: LocalCluster,
    client: Client,
}

impl Site {
    /// `None` where no Kubernetes can be had.
    pub(crate) async fn start() -> Result<Option<Self>> {
        let Some(cluster) = start_or_skip(Settings::default()).await? else {
            return Ok(None);
        };
        let crds = repository("config/crd");
        let crds = crds.to_str().context("a path that is text")?;
        cluster
            .kubectl(&["apply", "--server-side", "-k", crds])
            .await?;
        cluster
            .kubectl_with_input(&["create", "-f", "-"], &upstream::snapshots()?.to_string())
            .await?;
        cluster
            .kubectl(&[
                "wait",
                "--for=condition=Established",
                "--timeout=30s",
                "crd",
                "--all",
            ])
            .await?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "opensandbox-system"}});
        cluster
            .kubectl_with_input(&["create", "-f", "-"], &list(&[namespace]))
            .await?;
        let kwok = Kwok::start(&cluster, NODES).await?;
        let client = cluster.client().await?;
        Ok(Some(Self {
            _kwok: kwok,
            cluster,
            client,
        }))
    }

    pub(crate) fn api(&self, kind: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("sandbox.opensandbox.io", "v1alpha1", kind);
        Api::namespaced_with(
            self.client.clone(),
            "default",
            &ApiResource::from_gvk(&kind),
        )
    }

    /// A pool that keeps `idle` pods ready and has room for as many again.
    pub(crate) async fn pool(&self, name: &str, idle: usize) -> Result<()> {
        let pool = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
            "metadata": {"name": name, "labels": {"sandbox.opensandbox.io/task-executor": "disabled"}},
            "spec": {
                "template": {"spec": {
                    "nodeName": "fake-0",
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": false,
                    "containers": [{"name": "sandbox", "image": "fake", "command": ["sleep", "infinity"]}],
                }},
                "capacitySpec": {"bufferMin": idle, "bufferMax": idle, "poolMin": idle, "poolMax": idle * 2},
                "scaleStrategy": {"maxUnavailable": "100%"},
            },
        });
        self.create("Pool", pool).await?;
        self.warm(name, idle).await
    }

    /// Waits until a pool has exactly so many ready idle pods, and none that a sandbox holds.
    pub(crate) async fn warm(&self, name: &str, idle: usize) -> Result<()> {
        let pools = self.api("Pool");
        wait::until(&format!("{idle} warm pods"), WARM, async || {
            let pool = pools.get(name).await?;
            let status = &pool.data["status"];
            let is =
                |field: &str, count: usize| status[field].as_u64() == u64::try_from(count).ok();
            Ok(
                if is("available", idle) && is("allocated", 0) && is("total", idle) {
                    Probe::Done(())
                } else {
                    Probe::not_yet(status.to_string())
                },
            )
        })
        .await
    }

    pub(crate) async fn create(&self, kind: &str, object: Value) -> Result<()> {
        let object: DynamicObject = serde_json::from_value(object)?;
        self.api(kind)
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        match self.api(kind).delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => bail!(error),
        }
    }

    /// Writes that the API server has answered so far, by resource, subresource and verb.
    pub(crate) async fn writes(&self) -> Result<BTreeMap<String, u64>> {
        let counted = self.counted("apiserver_request_total").await?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count, which Prometheus writes as a float"
        )]
        let whole = |(key, count): (String, f64)| (key, count as u64);
        Ok(counted.into_iter().map(whole).collect())
    }

    /// How long the API server took for them: seconds in all, and how many they were.
    pub(crate) async fn write_times(&self) -> Result<BTreeMap<String, (f64, f64)>> {
        let name = "apiserver_request_duration_seconds";
        let seconds = self.counted(&format!("{name}_sum")).await?;
        let counts = self.counted(&format!("{name}_count")).await?;
        let times = seconds.into_iter().filter_map(|(key, seconds)| {
            let count = counts.get(&key)?;
            Some((key, (seconds, *count)))
        });
        Ok(times.collect())
    }

    /// A metric of the API server about writes, by resource, subresource and verb.
    async fn counted(&self, metric: &str) -> Result<BTreeMap<String, f64>> {
        let text = self.cluster.kubectl(&["get", "--raw", "/metrics"]).await?;
        let prefix = format!("{metric}{{");
        let mut counted = BTreeMap::new();
        for line in text.lines() {
            let Some(labels) = line.strip_prefix(&prefix) else {
                continue;
            };
            let Some((labels, count)) = labels.rsplit_once("} ") else {
                continue;
            };
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            let verb = label("verb").unwrap_or_default();
            if !matches!(verb, "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE") {
                continue;
            }
            let key = format!(
                "{}/{} {verb}",
                label("resource").unwrap_or_default(),
                label("subresource").unwrap_or_default(),
            );
            *counted.entry(key).or_default() += count.parse::<f64>()?;
        }
        Ok(counted)
    }
}

/// A BatchSandbox of a pool.
pub(crate) fn sandbox(name: &str, pool: &str, replicas: usize) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "poolRef": pool},
    })
}
