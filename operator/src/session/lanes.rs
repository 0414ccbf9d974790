//! Who may have a connection now: so many in all, and those that wait for nothing do not stand behind
//! those that do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Leave to have one connection; given back on drop.
pub(super) type Permit = OwnedSemaphorePermit;

/// Places for connections, by what they are for.
#[derive(Debug)]
pub(super) struct Lanes {
    /// First attempts: short, unless the executor does not answer.
    first: Arc<Semaphore>,
    /// Further attempts, most of them at executors that do not answer, which take seconds.
    again: Arc<Semaphore>,
    /// Watches, which stay.
    watches: Arc<Semaphore>,
    /// How many wait for one of those.
    waiting: AtomicUsize,
}

impl Lanes {
    /// So many connections in all, at least 8; an eighth for each kind of attempt.
    pub(super) fn new(connections: usize) -> Self {
        let attempts = (connections / 8).max(1);
        let watches = connections.saturating_sub(2 * attempts).max(1);
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            first: places(attempts),
            again: places(attempts),
            watches: places(watches),
            waiting: AtomicUsize::new(0),
        }
    }

    /// For one request; `failed` says whether the one before failed.
    pub(super) async fn attempt(&self, failed: bool) -> Option<Permit> {
        let lane = if failed { &self.again } else { &self.first };
        Arc::clone(lane).acquire_owned().await.ok()
    }

    /// For a watch, once there is a place. First come, first served.
    pub(super) async fn watch(&self) -> Option<Permit> {
        if let Some(permit) = self.try_watch() {
            return Some(permit);
        }
        let _waiting = Waiting::begin(&self.waiting);
        Arc::clone(&self.watches).acquire_owned().await.ok()
    }

    /// For a watch, if there is a place.
    pub(super) fn try_watch(&self) -> Option<Permit> {
        Arc::clone(&self.watches).try_acquire_owned().ok()
    }

    /// Whether somebody waits for a watch, so that one that has had its turn should let others in.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Counts one that waits, for as long as it lives: waiting may be given up at any time.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failing_attempts_do_not_keep_first_ones_from_theirs() {
        let lanes = Lanes::new(16);
        let _again = [lanes.attempt(true).await, lanes.attempt(true).await];
        assert_eq!(lanes.again.available_permits(), 0);
        assert!(lanes.attempt(false).await.is_some());
        let watches: Vec<_> = std::iter::from_fn(|| lanes.try_watch()).collect();
        assert_eq!(watches.len(), 12);
        assert!(!lanes.is_crowded());
        let mut waits = Box::pin(lanes.watch());
        assert!(futures::poll!(&mut waits).is_pending());
        assert!(lanes.is_crowded());
        drop(watches);
        assert!(waits.await.is_some());
        assert!(!lanes.is_crowded());
    }

    #[test]
    fn there_is_always_a_place() {
        let lanes = Lanes::new(0);
        for lane in [&lanes.first, &lanes.again, &lanes.watches] {
            assert_eq!(lane.available_permits(), 1);
        }
    }
}
