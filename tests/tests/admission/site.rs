//! Where the tests happen: a cluster with an installation, a namespace for each test, and kubectl with
//! all that it says.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::labels;
use opensandbox_tests::LocalCluster;
use opensandbox_tests::cluster::start_or_skip;
use opensandbox_tests::installation::{self, Installation};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::OnceCell;

use crate::pools::{executor, pool};

/// Until the webhook has followed a change, or is back.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A cluster and the webhook in it.
pub(crate) struct Site {
    // Before the cluster that it talks to.
    pub(crate) webhook: Installation,
    pub(crate) cluster: LocalCluster,
}

/// The site of all tests that leave the installation alone. `None`: no Kubernetes can be had, and that
/// was said.
pub(crate) async fn shared() -> Result<Option<&'static Site>> {
    static SHARED: OnceCell<Option<Site>> = OnceCell::const_new();
    Ok(SHARED.get_or_try_init(own).await?.as_ref())
}

/// A site for one test.
pub(crate) async fn own() -> Result<Option<Site>> {
    let Some(cluster) = start_or_skip(opensandbox_tests::Settings::default()).await? else {
        return Ok(None);
    };
    let webhook = Installation::install(&cluster, installation::Settings::default()).await?;
    Ok(Some(Site { webhook, cluster }))
}

impl Site {
    /// A new namespace with these labels.
    pub(crate) async fn place(&self, labels: &[(&str, &str)]) -> Result<Place<'_>> {
        let namespace = self.cluster.namespace("admission", labels).await?;
        Ok(Place {
            site: self,
            namespace: namespace.name,
            client: self.cluster.client().await?,
        })
    }

    /// A namespace that exists.
    pub(crate) async fn existing(&self, namespace: &str) -> Result<Place<'_>> {
        Ok(Place {
            site: self,
            namespace: namespace.to_owned(),
            client: self.cluster.client().await?,
        })
    }
}

/// A namespace at a site.
pub(crate) struct Place<'a> {
    pub(crate) site: &'a Site,
    pub(crate) namespace: String,
    pub(crate) client: kube::Client,
}

/// How kubectl ended and what it said.
pub(crate) struct Said {
    command: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        write!(f, "{command}: {code:?}: {stdout} {stderr}")
    }
}

impl Said {
    /// It must have succeeded.
    pub(crate) fn done(self) -> Result<Self> {
        ensure!(self.code == Some(0), "{self:?}");
        Ok(self)
    }

    /// It must have failed; what it said.
    pub(crate) fn refused(self) -> Result<String> {
        ensure!(self.code == Some(1), "expected a refusal: {self:?}");
        Ok(self.stderr)
    }
}

impl Place<'_> {
    /// kubectl in this namespace, as administrator.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Result<Said> {
        self.kubectl_as(self.site.cluster.kubeconfig(), args, None)
            .await
    }

    /// [`Self::kubectl`] with an object as standard input.
    pub(crate) async fn feed(&self, args: &[&str], object: &Value) -> Result<Said> {
        self.kubectl_as(
            self.site.cluster.kubeconfig(),
            args,
            Some(&object.to_string()),
        )
        .await
    }

    /// kubectl in this namespace, as anybody.
    pub(crate) async fn kubectl_as(
        &self,
        kubeconfig: &Path,
        args: &[&str],
        input: Option<&str>,
    ) -> Result<Said> {
        let mut command = self.site.cluster.kubectl_command(kubeconfig);
        command
            .arg("--namespace")
            .arg(&self.namespace)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let write = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // It may fail without reading; then what it says is what matters.
                stdin.write_all(input.as_bytes()).await.ok();
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), write);
        let output = output?;
        Ok(Said {
            command: format!("kubectl {}", args.join(" ")),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    /// `kubectl apply -f -`, client-side.
    pub(crate) async fn apply(&self, object: &Value) -> Result<Said> {
        self.feed(&["apply", "-f", "-"], object).await
    }

    /// `kubectl apply --server-side -f -` as a field manager.
    pub(crate) async fn apply_server_side(&self, manager: &str, object: &Value) -> Result<Said> {
        let manager = format!("--field-manager={manager}");
        self.feed(&["apply", "--server-side", &manager, "-f", "-"], object)
            .await
    }

    /// A merge patch of a Pool.
    pub(crate) async fn patch(&self, name: &str, patch: &Value) -> Result<Said> {
        self.kubectl(&[
            "patch",
            "pool",
            name,
            "--type=merge",
            "--patch",
            &patch.to_string(),
        ])
        .await
    }

    /// The stored Pool.
    pub(crate) async fn pool(&self, name: &str) -> Result<Value> {
        let path = format!("{}/pools/{name}", self.path());
        Ok(self
            .client
            .request(http::Request::get(path).body(Vec::new())?)
            .await?)
    }

    fn path(&self) -> String {
        format!(
            "/apis/{}/{}/namespaces/{}",
            labels::GROUP,
            labels::VERSION,
            self.namespace
        )
    }

    /// Creates an object by one call. The inner error is the API server's refusal.
    pub(crate) async fn create(
        &self,
        object: &Value,
        query: &str,
    ) -> Result<Result<Value, String>> {
        let plural = if object["kind"] == "Pool" {
            "pools"
        } else {
            "batchsandboxes"
        };
        let request = http::Request::post(format!("{}/{plural}{query}", self.path()))
            .header("content-type", "application/json")
            .body(serde_json::to_vec(object)?)?;
        self.send(request).await
    }

    /// Replaces what is stored, without a precondition. The inner error is the API server's refusal.
    pub(crate) async fn merge(
        &self,
        plural: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Result<Value, String>> {
        let request = http::Request::patch(format!("{}/{plural}/{name}", self.path()))
            .header("content-type", "application/merge-patch+json")
            .body(serde_json::to_vec(patch)?)?;
        self.send(request).await
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<Result<Value, String>> {
        match self.client.request(request).await {
            Ok(stored) => Ok(Ok(stored)),
            Err(kube::Error::Api(status)) if status.code < 500 => Ok(Err(status.message.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the image in this namespace's ConfigMap, or removes the ConfigMap, and waits until new
    /// Pools here get `expected`.
    pub(crate) async fn set_image(&self, value: Option<&str>, expected: &str) -> Result<()> {
        match value {
            Some(value) => {
                self.apply(&images(value)).await?.done()?;
            }
            None => {
                self.kubectl(&["delete", "configmap", labels::IMAGES_CONFIG_MAP])
                    .await?
                    .done()?;
            }
        }
        self.image_becomes(expected).await
    }

    /// Waits until new Pools here get this image.
    pub(crate) async fn image_becomes(&self, expected: &str) -> Result<()> {
        wait::until("the webhook to follow the ConfigMap", BOUND, async || {
            let stored = self.create(&pool("probe"), "?dryRun=All").await?;
            let image = stored
                .as_ref()
                .ok()
                .and_then(|pool| executor(pool)?.get("image")?.as_str());
            Ok(if image == Some(expected) {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("{image:?} {:?}", stored.as_ref().err()))
            })
        })
        .await
    }
}

/// The images ConfigMap with this value.
pub(crate) fn images(value: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": labels::IMAGES_CONFIG_MAP },
        "data": { (labels::TASK_EXECUTOR_IMAGE_KEY): value },
    })
}

/// What went wrong in a table of cases: all of it is told, not the first alone.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<String>);

impl Failures {
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(otherwise());
        }
    }

    pub(crate) fn told(self) -> Result<()> {
        ensure!(
            self.0.is_empty(),
            "{} failures:\n{}",
            self.0.len(),
            self.0.join("\n")
        );
        Ok(())
    }
}

/// The text of a file in the repository.
pub(crate) fn file(path: &str) -> Result<String> {
    let path = installation::repository(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}
