//! Images without a registry: made here, of static programs or of packages of Debian, and imported
//! into a [`Node`](crate::Node) as archives. All functions block.
//!
//! What takes long is kept in the cache of [`kubernetes`](crate::kubernetes), under a name that says
//! what it was made from; the rest is in the target directory.

mod debian;
#[cfg(test)]
mod dockerfiles;
mod oci;
pub mod release;
mod sbom;
mod toolchain;
mod unreleased;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

pub use self::debian::sandbox;
pub use self::oci::{Config, File};
pub use self::unreleased::control_plane;

use crate::node::Unavailable;
use crate::programs;

/// Name of the image of [`sandbox`]: Debian with bash, python3, node and procps.
pub const SANDBOX: &str = "opensandbox.local/sandbox:bookworm";
/// Name of the image of [`executor`].
pub const EXECUTOR: &str = "opensandbox.io/task-executor:v0.0.1";
/// Name of the image of [`tool`].
pub const TOOL: &str = "opensandbox.local/tool:v1";
/// The program in the image [`TOOL`], see `tests/programs/sandbox-tool.c`.
pub const TOOL_PROGRAM: &str = "/sandbox-tool";

/// An image as an archive, an OCI layout, on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image {
    name: String,
    archive: PathBuf,
    /// Identifies the one layer: the digest of its tar, with the algorithm.
    layer: String,
    /// Files that are put in the place of the layer's, so that a big one need not be unpacked.
    tree: Option<PathBuf>,
}

impl Image {
    /// The name that pods use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The archive.
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// The layer, as snapshots of containerd are called.
    pub(crate) fn layer(&self) -> &str {
        &self.layer
    }

    /// Files that are to be put in the place of the layer's.
    pub(crate) fn tree(&self) -> Option<&Path> {
        self.tree.as_deref()
    }

    /// Bytes of the archive. Nothing in it is compressed.
    ///
    /// # Errors
    /// The archive is gone.
    pub fn size_bytes(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.archive);
        Ok(metadata
            .with_context(|| format!("look at {}", self.archive.display()))?
            .len())
    }
}

/// An image of these files and nothing else. Programs in it have to be static, or their libraries among the
/// files.
///
/// # Errors
/// A file cannot be read, or the archive not be written.
pub fn static_image(name: &str, files: &[File], config: &Config) -> Result<Image> {
    let directory = programs::target_directory()?.join("images");
    fs::create_dir_all(&directory)?;
    let archive = directory.join(format!("{}.tar", file_name(name)));
    let layer = oci::layer(files)?;
    // Two processes may do the same; the file that has the name is always whole.
    let staging = tempfile::NamedTempFile::new_in(&directory)?;
    let layer = oci::write(staging.as_file(), name, config, &layer)?;
    staging.persist(&archive)?;
    Ok(Image {
        name: name.to_owned(),
        archive,
        layer,
        tree: None,
    })
}

/// Where every sandbox may write.
fn temporary() -> File {
    File::directory("/tmp", 0o1777)
}

/// The task executor's image, as it is released: its static program and the agent's, as root, in an
/// empty file system.
///
/// # Errors
/// The program does not build.
pub fn executor() -> Result<Image> {
    // Concurrent tests of a process make it once, after each other.
    static MADE: Mutex<Option<Image>> = Mutex::new(None);
    once(&MADE, || {
        let files = [
            File::program("/task-executor", programs::static_executor()?),
            File::program("/task-executor-agent", programs::static_agent()?),
        ];
        static_image(EXECUTOR, &files, &release::EXECUTOR.config(None))
    })
}

/// A sandbox without a shell: one program, `/sandbox-tool`, that can sleep, spin, start threads, end
/// in any way, use memory, and print. Without arguments it sleeps.
///
/// # Errors
/// The program cannot be compiled.
pub fn tool() -> Result<Image> {
    static MADE: Mutex<Option<Image>> = Mutex::new(None);
    once(&MADE, || {
        let files = [File::program(TOOL_PROGRAM, toolchain::tool()?), temporary()];
        let config = Config {
            entrypoint: vec![TOOL_PROGRAM.to_owned()],
            arguments: vec!["sleep".to_owned()],
            ..Config::default()
        };
        static_image(TOOL, &files, &config)
    })
}

/// What holds the namespaces of a pod: Kubernetes' own.
pub(crate) fn pause() -> Result<Image> {
    static MADE: Mutex<Option<Image>> = Mutex::new(None);
    once(&MADE, || {
        let program = toolchain::pause().map_err(Unavailable::new)?;
        let files = [File::program("/pause", program)];
        let config = Config {
            entrypoint: vec!["/pause".to_owned()],
            user: "65535:65535".to_owned(),
            ..Config::default()
        };
        static_image(crate::node::PAUSE_IMAGE, &files, &config)
    })
}

fn once(known: &Mutex<Option<Image>>, make: impl FnOnce() -> Result<Image>) -> Result<Image> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(image) = known.as_ref() {
        return Ok(image.clone());
    }
    let image = make()?;
    *known = Some(image.clone());
    Ok(image)
}

/// The name of an image as that of a file.
fn file_name(image: &str) -> String {
    image.replace(['/', ':', '@'], "-")
}
