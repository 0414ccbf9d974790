//! What happens in which order, what is running meanwhile, and what has to go in the end.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::labels::{
    DEFAULT_TASK_EXECUTOR_IMAGE, IMAGES_CONFIG_MAP, TASK_EXECUTOR_IMAGE_KEY,
};

use super::context::{self, Context, Way};
use super::numbers::Numbers;
use super::place::{self, Place};
use super::removal::Removal;
use super::stage::Stage;
use super::steps::Change;
use super::terminal::{Terminal, seconds, shell};
use super::{Arguments, deployment, release, sandboxes, steps};
use crate::administrator::Administrator;
use crate::helm::Helm;
use crate::installation::{self, Installation};
use crate::kubernetes::VERSION;
use crate::programs;

/// Lines of each program's log that a failure shows.
const LOG_LINES: usize = 15;
/// Lines that are all of them.
const ALL_LINES: usize = 100_000;

/// What is running, and what has to go in the end.
#[derive(Debug, Default)]
pub(super) struct Session {
    // Before the place, since it is dropped before it.
    installation: Option<Installation>,
    removal: Removal,
    place: Option<Place>,
    /// Kept in the cluster, where it runs without this process.
    stays: bool,
}

impl Session {
    pub(super) async fn play(&mut self, arguments: &Arguments, terminal: &Terminal) -> Result<()> {
        let begin = Instant::now();
        terminal.title("OpenSandbox: a ten-line Pool becomes a working one")?;
        terminal.note("")?;
        if arguments.context.is_none() {
            terminal.note(
                "A real Kubernetes is started on this machine, OpenSandbox is installed there, and examples/ \
                 are\napplied with kubectl. As root on Debian or Ubuntu it has a node on which pods run. No \
                 cluster of\nyours is touched. All of it goes away at the end, after Ctrl-C too. The first run \
                 builds what is\nneeded, for minutes.\n",
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
        let helm = match place {
            Place::Node(node) => Some(Helm::of(node.cluster()).await?),
            Place::Local(_) | Place::Context(_) => None,
        };
        if let Some(helm) = &helm {
            release::install(terminal, helm, administrator).await?;
        }
        let (flags, namespace) = match place {
            Place::Node(_) | Place::Local(_) => (Vec::new(), "default".to_owned()),
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
        if helm.is_some() {
            steps::images(&stage, Change::Kustomize).await?;
            steps::fewer_pools(&stage).await?;
            sandboxes::warm_pool(&stage).await?;
            sandboxes::tasks(&stage).await?;
            sandboxes::failing_task(&stage).await?;
        } else {
            steps::images(&stage, Change::ConfigMap).await?;
            sandboxes::batch_sandbox(&stage).await?;
        }
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
        if let Some(helm) = &helm
            && !arguments.keep
        {
            release::uninstall(&stage, helm).await?;
        }
        terminal.note("")?;
        terminal.done("every step held", begin)
    }

    /// Starts a cluster; where it has no node, installs.
    async fn local(&mut self, terminal: &Terminal, webhook: &Path) -> Result<Source> {
        let starting = Instant::now();
        let place = self.place.insert(place::start(terminal).await?);
        let cluster = place.local().context("it was started here")?;
        let server = cluster.server();
        terminal.done(
            &format!("Kubernetes {VERSION} answers at {server}"),
            starting,
        )?;
        if let Place::Node(node) = place {
            place::import(node, terminal).await?;
            return Ok(Source::Pods);
        }
        let installing = Instant::now();
        let settings = settings(webhook);
        let installation = Installation::install(cluster, settings).await?;
        self.installation = Some(installation);
        terminal.done(
            "config/default is installed; the webhook is ready",
            installing,
        )?;
        terminal.note(
            "  (Its program runs here as a process, logged in as its service account, and the API \
             server\n  calls it by address instead of through a Service.)",
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
    pub(super) fn stay(&mut self, terminal: &Terminal) -> Result<()> {
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
            Place::Node(_) | Place::Local(_) => {
                let cluster = place.local().context("it was started here")?;
                let kubeconfig = shell([cluster.kubeconfig().display().to_string()]);
                terminal.note("\nIt stays as it is. In another shell:\n")?;
                terminal.note(&format!("  export KUBECONFIG={kubeconfig}"))?;
                if let Some(directory) = place::kubectl_elsewhere() {
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

    pub(super) fn needs_this_process(&self) -> bool {
        !self.stays
    }

    /// What the programs said, to find out why something failed.
    pub(super) async fn show_log(&self, terminal: &Terminal, all: bool) -> Result<()> {
        let lines = if all { ALL_LINES } else { LOG_LINES };
        if let Some(place @ Place::Node(_)) = &self.place {
            terminal.note("\nThe pods, and what the programs logged:")?;
            terminal.output(&release::log(place.administrator(), lines).await?)?;
        }
        for replica in self.installation.iter().flat_map(Installation::replicas) {
            let log = replica.program.log()?;
            let shown: Vec<_> = log.lines().collect();
            let shown = &shown[shown.len().saturating_sub(lines)..];
            terminal.note("\nThe webhook's log:")?;
            terminal.output(&shown.join("\n"))?;
        }
        Ok(())
    }

    /// Stops and removes; false if there was nothing to.
    pub(super) async fn close(&mut self, terminal: &Terminal) -> Result<bool> {
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
