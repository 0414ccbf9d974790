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
mod machine;
mod network;
pub(crate) mod packages;
pub(crate) mod space;
mod starting;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Node as NodeObject, ServiceAccount};
use kube::Api;
use tokio::process::Command;
use tokio::sync::{Mutex, OnceCell};

pub(crate) use self::components::PAUSE_IMAGE;
pub use self::packages::Unavailable;

use self::components::Site;
use self::network::Network;
use self::space::Space;
use self::starting::Starting;
use crate::cluster::{self, TestNamespace};
use crate::kubernetes;
use crate::process::Program;
use crate::wait::{self, Probe};
use crate::{Guard, LocalCluster, Settings, images};

/// Name of the node's object.
pub const NODE_NAME: &str = "node";
/// Each program works within this, or says why not.
const START_BOUND: Duration = Duration::from_mins(1);
/// The kubelet and the controllers agree on the node within this.
const READY_BOUND: Duration = Duration::from_mins(2);

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
            machine::check_rights()?;
            packages::ensure(&packages::NODE)?;
            Ok::<_, anyhow::Error>(kubernetes::ensure_node_binaries()?)
        })
        .await??;
        let pause = tokio::task::spawn_blocking(images::pause).await??;

        let guard = Guard::start_in(machine::base_directory()?).await?;
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
            let socket = self.directory.join("containerd.sock");
            import(&socket, image).await?;
            if let Some(tree) = image.tree() {
                self.substitute(&socket, image.layer(), tree).await?;
            }
            images.insert(image.name().to_owned());
        }
        Ok(())
    }

    /// Puts files in the place of those of a layer that was unpacked, in the node's mount namespace.
    async fn substitute(&self, socket: &Path, layer: &str, tree: &Path) -> Result<()> {
        // A view of one layer is a bind mount of it, which says where it is.
        let view = "substitute";
        let mount = wait::until("a view of a layer", START_BOUND, async || {
            // Nothing refers to a view, so containerd may remove it at once.
            let seen = async {
                snapshots(socket, &["view", view, layer]).await?;
                snapshots(socket, &["mounts", "/", view]).await
            };
            let seen = seen.await;
            let _removed = snapshots(socket, &["remove", view]).await;
            Ok(match seen {
                Ok(mount) => Probe::Done(mount),
                Err(error) => Probe::not_yet(format!("{error:#}")),
            })
        })
        .await?;
        let place = mount.split_whitespace().find(|word| word.starts_with('/'));
        let place = place.with_context(|| format!("no place of the layer in {mount:?}"))?;
        let tree = tree.to_str().context("the path of a tree is text")?;
        self.run("mount", &["--bind", tree, place]).await?;
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

    /// Gives an image that the node has another name, so that a manifest can be applied as it is written
    /// where its image cannot be had.
    ///
    /// # Errors
    /// There is no such image.
    pub async fn alias(&self, image: &str, name: &str) -> Result<()> {
        let mut command = ctr(&self.directory.join("containerd.sock"))?;
        command.args(["images", "tag", "--force", image, name]);
        output_of(command).await?;
        Ok(())
    }

    /// A fresh directory at the same path on this machine and in the node, so that what pods write into it
    /// by a `hostPath` outlives them and is read here. It is deleted with the node.
    ///
    /// # Errors
    /// There is one of this name already.
    pub fn shared_directory(&self, name: &str) -> Result<PathBuf> {
        let directory = self.directory.join("shared").join(name);
        std::fs::create_dir_all(self.directory.join("shared"))?;
        std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(directory)
    }

    /// Lets the next pod have this address: they are given in turn, and this sets who was the last.
    /// `false` while some pod has it.
    ///
    /// # Errors
    /// No pod was given an address yet.
    pub fn give_next(&self, address: Ipv4Addr) -> Result<bool> {
        let network = self.directory.join(components::ADDRESSES);
        let network = network.join(components::POD_NETWORK);
        if network.join(address.to_string()).exists() {
            return Ok(false);
        }
        let before = Ipv4Addr::from(u32::from(address).saturating_sub(1));
        let last = network.join("last_reserved_ip.0");
        ensure!(last.is_file(), "there is no {}", last.display());
        std::fs::write(&last, before.to_string())
            .with_context(|| format!("write {}", last.display()))?;
        Ok(true)
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

async fn import(socket: &Path, image: &images::Image) -> Result<()> {
    let mut command = ctr(socket)?;
    command.args(["images", "import"]).arg(image.archive());
    output_of(command)
        .await
        .with_context(|| format!("import the image {}", image.name()))?;
    Ok(())
}

async fn snapshots(socket: &Path, args: &[&str]) -> Result<String> {
    let mut command = ctr(socket)?;
    command.arg("snapshots").args(args);
    output_of(command).await
}

fn ctr(socket: &Path) -> Result<Command> {
    let mut command = Command::new(packages::path_of("ctr")?);
    command
        .arg("--address")
        .arg(socket)
        // Where the kubelet's are.
        .args(["--namespace", "k8s.io"]);
    Ok(command)
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
