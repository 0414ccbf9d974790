//! The images that are released: one program each, statically linked, in an empty file system.
//!
//! `images/*/Dockerfile` makes them where there is a builder and a registry; this makes the same ones
//! without either, as OCI archives that are byte for byte the same for the same programs, with a list of
//! what is in each beside it. A test builds by them and compares.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use super::{Config, File, oci, sbom};
use crate::installation::repository;
use crate::programs;

/// An image of the project.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// Its name, with the registry that manifests and examples name.
    pub name: &'static str,
    /// The crate.
    pub(super) package: &'static str,
    /// Programs; the first is started.
    pub(super) programs: &'static [&'static str],
    user: &'static str,
    pub(super) title: &'static str,
    description: &'static str,
}

/// The admission webhook's.
pub const WEBHOOK: Release = Release {
    name: "opensandbox.io/webhook",
    package: "opensandbox-webhook",
    programs: &["opensandbox-webhook"],
    user: "65532:65532",
    title: "opensandbox-webhook",
    description: "Admission webhook of OpenSandbox pools: injects the task executor and validates",
};

/// The operator's.
pub const OPERATOR: Release = Release {
    name: "opensandbox.io/operator",
    package: "opensandbox-operator",
    programs: &["opensandbox-operator"],
    user: "65532:65532",
    title: "opensandbox-operator",
    description: "Operator of OpenSandbox pools: keeps pods warm, gives them to sandboxes, runs tasks",
};

/// The task executor's. As root, since a capability such as SYS_PTRACE has no effect for another user.
pub const EXECUTOR: Release = Release {
    name: "opensandbox.io/task-executor",
    package: "task-executor",
    programs: &["task-executor", "task-executor-agent"],
    user: "0:0",
    title: "task-executor",
    description: "Sidecar of OpenSandbox pods: runs tasks inside the sandbox container",
};

/// All of them.
pub const ALL: [Release; 3] = [WEBHOOK, OPERATOR, EXECUTOR];

impl Release {
    /// Its name with the tag of this version, as manifests have it.
    pub fn image(&self) -> String {
        format!("{}:v{}", self.name, env!("CARGO_PKG_VERSION"))
    }

    /// How its containers run, and what it says about itself; `revision` is that of the sources.
    pub fn config(&self, revision: Option<&str>) -> Config {
        let label = |name: &str, value: &str| {
            (format!("org.opencontainers.image.{name}"), value.to_owned())
        };
        let mut labels = vec![
            label("title", self.title),
            label("description", self.description),
            label("licenses", env!("CARGO_PKG_LICENSE")),
            label("version", concat!("v", env!("CARGO_PKG_VERSION"))),
        ];
        labels.extend(revision.map(|revision| label("revision", revision)));
        let program = self.programs.first().copied().unwrap_or_default();
        Config {
            entrypoint: vec![format!("/{program}")],
            user: self.user.to_owned(),
            labels,
            ..Config::default()
        }
    }

    /// The archive as bytes, of the programs in this directory.
    ///
    /// # Errors
    /// A program is missing.
    pub fn archive(&self, programs: &Path, revision: Option<&str>) -> Result<Vec<u8>> {
        let files: Vec<_> = self
            .programs
            .iter()
            .map(|program| File::program(format!("/{program}"), programs.join(program)))
            .collect();
        let mut archive = Vec::new();
        oci::write(
            &mut archive,
            &self.image(),
            &self.config(revision),
            &oci::layer(&files)?,
        )?;
        Ok(archive)
    }
}

/// Builds the programs as they are released, packs each into an image, and lists what is in it.
#[derive(Debug, Parser)]
#[command(name = "just images", version)]
struct Arguments {
    /// Where the archives, their lists and the programs go.
    #[arg(long, default_value = "dist")]
    output: PathBuf,
    /// Take the programs from this directory instead of building them.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// One image only, by its title.
    #[arg(long)]
    only: Option<String>,
}

/// `just images`.
#[expect(clippy::print_stderr, reason = "a command that reports to its user")]
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command that reports to its user")]
fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {
        output,
        programs,
        only,
    } = arguments;
    let releases: Vec<_> = ALL
        .into_iter()
        .filter(|release| only.as_ref().is_none_or(|only| only == release.title))
        .collect();
    ensure!(
        !releases.is_empty(),
        "--only={}: no such image; there are {}",
        only.as_deref().unwrap_or_default(),
        ALL.map(|release| release.title).join(", ")
    );
    // Where the Dockerfiles look for programs that are built already.
    let directory = output.join(format!("linux-{}", oci::architecture()));
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let revision = revision();
    for release in releases {
        for program in release.programs {
            let built = match programs {
                Some(programs) => programs.join(program),
                None => programs::static_program(release.package, program)?,
            };
            let copy = directory.join(program);
            fs::copy(&built, &copy).with_context(|| format!("copy {}", built.display()))?;
        }
        let stem = format!(
            "{}-v{}-linux-{}",
            release.title,
            env!("CARGO_PKG_VERSION"),
            oci::architecture()
        );
        let archive = release.archive(&directory, revision.as_deref())?;
        let list = sbom::list(release.package, release.programs, &directory)?;
        for (name, content) in [
            (format!("{stem}.oci.tar"), archive),
            (format!("{stem}.cdx.json"), list.into_bytes()),
        ] {
            let path = output.join(name);
            let size = content.len();
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
            println!("{} ({size} bytes)", path.display());
        }
    }
    Ok(())
}

/// The commit of the sources, if they are one without changes.
fn revision() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(repository("."))
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    changes.is_empty().then(|| git(&["rev-parse", "HEAD"]))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_programs_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        for release in ALL {
            for program in release.programs {
                fs::write(directory.path().join(program), program).unwrap();
            }
            let archive = |revision| release.archive(directory.path(), revision).unwrap();
            let first = archive(Some("abc"));
            // Files have another time now.
            for program in release.programs {
                fs::write(directory.path().join(program), program).unwrap();
            }
            assert_eq!(first, archive(Some("abc")), "{}", release.title);
            assert_ne!(first, archive(None), "{}", release.title);
        }
    }
}
