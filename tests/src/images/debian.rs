//! The sandbox image: Debian with what tasks of users call, from Debian's packages. It is made once,
//! which takes less than a minute, and kept in the cache under the hash of its recipe: the tree of its
//! files, which nodes use as it is, and an archive with an empty layer in their place.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Config, Image, SANDBOX, once};
use crate::kubernetes::{cache_directory, say};
use crate::node::{Unavailable, packages};
use crate::progress::{self, Report};

/// What it is made with; a change of it makes another image.
const RECIPE: [&str; 8] = [
    "--format=directory",
    "--variant=minbase",
    "--include=python3,nodejs,procps",
    // For reading only.
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--aptopt=Acquire::Retries \"3\"",
    "bookworm",
];
/// Counts when something about the image changes that is not in the recipe.
const REVISION: &str = "1";
const ERROR_LINES: usize = 30;
/// Where it is made before it gets its name.
const STAGING_PREFIX: &str = "making-sandbox-";

/// Debian with bash, python3, node and procps, as root, sleeping unless told otherwise. The cache
/// needs 500 MB.
///
/// # Errors
/// [`Unavailable`] if it cannot be made here.
pub fn sandbox() -> Result<Image> {
    static MADE: Mutex<Option<Image>> = Mutex::new(None);
    once(&MADE, || {
        let cache = cache_directory()?.join("images");
        let key = super::toolchain::hash_of(&[RECIPE.as_slice(), &[REVISION]].concat());
        let directory = cache.join(format!("sandbox-{key}-{}", std::env::consts::ARCH));
        if !directory.is_dir() {
            fs::create_dir_all(&cache)?;
            // There are programs in it that run as root for anybody who reaches them.
            fs::set_permissions(&cache, fs::Permissions::from_mode(0o700))?;
            let lock = File::create(cache.join("sandbox.lock"))?;
            if let Err(TryLockError::WouldBlock) = lock.try_lock() {
                say("waiting for another process that makes the sandbox image");
                lock.lock()?;
            }
            if !directory.is_dir() {
                packages::ensure(&packages::SANDBOX_IMAGE)?;
                make(&cache, &directory)?;
            }
        }
        let config = Config {
            arguments: vec!["sleep".to_owned(), "infinity".to_owned()],
            ..Config::default()
        };
        Ok(Image {
            tree: Some(directory),
            ..super::static_image(SANDBOX, &[super::temporary()], &config)?
        })
    })
}

fn make(cache: &Path, directory: &Path) -> Result<()> {
    // What a killed process left behind; nobody else is at it while the lock is held.
    for entry in fs::read_dir(cache)?.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(STAGING_PREFIX)
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let staging = tempfile::Builder::new()
        .prefix(STAGING_PREFIX)
        .tempdir_in(cache)?;
    let tree = staging.path().join("tree");
    // In a mount namespace of its own, so that no mount is left however it ends.
    let mut command = Command::new(packages::path_of("unshare")?);
    command
        .args(["--mount", "--"])
        .arg(packages::path_of("mmdebstrap")?)
        .args(RECIPE)
        .arg(&tree);
    let report = Report {
        what: "making the sandbox image from packages of Debian, once",
        unit: "steps",
        counts: |line| line.starts_with("I: ") || line.starts_with("done"),
        delay: Duration::ZERO,
        kept_lines: ERROR_LINES,
    };
    let (status, lines) = progress::follow(&mut command, &report)?;
    ensure!(
        status.success(),
        Unavailable::new(format!(
            "the sandbox image cannot be made: mmdebstrap: {status}; it ended with:\n{lines}"
        ))
    );
    fs::rename(&tree, directory)?;
    Ok(())
}
