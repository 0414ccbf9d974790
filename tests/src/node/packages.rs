//! What a node needs of the system: programs that are packages of every distribution. On Debian and
//! Ubuntu, as root, what is missing is installed, after saying so; elsewhere the error names it.

use std::fmt;
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::kubernetes::say;
use crate::progress::{self, Report};

/// One program of the system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Requirement {
    /// Name of the file.
    pub program: &'static str,
    /// Package of Debian and Ubuntu that contains it.
    pub package: &'static str,
    /// What it is for.
    purpose: &'static str,
}

const fn requirement(
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
) -> Requirement {
    Requirement {
        program,
        package,
        purpose,
    }
}

/// What every node needs.
pub(crate) const NODE: [Requirement; 10] = [
    requirement("containerd", "containerd", "runs containers"),
    requirement("containerd-shim-runc-v2", "containerd", "runs containers"),
    requirement("ctr", "containerd", "imports images"),
    requirement("runc", "runc", "runs containers"),
    requirement("host-local", "containernetworking-plugins", "connects pods"),
    requirement("portmap", "containernetworking-plugins", "connects pods"),
    requirement("iptables", "iptables", "services and masquerading"),
    requirement("ip", "iproute2", "connects the node to the machine"),
    requirement("mount", "mount", "volumes of pods"),
    requirement("gcc", "gcc libc6-dev", "builds the pause container"),
];

/// What the sandbox image is made with.
pub(crate) const SANDBOX_IMAGE: [Requirement; 3] = [
    requirement("unshare", "util-linux", "makes the sandbox image"),
    requirement("mmdebstrap", "mmdebstrap", "makes the sandbox image"),
    // A keyring, where a package has no program.
    requirement(
        "debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "checks what the sandbox image is made of",
    ),
];

/// What the Dockerfiles are tried with.
#[cfg(test)]
pub(crate) const BUILDER: [Requirement; 2] = [
    requirement(
        "unshare",
        "util-linux",
        "keeps the network from the builder",
    ),
    requirement("buildah", "buildah", "builds images from Dockerfiles"),
];

/// Where programs are, besides `PATH`: those of administrators and of CNI are not in that of users.
const DIRECTORIES: [&str; 7] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/sbin",
    "/usr/lib/cni",
    "/opt/cni/bin",
    "/usr/share/keyrings",
];
/// The lines of a failed installation that its error repeats.
const ERROR_LINES: usize = 20;
/// A script that dpkg asks before it starts a service of a new package.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// A node cannot be had on this machine. Tests that need one are then skipped, see
/// [`shared`](super::shared).
#[derive(Debug)]
pub struct Unavailable(String);

impl Unavailable {
    pub(crate) fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a real Kubernetes node is needed: {}", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Path of a program of the system.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// [`find`] for what [`ensure`] has found before.
pub(crate) fn path_of(program: &str) -> Result<PathBuf, Unavailable> {
    find(program).ok_or_else(|| Unavailable::new(format!("there is no program {program}.")))
}

/// Installs what is missing, where that is possible. Blocks.
///
/// # Errors
/// What is missing, and how to get it.
pub(crate) fn ensure(requirements: &[Requirement]) -> Result<(), Unavailable> {
    let missing = missing(requirements);
    if missing.is_empty() {
        return Ok(());
    }
    let root = nix::unistd::geteuid().is_root();
    let apt = find("apt-get").filter(|_| is_debian());
    match apt {
        Some(apt) if root => install(&apt, &missing),
        apt => Err(explain(&missing, apt.is_some(), root)),
    }
}

fn missing(requirements: &[Requirement]) -> Vec<Requirement> {
    let missing = requirements
        .iter()
        .filter(|requirement| find(requirement.program).is_none());
    missing.copied().collect()
}

fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    is_debian_release(&release)
}

fn is_debian_release(release: &str) -> bool {
    release
        .lines()
        .filter_map(|line| {
            line.strip_prefix("ID=")
                .or_else(|| line.strip_prefix("ID_LIKE="))
        })
        .flat_map(|ids| ids.trim_matches('"').split_whitespace())
        .any(|id| id == "debian" || id == "ubuntu")
}

/// The packages of these, each once.
fn packages(requirements: &[Requirement]) -> Vec<&'static str> {
    let mut packages: Vec<_> = requirements
        .iter()
        .flat_map(|requirement| requirement.package.split(' '))
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn explain(missing: &[Requirement], debian: bool, root: bool) -> Unavailable {
    let list = missing.iter().map(|requirement| {
        let Requirement {
            program,
            package,
            purpose,
        } = requirement;
        format!("\n  {program} ({purpose}; in Debian's package {package})")
    });
    let command = packages(missing).join(" ");
    let remedy = match (debian, root) {
        (true, false) => format!(
            "Remedies: run as root, which installs them (and a node needs root anyway); or \
             `apt-get install --no-install-recommends {command}`."
        ),
        _ => format!(
            "Remedies: install them with this system's package manager (on Debian and Ubuntu they \
             are installed by themselves: {command}), plugins of CNI to /opt/cni/bin."
        ),
    };
    Unavailable::new(format!(
        "these programs are missing:{}\n{remedy}",
        list.collect::<String>()
    ))
}

/// Without any network no list of packages is fetched: what is known may be enough.
fn install(apt: &Path, missing: &[Requirement]) -> Result<(), Unavailable> {
    let packages = packages(missing);
    let list = packages.join(" ");
    say(&format!(
        "this machine lacks packages that are needed here, so they are installed: {list}"
    ));
    let failed =
        |error: &dyn fmt::Display| Unavailable::new(format!("installing {list} failed: {error}"));
    let _policy = ServicePolicy::deny().map_err(|error| failed(&error))?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    let first = apt_get(apt, &arguments);
    let result = first.or_else(|_| {
        // Lists that are old or absent are the usual cause. Not all sources need to answer.
        apt_get(apt, &["update"]).ok();
        apt_get(apt, &arguments)
    });
    result.map_err(|error| failed(&error))?;
    let still = self::missing(missing);
    if still.is_empty() {
        Ok(())
    } else {
        Err(explain(&still, true, true))
    }
}

fn apt_get(apt: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(apt);
    command
        // Another apt may be at work.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        // One line per step on standard error, which is where they are counted.
        .args(["-o", "APT::Status-Fd=2"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(std::process::Stdio::null());
    let report = Report {
        what: &format!("apt-get {}", arguments.join(" ")),
        unit: "steps",
        counts: |line| line.starts_with("pmstatus:") || line.starts_with("dlstatus:"),
        delay: Duration::from_secs(2),
        kept_lines: ERROR_LINES,
    };
    let (status, lines) = progress::follow(&mut command, &report)?;
    anyhow::ensure!(status.success(), "{status}:\n{lines}");
    Ok(())
}

/// While it lives, dpkg starts no service: a containerd of the system is none of our business.
struct ServicePolicy {
    ours: bool,
    /// Services that the administrator had before us stay as they are.
    had_containerd: bool,
}

impl ServicePolicy {
    fn deny() -> std::io::Result<Self> {
        let had_containerd = find("containerd").is_some();
        let file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY);
        let ours = match file {
            Ok(mut file) => {
                use std::io::Write as _;
                file.write_all(b"#!/bin/sh\nexit 101\n")?;
                true
            }
            // An administrator's own policy is theirs.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        Ok(Self {
            ours,
            had_containerd,
        })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours {
            fs::remove_file(POLICY).ok();
        }
        // Nor at the next boot.
        if !self.had_containerd && Path::new("/run/systemd/system").is_dir() {
            let mut command = Command::new("systemctl");
            command.args(["--quiet", "disable", "containerd.service"]);
            command.output().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: [Requirement; 2] = [
        requirement("runc", "runc", "runs containers"),
        requirement("gcc", "gcc libc6-dev", "builds the pause container"),
    ];

    #[test]
    fn what_is_missing_is_named_with_a_remedy() {
        let error = explain(&PAIR, true, false).to_string();
        assert_eq!(
            error,
            "a real Kubernetes node is needed: these programs are missing:\n  \
             runc (runs containers; in Debian's package runc)\n  \
             gcc (builds the pause container; in Debian's package gcc libc6-dev)\n\
             Remedies: run as root, which installs them (and a node needs root anyway); or \
             `apt-get install --no-install-recommends gcc libc6-dev runc`."
        );
        let error = explain(&PAIR, false, true).to_string();
        assert!(error.contains("this system's package manager"), "{error}");
    }

    #[test]
    fn packages_are_named_once() {
        let packages = packages(&NODE);
        let mut unique = packages.clone();
        unique.dedup();
        assert_eq!(packages, unique);
        assert!(packages.contains(&"libc6-dev"));
    }

    #[test]
    fn what_is_there_is_found() {
        assert_eq!(missing(&[requirement("sh", "dash", "a shell")]), []);
        let absent = requirement("no-such-program-anywhere", "none", "nothing");
        assert_eq!(missing(&[absent]), [absent]);
    }

    #[test]
    fn debian_and_what_is_like_it_is_recognised() {
        assert!(is_debian_release("PRETTY_NAME=\"x\"\nID=debian\n"));
        assert!(is_debian_release(
            "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"
        ));
        assert!(!is_debian_release("ID=\"fedora\"\n"));
        assert!(!is_debian_release("NAME=debian\n"));
    }
}
