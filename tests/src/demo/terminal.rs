//! How the demo speaks: headings, commands and what they printed, remarks, checks, differences. Goes
//! to standard output; colours only on a terminal.

use std::cell::Cell;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::diff::{Line, Mark};

/// Lines of YAML are cut here and commands continued; what other programs print is left alone.
const WIDTH: usize = 98;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";
const RESET: &str = "\x1b[0m";

/// Standard output.
#[derive(Debug)]
pub(super) struct Terminal {
    colors: bool,
    verbose: bool,
    steps: Cell<usize>,
}

impl Terminal {
    /// Colours unless unwanted, by the flag or by the variable `NO_COLOR` (no-color.org).
    pub(super) fn new(no_color: bool, verbose: bool) -> Self {
        let unwanted =
            no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colors = !unwanted && io::stdout().is_terminal();
        Self {
            colors,
            verbose,
            steps: Cell::new(0),
        }
    }

    fn line(&self, style: &str, text: &str) -> Result<()> {
        let mut output = io::stdout().lock();
        if self.colors && !style.is_empty() {
            writeln!(output, "{style}{text}{RESET}")?;
        } else {
            writeln!(output, "{text}")?;
        }
        Ok(output.flush()?)
    }

    pub(super) fn title(&self, text: &str) -> Result<()> {
        self.line(BOLD, text)
    }

    /// The heading of the next step.
    pub(super) fn step(&self, text: &str) -> Result<()> {
        self.steps.set(self.steps.get() + 1);
        self.line("", "")?;
        self.line(BOLD, &format!("{}. {text}", self.steps.get()))
    }

    /// A command, as one would type it.
    pub(super) fn command(&self, text: &str) -> Result<()> {
        self.line("", "")?;
        self.line(CYAN, &format!("$ {text}"))
    }

    /// A command that only checks what was said; for those who want to see everything.
    pub(super) fn aside(&self, text: &str) -> Result<()> {
        if self.verbose {
            self.line(DIM, &format!("  ({text})"))
        } else {
            Ok(())
        }
    }

    /// What a program printed, as it is.
    pub(super) fn output(&self, text: &str) -> Result<()> {
        let text = text.trim_end();
        if text.is_empty() {
            Ok(())
        } else {
            self.line("", text)
        }
    }

    /// A remark.
    pub(super) fn note(&self, text: &str) -> Result<()> {
        self.line("", text)
    }

    /// Something that was checked and held.
    pub(super) fn held(&self, text: &str) -> Result<()> {
        self.line(GREEN, &format!("✓ {text}"))
    }

    /// Something that was done, and how long it took.
    pub(super) fn done(&self, text: &str, begin: Instant) -> Result<()> {
        self.held(&format!("{text} ({})", seconds(begin.elapsed())))
    }

    /// Why the demo ends early.
    pub(super) fn failed(&self, text: &str) -> Result<()> {
        self.line("", "")?;
        self.line(RED, &format!("✗ {text}"))
    }

    /// Lines of YAML with `+` and `-`.
    pub(super) fn diff(&self, lines: &[Line]) -> Result<()> {
        for Line { mark, text } in lines {
            let (style, sign) = match mark {
                Mark::Same => (DIM, ' '),
                Mark::Added => (GREEN, '+'),
                Mark::Removed => (RED, '-'),
            };
            self.line(style, &cut(&format!("{sign} {text}")))?;
        }
        Ok(())
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    text.chars().take(WIDTH - 1).chain(['…']).collect()
}

/// A duration as a person reads it.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f32())
}

/// Arguments as one types them in a shell. A long line is continued on the next; an option stays
/// with its value.
pub(super) fn shell<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    let mut line = String::new();
    let mut width = 0;
    let mut words = words
        .into_iter()
        .map(|word| quoted(word.as_ref()))
        .peekable();
    while let Some(mut part) = words.next() {
        let is_option = |word: &str| word.len() > 1 && word.starts_with('-');
        if is_option(&part)
            && !part.contains('=')
            && let Some(value) = words.next_if(|next| !is_option(next))
        {
            part = format!("{part} {value}");
        }
        let length = part.chars().count() + 1;
        if width > 0 && width + length > WIDTH {
            line.push_str(" \\\n    ");
            width = 4;
        } else if width > 0 {
            line.push(' ');
        }
        line.push_str(&part);
        width += length;
    }
    line
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    let safe =
        |character: char| character.is_ascii_alphanumeric() || "_-./:=,@%+".contains(character);
    if !word.is_empty() && word.chars().all(safe) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_a_shell_would_change_are_quoted() {
        let line = shell(["kubectl", "-o", "jsonpath={.a[1]}", "it's", ""]);
        assert_eq!(line, r"kubectl -o 'jsonpath={.a[1]}' 'it'\''s' ''");
    }

    #[test]
    fn long_commands_are_continued_with_options_whole() {
        let long = "x".repeat(90);
        let line = shell(["kubectl", "get", "pools", "-o", &long, "-f", "-"]);
        assert_eq!(
            line,
            format!("kubectl get pools \\\n    -o {long} \\\n    -f -")
        );
    }

    #[test]
    fn long_lines_are_cut() {
        let text = cut(&"ä".repeat(200));
        assert_eq!(text.chars().count(), WIDTH);
        assert!(text.ends_with('…'));
        assert_eq!(cut("short"), "short");
    }
}
