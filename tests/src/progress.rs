//! How far a build is, on standard error: one line that is rewritten on a terminal, a line now and
//! then elsewhere. Goes in: the command, and which of its lines say that a part is done. Comes out:
//! how it ended, and its last lines, for an error to repeat. Blocks; needs no client.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// What is told of a build while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report<'a> {
    /// What is done, such as `building the webhook`.
    pub what: &'a str,
    /// What is counted, such as `packages`.
    pub unit: &'a str,
    /// Whether a line of its standard error says that one more is done.
    pub counts: fn(&str) -> bool,
    /// Nothing is told of a build that needs less than this.
    pub delay: Duration,
    /// How many of the last lines are kept.
    pub kept_lines: usize,
}

/// Runs the command to its end; its standard error is read, its standard input is empty.
///
/// # Errors
/// It cannot be started or waited for.
pub(crate) fn follow(
    command: &mut Command,
    report: &Report<'_>,
) -> io::Result<(ExitStatus, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child
        .stderr
        .take()
        .ok_or_else(|| io::Error::other("standard error is a pipe"))?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut progress = Progress::new(report);
    let mut last_lines = VecDeque::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                progress.count += usize::from((report.counts)(&line));
                if last_lines.len() == report.kept_lines {
                    last_lines.pop_front();
                }
                last_lines.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        progress.show();
    }
    let status = child.wait()?;
    progress.end();
    Ok((
        status,
        last_lines.into_iter().collect::<Vec<_>>().join("\n"),
    ))
}

struct Progress<'a> {
    report: &'a Report<'a>,
    begin: Instant,
    shown: Option<Instant>,
    terminal: bool,
    count: usize,
}

impl<'a> Progress<'a> {
    fn new(report: &'a Report<'a>) -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            report,
            begin: Instant::now(),
            shown: None,
            terminal,
            count: 0,
        }
    }

    fn show(&mut self) {
        let interval = Duration::from_secs(if self.terminal { 1 } else { 10 });
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= interval);
        if due && self.begin.elapsed() >= self.report.delay {
            self.shown = Some(Instant::now());
            self.write();
        }
    }

    fn write(&self) {
        let Report { what, unit, .. } = self.report;
        let text = format!(
            "{what}: {} {unit}, {} s",
            self.count,
            self.begin.elapsed().as_secs()
        );
        if self.terminal {
            // Back to the start of the line, and erase to its end.
            write!(io::stderr(), "\r{text}\x1b[K").ok();
        } else {
            writeln!(io::stderr(), "{text}").ok();
        }
    }

    /// The last state, if any was shown.
    fn end(&self) {
        if self.shown.is_some() {
            self.write();
            if self.terminal {
                writeln!(io::stderr()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_and_the_status_are_kept() {
        let report = Report {
            what: "counting",
            unit: "lines",
            counts: |_| true,
            delay: Duration::from_mins(1),
            kept_lines: 2,
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "for i in 1 2 3; do echo $i >&2; done; exit 3"]);
        let (status, lines) = follow(&mut command, &report).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(lines, "2\n3");
    }
}
