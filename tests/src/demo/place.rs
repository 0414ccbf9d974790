//! A cluster that the demo starts itself: with a node where one can be had, on which webhook and operator are
//! pods and sandboxes run.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use super::context::Context;
use super::steps;
use super::terminal::Terminal;
use crate::administrator::Administrator;
use crate::kubernetes;
use crate::node::{Node, Unavailable};
use crate::{LocalCluster, images};

/// Where the play is.
#[derive(Debug)]
pub(super) enum Place {
    /// With a node of its own, on which pods run.
    Node(Box<Node>),
    /// An API server alone.
    Local(Box<LocalCluster>),
    Context(Box<Context>),
}

impl Place {
    pub(super) fn administrator(&self) -> Administrator<'_> {
        match self {
            Self::Node(node) => Administrator::of(node.cluster()),
            Self::Local(cluster) => Administrator::of(cluster),
            Self::Context(context) => context.user(),
        }
    }

    /// The cluster that was started here.
    pub(super) fn local(&self) -> Option<&LocalCluster> {
        match self {
            Self::Node(node) => Some(node.cluster()),
            Self::Local(cluster) => Some(cluster),
            Self::Context(_) => None,
        }
    }
}

/// A cluster with a node where one can be had, else one without.
pub(super) async fn start(terminal: &Terminal) -> Result<Place> {
    match Box::pin(Node::start(crate::Settings::default())).await {
        Ok(node) => return Ok(Place::Node(Box::new(node))),
        Err(error) if error.is::<Unavailable>() => terminal.note(&format!(
            "There is no node, so no pods run and the demo ends with a pending sandbox: {error:#}"
        ))?,
        Err(error) => return Err(error),
    }
    let cluster = LocalCluster::start(crate::Settings::default()).await?;
    Ok(Place::Local(Box::new(cluster)))
}

/// Everything that is to run on the node: no registry is reached here.
pub(super) async fn import(node: &Node, terminal: &Terminal) -> Result<()> {
    let importing = Instant::now();
    for image in tokio::task::spawn_blocking(images::control_plane).await?? {
        node.import(&image).await?;
    }
    node.import_known(images::SANDBOX).await?;
    node.import_known(images::EXECUTOR).await?;
    // An image with bash, python3 and node stands for the one that the examples name, and the executor's for
    // the new one of a registry that nobody has.
    node.alias(images::SANDBOX, steps::SANDBOX_IMAGE).await?;
    node.alias(images::EXECUTOR, steps::NEW_IMAGE_REFERENCE)
        .await?;
    terminal.done("the images are on the node", importing)
}

/// The directory of kubectl where it is not in PATH.
pub(super) fn kubectl_elsewhere() -> Option<PathBuf> {
    let kubectl = kubernetes::kubectl().ok()?;
    let directory = kubectl.parent()?.to_owned();
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .all(|other| other != directory)
        .then_some(directory)
}
