//! Static programs in C, compiled with the machine's gcc once, and kept in the cache under a name
//! with the hash of the source and of the command line.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::kubernetes::{VERSION, cache_directory, source_directory};
use crate::node::packages;

const TOOL: &str = include_str!("../../programs/sandbox-tool.c");
const FLAGS: [&str; 4] = ["-Os", "-static", "-Wall", "-pthread"];

/// The program of the image [`TOOL`](super::TOOL).
pub(super) fn tool() -> Result<PathBuf> {
    compiled("sandbox-tool", &hash(TOOL), || Ok(TOOL.to_owned()), &[])
}

/// Kubernetes' pause. Its sources are not needed again once it is compiled.
pub(super) fn pause() -> Result<PathBuf> {
    let version = format!("-DVERSION={VERSION}");
    let source = || {
        let file = source_directory()?.join("build/pause/linux/pause.c");
        fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    };
    compiled("pause", &hash(VERSION), source, &[&version])
}

fn compiled(
    name: &str,
    key: &str,
    source: impl FnOnce() -> Result<String>,
    flags: &[&str],
) -> Result<PathBuf> {
    let cache = cache_directory()?.join("programs");
    let program = cache.join(format!("{name}-{key}-{}", std::env::consts::ARCH));
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&cache)?;
    // Two processes may do the same; the file that has the name is always whole.
    let staging = tempfile::tempdir_in(&cache)?;
    let (input, output) = (staging.path().join("source.c"), staging.path().join(name));
    fs::write(&input, source()?)?;
    let result = Command::new(packages::path_of("gcc")?)
        .args(FLAGS)
        .args(flags)
        .arg("-o")
        .args([&output, &input])
        .output()?;
    ensure!(
        result.status.success(),
        "{name} does not compile:\n{}",
        String::from_utf8_lossy(&result.stderr)
    );
    fs::rename(&output, &program)?;
    Ok(program)
}

fn hash(text: &str) -> String {
    hash_of(&[FLAGS.as_slice(), &[text]].concat())
}

/// A few hexadecimal digits that differ when one of these does.
pub(super) fn hash_of(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(format!("{} {part}\n", part.len()));
    }
    hash.finalize()
        .iter()
        .take(6)
        .fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").ok();
            text
        })
}
