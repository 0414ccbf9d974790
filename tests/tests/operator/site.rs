//! One API server for all tests of this process, on which everything is installed but the webhook, and
//! one test at a time: there is one Lease.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_tests::LocalCluster;
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::installation::{self, NAMESPACE};
use opensandbox_tests::operator::Operator;
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Settings, cluster};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// For anything that is waited for.
pub(crate) const BOUND: Duration = Duration::from_secs(40);

/// Name of the Lease, upstream's.
pub(crate) const LEASE: &str = "2fa1c467.opensandbox.io";

/// A test's turn on the cluster.
pub(crate) struct Site {
    pub(crate) cluster: Arc<LocalCluster>,
    _turn: MutexGuard<'static, ()>,
}

/// The cluster, when it is this test's turn. `None` where none can be had.
pub(crate) async fn site() -> Result<Option<Site>> {
    static TURN: Mutex<()> = Mutex::const_new(());
    static CLUSTER: OnceCell<Option<Arc<LocalCluster>>> = OnceCell::const_new();
    let turn = TURN.lock().await;
    let cluster = CLUSTER.get_or_try_init(install).await?;
    Ok(cluster.clone().map(|cluster| Site {
        cluster,
        _turn: turn,
    }))
}

async fn install() -> Result<Option<Arc<LocalCluster>>> {
    let Some(cluster) = cluster::start_or_skip(Settings::default()).await? else {
        return Ok(None);
    };
    let administrator = Administrator::of(&cluster);
    let mut documents = installation::rendered_as(administrator, None).await?;
    documents.retain(|document| {
        let kind = document["kind"].as_str().unwrap_or_default();
        !kind.ends_with("WebhookConfiguration")
    });
    installation::apply(administrator, documents).await?;
    Ok(Some(Arc::new(cluster)))
}

impl Site {
    /// kubectl as administrator.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(args).await
    }

    /// Applies one object.
    pub(crate) async fn apply(&self, object: &Value) -> Result<()> {
        let args = ["apply", "--server-side", "-f", "-"];
        self.cluster
            .kubectl_with_input(&args, &object.to_string())
            .await?;
        Ok(())
    }

    /// A namespace in which pods can be made, and its name.
    pub(crate) async fn namespace(&self, prefix: &str) -> Result<String> {
        let name = self.cluster.namespace(prefix, &[]).await?.name;
        // Nobody makes it here: there is no controller manager.
        self.kubectl(&["create", "-n", &name, "serviceaccount", "default"])
            .await?;
        Ok(name)
    }

    /// Starts the operator and waits until it is ready.
    pub(crate) async fn operator(&self, args: &[&str]) -> Result<Operator> {
        let operator = Operator::start(Administrator::of(&self.cluster), args).await?;
        operator.ready().await?;
        Ok(operator)
    }

    /// Waits until this one leads.
    pub(crate) async fn leads(&self, operator: &Operator) -> Result<()> {
        let leads = wait::until("the operator to lead", BOUND, async || {
            let metrics = operator.metrics().await?;
            Ok(if is_leader(&metrics) {
                Probe::Done(())
            } else {
                Probe::not_yet("it stands by")
            })
        });
        leads
            .await
            .with_context(|| operator.program.log().unwrap_or_default())
    }

    /// A Pool of `size` pods.
    pub(crate) async fn pool(&self, namespace: &str, name: &str, size: u32) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "template": {"spec": {"containers": [{"name": "main", "image": "none:1"}]}},
                "capacitySpec": {"bufferMin": 0, "bufferMax": size, "poolMin": size, "poolMax": size},
                // All at once, however many are not ready yet.
                "scaleStrategy": {"maxUnavailable": "100%"},
            },
        }))
        .await
    }

    /// A BatchSandbox.
    pub(crate) async fn sandbox(&self, namespace: &str, name: &str, spec: Value) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
            "metadata": {"namespace": namespace, "name": name},
            "spec": spec,
        }))
        .await
    }

    /// Names of the pods of a pool, as soon as it has this many.
    pub(crate) async fn pods(
        &self,
        namespace: &str,
        pool: &str,
        count: usize,
    ) -> Result<Vec<String>> {
        let label = format!("pool={pool}");
        let path = "jsonpath={.items[*].metadata.name}";
        wait::until("the pods of the pool", BOUND, async || {
            let names = self
                .kubectl(&["get", "pods", "-n", namespace, "-l", &label, "-o", path])
                .await?;
            let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
            Ok(if names.len() == count {
                Probe::Done(names)
            } else {
                Probe::not_yet(format!("{names:?}"))
            })
        })
        .await
    }

    /// What a kubelet would write.
    pub(crate) async fn make_ready(&self, namespace: &str, pod: &str, index: usize) -> Result<()> {
        let address = format!("127.1.0.{}", index + 1);
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }})
        .to_string();
        let args = [
            "patch",
            "pod",
            pod,
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ];
        self.kubectl(&args).await?;
        Ok(())
    }

    /// A field of an object, empty if it is not there.
    pub(crate) async fn field(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        path: &str,
    ) -> Result<String> {
        let path = format!("jsonpath={{.{path}}}");
        self.kubectl(&["get", kind, name, "-n", namespace, "-o", &path])
            .await
    }

    /// Waits for a field of an object.
    pub(crate) async fn until(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        path: &str,
        mut reached: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        wait::until(&format!("{kind} {name}: {path}"), BOUND, async || {
            let text = self.field(namespace, kind, name, path).await?;
            let value = serde_json::from_str(&text).unwrap_or(Value::Null);
            Ok(if reached(&value) {
                Probe::Done(())
            } else {
                Probe::not_yet(text)
            })
        })
        .await
    }

    /// Who holds the Lease; empty if nobody does.
    pub(crate) async fn lease_holder(&self) -> Result<String> {
        self.field(NAMESPACE, "lease", LEASE, "spec.holderIdentity")
            .await
    }
}

/// Whether metrics are those of a leader.
pub(crate) fn is_leader(metrics: &str) -> bool {
    metrics
        .lines()
        .any(|line| line == "opensandbox_operator_leader 1")
}
