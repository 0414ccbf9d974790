//! Waiting for a state, always with a bound. Goes in: what is waited for, in words, and a probe that
//! looks once. Comes out: the value the probe found, or an error that says what was missing last.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Between two looks. Short, since most states are reached within a few of them.
const INTERVAL: Duration = Duration::from_millis(20);

/// What one look at the state found. An `Err` beside it ends the waiting at once, for states that
/// can no longer be reached.
#[derive(Debug)]
pub enum Probe<T> {
    /// The state is reached.
    Done(T),
    /// Not yet, because of this.
    NotYet(String),
}

impl<T> Probe<T> {
    /// `NotYet` from anything that can be shown.
    pub fn not_yet(reason: impl Display) -> Self {
        Self::NotYet(reason.to_string())
    }
}

/// Looks until the probe is done. The bound is checked between looks, so a probe that can hang
/// needs its own bound.
///
/// # Errors
/// The probe's own error, or the bound passed.
pub async fn until<T, F>(what: &str, bound: Duration, mut probe: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<Probe<T>>,
{
    let deadline = Instant::now() + bound;
    loop {
        let reason = match probe().await? {
            Probe::Done(value) => return Ok(value),
            Probe::NotYet(reason) => reason,
        };
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}: {reason}", bound.as_secs_f32());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_reason_is_told() {
        let mut looks = 0;
        let error = until("the moon", Duration::from_millis(1), async || {
            looks += 1;
            Ok(Probe::<()>::not_yet(format!("look {looks}: clouds")))
        })
        .await
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("waited 0.001 s for the moon: look {looks}: clouds")
        );
    }

    #[tokio::test]
    async fn an_error_ends_the_waiting() {
        let mut looks = 0;
        let result = until("nothing", Duration::from_mins(1), async || {
            looks += 1;
            if looks == 3 {
                bail!("gone");
            }
            Ok(Probe::<()>::not_yet("still there"))
        })
        .await;
        assert_eq!(result.unwrap_err().to_string(), "gone");
        assert_eq!(looks, 3);
    }
}
