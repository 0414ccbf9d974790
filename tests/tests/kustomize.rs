//! What kustomize makes of config/ and examples/, and of overlays as users write them.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::cluster::{self, LocalCluster};
use opensandbox_tests::installation::repository;
use serde_json::Value;

async fn render(cluster: &LocalCluster, directory: &Path) -> Result<Vec<Value>> {
    let path = directory.to_string_lossy();
    let text = cluster
        .kubectl(&["kustomize", "--load-restrictor=LoadRestrictionsNone", &path])
        .await?;
    Ok(serde_saphyr::from_multiple(&text)?)
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    documents
        .iter()
        .find(|document| document["kind"] == kind && document["metadata"]["name"] == name)
        .with_context(|| format!("there is no {kind} {name}"))
}

/// A user's kustomization in a directory of its own, with our directories beside it.
fn overlay(text: &str, files: &[(&str, &str)]) -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    let root = std::fs::canonicalize(repository("."))?;
    // kustomize takes no absolute paths of resources, and follows links.
    std::os::unix::fs::symlink(root.join("config"), directory.path().join("config"))?;
    std::fs::write(directory.path().join("kustomization.yaml"), text)?;
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content)?;
    }
    Ok(directory)
}

#[tokio::test]
async fn every_kustomization_renders() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    for directory in ["crd", "rbac", "images", "webhook", "operator", "default"] {
        let documents = render(&cluster, &repository("config").join(directory)).await?;
        ensure!(!documents.is_empty(), "config/{directory} renders nothing");
    }
    Ok(())
}

/// The deployment is as small in rights as the documents say.
#[tokio::test]
async fn the_webhook_runs_without_privileges_and_twice() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let documents = render(&cluster, &repository("config/default")).await?;
    let deployment = find(&documents, "Deployment", "opensandbox-webhook")?;
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    ensure!(
        deployment["spec"]["replicas"] == 2,
        "replicas: {}",
        deployment["spec"]["replicas"]
    );
    ensure!(context["readOnlyRootFilesystem"] == true, "{context}");
    ensure!(context["allowPrivilegeEscalation"] == false, "{context}");
    ensure!(
        context["capabilities"]["drop"] == serde_json::json!(["ALL"]),
        "{context}"
    );
    ensure!(
        pod["securityContext"]["runAsNonRoot"] == true,
        "{}",
        pod["securityContext"]
    );
    ensure!(pod["topologySpreadConstraints"].is_array(), "no spread");
    for kind in ["requests", "limits"] {
        ensure!(
            container["resources"][kind]["memory"].is_string(),
            "no memory {kind}"
        );
    }
    find(&documents, "PodDisruptionBudget", "opensandbox-webhook")?;
    for kind in [
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ] {
        for webhook in find(&documents, kind, "opensandbox-webhook")?["webhooks"]
            .as_array()
            .into_iter()
            .flatten()
        {
            ensure!(
                webhook["clientConfig"].get("caBundle").is_none(),
                "a caBundle in {kind}"
            );
            ensure!(
                webhook["failurePolicy"].is_string() && webhook["timeoutSeconds"].is_number(),
                "{webhook}"
            );
        }
    }
    Ok(())
}

/// `images:` of a user reaches Pools written by hand and the value in the ConfigMap.
#[tokio::test]
async fn an_image_override_reaches_pools_and_the_config_map() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let pool = std::fs::read_to_string(repository("examples/task-enabled-pool.yaml"))?;
    let digest = format!("sha256:{}", "a".repeat(64));
    for (override_lines, image) in [
        (
            "  newName: your-registry/opensandbox-task-executor\n  newTag: v1.0.0\n".to_owned(),
            "your-registry/opensandbox-task-executor:v1.0.0".to_owned(),
        ),
        (
            format!("  digest: {digest}\n"),
            format!("opensandbox.io/task-executor@{digest}"),
        ),
        (
            "  newTag: v9\n".to_owned(),
            "opensandbox.io/task-executor:v9".to_owned(),
        ),
    ] {
        let text = format!(
            "resources:\n- config/default\n- pool.yaml\nimages:\n- name: opensandbox.io/task-executor\n{override_lines}"
        );
        let directory = overlay(&text, &[("pool.yaml", &pool)])?;
        let documents = render(&cluster, directory.path()).await?;
        let config_map = find(&documents, "ConfigMap", "opensandbox-images")?;
        ensure!(
            config_map["data"]["taskExecutorImage"] == image.as_str(),
            "{config_map}"
        );
        let containers = &find(&documents, "Pool", "task-enabled-pool")?["spec"]["template"]["spec"]
            ["containers"];
        ensure!(containers[1]["image"] == image.as_str(), "{containers}");
        ensure!(containers[0]["image"] == "ubuntu:22.04", "{containers}");
    }
    Ok(())
}

#[tokio::test]
async fn the_example_of_an_overlay_changes_both() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let documents = render(&cluster, &repository("examples/kustomize")).await?;
    let image = "your-registry/opensandbox-task-executor:v1.0.0";
    ensure!(
        find(&documents, "ConfigMap", "opensandbox-images")?["data"]["taskExecutorImage"] == image
    );
    let containers =
        &find(&documents, "Pool", "kustomize-pool")?["spec"]["template"]["spec"]["containers"];
    ensure!(containers[1]["image"] == image, "{containers}");
    Ok(())
}

/// Another namespace reaches every reference to it.
#[tokio::test]
async fn another_namespace_reaches_every_reference() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let directory = overlay(
        "namespace: sandbox-system\nresources:\n- config/default\n",
        &[],
    )?;
    let documents = render(&cluster, directory.path()).await?;
    let mutating = find(
        &documents,
        "MutatingWebhookConfiguration",
        "opensandbox-webhook",
    )?;
    for webhook in mutating["webhooks"].as_array().into_iter().flatten() {
        ensure!(
            webhook["clientConfig"]["service"]["namespace"] == "sandbox-system",
            "{webhook}"
        );
    }
    let binding = find(&documents, "ClusterRoleBinding", "opensandbox-webhook")?;
    ensure!(
        binding["subjects"][0]["namespace"] == "sandbox-system",
        "{binding}"
    );
    find(&documents, "Namespace", "sandbox-system")?;
    Ok(())
}

/// With plain kubectl, which reads no file outside of a kustomization.
#[tokio::test]
async fn monitoring_is_the_files_of_the_chart() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let path = repository("config/monitoring");
    let text = cluster
        .kubectl(&["kustomize", &path.to_string_lossy()])
        .await?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    for (kind, name) in [
        ("PodMonitor", "opensandbox"),
        ("PodMonitor", "opensandbox-executors"),
        ("PrometheusRule", "opensandbox"),
    ] {
        find(&documents, kind, name)?;
    }
    let dashboard = find(&documents, "ConfigMap", "opensandbox-dashboard")?;
    let file = repository("config/helm/opensandbox/files/dashboard.json");
    ensure!(dashboard["data"]["opensandbox.json"] == std::fs::read_to_string(file)?);
    ensure!(documents.len() == 4, "{} objects", documents.len());
    Ok(())
}
