//! Reads `/proc`. Every process may vanish while it is read, and may refuse to be read: both are `None`,
//! never an error. What a process can make long (its environment, its mounts) is read up to a limit.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::kernel_file;

/// Longest file read, in bytes. A real environment is at most a quarter of the stack limit, 2 MiB
/// where nobody changed that.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

/// A mounted `/proc`.
#[derive(Clone, Debug)]
pub struct Proc {
    root: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Self::at("/proc")
    }
}

/// What is needed of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process.
    pub pid: i32,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X` and others, proc(5).
    pub state: char,
    /// Parent; 0 for one outside the PID namespace.
    pub parent: i32,
    /// Session.
    pub session: i32,
    /// Clock ticks between boot and its start. With the pid it names a process for good.
    pub start_time: u64,
}

impl Stat {
    /// It has ended and waits to be reaped, or is just vanishing.
    pub const fn is_dead(self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// The variables of a process, `NAME=VALUE` each. They may be secret, so `Debug` only counts them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(pub Vec<Vec<u8>>);

impl Environment {
    /// Value of the first variable of this name, as `getenv` finds it.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find_map(|variable| {
            let rest = variable.strip_prefix(name.as_bytes())?;
            rest.strip_prefix(b"=")
        })
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}

impl Proc {
    /// One that is mounted elsewhere.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Path of a file of a process.
    pub fn path(&self, pid: i32, file: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(file)
    }

    /// This process, as this `/proc` numbers it.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or belongs to another PID namespace.
    pub fn own_pid(&self) -> io::Result<i32> {
        let target = std::fs::read_link(self.root.join("self"))?;
        number(target.as_os_str())
            .ok_or_else(|| io::Error::other(format!("{}/self is no process", self.root.display())))
    }

    /// All processes, in no order.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be listed.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let entries = std::fs::read_dir(&self.root)?;
        Ok(entries
            .flatten()
            .filter_map(|entry| number(&entry.file_name()))
            .collect())
    }

    /// `/proc/PID/stat`.
    pub fn stat(&self, pid: i32) -> Option<Stat> {
        parse_stat(&self.text(pid, "stat")?)
    }

    /// `/proc/PID/status`.
    pub fn status(&self, pid: i32) -> Option<super::status::Status> {
        super::status::Status::parse(&self.text(pid, "status")?)
    }

    /// `/proc/PID/cgroup`.
    pub fn cgroup(&self, pid: i32) -> Option<String> {
        self.text(pid, "cgroup")
    }

    /// `/proc/PID/mountinfo`.
    pub fn mountinfo(&self, pid: i32) -> Option<String> {
        self.text(pid, "mountinfo")
    }

    /// Target of the link `/proc/PID/exe`.
    pub fn executable(&self, pid: i32) -> Option<PathBuf> {
        std::fs::read_link(self.path(pid, "exe")).ok()
    }

    /// What the process was started as, argv 0.
    pub fn first_argument(&self, pid: i32) -> Option<Vec<u8>> {
        let line = read(&self.path(pid, "cmdline")).ok()?;
        line.split(|byte| *byte == 0).next().map(<[u8]>::to_vec)
    }

    /// `/proc/PID/environ`: the environment the process was started with. `None` too where it is
    /// longer than any that a program can be started with.
    pub fn environment(&self, pid: i32) -> Option<Environment> {
        let bytes = read(&self.path(pid, "environ")).ok()?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) >= FILE_LIMIT {
            return None;
        }
        let variables = bytes.split(|byte| *byte == 0);
        // A program that writes over its arguments and title leaves empty strings here.
        let variables = variables.filter(|variable| variable.contains(&b'='));
        Some(Environment(variables.map(<[u8]>::to_vec).collect()))
    }

    /// A file of the kernel's under this `/proc`, `sys/vm/memfd_noexec` say, without white space
    /// around it. Absent where the kernel does not have it.
    pub fn tunable(&self, path: &str) -> Option<String> {
        let bytes = read(&self.root.join(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Whether the process still runs. A zombie does not.
    pub fn is_alive(&self, pid: i32, start_time: u64) -> bool {
        self.stat(pid)
            .is_some_and(|stat| stat.start_time == start_time && !stat.is_dead())
    }

    fn text(&self, pid: i32, file: &str) -> Option<String> {
        let bytes = read(&self.path(pid, file)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    kernel_file::read(path, FILE_LIMIT)
}

fn number(name: &OsStr) -> Option<i32> {
    let text = std::str::from_utf8(name.as_bytes()).ok()?;
    text.parse().ok().filter(|pid| *pid > 0)
}

/// The second field is the program's name in parentheses, which itself may contain anything, so the
/// rest is what follows the last parenthesis.
fn parse_stat(line: &str) -> Option<Stat> {
    let (pid, _) = line.split_once(' ')?;
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        pid: pid.parse().ok()?,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_any_program_name() {
        let line = "42 (a ) S 1 (x) R 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 0\n";
        let expected = Stat {
            pid: 42,
            state: 'R',
            parent: 7,
            session: 9,
            start_time: 12345,
        };
        assert_eq!(parse_stat(line), Some(expected));
    }

    #[test]
    fn half_a_stat_line_is_nothing() {
        for line in ["", "42", "42 (a", "42 (a) R 7 8", "x (a) R 7 8 9 0"] {
            assert_eq!(parse_stat(line), None, "{line:?}");
        }
    }

    #[test]
    fn this_process_can_be_read() {
        let proc = Proc::default();
        let own = proc.own_pid().unwrap();
        assert_eq!(own, i32::try_from(std::process::id()).unwrap());
        let stat = proc.stat(own).unwrap();
        assert!(proc.pids().unwrap().contains(&own));
        assert!(proc.is_alive(own, stat.start_time));
        assert!(!proc.is_alive(own, stat.start_time + 1));
        assert!(proc.cgroup(own).is_some() && proc.mountinfo(own).is_some());
        assert_eq!(
            proc.status(own).unwrap().uids.effective,
            nix::unistd::geteuid().as_raw()
        );
    }

    #[test]
    fn an_environment_does_not_show_values() {
        let environment = Environment(vec![b"AB=x".to_vec(), b"A=secret".to_vec()]);
        assert_eq!(environment.get("A"), Some(&b"secret"[..]));
        assert_eq!(environment.get("B"), None);
        assert!(!format!("{environment:?}").contains("secret"));
    }
}
