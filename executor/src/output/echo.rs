//! The log of the executor's container: what tasks print and what happens to them, for `kubectl logs`.
//!
//! ```text
//! [build] started, pid 12
//! [build stdout] compiling
//! [build stderr+] the rest of a line that was too long, or did not go on for a second
//! [build] 70320 bytes of stdout left out here
//! [build] exited with 0 after 1.2 s
//! ```
//!
//! Every line begins with the name of its task; the name of a stream follows if the task printed the
//! line. A name holds no space and no bracket, and what is printed stays on its line, so a task
//! cannot write a line that seems to come from elsewhere.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Stream;
use super::limit::{Bucket, Limiter};
use super::line::{Piece, Splitter, escape_name, escape_text};
use super::writer::{Class, LineWriter, Part};

/// Bytes per second of what is said about tasks; they do not count as output.
const STATUS_RATE: u64 = 64 * 1024;
/// Longest text said about a task, in bytes.
const MAX_STATUS: usize = 1024;
/// At most so often a line says what a stream left out.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// What became of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EchoCounts {
    /// Bytes that tasks printed and the log shows.
    pub shown: u64,
    /// Bytes that tasks printed and the log leaves out.
    pub left_out: u64,
    /// Lines about tasks that are left out.
    pub statuses_left_out: u64,
    /// Bytes of the log itself, written.
    pub written: u64,
    /// Bytes of the log itself, lost because writing failed.
    pub lost: u64,
}

/// The log.
#[derive(Clone, Debug)]
pub struct Echo {
    log: Arc<Log>,
}

#[derive(Debug)]
struct Log {
    /// Bytes of output per second; none is shown if 0.
    rate: u64,
    writer: LineWriter,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limiter: Limiter,
    parts: HashMap<u64, Part>,
    next_task: u64,
    status: Bucket,
    counts: EchoCounts,
    /// Where lines are put together.
    line: Vec<u8>,
}

impl Echo {
    /// To standard output, with `rate` bytes of output per second and a burst of four times as much.
    ///
    /// # Errors
    ///
    /// The thread that writes could not be started.
    pub fn stdout(rate: u32) -> io::Result<Self> {
        Ok(Self::new(LineWriter::stdout()?, rate, Instant::now()))
    }

    /// To `sink`, likewise.
    ///
    /// # Errors
    ///
    /// The thread that writes could not be started.
    pub fn to(sink: impl Write + Send + 'static, rate: u32, now: Instant) -> io::Result<Self> {
        Ok(Self::new(LineWriter::to(sink)?, rate, now))
    }

    fn new(writer: LineWriter, rate: u32, now: Instant) -> Self {
        let rate = u64::from(rate);
        let state = State {
            limiter: Limiter::new(rate, now),
            parts: HashMap::new(),
            next_task: 0,
            status: Bucket::new(STATUS_RATE, now),
            counts: EchoCounts::default(),
            line: Vec::new(),
        };
        let log = Log {
            rate,
            writer,
            state: Mutex::new(state),
        };
        Self { log: Arc::new(log) }
    }

    /// The two streams of a task, [`Stream::Stdout`] first.
    pub fn streams(&self, name: &str) -> [EchoStream; 2] {
        let mut state = self.log.lock();
        let id = state.next_task;
        state.next_task += 1;
        drop(state);
        let mut escaped = b"[".to_vec();
        escape_name(name, &mut escaped);
        let task = Arc::new(Task {
            id,
            prefix: escaped,
            log: Arc::clone(&self.log),
        });
        Stream::ALL.map(|stream| EchoStream {
            task: Arc::clone(&task),
            stream,
            splitter: Splitter::default(),
            left_out: 0,
            notice_due: None,
        })
    }

    /// Says what happened to a task: `[name] text`. Output does not crowd it out; only much more of its own
    /// kind than there is to say does, or a standard output that nobody reads.
    pub fn say(&self, name: &str, text: &str) {
        let mut prefix = b"[".to_vec();
        escape_name(name, &mut prefix);
        let said = self
            .log
            .lock()
            .say(&self.log.writer, &prefix, text, Instant::now());
        if !said {
            self.log.lock().counts.statuses_left_out += 1;
        }
    }

    /// Waits until everything is written, or `patience` is used up; says whether it is. Blocks: for the
    /// end of the program.
    pub fn flush(&self, patience: Duration) -> bool {
        self.log.writer.flush(patience)
    }

    /// What became of the log so far.
    pub fn counts(&self) -> EchoCounts {
        let writer = self.log.writer.counts();
        EchoCounts {
            written: writer.written,
            lost: writer.lost,
            ..self.log.lock().counts
        }
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn say(&mut self, writer: &LineWriter, prefix: &[u8], text: &str, now: Instant) -> bool {
        self.line.clear();
        self.line.extend_from_slice(prefix);
        self.line.extend_from_slice(b"] ");
        let end = text.floor_char_boundary(MAX_STATUS);
        escape_text(&text.as_bytes()[..end], &mut self.line);
        self.line.push(b'\n');
        let cost = self.line.len() as u64;
        self.status.take(cost, now) && writer.offer(&self.line, Class::Status)
    }

    fn show(&mut self, task: &Task, stream: Stream, piece: Piece<'_>, now: Instant) -> bool {
        if piece.says_nothing() {
            self.counts.shown += piece.bytes;
            return true;
        }
        self.line.clear();
        self.line.extend_from_slice(&task.prefix);
        self.line.push(b' ');
        self.line.extend_from_slice(stream.name().as_bytes());
        self.line
            .extend_from_slice(if piece.continued { b"+] " } else { b"] " });
        escape_text(piece.text, &mut self.line);
        self.line.push(b'\n');
        let cost = self.line.len() as u64;
        let Some(grant) = self.limiter.admit(task.id, cost, now) else {
            return false;
        };
        let class = Class::Output {
            grant,
            sharers: self.limiter.active(),
            part: self.parts.entry(task.id).or_default(),
        };
        let queued = task.log.writer.offer(&self.line, class);
        if queued {
            self.counts.shown += piece.bytes;
        }
        queued
    }
}

/// What the streams of a task share.
#[derive(Debug)]
struct Task {
    id: u64,
    /// `[name`
    prefix: Vec<u8>,
    log: Arc<Log>,
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.limiter.forget(self.id);
        state.parts.remove(&self.id);
    }
}

/// A stream of a task on its way to the log. Time is a parameter; it does not go backwards.
#[derive(Debug)]
pub struct EchoStream {
    task: Arc<Task>,
    stream: Stream,
    splitter: Splitter,
    /// Bytes that are left out and that no line has told of.
    left_out: u64,
    notice_due: Option<Instant>,
}

impl EchoStream {
    /// Shows the lines that `bytes` completes, or counts them.
    pub fn push(&mut self, bytes: &[u8], now: Instant) {
        if self.task.log.rate == 0 {
            return;
        }
        self.tick(now);
        let Self {
            task,
            stream,
            splitter,
            ..
        } = self;
        let mut state = task.log.lock();
        let mut refused = 0;
        // One refusal is for all the rest: no time passes meanwhile.
        let passed = splitter.push(bytes, now, |piece| {
            let shown = state.show(task, *stream, piece, now);
            if !shown {
                refused = piece.bytes;
            }
            shown
        });
        drop(state);
        self.leave_out(refused + passed, now);
    }

    /// When [`Self::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.notice_due.into_iter().chain(self.splitter.due()).min()
    }

    /// Shows a line that has waited long enough for its end, and tells what was left out.
    pub fn tick(&mut self, now: Instant) {
        if self.splitter.due().is_some_and(|due| due <= now) {
            self.flush_line(now);
        }
        if self.notice_due.is_some_and(|due| due <= now) {
            self.tell(now);
        }
    }

    /// Shows a line that has no end yet, and tells what was left out, now.
    pub fn flush(&mut self, now: Instant) {
        self.flush_line(now);
        self.tell(now);
    }

    fn flush_line(&mut self, now: Instant) {
        let Self {
            task,
            stream,
            splitter,
            ..
        } = self;
        let mut refused = 0;
        splitter.flush(|piece| {
            if !task.log.lock().show(task, *stream, piece, now) {
                refused = piece.bytes;
            }
        });
        self.leave_out(refused, now);
    }

    fn leave_out(&mut self, bytes: u64, now: Instant) {
        if bytes > 0 {
            self.left_out += bytes;
            self.task.log.lock().counts.left_out += bytes;
            self.notice_due.get_or_insert(now + NOTICE_EVERY);
        }
    }

    fn tell(&mut self, now: Instant) {
        self.notice_due = None;
        if self.left_out == 0 {
            return;
        }
        let stream = self.stream.name();
        let text = format!("{} bytes of {stream} left out here", self.left_out);
        let log = &self.task.log;
        if log.lock().say(&log.writer, &self.task.prefix, &text, now) {
            self.left_out = 0;
        } else {
            self.notice_due = Some(now + NOTICE_EVERY);
        }
    }
}
