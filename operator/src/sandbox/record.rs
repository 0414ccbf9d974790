//! `status.taskRecord`: how every task stands, in a few bytes.
//!
//! The results in the status are bounded, and an executor forgets what it ran when its pod is given
//! back. What must not be forgotten is here for every task: whether it ended and how, and how often it
//! was begun. Words separated by spaces, run-length encoded: `S*3 F -1 x`. Pure.

use std::fmt::Write as _;

/// Most tasks that are recorded, and so the most shards that a sandbox can have.
pub(super) const MAX_TASKS: usize = 16_384;

/// Most often that a task is begun anew because its pod was lost.
pub(super) const MAX_ATTEMPT: u32 = 999;

/// How a task stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mark {
    /// It has not ended.
    #[default]
    Open,
    /// It succeeded.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// Its sandbox was scaled away. The attempt still counts: it is never used again.
    Removed,
}

impl Mark {
    fn letter(self) -> char {
        match self {
            Self::Open => '-',
            Self::Succeeded => 'S',
            Self::Failed => 'F',
            Self::Removed => 'x',
        }
    }

    fn of(letter: char) -> Option<Self> {
        Some(match letter {
            '-' => Self::Open,
            'S' => Self::Succeeded,
            'F' => Self::Failed,
            'x' => Self::Removed,
            _ => return None,
        })
    }

    /// Whether the task ended.
    pub(super) fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// How all tasks stand, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record(pub(super) Vec<(Mark, u32)>);

impl Record {
    /// Reads the text. What cannot be read ends the record: only the operator writes it, and what is
    /// not recorded is asked of the executors.
    pub(super) fn read(text: Option<&str>) -> Self {
        let mut marks = Vec::new();
        for word in text.unwrap_or_default().split_ascii_whitespace() {
            let Some((mark, count)) = run(word) else {
                break;
            };
            let room = MAX_TASKS - marks.len();
            marks.extend(std::iter::repeat_n(mark, count.min(room)));
        }
        Self(marks)
    }

    /// The text; `None` if there is no task.
    pub(super) fn text(&self) -> Option<String> {
        let mut text = String::new();
        for run in self.0.chunk_by(|a, b| a == b) {
            let Some((mark, attempt)) = run.first() else {
                continue;
            };
            if !text.is_empty() {
                text.push(' ');
            }
            text.push(mark.letter());
            if *attempt > 0 {
                write!(text, "{attempt}").expect("text takes whatever is written");
            }
            if run.len() > 1 {
                write!(text, "*{}", run.len()).expect("text takes whatever is written");
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// How task `index` stands, if it is recorded.
    pub(super) fn get(&self, index: u32) -> Option<(Mark, u32)> {
        self.0.get(usize::try_from(index).ok()?).copied()
    }

    /// Whether it is recorded that task `index` ended.
    pub(super) fn has_ended(&self, index: u32) -> bool {
        self.get(index).is_some_and(|(mark, _)| mark.is_end())
    }
}

fn run(word: &str) -> Option<((Mark, u32), usize)> {
    let (head, count) = match word.split_once('*') {
        Some((head, count)) => (head, count.parse().ok()?),
        None => (word, 1),
    };
    let mut letters = head.chars();
    let mark = Mark::of(letters.next()?)?;
    let attempt = match letters.as_str() {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    Some(((mark, attempt), count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_as_documented() {
        let record = Record::read(Some("S*3 F -1"));
        assert_eq!(record.0.len(), 5);
        assert_eq!(record.get(2), Some((Mark::Succeeded, 0)));
        assert_eq!(record.get(3), Some((Mark::Failed, 0)));
        assert_eq!(record.get(4), Some((Mark::Open, 1)));
        assert_eq!(record.get(5), None);
        assert_eq!(record.text().as_deref(), Some("S*3 F -1"));
    }

    #[test]
    fn is_bounded_whatever_the_text() {
        let record = Record::read(Some("S*99999999 F*99999999"));
        assert_eq!(record.0.len(), MAX_TASKS);
        assert_eq!(Record::read(Some("S q S")).0.len(), 1);
    }

    fn mark() -> impl Strategy<Value = Mark> {
        prop_oneof![
            Just(Mark::Open),
            Just(Mark::Succeeded),
            Just(Mark::Failed),
            Just(Mark::Removed)
        ]
    }

    proptest! {
        #[test]
        fn round_trips(marks in prop::collection::vec((mark(), 0..3_u32), 0..50)) {
            let record = Record(marks);
            prop_assert_eq!(Record::read(record.text().as_deref()), record);
        }

        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = Record::read(Some(&text));
        }
    }
}
