//! Orders without an answer that an executor may still receive.
//!
//! An order to run a task whose answer did not come may be on its way yet. Its token ends that: an
//! executor refuses it afterwards. Until then an empty list of tasks proves nothing, because the task
//! could still begin. Kept by pod, because the conversation may be another one by then.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Entries from which on those that are over are thrown away.
const SWEEP: usize = 256;

/// Until when each pod may still receive an order.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<HashMap<String, Instant>>);

impl Doubts {
    /// An order is about to be sent that nobody takes after `until`.
    pub(super) fn raise(&self, pod_uid: &str, until: Instant) {
        let mut doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.len() >= SWEEP {
            let now = Instant::now();
            doubts.retain(|_, until| *until > now);
        }
        let entry = doubts.entry(pod_uid.to_owned()).or_insert(until);
        *entry = until.max(*entry);
    }

    /// When there is no doubt about this pod any more; `None` if there is none now.
    pub(super) fn until(&self, pod_uid: &str) -> Option<Instant> {
        let mut doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = *doubts.get(pod_uid)?;
        if until <= Instant::now() {
            doubts.remove(pod_uid);
            return None;
        }
        Some(until)
    }

    /// The order sent last was answered, and `before` is what [`Self::until`] said before it was sent.
    pub(super) fn settle(&self, pod_uid: &str, before: Option<Instant>) {
        let mut doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match before {
            Some(before) => doubts.insert(pod_uid.to_owned(), before),
            None => doubts.remove(pod_uid),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_doubt_ends_with_its_answer_or_with_time() {
        let doubts = Doubts::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(doubts.until("a"), None);
        doubts.raise("a", start + 3 * second);
        doubts.raise("a", start + second);
        assert_eq!(
            doubts.until("a"),
            Some(start + 3 * second),
            "the longest counts"
        );
        assert_eq!(doubts.until("b"), None);
        doubts.raise("a", start + 9 * second);
        doubts.settle("a", Some(start + 3 * second));
        assert_eq!(
            doubts.until("a"),
            Some(start + 3 * second),
            "an older one stays"
        );
        tokio::time::advance(3 * second).await;
        assert_eq!(doubts.until("a"), None);
        doubts.raise("a", start + 9 * second);
        doubts.settle("a", None);
        assert_eq!(doubts.until("a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_is_not_kept() {
        let doubts = Doubts::default();
        for number in 0..10 * SWEEP {
            doubts.raise(
                &number.to_string(),
                Instant::now() + Duration::from_millis(1),
            );
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(doubts.0.lock().unwrap().len() <= SWEEP);
    }
}
