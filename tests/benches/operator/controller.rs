//! The program that is measured, as a process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_tests::LocalCluster;
use opensandbox_tests::component::free_ports;
use opensandbox_tests::process::{Launch, Program};

/// Until it serves.
const START: Duration = Duration::from_mins(2);
/// Clock ticks a second, `sysconf(_SC_CLK_TCK)` on Linux everywhere.
const TICKS: f64 = 100.0;

/// How a program wants to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our operator.
    Ours,
    /// A controller made with controller-runtime.
    ControllerRuntime,
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
}

/// It, running.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) program: Program,
    launch: Launch,
    health: String,
}

impl Controller {
    /// Starts it as administrator, so that permissions make no difference, and without leader election.
    pub(crate) async fn start(cluster: &LocalCluster, contender: &Contender) -> Result<Self> {
        let [health, metrics] = free_ports()?;
        let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig().display());
        let launch = Launch::new(contender.name, &contender.program)
            .env("POD_NAMESPACE", "opensandbox-system");
        let (launch, health) = match contender.kind {
            Kind::Ours => (
                launch.args([
                    kubeconfig,
                    "--leader-elect=false".to_owned(),
                    format!("--metrics-bind-address=127.0.0.1:{health}"),
                ]),
                format!("http://127.0.0.1:{health}/readyz"),
            ),
            Kind::ControllerRuntime => (
                launch.args([
                    kubeconfig,
                    format!("--health-probe-bind-address=127.0.0.1:{health}"),
                    format!("--metrics-bind-address=127.0.0.1:{metrics}"),
                    "--metrics-secure=false".to_owned(),
                ]),
                format!("http://127.0.0.1:{health}/readyz"),
            ),
        };
        let program = cluster.guard().run(launch.clone()).await?;
        let controller = Self {
            program,
            launch,
            health,
        };
        controller.ready().await?;
        Ok(controller)
    }

    async fn ready(&self) -> Result<()> {
        self.program
            .wait_for_ok(&self.health, None, START)
            .await
            .with_context(|| self.program.log().unwrap_or_default())
    }

    /// Kills it and starts it anew; does not wait until it is ready.
    pub(crate) async fn crash(&mut self, cluster: &LocalCluster) -> Result<()> {
        self.program.kill().await?;
        self.program = cluster.guard().run(self.launch.clone()).await?;
        Ok(())
    }

    /// Resident memory, in MiB.
    pub(crate) fn memory(&self) -> Result<f64> {
        let bytes = u32::try_from(self.program.rss_bytes()? / 1024)?;
        Ok(f64::from(bytes) / 1024.0)
    }

    /// Processor time so far.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.program.pid()))?;
        let (_, fields) = stat.rsplit_once(')').context("a name in brackets")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut next = || -> Result<u32> { Ok(fields.next().context("a time")?.parse()?) };
        let ticks = next()? + next()?;
        Ok(Duration::from_secs_f64(f64::from(ticks) / TICKS))
    }
}
