//! What tests start is also stopped: however the test process ends, by a panic, Ctrl-C or SIGKILL
//! too, everything it started through a [`Guard`] is stopped and the guard's directory is deleted.
//!
//! The guard is a process (`cluster-guard`, see [`supervise`]) at the other end of a pipe. Here is
//! the near end: it starts the guard, sends requests, and hands on what the guard tells. Nothing in
//! it belongs to a tokio runtime, so one guard serves tests that each have their own.

mod abandoned;
mod cgroups;
mod protocol;
pub mod supervise;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::statvfs::statvfs;
use tokio::sync::{oneshot, watch};

pub(crate) use self::cgroups::ROOT as CGROUP_ROOT;
pub use self::protocol::Exit;
pub(crate) use self::protocol::{Id, Request, Start};

use self::protocol::Message;
use crate::process::{Launch, Program};
use crate::programs;

/// The guard stops what it has to stop in less than this, or something is stuck in the kernel.
const STOP_BOUND: Duration = Duration::from_mins(1);
/// etcd alone preallocates 128 MB; a directory in memory is used only where this is free.
const MEMORY_NEEDED: u64 = 1 << 30;

/// Runs programs that end with this process at the latest. Dropping it stops them all, the newest
/// first, deletes the directory, and returns when that is done.
#[derive(Debug)]
pub struct Guard {
    link: Arc<Link>,
    directory: PathBuf,
    pid: u32,
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Guard {
    /// Starts a guard with a fresh directory, in memory if there is room.
    ///
    /// # Errors
    /// The guard's program cannot be built or started.
    pub async fn start() -> Result<Self> {
        Self::start_in(base_directory()).await
    }

    /// [`Self::start`], with the fresh directory below `base`.
    ///
    /// # Errors
    /// The guard's program cannot be built or started.
    pub async fn start_in(base: PathBuf) -> Result<Self> {
        // Building and the first answer are waited for on a thread that may block.
        tokio::task::spawn_blocking(move || Self::start_blocking(&base)).await?
    }

    fn start_blocking(base: &Path) -> Result<Self> {
        let program = programs::cluster_guard()?;
        let mut child = Command::new(&program)
            .arg(base)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let pid = child.id();
        let input = child.stdin.take().context("the guard's input is a pipe")?;
        let output = child
            .stdout
            .take()
            .context("the guard's output is a pipe")?;
        let mut output = BufReader::new(output);
        let mut said = String::new();
        output.read_line(&mut said)?;
        let Ok(Message::Ready { directory }) = serde_json::from_str(&said) else {
            bail!("the guard did not start; it said: {said:?}");
        };
        let link = Arc::new(Link {
            input: Mutex::new(Some(input)),
            next: AtomicU64::new(1),
            shared: Mutex::default(),
        });
        let (end, ended) = mpsc::channel();
        let reader = Arc::clone(&link);
        let cleaned = directory.clone();
        std::thread::Builder::new()
            .name("cluster-guard".to_owned())
            .spawn(move || {
                reader.read(output);
                child.wait().ok();
                // Does nothing unless the guard was killed.
                abandoned::clean_up(&cleaned);
                reader.end();
                end.send(()).ok();
            })?;
        Ok(Self {
            link,
            directory,
            pid,
            ended: Mutex::new(ended),
        })
    }

    /// The directory that is deleted when the guard ends.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Name of a control group that this guard owns: it is removed when the guard ends, with what is
    /// below it, in every hierarchy. Nobody has made it yet.
    pub fn control_group(&self) -> &str {
        cgroups::name(&self.directory)
    }

    /// The guard's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Starts a program. What it writes goes to a file in `logs` in the guard's directory.
    ///
    /// # Errors
    /// It cannot be started, or the guard is gone.
    pub async fn run(&self, launch: Launch) -> Result<Program> {
        let id = self.link.next.fetch_add(1, Ordering::Relaxed);
        let name = launch.name;
        let start = Start {
            program: launch.program,
            args: launch.args,
            env: launch.env,
            working_directory: launch.working_directory,
            log: self
                .directory
                .join(supervise::LOGS)
                .join(format!("{name}-{id}.log")),
            rank: launch.rank,
            grace_ms: u64::try_from(launch.grace.as_millis()).unwrap_or(u64::MAX),
        };
        let log = start.log.clone();
        let (started, answer) = oneshot::channel();
        let (end, exit) = watch::channel(None);
        {
            let mut shared = self.link.shared();
            shared.starting.insert(id, started);
            shared.running.insert(id, end);
        }
        self.link.send(&Request::Start(id, start))?;
        let pid = answer
            .await
            .map_err(|_| anyhow!("the guard is gone"))?
            .map_err(|reason| anyhow!("{name}: {reason}"))?;
        Ok(Program::new(
            name,
            id,
            pid,
            log,
            exit,
            Arc::clone(&self.link),
        ))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.link.close();
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Either the message, or the end of the thread that would have sent it.
        ended.recv_timeout(STOP_BOUND).ok();
    }
}

/// The near end of the pipe; outlives the guard, so that a program that is dropped late finds it
/// closed instead of gone.
#[derive(Debug)]
pub(crate) struct Link {
    input: Mutex<Option<ChildStdin>>,
    next: AtomicU64,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    starting: HashMap<Id, oneshot::Sender<Result<i32, String>>>,
    running: HashMap<Id, watch::Sender<Option<Exit>>>,
}

impl Link {
    pub(crate) fn send(&self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let input = input.as_mut().context("the guard is stopped")?;
        input.write_all(&line).context("the guard is gone")
    }

    fn close(&self) {
        self.input
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what the guard tells, until it ends.
    fn read(&self, output: BufReader<ChildStdout>) {
        for message in output.lines().map_while(Result::ok) {
            match serde_json::from_str(&message) {
                Ok(Message::Started(id, pid)) => self.answer(id, Ok(pid)),
                Ok(Message::Failed(id, reason)) => {
                    self.answer(id, Err(reason));
                    self.shared().running.remove(&id);
                }
                Ok(Message::Exited(id, exit)) => {
                    if let Some(running) = self.shared().running.remove(&id) {
                        running.send(Some(exit)).ok();
                    }
                }
                Ok(Message::Ready { .. }) | Err(_) => {}
            }
        }
    }

    /// Whoever still waits for an answer or an end sees that there will be none.
    fn end(&self) {
        self.close();
        *self.shared() = Shared::default();
    }

    fn answer(&self, id: Id, answer: Result<i32, String>) {
        if let Some(starting) = self.shared().starting.remove(&id) {
            starting.send(answer).ok();
        }
    }
}

/// Memory if there is enough of it, since etcd and logs are written a lot and read never.
fn base_directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let room = statvfs(memory).map_or(0, |fs| fs.blocks_available() * fs.fragment_size());
    if room >= MEMORY_NEEDED {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}
