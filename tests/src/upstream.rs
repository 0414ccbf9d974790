//! Upstream's controller and task executor, the real programs, and the manifests that they are installed
//! with.
//!
//! Nobody serves the programs, so their paths come from the environment, see `tests/upstream/README.md`;
//! a test that lacks one says so loudly and does not run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::administrator::Administrator;
use crate::component::free_ports;
use crate::installation::NAMESPACE;
use crate::kubernetes;
use crate::process::{Launch, Program};

/// Path of the controller's program.
pub const CONTROLLER: &str = "OPENSANDBOX_UPSTREAM_CONTROLLER";
/// Path of the executor's program, statically linked.
pub const EXECUTOR: &str = "OPENSANDBOX_UPSTREAM_EXECUTOR";
/// ServiceAccount of the controller in [`NAMESPACE`], as upstream's chart and kustomization name it.
pub const ACCOUNT: &str = "opensandbox-controller-manager";
/// Whose fields upstream's CRDs are, as when its chart installs them.
const MANAGER: &str = "--field-manager=helm";
/// Until the controller serves.
const START: Duration = Duration::from_mins(1);

const CRDS: [&str; 3] = [
    include_str!("../upstream/crd/pools.yaml"),
    include_str!("../upstream/crd/batchsandboxes.yaml"),
    SNAPSHOTS,
];
const SNAPSHOTS: &str = include_str!("../upstream/crd/sandboxsnapshots.yaml");
const ROLE: &str = include_str!("../upstream/controller-role.yaml");

/// A program of upstream's by the variable that names it. `None`: the variable is not set, and that was
/// said loudly; the test is to return.
///
/// # Errors
/// The variable names no file.
pub fn program(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) else {
        let line = "=".repeat(80);
        kubernetes::say(&format!(
            "{line}\nSKIPPED, NOT PASSED: {variable} names no program of upstream's; see \
             tests/upstream/README.md\n{line}"
        ));
        return Ok(None);
    };
    let path = PathBuf::from(path);
    // Tests run in the directory of their package, and containers mount it.
    let path = path
        .canonicalize()
        .with_context(|| format!("{variable}={}", path.display()))?;
    ensure!(path.is_file(), "{variable}={}: no file", path.display());
    Ok(Some(path))
}

/// Upstream's third CRD, which its controller watches and ours has no use for.
///
/// # Errors
/// None: it is a file of this repository.
pub fn snapshots() -> Result<Value> {
    Ok(serde_saphyr::from_str(SNAPSHOTS)?)
}

/// Installs upstream's CRDs, its namespace, and its controller's account with its rights.
///
/// # Errors
/// The API server refuses something.
pub async fn install(administrator: Administrator<'_>) -> Result<()> {
    let apply = ["apply", "--server-side", MANAGER, "-f", "-"];
    let crds = CRDS.join("\n---\n");
    administrator.kubectl_with_input(&apply, &crds).await?;
    let wait = [
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "-f",
        "-",
    ];
    administrator.kubectl_with_input(&wait, &crds).await?;
    administrator.kubectl_with_input(&apply, ROLE).await?;
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": NAMESPACE},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "opensandbox-manager-rolebinding"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "manager-role",
            },
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
        }),
    ] {
        administrator
            .kubectl_with_input(&apply, &object.to_string())
            .await?;
    }
    Ok(())
}

/// The controller, running. Dropping it stops it.
#[derive(Debug)]
pub struct Controller {
    /// The process.
    pub program: Program,
}

impl Controller {
    /// Starts it as its ServiceAccount, without leader election, which it has in pods only.
    ///
    /// # Errors
    /// It does not serve; the error holds its log.
    pub async fn start(administrator: Administrator<'_>, program: PathBuf) -> Result<Self> {
        let kubeconfig = administrator
            .service_account_kubeconfig(NAMESPACE, ACCOUNT)
            .await?;
        let [health, metrics] = free_ports()?;
        let launch = Launch::new("upstream-controller", program)
            .args([
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--health-probe-bind-address=127.0.0.1:{health}"),
                format!("--metrics-bind-address=127.0.0.1:{metrics}"),
                "--metrics-secure=false".to_owned(),
            ])
            .env("POD_NAMESPACE", NAMESPACE);
        let program = administrator.guard().run(launch).await?;
        program
            .wait_for_ok(&format!("http://127.0.0.1:{health}/readyz"), None, START)
            .await
            .with_context(|| program.log().unwrap_or_default())?;
        Ok(Self { program })
    }

    /// Ends it as Kubernetes does.
    ///
    /// # Errors
    /// It ended before by itself.
    pub async fn stop(&self) -> Result<()> {
        if let Some(exit) = self.program.exit() {
            bail!("upstream's controller had ended with {exit}");
        }
        self.program.stop().await?;
        Ok(())
    }
}
