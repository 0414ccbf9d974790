//! Where the programs of Kubernetes come from: the directory `KUBEBUILDER_ASSETS` names (envtest's
//! convention), else the cache, else they are built once from the Go modules pinned in
//! `tests/kubernetes` and put there.
//!
//! The cache is `$OPENSANDBOX_CACHE`, else `$XDG_CACHE_HOME/opensandbox`, else
//! `$HOME/.cache/opensandbox`, with one directory per build:
//! `kubernetes-VERSION-HASH-GOVERSION/`, where the hash is over what is built and how. In it are the
//! one file `kubernetes` and a link to it for each program. Directories are renamed into place when
//! complete, so what has the name is whole.

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::progress::{self, Report};

/// The release that `tests/kubernetes/go.mod` pins.
pub const VERSION: &str = "v1.34.4";

/// What is built.
const SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../kubernetes/go.mod")),
    ("go.sum", include_str!("../kubernetes/go.sum")),
    ("main.go", include_str!("../kubernetes/main.go")),
];
/// The one file in a cached build.
const FILE: &str = "kubernetes";
/// The programs it contains; the keys of the table in `main.go`.
const PROGRAMS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];
/// Where a build is made before it gets its name.
const STAGING_PREFIX: &str = "building-";
/// The lines of a failed build that its error repeats.
const ERROR_LINES: usize = 30;

/// The programs of Kubernetes on this machine.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
    kubectl: PathBuf,
}

impl Binaries {
    /// Path of one of the programs. `kubectl` may be elsewhere than the others.
    pub fn path(&self, program: &str) -> PathBuf {
        if program == "kubectl" {
            self.kubectl.clone()
        } else {
            self.directory.join(program)
        }
    }
}

/// The programs cannot be had on this machine. Tests that need them are then skipped, see
/// [`shared`](crate::cluster::shared).
#[derive(Debug)]
pub struct Unavailable(String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "a real Kubernetes {VERSION} is needed: {}\n\
             Remedies: install Go 1.24 or newer, with access to a Go module proxy, and run again \
             (it is built once, in a few minutes); or set KUBEBUILDER_ASSETS to a directory with \
             etcd, kube-apiserver and kubectl, such as `setup-envtest use -p path` prints.",
            self.0
        )
    }
}

impl std::error::Error for Unavailable {}

/// Finds the programs, or builds them; a build is reported on standard error and takes minutes.
/// Processes that need the same build make it once. Blocks.
///
/// # Errors
/// What is missing, and the remedies.
pub fn ensure_binaries() -> Result<Binaries, Unavailable> {
    match std::env::var_os("KUBEBUILDER_ASSETS") {
        Some(directory) if !directory.is_empty() => assets(Path::new(&directory)),
        _ => cached_or_built(),
    }
}

/// [`ensure_binaries`] for a node: `KUBEBUILDER_ASSETS` counts only if the programs of a node are in it,
/// which envtest's are not. Blocks.
///
/// # Errors
/// What is missing, and the remedies.
pub fn ensure_node_binaries() -> Result<Binaries, Unavailable> {
    match std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        Some(directory)
            if PROGRAMS
                .iter()
                .all(|program| directory.join(program).is_file()) =>
        {
            assets(&directory)
        }
        _ => cached_or_built(),
    }
}

/// The kubectl of this machine if it has one, else ours, see [`ensure_binaries`]. Blocks.
///
/// # Errors
/// What is missing, and the remedies.
pub fn kubectl() -> Result<PathBuf, Unavailable> {
    match on_path("kubectl") {
        Some(kubectl) => Ok(kubectl),
        None => Ok(ensure_binaries()?.kubectl),
    }
}

fn assets(directory: &Path) -> Result<Binaries, Unavailable> {
    for program in ["etcd", "kube-apiserver"] {
        if !directory.join(program).is_file() {
            let directory = directory.display();
            return Err(Unavailable(format!(
                "KUBEBUILDER_ASSETS is {directory}, but there is no {program} in it."
            )));
        }
    }
    let kubectl = directory.join("kubectl");
    let kubectl = if kubectl.is_file() {
        kubectl
    } else {
        on_path("kubectl").ok_or_else(|| {
            let directory = directory.display();
            Unavailable(format!(
                "there is no kubectl in {directory} (KUBEBUILDER_ASSETS) or in PATH."
            ))
        })?
    };
    Ok(Binaries {
        directory: directory.to_owned(),
        kubectl,
    })
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn cached_or_built() -> Result<Binaries, Unavailable> {
    let cache = cache_directory()?;
    let prefix = format!("kubernetes-{VERSION}-{}-", build_hash());
    // Without Go, a build by any version of it serves.
    let Some(go) = go_version() else {
        return find_build(&cache, &prefix).map(in_cache).ok_or_else(|| {
            Unavailable(format!(
                "KUBEBUILDER_ASSETS is not set, there is no {prefix}* in the cache {}, and there is \
                 no `go` in PATH to build it with.",
                cache.display()
            ))
        });
    };
    let directory = cache.join(format!("{prefix}{go}"));
    if !directory.is_dir() {
        let failed =
            |error: io::Error| Unavailable(format!("building it with {go} failed: {error}."));
        fs::create_dir_all(&cache).map_err(failed)?;
        let lock = File::create(cache.join("kubernetes.lock")).map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            say(&format!(
                "waiting for another process that builds Kubernetes {VERSION}"
            ));
            lock.lock().map_err(failed)?;
        }
        if !directory.is_dir() {
            build(&cache, &directory).map_err(failed)?;
        }
    }
    Ok(in_cache(directory))
}

fn in_cache(directory: PathBuf) -> Binaries {
    let kubectl = directory.join("kubectl");
    Binaries { directory, kubectl }
}

/// Where what takes long to make is kept.
///
/// # Errors
/// The environment does not say where.
pub(crate) fn cache_directory() -> Result<PathBuf, Unavailable> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("OPENSANDBOX_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("opensandbox")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/opensandbox")))
        .ok_or_else(|| {
            Unavailable("none of OPENSANDBOX_CACHE, XDG_CACHE_HOME, HOME is set.".to_owned())
        })
}

fn find_build(cache: &Path, prefix: &str) -> Option<PathBuf> {
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

fn build_arguments() -> Vec<String> {
    let number = VERSION.trim_start_matches('v');
    let mut parts = number.split('.');
    let (major, minor) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    // Without debug information: half the size. The version is what servers and clients report.
    let mut flags = "-s -w".to_owned();
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for (name, value) in [
            ("gitVersion", VERSION),
            ("gitMajor", major),
            ("gitMinor", minor),
        ] {
            write!(flags, " -X {package}.{name}={value}").expect("a String takes all");
        }
    }
    // Neither the place nor a repository around it goes into the file.
    let mut arguments = ["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(flags);
    arguments
}

fn build_hash() -> String {
    let mut hash = Sha256::new();
    for (name, text) in SOURCES {
        hash.update(format!("{name} {}\n{text}", text.len()));
    }
    hash.update(build_arguments().join(" "));
    hash.finalize()
        .iter()
        .take(6)
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Builds into `directory`. The caller holds the lock of the cache.
fn build(cache: &Path, directory: &Path) -> io::Result<()> {
    // What a killed build left behind; nobody else builds while the lock is held.
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
    let (source, output) = (staging.path().join("source"), staging.path().join("output"));
    fs::create_dir(&source)?;
    fs::create_dir(&output)?;
    for (name, text) in SOURCES {
        fs::write(source.join(name), text)?;
    }
    go_build(&source, &output.join(FILE))?;
    for program in PROGRAMS {
        symlink(FILE, output.join(program))?;
    }
    fs::rename(&output, directory)
}

/// The directory of the module `k8s.io/kubernetes` with the sources of the release; it is downloaded
/// if it is not there. Blocks.
///
/// # Errors
/// There is no Go, or no module proxy.
pub(crate) fn source_directory() -> io::Result<PathBuf> {
    let output = Command::new("go")
        .args(["mod", "download", "-json"])
        .arg(format!("k8s.io/kubernetes@{VERSION}"))
        .envs([("GOTOOLCHAIN", "local"), ("GOWORK", "off")])
        // Outside of any module, whose settings would count.
        .current_dir(std::env::temp_dir())
        .output()?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match (answer.get("Dir"), answer.get("Error")) {
        (Some(serde_json::Value::String(directory)), None) => Ok(directory.into()),
        (_, error) => Err(io::Error::other(format!(
            "the sources of Kubernetes {VERSION} cannot be had: {}{}",
            error.map(ToString::to_string).unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        ))),
    }
}

fn go_build(source: &Path, output: &Path) -> io::Result<()> {
    let mut command = Command::new("go");
    command
        .args(build_arguments())
        .arg("-o")
        .args([output, Path::new(".")])
        .current_dir(source)
        // Statically linked, and by this Go: a download of another one would be a surprise.
        .envs([
            ("CGO_ENABLED", "0"),
            ("GOTOOLCHAIN", "local"),
            ("GOWORK", "off"),
        ]);
    let report = Report {
        what: &format!("building Kubernetes {VERSION} from source, once"),
        unit: "packages",
        // go tells about downloads, compiled packages and errors on the same stream; a package is a
        // single word.
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

/// A line on standard error, past the test harness, which swallows what passing tests print.
pub(crate) fn say(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_one_that_is_pinned() {
        let (_, go_mod) = SOURCES[0];
        assert!(go_mod.contains(&format!("\tk8s.io/kubernetes {VERSION}\n")));
        let library = VERSION.replacen("v1", "v0", 1);
        for line in go_mod.lines().filter(|line| line.contains(" => ")) {
            assert!(line.ends_with(&library), "{line}");
        }
    }

    #[test]
    fn programs_are_those_of_the_file() {
        let (_, main) = SOURCES[2];
        for program in PROGRAMS {
            assert!(main.contains(&format!("\"{program}\":")), "{program}");
        }
    }

    #[test]
    fn assets_without_an_api_server_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("etcd"), "").unwrap();
        let error = assets(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("there is no kube-apiserver in it"),
            "{error}"
        );
        assert!(error.contains("Remedies"), "{error}");
    }

    #[test]
    fn assets_with_all_programs_are_used() {
        let directory = tempfile::tempdir().unwrap();
        for program in ["etcd", "kube-apiserver", "kubectl"] {
            fs::write(directory.path().join(program), "").unwrap();
        }
        let binaries = assets(directory.path()).unwrap();
        assert_eq!(binaries.path("etcd"), directory.path().join("etcd"));
        assert_eq!(binaries.path("kubectl"), directory.path().join("kubectl"));
    }
}
