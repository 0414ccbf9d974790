//! Which cluster a program talks to.

use std::path::Path;

use anyhow::Context as _;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// The configuration that a kubeconfig file holds, or its context; without both what `KUBECONFIG` names,
/// then the pod's service account.
///
/// # Errors
///
/// There is none, or it cannot be used.
pub async fn config(kubeconfig: Option<&Path>, context: Option<&str>) -> anyhow::Result<Config> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .context("kubeconfig cannot be used")
        }
        None if context.is_some() => Config::from_kubeconfig(&options)
            .await
            .context("kubeconfig cannot be used"),
        None => Config::infer()
            .await
            .context("no kubeconfig and not in a pod"),
    }
}
