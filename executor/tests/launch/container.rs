//! A container as far as `/proc` shows: processes in a cgroup with an ID, with users and a root of their
//! own. Needs root and a cgroup hierarchy that can be written.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use task_executor::pod::proc::Proc;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Ends with everything in it when dropped.
pub(crate) struct Container {
    pub(crate) id: String,
    cgroup: PathBuf,
    /// It waits for the end of its standard input.
    main: Child,
}

/// Whether containers can be made here; says so where not.
pub(crate) fn available() -> bool {
    let available = nix::unistd::geteuid().is_root() && hierarchy().is_some();
    if !available {
        eprintln!("SKIPPED: needs root and a cgroup hierarchy that can be written");
    }
    available
}

fn hierarchy() -> Option<&'static Path> {
    let candidates = [
        "/sys/fs/cgroup/pids",
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup",
    ];
    candidates.map(Path::new).into_iter().find(|path| {
        let probe = path.join(format!("task-executor-test-{}", std::process::id()));
        // Only cgroupfs fills a new directory with files.
        let usable = std::fs::create_dir(&probe).is_ok() && probe.join("cgroup.procs").exists();
        let _ = std::fs::remove_dir(&probe);
        usable
    })
}

impl Container {
    /// Starts the main process: a program that writes a line when it is ready.
    pub(crate) fn start(mut main: Command) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:0>32x}{number:0>32x}", std::process::id());
        let cgroup = hierarchy().unwrap().join(&id);
        std::fs::create_dir(&cgroup).unwrap();
        let main = main
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        // Made before anything can fail, so that it is cleaned up then.
        let mut container = Self { id, cgroup, main };
        let procs = container.cgroup.join("cgroup.procs");
        std::fs::write(procs, container.main.id().to_string()).unwrap();
        let mut output = BufReader::new(container.main.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim() != "ready" {
            line.clear();
            let length = output.read_line(&mut line).unwrap();
            assert_ne!(length, 0, "the main process of a container ended early");
        }
        // Keep the pipe open, and read: the program may write more.
        std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        container
    }

    pub(crate) fn main_pid(&self) -> i32 {
        i32::try_from(self.main.id()).unwrap()
    }

    /// Starts a further process in it.
    pub(crate) fn run(&self, mut command: Command) -> Child {
        // It waits for a line, so that it starts nothing before it is in the cgroup.
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::fs::write(self.cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        child
    }

    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        wait_until("the container is empty", || {
            for pid in self.pids() {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            let _ = self.main.try_wait();
            // Injected ones are our children as well.
            let _ = task_executor::launch::remains::reap(&Proc::default(), None);
            self.pids().is_empty()
        });
        wait_until("its cgroup is removed", || {
            std::fs::remove_dir(&self.cgroup).is_ok()
        });
    }
}

/// Waits for a condition, for a minute at most.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
