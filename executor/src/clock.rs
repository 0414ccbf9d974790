//! The clocks; no other module reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, UTC: for people. Durations are measured with [`std::time::Instant`].
pub fn unix_millis() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the clock module")]
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339, UTC, whole seconds, as Kubernetes writes times.
pub fn rfc3339(unix_millis: u64) -> String {
    let seconds = i64::try_from(unix_millis / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

/// The inverse of [`rfc3339`], of any RFC 3339 text.
pub fn unix_millis_of(rfc3339: &str) -> Option<u64> {
    let timestamp: jiff::Timestamp = rfc3339.parse().ok()?;
    u64::try_from(timestamp.as_millisecond()).ok()
}
