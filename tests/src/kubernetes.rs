//! Where the programs of Kubernetes come from: the directory `KUBEBUILDER_ASSETS` names (envtest's
//! convention), else the cache, else they are built once from the Go modules pinned in
//! `tests/kubernetes` and put there, see `go_build`: the one file `kubernetes`, and a link to it for each
//! program.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::go_build::{self, Build};

pub(crate) use crate::go_build::say;

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
    let build = Build {
        name: "kubernetes",
        title: "Kubernetes",
        version: VERSION,
        sources: &SOURCES,
        arguments: go_build::arguments(&linker_flags()),
        package: ".",
        file: FILE,
    };
    let directory = build.ensure(|output| {
        PROGRAMS
            .iter()
            .try_for_each(|program| symlink(FILE, output.join(program)))
    });
    directory
        .map(in_cache)
        .map_err(|error| Unavailable(format!("KUBEBUILDER_ASSETS is not set, and {error}")))
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
    go_build::cache_directory().map_err(Unavailable)
}

fn linker_flags() -> String {
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
    flags
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

#[cfg(test)]
mod tests {
    use std::fs;

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
