//! Targets under a shim of their own, as under a container's, and what can be seen of them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::ptrace as tracing;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use task_executor::inject::{Failure, Injected, Request, inject};
use task_executor::sys::ptrace::{Registers, Resume, registers, resume};

/// Nothing takes as long unless it never comes.
pub(crate) const BOUND: Duration = Duration::from_mins(1);

/// The helper program, built once.
pub(crate) fn helper() -> &'static Path {
    static HELPER: OnceLock<PathBuf> = OnceLock::new();
    HELPER.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject/helper.c");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inject-helper");
        let own = path.with_extension(std::process::id().to_string());
        let status = Command::new("cc")
            .args(["-static", "-O1", "-pthread", "-Wall", "-o"])
            .args([&own, &source])
            .status()
            .expect("these tests need a C compiler, cc");
        assert!(status.success(), "cc -static failed: {status}");
        // Another run of these tests may be using the one that is there.
        fs::rename(&own, &path).unwrap();
        path
    })
}

/// A process under a shim that reaps it and its siblings. All end when it is dropped.
pub(crate) struct Target {
    shim: Child,
    pub(crate) pid: i32,
    start_time: u64,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Target {
    /// Starts a target of the helper and waits until it is ready.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_as(None, arguments)
    }

    pub(crate) fn start_as(user: Option<u32>, arguments: &[&str]) -> Self {
        let program = [helper().to_str().unwrap(), "target"];
        let mut target = Self::run(user, &[&program, arguments].concat());
        target.line("ready");
        // What it does now: it may need a moment to get there.
        target
    }

    /// Starts any program, by its path.
    pub(crate) fn run(user: Option<u32>, program: &[&str]) -> Self {
        let mut command = Command::new(helper());
        command
            .arg("shim")
            .args(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(user) = user {
            command.uid(user).gid(user).current_dir("/");
        }
        let mut shim = command.spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(shim.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines() {
                if line.map(|line| sender.send(line)).is_err() {
                    break;
                }
            }
        });
        let mut target = Self {
            shim,
            pid: 0,
            start_time: 0,
            lines,
            seen: Vec::new(),
        };
        target.pid = target.line("started").parse().unwrap();
        target.start_time = start_time(target.pid);
        target
    }

    /// Waits for a line that begins so; what follows.
    pub(crate) fn line(&mut self, start: &str) -> String {
        let until = Instant::now() + BOUND;
        loop {
            let found = self.seen.iter().position(|line| line.starts_with(start));
            if let Some(index) = found {
                let line = self.seen.remove(index);
                return line[start.len()..].trim().to_owned();
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("no line {start:?} ({error}), but {:?}", self.seen),
            }
        }
    }

    /// How a process under the shim ended, as the shim saw it.
    pub(crate) fn ended(&mut self, pid: i32) -> String {
        self.line(&format!("ended {pid} "))
    }

    /// Whether it ended already.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.seen.extend(self.lines.try_iter());
        let start = format!("ended {} ", self.pid);
        self.seen.iter().any(|line| line.starts_with(&start))
    }

    pub(crate) fn start_time(&self) -> u64 {
        self.start_time
    }

    pub(crate) fn request(&self, arguments: &[&str]) -> Request {
        request(self.pid, self.start_time, arguments)
    }

    /// Injects a program of the helper.
    pub(crate) fn inject(&self, arguments: &[&str]) -> Result<Injected, Failure> {
        inject(&self.request(arguments))
    }

    /// Waits until all of its threads are in a state.
    pub(crate) fn wait_for_state(&self, state: char) {
        eventually(&format!("process {} in state {state}", self.pid), || {
            threads(self.pid)
                .iter()
                .all(|tid| status(*tid, "State").starts_with(state))
        });
    }

    /// All that injection could change.
    pub(crate) fn snapshot(&self) -> String {
        let mut text = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        // How far the heap and the stack reach is not for us to change, and all of it is here.
        let mut descriptors: Vec<String> = fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                format!(
                    "{} {}",
                    path.display(),
                    fs::read_link(&path).unwrap().display()
                )
            })
            .collect();
        descriptors.sort();
        text.push_str(&descriptors.join("\n"));
        for tid in threads(self.pid) {
            for name in [
                "TracerPid",
                "SigPnd",
                "ShdPnd",
                "SigBlk",
                "SigIgn",
                "SigCgt",
                "Threads",
            ] {
                write!(text, "\n{tid} {name} {}", status(tid, name)).unwrap();
            }
        }
        text
    }

    /// No tracer, and nothing of the injection left, at the latest in a moment: a thread that was let go
    /// has still to take the signals that waited for it.
    #[track_caller]
    pub(crate) fn assert_as(&self, before: &str) {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let now = self.snapshot();
            if now == before {
                return;
            }
            assert!(Instant::now() < until, "before:\n{before}\nafter:\n{now}");
            std::thread::yield_now();
        }
    }

    /// Its registers. Interrupts it, so its call is `restart_syscall` afterwards, if it is one of those.
    pub(crate) fn registers(&self) -> Registers {
        let pid = Pid::from_raw(self.pid);
        tracing::seize(pid, tracing::Options::empty()).unwrap();
        tracing::interrupt(pid).unwrap();
        waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        let found = registers(self.pid).unwrap().unwrap();
        resume(self.pid, Resume::Detached, 0).unwrap();
        found
    }

    /// Pids of what the shim has to look after.
    pub(crate) fn siblings(&self) -> Vec<i32> {
        let shim = self.shim.id();
        fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))
            .unwrap()
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.shim.stdin.take());
        self.shim.wait().unwrap();
    }
}

/// For a target when somebody else has built the helper.
pub(crate) fn request_as_built(pid: i32) -> Request {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inject-helper");
    Request {
        pid,
        start_time: start_time(pid),
        program: File::open(path).unwrap(),
        argv: ["helper", "injected", "ready"]
            .map(|text| text.as_bytes().to_vec())
            .to_vec(),
        envp: Vec::new(),
        time_limit: Duration::from_secs(10),
    }
}

pub(crate) fn request(pid: i32, start_time: u64, arguments: &[&str]) -> Request {
    let argv = [&[helper().to_str().unwrap(), "injected"], arguments].concat();
    Request {
        pid,
        start_time,
        program: File::open(helper()).unwrap(),
        argv: argv
            .into_iter()
            .map(|text| text.as_bytes().to_vec())
            .collect(),
        envp: vec![b"VARIABLE=value of it".to_vec()],
        time_limit: Duration::from_secs(10),
    }
}

pub(crate) fn start_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(')').unwrap().1;
    rest.split_whitespace().nth(19).unwrap().parse().unwrap()
}

pub(crate) fn threads(pid: i32) -> Vec<i32> {
    let mut threads: Vec<i32> = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    threads.sort_unstable();
    threads
}

/// A line of `/proc/PID/status`.
pub(crate) fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    value(&text, name)
}

/// The value of a line `name: value`.
pub(crate) fn value(text: &str, name: &str) -> String {
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.unwrap_or_default().trim().to_owned()
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + BOUND;
    while !is() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::yield_now();
    }
}

/// Whether this test runs as root.
pub(crate) fn root() -> bool {
    nix::unistd::geteuid().is_root()
}
