//! How much may be written to the log: a rate for all, shared fairly.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a task counts as active after it printed.
const ACTIVE: Duration = Duration::from_secs(10);
/// Full buckets hold what comes in this many seconds.
const BURST_SECONDS: u64 = 4;
const NANOS: u128 = 1_000_000_000;

/// What comes in at a rate, in bytes.
#[derive(Clone, Debug)]
struct Inflow {
    rate: u64,
    looked: Instant,
    /// Of a byte, in its 10^9th parts.
    fraction: u128,
}

impl Inflow {
    fn new(rate: u64, now: Instant) -> Self {
        Self {
            rate,
            looked: now,
            fraction: 0,
        }
    }

    /// What came in since one looked last.
    fn since(&mut self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.looked);
        self.looked = self.looked.max(now);
        let parts = elapsed.as_nanos() * u128::from(self.rate) + self.fraction;
        self.fraction = parts % NANOS;
        u64::try_from(parts / NANOS).unwrap_or(u64::MAX)
    }

    fn capacity(&self) -> u64 {
        self.rate.saturating_mul(BURST_SECONDS)
    }
}

/// A token bucket; a token is a byte. At most `rate * time + 4 * rate` bytes are taken.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    inflow: Inflow,
    level: u64,
}

impl Bucket {
    /// A full one, for `rate` bytes per second.
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        let inflow = Inflow::new(rate, now);
        Self {
            level: inflow.capacity(),
            inflow,
        }
    }

    /// Takes `cost` bytes, or none and says no.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> bool {
        let level = self.level.saturating_add(self.inflow.since(now));
        self.level = level.min(self.inflow.capacity());
        let enough = cost <= self.level;
        if enough {
            self.level -= cost;
        }
        enough
    }
}

/// Of what a task was allowed to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Its fair share.
    Share,
    /// What others do not use.
    Spare,
}

/// A bucket for all tasks together, in which every active one has a share that nobody else can take, so
/// that a flood of one does not silence another.
///
/// What comes in is divided equally. Where a share is full, or when somebody is new, there is more in
/// the bucket than its shares are: that is had by who wants more than its share, but for an eighth
/// of the bucket, which waits for who is new. At most `rate * time + 4 * rate` bytes are granted.
#[derive(Debug)]
pub(super) struct Limiter {
    inflow: Inflow,
    /// In the bucket; never less than all shares together.
    level: u64,
    /// All shares together.
    shared: u64,
    /// Came in and could not be divided equally.
    undivided: u64,
    tasks: HashMap<u64, Share>,
    tidied: Instant,
}

#[derive(Debug)]
struct Share {
    level: u64,
    printed: Instant,
}

impl Limiter {
    /// For `rate` bytes per second; the bucket is full.
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        let inflow = Inflow::new(rate, now);
        Self {
            level: inflow.capacity(),
            inflow,
            shared: 0,
            undivided: 0,
            tasks: HashMap::new(),
            tidied: now,
        }
    }

    /// How many tasks were active lately.
    pub(super) fn active(&self) -> u64 {
        self.tasks.len() as u64
    }

    /// Whether a task may print `cost` bytes, which it then has done.
    pub(super) fn admit(&mut self, task: u64, cost: u64, now: Instant) -> Option<Grant> {
        self.tidy(now);
        self.fill(now);
        let capacity = self.inflow.capacity();
        let for_new = self.unshared() / 2;
        let shared = &mut self.shared;
        let share = self.tasks.entry(task).or_insert_with(|| {
            *shared += for_new;
            Share {
                level: for_new,
                printed: now,
            }
        });
        share.printed = now;
        if cost > self.level {
            return None;
        }
        let unshared = self.level.saturating_sub(self.shared + self.undivided);
        let grant = if cost <= share.level {
            share.level -= cost;
            self.shared -= cost;
            Grant::Share
        } else if cost.saturating_add(capacity / 8) <= unshared {
            Grant::Spare
        } else {
            return None;
        };
        self.level -= cost;
        Some(grant)
    }

    /// Forgets a task; its share is free.
    pub(super) fn forget(&mut self, task: u64) {
        if let Some(share) = self.tasks.remove(&task) {
            self.shared -= share.level;
        }
    }

    fn unshared(&self) -> u64 {
        self.level.saturating_sub(self.shared + self.undivided)
    }

    fn fill(&mut self, now: Instant) {
        let gained = self.inflow.since(now);
        if gained == 0 {
            return;
        }
        let capacity = self.inflow.capacity();
        self.level = self.level.saturating_add(gained).min(capacity);
        let active = self.active().max(1);
        let gained = gained.saturating_add(self.undivided);
        self.undivided = gained % active;
        let most = capacity / 4 * 3 / active;
        self.shared = 0;
        for share in self.tasks.values_mut() {
            share.level = share.level.saturating_add(gained / active).min(most);
            self.shared += share.level;
        }
    }

    /// Forgets who has not printed for a while.
    fn tidy(&mut self, now: Instant) {
        if now.saturating_duration_since(self.tidied) < Duration::from_secs(1) {
            return;
        }
        self.tidied = now;
        let shared = &mut self.shared;
        self.tasks.retain(|_, share| {
            let active = now.saturating_duration_since(share.printed) <= ACTIVE;
            if !active {
                *shared -= share.level;
            }
            active
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: u64 = 10_000;

    fn start() -> Instant {
        Instant::now()
    }

    proptest! {
        #[test]
        fn no_more_than_rate_and_burst(
            rate in 0_u64..100_000,
            asked in prop::collection::vec((0_u64..15, 1_u64..50_000, 0_u64..300_000), 1..300),
        ) {
            let begin = start();
            let mut now = begin;
            let mut limiter = Limiter::new(rate, now);
            let mut granted = 0;
            for (task, cost, micros) in asked {
                now += Duration::from_micros(micros);
                if limiter.admit(task, cost, now).is_some() {
                    granted += cost;
                }
                let elapsed = (now - begin).as_nanos();
                let due = u64::try_from(u128::from(rate) * elapsed / NANOS).unwrap();
                prop_assert!(granted <= due + BURST_SECONDS * rate, "{granted} of {due}");
                let shares: u64 = limiter.tasks.values().map(|share| share.level).sum();
                prop_assert_eq!(shares, limiter.shared);
                prop_assert!(shares <= limiter.level + limiter.undivided);
            }
        }

        /// Whatever others ask for, who stays well within its share is never refused.
        #[test]
        fn a_flood_does_not_silence_who_stays_within_its_share(
            floods in 1_u64..5,
            costs in prop::collection::vec(1_u64..2000, 200),
        ) {
            let mut now = start();
            let mut limiter = Limiter::new(RATE, now);
            let quiet = RATE / (floods + 1) / 20;
            for cost in costs {
                for flood in 1..=floods {
                    while limiter.admit(flood, cost, now).is_some() {}
                }
                prop_assert!(limiter.admit(0, quiet, now).is_some());
                now += Duration::from_millis(100);
            }
        }
    }

    #[test]
    fn what_others_do_not_use_is_had_by_who_wants_it() {
        let begin = start();
        let mut limiter = Limiter::new(RATE, begin);
        let mut granted = 0;
        for tenth in 0..600 {
            let now = begin + Duration::from_millis(100 * tenth);
            limiter.admit(1, 1, now);
            while limiter.admit(0, 100, now).is_some() {
                granted += 100;
            }
        }
        // A minute's worth, less what waits for others.
        assert!(granted >= 60 * RATE - 200, "{granted}");
    }

    #[test]
    fn the_idle_and_the_forgotten_do_not_count() {
        let mut now = start();
        let mut limiter = Limiter::new(RATE, now);
        for task in 0..10 {
            limiter.admit(task, 1, now);
        }
        assert_eq!(limiter.active(), 10);
        limiter.forget(3);
        limiter.forget(3);
        assert_eq!(limiter.active(), 9);
        now += ACTIVE + Duration::from_secs(2);
        limiter.admit(0, 1, now);
        assert_eq!(limiter.active(), 1);
        limiter.forget(0);
        assert_eq!((limiter.active(), limiter.shared), (0, 0));
    }

    #[test]
    fn a_slow_rate_is_kept_however_often_one_asks() {
        let begin = start();
        let mut bucket = Bucket::new(7, begin);
        let mut taken = 0;
        for milli in 0..=10_000 {
            let now = begin + Duration::from_millis(milli);
            taken += u64::from(bucket.take(1, now));
        }
        assert_eq!(taken, 28 + 70);
    }
}
