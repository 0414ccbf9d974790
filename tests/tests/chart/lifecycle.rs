//! A release from its installation to its end, by the real Helm on a real API server.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::Settings;
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::cluster;
use opensandbox_tests::installation::repository;
use opensandbox_tests::operator::Operator;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::site::{BOUND, CONFIGURATIONS, Site, Webhook};
use crate::{NAMESPACE, RELEASE};

/// What an upgrade must not touch.
#[derive(Debug, PartialEq)]
struct Kept {
    bundles: Vec<Vec<String>>,
    /// Digests: what fails shows no key.
    authority: String,
    key: String,
    published: Value,
    pool: Value,
    sandbox: Value,
}

impl Kept {
    async fn of(site: &Site<'_>) -> Result<Self> {
        let mut bundles = Vec::new();
        for kind in CONFIGURATIONS {
            let found = site.bundles(kind).await?;
            ensure!(found.len() == 2, "{kind}: {found:?}");
            bundles.push(found);
        }
        let secret = async |name| {
            let secret = site
                .object(&format!("secret {name} -n {NAMESPACE}"))
                .await?;
            Ok::<_, anyhow::Error>(digest(&secret["data"]))
        };
        let images = format!("configmap opensandbox-images -n {NAMESPACE}");
        let images = site.object(&images).await?;
        let version = async |line| {
            let object = site.object(line).await?;
            let metadata = &object["metadata"];
            Ok::<_, anyhow::Error>(json!([metadata["uid"], object["spec"]]))
        };
        Ok(Self {
            bundles,
            authority: secret("opensandbox-webhook-ca").await?,
            key: secret("opensandbox-task-executor-key").await?,
            published: images["data"]["taskExecutorVerificationKey"].clone(),
            pool: version("pool minimal-pool -n default").await?,
            sandbox: version("batchsandbox waiting -n default").await?,
        })
    }
}

fn digest(value: &Value) -> String {
    let hash = Sha256::digest(value.to_string());
    hash.iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_installed_upgraded_rolled_back_and_uninstalled() -> Result<()> {
    let settings = Settings {
        audit: true,
        ..Settings::default()
    };
    let Some(cluster) = cluster::start_or_skip(settings).await? else {
        return Ok(());
    };
    let Some(site) = Site::on(&cluster).await? else {
        return Ok(());
    };
    // Patience: this machine may do other things.
    let notes = site
        .helm(
            "install opensandbox CHART -n opensandbox-system --create-namespace \
             --set webhook.timeoutSeconds=30",
        )
        .await?;
    ensure!(notes.contains("helm test opensandbox"), "{notes}");
    let operator = Operator::start(Administrator::of(&cluster), &[]).await?;
    operator.ready().await?;
    let webhook = site.webhook(&reachable()).await?;

    let (kept, webhook) = use_it(&site, webhook).await?;
    upgrade(&site, &kept).await?;

    // The webhook is dead, and nobody looks after sandboxes.
    webhook.program.kill().await?;
    drop(operator);
    uninstall(&site).await?;
    reinstall(&site, &kept).await
}

/// What the certificate of its own has to be valid for, to be reached here.
fn reachable() -> [String; 1] {
    ["--tls-san=127.0.0.1".to_owned()]
}

/// `helm test`, a Pool and a BatchSandbox.
async fn use_it(site: &Site<'_>, webhook: Webhook) -> Result<(Kept, Webhook)> {
    site.reach(Some(&webhook)).await?;
    let tested = site.helm("test opensandbox -n opensandbox-system").await?;
    ensure!(tested.contains("Succeeded"), "{tested}");
    let pool = repository("examples/minimal-pool.yaml");
    let pool = pool.to_str().context("a path that is text")?;
    site.kubectl(&format!("apply -f {pool}")).await?;
    let sandbox = json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": "waiting", "namespace": "default"},
        "spec": {"replicas": 1, "poolRef": "minimal-pool"},
    });
    site.cluster
        .kubectl_with_input(&["create", "-f", "-"], &sandbox.to_string())
        .await?;
    let pool = site.object("pool minimal-pool -n default").await?;
    let executor = &pool["spec"]["template"]["spec"]["containers"][1];
    ensure!(
        executor["image"] == "opensandbox.io/task-executor:v0.0.1",
        "{pool}"
    );

    // The operator publishes its key beside the image.
    let key = "configmap opensandbox-images -n opensandbox-system";
    wait::until("the published key", BOUND, async || {
        let images = site.object(key).await?;
        Ok(match &images["data"]["taskExecutorVerificationKey"] {
            Value::String(_) => Probe::Done(()),
            other => Probe::not_yet(other),
        })
    })
    .await?;

    // Without the webhook, the test says so.
    webhook.program.kill().await?;
    let failed = site.helm("test opensandbox -n opensandbox-system").await;
    let said = failed.err().context("helm test passes without a webhook")?;
    ensure!(
        format!("{said:#}").contains("failed calling webhook"),
        "{said:#}"
    );
    let webhook = site.webhook(&reachable()).await?;
    site.reach(None).await?;
    Ok((Kept::of(site).await?, webhook))
}

async fn upgrade(site: &Site<'_>, kept: &Kept) -> Result<()> {
    let image = "configmap opensandbox-images -n opensandbox-system";
    let operator = "deployment opensandbox-operator -n opensandbox-system";
    for (line, tag, replicas) in [
        (
            "upgrade opensandbox CHART -n opensandbox-system",
            "v0.0.1",
            2,
        ),
        (
            "upgrade opensandbox CHART -n opensandbox-system \
             --set taskExecutor.image.tag=v9,controller.replicaCount=3",
            "v9",
            3,
        ),
        ("rollback opensandbox 2 -n opensandbox-system", "v0.0.1", 2),
    ] {
        site.helm(line).await?;
        let images = site.object(image).await?;
        let expected = format!("opensandbox.io/task-executor:{tag}");
        ensure!(
            images["data"]["taskExecutorImage"] == expected,
            "{line}: {images}"
        );
        let found = site.object(operator).await?["spec"]["replicas"].clone();
        ensure!(found == replicas, "{line}: {found}");
        let now = Kept::of(site).await?;
        ensure!(&now == kept, "{line} changed {kept:?}\nto {now:?}");
    }
    Ok(())
}

async fn uninstall(site: &Site<'_>) -> Result<()> {
    site.helm("uninstall opensandbox -n opensandbox-system")
        .await?;
    for kind in CONFIGURATIONS {
        let left = site.kubectl(&format!("get {kind} -o name")).await?;
        ensure!(left.is_empty(), "{left}");
    }
    site.kubectl("get pool minimal-pool -n default").await?;
    site.kubectl("get batchsandbox waiting -n default").await?;
    let left = "get deployments,services,configmaps,serviceaccounts,roles,rolebindings,pdb -o name \
                -n opensandbox-system -l app.kubernetes.io/managed-by=Helm";
    let left = site.kubectl(left).await?;
    ensure!(left.is_empty(), "{left}");

    // What asks the webhook went before what answers.
    let log = site.cluster.audit_log().context("an audit log")?;
    let deleted = deletions(log)?;
    let position = |resource: &str| {
        let position = deleted.iter().position(|one| one == resource);
        position.with_context(|| format!("{resource} was not deleted: {deleted:?}"))
    };
    let deployment = position("deployments/opensandbox-webhook")?;
    for kind in CONFIGURATIONS {
        ensure!(
            position(&format!("{kind}s/opensandbox-webhook"))? < deployment,
            "{kind} went late: {deleted:?}"
        );
    }
    // And nobody is asked about this Pool.
    site.kubectl("label pool minimal-pool -n default touched=yes")
        .await?;
    Ok(())
}

/// What was deleted with success, in this order.
fn deletions(log: &Path) -> Result<Vec<String>> {
    let mut deleted = Vec::new();
    for line in std::fs::read_to_string(log)?.lines() {
        let event: Value = serde_json::from_str(line)?;
        let code = event["responseStatus"]["code"].as_i64();
        if event["verb"] == "delete" && event["stage"] == "ResponseComplete" && code == Some(200) {
            let text = |field: &str| event["objectRef"][field].as_str().unwrap_or_default();
            deleted.push(format!("{}/{}", text("resource"), text("name")));
        }
    }
    Ok(deleted)
}

/// It takes over what was kept.
async fn reinstall(site: &Site<'_>, kept: &Kept) -> Result<()> {
    site.helm("install opensandbox CHART -n opensandbox-system")
        .await?;
    let operator = Operator::start(Administrator::of(site.cluster), &[]).await?;
    operator.ready().await?;
    let _webhook = site.webhook(&reachable()).await?;
    wait::until("all as it was before", BOUND, async || {
        let now = Kept::of(site).await?;
        Ok(if &now == kept {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{now:?} is not {kept:?}"))
        })
    })
    .await?;
    take_over(site).await?;
    second_release(site).await
}

/// From kustomize to Helm.
async fn take_over(site: &Site<'_>) -> Result<()> {
    site.helm("uninstall opensandbox -n opensandbox-system")
        .await?;
    let kustomization = repository("config/default");
    let kustomization = kustomization.to_str().context("a path that is text")?;
    site.kubectl(&format!("apply --server-side -k {kustomization}"))
        .await?;
    let deployments = "deployment opensandbox-webhook opensandbox-operator";
    site.kubectl(&format!("-n opensandbox-system delete {deployments}"))
        .await?;
    site.helm("install opensandbox CHART -n opensandbox-system --take-ownership")
        .await?;
    site.kubectl(&format!("-n opensandbox-system get {deployments}"))
        .await
        .map(drop)
}

/// A second release in the same cluster, for other namespaces.
async fn second_release(site: &Site<'_>) -> Result<()> {
    site.kubectl("create namespace team-b").await?;
    let line =
        "install opensandbox CHART -n second --create-namespace --set watchNamespaces={team-b}";
    // The kinds are there once, and of the first release.
    let refused = site
        .helm(line)
        .await
        .err()
        .context("it takes the kinds of another")?;
    ensure!(
        format!("{refused:#}").contains("invalid ownership metadata"),
        "{refused:#}"
    );
    site.helm(&format!("{line} --set crds.install=false"))
        .await?;
    for kind in CONFIGURATIONS {
        site.kubectl(&format!(
            "get {kind} opensandbox-webhook opensandbox-webhook.second"
        ))
        .await?;
    }
    site.helm("uninstall opensandbox -n second").await?;
    for kind in CONFIGURATIONS {
        let left = site.kubectl(&format!("get {kind} -o name")).await?;
        let lines: Vec<_> = left.lines().collect();
        ensure!(
            lines.len() == 1 && lines[0].ends_with("/opensandbox-webhook"),
            "{left}"
        );
    }
    let release = site
        .helm("status opensandbox -n opensandbox-system -o json")
        .await?;
    ensure!(release.contains(RELEASE), "{release}");
    Ok(())
}
