//! Who installs and tries things on a cluster, with the real kubectl: the administrator of a local
//! cluster, or the user of a context of some kubeconfig. Here one runs kubectl as them, gets a login
//! for a service account, and starts programs beside the cluster.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::cluster::LocalCluster;
use crate::credentials::write_private;
use crate::guard::Guard;

/// Life of a token: longer than anybody keeps a demo.
const TOKEN_LIFE: &str = "--duration=24h";

/// A user of a cluster. Cheap to clone.
#[derive(Clone, Copy, Debug)]
pub struct Administrator<'a> {
    guard: &'a Guard,
    who: Who<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Who<'a> {
    Local(&'a LocalCluster),
    User {
        kubectl: &'a Path,
        flags: &'a [OsString],
    },
}

impl<'a> Administrator<'a> {
    /// The administrator of a local cluster.
    pub fn of(cluster: &'a LocalCluster) -> Self {
        Self {
            guard: cluster.guard(),
            who: Who::Local(cluster),
        }
    }

    /// Somebody of a kubeconfig: `flags` choose it and its context, and precede all other arguments.
    pub fn user(guard: &'a Guard, kubectl: &'a Path, flags: &'a [OsString]) -> Self {
        Self {
            guard,
            who: Who::User { kubectl, flags },
        }
    }

    /// Runs programs beside the cluster.
    pub fn guard(&self) -> &'a Guard {
        self.guard
    }

    /// kubectl as this user; further settings are the caller's.
    pub fn command(&self) -> Command {
        match self.who {
            Who::Local(cluster) => cluster.kubectl_command(cluster.kubeconfig()),
            Who::User { kubectl, flags } => {
                let mut command = Command::new(kubectl);
                command
                    .args(flags)
                    .env("KUBECACHEDIR", self.guard.directory().join("kubectl-cache"))
                    .env("KUBERC", "off")
                    .stdin(Stdio::null())
                    .kill_on_drop(true);
                command
            }
        }
    }

    /// Runs kubectl to its end, whatever it is.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn output(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = self.command();
        command.args(args);
        run(command, input).await
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// It failed; the error holds what it said.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        printed(args, &self.output(args, None).await?)
    }

    /// [`Self::kubectl`] with standard input, for `apply -f -`.
    ///
    /// # Errors
    /// It failed; the error holds what it said.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        printed(args, &self.output(args, Some(input)).await?)
    }

    /// Writes a kubeconfig with a token for a service account that exists: what its pods would log
    /// in with.
    ///
    /// # Errors
    /// There is no such service account.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self
            .kubectl(&["create", "token", name, "-n", namespace, TOKEN_LIFE])
            .await?;
        let view = self.kubectl(&[
            "config",
            "view",
            "--minify",
            "--flatten",
            "--raw",
            "-o",
            "json",
        ]);
        let view: Value = serde_json::from_str(&view.await?)?;
        let cluster = view
            .pointer("/clusters/0/cluster")
            .context("a context names a cluster")?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token.trim()}}],
            "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": name}}],
            "current-context": "context",
        });
        let path = self
            .guard
            .directory()
            .join(format!("{namespace}-{name}.kubeconfig"));
        write_private(path, &config.to_string())
    }
}

/// Runs a command to its end; its standard input is `input`, or empty.
///
/// # Errors
/// It cannot be started.
pub(crate) async fn run(mut command: Command, input: Option<&str>) -> Result<Output> {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let program = PathBuf::from(command.as_std().get_program());
    let mut child = command
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let stdin = child.stdin.take();
    // At the same time, since a program may print before it has read all.
    let write = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // It may fail without reading; what it says then is better than a broken pipe.
            stdin.write_all(input.as_bytes()).await.ok();
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    Ok(output?)
}

fn printed(args: &[&str], output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        args.join(" "),
        said.trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
