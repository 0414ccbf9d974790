//! What `/proc` says about a process and its threads.

use std::fs;
use std::io::Read as _;

use nix::errno::Errno;

use crate::kernel_file;

/// Number of `CAP_SYS_PTRACE`.
const SYS_PTRACE: u32 = 19;

/// The lines of `/proc/PID/task/TID/status` in which a thread may differ from its process. A program
/// started by a thread inherits them.
const INHERITED: [&str; 14] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "Mems_allowed",
    "Umask",
];

/// `/proc/PID/task/TID/status`, of one thread.
#[derive(Clone, Debug)]
pub(super) struct Status {
    text: String,
}

impl Status {
    /// Of a thread; of the main thread where both are the same.
    pub(super) fn of(pid: i32, tid: i32) -> Result<Self, Errno> {
        read(&format!("/proc/{pid}/task/{tid}/status")).map(|text| Self { text })
    }

    /// Of the thread that asks.
    pub(super) fn own() -> Result<Self, Errno> {
        read("/proc/thread-self/status").map(|text| Self { text })
    }

    fn line(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found == name).then(|| value.trim())
        })
    }

    /// One letter: R, S, D, T, t, Z, X, I; `?` if it is not told.
    pub(super) fn state(&self) -> char {
        self.line("State")
            .and_then(|state| state.chars().next())
            .unwrap_or('?')
    }

    /// Its tracer; 0 for none, or for one outside this PID namespace.
    pub(super) fn tracer(&self) -> i32 {
        self.line("TracerPid")
            .and_then(|pid| pid.parse().ok())
            .unwrap_or(0)
    }

    /// 0 none, 1 strict, 2 a filter.
    pub(super) fn seccomp(&self) -> u32 {
        self.line("Seccomp")
            .and_then(|mode| mode.parse().ok())
            .unwrap_or(0)
    }

    /// Its real user.
    pub(super) fn user(&self) -> Option<u32> {
        self.line("Uid")?.split_whitespace().next()?.parse().ok()
    }

    /// Whether it has `CAP_SYS_PTRACE`.
    pub(super) fn may_trace(&self) -> bool {
        self.mask("CapEff") & (1 << SYS_PTRACE) != 0
    }

    /// Whether a signal is pending for this very thread.
    pub(super) fn is_pending(&self, signal: i32) -> bool {
        self.mask("SigPnd") & (1 << (signal - 1)) != 0
    }

    fn mask(&self, name: &str) -> u64 {
        self.line(name)
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .unwrap_or(0)
    }

    /// Whether a program started by the other thread would have all that this one would give it.
    pub(super) fn passes_on_as(&self, other: &Self) -> bool {
        INHERITED
            .iter()
            .all(|name| self.line(name) == other.line(name))
    }
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/PID/stat`.
pub(super) fn start_time(pid: i32) -> Result<u64, Errno> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, and may contain anything.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .nth(19)
        .and_then(|ticks| ticks.parse().ok())
        .ok_or(Errno::EIO)
}

/// The threads of a process, the main one first.
pub(super) fn threads(pid: i32) -> Result<Vec<i32>, Errno> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| errno(&error))?;
    let mut threads: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|tid| *tid != pid)
        .collect();
    threads.insert(0, pid);
    Ok(threads)
}

/// The call in which a thread sleeps and its arguments; `None` if it runs, or if that may not be seen.
pub(super) fn sleeping_in(pid: i32, tid: i32) -> Option<(i64, [u64; 6])> {
    let text = read(&format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok().filter(|number| *number >= 0)?;
    let mut arguments = [0; 6];
    for (argument, word) in arguments.iter_mut().zip(words) {
        *argument = u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()?;
    }
    Some((number, arguments))
}

/// What a process executes, if that is not a program of this architecture; `None` if it is, or if its
/// program cannot be read.
pub(super) fn foreign_program(pid: i32) -> Option<String> {
    let mut header = [0_u8; 20];
    fs::File::open(format!("/proc/{pid}/exe"))
        .ok()?
        .read_exact(&mut header)
        .ok()?;
    let class = header[4];
    let machine = u16::from_le_bytes([header[18], header[19]]);
    match (class, machine) {
        (2, super::arch::MACHINE) => None,
        (1, _) => Some(format!("a 32-bit one (ELF machine {machine})")),
        (_, _) => Some(format!("one of ELF machine {machine}")),
    }
}

/// A whole number that the kernel shows under `/proc/sys`.
pub(super) fn setting(path: &str) -> Option<u32> {
    read(&format!("/proc/sys/{path}")).ok()?.trim().parse().ok()
}

/// Reads a file of `/proc`; a process that ends meanwhile is `ESRCH`, as one that never was.
pub(super) fn read(path: &str) -> Result<String, Errno> {
    match kernel_file::read(path, u64::MAX) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(match errno(&error) {
            Errno::ENOENT => Errno::ESRCH,
            other => other,
        }),
    }
}

/// The kernel's number for an error.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
