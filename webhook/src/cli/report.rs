//! What is wrong and what may be, one line each, in the order of the input.

use super::document::Unreadable;
use super::review::Verdict;

/// Lines for standard error.
#[derive(Debug, Default)]
pub(super) struct Report {
    lines: Vec<String>,
    pub(super) problems: usize,
    pub(super) warnings: usize,
}

impl Report {
    pub(super) fn unreadable(&mut self, problems: &[Unreadable]) {
        self.problems += problems.len();
        self.lines.extend(problems.iter().map(ToString::to_string));
    }

    /// Takes over the findings of the object with this title.
    pub(super) fn verdict(&mut self, title: &str, verdict: &Verdict) {
        let Verdict {
            problems,
            warnings,
            mutation: _,
        } = verdict;
        self.problems += problems.len();
        self.warnings += warnings.len();
        self.lines
            .extend(problems.iter().map(|problem| format!("{title}: {problem}")));
        self.lines.extend(
            warnings
                .iter()
                .map(|warning| format!("warning: {title}: {warning}")),
        );
    }

    pub(super) fn into_text(self) -> String {
        self.lines.into_iter().map(|line| line + "\n").collect()
    }
}
