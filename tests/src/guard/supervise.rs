//! The guard itself, as a process: starts what it is asked to start, and stops all of it, and
//! deletes its directory, when its standard input closes or a signal asks it to end. A pipe closes
//! whatever way its writer ended, SIGKILL included, which is why this is a process of its own.
//!
//! What if the guard is killed? Each program is started through `become_program`, which has the
//! kernel kill it when the guard dies; the rest is cleaned up by the test that it guarded or, if that
//! is gone too, by the next guard (see `abandoned.rs`).
//!
//! Everything happens on the main thread: the kernel sends the parent-death signal when the *thread*
//! that started a program ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid, setsid};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use super::abandoned::{self, Directory};
use super::protocol::{Exit, Id, Message, Request, Start};
use crate::node::space;

/// Where the logs are, in the guard's directory.
pub(super) const LOGS: &str = "logs";
/// First argument that turns the guard into a program under its protection.
pub(crate) const BECOME: &str = "become";
/// How much of a log is told when its program ends.
const LOG_TAIL_BYTES: u64 = 4096;
/// SIGKILL needs no longer than this, save for a process stuck in the kernel.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// The guard's program: `cluster-guard DIRECTORY` guards, with its own directory below the given
/// one; `cluster-guard become PARENT PROGRAM ARGS...` is how it starts others. What begins with
/// `space-` belongs to the namespaces of a node, see `node/space.rs`.
///
/// # Errors
/// Wrong arguments, or a directory that cannot be made.
pub fn main() -> Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next().context("usage: cluster-guard DIRECTORY")?;
    if let Some(part) = first
        .to_str()
        .and_then(|first| first.strip_prefix("space-"))
    {
        return space::main(part, args);
    }
    if first == BECOME {
        let parent = args.next().and_then(|pid| pid.to_str()?.parse().ok());
        let parent = Pid::from_raw(parent.context("no process id of the parent")?);
        let program = args.next().context("no program")?;
        match become_program(parent, Path::new(&program), args)? {}
    }
    // A session of its own: Ctrl-C in the terminal then reaches the tests but not the guard, which
    // has to outlive them.
    setsid().context("start a session")?;
    // What a program leaves behind when it ends becomes a child of the guard, which ends it.
    prctl::set_child_subreaper(true).context("become the reaper of orphans")?;
    let base = Path::new(&first);
    abandoned::clean_up_all(base);
    let directory = Directory::create(base)
        .with_context(|| format!("create a directory in {}", base.display()))?;
    fs::create_dir(directory.path.join(LOGS)).context("create the directory of the logs")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(&directory.path));
    end_orphans();
    directory.remove().context("remove the directory")?;
    served.map(|()| ExitCode::SUCCESS)
}

/// Replaces this process by `program`, to be killed by the kernel when its parent dies.
fn become_program(
    parent: Pid,
    program: &Path,
    args: impl Iterator<Item = std::ffi::OsString>,
) -> Result<Infallible> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the line above.
    if getppid() != parent {
        bail!("the guard is gone");
    }
    let error = std::process::Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}

async fn serve(directory: &Path) -> Result<()> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let mut requests = BufReader::new(pipe::Receiver::from_owned_fd(input)?).lines();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut programs = Programs::new(directory);
    tell(&Message::Ready {
        directory: directory.to_owned(),
    });
    loop {
        tokio::select! {
            line = requests.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(request) => programs.handle(request),
                    Err(error) => bail!("request is not understood: {error}: {line}"),
                },
                Ok(None) | Err(_) => break,
            },
            () = programs.next() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => break,
        }
    }
    programs.stop_all().await;
    Ok(())
}

/// Nobody may be left to hear it; that is no reason to stop cleaning up.
fn tell(message: &Message) {
    let mut line = serde_json::to_vec(message).expect("messages are JSON");
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line).and_then(|()| output.flush()).ok();
}

#[derive(Debug)]
struct Running {
    pid: Pid,
    rank: u32,
    grace: Duration,
    log: PathBuf,
}

enum Event {
    Exited(Id, io::Result<ExitStatus>),
    GraceOver(Id),
}

struct Programs {
    directory: PathBuf,
    running: BTreeMap<Id, Running>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
}

impl Programs {
    fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            running: BTreeMap::new(),
            events: FuturesUnordered::new(),
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Start(id, start) => match self.start(id, start) {
                Ok(pid) => tell(&Message::Started(id, pid.as_raw())),
                Err(error) => tell(&Message::Failed(id, format!("{error:#}"))),
            },
            Request::Stop(id) => self.stop(id),
            Request::Signal(id, number) => {
                if let (Some(running), Ok(signal)) =
                    (self.running.get(&id), Signal::try_from(number))
                {
                    kill(running.pid, signal).ok();
                }
            }
        }
    }

    fn start(&mut self, id: Id, start: Start) -> Result<Pid> {
        let log = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&start.log)
            .with_context(|| format!("open {}", start.log.display()))?;
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command
            .arg(BECOME)
            .arg(getpid().to_string())
            .arg(&start.program)
            .args(&start.args)
            .envs(&start.env)
            .env(abandoned::VARIABLE, &self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own, so that SIGKILL takes what it started along.
            .process_group(0);
        if let Some(directory) = &start.working_directory {
            command.current_dir(directory);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", start.program.display()))?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw);
        let pid = pid.context("a new child has a process id")?;
        self.events.push(Box::pin(
            async move { Event::Exited(id, child.wait().await) },
        ));
        let grace = Duration::from_millis(start.grace_ms);
        self.running.insert(
            id,
            Running {
                pid,
                rank: start.rank,
                grace,
                log: start.log,
            },
        );
        Ok(pid)
    }

    fn stop(&mut self, id: Id) {
        if let Some(running) = self.running.get(&id) {
            kill(running.pid, Signal::SIGTERM).ok();
            let grace = running.grace;
            self.events.push(Box::pin(async move {
                tokio::time::sleep(grace).await;
                Event::GraceOver(id)
            }));
        }
    }

    /// Handles one event; waits for ever when there is none to come.
    async fn next(&mut self) {
        match self.events.next().await {
            None => std::future::pending().await,
            Some(Event::GraceOver(id)) => {
                if let Some(running) = self.running.get(&id) {
                    killpg(running.pid, Signal::SIGKILL).ok();
                }
            }
            Some(Event::Exited(id, status)) => {
                if let Some(running) = self.running.remove(&id) {
                    // The group outlives its leader when something else is left in it.
                    killpg(running.pid, Signal::SIGKILL).ok();
                    let status = status.ok();
                    tell(&Message::Exited(
                        id,
                        Exit {
                            code: status.and_then(|status| status.code()),
                            signal: status.and_then(|status| status.signal()),
                            log_tail: tail(&running.log).unwrap_or_default(),
                        },
                    ));
                }
            }
        }
    }

    async fn stop_all(&mut self) {
        while let Some(id) = self
            .running
            .iter()
            .max_by_key(|(id, running)| (running.rank, **id))
            .map(|(id, _)| *id)
        {
            self.stop(id);
            let grace = self
                .running
                .get(&id)
                .map(|running| running.grace)
                .unwrap_or_default();
            let ended = async {
                while self.running.contains_key(&id) {
                    self.next().await;
                }
            };
            if tokio::time::timeout(grace + KILL_BOUND, ended)
                .await
                .is_err()
            {
                // Stuck in the kernel; the others still have to go.
                self.running.remove(&id);
            }
        }
    }
}

/// The end of a log, whole lines only.
fn tail(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(LOG_TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = match text.split_once('\n') {
        Some((_, rest)) if start > 0 => rest,
        _ => &text,
    };
    Ok(whole.trim_end().to_owned())
}

/// Ends every child that is left: what programs started and did not take along.
fn end_orphans() {
    loop {
        let children = fs::read_to_string(format!("/proc/self/task/{}/children", getpid()));
        for child in children.unwrap_or_default().split_whitespace() {
            if let Ok(child) = child.parse() {
                kill(Pid::from_raw(child), Signal::SIGKILL).ok();
            }
        }
        // Children of children come to this process once their parent is gone, hence the loop.
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            // No child is left.
            Err(_) => return,
        }
    }
}
