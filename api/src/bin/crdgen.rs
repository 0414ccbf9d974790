//! Writes the CRDs, one file a kind, into config/crd for kustomize and into the chart, which can read no file
//! outside itself, and the API reference into docs/api.md; with a directory the CRDs alone, into that. With
//! `--check` it compares and fails when something is stale.

use std::path::PathBuf;
use std::process::ExitCode;

use opensandbox_api::v1alpha1::{REFERENCE, crd_files, reference};

/// Where the CRDs are kept.
const DIRECTORIES: [&str; 2] = ["config/crd", "config/helm/opensandbox/files/crds"];

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command that reports to its user"
)]
fn main() -> ExitCode {
    let mut check = false;
    let mut directory = None;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            "-h" | "--help" => {
                println!(
                    "usage: crdgen [--check] [DIRECTORY]\n\nWrites the CRDs into DIRECTORY, or into {}, with the API reference into {REFERENCE}.",
                    DIRECTORIES.join(" and ")
                );
                return ExitCode::SUCCESS;
            }
            path => directory = Some(PathBuf::from(path)),
        }
    }
    let mut stale = false;
    let mut files = Vec::new();
    let directories = if let Some(directory) = directory {
        vec![directory]
    } else {
        files.push((PathBuf::from(REFERENCE), reference()));
        DIRECTORIES.map(PathBuf::from).to_vec()
    };
    for directory in directories {
        let crds = crd_files().into_iter();
        files.extend(crds.map(|(name, text)| (directory.join(name), text)));
    }
    for (path, text) in files {
        if check {
            if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
                eprintln!("{} is stale; run `cargo crdgen`", path.display());
                stale = true;
            }
        } else if let Err(error) = std::fs::write(&path, text) {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        } else {
            println!("{}", path.display());
        }
    }
    if stale {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
