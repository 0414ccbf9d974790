//! The control groups of a guard: each has the name of the guard's directory, right below the root
//! of a hierarchy, so whoever cleans up after a guard knows what to remove without having been told.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where all systems mount them: one directory per hierarchy in version 1, the hierarchy itself in
/// version 2.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// A group can be removed a moment after its last process has ended.
const BOUND: Duration = Duration::from_secs(10);

/// The name of the groups that belong to the guard with this directory.
pub(super) fn name(directory: &Path) -> &str {
    directory
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// Kills what is left in the groups of this guard, and removes them. What cannot be removed in time
/// stays: a process is stuck in the kernel.
pub(super) fn remove(directory: &Path) {
    let name = name(directory);
    if name.is_empty() {
        return;
    }
    let root = Path::new(ROOT);
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
    let mut groups = vec![root.join(name)];
    groups.extend(hierarchies.map(|hierarchy| hierarchy.path().join(name)));
    for group in groups.iter().filter(|group| group.is_dir()) {
        let begin = Instant::now();
        while let Err(error) = remove_group(group) {
            if error.kind() == io::ErrorKind::NotFound || begin.elapsed() > BOUND {
                break;
            }
            super::abandoned::between_looks();
        }
    }
}

/// Files of a control group cannot be removed, and need not be.
fn remove_group(group: &Path) -> io::Result<()> {
    for child in children(group)? {
        remove_group(&child)?;
    }
    for process in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        // 0 is a process that is not visible from here, and as a target means this process's group.
        if let Some(process) = process.parse().ok().filter(|process| *process > 0) {
            kill(Pid::from_raw(process), Signal::SIGKILL).ok();
        }
    }
    fs::remove_dir(group)
}

fn children(group: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(group)?.flatten();
    Ok(entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}
