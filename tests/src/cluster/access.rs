//! How one gets at a local cluster: clients, kubeconfigs for any user, namespaces, kubectl.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::LocalCluster;
use crate::credentials::{Login, kubeconfig, write_private};
use crate::wait::{self, Probe};

impl LocalCluster {
    /// A client of the administrator. It belongs to the tokio runtime it is made in, so tests, which
    /// have one each, do not share clients.
    ///
    /// # Errors
    /// None that can be met while the cluster exists.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig).await
    }

    /// Writes a kubeconfig for a user with these groups, of which there may be two, besides
    /// `system:authenticated`. Nobody else has to know of the user, also not when it is the name of
    /// a service account.
    ///
    /// # Errors
    /// More than two groups.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let identity = self.authority.user(user, groups)?;
        self.write_kubeconfig(user, Login::Certificate(&identity))
    }

    /// Writes a kubeconfig with a token for a service account that exists: what its pods would log
    /// in with, valid for an hour.
    ///
    /// # Errors
    /// There is no such service account.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec::default(),
            ..Default::default()
        };
        let response = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("token for the service account {namespace}/{name}"))?;
        let status = response
            .status
            .context("a token request is answered with a token")?;
        let user = format!("system:serviceaccount:{namespace}:{name}");
        self.write_kubeconfig(&user, Login::Token(&status.token))
    }

    fn write_kubeconfig(&self, user: &str, login: Login<'_>) -> Result<PathBuf> {
        let number = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self
            .guard
            .directory()
            .join(format!("user-{number}.kubeconfig"));
        let text = kubeconfig(&self.server, &self.authority_pem, user, login)?;
        write_private(path, &text)
    }

    /// Creates a namespace of its own for a test, named `PREFIX-` and something unique.
    ///
    /// # Errors
    /// The API server refused.
    pub async fn namespace(&self, prefix: &str, labels: &[(&str, &str)]) -> Result<TestNamespace> {
        let client = self.client().await?;
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let namespace = Namespace {
            metadata: ObjectMeta {
                generate_name: Some(format!("{prefix}-")),
                labels: Some(labels.collect::<BTreeMap<_, _>>()),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<Namespace> = Api::all(client.clone());
        let created = api.create(&PostParams::default(), &namespace).await?;
        let name = created
            .metadata
            .name
            .context("a created namespace has a name")?;
        Ok(TestNamespace { name, client })
    }

    /// The real kubectl, as `kubeconfig`; further settings are the caller's. It leaves nothing in
    /// the user's home and does not read their preferences.
    pub fn kubectl_command(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(self.binaries.path("kubectl"));
        command
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", self.guard.directory().join("kubectl-cache"))
            .env("KUBERC", "off")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl as administrator and returns what it printed.
    ///
    /// # Errors
    /// It failed; the error holds what it said.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        printed(
            args,
            self.kubectl_command(&self.kubeconfig)
                .args(args)
                .output()
                .await?,
        )
    }

    /// Waits until none of these objects is left, which are named as for `kubectl get`.
    ///
    /// # Errors
    /// The bound passed, with those that are left; or kubectl failed.
    pub async fn gone(&self, objects: &str, bound: Duration) -> Result<()> {
        let get: Vec<_> = ["get"]
            .into_iter()
            .chain(objects.split_whitespace())
            .chain(["--ignore-not-found", "-o", "name"])
            .collect();
        wait::until(&format!("{objects} to be gone"), bound, async || {
            let left = self.kubectl(&get).await?;
            Ok(if left.trim().is_empty() {
                Probe::Done(())
            } else {
                Probe::not_yet(left.trim())
            })
        })
        .await
    }

    /// [`Self::kubectl`] with standard input, for `apply -f -`.
    ///
    /// # Errors
    /// It failed; the error holds what it said.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .kubectl_command(&self.kubeconfig)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        // At the same time, since kubectl may print before it has read all.
        let write = async {
            // It may fail without reading; what it says then is better than a broken pipe.
            stdin.write_all(input.as_bytes()).await.ok();
            drop(stdin);
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), write);
        printed(args, output?)
    }
}

/// A client that logs in with a kubeconfig.
///
/// # Errors
/// The file does not exist or is no kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let text = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// A namespace that belongs to one test.
#[derive(Clone)]
pub struct TestNamespace {
    /// Its name.
    pub name: String,
    client: Client,
}

impl std::fmt::Debug for TestNamespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestNamespace")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl TestNamespace {
    /// The kind `K`, in this namespace, as administrator.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Asks for its deletion. Not needed in a cluster that ends with the tests; and where no
    /// controllers run, it stays Terminating, and what is in it stays too.
    ///
    /// # Errors
    /// The API server refused.
    pub async fn delete(self) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client);
        api.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn printed(args: &[&str], output: Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        args.join(" "),
        stderr.trim_end()
    );
    match String::from_utf8(output.stdout) {
        Ok(text) => Ok(text),
        Err(_) => bail!(
            "kubectl {} printed something that is not text",
            args.join(" ")
        ),
    }
}
