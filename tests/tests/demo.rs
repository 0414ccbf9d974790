//! The demo, as users run it: it holds, it cleans up, also when it is interrupted, and it leaves a
//! cluster of the user's as it was.
#![expect(clippy::tests_outside_test_module, reason = "integration test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opensandbox_tests::cluster::start_or_skip;
use opensandbox_tests::installation::{self, Installation};
use opensandbox_tests::{LocalCluster, Settings, kubernetes};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A demo that takes longer hangs. Includes building all programs and images on a machine that does other
/// things.
const BOUND: Duration = Duration::from_mins(25);
/// A variable that all processes of one run inherit.
const MARK: &str = "OPENSANDBOX_TEST_DEMO";
/// The variable by which the guard marks what it starts.
const DIRECTORY: &str = "OPENSANDBOX_GUARD_DIRECTORY=";

/// One run of the demo.
struct Run {
    mark: String,
    child: Child,
}

impl Run {
    fn start(name: &str, args: &[&str]) -> Result<Self> {
        let mark = format!("{name}-{}", std::process::id());
        let child = Command::new(env!("CARGO_BIN_EXE_demo"))
            .args(args)
            .env(MARK, &mark)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { mark, child })
    }

    async fn end(self) -> Result<Output> {
        let output = timeout(BOUND, self.child.wait_with_output()).await;
        Ok(output.context("the demo hangs")??)
    }

    /// Reads its output until a line holds `text`, then sends SIGINT to it alone, and waits for its
    /// end. Returns the exit status and the directories that its processes had.
    async fn interrupt(mut self, text: &str) -> Result<(Option<i32>, BTreeSet<PathBuf>)> {
        let stdout = self
            .child
            .stdout
            .take()
            .context("standard output is a pipe")?;
        // Nobody reads it, but it must not be full.
        let mut stderr = self
            .child
            .stderr
            .take()
            .context("standard error is a pipe")?;
        tokio::spawn(async move { stderr.read_to_end(&mut Vec::new()).await });
        let mut lines = BufReader::new(stdout).lines();
        let found = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains(text) {
                    return Ok(());
                }
            }
            anyhow::bail!("the demo never said {text:?}")
        };
        timeout(BOUND, found).await.context("the demo hangs")??;
        let directories = directories(&self.mark);
        let pid = self.child.id().context("the demo runs")?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
        let rest = async {
            while lines.next_line().await?.is_some() {}
            Ok::<_, std::io::Error>(())
        };
        timeout(BOUND, rest)
            .await
            .context("the demo does not end")??;
        let status = timeout(BOUND, self.child.wait())
            .await
            .context("the demo does not end")??;
        Ok((status.code(), directories))
    }
}

/// The environments of the processes that a run started and that still run.
fn environments(mark: &str) -> Vec<String> {
    let mark = format!("{MARK}={mark}");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let environments = processes.filter_map(|process| {
        let bytes = std::fs::read(process.path().join("environ")).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    });
    environments
        .filter(|text| text.split('\0').any(|variable| variable == mark))
        .collect()
}

fn directories(mark: &str) -> BTreeSet<PathBuf> {
    let environments = environments(mark);
    let variables = environments.iter().flat_map(|text| text.split('\0'));
    variables
        .filter_map(|variable| variable.strip_prefix(DIRECTORY))
        .map(PathBuf::from)
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn both(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Whether the demo can start a cluster here; where tests may not be skipped, that is an error.
fn can_run() -> Result<bool> {
    match kubernetes::ensure_binaries() {
        Ok(_) => Ok(true),
        Err(error)
            if std::env::var_os("OPENSANDBOX_REQUIRE_CLUSTER").is_some_and(|on| on == "1") =>
        {
            Err(error.into())
        }
        Err(_) => Ok(false),
    }
}

#[tokio::test]
async fn every_step_holds_and_nothing_is_left() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let run = Run::start("whole", &[])?;
    let mark = run.mark.clone();
    let output = run.end().await?;
    ensure!(
        output.status.code() == Some(0),
        "{}: {}",
        output.status,
        both(&output)
    );
    let said = text(&output.stdout);
    for expected in [
        "$ kubectl apply -f examples/minimal-pool.yaml",
        "+       shareProcessNamespace: true",
        "<- ConfigMap opensandbox-system/opensandbox-images, key taskExecutorImage",
        "✓ containers are sandbox and task-executor",
        "✓ all three mistakes were named, with their paths",
        "✓ the old one keeps what it had, also when its file is applied again",
        "mutate pool",
        "✓ every step held",
        "✓ all of it was stopped and removed",
    ] {
        ensure!(said.contains(expected), "{expected:?} is not in\n{said}");
    }
    let node = [
        "$ helm install opensandbox config/helm/opensandbox",
        "✓ the API server reaches the webhook, and trusts it",
        "$ kubectl apply -k examples/kustomize",
        "✓ its pods have the sandbox and the executor",
        "✓ task 1 ran in its sandbox",
        "✓ all of its output is in the log",
        "✓ and Pools can be written without the webhook",
    ];
    if !said.contains("There is no node") {
        for expected in node {
            ensure!(said.contains(expected), "{expected:?} is not in\n{said}");
        }
    }
    ensure!(
        !both(&output).contains('\x1b'),
        "escape codes in a pipe:\n{}",
        both(&output)
    );
    ensure!(environments(&mark).is_empty(), "a process of it is left");
    Ok(())
}

#[tokio::test]
async fn ctrl_c_in_the_middle_leaves_nothing() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let run = Run::start("interrupted", &[])?;
    let mark = run.mark.clone();
    let (status, directories) = run.interrupt("Where each value came from").await?;
    ensure!(status == Some(130), "{status:?}");
    ensure!(
        directories.len() == 1,
        "one guard has one directory: {directories:?}"
    );
    ensure!(
        !directories.iter().any(|directory| directory.exists()),
        "{directories:?} is left"
    );
    ensure!(environments(&mark).is_empty(), "a process of it is left");
    Ok(())
}

/// Everything of a kind of ours, or that config/ may hold, in the cluster.
async fn inventory(cluster: &LocalCluster) -> Result<BTreeSet<String>> {
    let kinds = "namespaces,customresourcedefinitions,mutatingwebhookconfigurations,\
        validatingwebhookconfigurations,clusterroles,clusterrolebindings,roles,rolebindings,\
        serviceaccounts,secrets,configmaps,services,deployments,poddisruptionbudgets,priorityclasses";
    let columns = "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name";
    let get = [
        "get",
        kinds,
        "--all-namespaces",
        "--no-headers",
        "-o",
        columns,
    ];
    Ok(cluster
        .kubectl(&get)
        .await?
        .lines()
        .map(str::to_owned)
        .collect())
}

fn demo_on<'a>(kubeconfig: &'a Path, more: &[&'a str]) -> Result<Vec<&'a str>> {
    let kubeconfig = kubeconfig
        .to_str()
        .context("the path of a kubeconfig is text")?;
    Ok(["--context", "local", "--kubeconfig", kubeconfig]
        .iter()
        .chain(more)
        .copied()
        .collect())
}

#[tokio::test]
async fn a_cluster_of_the_users_is_left_as_it_was() -> Result<()> {
    let Some(cluster) = start_or_skip(Settings::default()).await? else {
        return Ok(());
    };
    let before = inventory(&cluster).await?;
    let as_before = async |when: &str| {
        let after = inventory(&cluster).await?;
        let differences: Vec<_> = before.symmetric_difference(&after).collect();
        ensure!(differences.is_empty(), "{when}: {differences:#?}");
        Ok(())
    };

    let run = Run::start("context-interrupted", &demo_on(cluster.kubeconfig(), &[])?)?;
    let (status, directories) = run.interrupt("Where each value came from").await?;
    ensure!(status == Some(130), "{status:?}");
    ensure!(
        !directories.iter().any(|directory| directory.exists()),
        "{directories:?} is left"
    );
    as_before("after an interrupted run").await?;

    let run = Run::start("context", &demo_on(cluster.kubeconfig(), &["--verbose"])?)?;
    let mark = run.mark.clone();
    let output = run.end().await?;
    ensure!(
        output.status.code() == Some(0),
        "{}: {}",
        output.status,
        both(&output)
    );
    let said = text(&output.stdout);
    for expected in [
        "Context local, server https://127.0.0.1:",
        " -n opensandbox-demo apply -f examples/minimal-pool.yaml",
        "'s/namespace: default/namespace: opensandbox-demo/'",
        "✓ every step held",
    ] {
        ensure!(said.contains(expected), "{expected:?} is not in\n{said}");
    }
    ensure!(environments(&mark).is_empty(), "a process of it is left");
    as_before("after a whole run").await?;

    let nobody = cluster.kubeconfig_for("somebody", &[])?;
    let output = Run::start("refused", &demo_on(&nobody, &[])?)?
        .end()
        .await?;
    ensure!(
        output.status.code() == Some(1),
        "{}: {}",
        output.status,
        both(&output)
    );
    let reason = "this user may not create customresourcedefinitions.apiextensions.k8s.io in local";
    ensure!(text(&output.stdout).contains(reason), "{}", both(&output));
    as_before("after a refusal").await?;

    // An installation that does not do what the demo shows.
    let settings = installation::Settings {
        args: vec!["--injection-default=disabled".to_owned()],
        ..installation::Settings::default()
    };
    let _installation = Installation::install(&cluster, settings).await?;
    let installed = inventory(&cluster).await?;
    let run = Run::start("mismatch", &demo_on(cluster.kubeconfig(), &[])?)?;
    let output = run.end().await?;
    ensure!(
        output.status.code() == Some(1),
        "{}: {}",
        output.status,
        both(&output)
    );
    let said = text(&output.stdout);
    for expected in [
        "✓ OpenSandbox is installed there, and used as it is",
        "✗ containers are sandbox and task-executor",
        r#"expected: ["sandbox", "task-executor"]"#,
        r#"found:    ["sandbox"]"#,
    ] {
        ensure!(said.contains(expected), "{expected:?} is not in\n{said}");
    }
    ensure!(
        installed == inventory(&cluster).await?,
        "an installation was changed"
    );
    Ok(())
}
