//! Processes as this machine and as a sandbox see them.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};
use opensandbox_tests::pods::{Pod, SANDBOX};

/// Process ids, on this machine, of all that have this `NAME=value` in their environment.
pub(crate) fn marked(entry: &str) -> BTreeSet<i32> {
    processes()
        .filter(|process| {
            // It may have ended; a zombie has no environment.
            let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|known| known == entry.as_bytes())
        })
        .collect()
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Lines of `/proc/PID/stat` of all zombies in a pod whose containers share their processes.
pub(crate) async fn zombies(pod: &Pod<'_>) -> Result<Vec<String>> {
    // Processes end while they are listed.
    let script = "cat /proc/[0-9]*/stat 2>/dev/null; true";
    let all = pod.exec_ok(SANDBOX, &["sh", "-c", script]).await?;
    assert!(all.lines().count() > 1, "no list of processes: {all}");
    let state = |line: &str| Some(line.rsplit_once(')')?.1.trim_start().starts_with('Z'));
    let mut zombies = Vec::new();
    for line in all.lines() {
        if state(line).context("a line of stat")? {
            zombies.push(line.to_owned());
        }
    }
    Ok(zombies)
}

/// A number in kB from `/proc/PID/status`, such as that of `VmRSS`, as bytes.
pub(crate) fn status_bytes(process: i32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("no {field}"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}
