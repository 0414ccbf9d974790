//! The installation by Helm: what an administrator does on a first day, and on the last.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::stage::Stage;
use super::terminal::{Terminal, shell};
use crate::administrator::Administrator;
use crate::helm::{self, Helm};
use crate::installation::NAMESPACE;

/// The name of the release.
const RELEASE: &str = "opensandbox";
/// The chart, as one types it in the repository.
const CHART: &str = "config/helm/opensandbox";
/// What the programs said, for whoever wants to know why something failed.
const LOG_SELECTOR: &str = "app.kubernetes.io/part-of=opensandbox";

/// Runs Helm for all to see, and returns what it printed.
async fn show(terminal: &Terminal, helm: &Helm<'_>, args: &[&str]) -> Result<String> {
    terminal.command(&shell(["helm"].iter().chain(args)))?;
    let chart = helm::chart();
    let chart = chart.to_str().context("a path that is text")?;
    let args: Vec<_> = args
        .iter()
        .map(|&arg| if arg == CHART { chart } else { arg })
        .collect();
    let printed = helm.run(&args).await?;
    terminal.output(&printed)?;
    Ok(printed)
}

/// Installs, waits until all is ready, and lets Helm test it.
pub(super) async fn install(
    terminal: &Terminal,
    helm: &Helm<'_>,
    user: Administrator<'_>,
) -> Result<()> {
    terminal.step("Install by Helm")?;
    let install = [
        "install",
        RELEASE,
        CHART,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--wait",
    ];
    show(terminal, helm, &install).await?;
    let get = ["get", "pods", "-n", NAMESPACE];
    terminal.command(&shell(["kubectl"].iter().chain(&get)))?;
    terminal.output(&user.kubectl(&get).await?)?;
    let test = ["test", RELEASE, "--namespace", NAMESPACE, "--hide-notes"];
    let tested = show(terminal, helm, &test).await?;
    terminal.note("")?;
    ensure!(
        tested.contains("Succeeded"),
        "helm test says nothing of success"
    );
    terminal.held("the API server reaches the webhook, and trusts it")
}

/// Takes it away again. Pools are the users', and stay.
pub(super) async fn uninstall(stage: &Stage<'_>, helm: &Helm<'_>) -> Result<()> {
    let terminal = stage.terminal;
    terminal.step("Uninstall: what runs ends first, and Pools stay")?;
    stage
        .kubectl(&["delete", "batchsandboxes", "--all"])
        .await?;
    let uninstall = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"];
    show(terminal, helm, &uninstall).await?;
    let pools = stage.kubectl(&["get", "pools"]).await?;
    terminal.note("")?;
    stage.expect_words(
        "Pools are kept, with all that a new installation takes over",
        &pools,
        &["task-enabled-pool"],
    )?;
    let configurations = "mutatingwebhookconfigurations,validatingwebhookconfigurations";
    let left = stage
        .quietly(&["get", configurations, "-o", "name"], None)
        .await?;
    stage.expect("no webhook configuration is left", left.trim(), "")?;
    let get = ["get", "pods", "-n", NAMESPACE, "-o", "json"];
    let pods: Value = serde_json::from_str(&stage.quietly(&get, None).await?)?;
    let ending = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
    let pods = pods["items"].as_array().context("a list has items")?;
    stage.expect("nor is a program", &pods.iter().all(ending), &true)?;
    let touch = ["label", "pool", "task-enabled-pool", "kept=yes"];
    stage.quietly(&touch, None).await?;
    stage
        .terminal
        .held("and Pools can be written without the webhook")
}

/// The last lines of each of its pods.
pub(super) async fn log(user: Administrator<'_>, lines: usize) -> Result<String> {
    let tail = format!("--tail={lines}");
    let log = [
        "logs",
        "-n",
        NAMESPACE,
        "-l",
        LOG_SELECTOR,
        "--prefix",
        &tail,
    ];
    let pods = user
        .kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"])
        .await?;
    Ok(format!("{pods}\n{}", user.kubectl(&log).await?))
}
