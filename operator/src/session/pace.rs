//! How fast one executor may be listened to, so that one that floods costs itself time and nobody else.
//! Pure.

use std::time::Duration;

/// Lines that may come at once: more than a restart of an executor with all its tasks makes.
const BURST: i64 = 512;
/// Lines a second in the long run; a task has a handful of events in its whole life.
const RATE: i64 = 64;
/// A long line counts as one for each of these; the longest, 2 MiB, is within the burst with its pieces.
const LINE: usize = 8192;

/// An allowance that fills up with time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Thousandths of a line; less than none after a line that was more than what was left.
    allowance: i64,
    /// Time up to which it has been filled, from any beginning.
    filled: Duration,
}

impl Pace {
    /// A full allowance at the time `now`, which counts from any beginning.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            allowance: BURST * 1000,
            filled: now,
        }
    }

    /// Counts a line of so many bytes; how long to wait before the next is read.
    pub(super) fn count(&mut self, bytes: usize, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.filled).as_millis();
        self.filled = now.max(self.filled);
        let gained = i64::try_from(passed)
            .unwrap_or(i64::MAX)
            .saturating_mul(RATE);
        let cost = i64::try_from(1 + bytes / LINE)
            .unwrap_or(i64::MAX)
            .saturating_mul(1000);
        let full = self.allowance.saturating_add(gained).min(BURST * 1000);
        self.allowance = full.saturating_sub(cost);
        let lacking = u64::try_from(self.allowance.saturating_neg()).unwrap_or(0);
        Duration::from_millis(lacking / RATE.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_free_and_a_flood_is_slowed_to_the_rate() {
        let mut pace = Pace::new(Duration::ZERO);
        for _ in 0..BURST {
            assert_eq!(pace.count(300, Duration::ZERO), Duration::ZERO);
        }
        let mut now = Duration::ZERO;
        for _ in 0..RATE {
            let wait = pace.count(300, now);
            assert!(wait > Duration::ZERO);
            now += wait;
        }
        let seconds = now.as_secs_f64();
        assert!((0.9..1.1).contains(&seconds), "{seconds}");
    }

    #[test]
    fn silence_refills_and_length_counts() {
        let mut pace = Pace::new(Duration::ZERO);
        let long = LINE * 511;
        assert_eq!(pace.count(long, Duration::ZERO), Duration::ZERO);
        assert!(pace.count(0, Duration::ZERO) > Duration::ZERO);
        let later = Duration::from_hours(1);
        assert_eq!(pace.count(long, later), Duration::ZERO);
        assert!(pace.count(usize::MAX, later) > Duration::ZERO);
    }
}
