//! The operator on a local cluster: the real program, logged in as its ServiceAccount, as its pod would.
//!
//! config/default has to be applied before (see [`installation`](crate::installation)): the account and
//! its rights are those that are shipped. Pods' addresses are reached from this machine, so the program
//! talks to executors as it would from a pod.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::administrator::Administrator;
use crate::component::free_ports;
use crate::http;
use crate::installation::NAMESPACE;
use crate::process::{Launch, Program};
use crate::programs;

/// Name of the Deployment and of its ServiceAccount.
pub const NAME: &str = "opensandbox-operator";
/// Until the caches of a started program are synced.
const READY: Duration = Duration::from_secs(30);
/// From SIGTERM to the end.
const END: Duration = Duration::from_secs(30);

/// One running replica. Dropping it stops it.
#[derive(Debug)]
pub struct Operator {
    /// The process.
    pub program: Program,
    /// Its plain port on 127.0.0.1: /healthz, /readyz, /metrics.
    pub port: u16,
    launch: Launch,
}

impl Operator {
    /// Starts a replica, not necessarily the leader. Not yet ready when this returns.
    ///
    /// # Errors
    /// It cannot be built or started, or there is no ServiceAccount.
    pub async fn start(administrator: Administrator<'_>, args: &[&str]) -> Result<Self> {
        let program = tokio::task::spawn_blocking(programs::operator).await??;
        Self::start_program(administrator, program, args).await
    }

    /// [`Self::start`] with a program of the caller's.
    ///
    /// # Errors
    /// It cannot be started, or there is no ServiceAccount.
    pub async fn start_program(
        administrator: Administrator<'_>,
        program: PathBuf,
        args: &[&str],
    ) -> Result<Self> {
        let kubeconfig = administrator
            .service_account_kubeconfig(NAMESPACE, NAME)
            .await?;
        let [port] = free_ports()?;
        let launch = Launch::new("operator", program)
            .args([
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--metrics-bind-address=127.0.0.1:{port}"),
                "--log-format=json".to_owned(),
            ])
            .args(args.iter().copied())
            .env("POD_NAMESPACE", NAMESPACE);
        Ok(Self {
            program: administrator.guard().run(launch.clone()).await?,
            port,
            launch,
        })
    }

    /// Starts it again as it was started before, after it has ended.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn restart(&mut self, administrator: Administrator<'_>) -> Result<()> {
        self.program = administrator.guard().run(self.launch.clone()).await?;
        Ok(())
    }

    /// A GET on the plain port: status and body.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let (status, body) =
            http::get(&format!("http://127.0.0.1:{}{path}", self.port), None).await?;
        Ok((status.as_u16(), body))
    }

    /// Its metrics, as text.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Result<String> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answers with {status}: {text}");
        Ok(text)
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// It does not in time; the error holds what it lacks and its log.
    pub async fn ready(&self) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/readyz", self.port);
        self.program
            .wait_for_ok(&url, None, READY)
            .await
            .with_context(|| self.program.log().unwrap_or_default())
    }

    /// Ends it as Kubernetes does, and waits for its end.
    ///
    /// # Errors
    /// It does not end, or not with 0.
    pub async fn stop(&self) -> Result<()> {
        self.program.signal(Signal::SIGTERM)?;
        let exit = self.program.wait_for_exit(END).await?;
        ensure!(exit.code == Some(0), "the operator ended with {exit}");
        Ok(())
    }
}
