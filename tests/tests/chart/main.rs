//! The Helm chart: the same objects as kustomize, accepted by a real API server with whatever values,
//! refused in words where values make no sense, and installed, upgraded, rolled back and uninstalled by
//! the real Helm.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod cert_manager;
mod combinations;
mod lifecycle;
mod parity;
mod refused;
mod site;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::labels::DEFAULT_TASK_EXECUTOR_IMAGE;
use opensandbox_tests::LocalCluster;
use opensandbox_tests::cluster;
use opensandbox_tests::helm::{self, Helm};
use serde_json::Value;

/// A release as the documents install it.
const RELEASE: &str = "opensandbox";
/// Its namespace.
const NAMESPACE: &str = "opensandbox-system";

/// What kustomize makes of a directory.
async fn kustomize(cluster: &LocalCluster, directory: &Path) -> Result<Vec<Value>> {
    let path = directory.to_str().context("a path that is text")?;
    let text = cluster.kubectl(&["kustomize", path]).await?;
    Ok(serde_saphyr::from_multiple(&text)?)
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    documents
        .iter()
        .find(|document| document["kind"] == kind && document["metadata"]["name"] == name)
        .with_context(|| format!("there is no {kind} {name}"))
}

#[tokio::test]
async fn the_chart_passes_lint_and_is_of_this_version() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let Some(helm) = Helm::on(&cluster).await? else {
        return Ok(());
    };
    let chart = helm::chart();
    helm.run(&["lint", "--strict", &chart.to_string_lossy()])
        .await?;

    let about = std::fs::read_to_string(chart.join("Chart.yaml"))?;
    let about: Value = serde_saphyr::from_str(&about)?;
    let version = env!("CARGO_PKG_VERSION");
    ensure!(about["version"] == version, "{about}");
    ensure!(about["appVersion"] == format!("v{version}"), "{about}");
    let rendered = helm.template(RELEASE, NAMESPACE, &[]).await?;
    let images = find(&rendered.objects, "ConfigMap", "opensandbox-images")?;
    ensure!(
        images["data"]["taskExecutorImage"] == DEFAULT_TASK_EXECUTOR_IMAGE,
        "{images}"
    );
    Ok(())
}
