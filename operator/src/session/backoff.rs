//! How long to wait before the next attempt. Pure.

use std::time::Duration;

/// A delay that doubles with each failure, with jitter, so that conversations that failed together do not
/// try again together.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    bounds: (Duration, Duration),
    failures: u32,
    random: u64,
}

impl Backoff {
    /// From the first to the longest delay; `seed` varies the jitter.
    pub(super) fn new(bounds: (Duration, Duration), seed: u64) -> Self {
        Self {
            bounds,
            failures: 0,
            // Xorshift has no way out of 0.
            random: seed | 1,
        }
    }

    /// After a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether the attempt before has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// After a failure: the delay, from three quarters of the nominal one to the whole.
    pub(super) fn next(&mut self) -> Duration {
        let (first, longest) = self.bounds;
        let nominal = first
            .saturating_mul(2_u32.saturating_pow(self.failures.min(31)))
            .min(longest);
        self.failures = self.failures.saturating_add(1);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = u32::try_from(self.random % 256).unwrap_or(0);
        nominal * 3 / 4 + nominal * share / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let bounds = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(bounds, 0);
        for nominal in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let delay = backoff.next().as_millis();
            assert!(
                delay >= nominal * 3 / 4 && delay <= nominal,
                "{delay} of {nominal}"
            );
        }
        for _ in 0..100 {
            assert!(backoff.next() <= bounds.1);
        }
        backoff.reset();
        assert!(!backoff.has_failed());
        assert!(backoff.next() <= bounds.0);
        assert!(backoff.has_failed());
    }

    #[test]
    fn different_seeds_wait_differently() {
        let bounds = (Duration::from_secs(1), Duration::from_secs(5));
        let delay = |seed| Backoff::new(bounds, seed).next();
        assert_ne!(delay(10), delay(1000));
    }
}
