//! Which tasks the kernel killed because the container ran out of memory.
//!
//! The container counts such kills and does not say whom they hit. A task is taken to have been hit if it
//! ended as one that was, the count rose while it ran, and no other task accounts for that rise.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::protocol::Exit;

/// Where the count is, as a container sees it: cgroup v2, v1. Both have a line `oom_kill N`.
const FILES: [&str; 2] = [
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
];

/// The container's count of kills, read anew each time. Unknown where neither file is there.
#[derive(Debug)]
pub struct Kills(Option<File>);

impl Kills {
    /// Opens the count of the container that this process is in.
    pub fn open() -> Self {
        Self(FILES.iter().find_map(|path| File::open(path).ok()))
    }

    /// Opens the count of the container whose root is `root`, such as `/proc/PID/root`.
    pub fn of(root: &Path) -> Self {
        let below = |path: &&str| File::open(root.join(path.trim_start_matches('/'))).ok();
        Self(FILES.iter().find_map(below))
    }

    /// The count now.
    pub fn count(&self) -> Option<u64> {
        let mut text = [0; 512];
        let length = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        parse(text.get(..length)?)
    }
}

fn parse(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    count.trim().parse().ok()
}

/// Which kills tasks account for.
#[derive(Debug, Default)]
pub struct Attribution {
    /// Every kill up to this count is accounted for, or older than the tasks that run.
    accounted: u64,
}

impl Attribution {
    /// Whether a task was hit, of which the leader ended with `exit`, by a `SIGKILL` of ours if `killed`.
    /// `before` and `after` are the counts at its start and end. A kill is given to one task only.
    pub fn take(
        &mut self,
        exit: Exit,
        killed: bool,
        before: Option<u64>,
        after: Option<u64>,
    ) -> bool {
        // 137 is what a shell ends with whose child was killed.
        let as_if = match exit {
            Exit::Signal { signal: 9, .. } => !killed,
            Exit::Code(137) => true,
            _ => false,
        };
        let (Some(before), Some(after)) = (before, after) else {
            return false;
        };
        let known = self.accounted.max(before);
        let hit = as_if && after > known;
        if hit {
            self.accounted = known + 1;
        }
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Exit = Exit::Signal {
        signal: 9,
        core_dumped: false,
    };

    #[test]
    fn reads_both_kinds_of_file() {
        let second = b"low 0\nhigh 2\nmax 17\noom 4\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(parse(second), Some(3));
        assert_eq!(
            parse(b"oom_kill_disable 0\nunder_oom 0\noom_kill 12\n"),
            Some(12)
        );
        assert_eq!(parse(b"oom_kill_disable 0\n"), None);
        assert_eq!(parse(b"oom_kill many\n"), None);
        assert_eq!(parse(b"\xff"), None);
    }

    #[test]
    fn a_kill_is_given_to_one_task() {
        let mut oom = Attribution::default();
        assert!(oom.take(KILLED, false, Some(5), Some(6)));
        assert!(!oom.take(KILLED, false, Some(5), Some(6)));
        assert!(oom.take(KILLED, false, Some(5), Some(7)));
        assert!(!oom.take(KILLED, false, Some(7), Some(7)));
    }

    #[test]
    fn only_an_end_that_looks_like_it_counts() {
        let mut oom = Attribution::default();
        assert!(!oom.take(KILLED, true, Some(0), Some(1)), "we killed it");
        assert!(!oom.take(Exit::Code(1), false, Some(0), Some(1)));
        let segv = Exit::Signal {
            signal: 11,
            core_dumped: true,
        };
        assert!(!oom.take(segv, false, Some(0), Some(1)));
        assert!(
            oom.take(Exit::Code(137), false, Some(0), Some(1)),
            "a shell's child was hit"
        );
    }

    #[test]
    fn without_a_count_nothing_is_claimed() {
        let mut oom = Attribution::default();
        assert!(!oom.take(KILLED, false, None, Some(1)));
        assert!(!oom.take(KILLED, false, Some(0), None));
    }
}
