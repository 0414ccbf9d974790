//! When a node ends, whatever way, the machine is as it was before.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opensandbox_tests::pods::{Pod, Recipe};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Guard, Node, Settings, images, node};
use serde::{Deserialize, Serialize};

const BOUND: Duration = Duration::from_mins(1);
/// Tells this program, started again, to be the process that ends.
const VICTIM: &str = "OPENSANDBOX_TEST_NODE_VICTIM";
/// Precedes what the victim tells.
const TOLD: &str = "victim: ";
/// Links of nodes begin with this. Other nodes may start and end on this machine meanwhile.
const LINKS: &str = "osb-node";
/// Places that parts of a node write to elsewhere.
const PLACES: [&str; 9] = [
    "/etc/cni",
    "/run/containerd",
    "/run/netns",
    "/run/xtables.lock",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/pods",
];
/// Settings of the kernel that parts of a node change elsewhere.
const SETTINGS: [&str; 6] = [
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
];

/// One at a time: two cores cannot start many nodes at once.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What could be left of a node, by whatever name.
#[derive(Debug, Eq, PartialEq)]
struct Machine {
    mounts: BTreeSet<String>,
    interfaces: BTreeSet<String>,
    routes: BTreeSet<String>,
    rules: Vec<String>,
    settings: Vec<(String, Option<String>)>,
    places: Vec<(&'static str, bool)>,
}

impl Machine {
    fn look() -> Result<Self> {
        let lines = |path: &str| -> Result<BTreeSet<String>> {
            let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
            Ok(text.lines().map(str::to_owned).collect())
        };
        let ours = |text: &String| !text.starts_with(LINKS);
        let interfaces = fs::read_dir("/sys/class/net")?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut rules = Vec::new();
        for program in ["iptables-save", "ip6tables-save"] {
            let output = Command::new(program).output().context(program)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // Comments hold the time.
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            rules.extend(lines.map(str::to_owned));
        }
        Ok(Self {
            mounts: lines("/proc/self/mountinfo")?,
            interfaces: interfaces.filter(ours).collect(),
            routes: lines("/proc/net/route")?.into_iter().filter(ours).collect(),
            rules,
            settings: SETTINGS
                .iter()
                .map(|name| {
                    let path = Path::new("/proc/sys").join(name);
                    ((*name).to_owned(), fs::read_to_string(path).ok())
                })
                .collect(),
            places: PLACES
                .map(|place| (place, Path::new(place).exists()))
                .to_vec(),
        })
    }
}

impl Machine {
    /// Waits, since others may use the machine too, and change it for a moment.
    async fn wait_until_again(&self, when: &str) -> Result<()> {
        wait::until(
            &format!("the machine as before {when}"),
            BOUND,
            async || {
                let now = Self::look()?;
                Ok(if now == *self {
                    Probe::Done(())
                } else {
                    Probe::not_yet(format!("it was {self:#?}\nand is {now:#?}"))
                })
            },
        )
        .await
    }
}

/// What belongs to one node and nothing else.
#[derive(Debug, Deserialize, Serialize)]
struct Traces {
    guard: i32,
    directory: PathBuf,
    control_group: String,
    /// The link's name and number; another node may take the name.
    link: (String, String),
    /// Process ids and starts of all its processes, those of pods included.
    processes: Vec<(i32, String)>,
}

impl Traces {
    /// Of a node with a pod.
    fn of(node: &Node) -> Result<Self> {
        let guard = node.cluster().guard();
        let control_group = guard.control_group().to_owned();
        let link = node.link();
        let number = link_number(&link).context("the link is there")?;
        let mark = format!(
            "OPENSANDBOX_GUARD_DIRECTORY={}",
            guard.directory().display()
        );
        let all = fs::read_dir("/proc")?.flatten();
        let processes: Vec<_> = all
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
                let contains = |text: &[u8], part: &str| {
                    text.windows(part.len())
                        .any(|window| window == part.as_bytes())
                };
                contains(&read("cgroup"), &control_group) || contains(&read("environ"), &mark)
            })
            .filter_map(|pid| Some((pid, start_of(pid)?)))
            .collect();
        Ok(Self {
            guard: i32::try_from(guard.pid())?,
            directory: guard.directory().to_owned(),
            control_group,
            link: (link, number),
            processes,
        })
    }

    /// A node with a pod consists of that much at least; else the search missed something.
    fn are_complete(&self) -> Result<()> {
        let names: Vec<_> = self
            .processes
            .iter()
            .filter_map(|(pid, _)| fs::read_to_string(format!("/proc/{pid}/comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .collect();
        for name in [
            "etcd",
            "kubelet",
            "kube-proxy",
            "containerd",
            "containerd-shim",
            "pause",
            "sandbox-tool",
        ] {
            ensure!(names.iter().any(|other| other == name), "{name}: {names:?}");
        }
        Ok(())
    }

    /// The first that is still there.
    fn left(&self) -> Option<String> {
        let (name, number) = &self.link;
        let alive = |(pid, start): &&(i32, String)| start_of(*pid).as_ref() == Some(start);
        if let Some((pid, _)) = self.processes.iter().find(alive) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("process {pid} {}", name.trim_end()));
        }
        if link_number(name).as_ref() == Some(number) {
            return Some(format!("interface {name}"));
        }
        let groups = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        let groups = groups.map(|entry| entry.path().join(&self.control_group));
        let mut places = groups.chain([self.directory.clone()]);
        let place = places.find(|place| place.exists())?;
        Some(place.display().to_string())
    }

    async fn wait_until_gone(&self) -> Result<()> {
        wait::until("nothing to be left of the node", BOUND, async || {
            Ok(match self.left() {
                Some(left) => Probe::not_yet(left),
                None => Probe::Done(()),
            })
        })
        .await
    }
}

/// Start of a process that lives, in ticks; with the process id, it is unique.
fn start_of(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let ended = matches!(fields.first(), Some(&("Z" | "X")));
    (!ended).then(|| fields.get(19).map(|start| (*start).to_owned()))?
}

fn link_number(name: &str) -> Option<String> {
    fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()
}

/// A node that has done all a node does: a pod runs, and another is gone.
async fn used_node() -> Result<Option<Node>> {
    let Some(node) = node::start_or_skip(Settings::default()).await? else {
        return Ok(None);
    };
    let namespace = node.namespace("used").await?;
    let recipe = Recipe {
        executor_args: None,
        ..Recipe::new(Vec::<String>::new())
    };
    let recipe = recipe.tool(&["sleep"]);
    Pod::start(&node, &namespace, "first", &recipe)
        .await?
        .delete()
        .await?;
    Pod::start(&node, &namespace, "second", &recipe).await?;
    Ok(Some(node))
}

/// Not a test by itself: the process that [`Victim::start`] starts and the tests end.
#[tokio::test]
#[ignore = "started by the other tests"]
async fn victim() -> Result<()> {
    if std::env::var_os(VICTIM).is_none() {
        return Ok(());
    }
    if let Some(node) = used_node().await? {
        println!("{TOLD}{}", serde_json::to_string(&Traces::of(&node)?)?);
        std::future::pending::<()>().await;
    }
    Ok(())
}

struct Victim {
    process: Child,
    traces: Traces,
}

impl Victim {
    /// Blocks until its node runs. `None` where none can be had.
    fn start() -> Result<Option<Self>> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--exact", "leftovers::victim", "--ignored", "--nocapture"])
            .env(VICTIM, "1")
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().context("standard output is a pipe")?;
        for line in BufReader::new(stdout).lines() {
            // The harness may have written the name of the test before it, on the same line.
            if let Some((_, told)) = line?.split_once(TOLD) {
                let traces = serde_json::from_str(told)?;
                return Ok(Some(Self { process, traces }));
            }
        }
        let status = process.wait()?;
        if status.success() {
            return Ok(None);
        }
        bail!("the victim did not start: {status}")
    }
}

#[tokio::test]
async fn a_node_that_is_stopped_leaves_nothing() -> Result<()> {
    let _turn = TURN.lock().await;
    let Some(node) = used_node().await? else {
        return Ok(());
    };
    let traces = Traces::of(&node)?;
    traces.are_complete()?;
    // Stopping is waited for; only the kernel may take a moment for the link.
    drop(node);
    ensure!(!traces.directory.exists(), "the directory is still there");
    traces.wait_until_gone().await
}

#[tokio::test]
async fn a_test_with_a_node_that_is_killed_leaves_nothing() -> Result<()> {
    let _turn = TURN.lock().await;
    // The first node of a machine installs and builds things, which are there to stay.
    if node::shared().await?.is_none() {
        return Ok(());
    }
    tokio::task::spawn_blocking(images::sandbox).await??;
    let before = Machine::look()?;
    let victim = tokio::task::spawn_blocking(Victim::start).await??;
    let Some(Victim {
        mut process,
        traces,
    }) = victim
    else {
        return Ok(());
    };
    traces.are_complete()?;
    before.wait_until_again("while a node runs").await?;
    process.kill()?;
    process.wait()?;
    traces.wait_until_gone().await?;
    before.wait_until_again("after a node").await
}

#[tokio::test]
async fn when_test_and_guard_are_killed_processes_end_and_the_next_guard_removes_files()
-> Result<()> {
    let _turn = TURN.lock().await;
    let victim = tokio::task::spawn_blocking(Victim::start).await??;
    let Some(Victim {
        mut process,
        traces,
    }) = victim
    else {
        return Ok(());
    };
    let guard = Pid::from_raw(traces.guard);
    // Stopped first, so that it does not see the end of the test.
    kill(guard, Signal::SIGSTOP)?;
    process.kill()?;
    process.wait()?;
    kill(guard, Signal::SIGKILL)?;
    wait::until("all processes to end", BOUND, async || {
        Ok(match traces.left() {
            Some(left) if left.starts_with("process") => Probe::not_yet(left),
            _ => Probe::Done(()),
        })
    })
    .await?;
    let base = traces.directory.parent().context("it is in a directory")?;
    let _next = Guard::start_in(base.to_owned()).await?;
    traces.wait_until_gone().await
}
