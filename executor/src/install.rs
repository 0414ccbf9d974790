//! Copies the programs to where another container finds them: a volume that the sandbox container mounts.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use opensandbox_api::labels;

use crate::agent::protocol::AGENT_NAME;

/// Everybody may run them, whatever user the sandbox has; nobody needs to write.
const MODE: u32 = 0o555;

/// Copies this program, and the agent's that stands beside it, into a directory that exists. What is there under
/// their names is replaced, also while it runs: an init container may be started again.
///
/// # Errors
///
/// The directory does not exist or cannot be written.
pub fn install(directory: &Path) -> Result<Vec<PathBuf>> {
    let program = std::env::current_exe().context("find this program")?;
    let agent = program.with_file_name(AGENT_NAME);
    let mut installed = vec![copy(&program, directory, labels::TASK_EXECUTOR)?];
    // Without it this program is the agent too.
    if agent.is_file() {
        installed.push(copy(&agent, directory, AGENT_NAME)?);
    }
    Ok(installed)
}

fn copy(program: &Path, directory: &Path, name: &str) -> Result<PathBuf> {
    let target = directory.join(name);
    let staging = directory.join(format!(".{name}"));
    let copied = fs::copy(program, &staging)
        .and_then(|_| fs::set_permissions(&staging, Permissions::from_mode(MODE)))
        .and_then(|()| fs::rename(&staging, &target));
    copied.with_context(|| {
        format!(
            "copy {} to {}; the directory must exist and be writable for this user",
            program.display(),
            target.display()
        )
    })?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_can_be_run_by_everybody_and_replaces_an_earlier_one() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let installed = install(directory.path()).unwrap();
            assert_eq!(installed[0], directory.path().join("task-executor"));
            let mode = fs::metadata(&installed[0]).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE);
        }
        let own = std::env::current_exe().unwrap();
        let copied = fs::read(directory.path().join("task-executor")).unwrap();
        assert!(copied == fs::read(own).unwrap(), "not the same program");
        // Nothing half-way is left.
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            names
                .iter()
                .all(|name| !name.to_string_lossy().starts_with('.')),
            "{names:?}"
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = install(Path::new("/no/such/directory")).unwrap_err();
        assert!(
            format!("{error:#}").contains("/no/such/directory"),
            "{error:#}"
        );
    }
}
