//! Processes of pods as the machine sees them, by its `/proc`: nothing in a pod can forge that. All
//! process ids are the machine's. A process that ends meanwhile has nothing to say: `None`, or no
//! entry in a list.

use std::fs;
use std::path::PathBuf;

/// What argv 0 of an agent is.
const AGENT_NAME: &str = "task-executor-agent";

/// Some fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stat {
    /// One letter, `Z` for a process that has ended and was not waited for.
    pub state: char,
    /// Process id of the parent.
    pub parent: i32,
    /// Time on a processor in user space, in ticks.
    pub user_time: u64,
    /// Start, in ticks after the start of the machine.
    pub start: u64,
}

/// What there is of a process that something done to it could leave traces in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Traces {
    /// Start, in ticks after the start of the machine.
    pub start: u64,
    /// Process id of who traces it, 0 if nobody does.
    pub tracer: i32,
    /// Its descriptors and what they are of, in rising order.
    pub descriptors: Vec<(i32, String)>,
    /// `/proc/PID/maps`.
    pub maps: String,
    /// Signals that are blocked, ignored and caught.
    pub signals: Vec<Option<String>>,
}

/// What `/proc/PID/stat` says.
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may contain some.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    // The first of these is field 3 of proc(5).
    let field = |number: usize| fields.get(number - 3);
    Some(Stat {
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        user_time: field(14)?.parse().ok()?,
        start: field(22)?.parse().ok()?,
    })
}

/// A field of `/proc/PID/status`.
pub fn status(pid: i32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned())
}

/// Resident memory in KiB.
pub fn resident_kib(pid: i32) -> Option<u64> {
    status(pid, "VmRSS")?.trim_end_matches(" kB").parse().ok()
}

/// Whether there is such a process, and it has not ended.
pub fn lives(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Its arguments; none of a process that has ended.
pub fn arguments(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.trim_end_matches('\0')
        .split('\0')
        .map(str::to_owned)
        .collect()
}

/// Whether it is an agent, or the part of one that watches over a task.
pub fn is_agent(pid: i32) -> bool {
    arguments(pid)
        .first()
        .is_some_and(|name| name == AGENT_NAME)
}

/// What could be different in it afterwards.
pub fn traces(pid: i32) -> Option<Traces> {
    let signals = ["SigBlk", "SigIgn", "SigCgt"].map(|field| status(pid, field));
    Some(Traces {
        start: stat(pid)?.start,
        tracer: status(pid, "TracerPid")?.parse().ok()?,
        descriptors: descriptors(pid),
        maps: fs::read_to_string(format!("/proc/{pid}/maps")).ok()?,
        signals: signals.into(),
    })
}

fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut descriptors: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect();
    descriptors.sort_unstable();
    descriptors
}

/// All processes that share a namespace of processes with this one, those that have ended and were
/// not waited for among them: of a pod with `shareProcessNamespace`, all of the pod's.
pub fn beside(pid: i32) -> Vec<i32> {
    let Some(own) = namespace_of(pid) else {
        return Vec::new();
    };
    let mut processes: Vec<_> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|other| namespace_of(*other).as_ref() == Some(&own))
        .collect();
    processes.sort_unstable();
    processes
}

fn namespace_of(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Of [`beside`], those that have ended and were not waited for.
pub fn zombies_beside(pid: i32) -> Vec<i32> {
    let mut processes = beside(pid);
    processes.retain(|other| stat(*other).is_some_and(|stat| stat.state == 'Z'));
    processes
}

/// Of [`beside`], those that live and have an argument that contains this.
pub fn beside_with_argument(pid: i32, marker: &str) -> Vec<i32> {
    let mut processes = beside(pid);
    processes.retain(|other| {
        lives(*other)
            && arguments(*other)
                .iter()
                .any(|argument| argument.contains(marker))
    });
    processes
}

/// A file as this process sees it.
pub fn file_of(pid: i32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_as_it_is() {
        let own = i32::try_from(std::process::id()).unwrap();
        let seen = stat(own).unwrap();
        assert_eq!(seen.parent, nix::unistd::getppid().as_raw());
        assert!(matches!(seen.state, 'R' | 'S'));
        assert_eq!(status(own, "Pid"), Some(own.to_string()));
        assert!(lives(own) && !is_agent(own));
        assert!(resident_kib(own).unwrap() > 0);
        assert!(beside(own).contains(&own));
        let traces = traces(own).unwrap();
        assert_eq!((traces.start, traces.tracer), (seen.start, 0));
        assert!(traces.maps.contains("[stack]"));
        let file = fs::File::open("/proc/self/status").unwrap();
        assert!(
            descriptors(own)
                .iter()
                .any(|(_, target)| target.ends_with("/status"))
        );
        drop(file);
        assert_eq!(stat(0), None);
    }

    #[test]
    fn a_process_that_ended_is_a_zombie_until_it_is_waited_for() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while lives(pid) {
            std::thread::yield_now();
        }
        assert!(zombies_beside(own).contains(&pid));
        child.wait().unwrap();
        assert!(!zombies_beside(own).contains(&pid));
    }
}
