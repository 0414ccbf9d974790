//! Whether a Lease may be taken: pure.
//!
//! Clocks of two machines are never compared: what counts is how long this process has seen the Lease
//! unchanged. Whoever holds it stops writing well before anybody else can have seen that for as long as
//! the Lease says. client-go's rules, so that upstream's operator and ours respect each other.

use std::time::Duration;

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; nobody after a resignation.
    pub holder: Option<String>,
    /// How long it is valid after each renewal.
    pub duration: Duration,
    /// How often it changed hands.
    pub transitions: i32,
    /// `resourceVersion`: it changes with every renewal.
    pub version: String,
}

/// A Lease, and since when it is known as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// As it was read last.
    pub record: Record,
    /// When it was first read like this, on this process's monotonic clock.
    pub since: Duration,
}

impl Observed {
    /// What is known after a read that was answered at `now`.
    pub fn after(before: Option<Self>, record: Option<Record>, now: Duration) -> Option<Self> {
        let record = record?;
        match before {
            Some(before) if before.record == record => Some(before),
            _ => Some(Self { record, since: now }),
        }
    }
}

/// What to do about a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is none: make it.
    Create,
    /// Take it over, with the version that was read as precondition.
    Take {
        /// What becomes of `leaseTransitions`.
        transitions: i32,
        /// Whether the one before had given it up, and therefore writes no more.
        resigned: bool,
    },
    /// It is ours.
    Ours,
    /// Somebody else has it, at least for so long.
    Wait(Duration),
}

/// What `me` is to do about the Lease at `now`.
pub fn decide(observed: Option<&Observed>, me: &str, now: Duration) -> Decision {
    let Some(Observed { record, since }) = observed else {
        return Decision::Create;
    };
    let take = |resigned| Decision::Take {
        transitions: record.transitions.saturating_add(1),
        resigned,
    };
    match record.holder.as_deref() {
        None => take(true),
        Some(holder) if holder == me => Decision::Ours,
        Some(_) => {
            let left = since.saturating_add(record.duration).saturating_sub(now);
            if left.is_zero() {
                take(false)
            } else {
                Decision::Wait(left)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn record(holder: Option<&str>, version: &str) -> Record {
        Record {
            holder: holder.map(str::to_owned),
            duration: 15 * SECOND,
            transitions: 4,
            version: version.to_owned(),
        }
    }

    #[test]
    fn what_becomes_of_a_lease() {
        let seen = |holder| Observed {
            record: record(holder, "7"),
            since: 100 * SECOND,
        };
        let take = |resigned| Decision::Take {
            transitions: 5,
            resigned,
        };
        let other = seen(Some("other"));
        for (observed, now, expected) in [
            (None, 0, Decision::Create),
            (Some(seen(None)), 100, take(true)),
            (Some(seen(Some("me"))), 1000, Decision::Ours),
            (Some(other.clone()), 100, Decision::Wait(15 * SECOND)),
            (Some(other.clone()), 114, Decision::Wait(SECOND)),
            (Some(other.clone()), 115, take(false)),
            // The clock is monotonic; should it ever not be, waiting is right.
            (Some(other), 90, Decision::Wait(25 * SECOND)),
        ] {
            assert_eq!(decide(observed.as_ref(), "me", now * SECOND), expected);
        }
    }

    #[test]
    fn a_renewal_starts_the_wait_anew_and_a_repeated_read_does_not() {
        let first = Observed::after(None, Some(record(Some("other"), "1")), SECOND);
        let again = Observed::after(first.clone(), Some(record(Some("other"), "1")), 9 * SECOND);
        assert_eq!(again, first);
        let renewed = Observed::after(again, Some(record(Some("other"), "2")), 10 * SECOND);
        assert_eq!(renewed.unwrap().since, 10 * SECOND);
        assert_eq!(Observed::after(first, None, SECOND), None);
    }

    proptest! {
        /// A holder that renews, whoever watches it and however rarely, is never robbed: at the time of
        /// a takeover its last renewal began longer ago than the Lease is valid.
        #[test]
        fn nobody_is_robbed(
            // Times between two renewals, and between two looks; milliseconds.
            renewals in prop::collection::vec(1_u64..14_000, 1..20),
            looks in prop::collection::vec(1_u64..20_000, 1..40),
            answer in 0_u64..3000,
        ) {
            let mut at = 0;
            let renewed: Vec<u64> = renewals.iter().map(|step| { at += step; at }).collect();
            let mut observed = None;
            let mut now = 0;
            for look in looks {
                now += look;
                let version = renewed.iter().filter(|time| **time <= now).count();
                let last = renewed.iter().rev().find(|time| **time <= now).copied().unwrap_or(0);
                let answered = Duration::from_millis(now + answer);
                let read = record(Some("other"), &version.to_string());
                observed = Observed::after(observed, Some(read), answered);
                if let Decision::Take { .. } = decide(observed.as_ref(), "me", answered) {
                    prop_assert!(now + answer - last >= 15_000);
                    break;
                }
            }
        }
    }
}
