//! Waiting longer after each failure.
//!
//! Time is a parameter and comes from a wall clock: one that is set back must not make a wait longer
//! than the longest that was meant.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::time::back_off;
pub(super) use crate::time::later as after;

/// First wait of every back-off here.
pub(super) const FIRST: SignedDuration = SignedDuration::from_secs(1);

/// Whether `wait` has passed since `since`; also if `since` is in the future, where only a clock that
/// was set back can have put it.
pub(super) fn has_passed(since: Timestamp, wait: SignedDuration, now: Timestamp) -> bool {
    let elapsed = now.duration_since(since);
    elapsed >= wait || elapsed < -wait
}

/// How often something failed in a row, and until when it is not tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Timestamp>,
}

impl Backoff {
    /// Notes a failure: the next wait is twice as long as the last one, from [`FIRST`] to `longest`.
    pub(super) fn fail(&mut self, now: Timestamp, longest: SignedDuration) -> Timestamp {
        self.failures = self.failures.saturating_add(1);
        let until = after(now, back_off(self.failures, FIRST, longest));
        self.until = Some(until);
        until
    }

    /// Notes a failure as [`Self::fail`] does, but without a wait for the first one.
    pub(super) fn fail_after_first(&mut self, now: Timestamp, longest: SignedDuration) {
        if self.failures == 0 {
            self.failures = 1;
        } else {
            self.fail(now, longest);
        }
    }

    /// Whether something failed and has not been forgotten.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Until when to wait, if that is later than `now`.
    pub(super) fn waits_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.filter(|until| *until > now)
    }

    /// Forgets the failures, but lets a wait that has begun go on.
    pub(super) fn forgive(&mut self) {
        self.failures = 0;
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_anew_after_a_reset() {
        let now = Timestamp::UNIX_EPOCH;
        let mut backoff = Backoff::default();
        let longest = SignedDuration::from_secs(300);
        let mut waits = Vec::new();
        for _ in 0..40 {
            waits.push(backoff.fail(now, longest).duration_since(now).as_secs());
        }
        assert_eq!(waits[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(waits[39], 300);
        backoff.reset();
        assert_eq!(backoff.waits_until(now), None);
        assert_eq!(backoff.fail(now, longest).duration_since(now), FIRST);
    }

    #[test]
    fn the_end_of_time_is_no_panic() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.fail(Timestamp::MAX, FIRST), Timestamp::MAX);
    }
}
