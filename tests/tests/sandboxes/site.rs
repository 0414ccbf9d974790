//! Where a test takes place: a namespace on the shared node, and an operator for it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod as PodObject;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{BatchSandbox, Pool};
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::cluster::TestNamespace;
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::installation::{self, Installation};
use opensandbox_tests::operator::Operator;
use opensandbox_tests::pods::{EXECUTOR, Pod, SANDBOX};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Node, images, node};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

use super::runs::Runs;

/// For anything that is waited for. Much is done at the same time, on few cores.
pub(crate) const BOUND: Duration = Duration::from_mins(2);
/// Lines of the operator's log that an error repeats.
const LOG_LINES: usize = 60;

/// Objects of a test.
pub(crate) trait Object:
    kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
    + Serialize
{
}

impl<K> Object for K where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize
{
}

/// A namespace and its operator.
pub(crate) struct Site {
    // Stopped before the cluster.
    pub(crate) operator: Operator,
    pub(crate) node: Arc<Node>,
    pub(crate) namespace: TestNamespace,
    /// What tasks leave behind.
    pub(crate) runs: Runs,
}

struct Installed {
    _webhook: Installation,
    node: Arc<Node>,
}

/// The node with everything installed but the operator.
async fn install() -> Result<Option<Installed>> {
    let Some(node) = node::shared().await? else {
        return Ok(None);
    };
    node.import_known(images::SANDBOX).await?;
    node.import_known(images::EXECUTOR).await?;
    let webhook = Installation::install(node.cluster(), installation::Settings::default()).await?;
    Ok(Some(Installed {
        _webhook: webhook,
        node,
    }))
}

/// Logs in and starts one after the other: all have the same login, in one file.
static STARTING: Mutex<()> = Mutex::const_new(());

impl Site {
    /// `None` where no node can be had.
    pub(crate) async fn start(name: &str) -> Result<Option<Self>> {
        static INSTALLED: OnceCell<Option<Installed>> = OnceCell::const_new();
        let Some(Installed { node, .. }) = INSTALLED.get_or_try_init(install).await? else {
            return Ok(None);
        };
        let namespace = node.namespace(name).await?;
        let _turn = STARTING.lock().await;
        let args = [
            format!("--namespaces={}", namespace.name),
            // There is one Lease, and an operator for each test.
            "--leader-elect=false".to_owned(),
        ];
        let args = args.each_ref().map(String::as_str);
        let operator = Operator::start(Administrator::of(node.cluster()), &args).await?;
        operator.ready().await?;
        Ok(Some(Self {
            operator,
            runs: Runs::new(node.shared_directory(&namespace.name)?),
            node: Arc::clone(node),
            namespace,
        }))
    }

    /// Deletes what the test made, with what the operator made of it, and ends the operator in order.
    pub(crate) async fn end(self) -> Result<()> {
        self.delete_all::<BatchSandbox>().await?;
        self.delete_all::<Pool>().await?;
        self.delete_all::<PodObject>().await?;
        let ended = self.operator.stop().await;
        ended.with_context(|| self.log())?;
        let log = self.operator.program.log()?;
        ensure!(!log.to_lowercase().contains("panic"), "{log}");
        Ok(())
    }

    async fn delete_all<K: Object>(&self) -> Result<()> {
        let all = ListParams::default();
        let api = self.namespace.api::<K>();
        api.delete_collection(&DeleteParams::default(), &all)
            .await?;
        let what = format!("every {} to be gone", K::kind(&()));
        let gone = wait::until(&what, BOUND, async || {
            let left = api.list(&all).await?.items;
            Ok(match left.first() {
                None => Probe::Done(()),
                Some(one) => Probe::not_yet(brief(one)),
            })
        });
        gone.await.with_context(|| self.log())
    }

    /// Ends the operator by SIGKILL.
    pub(crate) async fn kill_operator(&self) -> Result<()> {
        self.operator.program.kill().await.map(drop)
    }

    /// Starts the operator again, after it was killed.
    pub(crate) async fn restart_operator(&mut self) -> Result<()> {
        let _turn = STARTING.lock().await;
        let administrator = Administrator::of(self.node.cluster());
        self.operator.restart(administrator).await?;
        self.operator.ready().await
    }

    /// The end of the operator's log, for errors.
    fn log(&self) -> String {
        let log = self.operator.program.log().unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(LOG_LINES).collect();
        let tail = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("the operator's log ends with:\n{tail}")
    }

    /// Makes a Pool whose pods have an executor. `extra` is merged into its spec.
    pub(crate) async fn pool(&self, name: &str, capacity: [u32; 4], extra: Value) -> Result<()> {
        let template = self.template(&["sleep", "infinity"]);
        self.make_pool(name, "enabled", capacity, template, extra)
            .await
    }

    /// Makes a Pool whose pods run nothing but this.
    pub(crate) async fn plain_pool(
        &self,
        name: &str,
        capacity: [u32; 4],
        container: Value,
        extra: Value,
    ) -> Result<()> {
        let template = plain(&container);
        self.make_pool(name, "disabled", capacity, template, extra)
            .await
    }

    async fn make_pool(
        &self,
        name: &str,
        executor: &str,
        [buffer_min, buffer_max, pool_min, pool_max]: [u32; 4],
        template: Value,
        extra: Value,
    ) -> Result<()> {
        let mut pool = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
            "metadata": {"name": name, "labels": {labels::INJECTION: executor}},
            "spec": {
                "template": template,
                "capacitySpec": {"bufferMin": buffer_min, "bufferMax": buffer_max,
                                 "poolMin": pool_min, "poolMax": pool_max},
                "scaleStrategy": {"maxUnavailable": "100%"},
            },
        });
        json_patch::merge(&mut pool["spec"], &extra);
        self.create::<Pool>(pool).await
    }

    /// A template of a pod with an executor, and with a directory for [`Runs`].
    pub(crate) fn template(&self, command: &[&str]) -> Value {
        json!({"spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": SANDBOX, "image": images::SANDBOX, "command": command,
                    "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
                    "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
                },
                // Less than usual, so that there is room for many.
                {"name": EXECUTOR, "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}},
            ],
            "volumes": [{"name": "runs", "hostPath": {"path": self.runs.directory()}}],
        }})
    }

    /// Makes a BatchSandbox.
    pub(crate) async fn sandbox(&self, name: &str, spec: Value) -> Result<()> {
        let sandbox = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
            "metadata": {"name": name}, "spec": spec,
        });
        self.create::<BatchSandbox>(sandbox).await
    }

    /// Makes an object.
    pub(crate) async fn create<K: Object>(&self, object: Value) -> Result<()> {
        let object: K = serde_json::from_value(object)?;
        let api = self.namespace.api::<K>();
        let created = api.create(&PostParams::default(), &object).await;
        created.with_context(|| format!("create a {}", K::kind(&())))?;
        Ok(())
    }

    /// Changes an object by a merge patch.
    pub(crate) async fn edit<K: Object>(&self, name: &str, patch: Value) -> Result<()> {
        let api = self.namespace.api::<K>();
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Asks for the deletion of an object.
    pub(crate) async fn delete<K: Object>(&self, name: &str) -> Result<()> {
        let api = self.namespace.api::<K>();
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// An object as it is now.
    pub(crate) async fn get<K: Object>(&self, name: &str) -> Result<K> {
        Ok(self.namespace.api::<K>().get(name).await?)
    }

    /// Waits until an object is as it should be.
    pub(crate) async fn until<K: Object>(
        &self,
        what: &str,
        name: &str,
        mut reached: impl FnMut(&K) -> bool,
    ) -> Result<K> {
        let api = self.namespace.api::<K>();
        let what = format!("{what}, of {} {name}", K::kind(&()));
        let waited = wait::until(&what, BOUND, async || {
            let seen = api.get(name).await?;
            Ok(if reached(&seen) {
                Probe::Done(seen)
            } else {
                Probe::not_yet(brief(&seen))
            })
        });
        waited.await.with_context(|| self.log())
    }

    /// Waits until there is no such object.
    pub(crate) async fn gone<K: Object>(&self, name: &str) -> Result<()> {
        let api = self.namespace.api::<K>();
        let what = format!("{} {name} to be gone", K::kind(&()));
        let gone = wait::until(&what, BOUND, async || {
            Ok(match api.get_opt(name).await? {
                None => Probe::Done(()),
                Some(seen) => Probe::not_yet(brief(&seen)),
            })
        });
        gone.await.with_context(|| self.log())
    }

    /// Waits until a Pool has so many pods that are ready and free, and so many that sandboxes hold.
    pub(crate) async fn counts(&self, pool: &str, available: i32, allocated: i32) -> Result<Pool> {
        let what = format!("{available} available and {allocated} allocated");
        self.until::<Pool>(&what, pool, |pool| {
            pool.status.as_ref().is_some_and(|status| {
                (status.available, status.allocated) == (available, allocated)
            })
        })
        .await
    }

    /// Waits until so many sandboxes of a BatchSandbox are ready.
    pub(crate) async fn ready(&self, name: &str, ready: i32) -> Result<BatchSandbox> {
        let what = format!("{ready} ready");
        self.until::<BatchSandbox>(&what, name, |sandbox| {
            let status = sandbox.status.as_ref();
            status.is_some_and(|status| status.ready == ready)
        })
        .await
    }

    /// Pods that a BatchSandbox holds, by shard; those that it gave back are left out.
    pub(crate) async fn held(&self, name: &str) -> Result<Vec<String>> {
        held(&self.get(name).await?)
    }

    /// Pods of a Pool, those that are being deleted too.
    pub(crate) async fn pods(&self, pool: &str) -> Result<Vec<PodObject>> {
        let ours = ListParams::default().labels(&format!("{}={pool}", labels::POOL_NAME));
        Ok(self.namespace.api::<PodObject>().list(&ours).await?.items)
    }

    /// Names of the pods of a Pool that are not being deleted and that no sandbox holds.
    pub(crate) async fn idle(&self, pool: &str) -> Result<Vec<String>> {
        let pods = self.pods(pool).await?.into_iter();
        let pods = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let mut idle: Vec<_> = pods.filter_map(|pod| pod.metadata.name).collect();
        // Looked at afterwards: a pod that was given meanwhile is not idle.
        let sandboxes = self.namespace.api::<BatchSandbox>();
        for sandbox in sandboxes.list(&ListParams::default()).await? {
            let held = held(&sandbox)?;
            idle.retain(|pod| !held.contains(pod));
        }
        Ok(idle)
    }

    /// A pod of the namespace.
    pub(crate) fn pod(&self, name: &str) -> Pod<'_> {
        Pod::existing(&self.node, &self.namespace, name)
    }

    /// A pod of the namespace, and what runs in it.
    pub(crate) async fn executor(&self, name: &str) -> Result<ExecutorPod<'_>> {
        ExecutorPod::of(self.pod(name)).await
    }

    /// Waits for an event about an object, and returns what it says.
    pub(crate) async fn event(&self, object: &str, reason: &str) -> Result<String> {
        let api = self.namespace.api::<Event>();
        let what = format!("event {reason} of {object}");
        let note = wait::until(&what, BOUND, async || {
            let events = api.list(&ListParams::default()).await?.items;
            let about = |event: &&Event| {
                let regarding = event.regarding.as_ref();
                regarding.and_then(|object| object.name.as_deref()) == Some(object)
            };
            let mut about: Vec<_> = events.iter().filter(about).collect();
            let seen: Vec<_> = about
                .iter()
                .filter_map(|event| event.reason.as_deref())
                .collect();
            let seen = seen.join(", ");
            about.retain(|event| event.reason.as_deref() == Some(reason));
            Ok(match about.last() {
                Some(event) => Probe::Done(event.note.clone().unwrap_or_default()),
                None => Probe::not_yet(format!("events: {seen}")),
            })
        });
        note.await.with_context(|| self.log())
    }
}

/// Pods that a BatchSandbox holds, as its annotations have it.
fn held(sandbox: &BatchSandbox) -> Result<Vec<String>> {
    let list = |key: &str| {
        let annotations = sandbox.metadata.annotations.as_ref();
        let text = annotations.and_then(|annotations| annotations.get(key));
        let parsed = text.map_or(Ok(json!({})), |text| serde_json::from_str::<Value>(text));
        let pods: Option<Vec<String>> = serde_json::from_value(parsed?["pods"].take())?;
        Ok::<_, anyhow::Error>(pods.unwrap_or_default())
    };
    let mut held = list(labels::ALLOC_STATUS)?;
    for key in [labels::ALLOC_RELEASE, labels::ALLOC_RELEASED] {
        let free = list(key)?;
        held.retain(|pod| !free.contains(pod));
    }
    Ok(held)
}

/// A template of a pod that runs nothing but this container, whose fields are given.
pub(crate) fn plain(container: &Value) -> Value {
    let mut whole = json!({
        "name": SANDBOX, "image": images::SANDBOX, "command": ["sleep", "infinity"],
    });
    json_patch::merge(&mut whole, container);
    json!({"spec": {"terminationGracePeriodSeconds": 1, "containers": [whole]}})
}

/// What is worth telling of an object that is not as it should be.
fn brief(object: &impl Object) -> String {
    let value = serde_json::to_value(object).unwrap_or_default();
    let metadata = &value["metadata"];
    format!(
        "finalizers {}, deletion {}, annotations {}, status {}",
        metadata["finalizers"],
        metadata["deletionTimestamp"],
        metadata["annotations"],
        value["status"]
    )
}
