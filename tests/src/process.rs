//! A program that a test started and can look at: its log, its end, its memory. Goes in: a
//! [`Launch`], given to [`Guard::run`](crate::Guard::run). A program that is dropped is stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http::StatusCode;
use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::guard::{Exit, Id, Link, Request};
use crate::http::Tls;
use crate::wait::{self, Probe};

/// Between SIGTERM and SIGKILL, unless a launch says otherwise.
const GRACE: Duration = Duration::from_secs(10);
/// Programs under test are stopped before the cluster they talk to.
pub(crate) const RANK_OF_TESTS: u32 = 1000;

/// What to start, and how.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Names the log file and appears in errors.
    pub name: String,
    /// Path of the program.
    pub program: PathBuf,
    /// Arguments after the first.
    pub args: Vec<String>,
    /// Added to this process's environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; that of this process if absent.
    pub working_directory: Option<PathBuf>,
    /// When the guard ends, programs of a higher rank are stopped first.
    pub rank: u32,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

impl Launch {
    /// Starts `program` without arguments.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            working_directory: None,
            rank: RANK_OF_TESTS,
            grace: GRACE,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

/// A program that was started. It is stopped when this is dropped, without waiting for its end.
#[derive(Debug)]
pub struct Program {
    name: String,
    id: Id,
    pid: i32,
    log: PathBuf,
    exit: watch::Receiver<Option<Exit>>,
    link: Arc<Link>,
}

impl Program {
    pub(crate) fn new(
        name: String,
        id: Id,
        pid: i32,
        log: PathBuf,
        exit: watch::Receiver<Option<Exit>>,
        link: Arc<Link>,
    ) -> Self {
        Self {
            name,
            id,
            pid,
            log,
            exit,
            link,
        }
    }

    /// The name it was launched with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// File with all it wrote to standard output and standard error.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it wrote so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = std::fs::read(&self.log)
            .with_context(|| format!("read the log {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs when the bound has passed.
    pub async fn wait_for_exit(&self, bound: Duration) -> Result<Exit> {
        let mut exit = self.exit.clone();
        let ended = tokio::time::timeout(bound, exit.wait_for(Option::is_some)).await;
        let ended = ended
            .with_context(|| format!("{} still runs after {} s", self.name, bound.as_secs_f32()))?
            .map_err(|_| anyhow!("the guard ended before {}", self.name))?;
        ended.clone().context("waited for a value")
    }

    /// Waits for the first complete line of its log that fits, and returns it.
    ///
    /// # Errors
    /// It ended without such a line, or the bound passed.
    pub async fn wait_for_line(
        &self,
        what: &str,
        bound: Duration,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String> {
        wait::until(
            &format!("{what} in the log of {}", self.name),
            bound,
            async || {
                // The end is asked for first: what was written before it is then in the log.
                let exit = self.exit();
                let log = self.log()?;
                let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
                if let Some(line) = complete.lines().find(|line| fits(line)) {
                    return Ok(Probe::Done(line.to_owned()));
                }
                match exit {
                    Some(exit) => bail!("{} {exit}", self.name),
                    None => Ok(Probe::not_yet(
                        complete.lines().last().unwrap_or("the log is empty"),
                    )),
                }
            },
        )
        .await
    }

    /// Waits until a GET of `url` is answered with 200.
    ///
    /// # Errors
    /// It ended, or the bound passed.
    pub async fn wait_for_ok(&self, url: &str, tls: Option<&Tls>, bound: Duration) -> Result<()> {
        wait::until(&format!("{} to be healthy", self.name), bound, async || {
            if let Some(exit) = self.exit() {
                bail!("{} {exit}", self.name);
            }
            Ok(match crate::http::get(url, tls).await {
                Ok((StatusCode::OK, _)) => Probe::Done(()),
                Ok((status, body)) => Probe::not_yet(format!("{url}: {status}: {body}")),
                Err(error) => Probe::not_yet(format!("{error:#}")),
            })
        })
        .await
    }

    /// Bytes of memory that are resident now.
    ///
    /// # Errors
    /// It does not run.
    pub fn rss_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .with_context(|| format!("{} does not run", self.name))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
            .with_context(|| format!("{} has no resident memory", self.name))?;
        Ok(kilobytes.trim().parse::<u64>()? * 1024)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The guard is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.link.send(&Request::Signal(self.id, signal as i32))
    }

    /// Stops it, SIGTERM first and SIGKILL when its grace is over, and waits for its end.
    ///
    /// # Errors
    /// The guard is gone.
    pub async fn stop(&self) -> Result<Exit> {
        if let Some(exit) = self.exit() {
            return Ok(exit);
        }
        self.link.send(&Request::Stop(self.id))?;
        self.exited().await
    }

    /// Ends it by SIGKILL, as a crash would, and waits for its end.
    ///
    /// # Errors
    /// The guard is gone.
    pub async fn kill(&self) -> Result<Exit> {
        self.signal(Signal::SIGKILL)?;
        self.exited().await
    }

    /// The guard bounds this, after a request to stop.
    async fn exited(&self) -> Result<Exit> {
        let mut exit = self.exit.clone();
        let exit = exit.wait_for(Option::is_some).await;
        let exit = exit.map_err(|_| anyhow!("the guard ended before {}", self.name))?;
        exit.clone().context("waited for a value")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only if the guard is gone, and everything with it.
        self.link.send(&Request::Stop(self.id)).ok();
    }
}
