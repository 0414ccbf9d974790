//! The webhook installed on a local cluster: what config/default holds, applied with the real kubectl,
//! and the real program as its service account.
//!
//! A cluster without a node runs no pods and routes no Services. So the Deployment's program is started
//! here as a process, and the webhook configurations name an address in place of the Service; nothing
//! else of config/ is changed. Several replicas stand behind a [`Balancer`], which does what a Service
//! does: it sends connections to those that say they are ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::administrator::Administrator;
use crate::balancer::{Backend, Balancer};
use crate::cluster::LocalCluster;
use crate::component::free_ports;
use crate::http;
use crate::process::{Launch, Program};
use crate::programs;
use crate::wait::{self, Probe};

/// Namespace of the installation, as config/ has it.
pub const NAMESPACE: &str = "opensandbox-system";
/// Name of the Deployment, its ServiceAccount and both webhook configurations.
pub const NAME: &str = "opensandbox-webhook";
/// Until a program says that it is ready.
const READY: Duration = Duration::from_secs(30);

/// How the webhook is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Processes behind the address.
    pub replicas: usize,
    /// Arguments of `serve`, after ours, so that they win.
    pub args: Vec<String>,
    /// Path of the program; built with Cargo if absent.
    pub program: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            replicas: 1,
            args: Vec::new(),
            program: None,
        }
    }
}

/// A running installation. Dropping it stops its programs.
#[derive(Debug)]
pub struct Installation {
    replicas: Vec<Replica>,
    address: String,
    // Kept for its task.
    balancer: Option<Balancer>,
    settings: Settings,
    kubeconfig: PathBuf,
    program: PathBuf,
}

/// One process of the webhook.
#[derive(Debug)]
pub struct Replica {
    /// The process.
    pub program: Program,
    /// Its HTTPS port on 127.0.0.1.
    pub https: u16,
    /// Its plain port on 127.0.0.1.
    pub probes: u16,
}

impl Replica {
    /// A GET on the plain port: status and body.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let (status, body) =
            http::get(&format!("http://127.0.0.1:{}{path}", self.probes), None).await?;
        Ok((status.as_u16(), body))
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// It does not in time; the error holds what it lacks and the end of its log.
    pub async fn ready(&self) -> Result<()> {
        let ready = wait::until("the webhook is ready", READY, async || {
            match self.get("/readyz").await {
                Ok((200, _)) => Ok(Probe::Done(())),
                Ok((_, body)) => Ok(Probe::not_yet(body)),
                Err(error) => Ok(Probe::not_yet(format!("{error:#}"))),
            }
        });
        ready
            .await
            .with_context(|| self.program.log().unwrap_or_default())
    }
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

impl Installation {
    /// Applies config/default and starts the webhook; ready when this returns.
    ///
    /// # Errors
    /// The API server refuses something, or the program does not become ready.
    pub async fn install(cluster: &LocalCluster, settings: Settings) -> Result<Self> {
        Self::install_as(Administrator::of(cluster), settings).await
    }

    /// [`Self::install`] by anybody, on a cluster whose API server reaches this machine's loopback
    /// address.
    ///
    /// # Errors
    /// The API server refuses something, or the program does not become ready.
    pub async fn install_as(administrator: Administrator<'_>, settings: Settings) -> Result<Self> {
        ensure!(settings.replicas > 0, "an installation has a replica");
        let mut ports = Vec::new();
        for _ in 0..settings.replicas {
            let [https, probes] = free_ports()?;
            ports.push((https, probes));
        }
        let balancer = match ports.as_slice() {
            [_] => None,
            several => {
                let backends = several.iter().map(|(https, probes)| Backend {
                    https: *https,
                    probes: *probes,
                });
                Some(Balancer::start(backends.collect()).await?)
            }
        };
        let port = balancer.as_ref().map_or(ports[0].0, Balancer::port);
        let address = format!("https://127.0.0.1:{port}");
        apply(
            administrator,
            rendered_as(administrator, Some(&address)).await?,
        )
        .await?;
        let program = match &settings.program {
            Some(program) => program.clone(),
            None => tokio::task::spawn_blocking(programs::webhook).await??,
        };
        let kubeconfig = administrator
            .service_account_kubeconfig(NAMESPACE, NAME)
            .await?;
        let mut installation = Self {
            replicas: Vec::new(),
            address,
            balancer,
            settings,
            kubeconfig,
            program,
        };
        for (https, probes) in ports {
            let replica = installation.start(administrator, https, probes).await?;
            installation.replicas.push(replica);
        }
        for replica in &installation.replicas {
            replica.ready().await?;
        }
        Ok(installation)
    }

    async fn start(
        &self,
        administrator: Administrator<'_>,
        https: u16,
        probes: u16,
    ) -> Result<Replica> {
        let launch = Launch::new("webhook", &self.program)
            .args(["serve", "--log-format", "json"])
            .args([
                format!("--bind-address=127.0.0.1:{https}"),
                format!("--metrics-bind-address=127.0.0.1:{probes}"),
            ])
            .args([
                "--tls-san=127.0.0.1".to_owned(),
                format!("--kubeconfig={}", self.kubeconfig.display()),
            ])
            .args(self.settings.args.iter().cloned())
            .env("POD_NAMESPACE", NAMESPACE);
        Ok(Replica {
            program: administrator.guard().run(launch).await?,
            https,
            probes,
        })
    }

    /// The processes.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Where the API server calls, without the path.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Starts replica `index` again on its ports, after it has ended. Not yet ready when this returns.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn restart(&mut self, cluster: &LocalCluster, index: usize) -> Result<()> {
        let (https, probes) = (self.replicas[index].https, self.replicas[index].probes);
        self.replicas[index] = self
            .start(Administrator::of(cluster), https, probes)
            .await?;
        Ok(())
    }

    /// Whether a [`Balancer`] stands before the replicas.
    pub fn is_balanced(&self) -> bool {
        self.balancer.is_some()
    }
}

/// config/default as kustomize renders it, the Services in webhook configurations replaced by an
/// address.
///
/// # Errors
/// kustomize fails, or renders what this does not understand.
pub async fn rendered(cluster: &LocalCluster, address: &str) -> Result<Vec<Value>> {
    rendered_as(Administrator::of(cluster), Some(address)).await
}

/// config/default as kustomize renders it; with an address, that stands in place of the Services in
/// webhook configurations.
///
/// # Errors
/// kustomize fails, or renders what this does not understand.
pub async fn rendered_as(
    administrator: Administrator<'_>,
    address: Option<&str>,
) -> Result<Vec<Value>> {
    let directory = repository("config/default");
    let text = administrator
        .kubectl(&["kustomize", &directory.to_string_lossy()])
        .await?;
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let Some(address) = address else {
        return Ok(documents);
    };
    for document in &mut documents {
        for webhook in document
            .get_mut("webhooks")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let path = webhook
                .pointer("/clientConfig/service/path")
                .and_then(Value::as_str);
            let path = path.context("a webhook names the path of a Service")?;
            webhook["clientConfig"] = json!({ "url": format!("{address}{path}") });
        }
    }
    Ok(documents)
}

/// Applies documents, CRDs first, and waits until these are served.
///
/// # Errors
/// The API server refuses something.
pub async fn apply(administrator: Administrator<'_>, documents: Vec<Value>) -> Result<()> {
    let (crds, rest): (Vec<_>, Vec<_>) = documents
        .into_iter()
        .partition(|document| document["kind"] == "CustomResourceDefinition");
    for part in [crds, rest] {
        let list = list(&part);
        administrator
            .kubectl_with_input(&["apply", "--server-side", "-f", "-"], &list)
            .await?;
        if part
            .iter()
            .any(|document| document["kind"] == "CustomResourceDefinition")
        {
            let wait = [
                "wait",
                "--for=condition=Established",
                "--timeout=30s",
                "-f",
                "-",
            ];
            administrator.kubectl_with_input(&wait, &list).await?;
        }
    }
    Ok(())
}

/// Documents as one, the way kubectl takes and prints several.
pub fn list(documents: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": documents }).to_string()
}
