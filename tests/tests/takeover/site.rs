//! A cluster as upstream leaves it, on which ours is installed later: both controllers run as their
//! ServiceAccounts, and pods come from fake nodes or a real one.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use opensandbox_tests::LocalCluster;
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::allocation::held;
use opensandbox_tests::installation::{self, Installation, NAMESPACE as SYSTEM};
use opensandbox_tests::operator::{NAME as OPERATOR, Operator};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use super::picture::Picture;

/// Where users work.
pub(crate) const NAMESPACE: &str = "default";
/// For anything that is waited for. Upstream looks again every few seconds only.
pub(crate) const BOUND: Duration = Duration::from_mins(2);

/// What users and tests do on a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) cluster: &'a LocalCluster,
}

/// Ours, installed and running.
pub(crate) struct Ours {
    pub(crate) operator: Operator,
    // Kept running, since the API server asks it.
    _webhook: Installation,
}

impl Site<'_> {
    pub(crate) fn administrator(&self) -> Administrator<'_> {
        Administrator::of(self.cluster)
    }

    /// Installs ours over upstream's, with the commands of docs/migration.md, and starts it.
    pub(crate) async fn install_ours(&self, args: &[&str]) -> Result<Ours> {
        let crds = installation::repository("config/crd");
        let crds = crds.to_str().context("a path that is text")?;
        // The fields of the CRDs belong to whoever installed upstream's.
        self.cluster
            .kubectl(&["apply", "--server-side", "--force-conflicts", "-k", crds])
            .await?;
        let webhook =
            Installation::install(self.cluster, installation::Settings::default()).await?;
        let operator = Operator::start(self.administrator(), args).await?;
        operator.ready().await?;
        Ok(Ours {
            operator,
            _webhook: webhook,
        })
    }

    pub(crate) async fn api(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let kind = GroupVersionKind::gvk("sandbox.opensandbox.io", "v1alpha1", kind);
        let resource = ApiResource::from_gvk(&kind);
        let client = self.cluster.client().await?;
        Ok(Api::namespaced_with(client, NAMESPACE, &resource))
    }

    pub(crate) async fn pods(&self) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.cluster.client().await?, NAMESPACE);
        Ok(api.list(&ListParams::default()).await?.items)
    }

    pub(crate) async fn picture(&self) -> Result<Picture> {
        let sandboxes = self.api("BatchSandbox").await?;
        let sandboxes = sandboxes.list(&ListParams::default()).await?.items;
        Picture::of(&sandboxes, &self.pods().await?)
    }

    pub(crate) async fn create(&self, object: &Value) -> Result<()> {
        self.cluster
            .kubectl_with_input(&["create", "-n", NAMESPACE, "-f", "-"], &object.to_string())
            .await?;
        Ok(())
    }

    pub(crate) async fn scale(&self, name: &str, replicas: u32) -> Result<()> {
        let patch = json!({"spec": {"replicas": replicas}}).to_string();
        let args = ["patch", "batchsandbox", name, "-n", NAMESPACE];
        let args = [&args[..], &["--type=merge", "--patch", &patch]].concat();
        self.cluster.kubectl(&args).await?;
        Ok(())
    }

    /// Marks an object for deletion and does not wait for its end.
    pub(crate) async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let args = ["delete", kind, name, "-n", NAMESPACE, "--wait=false"];
        self.cluster.kubectl(&args).await?;
        Ok(())
    }

    /// Waits until an object is as it should be; the error holds `log`.
    pub(crate) async fn until(
        &self,
        what: &str,
        kind: &str,
        name: &str,
        log: impl Fn() -> String,
        mut reached: impl FnMut(&DynamicObject) -> bool,
    ) -> Result<DynamicObject> {
        let api = self.api(kind).await?;
        let what = format!("{name}: {what}");
        let waited = wait::until(&what, BOUND, async || {
            let object = api.get(name).await?;
            Ok(if reached(&object) {
                Probe::Done(object)
            } else {
                Probe::not_yet(format!(
                    "{:?} {}",
                    object.metadata.annotations, object.data["status"]
                ))
            })
        });
        waited.await.with_context(log)
    }

    /// Waits until a sandbox holds so many pods, and says that so many are ready.
    pub(crate) async fn until_ready(
        &self,
        name: &str,
        replicas: usize,
        log: impl Fn() -> String,
    ) -> Result<Vec<String>> {
        let what = format!("{replicas} ready");
        let sandbox = self
            .until(&what, "BatchSandbox", name, log, |sandbox| {
                let ready = sandbox.data["status"]["ready"].as_u64();
                let template = sandbox.data["spec"]["template"].is_object();
                (template || held(sandbox).len() == replicas)
                    && ready == u64::try_from(replicas).ok()
            })
            .await?;
        Ok(held(&sandbox))
    }

    pub(crate) async fn until_gone(
        &self,
        kind: &str,
        name: &str,
        log: impl Fn() -> String,
    ) -> Result<()> {
        let what = format!("{kind} {name} to be gone");
        let gone = wait::until(&what, BOUND, async || {
            let args = ["get", kind, name, "-n", NAMESPACE, "--ignore-not-found"];
            let left = self
                .cluster
                .kubectl(&[&args[..], &["-o", "jsonpath={.metadata}"]].concat())
                .await?;
            Ok(if left.is_empty() {
                Probe::Done(())
            } else {
                Probe::not_yet(left)
            })
        });
        gone.await.with_context(log)
    }

    /// Writes of our operator so far, `verb resource/subresource name`; the cluster has an audit log.
    pub(crate) fn writes(self) -> Result<Vec<String>> {
        let log = self.cluster.audit_log().context("an audit log")?;
        let account = format!("system:serviceaccount:{SYSTEM}:{OPERATOR}");
        let text = std::fs::read_to_string(log)?;
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let mut writes = Vec::new();
        for line in complete.lines() {
            let event: Value = serde_json::from_str(line)?;
            let at = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or("");
            let reads = matches!(at("/verb"), "get" | "list" | "watch");
            if at("/user/username") == account && !reads && at("/stage") == "ResponseComplete" {
                writes.push(format!(
                    "{} {}/{} {}",
                    at("/verb"),
                    at("/objectRef/resource"),
                    at("/objectRef/subresource"),
                    at("/objectRef/name"),
                ));
            }
        }
        Ok(writes)
    }
}

/// A pooled BatchSandbox.
pub(crate) fn sandbox(name: &str, pool: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "poolRef": pool},
    })
}
