//! A made-up `/proc`, for tests.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::Pod;
use super::proc::Proc;

pub(crate) const UID: &str = "0f3c2d41-5a6b-4c7d-8e9f-001122334455";
pub(crate) const OTHER: &str = "ffffffff-5a6b-4c7d-8e9f-001122334455";

/// A made-up `/proc` of a pod in which we are process 7.
pub(crate) struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        symlink("7", directory.path().join("self")).unwrap();
        std::fs::create_dir(directory.path().join("sys")).unwrap();
        Self { directory }
    }

    pub(crate) fn file(&self, pid: i32, name: &str, content: &str) {
        let directory = self.directory.path().join(pid.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(name), content).unwrap();
    }

    /// A file below `sys`: `yama/ptrace_scope` stands for `kernel/yama/ptrace_scope`.
    pub(crate) fn tunable(&self, name: &str, value: &str) {
        let area = if name.contains('/') { "kernel" } else { "vm" };
        let path = self.directory.path().join("sys").join(area).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{value}\n")).unwrap();
    }

    /// A process that can be seen, but not read.
    pub(crate) fn process(&self, pid: i32, parent: i32, start: u64, cgroup: &str) {
        self.process_in_state(pid, parent, start, cgroup, 'S');
    }

    pub(crate) fn process_in_state(
        &self,
        pid: i32,
        parent: i32,
        start: u64,
        cgroup: &str,
        state: char,
    ) {
        self.write_process(pid, parent, start, cgroup, (state, pid));
    }

    pub(crate) fn process_in_session(
        &self,
        pid: i32,
        parent: i32,
        start: u64,
        cgroup: &str,
        session: i32,
    ) {
        self.write_process(pid, parent, start, cgroup, ('S', session));
    }

    fn write_process(
        &self,
        pid: i32,
        parent: i32,
        start: u64,
        cgroup: &str,
        (state, session): (char, i32),
    ) {
        let mut line = format!("{pid} (a b) {state} {parent} {pid} {session}");
        line.push_str(&" 0".repeat(15));
        write!(line, " {start} 0").unwrap();
        self.file(pid, "stat", &line);
        self.file(pid, "cgroup", &format!("0::{cgroup}\n"));
    }

    pub(crate) fn readable(&self, pid: i32, environ: &str, pod: &str, container: &str) {
        self.file(pid, "environ", &environ.replace(' ', "\0"));
        let mount =
            |source: &str, point: &str| format!("1 2 0:1 {source} {point} rw - ext4 d rw\n");
        let hosts = mount(&format!("/lib/kubelet/pods/{pod}/etc-hosts"), "/etc/hosts");
        let log = format!("/lib/kubelet/pods/{pod}/containers/{container}/1");
        let log = mount(&log, "/dev/termination-log");
        let name = mount(
            &format!("/cri/sandboxes/{}/hostname", id('9')),
            "/etc/hostname",
        );
        self.file(pid, "mountinfo", &[hosts, log, name].concat());
    }

    pub(crate) fn read(&self) -> Pod {
        Pod::read(&Proc::at(self.directory.path()), None).unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

pub(crate) fn id(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

/// A pod with pause (9…), the executor (e…), a sandbox (a…) and a sidecar (b…), as `cgroup` names them.
pub(crate) fn usual(cgroup: impl Fn(char) -> String) -> Fake {
    let fake = Fake::new();
    fake.process(1, 0, 100, &cgroup('9'));
    fake.process(7, 0, 300, &cgroup('e'));
    fake.readable(7, "A=1", UID, "task-executor");
    fake.process(20, 0, 200, &cgroup('a'));
    fake.readable(20, "SANDBOX_MAIN_CONTAINER=sandbox", UID, "sandbox");
    fake.process(30, 0, 250, &cgroup('b'));
    fake.readable(30, "X=", UID, "istio-proxy");
    fake
}
