//! A real kube-apiserver with its etcd, for tests and the demo: started from nothing in a few
//! seconds, stopped with the process that started it. Without controllers: a namespace has no
//! service account `default`, one that is deleted stays Terminating, owner references delete
//! nothing, and the aggregated roles (`view`, `edit`, `admin`) allow nothing.
//!
//! Here is how it is started, stopped and restarted; `access.rs` is how one gets at it.
//!
//! Tests of one process share [`shared`] and keep apart by namespaces; a test that stops the API
//! server or needs special arguments starts its own with [`LocalCluster::start`].

mod access;
mod pki;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{Mutex, OnceCell};

pub use self::access::{TestNamespace, client_of};

use crate::component::{self, Audit, Component, KUBE_API_SERVER, Layout, Pki, Ports};
use crate::credentials::{Authority, Login, kubeconfig, write_private};
use crate::guard::Guard;
use crate::http::Tls;
use crate::kubernetes::{self, Binaries, Unavailable, VERSION};
use crate::process::{Launch, Program};
use crate::rights;
use crate::wait::{self, Probe};

/// Set to `1` where a test must not be skipped.
const REQUIRE: &str = "OPENSANDBOX_REQUIRE_CLUSTER";
/// How often a start is tried again because somebody took a port that was free.
const ATTEMPTS: u32 = 5;
/// Group of those who may do everything.
const MASTERS: &str = "system:masters";
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
"omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}
"#;

/// What may differ from one cluster to another.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Writes who asked for what to [`LocalCluster::audit_log`].
    pub audit: bool,
    /// Where the API server listens, if not on 127.0.0.1.
    pub address: Option<Ipv4Addr>,
    /// Arguments for the API server, after ours, so that they win.
    pub api_server_args: Vec<String>,
}

/// The cluster that the tests of this process share, started by the first that asks. It ends with
/// the process. `None`: no Kubernetes can be had on this machine, and that was said loudly; the test
/// is to return.
///
/// # Errors
/// The cluster does not start; or none can be had, and `OPENSANDBOX_REQUIRE_CLUSTER` is `1`.
pub async fn shared() -> Result<Option<Arc<LocalCluster>>> {
    static SHARED: OnceCell<Option<Arc<LocalCluster>>> = OnceCell::const_new();
    let shared = SHARED.get_or_try_init(async || {
        Ok::<_, anyhow::Error>(start_or_skip(Settings::default()).await?.map(Arc::new))
    });
    Ok(shared.await?.clone())
}

/// [`LocalCluster::start`] for tests: `None` where no Kubernetes can be had, as in [`shared`].
///
/// # Errors
/// The cluster does not start; or none can be had, and `OPENSANDBOX_REQUIRE_CLUSTER` is `1`.
pub async fn start_or_skip(settings: Settings) -> Result<Option<LocalCluster>> {
    match LocalCluster::start(settings).await {
        Ok(cluster) => Ok(Some(cluster)),
        Err(error) if error.is::<Unavailable>() => {
            skip(error)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Says loudly that a test is skipped because of this.
///
/// # Errors
/// The same error, where `OPENSANDBOX_REQUIRE_CLUSTER` is `1`.
pub(crate) fn skip(error: anyhow::Error) -> Result<()> {
    if std::env::var_os(REQUIRE).is_some_and(|value| value == "1") {
        return Err(error);
    }
    let line = "=".repeat(80);
    kubernetes::say(&format!("{line}\nSKIPPED, NOT PASSED: {error}\n{line}"));
    Ok(())
}

/// A running cluster. Dropping it stops it and deletes its directory.
#[derive(Debug)]
pub struct LocalCluster {
    // First, since it is dropped first: it stops all in the right order, and what is dropped after
    // it has nothing left to do.
    guard: Guard,
    running: Mutex<Vec<Running>>,
    binaries: Binaries,
    authority: Authority,
    authority_pem: String,
    pki: Pki,
    server: String,
    tls: Tls,
    kubeconfig: PathBuf,
    audit_log: Option<PathBuf>,
    kubeconfigs: AtomicU64,
}

#[derive(Debug)]
struct Running {
    component: Component,
    launch: Launch,
    program: Option<Program>,
}

/// What the API server logs, and where: what a test asks for; or, where a run of the tests is to be looked at
/// as a whole, what that needs, in the directory that outlives this cluster.
fn audit(guard: &Guard, settings: &Settings) -> Result<Option<Audit>> {
    let directory = std::env::var_os(rights::DIRECTORY).map(PathBuf::from);
    let policy = match (&directory, settings.audit) {
        (_, true) => AUDIT_POLICY,
        (Some(_), false) => rights::POLICY,
        (None, false) => return Ok(None),
    };
    let name = guard.directory().file_name().unwrap_or_default();
    Ok(Some(Audit {
        policy: write_private(guard.directory().join("audit-policy.json"), policy)?,
        log: directory.map_or_else(
            || guard.directory().join("audit.log"),
            |directory| directory.join(name).with_extension("log"),
        ),
    }))
}

impl LocalCluster {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// [`Unavailable`] if the programs cannot be had; else what failed, with the end of its log.
    pub async fn start(settings: Settings) -> Result<Self> {
        let binaries = tokio::task::spawn_blocking(kubernetes::ensure_binaries).await??;
        Self::start_under(Guard::start().await?, binaries, settings).await
    }

    /// [`Self::start`], with these programs and under a guard that may run others already.
    ///
    /// # Errors
    /// What failed, with the end of its log.
    pub(crate) async fn start_under(
        guard: Guard,
        binaries: Binaries,
        settings: Settings,
    ) -> Result<Self> {
        let address = settings.address.unwrap_or(Ipv4Addr::LOCALHOST);
        let authority = Authority::generate()?;
        let authority_pem = authority.pem();
        let pki = pki::write(&guard.directory().join("pki"), &authority, address)?;
        let audit = audit(&guard, &settings)?;
        let audit_log = audit.as_ref().map(|audit| audit.log.clone());
        let administrator = authority.user("administrator", &[MASTERS])?;
        let identity = (
            administrator.certificate.as_str(),
            administrator.key.as_str(),
        );
        let tls = Tls::new(&authority_pem, Some(identity))?;

        let mut layout = Layout {
            etcd_directory: PathBuf::new(),
            pki,
            address,
            ports: Ports::free()?,
            audit,
            api_server_args: settings.api_server_args,
        };
        let mut attempt = 1;
        let running = loop {
            layout.etcd_directory = guard.directory().join(format!("etcd-{attempt}"));
            let mut running = Vec::new();
            match start_all(&guard, &binaries, &tls, &layout, &mut running).await {
                Ok(()) => break running,
                Err(error) if attempt < ATTEMPTS && component::is_clash(&format!("{error:#}")) => {
                    stop_all(&running).await?;
                    attempt += 1;
                    layout.ports = Ports::free()?;
                }
                Err(error) => return Err(error.context("start a local cluster")),
            }
        };

        let server = format!("https://{address}:{}", layout.ports.api_server);
        let login = Login::Certificate(&administrator);
        let text = kubeconfig(&server, &authority_pem, "administrator", login)?;
        let path = guard.directory().join("administrator.kubeconfig");
        let cluster = Self {
            running: Mutex::new(running),
            binaries,
            authority,
            authority_pem,
            pki: layout.pki,
            server,
            tls,
            kubeconfig: write_private(path, &text)?,
            audit_log,
            kubeconfigs: AtomicU64::new(0),
            guard,
        };
        cluster.wait_ready(Duration::from_secs(30)).await?;
        Ok(cluster)
    }

    /// Kubeconfig of the administrator, readable by this user alone.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// URL of the API server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The cluster's authority, PEM.
    pub fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// The cluster's authority.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where the cluster's certificates and keys are.
    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The programs it is made of.
    pub(crate) fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Asks the API server as administrator, see [`http::get`](crate::http::get).
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Runs further programs, which are stopped before the cluster.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// One JSON event per line; there is one if the settings asked for it.
    pub fn audit_log(&self) -> Option<&Path> {
        self.audit_log.as_deref()
    }

    /// Waits until the API server is ready and has made the first namespaces.
    ///
    /// # Errors
    /// The bound passed.
    pub async fn wait_ready(&self, bound: Duration) -> Result<()> {
        wait::until("the API server to be ready", bound, async || {
            for path in ["/readyz", "/api/v1/namespaces/default"] {
                let url = format!("{}{path}", self.server);
                match crate::http::get(&url, Some(&self.tls)).await {
                    Ok((http::StatusCode::OK, _)) => {}
                    Ok((status, body)) => {
                        return Ok(Probe::not_yet(format!("{path}: {status}: {body}")));
                    }
                    Err(error) => return Ok(Probe::not_yet(format!("{error:#}"))),
                }
            }
            Ok(Probe::Done(()))
        })
        .await
    }

    /// Stops a component, by name, and waits for its end. Stopping one that is stopped is no error.
    ///
    /// # Errors
    /// There is no such component.
    pub async fn stop(&self, component: &str) -> Result<()> {
        let mut running = self.running.lock().await;
        if let Some(program) = find(&mut running, component)?.program.take() {
            program.stop().await?;
        }
        Ok(())
    }

    /// Ends a component by SIGKILL, as a crash would, and waits for its end.
    ///
    /// # Errors
    /// There is no such component, or it does not run.
    pub async fn kill(&self, component: &str) -> Result<()> {
        let mut running = self.running.lock().await;
        let program = find(&mut running, component)?.program.take();
        program
            .with_context(|| format!("{component} does not run"))?
            .kill()
            .await?;
        Ok(())
    }

    /// Starts a component that was stopped, where it was, with the data it had, and waits until it
    /// is healthy. Starting one that runs is no error.
    ///
    /// # Errors
    /// There is no such component, or it does not become healthy.
    pub async fn resume(&self, component: &str) -> Result<()> {
        let mut running = self.running.lock().await;
        let running = find(&mut running, component)?;
        if running
            .program
            .as_ref()
            .is_none_or(|program| program.exit().is_some())
        {
            let program = self.guard.run(running.launch.clone()).await?;
            healthy(&program, &running.component, &self.tls).await?;
            running.program = Some(program);
        }
        Ok(())
    }

    /// Stops the API server; etcd keeps the data.
    ///
    /// # Errors
    /// See [`Self::stop`].
    pub async fn stop_api_server(&self) -> Result<()> {
        self.stop(KUBE_API_SERVER).await
    }

    /// Starts the API server again, on the port it had.
    ///
    /// # Errors
    /// See [`Self::resume`].
    pub async fn start_api_server(&self) -> Result<()> {
        self.resume(KUBE_API_SERVER).await
    }

    /// Resident memory of each component that runs, in bytes.
    ///
    /// # Errors
    /// A component ended by itself.
    pub async fn rss_bytes(&self) -> Result<BTreeMap<&'static str, u64>> {
        let running = self.running.lock().await;
        let programs = running
            .iter()
            .filter_map(|running| Some((running.component.name, running.program.as_ref()?)));
        programs
            .map(|(name, program)| Ok((name, program.rss_bytes()?)))
            .collect()
    }

    /// Process ids of the components that run.
    pub async fn pids(&self) -> Vec<i32> {
        let running = self.running.lock().await;
        running
            .iter()
            .filter_map(|running| Some(running.program.as_ref()?.pid()))
            .collect()
    }
}

async fn start_all(
    guard: &Guard,
    binaries: &Binaries,
    tls: &Tls,
    layout: &Layout,
    running: &mut Vec<Running>,
) -> Result<()> {
    for (component, rank) in component::components(layout).into_iter().zip(1..) {
        let launch = Launch {
            rank,
            grace: component.grace,
            env: component.env.clone(),
            ..Launch::new(component.name, binaries.path(component.name))
                .args(component.args.clone())
        };
        let program = guard.run(launch.clone()).await?;
        let health = healthy(&program, &component, tls).await;
        running.push(Running {
            component,
            launch,
            program: Some(program),
        });
        health?;
    }
    Ok(())
}

async fn stop_all(running: &[Running]) -> Result<()> {
    for program in running
        .iter()
        .rev()
        .filter_map(|running| running.program.as_ref())
    {
        program.stop().await?;
    }
    Ok(())
}

async fn healthy(program: &Program, component: &Component, tls: &Tls) -> Result<()> {
    let Component {
        name,
        health_url,
        start_bound,
        ..
    } = component;
    match program
        .wait_for_ok(health_url, Some(tls), *start_bound)
        .await
    {
        // A clash is in the log some time before the end, and not in what a GET is answered.
        Err(error) if program.exit().is_none() => {
            let log = program.log().unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(20).collect();
            let tail = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            Err(error.context(format!("{name} {VERSION}; its log ends with:\n{tail}")))
        }
        result => result,
    }
}

fn find<'a>(running: &'a mut [Running], component: &str) -> Result<&'a mut Running> {
    running
        .iter_mut()
        .find(|running| running.component.name == component)
        .with_context(|| format!("there is no component {component}"))
}
