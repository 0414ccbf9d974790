//! cert-manager: its controllers and its CA injector, as one program, built once from the Go module pinned
//! in `tests/cert-manager`, like Kubernetes itself.

use std::path::PathBuf;

use anyhow::{Result, anyhow};

use crate::LocalCluster;
use crate::go_build::{self, Build};
use crate::kinds::CERT_MANAGER;
use crate::kubernetes;
use crate::process::{Launch, Program};

/// The release that `tests/cert-manager/go.mod` pins.
pub const VERSION: &str = "v1.21.2";

const SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../cert-manager/go.mod")),
    ("go.sum", include_str!("../cert-manager/go.sum")),
    ("main.go", include_str!("../cert-manager/main.go")),
];

/// Whether its tests are to run: `OPENSANDBOX_CERT_MANAGER` is `1`, as `just soak-cert-manager` sets it. To build
/// it takes minutes, more than all that the tests of every day may still take. If they are not, that is said.
pub fn is_wanted() -> bool {
    let wanted = std::env::var_os("OPENSANDBOX_CERT_MANAGER").is_some_and(|value| value == "1");
    if !wanted {
        let line = "=".repeat(80);
        kubernetes::say(&format!(
            "{line}\nSKIPPED, NOT PASSED: cert-manager's controllers; `just soak-cert-manager` runs them\n{line}"
        ));
    }
    wanted
}

/// The program. Blocks while it is built.
fn program() -> Result<PathBuf> {
    let build = Build {
        name: "cert-manager",
        title: "cert-manager",
        version: VERSION,
        sources: &SOURCES,
        arguments: go_build::arguments("-s -w"),
        package: ".",
        file: "cert-manager",
    };
    let directory = build.ensure(|_| Ok(())).map_err(|error| anyhow!(error))?;
    Ok(directory.join("cert-manager"))
}

/// Installs its kinds and starts it as administrator. It is stopped when the program is dropped.
///
/// # Errors
/// It cannot be had or started.
pub async fn start(cluster: &LocalCluster) -> Result<Program> {
    CERT_MANAGER.install(cluster).await?;
    let path = tokio::task::spawn_blocking(program).await??;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let launch = Launch::new("cert-manager", path).env("KUBECONFIG", kubeconfig);
    cluster.guard().run(launch).await
}
