//! Users who write what they should not, without a webhook that would refuse it: malformed and lying
//! annotations, specs as large as the API server takes them. Beside them, in the same namespace and in
//! another, sandboxes that only want their pods.

mod annotations;
mod claims;
mod sizes;
mod unreadable;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::kwok::Kwok;
use opensandbox_tests::operator::Operator;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::site::{BOUND, Site};

const ALLOC_STATUS: &str = "sandbox.opensandbox.io/alloc-status";
const ALLOC_RELEASE: &str = "sandbox.opensandbox.io/alloc-release";
const ALLOC_RELEASED: &str = "sandbox.opensandbox.io/alloc-released";
const ENDPOINTS: &str = "sandbox.opensandbox.io/endpoints";
const FENCE: &str = "sandbox.opensandbox.io/fence";

/// What the operator may hold while it is under attack, in the profile that tests are built in. What is
/// shipped has 512 MiB.
const MEMORY: u64 = 256 << 20;

/// Nodes on which pods become ready by themselves.
async fn nodes(site: &Site) -> Result<()> {
    static KWOK: OnceCell<Kwok> = OnceCell::const_new();
    KWOK.get_or_try_init(|| Kwok::start(&site.cluster, 1))
        .await?;
    Ok(())
}

/// A namespace where something goes on, one where nothing does, and the operator, which leads.
async fn arena(site: &Site, crowded: &str) -> Result<(String, String, Operator)> {
    nodes(site).await?;
    let crowded = site.namespace(crowded).await?;
    let quiet = site.namespace("quiet").await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    Ok((crowded, quiet, operator))
}

/// A Pool with pods of no executor on a node.
fn pool(name: &str, capacity: [u32; 4]) -> Value {
    let [buffer_min, buffer_max, pool_min, pool_max] = capacity;
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": name, "labels": {"sandbox.opensandbox.io/task-executor": "disabled"}},
        "spec": {
            "template": template(),
            "capacitySpec": {"bufferMin": buffer_min, "bufferMax": buffer_max,
                             "poolMin": pool_min, "poolMax": pool_max},
            "scaleStrategy": {"maxUnavailable": "100%"},
        },
    })
}

fn template() -> Value {
    json!({"spec": {
        "nodeName": "fake-0", "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "fake"}],
    }})
}

/// A BatchSandbox with annotations from the start.
fn sandbox(name: &str, spec: &Value, annotations: &Value) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    })
}

fn of_pool(name: &str, replicas: u32, pool: &str) -> Value {
    sandbox(
        name,
        &json!({"replicas": replicas, "poolRef": pool}),
        &json!({}),
    )
}

fn claim<'a>(pods: impl IntoIterator<Item = &'a String>) -> String {
    json!({"pods": pods.into_iter().collect::<Vec<_>>()}).to_string()
}

impl Site {
    /// Creates an object in a namespace; what is refused is the caller's to judge.
    async fn create(&self, namespace: &str, object: &Value) -> Result<()> {
        let args = ["create", "-n", namespace, "-f", "-"];
        self.cluster
            .kubectl_with_input(&args, &object.to_string())
            .await?;
        Ok(())
    }

    /// Annotates a BatchSandbox, whatever the length.
    async fn annotate(&self, namespace: &str, name: &str, annotations: &Value) -> Result<()> {
        let patch = tempfile::NamedTempFile::new()?;
        let change = json!({"metadata": {"annotations": annotations}});
        std::fs::write(patch.path(), change.to_string())?;
        let file = patch.path().to_str().context("a path in UTF-8")?;
        let file = format!("--patch-file={file}");
        self.kubectl(&[
            "patch",
            "batchsandbox",
            name,
            "-n",
            namespace,
            "--type=merge",
            &file,
        ])
        .await?;
        Ok(())
    }

    async fn object(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        let text = self
            .kubectl(&["get", kind, name, "-n", namespace, "-o", "json"])
            .await?;
        Ok(serde_json::from_str(&text)?)
    }

    async fn objects(&self, namespace: &str, kind: &str) -> Result<Vec<Value>> {
        let text = self
            .kubectl(&["get", kind, "-n", namespace, "-o", "json"])
            .await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until a BatchSandbox has so many ready pods, and returns their names.
    async fn ready(&self, namespace: &str, name: &str, count: usize) -> Result<BTreeSet<String>> {
        wait::until(&format!("{name} to be ready"), BOUND, async || {
            let object = self.object(namespace, "batchsandbox", name).await?;
            let held = held(&object);
            let ready = object["status"]["ready"].as_u64();
            Ok(
                if held.len() == count && ready == u64::try_from(count).ok() {
                    Probe::Done(held.into_iter().collect())
                } else {
                    Probe::not_yet(format!("{held:?} {}", shortened(&object["status"])))
                },
            )
        })
        .await
    }

    /// Waits for a condition with this reason, and returns its message.
    async fn condition(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        type_: &str,
        reason: &str,
    ) -> Result<String> {
        wait::until(&format!("{type_} of {name}"), BOUND, async || {
            let object = self.object(namespace, kind, name).await?;
            let conditions = object["status"]["conditions"].as_array();
            let found = conditions.into_iter().flatten().find(|one| {
                one["type"] == type_ && one["status"] == "True" && one["reason"] == reason
            });
            Ok(match found {
                Some(found) => {
                    Probe::Done(found["message"].as_str().unwrap_or_default().to_owned())
                }
                None => Probe::not_yet(shortened(&object["status"])),
            })
        })
        .await
    }

    /// Waits for an event about a BatchSandbox or Pool, and returns its note.
    async fn event(&self, namespace: &str, name: &str, reason: &str) -> Result<String> {
        wait::until(&format!("{reason} of {name}"), BOUND, async || {
            let events = self.objects(namespace, "events").await?;
            let found = events
                .iter()
                .find(|event| event["involvedObject"]["name"] == name && event["reason"] == reason);
            Ok(match found {
                Some(event) => {
                    Probe::Done(event["message"].as_str().unwrap_or_default().to_owned())
                }
                None => Probe::not_yet(format!("{} others", events.len())),
            })
        })
        .await
    }

    /// Who holds what in a namespace, as the annotations have it. Only pods that exist count.
    async fn holders(&self, namespace: &str) -> Result<BTreeMap<String, Vec<String>>> {
        let pods = self.objects(namespace, "pods").await?;
        let exist: BTreeSet<_> = pods
            .iter()
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        let mut holders = BTreeMap::<String, Vec<String>>::new();
        for sandbox in self.objects(namespace, "batchsandbox").await? {
            let name = sandbox["metadata"]["name"].as_str().unwrap_or_default();
            for pod in held(&sandbox) {
                if exist.contains(pod.as_str()) {
                    holders.entry(pod).or_default().push(name.to_owned());
                }
            }
        }
        Ok(holders)
    }

    /// Waits until no pod is in two annotations. A lie stands until the operator has seen it.
    async fn nobody_shares(&self, namespace: &str) -> Result<()> {
        wait::until("every pod to be of one sandbox", BOUND, async || {
            let holders = self.holders(namespace).await?;
            let shared: Vec<_> = holders.iter().filter(|(_, by)| by.len() > 1).collect();
            Ok(if shared.is_empty() {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("{shared:?}"))
            })
        })
        .await
    }
}

/// Pods that a BatchSandbox says it holds.
fn held(sandbox: &Value) -> Vec<String> {
    let list = |key: &str| -> Vec<String> {
        let text = sandbox["metadata"]["annotations"][key].as_str();
        let value: Value = serde_json::from_str(text.unwrap_or("{}")).unwrap_or_default();
        let pods = value["pods"].as_array().cloned().unwrap_or_default();
        let names = pods.iter().filter_map(Value::as_str);
        names.map(str::to_owned).collect()
    };
    let released = list(ALLOC_RELEASED);
    let mut held = list(ALLOC_STATUS);
    held.retain(|pod| !released.contains(pod));
    held
}

fn shortened(value: &Value) -> String {
    value.to_string().chars().take(2000).collect()
}

/// The operator that was started goes on, without a panic, and within its bounds.
async fn unharmed(operator: &Operator) -> Result<()> {
    ensure!(
        operator.program.exit().is_none(),
        "it ended: {}",
        operator.program.log()?
    );
    ensure!(operator.get("/healthz").await?.0 == 200);
    let metrics = operator.metrics().await?;
    ensure!(!metrics.contains("actor_panics_total{"), "{metrics}");
    let memory = operator.program.rss_bytes()?;
    ensure!(memory < MEMORY, "{} MiB are resident", memory >> 20);
    Ok(())
}
