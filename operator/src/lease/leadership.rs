//! Until when this process may write: asked before every write, and by whoever signs something that is
//! valid for a while.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::shell::clock;
use crate::write::WriteError;

/// Shared and cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    term: Arc<Mutex<Term>>,
}

#[derive(Clone, Copy, Debug)]
enum Term {
    Nobody,
    /// There is no election: this process is the only one.
    Unbounded,
    /// By both clocks: the monotonic one stands still while the machine is suspended, and the other one
    /// may be set back.
    Until {
        since: Instant,
        since_wall: Timestamp,
        length: Duration,
    },
}

impl Leadership {
    /// Not leading.
    pub fn of_nobody() -> Self {
        Self::with(Term::Nobody)
    }

    /// Leading for good: where there is no election.
    pub fn unbounded() -> Self {
        Self::with(Term::Unbounded)
    }

    fn with(term: Term) -> Self {
        Self {
            term: Arc::new(Mutex::new(term)),
        }
    }

    /// Leads for `length` from `since`, when the request began that made it so.
    pub(super) fn extend(&self, since: Instant, length: Duration) {
        // Wall time is read now, so what has passed since is taken off.
        let since_wall = Timestamp::saturating_sub(clock::now(), since.elapsed())
            .unwrap_or(Timestamp::UNIX_EPOCH);
        self.set(Term::Until {
            since,
            since_wall,
            length,
        });
    }

    /// Does not lead any more, at once.
    pub(super) fn end(&self) {
        self.set(Term::Nobody);
    }

    fn set(&self, term: Term) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term;
    }

    /// How much longer this process leads for certain; `None` if it does not.
    pub fn remaining(&self) -> Option<Duration> {
        let term = *self.term.lock().unwrap_or_else(PoisonError::into_inner);
        match term {
            Term::Nobody => None,
            Term::Unbounded => Some(Duration::MAX),
            Term::Until {
                since,
                since_wall,
                length,
            } => {
                let by_wall = clock::now().duration_since(since_wall);
                let by_wall = Duration::try_from(by_wall).unwrap_or(Duration::ZERO);
                length
                    .checked_sub(since.elapsed().max(by_wall))
                    .filter(|left| !left.is_zero())
            }
        }
    }

    /// Whether this process may write now.
    ///
    /// # Errors
    /// [`WriteError::Fenced`] if not.
    pub fn check(&self) -> Result<(), WriteError> {
        self.remaining().map(drop).ok_or(WriteError::Fenced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_ends_by_itself_counted_from_where_it_began() {
        let leadership = Leadership::of_nobody();
        assert_eq!(leadership.check(), Err(WriteError::Fenced));
        let hour = Duration::from_hours(1);
        leadership.extend(Instant::now(), hour);
        assert!(leadership.remaining().is_some_and(|left| left <= hour));
        assert_eq!(leadership.clone().check(), Ok(()));
        let Some(past) = Instant::now().checked_sub(Duration::from_secs(10)) else {
            return;
        };
        leadership.extend(past, Duration::from_secs(9));
        assert_eq!(leadership.remaining(), None);
        leadership.extend(past, Duration::from_secs(70));
        assert!(
            leadership
                .remaining()
                .is_some_and(|left| left <= Duration::from_mins(1))
        );
        leadership.end();
        assert_eq!(leadership.check(), Err(WriteError::Fenced));
    }

    #[test]
    fn a_machine_that_slept_does_not_lead() {
        let leadership = Leadership::with(Term::Until {
            since: Instant::now(),
            since_wall: clock::now() - jiff::SignedDuration::from_mins(1),
            length: Duration::from_secs(10),
        });
        assert_eq!(leadership.remaining(), None);
    }

    #[test]
    fn a_clock_set_back_does_not_lengthen_a_term() {
        let Some(past) = Instant::now().checked_sub(Duration::from_secs(10)) else {
            return;
        };
        let leadership = Leadership::with(Term::Until {
            since: past,
            since_wall: clock::now() + jiff::SignedDuration::from_hours(1),
            length: Duration::from_secs(9),
        });
        assert_eq!(leadership.remaining(), None);
    }

    #[test]
    fn without_an_election_one_always_leads() {
        assert_eq!(Leadership::unbounded().remaining(), Some(Duration::MAX));
    }
}
