//! promtool, Prometheus' own tool for rules. Built once from the Go module pinned in `tests/promtool`, like
//! Kubernetes itself, without the ways to find targets, which make most of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::cluster;
use crate::go_build::{self, Build};

/// The version of the module that `tests/promtool/go.mod` pins: Prometheus 3.11.3.
pub const VERSION: &str = "v0.311.3";

const SOURCES: [(&str, &str); 2] = [
    ("go.mod", include_str!("../promtool/go.mod")),
    ("go.sum", include_str!("../promtool/go.sum")),
];

/// promtool's program. `None`: it cannot be had on this machine, and that was said loudly; the test is to
/// return. Blocks while it is built.
///
/// # Errors
/// It cannot be had, and `OPENSANDBOX_REQUIRE_CLUSTER` is `1`.
pub fn program() -> Result<Option<PathBuf>> {
    let mut arguments = go_build::arguments("-s -w");
    arguments.push("-tags=remove_all_sd".to_owned());
    let build = Build {
        name: "promtool",
        title: "promtool",
        version: VERSION,
        sources: &SOURCES,
        arguments,
        package: "github.com/prometheus/prometheus/cmd/promtool",
        file: "promtool",
    };
    match build.ensure(|_| Ok(())) {
        Ok(directory) => Ok(Some(directory.join("promtool"))),
        Err(error) => {
            cluster::skip(anyhow!("promtool {VERSION} is needed: {error}"))?;
            Ok(None)
        }
    }
}

/// What promtool prints when it is content.
///
/// # Errors
/// It is not; the error has what it says.
pub fn run(program: &Path, arguments: &[&str], file: &Path) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .arg(file)
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{}\n{said}", output.status);
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_one_that_is_pinned() {
        let (_, go_mod) = SOURCES[0];
        let line = format!("\tgithub.com/prometheus/prometheus {VERSION} // indirect\n");
        assert!(go_mod.contains(&line), "{go_mod}");
    }
}
