//! What `/proc` says about processes.

use std::collections::HashMap;

use crate::kernel_file;

/// One process, from `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// Number of its threads.
    pub threads: u64,
    /// When it started, in ticks since boot: with its number, a name for good.
    pub started: u64,
    /// It has ended and is not reaped. (Not one whose first thread alone has ended.)
    pub over: bool,
}

impl Status {
    /// Reads that of `pid`, if it exists and may be seen.
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&kernel_file::read(format!("/proc/{pid}/stat"), u64::MAX).ok()?)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The name, in parentheses, may hold anything, parentheses too.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(20).collect();
        // proc_pid_stat(5) counts from 1, and the name is 2: field N is here at N - 3.
        let number = |field: usize| {
            fields
                .get(field - 3)
                .and_then(|text| text.parse::<i64>().ok())
        };
        let threads = number(20).and_then(|threads| u64::try_from(threads).ok())?;
        Some(Self {
            parent: i32::try_from(number(4)?).ok()?,
            group: i32::try_from(number(5)?).ok()?,
            session: i32::try_from(number(6)?).ok()?,
            threads,
            started: u64::try_from(number(22)?).ok()?,
            over: matches!(fields.first(), Some(&("Z" | "X"))) && threads <= 1,
        })
    }
}

/// Who is whose child.
#[derive(Debug)]
pub struct Children {
    /// From all of `/proc`, where the kernel does not keep the lists (`CONFIG_PROC_CHILDREN`).
    scanned: Option<HashMap<i32, Vec<i32>>>,
}

impl Children {
    /// As of now.
    pub fn now() -> Self {
        let me = std::process::id();
        let kept = std::path::Path::new(&format!("/proc/{me}/task/{me}/children")).exists();
        Self {
            scanned: if kept { None } else { Some(scan()) },
        }
    }

    /// Children of a process with that many threads.
    pub fn of(&self, pid: i32, threads: u64) -> Vec<i32> {
        if let Some(scanned) = &self.scanned {
            return scanned.get(&pid).cloned().unwrap_or_default();
        }
        if threads <= 1 {
            return kept(pid, pid);
        }
        numbers_in(&format!("/proc/{pid}/task"))
            .into_iter()
            .flat_map(|thread| kept(pid, thread))
            .collect()
    }
}

fn kept(pid: i32, thread: i32) -> Vec<i32> {
    let text = kernel_file::read(format!("/proc/{pid}/task/{thread}/children"), u64::MAX)
        .unwrap_or_default();
    let words = text.split(|byte| *byte == b' ');
    words
        .filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
        .collect()
}

fn scan() -> HashMap<i32, Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in numbers_in("/proc") {
        if let Some(status) = Status::read(pid) {
            children.entry(status.parent).or_default().push(pid);
        }
    }
    children
}

fn numbers_in(directory: &str) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_status_whatever_the_name() {
        let text = b"41 (a) b (x\xff) S 7 40 39 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 1234 0 0";
        let status = Status::parse(text).unwrap();
        let Status {
            parent,
            group,
            session,
            threads,
            started,
            over,
        } = status;
        assert_eq!(
            (parent, group, session, threads, started),
            (7, 40, 39, 3, 1234)
        );
        assert!(!over);
    }

    #[test]
    fn a_process_whose_first_thread_ended_is_not_over() {
        let one = b"1 (a) Z 7 40 39 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 1234 0 0";
        let two = b"1 (a) Z 7 40 39 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 2 0 1234 0 0";
        assert!(Status::parse(one).unwrap().over);
        assert!(!Status::parse(two).unwrap().over);
    }

    #[test]
    fn what_is_no_status_is_none() {
        for text in [&b""[..], b"1 (a", b"1 (a) S", b"1 (a) S x y z"] {
            assert_eq!(Status::parse(text), None);
        }
    }

    #[test]
    fn both_ways_find_a_child() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(
            scan()
                .get(&me)
                .is_some_and(|children| children.contains(&pid))
        );
        let threads = Status::read(me).unwrap().threads.max(2);
        assert!(Children { scanned: None }.of(me, threads).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
