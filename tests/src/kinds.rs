//! Kinds of others that config/ makes objects of, from the Go modules pinned in `tests/kinds`, so that a
//! real API server judges these objects by the real schemas.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::LocalCluster;

const SOURCES: [(&str, &str); 2] = [
    ("go.mod", include_str!("../kinds/go.mod")),
    ("go.sum", include_str!("../kinds/go.sum")),
];

/// cert-manager, without ACME.
pub const CERT_MANAGER: Kinds = Kinds {
    module: "github.com/cert-manager/cert-manager@v1.21.2",
    files: &[
        "deploy/crds/cert-manager.io_certificaterequests.yaml",
        "deploy/crds/cert-manager.io_certificates.yaml",
        "deploy/crds/cert-manager.io_clusterissuers.yaml",
        "deploy/crds/cert-manager.io_issuers.yaml",
    ],
};

/// The Prometheus operator: ServiceMonitor, PodMonitor, PrometheusRule.
pub const PROMETHEUS: Kinds = Kinds {
    module: "github.com/prometheus-operator/prometheus-operator@v0.85.0",
    files: &[
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ],
};

/// CRDs in files of a Go module.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    module: &'static str,
    files: &'static [&'static str],
}

impl Kinds {
    /// Installs them, and waits until they are served.
    ///
    /// # Errors
    /// They cannot be had, or the API server refuses them.
    pub async fn install(self, cluster: &LocalCluster) -> Result<()> {
        let directory = tokio::task::spawn_blocking(move || download(self.module)).await??;
        let files: Vec<_> = self
            .files
            .iter()
            .map(|file| format!("--filename={}", directory.join(file).display()))
            .collect();
        for command in [
            ["apply", "--server-side", "--force-conflicts"].as_slice(),
            &["wait", "--for=condition=Established", "--timeout=30s"],
        ] {
            let files = files.iter().map(String::as_str);
            let args: Vec<_> = command.iter().copied().chain(files).collect();
            cluster.kubectl(&args).await?;
        }
        Ok(())
    }
}

/// Where Go keeps the files of a module; fetched if need be, and compared with the sum that is pinned.
fn download(module: &str) -> Result<PathBuf> {
    let source = tempfile::tempdir()?;
    for (name, text) in SOURCES {
        std::fs::write(source.path().join(name), text)?;
    }
    let output = Command::new("go")
        .args(["mod", "download", "-json", module])
        .current_dir(source.path())
        .envs([("GOTOOLCHAIN", "local"), ("GOWORK", "off")])
        .output()
        .context("start go, which fetches the kinds of others")?;
    ensure!(
        output.status.success(),
        "go mod download {module}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let directory = answer["Dir"].as_str().context("go says where it is")?;
    Ok(Path::new(directory).to_owned())
}
