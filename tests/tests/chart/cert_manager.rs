//! A release whose certificate is cert-manager's: by the real kinds and the real controllers. The test
//! plays the kubelet, which mounts the Secret.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use opensandbox_tests::cluster;
use opensandbox_tests::installation::repository;
use opensandbox_tests::process::Program;
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Settings, cert_manager};

use crate::NAMESPACE;
use crate::site::{BOUND, CONFIGURATIONS, Site};

const SECRET: &str = "opensandbox-webhook-tls";

/// A directory in which a version of the Secret takes the place of another at once, as kubelet does it.
struct Mount {
    directory: PathBuf,
    secrets: Api<Secret>,
    /// Of the version that is there.
    certificate: Vec<u8>,
    versions: u32,
}

impl Mount {
    fn new(directory: &Path, client: kube::Client) -> Result<Self> {
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), directory.join(name))?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            secrets: Api::namespaced(client, NAMESPACE),
            certificate: Vec::new(),
            versions: 0,
        })
    }

    /// Waits until the Secret has another certificate than what is mounted, and mounts it.
    async fn follow(&mut self, cert_manager: &Program) -> Result<()> {
        let secrets = &self.secrets;
        let mounted = &self.certificate;
        let data = wait::until("another certificate", BOUND, async || {
            let secret = secrets.get_opt(SECRET).await?;
            let data = secret.and_then(|secret| secret.data).unwrap_or_default();
            // An empty one is there while the first is issued.
            let certificate = data.get("tls.crt").filter(|found| !found.0.is_empty());
            Ok(match certificate {
                None => Probe::not_yet("there is none"),
                Some(same) if &same.0 == mounted => Probe::not_yet("the same"),
                Some(_) => Probe::Done(data),
            })
        });
        let data = data
            .await
            .with_context(|| cert_manager.log().unwrap_or_default())?;
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        fs::create_dir(self.directory.join(&version))?;
        for (name, content) in &data {
            fs::write(self.directory.join(&version).join(name), &content.0)?;
        }
        symlink(&version, self.directory.join("..data_tmp"))?;
        let place = self.directory.join("..data");
        fs::rename(self.directory.join("..data_tmp"), place)?;
        let certificate = data.get("tls.crt").context("it was there")?;
        self.certificate.clone_from(&certificate.0);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cert_manager_issues_and_renews_without_a_failed_admission() -> Result<()> {
    if !cert_manager::is_wanted() {
        return Ok(());
    }
    let Some(cluster) = cluster::start_or_skip(Settings::default()).await? else {
        return Ok(());
    };
    let Some(site) = Site::on(&cluster).await? else {
        return Ok(());
    };
    let cert_manager = cert_manager::start(&cluster).await?;
    site.helm(
        "install opensandbox CHART -n opensandbox-system --create-namespace \
         --set certificates.mode=cert-manager",
    )
    .await?;
    // Besides the Service, which nobody routes here.
    site.kubectl(
        "patch certificate opensandbox-webhook -n opensandbox-system --type=merge \
         -p {\"spec\":{\"ipAddresses\":[\"127.0.0.1\"]}}",
    )
    .await?;
    let ready = "wait certificate/opensandbox-webhook -n opensandbox-system --for=condition=Ready \
                 --timeout=60s";
    let waited = site.kubectl(ready).await;
    waited.with_context(|| cert_manager.log().unwrap_or_default())?;

    let directory = tempfile::tempdir()?;
    let mut mount = Mount::new(directory.path(), cluster.client().await?)?;
    mount.follow(&cert_manager).await?;
    // Ready: a call through the published caBundle, to the name of the Service, succeeds.
    let tls = format!("--tls-cert-dir={}", directory.path().display());
    let webhook = site.webhook(&[tls]).await?;
    site.reach(Some(&webhook)).await?;

    let mut load = Load::start(cluster.client().await?)?;
    for round in 0..2 {
        let before = mount.certificate.clone();
        site.kubectl(&format!("delete secret {SECRET} -n {NAMESPACE}"))
            .await?;
        mount.follow(&cert_manager).await?;
        ensure!(mount.certificate != before, "round {round}");
        load.goes_on().await?;
        let log = wait::until("the new certificate to be served", BOUND, async || {
            let log = webhook.program.log()?;
            let served = log.matches("serves the certificate in the files").count();
            Ok(if served == round + 2 {
                Probe::Done(log)
            } else {
                Probe::not_yet(format!("{served} were served"))
            })
        });
        log.await?;
        load.goes_on().await?;
    }
    let requests = load.end().await?;
    ensure!(requests > 0);

    // An upgrade leaves what others filled in.
    site.reach(None).await?;
    let mut before = Vec::new();
    for kind in CONFIGURATIONS {
        before.push(site.bundles(kind).await?);
    }
    site.helm("upgrade opensandbox CHART -n opensandbox-system --reuse-values --set webhook.timeoutSeconds=7")
        .await?;
    for (kind, before) in CONFIGURATIONS.into_iter().zip(before) {
        let after = site.bundles(kind).await?;
        ensure!(after.len() == 2 && after == before, "{kind}: {after:?}");
    }
    Ok(())
}

/// Pools that are created one after the other, as dry runs.
struct Load {
    stop: Arc<AtomicBool>,
    count: tokio::sync::watch::Receiver<u64>,
    task: tokio::task::JoinHandle<Result<u64>>,
}

impl Load {
    fn start(client: kube::Client) -> Result<Self> {
        let kind = GroupVersionKind::gvk("sandbox.opensandbox.io", "v1alpha1", "Pool");
        let pools: Api<DynamicObject> =
            Api::namespaced_with(client, "default", &ApiResource::from_gvk(&kind));
        let pool = fs::read_to_string(repository("examples/minimal-pool.yaml"))?;
        let pool: DynamicObject = serde_saphyr::from_str(&pool)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (told, count) = tokio::sync::watch::channel(0);
        let task = {
            let stop = Arc::clone(&stop);
            let params = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            tokio::spawn(async move {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    let pool = pools.create(&params, &pool).await?;
                    let containers = &pool.data["spec"]["template"]["spec"]["containers"];
                    ensure!(containers[1]["name"] == "task-executor", "{containers}");
                    done += 1;
                    told.send_replace(done);
                }
                Ok(done)
            })
        };
        Ok(Self { stop, count, task })
    }

    /// Waits until requests that begin now have ended.
    async fn goes_on(&mut self) -> Result<()> {
        let now = *self.count.borrow_and_update();
        let more = self.count.wait_for(|count| *count >= now + 20);
        match tokio::time::timeout(BOUND, more).await {
            Err(_) => bail!("the load stands still after {now} requests"),
            Ok(Ok(_)) => Ok(()),
            // One failed.
            Ok(Err(_)) => (&mut self.task).await?.map(drop),
        }
    }

    /// How many there were; none may have failed.
    async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
