//! A cluster of the user's: whether the demo may play there, and what it finds. Nothing is changed
//! here, and no other context is looked at.

use std::ffi::OsString;
use std::net::{IpAddr, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::removal::NAMESPACE_LABEL;
use crate::administrator::Administrator;
use crate::guard::Guard;
use crate::installation::NAME;
use crate::kubernetes;

/// Namespace of the demo's objects in a user's cluster.
pub(super) const NAMESPACE: &str = "opensandbox-demo";
/// Minor version of Kubernetes 1 that config/ needs at least.
const MINIMUM_MINOR: u32 = 30;
/// What installing means.
const NEEDED: [&str; 4] = [
    "customresourcedefinitions.apiextensions.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "namespaces",
];
const CRDS: [&str; 2] = [
    "pools.sandbox.opensandbox.io",
    "batchsandboxes.sandbox.opensandbox.io",
];

/// How the webhook gets there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// It is installed and stays as it is.
    AsFound,
    /// As config/default has it: a Deployment.
    Deployment,
    /// As a process on this machine, since there is no node.
    Process {
        /// What a demo that was killed had installed is still there.
        leftover: bool,
    },
}

/// A context that the demo may use.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) guard: Guard,
    kubectl: PathBuf,
    flags: Vec<OsString>,
    /// The same flags as a user would type them.
    pub(super) shown_flags: Vec<String>,
    pub(super) name: String,
    pub(super) server: String,
    pub(super) version: String,
    pub(super) has_nodes: bool,
}

impl Context {
    /// Looks whether it can be reached.
    ///
    /// # Errors
    /// There is no such context, it does not answer, or it is too old.
    pub(super) async fn open(kubeconfig: Option<&Path>, name: &str) -> Result<Self> {
        let kubectl = tokio::task::spawn_blocking(kubernetes::kubectl).await??;
        let guard = Guard::start().await?;
        let mut flags: Vec<OsString> = Vec::new();
        let mut shown_flags = Vec::new();
        if let Some(path) = kubeconfig {
            flags.extend(["--kubeconfig".into(), std::path::absolute(path)?.into()]);
            shown_flags.extend(["--kubeconfig".to_owned(), path.display().to_string()]);
        }
        if !name.is_empty() {
            flags.extend(["--context".into(), name.into()]);
            shown_flags.extend(["--context".to_owned(), name.to_owned()]);
        }
        let user = Administrator::user(&guard, &kubectl, &flags);
        let view = user
            .kubectl(&["config", "view", "--minify", "-o", "json"])
            .await?;
        let view: Value = serde_json::from_str(&view)?;
        let text = |pointer| {
            view.pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let name = text("/current-context").context("there is no current context")?;
        let server = text("/clusters/0/cluster/server").context("the context names no server")?;
        // From now on this context, whatever becomes the current one meanwhile.
        if shown_flags.iter().all(|flag| flag != "--context") {
            flags.extend(["--context".into(), (&name).into()]);
        }
        let user = Administrator::user(&guard, &kubectl, &flags);
        let version = user
            .kubectl(&["version", "-o", "json", "--request-timeout=10s"])
            .await;
        let version =
            version.with_context(|| format!("the cluster at {server} does not answer"))?;
        let version: Value = serde_json::from_str(&version)?;
        let version = version
            .pointer("/serverVersion/gitVersion")
            .and_then(Value::as_str);
        let version = version
            .context("the cluster does not tell its version")?
            .to_owned();
        ensure!(
            minor(&version).is_none_or(|minor| minor >= MINIMUM_MINOR),
            "the cluster runs Kubernetes {version}; 1.{MINIMUM_MINOR} or newer is needed"
        );
        // Who may not list nodes is not told that there are none.
        let nodes = user.kubectl(&["get", "nodes", "-o", "name"]).await;
        let has_nodes = nodes.map_or(true, |nodes| !nodes.trim().is_empty());
        Ok(Self {
            guard,
            kubectl,
            flags,
            shown_flags,
            name,
            server,
            version,
            has_nodes,
        })
    }

    /// The user of the context.
    pub(super) fn user(&self) -> Administrator<'_> {
        Administrator::user(&self.guard, &self.kubectl, &self.flags)
    }

    /// Decides how the webhook gets there.
    ///
    /// # Errors
    /// The demo would have to change what somebody else made, or may not do what it must.
    pub(super) async fn way(&self) -> Result<Way> {
        let user = self.user();
        for resource in NEEDED {
            let can = user
                .output(&["auth", "can-i", "create", resource], None)
                .await?;
            ensure!(
                can.status.success(),
                "this user may not create {resource} in {} (kubectl auth can-i create {resource}); \
                 installing OpenSandbox needs that",
                self.name
            );
        }
        let get = [
            "get",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "-o",
            "json",
        ];
        let namespace = user.kubectl(&get).await?;
        if !namespace.trim().is_empty() {
            let namespace: Value = serde_json::from_str(&namespace)?;
            let (key, value) = NAMESPACE_LABEL;
            ensure!(
                namespace["metadata"]["labels"][key] == value,
                "the namespace {NAMESPACE} exists and is not of this demo"
            );
            ensure!(
                namespace["metadata"]["deletionTimestamp"].is_null(),
                "the namespace {NAMESPACE} is being deleted; try again when it is gone"
            );
        }
        let get = [
            "get",
            "mutatingwebhookconfiguration",
            NAME,
            "--ignore-not-found",
            "-o",
            "json",
        ];
        let configuration = user.kubectl(&get).await?;
        let url = if configuration.trim().is_empty() {
            None
        } else {
            let configuration: Value = serde_json::from_str(&configuration)?;
            let url = configuration
                .pointer("/webhooks/0/clientConfig/url")
                .and_then(Value::as_str);
            match url {
                // Left by a demo that was killed: nobody listens there any more.
                Some(url) if is_on_this_machine(url) && !answers(url) => Some(url.to_owned()),
                _ => return Ok(Way::AsFound),
            }
        };
        if url.is_none() {
            let mut get = vec!["get", "crd", "--ignore-not-found", "-o", "name"];
            get.extend(CRDS);
            let crds = user.kubectl(&get).await?;
            ensure!(
                crds.trim().is_empty(),
                "{} exists without our webhook, maybe from upstream's installation, and this demo \
                 would change it; to go on with ours, run `kubectl apply -k config/default` first",
                crds.split_whitespace().collect::<Vec<_>>().join(", ")
            );
        }
        if self.has_nodes {
            return Ok(Way::Deployment);
        }
        if !is_on_this_machine(&self.server) {
            bail!(
                "the cluster at {} has no nodes to run the webhook, and its API server is not on \
                 this machine, so it could not call a webhook that runs here",
                self.server
            );
        }
        Ok(Way::Process {
            leftover: url.is_some(),
        })
    }
}

/// `v1.34.4` is 34.
fn minor(version: &str) -> Option<u32> {
    version
        .trim_start_matches('v')
        .split('.')
        .nth(1)?
        .parse()
        .ok()
}

fn authority(url: &str) -> Option<(String, u16)> {
    let uri: http::Uri = url.parse().ok()?;
    let host = uri
        .host()?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    Some((host, uri.port_u16().unwrap_or(443)))
}

fn is_on_this_machine(url: &str) -> bool {
    authority(url).is_some_and(|(host, _)| {
        host == "localhost"
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

/// Whether anybody listens there.
fn answers(url: &str) -> bool {
    let addresses = authority(url).and_then(|address| address.to_socket_addrs().ok());
    addresses
        .into_iter()
        .flatten()
        .any(|address| TcpStream::connect(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_its_loopback_addresses() {
        for url in [
            "https://127.0.0.1:6443",
            "https://localhost/mutate",
            "https://[::1]:1/x",
        ] {
            assert!(is_on_this_machine(url), "{url}");
        }
        for url in [
            "https://10.0.0.1:6443",
            "https://kubernetes.example.com",
            "nonsense",
        ] {
            assert!(!is_on_this_machine(url), "{url}");
        }
    }

    #[test]
    fn versions_are_compared_by_their_minor() {
        assert_eq!(minor("v1.34.4"), Some(34));
        assert_eq!(minor("v1.30.1-eks-1"), Some(30));
        assert_eq!(minor("odd"), None);
    }
}
