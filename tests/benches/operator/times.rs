//! Many durations, and what is said of them.

use std::time::Duration;

/// Sorted durations.
#[derive(Clone, Debug)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The duration that so many thousandths do not exceed; `None` of nothing.
    pub(crate) fn at(&self, thousandths: usize) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        self.0
            .get((last * thousandths).div_ceil(1000))
            .copied()
            .map(millis)
    }
}

/// In milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
