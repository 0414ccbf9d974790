//! Arithmetic on times that never fails: times on objects come from anybody.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
pub(crate) use opensandbox_api::conditions::whole_seconds;

/// `time` and so much more, at most the end of time.
pub(crate) fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// How long to wait after so many failures in a row: `first`, doubled each time, at most `most`.
pub(crate) fn back_off(
    failures: u32,
    first: SignedDuration,
    most: SignedDuration,
) -> SignedDuration {
    let factor = 1_i32 << failures.saturating_sub(1).min(20);
    first.checked_mul(factor).unwrap_or(most).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_time_are_no_accident() {
        assert_eq!(
            later(Timestamp::MAX, SignedDuration::from_secs(1)),
            Timestamp::MAX
        );
        assert_eq!(later(Timestamp::MIN, SignedDuration::MAX), Timestamp::MAX);
        let _ = whole_seconds(Timestamp::MIN);
    }

    #[test]
    fn doubles_up_to_the_bound() {
        let (first, most) = (SignedDuration::from_secs(1), SignedDuration::from_secs(30));
        let waits: Vec<i64> = (1..8).map(|n| back_off(n, first, most).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(back_off(u32::MAX, first, most), most);
    }
}
