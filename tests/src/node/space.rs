//! Where a node lives: process, mount and network namespaces of its own, so that whatever containerd,
//! the kubelet and kube-proxy start, mount, and configure is gone with the first process in them: the
//! kernel sees to it. The parts that run inside are the guard's program under other arguments.
//!
//! What the node sees of the machine: all of it, but what it writes below `/var` and `/run` (state of
//! CNI, logs of pods, sockets of shims) goes to the guard's directory, as do the settings of the
//! kernel that a kubelet changes for the whole machine.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::guard::supervise::BECOME;
use crate::process::{Launch, Program};
use crate::wait::{self, Probe};
use crate::{Guard, programs};

/// `space-hold DIRECTORY`: makes the process namespace, and is outside of it.
const HOLD: &str = "hold";
/// `space-init DIRECTORY`: the first process inside.
const INIT: &str = "init";
/// `space-enter DIRECTORY PROGRAM ARGS...`: runs a program inside.
const ENTER: &str = "enter";
/// What the first process says when it is done.
const READY: &str = "ready";
/// File with the process id of the first process, as seen from outside.
const INIT_FILE: &str = "init.pid";
/// Directories of the machine that the node writes to without harm.
const PRIVATE: [&str; 2] = ["var", "run"];
/// Stopped after the programs under test and before the cluster.
const RANK: u32 = 900;

/// Settings of the kernel that count for the whole machine, which a kubelet sets at its start, with
/// the values it sets. In the node they are files of its own.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The namespaces, which exist as long as this does.
#[derive(Debug)]
pub(super) struct Space {
    directory: PathBuf,
    init: i32,
    /// Ends the namespaces when dropped.
    _holder: Program,
}

impl Space {
    /// Makes them. `directory` is the node's own.
    pub(super) async fn make(guard: &Guard, directory: &Path) -> Result<Self> {
        let launch = Launch {
            rank: RANK,
            ..Launch::new("node", programs::cluster_guard()?)
                .args([format!("space-{HOLD}"), text(directory)?])
        };
        let holder = guard.run(launch).await?;
        let file = directory.join(INIT_FILE);
        let bound = Duration::from_secs(30);
        let init = wait::until("the node's namespaces", bound, async || {
            if let Some(exit) = holder.exit() {
                bail!("the holder of the node's namespaces {exit}");
            }
            Ok(match fs::read_to_string(&file) {
                Ok(pid) => Probe::Done(pid.trim().parse()?),
                Err(error) => Probe::not_yet(error),
            })
        });
        Ok(Self {
            directory: directory.to_owned(),
            init: init.await?,
            _holder: holder,
        })
    }

    /// Process id of the first process inside.
    pub(super) fn init(&self) -> i32 {
        self.init
    }

    /// The same program, to be started inside. Its process is a stand-in outside, which ends as the
    /// program does; a signal other than SIGKILL does not reach the program.
    pub(super) fn inside(&self, launch: Launch) -> Result<Launch> {
        let mut args = vec![
            format!("space-{ENTER}"),
            text(&self.directory)?,
            text(&launch.program)?,
        ];
        args.extend(launch.args);
        Ok(Launch {
            program: programs::cluster_guard()?,
            args,
            rank: RANK - 1,
            ..launch
        })
    }

    /// Runs a program inside to its end, and returns what it printed.
    pub(super) async fn run(&self, program: &Path, args: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(programs::cluster_guard()?);
        command
            .arg(format!("space-{ENTER}"))
            .arg(&self.directory)
            .arg(program)
            .args(args);
        super::output_of(command).await
    }
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str();
    Ok(text
        .with_context(|| format!("{} is not text", path.display()))?
        .to_owned())
}

/// The parts that run in, or at, the namespaces.
pub(crate) fn main(part: &str, mut args: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let directory = args.next().map(PathBuf::from);
    let directory = directory.context("no directory")?;
    match part {
        HOLD => match hold(&directory)? {},
        INIT => match init(&directory)? {},
        ENTER => enter(&directory, &args.next().context("no program")?, args),
        _ => bail!("there is no part {part}"),
    }
}

fn hold(directory: &Path) -> Result<Infallible> {
    // For children only: this process stays where it is.
    unshare(CloneFlags::CLONE_NEWPID).context("make a process namespace")?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(format!("space-{INIT}"))
        .arg(directory)
        .stdout(Stdio::piped())
        .spawn()
        .context("start the first process")?;
    let mut said = String::new();
    let output = child.stdout.take().context("its output is a pipe")?;
    BufReader::new(output).read_line(&mut said)?;
    if said.trim_end() == READY {
        let new = directory.join("init.pid.new");
        fs::write(&new, child.id().to_string())?;
        fs::rename(&new, directory.join(INIT_FILE))?;
    }
    let status = child.wait()?;
    bail!("the first process of the node ended: {status}");
}

fn init(directory: &Path) -> Result<Infallible> {
    // As the first process it is also the last: the kernel kills all others when it ends.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("make mount and network namespaces")?;
    // Nothing gets out. Inside, mounts spread as kubelets want it.
    remount("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    remount("/", MsFlags::MS_REC | MsFlags::MS_SHARED)?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mount /proc")?;
    for name in PRIVATE {
        overlay(&Path::new("/").join(name), &directory.join(name))?;
    }
    for (name, value) in SETTINGS {
        shadow(name, value, &directory.join("settings"))?;
    }
    // Of this network namespace; pods are reached through the node.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets")?;

    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    say_ready()?;
    loop {
        // Signals merge, so one may stand for many children.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        children.wait()?;
    }
}

fn say_ready() -> Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{READY}").context("tell that all is mounted")
}

fn remount(target: &str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("change how mounts below {target} spread"))
}

/// What is written below `target` goes to `upper` in `directory` from here on.
fn overlay(target: &Path, directory: &Path) -> Result<()> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        target.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        target,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .with_context(|| format!("mount an overlay at {}", target.display()))
}

/// Puts a file in the place of a setting of the kernel.
fn shadow(name: &str, value: &str, directory: &Path) -> Result<()> {
    let target = Path::new("/proc/sys").join(name);
    if !target.exists() {
        return Ok(());
    }
    let file = directory.join(name);
    fs::create_dir_all(file.parent().context("a setting is in a directory")?)?;
    fs::write(&file, format!("{value}\n"))?;
    mount(
        Some(&file),
        &target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("put a file in the place of {}", target.display()))
}

fn enter(
    directory: &Path,
    program: &OsStr,
    args: impl Iterator<Item = OsString>,
) -> Result<ExitCode> {
    // Named while /proc is still that of the machine.
    let own = std::env::current_exe()?;
    let init = fs::read_to_string(directory.join(INIT_FILE)).context("the node is gone")?;
    let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", init.trim()));
    let namespaces = [open("pid")?, open("net")?, open("mnt")?];
    for namespace in namespaces {
        setns(namespace, CloneFlags::empty()).context("enter the node")?;
    }
    // To those inside, a parent outside has the process id 0.
    let status = Command::new(own)
        .args([OsStr::new(BECOME), OsStr::new("0"), program])
        .args(args)
        .status()?;
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(1);
    ensure!(code >= 0, "{status}");
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
