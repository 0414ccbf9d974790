//! `cargo demo`: the main job end to end, on a real API server that it starts, or on a cluster of the
//! user's (`--context`). Each step shows something and checks it; the exit status is 0 only if all of
//! them held, 1 if one did not, 130 after Ctrl-C. Whatever the end, what it started is stopped, and
//! what it put into a cluster of the user's is removed.
//!
//! ```text
//! mod         arguments, order of events, clean end
//! context     a cluster of the user's: may the demo play there?
//! deployment  the webhook in its pods         removal  what a run adds, and takes away
//! stage       kubectl, shown and checked      steps    what is shown
//! diff        written and stored, as lines    numbers  metrics as a table
//! terminal    standard output                 signals  Ctrl-C
//! ```

mod context;
mod deployment;
mod diff;
mod numbers;
mod removal;
mod signals;
mod stage;
mod steps;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::sys::signal::Signal;
use opensandbox_api::labels::{
    DEFAULT_TASK_EXECUTOR_IMAGE, IMAGES_CONFIG_MAP, TASK_EXECUTOR_IMAGE_KEY,
};

use self::context::{Context, Way};
use self::numbers::Numbers;
use self::removal::Removal;
use self::signals::Signals;
use self::stage::Stage;
use self::terminal::{Terminal, seconds, shell};
use crate::administrator::Administrator;
use crate::installation::{self, Installation};
use crate::kubernetes::{self, VERSION};
use crate::{LocalCluster, programs};

/// Builds that were interrupted end within this.
const BUILDS_END: Duration = Duration::from_secs(10);
/// Lines of the webhook's log that a failure shows.
const LOG_LINES: usize = 15;

/// Shows how a ten-line Pool becomes a working one, on a real Kubernetes API server that it starts on
/// this machine and stops again.
#[derive(Debug, Parser)]
#[command(name = "cargo demo", version)]
struct Arguments {
    /// Use a cluster of yours: a context of your kubeconfig, or the current one if no name is given.
    /// Installs what is missing there, and removes it again.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    context: Option<String>,
    /// Kubeconfig with the context.
    #[arg(long, value_name = "FILE", requires = "context")]
    kubeconfig: Option<PathBuf>,
    /// Image of the webhook for a cluster with nodes.
    #[arg(long, value_name = "IMAGE", requires = "context")]
    webhook_image: Option<String>,
    /// Leave everything running at the end, until Ctrl-C, and say how to use it.
    #[arg(long)]
    keep: bool,
    /// Show the commands that only check something, and the webhook's log.
    #[arg(long)]
    verbose: bool,
    /// No colours; there are none in a file or pipe, or with the variable NO_COLOR.
    #[arg(long)]
    no_color: bool,
}

/// The program: reads its arguments, plays, cleans up.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let terminal = Terminal::new(arguments.no_color, arguments.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal.failed(&format!("no runtime: {error}")).ok();
            return ExitCode::FAILURE;
        }
    };
    let status = runtime.block_on(run(&arguments, &terminal));
    runtime.shutdown_timeout(BUILDS_END);
    ExitCode::from(status)
}

/// How the play ended.
enum End {
    Held,
    Failed(anyhow::Error),
    Interrupted(Signal),
}

async fn run(arguments: &Arguments, terminal: &Terminal) -> u8 {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            terminal.failed(&format!("{error:#}")).ok();
            return 1;
        }
    };
    let mut session = Session::default();
    let played = tokio::select! {
        biased;
        signal = signals.next() => End::Interrupted(signal),
        result = Box::pin(session.play(arguments, terminal)) => match result {
            Ok(()) => End::Held,
            Err(error) => End::Failed(error),
        },
    };
    // Standard output may be closed by now; that must not keep anything from being cleaned up.
    let status = match &played {
        End::Held if arguments.keep => {
            if session.stay(terminal).is_ok() && session.needs_this_process() {
                signals.next().await;
            }
            0
        }
        End::Held => 0,
        End::Failed(error) => {
            terminal.failed(&format!("{error:#}")).ok();
            1
        }
        End::Interrupted(signal) => {
            terminal.note(&format!("\n{signal}: cleaning up")).ok();
            signals::interrupt_children();
            128 + u8::try_from(*signal as i32).unwrap_or_default()
        }
    };
    if matches!(played, End::Failed(_)) || arguments.verbose {
        session.show_log(terminal, arguments.verbose).ok();
    }
    let begin = Instant::now();
    let closed = tokio::select! {
        result = Box::pin(session.close(terminal)) => result,
        signal = signals.next() => Err(anyhow::anyhow!("{signal} again: not everything is removed")),
    };
    // The processes, their directory, and the login that the removal needed.
    drop(session);
    match closed {
        Ok(false) => {}
        Ok(true) => drop(terminal.done("all of it was stopped and removed", begin)),
        Err(error) => {
            terminal.failed(&format!("clean up: {error:#}")).ok();
            return status.max(1);
        }
    }
    status
}

/// Where the play is.
#[derive(Debug)]
enum Place {
    Local(Box<LocalCluster>),
    Context(Box<Context>),
}

impl Place {
    fn administrator(&self) -> Administrator<'_> {
        match self {
            Self::Local(cluster) => Administrator::of(cluster),
            Self::Context(context) => context.user(),
        }
    }
}

/// What is running, and what has to go in the end.
#[derive(Debug, Default)]
struct Session {
    // Before the place, since it is dropped before it.
    installation: Option<Installation>,
    removal: Removal,
    place: Option<Place>,
    /// Kept in the cluster, where it runs without this process.
    stays: bool,
}

impl Session {
    async fn play(&mut self, arguments: &Arguments, terminal: &Terminal) -> Result<()> {
        let begin = Instant::now();
        terminal.title("OpenSandbox: a ten-line Pool becomes a working one")?;
        terminal.note("")?;
        if arguments.context.is_none() {
            terminal.note(
                "A real Kubernetes API server is started on this machine, config/default is installed \
                 there,\nand examples/ are applied with kubectl. No root, no containers, no cluster of \
                 yours. All of\nit goes away at the end, after Ctrl-C too. The first run builds what is \
                 needed, for minutes.\n",
            )?;
        }
        let building = Instant::now();
        let webhook = tokio::task::spawn_blocking(programs::webhook).await??;
        terminal.done("the webhook is built", building)?;
        let numbers = match &arguments.context {
            None => self.local(terminal, &webhook).await?,
            Some(name) => self.context(arguments, name, terminal, &webhook).await?,
        };
        terminal.note(&format!("\nReady in {}.", seconds(begin.elapsed())))?;

        let place = self.place.as_ref().context("the play has a place")?;
        let administrator = place.administrator();
        let (flags, namespace) = match place {
            Place::Local(_) => (Vec::new(), "default".to_owned()),
            Place::Context(context) => (context.shown_flags.clone(), context::NAMESPACE.to_owned()),
        };
        let image = installed_image(administrator).await?;
        let stage = Stage {
            terminal,
            administrator,
            flags,
            namespace,
            webhook,
            image,
        };
        steps::minimal_pool(&stage).await?;
        steps::origins(&stage).await?;
        steps::written_by_hand(&stage).await?;
        steps::refusal(&stage).await?;
        steps::images(&stage).await?;
        steps::batch_sandbox(&stage).await?;
        match numbers {
            Source::Process => {
                let mut numbers = Numbers::default();
                for replica in self.installation.iter().flat_map(Installation::replicas) {
                    let (status, text) = replica.get("/metrics").await?;
                    ensure!(status == 200, "/metrics answers with {status}: {text}");
                    numbers.add(&text);
                }
                steps::numbers(&stage, &numbers)?;
            }
            Source::Pods => steps::numbers(&stage, &deployment::numbers(administrator).await?)?,
            Source::None => {}
        }
        terminal.note("")?;
        terminal.done("every step held", begin)
    }

    /// Starts a cluster and installs.
    async fn local(&mut self, terminal: &Terminal, webhook: &Path) -> Result<Source> {
        let starting = Instant::now();
        let cluster = LocalCluster::start(crate::Settings::default()).await?;
        let server = cluster.server();
        terminal.done(
            &format!("Kubernetes {VERSION} answers at {server}"),
            starting,
        )?;
        let cluster = self.place.insert(Place::Local(Box::new(cluster)));
        let installing = Instant::now();
        let settings = settings(webhook);
        let installation = Installation::install_as(cluster.administrator(), settings).await?;
        self.installation = Some(installation);
        terminal.done(
            "config/default is installed; the webhook is ready",
            installing,
        )?;
        terminal.note(
            "  (There is no node: its program runs here as a process, logged in as its service \
             account,\n  and the API server calls it by address instead of through a Service.)",
        )?;
        Ok(Source::Process)
    }

    /// Installs in a cluster of the user's, if it is not installed there.
    async fn context(
        &mut self,
        arguments: &Arguments,
        name: &str,
        terminal: &Terminal,
        webhook: &Path,
    ) -> Result<Source> {
        let context = Context::open(arguments.kubeconfig.as_deref(), name).await?;
        terminal.note(&format!(
            "\nContext {}, server {}, Kubernetes {}.\nObjects go into the namespace {}, which is \
             deleted in the end,\nwith what this run installs. Nothing else is touched.\n",
            context.name,
            context.server,
            context.version,
            context::NAMESPACE
        ))?;
        let way = context.way().await?;
        let has_nodes = context.has_nodes;
        let place = self.place.insert(Place::Context(Box::new(context)));
        let user = place.administrator();
        let installing = Instant::now();
        let source = match way {
            Way::AsFound => {
                terminal.held("OpenSandbox is installed there, and used as it is")?;
                if has_nodes {
                    Source::Pods
                } else {
                    Source::None
                }
            }
            Way::Deployment => {
                let mut documents = installation::rendered_as(user, None).await?;
                if let Some(image) = &arguments.webhook_image {
                    deployment::set_image(&mut documents, image);
                }
                self.removal.before_install(user, &documents).await?;
                installation::apply(user, documents).await?;
                deployment::rolled_out(user).await?;
                terminal.done(
                    "config/default is installed; the webhook is ready",
                    installing,
                )?;
                Source::Pods
            }
            Way::Process { leftover } => {
                let documents = installation::rendered_as(user, None).await?;
                if leftover {
                    terminal
                        .note("A demo that was killed left its installation, which is replaced.")?;
                    self.removal.adopt(documents);
                } else {
                    self.removal.before_install(user, &documents).await?;
                }
                let installation = Installation::install_as(user, settings(webhook)).await?;
                self.installation = Some(installation);
                terminal.done(
                    "config/default is installed; the webhook is ready",
                    installing,
                )?;
                terminal
                    .note("  (The cluster has no node: its program runs here, as a process.)")?;
                Source::Process
            }
        };
        self.removal.namespace(user, context::NAMESPACE).await?;
        Ok(source)
    }

    /// Says how to use what stays.
    fn stay(&mut self, terminal: &Terminal) -> Result<()> {
        let place = self.place.as_ref().context("the play has a place")?;
        let kubectl = |context: &Context, args: &[&str]| {
            let flags = context.shown_flags.iter().map(String::as_str);
            shell(
                ["kubectl"]
                    .into_iter()
                    .chain(flags)
                    .chain(args.iter().copied()),
            )
        };
        match place {
            Place::Local(cluster) => {
                let kubeconfig = shell([cluster.kubeconfig().display().to_string()]);
                terminal.note("\nIt stays as it is. In another shell:\n")?;
                terminal.note(&format!("  export KUBECONFIG={kubeconfig}"))?;
                if let Some(directory) = kubectl_elsewhere() {
                    terminal.note(&format!("  export PATH=\"$PATH:{}\"", directory.display()))?;
                }
                terminal.note("  kubectl get pools")?;
            }
            Place::Context(context) if self.installation.is_some() => {
                let get = kubectl(context, &["-n", context::NAMESPACE, "get", "pools"]);
                terminal.note("\nIt stays as it is. In another shell:\n")?;
                terminal.note(&format!("  {get}"))?;
            }
            Place::Context(context) => {
                let delete = kubectl(context, &["delete", "namespace", context::NAMESPACE]);
                terminal.note("\nIt stays as it is. To remove it:\n")?;
                terminal.note(&format!("  {delete}"))?;
                if self.removal.has_installed() {
                    let delete = kubectl(context, &["delete", "-k", "config/default"]);
                    terminal.note(&format!("  {delete}"))?;
                }
                self.removal = Removal::default();
                self.stays = true;
                return Ok(());
            }
        }
        let pid = std::process::id();
        terminal.note(&format!(
            "\nCtrl-C here, or `kill {pid}`, stops it and removes everything."
        ))
    }

    fn needs_this_process(&self) -> bool {
        !self.stays
    }

    /// What the webhook said, to find out why something failed.
    fn show_log(&self, terminal: &Terminal, all: bool) -> Result<()> {
        for replica in self.installation.iter().flat_map(Installation::replicas) {
            let log = replica.program.log()?;
            let lines: Vec<_> = log.lines().collect();
            let shown = if all {
                lines.len()
            } else {
                LOG_LINES.min(lines.len())
            };
            terminal.note("\nThe webhook's log:")?;
            terminal.output(&lines[lines.len() - shown..].join("\n"))?;
        }
        Ok(())
    }

    /// Stops and removes; false if there was nothing to.
    async fn close(&mut self, terminal: &Terminal) -> Result<bool> {
        let Some(place) = &self.place else {
            return Ok(false);
        };
        // Before the removal, or it would make its Secret again.
        if let Some(installation) = self.installation.take() {
            for replica in installation.replicas() {
                replica.program.stop().await?;
            }
        }
        if let Place::Context(context) = place
            && !self.removal.is_empty()
        {
            let user = place.administrator();
            if let Some(stays) = self.removal.remove(user, context.has_nodes).await? {
                terminal.note(&stays).ok();
            }
        }
        // Waits until its programs have ended.
        self.place = None;
        Ok(!self.stays)
    }
}

/// Where the webhook's numbers are.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// A process of this machine.
    Process,
    /// Pods.
    Pods,
    /// Somewhere else.
    None,
}

fn settings(webhook: &Path) -> installation::Settings {
    installation::Settings {
        program: Some(webhook.to_owned()),
        // Nobody is left who would have to learn that it goes.
        args: vec!["--drain-delay=0s".to_owned()],
        ..installation::Settings::default()
    }
}

/// The image that the installation's ConfigMap names, or the default.
async fn installed_image(administrator: Administrator<'_>) -> Result<String> {
    let path = format!("jsonpath={{.data.{TASK_EXECUTOR_IMAGE_KEY}}}");
    let get = [
        "get",
        "configmap",
        IMAGES_CONFIG_MAP,
        "-n",
        installation::NAMESPACE,
    ];
    let get: Vec<_> = get
        .into_iter()
        .chain(["--ignore-not-found", "-o", &path])
        .collect();
    let image = administrator.kubectl(&get).await?;
    let image = image.trim();
    Ok(if image.is_empty() {
        DEFAULT_TASK_EXECUTOR_IMAGE.to_owned()
    } else {
        image.to_owned()
    })
}

/// The directory of kubectl where it is not in PATH.
fn kubectl_elsewhere() -> Option<PathBuf> {
    let kubectl = kubernetes::kubectl().ok()?;
    let directory = kubectl.parent()?.to_owned();
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .all(|other| other != directory)
        .then_some(directory)
}
