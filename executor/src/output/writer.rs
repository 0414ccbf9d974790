//! Writes lines to where nobody may wait for them: standard output may block for as long as whoever
//! reads it likes, or fail.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::limit::Grant;

/// Longest queue; as much again may be with the thread that writes.
pub(super) const QUEUE_BYTES: usize = 256 * 1024;
/// Up to here, whoever was granted to print may.
const RELAXED_BYTES: usize = QUEUE_BYTES / 2;
/// Up to here, who has not used its part of the queue. The rest is for what is said about tasks.
const OUTPUT_BYTES: usize = QUEUE_BYTES / 16 * 15;
/// All parts together.
const PARTS_BYTES: u64 = (QUEUE_BYTES / 4 * 3) as u64;

/// What a line is.
#[derive(Debug)]
pub(super) enum Class<'a> {
    /// What a task printed.
    Output {
        /// Of what it was allowed to print.
        grant: Grant,
        /// How many tasks share the queue.
        sharers: u64,
        /// That task's part.
        part: &'a mut Part,
    },
    /// What is said about a task.
    Status,
}

/// What a task has put into the queue since that was last taken over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    batch: u64,
    bytes: u64,
}

/// What became of the lines; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WriterCounts {
    /// Written.
    pub(super) written: u64,
    /// Lost, because writing failed.
    pub(super) lost: u64,
}

/// A bounded queue of lines, and a thread that writes them.
///
/// The thread ends, once everything is written, after this is dropped. It is not waited for.
#[derive(Debug)]
pub(super) struct LineWriter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<u8>,
    /// Counts how often the thread took the lines over.
    batch: u64,
    writing: bool,
    closed: bool,
    counts: WriterCounts,
}

impl LineWriter {
    /// Writes to standard output.
    ///
    /// # Errors
    ///
    /// No descriptor or no thread is to be had.
    pub(super) fn stdout() -> io::Result<Self> {
        let descriptor = io::stdout().as_fd().try_clone_to_owned()?;
        Self::to(Patient(descriptor.into()))
    }

    /// Writes to `sink`, which may block.
    ///
    /// # Errors
    ///
    /// No thread is to be had.
    pub(super) fn to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Self {
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("log-writer".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || shared.write_to(sink))?;
        Ok(writer)
    }

    /// Queues a line, which ends with a line feed, or says that there is no room for it.
    pub(super) fn offer(&self, line: &[u8], class: Class<'_>) -> bool {
        let mut queue = self.shared.lock();
        let length = queue.lines.len() + line.len();
        match class {
            Class::Status if length > QUEUE_BYTES => return false,
            Class::Status => {}
            Class::Output {
                grant,
                sharers,
                part,
            } => {
                if part.batch != queue.batch {
                    *part = Part {
                        batch: queue.batch,
                        bytes: 0,
                    };
                }
                let bytes = part.bytes + line.len() as u64;
                let fits_part = part.bytes == 0 || bytes <= PARTS_BYTES / sharers.max(1);
                let fits = length <= RELAXED_BYTES
                    || (grant == Grant::Share && fits_part && length <= OUTPUT_BYTES);
                if !fits {
                    return false;
                }
                part.bytes = bytes;
            }
        }
        queue.lines.extend_from_slice(line);
        drop(queue);
        self.shared.filled.notify_one();
        true
    }

    /// Waits until everything is written, or `patience` is used up; says whether it is. Blocks.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut queue = self.shared.lock();
        while queue.writing || !queue.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.written.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What became of the lines so far.
    pub(super) fn counts(&self) -> WriterCounts {
        self.shared.lock().counts
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut sink: impl Write) {
        let mut inside_line = false;
        let mut queue = self.lock();
        loop {
            if queue.lines.is_empty() {
                if queue.closed {
                    return;
                }
                let waited = self.filled.wait(queue);
                queue = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // The memory goes with the lines: a quiet executor holds none.
            let lines = std::mem::take(&mut queue.lines);
            queue.batch += 1;
            queue.writing = true;
            drop(queue);
            let written = write_lines(&mut sink, &lines, &mut inside_line);
            queue = self.lock();
            queue.writing = false;
            queue.counts.written += written as u64;
            queue.counts.lost += (lines.len() - written) as u64;
            self.written.notify_all();
        }
    }
}

/// Writes as much as can be and says how much that was. After a failure inside a line the next one starts
/// on a line of its own, or it would not begin with its name.
fn write_lines(sink: &mut impl Write, lines: &[u8], inside_line: &mut bool) -> usize {
    if *inside_line && write_some(sink, b"\n") == 1 {
        *inside_line = false;
    }
    if *inside_line {
        return 0;
    }
    let written = write_some(sink, lines);
    *inside_line = lines[..written].last().is_some_and(|byte| *byte != b'\n');
    written
}

fn write_some(sink: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(count) if count > 0 => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    written
}

/// A file that waits also where it was made non-blocking, as a standard output may be by whoever has it
/// too.
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut writable = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut writable, PollTimeout::NONE)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
