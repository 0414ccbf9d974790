//! Reads the pipes of tasks.
//!
//! The agent that sends them runs as the sandbox's user and keeps copies: who has taken its place can
//! send anything, empty a pipe under our hands, and make it blocking again, because that is a property of
//! the open pipe and not of our descriptor. So nothing here relies on it: bytes are moved
//! (`splice(2)`, whose flag not to wait is one of the call) into a pipe that only we have, and read there.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};
use tokio::net::unix::pipe::Receiver;
use tokio::task::AbortHandle;

use super::{Echo, EchoStream, Stream, TaskOutput};

/// What is read at a time, before another task has its turn.
const CHUNK: usize = 64 * 1024;
/// What is read at once at the end of a task: as much as a pipe can hold, unless a privileged process
/// made it larger.
const DRAIN: usize = 1024 * 1024;

/// Why a descriptor is refused.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is something else.
    #[error("the descriptor sent for {} is not a pipe", .0.name())]
    NoPipe(Stream),
    /// It is a pipe, but not its reading end alone.
    #[error("the descriptor sent for {} is not the reading end of a pipe", .0.name())]
    NotReading(Stream),
    /// It cannot be watched.
    #[error("the pipe sent for {} cannot be watched", .0.name())]
    Watch(Stream, #[source] io::Error),
}

/// Reads the pipes of all tasks, through one buffer.
#[derive(Clone, Debug)]
pub struct Intake {
    echo: Echo,
    siphon: Arc<Mutex<Siphon>>,
}

impl Intake {
    /// Repeats what it reads in `echo`.
    pub fn new(echo: Echo) -> Self {
        Self {
            echo,
            siphon: Arc::default(),
        }
    }

    /// Reads the pipes of a task into `output` until they end. To be called inside a runtime.
    ///
    /// # Errors
    ///
    /// A descriptor is not the reading end of a pipe; nothing is read then.
    pub fn attach(
        &self,
        name: &str,
        output: &Arc<TaskOutput>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Attached, AttachError> {
        let stdout = watch(stdout, Stream::Stdout)?;
        let stderr = watch(stderr, Stream::Stderr)?;
        let [echo_stdout, echo_stderr] = self.echo.streams(name);
        let sources = [
            (Stream::Stdout, stdout, echo_stdout),
            (Stream::Stderr, stderr, echo_stderr),
        ]
        .map(|(stream, pipe, echo)| {
            Arc::new(Source {
                stream,
                pipe,
                output: Arc::clone(output),
                echo: Mutex::new(echo),
                siphon: Arc::clone(&self.siphon),
            })
        });
        let readers = sources.each_ref().map(|source| {
            let reader = tokio::spawn(Arc::clone(source).read_on());
            reader.abort_handle()
        });
        Ok(Attached { sources, readers })
    }
}

/// The pipes of a task that are being read, held until this is dropped. The streams of the output stay
/// open then, for the pipes may be attached again: who forgets a task calls [`Self::stop`], or who follows
/// its output waits for more.
#[derive(Debug)]
pub struct Attached {
    sources: [Arc<Source>; 2],
    readers: [AbortHandle; 2],
}

impl Attached {
    /// Reads what is in the pipes at this moment. What a process wrote before it ended is then complete,
    /// also if others keep the pipes open. Does not wait.
    pub fn drain_now(&self) {
        for source in &self.sources {
            source.drain();
        }
    }

    /// Reads what is in the pipes, and ends both streams.
    pub fn stop(self) {
        self.drain_now();
        for source in &self.sources {
            source.output.close(source.stream);
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
        for source in &self.sources {
            source.echo().flush(Instant::now());
        }
    }
}

/// A pipe, and where its bytes go.
#[derive(Debug)]
struct Source {
    stream: Stream,
    pipe: Receiver,
    output: Arc<TaskOutput>,
    echo: Mutex<EchoStream>,
    siphon: Arc<Mutex<Siphon>>,
}

impl Source {
    async fn read_on(self: Arc<Self>) {
        loop {
            let due = self.echo().due();
            let wait_until_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ready = self.pipe.readable() => {
                    if ready.is_err() {
                        return self.end();
                    }
                    // Waits for the next bytes only after it was seen that there are none.
                    let taken = self.pipe.try_io(|| Ok(self.take(CHUNK)?));
                    match taken {
                        Ok(0) => return self.end(),
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return self.fail(&error),
                    }
                }
                () = wait_until_due => self.echo().tick(Instant::now()),
            }
            // A pipe that is never empty would keep the others waiting.
            tokio::task::yield_now().await;
        }
    }

    fn drain(&self) {
        let mut left = DRAIN;
        while left > 0 {
            match self.take(left.min(CHUNK)) {
                Ok(0) => return self.end(),
                Ok(count) => left = left.saturating_sub(count),
                Err(Errno::EAGAIN) => break,
                Err(errno) => return self.fail(&errno.into()),
            }
        }
        self.echo().flush(Instant::now());
    }

    /// Takes at most `max` bytes; 0 is the end.
    fn take(&self, max: usize) -> nix::Result<usize> {
        let mut siphon = self.siphon.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = siphon.take(self.pipe.as_fd(), max)?;
        if !bytes.is_empty() {
            self.output.append(self.stream, bytes);
            self.echo().push(bytes, Instant::now());
        }
        Ok(bytes.len())
    }

    fn end(&self) {
        self.echo().flush(Instant::now());
        self.output.close(self.stream);
    }

    fn fail(&self, error: &io::Error) {
        tracing::warn!(stream = self.stream.name(), %error, "cannot read the output of a task");
        self.end();
    }

    fn echo(&self) -> MutexGuard<'_, EchoStream> {
        self.echo.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes bytes out of pipes that are not ours alone, without ever waiting for any.
#[derive(Debug, Default)]
struct Siphon {
    pipe: Option<(OwnedFd, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Siphon {
    fn take(&mut self, from: BorrowedFd<'_>, max: usize) -> nix::Result<&[u8]> {
        let (reading, writing) = match self.pipe.take() {
            Some(pipe) => pipe,
            None => pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?,
        };
        self.buffer.resize(CHUNK, 0);
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let moved = retry(|| splice(from, None, &writing, None, max.min(CHUNK), flags));
        let moved = match moved {
            Ok(moved) => moved,
            Err(errno) => {
                self.pipe = Some((reading, writing));
                return Err(errno);
            }
        };
        let mut filled = 0;
        while filled < moved {
            // What cannot be read, as parts of a file that were moved into the pipe and are gone, is
            // lost with our pipe: left there, it would become another task's output.
            match retry(|| read(&reading, &mut self.buffer[filled..moved])) {
                Ok(0) => return Err(Errno::EIO),
                Ok(count) => filled += count,
                Err(errno) => {
                    return Err(if errno == Errno::EAGAIN {
                        Errno::EIO
                    } else {
                        errno
                    });
                }
            }
        }
        self.pipe = Some((reading, writing));
        Ok(&self.buffer[..filled])
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Watches a descriptor that is the reading end of a pipe.
fn watch(descriptor: OwnedFd, stream: Stream) -> Result<Receiver, AttachError> {
    // Not fstat: on a file of a file system that the sandbox serves (FUSE) it waits for the sandbox.
    fcntl(&descriptor, FcntlArg::F_GETPIPE_SZ).map_err(|_| AttachError::NoPipe(stream))?;
    let flags = fcntl(&descriptor, FcntlArg::F_GETFL).map_err(|_| AttachError::NoPipe(stream))?;
    if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE != OFlag::O_RDONLY {
        return Err(AttachError::NotReading(stream));
    }
    Receiver::from_owned_fd_unchecked(descriptor).map_err(|error| AttachError::Watch(stream, error))
}
