//! Which processes belong to a container, as this machine sees them: those whose control group has
//! the container's ID in its path.

use std::fs;

/// Process ids of all that runs in the container with this ID, in rising order.
pub fn processes_of(container_id: &str) -> Vec<i32> {
    let mut processes: Vec<_> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|process| is_in(*process, container_id))
        .collect();
    processes.sort_unstable();
    processes
}

/// Thread ids of a process, in rising order; none if it has ended.
pub fn threads_of(process: i32) -> Vec<i32> {
    let mut threads: Vec<_> = fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    threads.sort_unstable();
    threads
}

/// The oldest process of the container whose parent is not in it.
pub(super) fn first_of(container_id: &str) -> Option<i32> {
    processes_of(container_id)
        .into_iter()
        .filter_map(|process| {
            let (parent, start) = parent_and_start(process)?;
            (!is_in(parent, container_id)).then_some((start, process))
        })
        .min()
        .map(|(_, process)| process)
}

fn is_in(process: i32, container_id: &str) -> bool {
    fs::read_to_string(format!("/proc/{process}/cgroup")).is_ok_and(|groups| {
        // Each line ends with a path.
        groups
            .lines()
            .any(|line| line.rsplit('/').next() == Some(container_id))
    })
}

/// The parent's process id, and the start in ticks after the start of the machine.
fn parent_and_start(process: i32) -> Option<(i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name is in parentheses, and may contain some.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    // Of the fields in proc(5), the parent is the 4th and the start the 22nd.
    let start = fields.nth(17)?.parse().ok()?;
    Some((parent, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_parent_and_a_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (parent, start) = parent_and_start(own).unwrap();
        assert_eq!(parent, nix::unistd::getppid().as_raw());
        assert!(start > 0);
        let (_, first) = parent_and_start(1).unwrap();
        assert!(first <= start);
    }

    #[test]
    fn a_process_has_a_thread_of_its_own_id() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(threads_of(own).contains(&own));
        assert!(threads_of(0).is_empty());
    }
}
