//! The lane of pods: so many writes at once as do not hold up what somebody waits for.
//!
//! An API server has two processors for all, as it were: a hundred pods that are created to fill up a pool
//! again delay the claim that took the hundred before them, if they go first. So
//!
//! - what nobody waits for, pods on stock and the status of Pools, is held back while BatchSandboxes are
//!   written and a moment longer, since one write of a claim follows the other. Not for ever, for a shorter
//!   time where the stock is low, and not at all while a BatchSandbox waits for pods;
//! - pods begin slowly, a few at once and one more with each that is done, as Kubernetes' own controllers
//!   do, and fall back to few whenever a BatchSandbox is written.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

/// At once while others write, and at the beginning.
const FEW: usize = 2;
/// How long after a write of a BatchSandbox the next one of the same claim may come: its answer, a decision,
/// and for the first write the way from the pool to the sandbox.
const MOMENT: Duration = Duration::from_millis(4);

/// Admits writes of pods, in the order in which they ask.
#[derive(Debug)]
pub(super) struct Lane {
    most: usize,
    /// As many permits, free or taken, as [`State::permits`] says.
    turns: Semaphore,
    state: Mutex<State>,
    emptied: Notify,
    /// What is held back is to look again.
    freed: Notify,
}

#[derive(Debug)]
struct State {
    /// At once, for now.
    limit: usize,
    /// Above the limit only while writes are in flight that had begun when it was lowered.
    permits: usize,
    in_flight: usize,
    /// Writes of others in flight, to which pods give way.
    others: usize,
    /// When the last of them ended.
    quiet_since: Option<Instant>,
    /// Pools with BatchSandboxes that wait for pods.
    awaited: usize,
}

impl State {
    /// Until when something that was asked for at this time is held back, unless it is freed before.
    fn held_until(&self, asked: Instant, patience: Duration) -> Option<Instant> {
        if self.awaited > 0 {
            return None;
        }
        let last = asked + patience;
        if self.others > 0 {
            return Some(last);
        }
        let quiet = self.quiet_since.map_or(asked, |since| since.max(asked));
        Some(last.min(quiet + MOMENT))
    }
}

impl Lane {
    /// At most so many at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            turns: Semaphore::new(FEW),
            state: Mutex::new(State {
                limit: FEW,
                permits: FEW,
                in_flight: 0,
                others: 0,
                quiet_since: None,
                awaited: 0,
            }),
            emptied: Notify::new(),
            freed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in between can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the permits as many as the limit says, as far as they are not taken.
    fn adjust(&self, state: &mut State) {
        if let Some(missing) = state.limit.checked_sub(state.permits) {
            self.turns.add_permits(missing);
            state.permits += missing;
        } else {
            let excess = state.permits - state.limit;
            state.permits -= self.turns.forget_permits(excess);
        }
    }

    /// Waits as long as something that nobody waits for is held back: at most so long.
    pub(super) async fn held_back(&self, patience: Duration) {
        let asked = Instant::now();
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on no change is missed.
            freed.as_mut().enable();
            let until = self.state().held_until(asked, patience);
            match until {
                Some(until) if Instant::now() < until => {
                    // Either way the state is looked at again.
                    let _ = timeout_at(until, freed).await;
                }
                _ => return,
            }
        }
    }

    /// A BatchSandbox waits for pods of some pool, until this is called with `false` for that pool.
    pub(super) fn awaited(&self, by_one_more: bool) {
        let mut state = self.state();
        if by_one_more {
            state.awaited += 1;
            self.freed.notify_waiters();
        } else {
            state.awaited = state.awaited.saturating_sub(1);
        }
    }

    /// Waits for a turn, which ends when it is dropped.
    pub(super) async fn turn(&self) -> Turn<'_> {
        if let Ok(permit) = self.turns.acquire().await {
            // It comes back, or not, by `adjust`.
            permit.forget();
        }
        self.state().in_flight += 1;
        Turn(self)
    }

    /// Others write until this is dropped: pods give way.
    pub(super) fn give_way(&self) -> Other<'_> {
        let mut state = self.state();
        state.others += 1;
        state.limit = FEW;
        self.adjust(&mut state);
        Other(self)
    }

    /// Waits until no pod is being written.
    pub(super) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // From here on no end is missed.
            emptied.as_mut().enable();
            if self.state().in_flight == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// A pod is being written.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Lane);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Lane { most, emptied, .. } = self.0;
        let mut state = self.0.state();
        state.in_flight -= 1;
        state.permits -= 1;
        if state.in_flight == 0 && self.0.turns.available_permits() > 0 {
            // Nobody wants more: the next burst begins anew.
            state.limit = FEW;
        } else if state.others == 0 {
            state.limit = state.limit.saturating_add(1).min(*most);
        }
        self.0.adjust(&mut state);
        if state.in_flight == 0 {
            emptied.notify_waiters();
        }
    }
}

/// Something else is being written.
#[derive(Debug)]
pub(super) struct Other<'a>(&'a Lane);

impl Drop for Other<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.others -= 1;
        if state.others == 0 {
            state.quiet_since = Some(Instant::now());
            self.0.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn turns(lane: &Lane) -> Vec<Turn<'_>> {
        std::iter::from_fn(|| lane.turn().now_or_never()).collect()
    }

    #[test]
    fn begins_with_few_and_grows_with_each_that_is_done() {
        let lane = Lane::new(5);
        let mut held = turns(&lane);
        assert_eq!(held.len(), FEW);
        for most in [3, 4, 5, 5] {
            held.pop();
            held.extend(turns(&lane));
            assert_eq!(held.len(), most);
        }
        // The next burst begins with few again.
        held.clear();
        assert_eq!(turns(&lane).len(), FEW);
    }

    #[test]
    fn gives_way_while_others_write_and_goes_on_all_the_same() {
        let lane = Lane::new(8);
        let mut held = turns(&lane);
        held.pop();
        held.extend(turns(&lane));
        assert_eq!(held.len(), 3);
        let other = lane.give_way();
        held.truncate(1);
        held.extend(turns(&lane));
        assert_eq!(held.len(), FEW);
        drop(other);
        held.pop();
        held.extend(turns(&lane));
        assert_eq!(held.len(), FEW + 1);
    }

    /// Whether something is held back for this long, and how much later it is let go at most.
    async fn held(lane: &Lane, begin: impl FnOnce()) -> Duration {
        let asked = Instant::now();
        let held_back = lane.held_back(PATIENCE);
        tokio::pin!(held_back);
        assert!(held_back.as_mut().now_or_never().is_none());
        begin();
        held_back.await;
        asked.elapsed()
    }

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_held_back_while_others_write() {
        let near =
            |time: Duration, aim: Duration| time >= aim && time <= aim + Duration::from_millis(2);
        let lane = Lane::new(4);
        // Nobody else writes: a moment, in which the claim that emptied the place begins to be written.
        let time = held(&lane, || ()).await;
        assert!(near(time, MOMENT), "{time:?}");
        // Others write without end.
        let other = lane.give_way();
        let time = held(&lane, || ()).await;
        assert!(near(time, PATIENCE), "{time:?}");
        // They come to an end.
        let time = held(&lane, || drop(other)).await;
        assert!(near(time, MOMENT), "{time:?}");
        // The next write of a claim begins within the moment.
        let one = lane.give_way();
        let another = async {
            drop(one);
            tokio::time::sleep(MOMENT / 2).await;
            let two = lane.give_way();
            tokio::time::sleep(MOMENT * 5).await;
            drop(two);
        };
        let asked = Instant::now();
        tokio::join!(another, lane.held_back(PATIENCE));
        assert!(asked.elapsed() >= MOMENT * 6, "{:?}", asked.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_awaited_is_not_held_back() {
        let lane = Lane::new(4);
        let other = lane.give_way();
        let time = held(&lane, || lane.awaited(true)).await;
        assert_eq!(time, Duration::ZERO);
        lane.awaited(true);
        lane.awaited(false);
        assert!(
            lane.held_back(PATIENCE).now_or_never().is_some(),
            "still by one"
        );
        lane.awaited(false);
        assert!(lane.held_back(PATIENCE).now_or_never().is_none());
        drop(other);
    }

    #[tokio::test]
    async fn those_that_wait_go_on_and_the_end_is_seen() {
        let lane = Lane::new(4);
        let written = futures::future::join_all((0..100).map(async |_| {
            let _turn = lane.turn().await;
            tokio::task::yield_now().await;
        }));
        assert_eq!(written.await.len(), 100);
        lane.empty().await;
        let turn = lane.turn().await;
        assert!(lane.empty().now_or_never().is_none());
        drop(turn);
        assert!(lane.empty().now_or_never().is_some());
    }
}
