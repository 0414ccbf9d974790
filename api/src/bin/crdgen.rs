//! Writes the CRDs into a directory (`config/crd` by default), one file a kind, or with `--check`
//! compares and fails when they are stale.

use std::path::PathBuf;
use std::process::ExitCode;

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command that reports to its user"
)]
fn main() -> ExitCode {
    let mut check = false;
    let mut directory = PathBuf::from("config/crd");
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            "-h" | "--help" => {
                println!(
                    "usage: crdgen [--check] [DIRECTORY]\n\nWrites the CRDs into DIRECTORY (default config/crd)."
                );
                return ExitCode::SUCCESS;
            }
            path => directory = PathBuf::from(path),
        }
    }
    let mut stale = false;
    for (name, text) in opensandbox_api::v1alpha1::crd_files() {
        let path = directory.join(name);
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
