//! The programs of this workspace, as files: what a test starts is what users get, a process, never
//! a function of the crate. They are built with Cargo when first asked for, in the profile and
//! target directory of the test itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::progress::{self, Report};

/// Most builds find that nothing is to be done and take less than this.
const UNTOLD: Duration = Duration::from_secs(2);
/// The lines of a failed build that its error repeats.
const ERROR_LINES: usize = 200;

/// The webhook's program. Blocks while it is built.
///
/// # Errors
/// It does not build.
pub fn webhook() -> Result<PathBuf> {
    built("opensandbox-webhook", "opensandbox-webhook")
}

/// The operator's program. Blocks while it is built.
///
/// # Errors
/// It does not build.
pub fn operator() -> Result<PathBuf> {
    built("opensandbox-operator", "opensandbox-operator")
}

/// The task executor's program. Blocks while it is built.
///
/// # Errors
/// It does not build.
pub fn executor() -> Result<PathBuf> {
    built("task-executor", "task-executor")
}

/// The task executor's program as it is released, for an image with nothing else in it: optimised and
/// statically linked. Blocks while it is built, in a directory of its own, so that neither build
/// undoes the other.
///
/// # Errors
/// It does not build.
pub fn static_executor() -> Result<PathBuf> {
    static_program("task-executor", "task-executor")
}

/// The agent's program, likewise.
///
/// # Errors
/// It does not build.
pub fn static_agent() -> Result<PathBuf> {
    static_program("task-executor", "task-executor-agent")
}

/// A program as it is released: optimised, and statically linked. Blocks while it is built.
///
/// # Errors
/// It does not build.
pub(crate) fn static_program(package: &str, program: &str) -> Result<PathBuf> {
    let target = target_directory()?.join("static");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Output {
        directory: target.join(&triple).join("release"),
        target_directory: target,
        triple: Some(triple),
        profile: "release".to_owned(),
    };
    output.build(&workspace(), package, program, true)?;
    let path = output.directory.join(program);
    ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}

/// Where Cargo put this program.
///
/// # Errors
/// Cargo did not.
pub(crate) fn target_directory() -> Result<PathBuf> {
    Ok(Output::of(&std::env::current_exe()?)?.target_directory)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The guard's program, see [`guard`](crate::guard).
pub(crate) fn cluster_guard() -> Result<PathBuf> {
    // Set by `cargo test` for the programs of the package it tests, which are then up to date.
    match std::env::var_os("CARGO_BIN_EXE_cluster-guard") {
        Some(path) => Ok(path.into()),
        None => built("opensandbox-tests", "cluster-guard"),
    }
}

/// Path of a program of the workspace, built by `cargo build` once per process. Blocks.
///
/// # Errors
/// It does not build.
pub fn built(package: &str, program: &str) -> Result<PathBuf> {
    static BUILT: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    // Held while building, so that concurrent tests wait for one build instead of starting theirs.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(program) {
        return Ok(path.clone());
    }
    let output = Output::of(&std::env::current_exe()?)?;
    let path = output.directory.join(program);
    let workspace = workspace();
    // Where the sources are gone, a program beside this one is all there is.
    if workspace.join("Cargo.toml").is_file() {
        output.build(&workspace, package, program, false)?;
    }
    ensure!(path.is_file(), "there is no {}", path.display());
    built.insert(program.to_owned(), path.clone());
    Ok(path)
}

/// Where Cargo puts programs: `TARGET/PROFILE`, or `TARGET/TRIPLE/PROFILE` when it builds for a
/// named platform.
#[derive(Debug, Eq, PartialEq)]
struct Output {
    directory: PathBuf,
    target_directory: PathBuf,
    triple: Option<String>,
    profile: String,
}

impl Output {
    /// The one that `executable` is in: tests are in its `deps`.
    fn of(executable: &Path) -> Result<Self> {
        let parent = executable
            .parent()
            .context("an executable is in a directory")?;
        let directory = if parent.ends_with("deps") {
            parent.parent()
        } else {
            Some(parent)
        };
        let directory = directory.context("the test is not in a target directory")?;
        let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let profile = match name(directory)
            .context("the target directory has no name")?
            .as_str()
        {
            "debug" => "dev".to_owned(),
            other => other.to_owned(),
        };
        let above = directory
            .parent()
            .context("a profile is below the target directory")?;
        // Cargo marks the target directory, and only that.
        let (target_directory, triple) = match above.parent() {
            Some(target) if target.join("CACHEDIR.TAG").is_file() => (target, name(above)),
            _ => (above, None),
        };
        Ok(Self {
            directory: directory.to_owned(),
            target_directory: target_directory.to_owned(),
            triple,
            profile,
        })
    }

    fn build(
        &self,
        workspace: &Path,
        package: &str,
        program: &str,
        static_libraries: bool,
    ) -> Result<()> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        let packages: &[&str] = if static_libraries {
            // As it is released: with the features that it asks for itself.
            &["--package", package]
        } else {
            // As `cargo test --workspace` built it a moment ago. For one package alone its dependencies
            // would have other features, and be compiled once more.
            &["--workspace"]
        };
        command
            .arg("build")
            .args(packages)
            .args(["--bin", program])
            .args(["--profile", &self.profile, "--target-dir"])
            .arg(&self.target_directory)
            .current_dir(workspace);
        // What the Cargo that runs this process told it about its own package. Build scripts (that of
        // ring) ask to be run again when these differ, and everything above them is then compiled
        // anew: by this build, and again by the next that a person starts.
        let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in variables.filter(|name| is_of_a_package(name)) {
            command.env_remove(name);
        }
        if let Some(triple) = &self.triple {
            command.args(["--target", triple]);
            if static_libraries {
                let name = triple.replace('-', "_").to_uppercase();
                command
                    .env(
                        format!("CARGO_TARGET_{name}_RUSTFLAGS"),
                        "-C target-feature=+crt-static",
                    )
                    // They would count instead.
                    .env_remove("RUSTFLAGS")
                    .env_remove("CARGO_ENCODED_RUSTFLAGS");
            }
        }
        let report = Report {
            what: &format!("building {program}"),
            unit: "crates",
            counts: |line| line.trim_start().starts_with("Compiling "),
            delay: UNTOLD,
            kept_lines: ERROR_LINES,
        };
        let (status, lines) = progress::follow(&mut command, &report).context("start cargo")?;
        ensure!(status.success(), "{program} does not build:\n{lines}");
        Ok(())
    }
}

/// Whether Cargo sets this variable for the package that it runs, and not a person for Cargo.
fn is_of_a_package(variable: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_EXE_"];
    let names = [
        "CARGO_BIN_NAME",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
    ];
    prefixes.iter().any(|prefix| variable.starts_with(prefix)) || names.contains(&variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_cargo_are_not_those_of_a_package() {
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_BIN_EXE_demo"] {
            assert!(is_of_a_package(name), "{name}");
        }
        for name in [
            "CARGO",
            "CARGO_HOME",
            "CARGO_TERM_COLOR",
            "CARGO_PROFILE_DEV_DEBUG",
            "PATH",
        ] {
            assert!(!is_of_a_package(name), "{name}");
        }
    }

    #[test]
    fn output_is_found_from_a_test_and_from_a_program() {
        let target = tempfile::tempdir().unwrap();
        std::fs::write(target.path().join("CACHEDIR.TAG"), "").unwrap();
        let check = |executable: &str, directory: &str, triple: Option<&str>, profile: &str| {
            let expected = Output {
                directory: target.path().join(directory),
                target_directory: target.path().to_owned(),
                triple: triple.map(str::to_owned),
                profile: profile.to_owned(),
            };
            assert_eq!(
                Output::of(&target.path().join(executable)).unwrap(),
                expected
            );
        };
        check("debug/deps/some_test-1", "debug", None, "dev");
        check("debug/demo", "debug", None, "dev");
        check("release/demo", "release", None, "release");
        check("ci/deps/some_test-1", "ci", None, "ci");
        let triple = "x86_64-unknown-linux-musl";
        let directory = format!("{triple}/release");
        check(
            &format!("{directory}/demo"),
            &directory,
            Some(triple),
            "release",
        );
    }
}
