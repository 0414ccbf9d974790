//! Helm, built once from the Go module pinned in `tests/helm`, like Kubernetes itself; and what it makes
//! of the chart in config/helm.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::LocalCluster;
use crate::administrator::run;
use crate::cluster;
use crate::go_build::{self, Build};
use crate::installation::repository;

/// The release that `tests/helm/go.mod` pins.
pub const VERSION: &str = "v3.19.5";
/// Marks what Helm does not make when it installs, but before or after something.
const HOOK: &str = "helm.sh/hook";

const SOURCES: [(&str, &str); 2] = [
    ("go.mod", include_str!("../helm/go.mod")),
    ("go.sum", include_str!("../helm/go.sum")),
];

/// Helm's program. Blocks while it is built.
///
/// # Errors
/// There is no Go, or no module proxy.
pub fn program() -> Result<PathBuf> {
    let module = "helm.sh/helm/v3";
    // As its makefile does; without a version of Kubernetes it would take every cluster for an old one.
    let linker = format!(
        "-s -w -X {module}/internal/version.version={VERSION} \
         -X {module}/pkg/chartutil.k8sVersionMajor=1 -X {module}/pkg/chartutil.k8sVersionMinor=34 \
         -X {module}/pkg/lint/rules.k8sVersionMajor=1 -X {module}/pkg/lint/rules.k8sVersionMinor=34"
    );
    let build = Build {
        name: "helm",
        title: "Helm",
        version: VERSION,
        sources: &SOURCES,
        arguments: go_build::arguments(&linker),
        package: "helm.sh/helm/v3/cmd/helm",
        file: "helm",
    };
    let directory = build.ensure(|_| Ok(())).map_err(|error| anyhow!(error))?;
    Ok(directory.join("helm"))
}

/// The directory of our chart.
pub fn chart() -> PathBuf {
    repository("config/helm/opensandbox")
}

/// Helm, as a cluster's administrator. It leaves nothing in the user's home.
#[derive(Debug)]
pub struct Helm<'a> {
    program: PathBuf,
    cluster: &'a LocalCluster,
}

impl<'a> Helm<'a> {
    /// Builds it if need be. `None`: it cannot be had on this machine, and that was said loudly; the test
    /// is to return.
    ///
    /// # Errors
    /// It cannot be had, and `OPENSANDBOX_REQUIRE_CLUSTER` is `1`.
    pub async fn on(cluster: &'a LocalCluster) -> Result<Option<Self>> {
        match Self::of(cluster).await {
            Ok(helm) => Ok(Some(helm)),
            Err(error) => {
                cluster::skip(error.context(format!("Helm {VERSION} is needed")))?;
                Ok(None)
            }
        }
    }

    /// This program, for this cluster.
    pub fn with(program: PathBuf, cluster: &'a LocalCluster) -> Self {
        Self { program, cluster }
    }

    /// Builds it if need be.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn of(cluster: &'a LocalCluster) -> Result<Self> {
        let program = tokio::task::spawn_blocking(program).await??;
        Ok(Self { program, cluster })
    }

    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// It failed; the error is what it said.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        let home = self.cluster.guard().directory().join("helm");
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("HELM_CACHE_HOME", home.join("cache"))
            .env("HELM_CONFIG_HOME", home.join("config"))
            .env("HELM_DATA_HOME", home.join("data"));
        let output = run(command, None).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!(
                "helm {}: {}{}",
                args.join(" "),
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        Ok(text(&output.stdout))
    }

    /// Runs a command line, in which `CHART` stands for our chart.
    ///
    /// # Errors
    /// As [`Helm::run`].
    pub async fn line(&self, line: &str) -> Result<String> {
        let chart = chart();
        let chart = chart.to_str().context("a path that is text")?;
        let words = line.split_whitespace();
        let words: Vec<_> = words
            .map(|word| if word == "CHART" { chart } else { word })
            .collect();
        self.run(&words).await
    }

    /// The chart rendered for a release in a namespace, without a look at the cluster: what it installs,
    /// and its hooks.
    ///
    /// # Errors
    /// It refuses the settings.
    pub async fn template(
        &self,
        release: &str,
        namespace: &str,
        settings: &[&str],
    ) -> Result<Rendered> {
        let chart = chart();
        let chart = chart.to_str().context("a path that is text")?;
        let mut args = vec!["template", release, chart, "--namespace", namespace];
        args.extend(settings);
        let documents: Vec<Value> = serde_saphyr::from_multiple(&self.run(&args).await?)?;
        let (hooks, objects) = documents
            .into_iter()
            .filter(|document| !document.is_null())
            .partition(|document| document["metadata"]["annotations"].get(HOOK).is_some());
        Ok(Rendered { objects, hooks })
    }
}

/// What a chart makes.
#[derive(Debug)]
pub struct Rendered {
    /// What is installed.
    pub objects: Vec<Value>,
    /// What is made before or after something.
    pub hooks: Vec<Value>,
}
