//! A real node: on top of a [`LocalCluster`], the scheduler, the controllers, containerd, a kubelet
//! and kube-proxy, so that pods run.
//!
//! The node lives in namespaces of its own (see `space.rs`), is connected to the machine by one link
//! (`network.rs`), and its pods have one control group above them (`control_group.rs`). All of that,
//! with every process, mount, bridge and rule of a firewall, ends with the guard, and with the guard's
//! death too. It needs root, and packages that are installed if they can be (`packages.rs`).
//!
//! Process ids: those that tests see are the machine's. Files: the node sees those of the machine,
//! and what it writes below `/var` and `/run` is its own.

mod components;
mod control_group;
mod network;
pub(crate) mod packages;
pub(crate) mod space;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Node as NodeObject, ServiceAccount};
use kube::Api;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::{Mutex, OnceCell};

pub(crate) use self::components::PAUSE_IMAGE;
pub use self::packages::Unavailable;

use self::components::{KUBE_PROXY_HEALTH_PORT, KUBELET_HEALTH_PORT, ServerFiles, Site};
use self::network::Network;
use self::space::Space;
use crate::cluster::{self, TestNamespace};
use crate::component::free_ports;
use crate::credentials::write_private;
use crate::kubernetes;
use crate::process::{Launch, Program};
use crate::wait::{self, Probe};
use crate::{Guard, LocalCluster, Settings, images};

/// Name of the node's object.
pub const NODE_NAME: &str = "node";
/// Each program works within this, or says why not.
const START_BOUND: Duration = Duration::from_mins(1);
/// The kubelet and the controllers agree on the node within this.
const READY_BOUND: Duration = Duration::from_mins(2);
/// Where the node's directory is, if not with other temporary files.
const BASES: [&str; 1] = ["/dev/shm"];

/// The node that the tests of this process share, started by the first that asks. It ends with the
/// process. `None`: no node can be had on this machine, and that was said loudly; the test is to
/// return.
///
/// # Errors
/// The node does not start; or none can be had, and `OPENSANDBOX_REQUIRE_CLUSTER` is `1`.
pub async fn shared() -> Result<Option<Arc<Node>>> {
    static SHARED: OnceCell<Option<Arc<Node>>> = OnceCell::const_new();
    let shared = SHARED.get_or_try_init(async || {
        let node = Box::pin(start_or_skip(Settings::default())).await?;
        Ok::<_, anyhow::Error>(node.map(Arc::new))
    });
    Ok(shared.await?.clone())
}

/// [`Node::start`] for tests: `None` where no node can be had, as in [`shared`].
///
/// # Errors
/// The node does not start; or none can be had, and `OPENSANDBOX_REQUIRE_CLUSTER` is `1`.
pub async fn start_or_skip(settings: Settings) -> Result<Option<Node>> {
    match Box::pin(Node::start(settings)).await {
        Ok(node) => Ok(Some(node)),
        Err(error) if error.is::<Unavailable>() || error.is::<kubernetes::Unavailable>() => {
            cluster::skip(error)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A running cluster with one node. Dropping it stops everything and leaves nothing behind.
#[derive(Debug)]
pub struct Node {
    // First, since its guard stops all in the right order; what is dropped later finds it done.
    cluster: LocalCluster,
    space: Space,
    _programs: Vec<Program>,
    network: Network,
    directory: PathBuf,
    /// Names of the images that are there.
    images: Mutex<HashSet<String>>,
}

impl Node {
    /// Starts a cluster with a node, and waits until pods can be made. The settings' address is the
    /// node's to choose.
    ///
    /// # Errors
    /// [`Unavailable`] or [`kubernetes::Unavailable`] if this machine lacks something; else what
    /// failed, with the end of its log.
    pub async fn start(settings: Settings) -> Result<Self> {
        let binaries = tokio::task::spawn_blocking(|| {
            check_user()?;
            packages::ensure(&packages::NODE)?;
            Ok::<_, anyhow::Error>(kubernetes::ensure_node_binaries()?)
        })
        .await??;
        let pause = tokio::task::spawn_blocking(images::pause).await??;

        let guard = Guard::start_in(base_directory()?).await?;
        let directory = guard.directory().join("node");
        std::fs::create_dir(&directory)?;
        control_group::make(guard.control_group())?;
        let space = Space::make(&guard, &directory).await?;
        let network = network::connect(&space, &packages::path_of("ip")?).await?;
        let settings = Settings {
            address: Some(network.machine()),
            ..settings
        };
        let cluster = LocalCluster::start_under(guard, binaries, settings).await?;

        let cni_plugins = packages::path_of("host-local")?;
        let control_group = cluster.guard().control_group().to_owned();
        let site = Site {
            directory: &directory,
            network,
            control_group: &control_group,
            cni_plugins: cni_plugins.parent().context("a file is in a directory")?,
            authority: cluster.pki().authority(),
        };
        let starting = Starting {
            cluster: &cluster,
            space: &space,
            site: &site,
        };
        let (control_plane, workers) =
            tokio::try_join!(starting.control_plane(), starting.workers(&pause))?;
        let node = Self {
            space,
            _programs: control_plane.into_iter().chain(workers).collect(),
            network,
            images: Mutex::new(HashSet::from([pause.name().to_owned()])),
            directory: directory.clone(),
            cluster,
        };
        node.wait_ready().await?;
        Ok(node)
    }

    /// The cluster that the node belongs to.
    pub fn cluster(&self) -> &LocalCluster {
        &self.cluster
    }

    /// The node's address; pods' addresses are reached from this machine too.
    pub fn address(&self) -> Ipv4Addr {
        self.network.node()
    }

    /// The machine's address as pods see it, for what a test serves to them.
    pub fn machine_address(&self) -> Ipv4Addr {
        self.network.machine()
    }

    /// Name of the network interface that connects this machine with the node.
    pub fn link(&self) -> String {
        self.network.link()
    }

    /// Process id of the first process of the node, which all its processes and those of its pods
    /// descend from or end with.
    pub fn init_pid(&self) -> i32 {
        self.space.init()
    }

    /// Runs a program in the node's namespaces (network, processes, mounts) and returns what it
    /// printed.
    ///
    /// # Errors
    /// It cannot be started, or failed; the error holds what it said.
    pub async fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let path = packages::find(program).with_context(|| format!("there is no {program}"))?;
        self.space.run(&path, args).await
    }

    /// Creates a namespace of its own for a test, and waits until pods can be made in it.
    ///
    /// # Errors
    /// The API server refused, or the controllers do nothing.
    pub async fn namespace(&self, prefix: &str) -> Result<TestNamespace> {
        let namespace = self.cluster.namespace(prefix, &[]).await?;
        account_exists(&namespace.api(), &namespace.api()).await?;
        Ok(namespace)
    }

    /// Makes an image known to the node, once per name.
    ///
    /// # Errors
    /// containerd refused it.
    pub async fn import(&self, image: &images::Image) -> Result<()> {
        // Held meanwhile, so that concurrent tests wait for one import instead of starting theirs.
        let mut images = self.images.lock().await;
        if !images.contains(image.name()) {
            import(&self.directory.join("containerd.sock"), image).await?;
            images.insert(image.name().to_owned());
        }
        Ok(())
    }

    /// Makes one of the images that [`images`] names and makes, and imports it. Another name is left
    /// to whoever imported it.
    ///
    /// # Errors
    /// It cannot be made here.
    pub async fn import_known(&self, name: &str) -> Result<()> {
        let make = match name {
            images::SANDBOX => images::sandbox,
            images::EXECUTOR => images::executor,
            images::TOOL => images::tool,
            _ => return Ok(()),
        };
        if self.images.lock().await.contains(name) {
            return Ok(());
        }
        self.import(&tokio::task::spawn_blocking(make).await??)
            .await
    }

    async fn wait_ready(&self) -> Result<()> {
        let client = self.cluster.client().await?;
        let nodes: Api<NodeObject> = Api::all(client.clone());
        wait::until("the node to be ready", READY_BOUND, async || {
            Ok(match nodes.get_opt(NODE_NAME).await? {
                Some(node) => readiness(&node),
                None => Probe::not_yet("the kubelet has not registered it"),
            })
        })
        .await?;
        account_exists(
            &Api::namespaced(client.clone(), "default"),
            &Api::namespaced(client, "default"),
        )
        .await
    }
}

fn readiness(node: &NodeObject) -> Probe<()> {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let ready = conditions
        .unwrap_or_default()
        .iter()
        .find(|condition| condition.type_ == "Ready");
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    match ready {
        Some(ready) if ready.status != "True" => {
            Probe::not_yet(ready.message.as_deref().unwrap_or("not ready"))
        }
        None => Probe::not_yet("it has no condition Ready"),
        Some(_) => match taints.unwrap_or_default().first() {
            Some(taint) => Probe::not_yet(format!("it has the taint {}", taint.key)),
            None => Probe::Done(()),
        },
    }
}

/// What pods need to get a token, both made by controllers.
async fn account_exists(
    accounts: &Api<ServiceAccount>,
    config_maps: &Api<ConfigMap>,
) -> Result<()> {
    wait::until("the service account default", START_BOUND, async || {
        let account = accounts.get_opt("default").await?.is_some();
        let authority = config_maps.get_opt("kube-root-ca.crt").await?.is_some();
        Ok(if account && authority {
            Probe::Done(())
        } else {
            Probe::not_yet("the controllers have not made it and the authority's ConfigMap")
        })
    })
    .await
}

/// What is needed while programs are started.
struct Starting<'a> {
    cluster: &'a LocalCluster,
    space: &'a Space,
    site: &'a Site<'a>,
}

impl Starting<'_> {
    async fn control_plane(&self) -> Result<Vec<Program>> {
        let [manager_port, scheduler_port] = free_ports()?;
        let start = async |name: &str, port: u16, args: Vec<String>| {
            let program = self.cluster.binaries().path(name);
            let launch = Launch {
                rank: 100,
                ..Launch::new(name, program).args(args)
            };
            let program = self.cluster.guard().run(launch).await?;
            let url = format!("https://127.0.0.1:{port}/healthz");
            self.healthy(&program, &url).await?;
            Ok::<_, anyhow::Error>(program)
        };
        let name = "kube-controller-manager";
        let manager = self.site.controller_manager(
            &self.kubeconfig("system:kube-controller-manager", &[])?,
            &self.cluster.pki().key("service-accounts"),
            manager_port,
            &self.server(name, Ipv4Addr::LOCALHOST)?,
        );
        let manager = start(name, manager_port, manager);
        let name = "kube-scheduler";
        let scheduler = components::scheduler(
            &self.kubeconfig("system:kube-scheduler", &[])?,
            scheduler_port,
            &self.server(name, Ipv4Addr::LOCALHOST)?,
        );
        let scheduler = start(name, scheduler_port, scheduler);
        let (manager, scheduler) = tokio::try_join!(manager, scheduler)?;
        Ok(vec![manager, scheduler])
    }

    async fn workers(&self, pause: &images::Image) -> Result<Vec<Program>> {
        let site = self.site;
        let containerd = self.containerd().await?;
        import(&site.containerd_socket(), pause).await?;

        let node = site.network.node();
        let server = self.server("kubelet", node)?;
        let config = self.write("kubelet.json", &site.kubelet(&server))?;
        let user = format!("system:node:{NODE_NAME}");
        let args = site.kubelet_args(&config, &self.kubeconfig(&user, &["system:nodes"])?);
        let url = format!("http://{node}:{KUBELET_HEALTH_PORT}/healthz");
        let kubelet = self.inside("kubelet", args, url);

        let kubeconfig = self.kubeconfig("system:kube-proxy", &[])?;
        let config = self.write("kube-proxy.json", &site.kube_proxy(&kubeconfig))?;
        let args = vec![format!("--config={}", config.display())];
        // It is healthy once it knows its node, which the kubelet makes known.
        let url = format!("http://{node}:{KUBE_PROXY_HEALTH_PORT}/livez");
        let proxy = self.inside("kube-proxy", args, url);
        let (kubelet, proxy) = tokio::try_join!(kubelet, proxy)?;
        Ok(vec![containerd, kubelet, proxy])
    }

    async fn containerd(&self) -> Result<Program> {
        let site = self.site;
        std::fs::create_dir(site.cni_directory())?;
        let conflist = site.cni_directory().join("10-opensandbox.conflist");
        std::fs::write(conflist, serde_json::to_vec_pretty(&site.cni())?)?;
        let config = site.directory.join("containerd.toml");
        std::fs::write(&config, site.containerd()?)?;
        let launch = Launch::new("containerd", packages::path_of("containerd")?)
            .args([format!("--config={}", config.display())])
            // Of the plugins, only those that are told: those in PATH need not be there for it.
            .env("PATH", search_path());
        let program = self.cluster.guard().run(self.space.inside(launch)?).await?;
        let booted = |line: &str| line.contains("containerd successfully booted");
        program
            .wait_for_line("that it works", START_BOUND, booted)
            .await?;
        Ok(program)
    }

    async fn inside(&self, name: &str, args: Vec<String>, url: String) -> Result<Program> {
        let launch = Launch::new(name, self.cluster.binaries().path(name))
            .args(args)
            .env("PATH", search_path());
        let program = self.cluster.guard().run(self.space.inside(launch)?).await?;
        self.healthy(&program, &url).await?;
        Ok(program)
    }

    async fn healthy(&self, program: &Program, url: &str) -> Result<()> {
        let tls = Some(self.cluster.tls());
        let result = program.wait_for_ok(url, tls, START_BOUND).await;
        result.with_context(|| {
            let log = program.log().unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(20).collect();
            let tail = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            format!("{}; its log ends with:\n{tail}", program.name())
        })
    }

    fn kubeconfig(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        self.cluster.kubeconfig_for(user, groups)
    }

    fn server(&self, name: &str, address: Ipv4Addr) -> Result<ServerFiles> {
        let (pki, address) = (self.cluster.pki(), address.to_string());
        let identity = self.cluster.authority().server(name, &[&address])?;
        Ok(ServerFiles {
            certificate: write_private(pki.certificate(name), &identity.certificate)?,
            key: write_private(pki.key(name), &identity.key)?,
        })
    }

    fn write(&self, name: &str, config: &Value) -> Result<PathBuf> {
        let path = self.site.directory.join(name);
        std::fs::write(&path, serde_json::to_vec_pretty(config)?)?;
        Ok(path)
    }
}

/// `PATH` with the directories of administrators, where runc and iptables are.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

async fn import(socket: &Path, image: &images::Image) -> Result<()> {
    let mut command = Command::new(packages::path_of("ctr")?);
    command
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(image.archive());
    output_of(command)
        .await
        .with_context(|| format!("import the image {}", image.name()))?;
    Ok(())
}

fn check_user() -> Result<(), Unavailable> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Unavailable::new(
            "only root can run one.\nRemedies: run the tests as root, such as in a container or a \
             virtual machine of their own.",
        ))
    }
}

/// A directory that containers can have their file systems in: overlays of overlays are refused. On a
/// disk if possible, since the memory of a container includes what it writes to memory.
fn base_directory() -> Result<PathBuf> {
    let temporary = std::env::temp_dir();
    let candidates = std::iter::once(temporary).chain(BASES.map(PathBuf::from));
    // What is below these is another directory to the node.
    let candidates: Vec<_> = candidates
        .filter(|path| !["/var", "/run"].iter().any(|own| path.starts_with(own)))
        .filter_map(|path| {
            let kind = statfs(&path).ok()?.filesystem_type();
            (kind != OVERLAYFS_SUPER_MAGIC).then_some((kind == TMPFS_MAGIC, path))
        })
        .collect();
    let best = candidates.into_iter().min_by_key(|(memory, _)| *memory);
    let (_, path) = best.ok_or_else(|| {
        Unavailable::new(
            "containers need a directory that is not on an overlay.\n\
             Remedies: set TMPDIR to one; in a container, to a volume.",
        )
    })?;
    Ok(path)
}

/// Runs a program to its end, and returns what it printed.
async fn output_of(mut command: Command) -> Result<String> {
    let output = command
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("start {}", command.as_std().get_program().display()))?;
    ensure!(
        output.status.success(),
        "{:?}: {}: {}",
        command.as_std(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
