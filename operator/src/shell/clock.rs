//! Reads the wall clock; everything else gets the time as a parameter.

use std::time::Duration;

use jiff::Timestamp;

/// Now.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the module that reads the clock"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// How long from `now` until `then`; zero if that is over, and never so long that a timer overflows.
pub fn until(now: Timestamp, then: Timestamp) -> Duration {
    /// A timer may ring early; who is woken looks at the time anyway.
    const LONGEST: Duration = Duration::from_hours(24);
    Duration::try_from(then.duration_since(now))
        .unwrap_or(Duration::ZERO)
        .min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_is_bounded_on_both_sides() {
        let now = Timestamp::from_second(1000).unwrap();
        let then = Timestamp::from_second(1010).unwrap();
        assert_eq!(until(now, then), Duration::from_secs(10));
        assert_eq!(until(then, now), Duration::ZERO);
        assert_eq!(until(now, Timestamp::MAX), Duration::from_hours(24));
        assert_eq!(until(Timestamp::MAX, Timestamp::MIN), Duration::ZERO);
    }
}
