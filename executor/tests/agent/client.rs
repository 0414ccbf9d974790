//! A small executor: it starts an agent, gives orders, and waits for reports.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use task_executor::agent::protocol::{
    AGENT_NAME, ARG_CHILD, Order, Report, StartOrder, StopCause, TaskKey, TaskReport, TaskState,
    VERSION,
};
use task_executor::sys::fd::received;

/// Far beyond what anything here takes; for a machine that is busy.
pub(crate) const BOUND: Duration = Duration::from_mins(1);

/// An agent and the connection to it. Dropping it ends the agent, and with it all tasks.
pub(crate) struct Agent {
    pub(crate) child: Child,
    control: Option<OwnedFd>,
    pub(crate) connection: UnixStream,
    /// The last report of each task.
    pub(crate) tasks: HashMap<TaskKey, TaskReport>,
    pub(crate) notes: HashMap<TaskKey, Vec<u8>>,
    pub(crate) outputs: HashMap<TaskKey, [OwnedFd; 2]>,
    pub(crate) probes: Vec<Report>,
    next_key: u64,
}

impl Agent {
    /// An agent that has been greeted.
    pub(crate) fn start() -> Self {
        Self::start_after("true")
    }

    /// An agent whose process has been through `preparation`, some bash.
    pub(crate) fn start_after(preparation: &str) -> Self {
        Self::start_under_after([], preparation)
    }

    /// An agent started by other programs, which become it.
    pub(crate) fn start_under<'a>(programs: impl IntoIterator<Item = &'a str>) -> Self {
        Self::start_under_after(programs, "true")
    }

    fn start_under_after<'a>(
        programs: impl IntoIterator<Item = &'a str>,
        preparation: &str,
    ) -> Self {
        let (near, far) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        // Puts the control socket at 3, which is its standard input here.
        let script = format!(r#"{preparation}; exec -a "$0" "$@" 3<&0 0<&2"#);
        let mut words: Vec<&str> = programs.into_iter().collect();
        words.extend(["bash", "-c", &script, AGENT_NAME]);
        let mut words = words.into_iter();
        let child = Command::new(words.next().unwrap())
            .args(words)
            .args([env!("CARGO_BIN_EXE_task-executor"), ARG_CHILD])
            .stdin(Stdio::from(far))
            .spawn()
            .unwrap();
        Self::of(child, near)
    }

    /// A running agent of which this is the far end of the control socket.
    pub(crate) fn of(child: Child, control: OwnedFd) -> Self {
        let connection = connect(&control);
        let mut agent = Self {
            child,
            control: Some(control),
            connection,
            tasks: HashMap::new(),
            notes: HashMap::new(),
            outputs: HashMap::new(),
            probes: Vec::new(),
            next_key: 1,
        };
        agent.greet();
        agent
    }

    pub(crate) fn replace_control(&mut self, control: OwnedFd) {
        self.control = Some(control);
    }

    /// Drops the connection and everything known, and begins anew.
    pub(crate) fn reconnect(&mut self) {
        self.tasks.clear();
        self.notes.clear();
        self.outputs.clear();
        self.connection = connect(self.control.as_ref().unwrap());
        self.greet();
    }

    /// A connection of which nothing is known yet; the one before is dropped by the agent.
    pub(crate) fn bare_connection(&self) -> UnixStream {
        connect(self.control.as_ref().unwrap())
    }

    fn greet(&mut self) {
        self.order(&Order::Hello { version: VERSION });
        assert_eq!(self.receive(), Report::Hello { version: VERSION });
        while self.receive() != Report::SnapshotEnd {}
    }

    pub(crate) fn order(&mut self, order: &Order) {
        self.connection.write_all(&frame(order)).unwrap();
    }

    /// Orders a task as `task` says, under a new key.
    pub(crate) fn run(&mut self, mut task: StartOrder) -> TaskKey {
        task.key = TaskKey(self.next_key);
        self.next_key += 1;
        let key = task.key;
        self.order(&Order::Start(Box::new(task)));
        key
    }

    pub(crate) fn stop(&mut self, key: TaskKey, grace_millis: Option<u64>) {
        self.order(&Order::Stop {
            key,
            cause: StopCause::Request,
            grace_millis,
        });
    }

    /// Waits for a report and takes it in.
    pub(crate) fn receive(&mut self) -> Report {
        let mut head = [0; 4];
        let mut fds = Vec::new();
        let mut filled = 0;
        while filled < 4 {
            wait_readable(&self.connection, "a report");
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
            let mut slice = [IoSliceMut::new(&mut head[filled..])];
            let socket = self.connection.as_raw_fd();
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(socket, &mut slice, Some(&mut space), flags).unwrap();
            assert!(message.bytes > 0, "the agent closed the connection");
            fds.extend(received(&message).unwrap());
            filled += message.bytes;
        }
        let mut text = vec![0; usize::try_from(u32::from_le_bytes(head)).unwrap()];
        self.connection.read_exact(&mut text).unwrap();
        let report: Report = postcard::from_bytes(&text).unwrap();
        match &report {
            Report::Task(task) => {
                assert_eq!(task.output, !fds.is_empty());
                if let Ok(output) = <[OwnedFd; 2]>::try_from(fds) {
                    self.outputs.insert(task.key, output);
                }
                if let Some(note) = &task.note {
                    self.notes.insert(task.key, note.clone());
                }
                self.tasks.insert(task.key, (**task).clone());
            }
            Report::Probe { .. } => self.probes.push(report.clone()),
            _ => {}
        }
        report
    }

    /// Waits until what is known of a task is as wanted.
    pub(crate) fn wait(
        &mut self,
        key: TaskKey,
        wanted: impl Fn(&TaskReport) -> bool,
    ) -> TaskReport {
        loop {
            if let Some(task) = self.tasks.get(&key).filter(|task| wanted(task)) {
                return task.clone();
            }
            self.receive();
        }
    }

    /// Waits until nothing of a task is left.
    pub(crate) fn wait_gone(&mut self, key: TaskKey) -> TaskReport {
        self.wait(key, |task| task.gone)
    }

    /// Waits until a task runs; its process.
    pub(crate) fn wait_running(&mut self, key: TaskKey) -> i32 {
        let running = |task: &TaskReport| !matches!(task.state, TaskState::Starting);
        match self.wait(key, running).state {
            TaskState::Running { pid, .. } | TaskState::Ended { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a task to its end; what is known of it then, and its output.
    pub(crate) fn finish(&mut self, task: StartOrder) -> (TaskReport, String, String) {
        let key = self.run(task);
        let task = self.wait_gone(key);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        if let Some([out, err]) = self.outputs.remove(&key) {
            stdout = read_to_end(&out);
            stderr = read_to_end(&err);
        }
        self.order(&Order::Forget { key });
        (task, stdout, stderr)
    }

    /// Waits for a line on the standard output of a task.
    pub(crate) fn line(&mut self, key: TaskKey) -> String {
        while !self.outputs.contains_key(&key) {
            self.receive();
        }
        let [stdout, _] = &self.outputs[&key];
        let mut line = Vec::new();
        loop {
            wait_readable(stdout, "a line");
            let mut byte = [0];
            assert_eq!(
                nix::unistd::read(stdout, &mut byte),
                Ok(1),
                "the output ended"
            );
            if byte == *b"\n" {
                return String::from_utf8(line).unwrap();
            }
            line.extend(byte);
        }
    }

    /// Closes the control socket, and waits until the agent ends.
    pub(crate) fn end(&mut self) -> std::process::ExitStatus {
        self.control = None;
        let ended = || self.child.try_wait().unwrap();
        eventually("the agent ends", ended)
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.control = None;
        // A test that failed has said what it had to; this only leaves nothing behind.
        let deadline = Instant::now() + BOUND;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            let _ = poll(&mut [], PollTimeout::from(5u8));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(control: &OwnedFd) -> UnixStream {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_read_timeout(Some(BOUND)).unwrap();
    near.set_write_timeout(Some(BOUND)).unwrap();
    let fds = [far.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let slice = [IoSlice::new(b"c")];
    let flags = MsgFlags::empty();
    sendmsg::<()>(control.as_raw_fd(), &slice, &rights, flags, None).unwrap();
    near
}

pub(crate) fn frame(order: &Order) -> Vec<u8> {
    let text = postcard::to_stdvec(order).unwrap();
    [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], &text].concat()
}

/// A task of these words, with the test's `PATH`.
pub(crate) fn task(argv: &[&str]) -> StartOrder {
    StartOrder {
        key: TaskKey(0),
        note: Vec::new(),
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/bin:/bin".to_vec()],
        working_directory: None,
        timeout_millis: None,
        grace_millis: 10_000,
    }
}

/// A task of some shell.
pub(crate) fn shell(script: &str) -> StartOrder {
    task(&["/bin/sh", "-c", script])
}

/// A task of some perl.
pub(crate) fn perl(script: &str) -> StartOrder {
    task(&["/usr/bin/perl", "-MPOSIX", "-e", script])
}

/// Waits until there is something, without end only if the test is.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        poll(&mut [], PollTimeout::from(5u8)).unwrap();
    }
}

fn wait_readable(fd: &impl std::os::fd::AsFd, what: &str) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(BOUND).unwrap();
    assert_eq!(poll(&mut fds, timeout), Ok(1), "waited in vain: {what}");
}

pub(crate) fn read_to_end(fd: &OwnedFd) -> String {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        wait_readable(fd, "output");
        match nix::unistd::read(fd, &mut chunk).unwrap() {
            0 => return String::from_utf8(text).unwrap(),
            length => text.extend_from_slice(&chunk[..length]),
        }
    }
}

/// Process IDs with `marker` in their environment, other than zombies.
pub(crate) fn marked(marker: &str) -> Vec<i32> {
    let marker = marker.as_bytes();
    let has_marker = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == marker)
    };
    pids().into_iter().filter(has_marker).collect()
}

pub(crate) fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// State and parent of a process.
pub(crate) fn state(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Children of a process, zombies too.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    pids()
        .into_iter()
        .filter(|child| state(*child).is_some_and(|(_, it)| it == pid))
        .collect()
}

/// A marker that no other test has, for the environment of tasks.
pub(crate) fn marker() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "MARKER={}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
