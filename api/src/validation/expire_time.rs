//! The rule of `spec.expireTime`.

use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::Value;

use super::shape::string;
use super::{Problems, Stage};
use crate::v1alpha1::expire_time;

const PATH: &str = "spec.expireTime";

/// A time after 1970, in the form that the API server asks for.
///
/// That form leaves room for what Go reads as a time and we do not, such as a zone of `+24:60`: the API
/// server alone lets it pass.
pub(super) fn check(problems: &mut Problems, value: Option<&Value>) {
    let Some(text) = string(problems, Stage::Schema, PATH, value) else {
        return;
    };
    let time = expire_time(text).ok();
    let sound = is_date_time(text) && time.is_none_or(|time| time > Timestamp::UNIX_EPOCH);
    if !sound || time.is_none() {
        let stage = if sound { Stage::Webhook } else { Stage::Schema };
        let detail =
            "must be a time after 1970, as RFC 3339 writes it, such as 2030-01-02T15:04:05Z";
        problems.invalid(stage, PATH, &Value::from(text), detail);
    }
}

/// The form of `format: date-time` as the API server checks it, first by a pattern, then by Go's reader.
fn is_date_time(text: &str) -> bool {
    let Some((date, time)) = text.split_once('T') else {
        return false;
    };
    let shaped = matches!(date.split('-').collect::<Vec<_>>()[..], [year, month, day]
        if digits(year, 4) && digits(month, 2) && digits(day, 2));
    if !shaped || date.parse::<Date>().is_err() {
        return false;
    }
    let (clock, zone) = match time.strip_suffix('Z') {
        Some(clock) => (clock, None),
        None => match time.rfind(['+', '-']) {
            Some(sign) => (&time[..sign], Some(&time[sign + 1..])),
            None => return false,
        },
    };
    let (clock, fraction) = clock
        .split_once(['.', ','])
        .map_or((clock, None), |(clock, fraction)| (clock, Some(fraction)));
    let clock_fits = matches!(clock.split(':').collect::<Vec<_>>()[..], [hour, minute, second]
        if up_to(hour, "23") && up_to(minute, "59") && up_to(second, "59"));
    let fraction_fits =
        fraction.is_none_or(|fraction| !fraction.is_empty() && digits(fraction, fraction.len()));
    let zone_fits = zone.is_none_or(|zone| {
        matches!(zone.split(':').collect::<Vec<_>>()[..], [hours, minutes]
            if up_to(hours, "24") && up_to(minutes, "60"))
    });
    clock_fits && fraction_fits && zone_fits
}

fn digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Two digits, not above these.
fn up_to(text: &str, most: &str) -> bool {
    digits(text, 2) && text <= most
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::string::string_regex;
    use serde_json::json;

    use super::super::{Problem, batch_sandbox};
    use super::*;
    use crate::v1alpha1::BatchSandboxSpec;

    /// What is wrong with it, and what the operator reads.
    fn both(text: &str) -> (Vec<Problem>, Option<Timestamp>) {
        let spec = json!({"replicas": 1, "poolRef": "p", "expireTime": text});
        let problems = batch_sandbox(&json!({"metadata": {"name": "x"}, "spec": spec}), None);
        let read = serde_json::from_value::<BatchSandboxSpec>(spec).ok();
        let time = read.and_then(|spec| spec.expire_time);
        (problems, time.map(|time| time.0))
    }

    #[test]
    fn the_last_days_of_9999_are_never() {
        for text in [
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.999999999Z",
            "9999-12-31T23:59:59-23:59",
            "9999-12-30T23:00:00Z",
            "9999-12-29T23:59:59-23:59",
        ] {
            assert_eq!(both(text), (vec![], Some(Timestamp::MAX)), "{text}");
        }
        let (problems, time) = both("9999-12-29T23:59:59Z");
        assert!(problems.is_empty() && time < Some(Timestamp::MAX));
    }

    #[test]
    fn what_only_begins_like_never_is_no_time() {
        for text in [
            "9999-12-3",
            "9999-12-31",
            "9999-12-32T00:00:00Z",
            "9999-12-31T24:00:00Z",
            "9999-02-29T00:00:00Z",
            "10000-01-01T00:00:00Z",
        ] {
            let (problems, time) = both(text);
            assert_eq!((problems.len(), time), (1, None), "{text}");
            assert_eq!(problems[0].path, PATH);
        }
    }

    /// Times near all edges, and what is nearly one.
    fn texts() -> impl Strategy<Value = String> {
        let date =
            "(0000|0001|1969|1970|2024|2030|9998|9999)-(01|02|06|12|13)-(00|01|28|29|30|31|32)";
        let clock = "(00|12|22|23|24):(00|59|60):(00|59|60)";
        let fraction = "([.,;][0-9]{0,12})?";
        let zone = "(Z|z||[+-](00|01|23|24|25|26):?(00|30|59|60|61))";
        string_regex(&format!("{date}[Tt ]{clock}{fraction}{zone}")).expect("a pattern")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn what_is_allowed_is_read_and_what_cannot_be_read_is_refused(text in texts()) {
            let (problems, time) = both(&text);
            prop_assert_eq!(problems.is_empty() && time.is_none(), false, "allowed, and not read");
            if time.is_some() {
                // Read, so refused by the API server itself or not at all.
                prop_assert!(problems.iter().all(|problem| problem.stage == Stage::Schema), "{:?}", problems);
            }
        }
    }
}
