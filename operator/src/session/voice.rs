//! What is reported of an executor, and when that is new. Pure.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Seen, State};

/// For how long an executor must have been unreachable to be called so: a restart of its connection is
/// not worth a word.
const LASTING: SignedDuration = SignedDuration::from_secs(1);
/// At least so long between two reports of trouble that differ in words only.
const WORDS: Duration = Duration::from_secs(10);

/// What was said, to say nothing twice.
#[derive(Debug, Default)]
pub(super) struct Voice {
    last: Option<State>,
    /// Time of the last report of trouble, from any beginning.
    complained: Duration,
    /// Since when it does not answer.
    since: Option<Timestamp>,
}

impl Voice {
    /// Whatever comes next is new: something else is wanted of the executor.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// The executor has these tasks.
    pub(super) fn tasks(&mut self, seen: Vec<Seen>) -> Option<State> {
        self.since = None;
        self.say(State::Tasks(seen))
    }

    /// The executor says no. `now` counts from any beginning.
    pub(super) fn refused(&mut self, message: String, now: Duration) -> Option<State> {
        self.since = None;
        if matches!(self.last, Some(State::Refused { .. })) {
            return self.reword(State::Refused { message }, now);
        }
        self.complained = now;
        self.say(State::Refused { message })
    }

    /// The executor did not answer an attempt that began `began` and ended `ended`. `now` counts from any
    /// beginning.
    pub(super) fn unreachable(
        &mut self,
        message: String,
        began: Timestamp,
        ended: Timestamp,
        now: Duration,
    ) -> Option<State> {
        let since = *self.since.get_or_insert(began);
        let state = State::Unreachable { since, message };
        if matches!(self.last, Some(State::Unreachable { since: said, .. }) if said == since) {
            return self.reword(state, now);
        }
        if ended.duration_since(since) < LASTING {
            return None;
        }
        self.complained = now;
        self.say(state)
    }

    /// Says the same in other words, not too often.
    fn reword(&mut self, state: State, now: Duration) -> Option<State> {
        if now.saturating_sub(self.complained) < WORDS {
            return None;
        }
        let state = self.say(state);
        if state.is_some() {
            self.complained = now;
        }
        state
    }

    fn say(&mut self, state: State) -> Option<State> {
        if self.last.as_ref() == Some(&state) {
            return None;
        }
        self.last = Some(state.clone());
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn fail(voice: &mut Voice, words: &str, began: i64, ended: i64) -> Option<State> {
        let now = Duration::from_secs(u64::try_from(ended).unwrap());
        voice.unreachable(words.to_owned(), at(began), at(ended), now)
    }

    fn unreachable(words: &str, since: i64) -> State {
        let since = at(since);
        let message = words.to_owned();
        State::Unreachable { since, message }
    }

    #[test]
    fn only_what_lasts_is_called_unreachable_and_once() {
        let mut voice = Voice::default();
        assert_eq!(fail(&mut voice, "a", 100, 100), None);
        assert_eq!(voice.tasks(vec![]), Some(State::Tasks(vec![])));
        assert_eq!(fail(&mut voice, "a", 200, 200), None);
        assert_eq!(fail(&mut voice, "a", 201, 201), Some(unreachable("a", 200)));
        assert_eq!(fail(&mut voice, "a", 300, 305), None);
        assert_eq!(
            voice.tasks(vec![]),
            Some(State::Tasks(vec![])),
            "it answers again"
        );
        assert_eq!(voice.tasks(vec![]), None);
        assert_eq!(fail(&mut voice, "a", 400, 402), Some(unreachable("a", 400)));
    }

    #[test]
    fn other_words_are_repeated_but_not_too_often() {
        let mut voice = Voice::default();
        assert!(fail(&mut voice, "a", 100, 102).is_some());
        assert_eq!(fail(&mut voice, "b", 103, 105), None);
        assert_eq!(fail(&mut voice, "b", 110, 112), Some(unreachable("b", 100)));
        assert_eq!(fail(&mut voice, "a", 113, 115), None);
        let refuse = |voice: &mut Voice, words: &str, now| {
            voice
                .refused(words.to_owned(), Duration::from_secs(now))
                .is_some()
        };
        assert!(refuse(&mut voice, "no", 116));
        assert!(!refuse(&mut voice, "no!", 117));
        assert!(!refuse(&mut voice, "no", 130));
        assert!(refuse(&mut voice, "no!", 131));
    }

    #[test]
    fn another_order_is_always_answered() {
        let mut voice = Voice::default();
        assert!(voice.tasks(vec![]).is_some());
        assert!(voice.tasks(vec![]).is_none());
        voice.forget();
        assert!(voice.tasks(vec![]).is_some());
    }
}
