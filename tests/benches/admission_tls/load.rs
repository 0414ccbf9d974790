//! When calls are made, and how long they take.
//!
//! An open loop makes a call whenever one is due, whether or not earlier ones are answered, and counts
//! from the moment it was due: a webhook that stops for a while is charged for all the calls that would
//! have come meanwhile. A closed loop makes the next call when the last is answered, which finds the
//! throughput and flatters the latencies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::Lane;
use crate::reviews::Review;

/// Between the last preparation and the first call.
const LEAD: Duration = Duration::from_millis(100);
/// Calls of each lane that are not counted.
const WARM_UP: usize = 20;

/// What came of a load.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Of calls that were answered rightly, sorted.
    latencies: Vec<Duration>,
    /// From the moment a call was due until a lane took it up, sorted. Open loops only.
    waits: Vec<Duration>,
    /// Why calls failed.
    pub(crate) failures: Vec<String>,
    /// From the first call to the last answer.
    pub(crate) elapsed: Duration,
}

impl Outcome {
    /// Calls that were answered rightly.
    pub(crate) fn answered(&self) -> usize {
        self.latencies.len()
    }

    /// The latency that so many calls of a thousand do not exceed.
    pub(crate) fn latency(&self, per_mille: usize) -> Duration {
        at(&self.latencies, per_mille)
    }

    /// The same of the time until a call was taken up; absent for a closed loop.
    pub(crate) fn wait(&self, per_mille: usize) -> Option<Duration> {
        (!self.waits.is_empty()).then(|| at(&self.waits, per_mille))
    }

    fn record(&mut self, start: Instant, result: Result<()>) {
        match result {
            Ok(()) => self.latencies.push(start.elapsed()),
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }

    async fn gather(mut lanes: JoinSet<Self>, start: Instant) -> Result<Self> {
        let mut all = Self::default();
        while let Some(lane) = lanes.join_next().await {
            let lane = lane?;
            all.latencies.extend(lane.latencies);
            all.waits.extend(lane.waits);
            all.failures.extend(lane.failures);
        }
        all.elapsed = start.elapsed();
        all.latencies.sort_unstable();
        all.waits.sort_unstable();
        Ok(all)
    }
}

fn at(sorted: &[Duration], per_mille: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(last * per_mille / 1000)
        .copied()
        .unwrap_or_default()
}

/// Makes the first calls of each lane, so that connections are open and code and memory are warm.
///
/// # Errors
/// One of them fails.
pub(crate) async fn warm_up(lanes: &mut [Lane], reviews: &[Review]) -> Result<()> {
    for (index, lane) in lanes.iter_mut().enumerate() {
        for review in reviews.iter().cycle().skip(index).take(WARM_UP) {
            lane.call(review).await.context("warm up")?;
        }
    }
    Ok(())
}

/// Makes `rate` calls per second for `seconds`.
///
/// # Errors
/// A lane panicked.
pub(crate) async fn open_loop(
    lanes: Vec<Lane>,
    reviews: &Arc<[Review]>,
    rate: u32,
    seconds: u32,
) -> Result<Outcome> {
    let total = rate * seconds;
    let due_at = move |start: Instant, call: u32| start + Duration::from_secs(1) * call / rate;
    let (due, next) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU32::new(0)));
    let start = Instant::now() + LEAD;
    let mut running = JoinSet::new();
    let count = lanes.len();
    for mut lane in lanes {
        let (due, next, reviews) = (Arc::clone(&due), Arc::clone(&next), Arc::clone(reviews));
        running.spawn(async move {
            let mut outcome = Outcome::default();
            loop {
                due.acquire()
                    .await
                    .expect("the semaphore is never closed")
                    .forget();
                let call = next.fetch_add(1, Ordering::Relaxed);
                if call >= total {
                    return outcome;
                }
                let was_due = due_at(start, call);
                outcome.waits.push(was_due.elapsed());
                let result = lane.call(&reviews[call as usize % reviews.len()]).await;
                outcome.record(was_due, result);
            }
        });
    }
    // A thread, as the runtime's timers are no finer than a millisecond.
    let pacer = std::thread::spawn(move || {
        for call in 0..total {
            let until = due_at(start, call);
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                if left.is_zero() {
                    break;
                }
                std::thread::park_timeout(left);
            }
            due.add_permits(1);
        }
        due.add_permits(count);
    });
    let outcome = Outcome::gather(running, start).await?;
    pacer.join().map_err(|_| anyhow!("the pacer panicked"))?;
    Ok(outcome)
}

/// Makes calls on all lanes, each as fast as it is answered, for `seconds`.
///
/// # Errors
/// A lane panicked.
pub(crate) async fn closed_loop(
    lanes: Vec<Lane>,
    reviews: &Arc<[Review]>,
    seconds: u32,
) -> Result<Outcome> {
    let start = Instant::now();
    let end = start + Duration::from_secs(1) * seconds;
    let mut running = JoinSet::new();
    for (index, mut lane) in lanes.into_iter().enumerate() {
        let reviews = Arc::clone(reviews);
        running.spawn(async move {
            let mut outcome = Outcome::default();
            for review in reviews.iter().cycle().skip(index % reviews.len()) {
                let start = Instant::now();
                if start >= end {
                    break;
                }
                outcome.record(start, lane.call(review).await);
            }
            outcome
        });
    }
    Outcome::gather(running, start).await
}
