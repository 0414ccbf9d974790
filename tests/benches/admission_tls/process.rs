//! What a program costs, as the kernel counts it.

use anyhow::{Context as _, Result};
use opensandbox_tests::Program;

/// Processor time of all its threads that live, in nanoseconds.
///
/// # Errors
/// It does not run.
pub(crate) fn cpu_nanoseconds(program: &Program) -> Result<u64> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{}/task", program.pid()))? {
        // A thread may end between the two reads.
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let on_cpu = text
            .split_whitespace()
            .next()
            .context("schedstat is empty")?;
        total += on_cpu.parse::<u64>()?;
    }
    Ok(total)
}

/// Starts the measurement of [`peak_bytes`] anew.
///
/// # Errors
/// It does not run.
pub(crate) fn forget_peak(program: &Program) -> Result<()> {
    // proc_pid_clear_refs(5): 5 sets the peak resident set size to the current one.
    std::fs::write(format!("/proc/{}/clear_refs", program.pid()), "5").context("forget the peak")
}

/// The most memory that was resident since [`forget_peak`], in bytes.
///
/// # Errors
/// It does not run.
pub(crate) fn peak_bytes(program: &Program) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .context("no peak of resident memory")?;
    Ok(peak.trim().parse::<u64>()? * 1024)
}
