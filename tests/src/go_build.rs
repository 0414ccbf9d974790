//! Programs that are built once from pinned Go modules and kept in the cache: `$OPENSANDBOX_CACHE`, else
//! `$XDG_CACHE_HOME/opensandbox`, else `$HOME/.cache/opensandbox`, with one directory per build:
//! `NAME-VERSION-HASH-GOVERSION/`, where the hash is over what is built and how. Directories are renamed
//! into place when complete, so what has the name is whole. All functions block.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::progress::{self, Report};

/// Where a build is made before it gets its name.
const STAGING_PREFIX: &str = "building-";
/// The lines of a failed build that its error repeats.
const ERROR_LINES: usize = 30;

/// What is built, and how.
#[derive(Clone, Debug)]
pub(crate) struct Build<'a> {
    /// Lower case, for the directory and the lock.
    pub(crate) name: &'a str,
    /// As people write it, in messages.
    pub(crate) title: &'a str,
    /// The version that the sources pin.
    pub(crate) version: &'a str,
    /// Files of the module: name and text.
    pub(crate) sources: &'a [(&'a str, &'a str)],
    /// Arguments of go, before the output.
    pub(crate) arguments: Vec<String>,
    /// What to build: a package, or `.`.
    pub(crate) package: &'a str,
    /// Name of the one file that comes out.
    pub(crate) file: &'a str,
}

/// `build` with the flags that make a program small, and free of the place where it was built.
pub(crate) fn arguments(linker: &str) -> Vec<String> {
    let mut arguments = ["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(linker.to_owned());
    arguments
}

impl Build<'_> {
    /// The directory with the build; made if it is not there, which is reported on standard error and
    /// takes minutes. Processes that need the same build make it once.
    ///
    /// # Errors
    /// What is missing, in a sentence.
    pub(crate) fn ensure(
        &self,
        finish: impl Fn(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, String> {
        let cache = cache_directory()?;
        let prefix = format!("{}-{}-{}-", self.name, self.version, self.hash());
        // Without Go, a build by any version of it serves.
        let Some(go) = go_version() else {
            return find(&cache, &prefix).ok_or_else(|| {
                format!(
                    "there is no {prefix}* in the cache {}, and there is no `go` in PATH to build it \
                     with.",
                    cache.display()
                )
            });
        };
        let directory = cache.join(format!("{prefix}{go}"));
        if !directory.is_dir() {
            let failed = |error: io::Error| format!("building it with {go} failed: {error}.");
            fs::create_dir_all(&cache).map_err(failed)?;
            let lock = File::create(cache.join(format!("{}.lock", self.name))).map_err(failed)?;
            if let Err(TryLockError::WouldBlock) = lock.try_lock() {
                say(&format!(
                    "waiting for another process that builds {} {}",
                    self.title, self.version
                ));
                lock.lock().map_err(failed)?;
            }
            if !directory.is_dir() {
                self.build(&cache, &directory, finish).map_err(failed)?;
            }
        }
        Ok(directory)
    }

    fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (name, text) in self.sources {
            hash.update(format!("{name} {}\n{text}", text.len()));
        }
        hash.update(self.arguments.join(" "));
        hash.finalize()
            .iter()
            .take(6)
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }

    /// Builds into `directory`. The caller holds the lock of this name.
    fn build(
        &self,
        cache: &Path,
        directory: &Path,
        finish: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let staging_prefix = format!("{STAGING_PREFIX}{}-", self.name);
        // What a killed build left behind; nobody else builds this while the lock is held.
        for entry in fs::read_dir(cache)?.flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(&staging_prefix)
            {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let staging = tempfile::Builder::new()
            .prefix(&staging_prefix)
            .tempdir_in(cache)?;
        let (source, output) = (staging.path().join("source"), staging.path().join("output"));
        fs::create_dir(&source)?;
        fs::create_dir(&output)?;
        for (name, text) in self.sources {
            fs::write(source.join(name), text)?;
        }
        self.go_build(&source, &output.join(self.file))?;
        finish(&output)?;
        fs::rename(&output, directory)
    }

    fn go_build(&self, source: &Path, output: &Path) -> io::Result<()> {
        let mut command = Command::new("go");
        command
            .args(&self.arguments)
            .arg("-o")
            .arg(output)
            .arg(self.package)
            .current_dir(source)
            // Statically linked, and by this Go: a download of another one would be a surprise.
            .envs([
                ("CGO_ENABLED", "0"),
                ("GOTOOLCHAIN", "local"),
                ("GOWORK", "off"),
            ]);
        let report = Report {
            what: &format!("building {} {} from source, once", self.title, self.version),
            unit: "packages",
            // go tells about downloads, compiled packages and errors on the same stream; a package is
            // a single word.
            counts: |line| !line.contains(' ') && !line.is_empty(),
            delay: Duration::ZERO,
            kept_lines: ERROR_LINES,
        };
        let (status, lines) = progress::follow(&mut command, &report)?;
        if status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "go build: {status}; it ended with:\n{lines}\n"
        )))
    }
}

/// Where what takes long to make is kept.
///
/// # Errors
/// The environment does not say where.
pub(crate) fn cache_directory() -> Result<PathBuf, String> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("OPENSANDBOX_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("opensandbox")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/opensandbox")))
        .ok_or_else(|| "none of OPENSANDBOX_CACHE, XDG_CACHE_HOME, HOME is set.".to_owned())
}

fn find(cache: &Path, prefix: &str) -> Option<PathBuf> {
    let builds = fs::read_dir(cache).ok()?.flatten();
    builds
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .max()
}

/// `go1.26.1`, or nothing when there is no Go that could build.
fn go_version() -> Option<String> {
    let output = Command::new("go")
        .args(["env", "GOVERSION"])
        .output()
        .ok()?;
    let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && version.starts_with("go")).then_some(version)
}

/// A line on standard error, past the test harness, which swallows what passing tests print.
pub(crate) fn say(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}
