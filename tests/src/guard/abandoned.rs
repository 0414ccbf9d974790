//! What a guard that was killed could not do any more. Its programs are dead by then, since the
//! kernel kills them with the guard, but not what those had started, and its directory exists.
//!
//! Whatever a guard starts carries the guard's directory in its environment, as everything does that
//! those programs start in turn, so it is found wherever it went in the tree of processes. And a
//! guard holds a lock in its directory, so a directory without a living guard is known.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::cgroups;

/// Directories of guards carry this prefix.
const DIRECTORY_PREFIX: &str = "opensandbox-cluster-";
/// Held locked by the guard a directory belongs to.
const LOCK_FILE: &str = "guard.lock";
/// The variable that holds the guard's directory.
pub(super) const VARIABLE: &str = "OPENSANDBOX_GUARD_DIRECTORY";
/// Processes are looked for again until none is left, as they may start others meanwhile. Each look
/// kills all it sees, so when it takes longer than this, a process is stuck in the kernel.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// The directory that lives as long as its guard.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    lock: File,
}

impl Directory {
    /// A fresh one below `base`.
    pub(super) fn create(base: &Path) -> io::Result<Self> {
        let builder = tempfile::Builder::new()
            .prefix(DIRECTORY_PREFIX)
            .tempdir_in(base);
        let path = builder?.keep();
        // Locked before it has the name that others look for, so that none of them can take a new
        // directory for an abandoned one.
        let unlocked = path.join("guard.lock.new");
        let lock = File::create(&unlocked)?;
        lock.lock()?;
        fs::rename(&unlocked, path.join(LOCK_FILE))?;
        Ok(Self { path, lock })
    }

    /// Deletes it, with all that is in it.
    pub(super) fn remove(self) -> io::Result<()> {
        let Self { path, lock } = self;
        cgroups::remove(&path);
        fs::remove_dir_all(&path)?;
        drop(lock);
        Ok(())
    }
}

/// Cleans up after every guard below `base` that was killed.
pub(super) fn clean_up_all(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(DIRECTORY_PREFIX)
        {
            clean_up(&entry.path());
        }
    }
}

/// Cleans up if `directory` belongs to a guard that was killed; does nothing if its guard lives, or
/// ended in order. Somebody else may be doing the same, or the directory is another user's: neither
/// is an error.
pub(super) fn clean_up(directory: &Path) {
    let Ok(lock) = File::open(directory.join(LOCK_FILE)) else {
        return;
    };
    if lock.try_lock().is_err() {
        return;
    }
    let begin = Instant::now();
    loop {
        let processes = processes_of(directory);
        if processes.is_empty() || begin.elapsed() > KILL_BOUND {
            break;
        }
        for process in processes {
            kill(process, Signal::SIGKILL).ok();
        }
        between_looks();
    }
    cgroups::remove(directory);
    fs::remove_dir_all(directory).ok();
}

/// A moment, in a loop that waits for the kernel with a bound.
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel does not tell when a process of somebody else has ended"
)]
pub(super) fn between_looks() {
    std::thread::sleep(Duration::from_millis(5));
}

/// The processes whose environment says that they are of this guard. Those of other users cannot be
/// looked into, and are not ours; those that ended have no environment any more.
fn processes_of(directory: &Path) -> Vec<Pid> {
    let mark = format!("{VARIABLE}={}", directory.display());
    let marked = |process: &Pid| {
        fs::read(format!("/proc/{process}/environ")).is_ok_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|v| v == mark.as_bytes())
        })
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|process| *process != getpid() && marked(process))
        .collect()
}
