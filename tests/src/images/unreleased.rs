//! Webhook and operator in images for a [`Node`](crate::Node) of this machine, without a build of their own:
//! the programs that tests start as processes, with the shared libraries of this machine that they ask for.
//! What is released is static and alone, see [`release`](super::release).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::release::{OPERATOR, Release, WEBHOOK};
use super::{File, Image, static_image};
use crate::programs;

/// The images that the chart and config/default name. Block while the programs are built.
///
/// # Errors
/// A program does not build, or its libraries are not found.
pub fn control_plane() -> Result<[Image; 2]> {
    Ok([
        image(&WEBHOOK, programs::webhook()?)?,
        image(&OPERATOR, programs::operator()?)?,
    ])
}

fn image(release: &Release, program: PathBuf) -> Result<Image> {
    let mut files: Vec<_> = libraries(&program)?
        .into_iter()
        .map(|path| File::program(path.clone(), path))
        .collect();
    files.push(File::program(format!("/{}", release.title), program));
    static_image(&release.image(), &files, &release.config(None))
}

/// What the program's loader says that it needs, and the loader itself.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    ensure!(
        output.status.success(),
        "ldd {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(paths(&String::from_utf8_lossy(&output.stdout)))
}

/// `name => /path (address)`, `/path (address)`; one that the kernel maps has no path.
fn paths(text: &str) -> Vec<String> {
    let words = text.lines().filter_map(|line| {
        let found = line.split_whitespace().find(|word| word.starts_with('/'));
        found.map(str::to_owned)
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_have_paths_but_for_the_one_of_the_kernel() {
        let text = "\tlinux-vdso.so.1 (0x00007f99)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f98)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f97)\n";
        assert_eq!(
            paths(text),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
