//! The webhook's own numbers: what its replicas tell Prometheus, added up and made readable. Goes in:
//! OpenMetrics text. Comes out: lines of a table. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const REQUESTS: &str = "opensandbox_webhook_admission_requests_total";
const BUCKETS: &str = "opensandbox_webhook_admission_duration_seconds_bucket";
const INJECTIONS: &str = "opensandbox_webhook_injections_total";
const WARNINGS: &str = "opensandbox_webhook_warnings_total";
const PANICS: &str = "opensandbox_webhook_handler_panics_total";

/// What one or several replicas did.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Reviews by webhook and verdict.
    requests: BTreeMap<(String, String), f64>,
    /// Reviews by webhook and upper bound of their duration, cumulative; seconds.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
    injections: BTreeMap<String, f64>,
    warnings: f64,
    /// Panics that were caught.
    pub(super) panics: f64,
}

impl Numbers {
    /// Adds what one replica tells. What this does not know is left out.
    pub(super) fn add(&mut self, text: &str) {
        for (name, labels, value) in text.lines().filter_map(sample) {
            let label = |key: &str| labels.get(key).copied().unwrap_or_default().to_owned();
            match name {
                REQUESTS => {
                    *self
                        .requests
                        .entry((label("webhook"), label("verdict")))
                        .or_default() += value;
                }
                BUCKETS => {
                    let bound = label("le").parse().unwrap_or(f64::INFINITY);
                    let buckets = self.buckets.entry(label("webhook")).or_default();
                    match buckets
                        .iter_mut()
                        .find(|(other, _)| other.total_cmp(&bound).is_eq())
                    {
                        Some((_, count)) => *count += value,
                        None => buckets.push((bound, value)),
                    }
                }
                INJECTIONS => *self.injections.entry(label("origin")).or_default() += value,
                WARNINGS => self.warnings += value,
                PANICS => self.panics += value,
                _ => {}
            }
        }
    }

    /// Reviews answered.
    pub(super) fn reviews(&self) -> f64 {
        self.requests.values().fold(0.0, |sum, count| sum + count)
    }

    /// Readable lines.
    pub(super) fn table(&self) -> String {
        let mut table = format!("{:<24}{:>8}{:>9}", "", "reviews", "denied");
        for quantile in ["p50", "p90", "p99"] {
            write!(table, "{quantile:>10}").expect("a String takes all");
        }
        for webhook in self.buckets.keys() {
            let count = |fits: fn(&str) -> bool| {
                let counts = self
                    .requests
                    .iter()
                    .filter(|((name, verdict), _)| name == webhook && fits(verdict));
                counts.fold(0.0, |sum, (_, count)| sum + count)
            };
            let denied = count(|verdict| verdict.starts_with("den"));
            let (all, name) = (count(|_| true), short(webhook));
            write!(table, "\n{name:<24}{all:>8}{denied:>9}").expect("a String takes all");
            for quantile in [0.5, 0.9, 0.99] {
                let shown = self
                    .quantile(webhook, quantile)
                    .map_or_else(|| "-".to_owned(), milliseconds);
                write!(table, "{shown:>10}").expect("a String takes all");
            }
        }
        let origins = self
            .injections
            .iter()
            .map(|(origin, count)| format!("{count} {origin}"));
        let origins = origins.collect::<Vec<_>>().join(", ");
        write!(
            table,
            "\ninjections by origin of the image: {origins}\nwarnings: {}, panics: {}",
            self.warnings, self.panics
        )
        .expect("a String takes all");
        table
    }

    /// The upper bound of the bucket that holds the quantile; seconds.
    fn quantile(&self, webhook: &str, quantile: f64) -> Option<f64> {
        let mut buckets = self.buckets.get(webhook)?.clone();
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let (_, total) = buckets.last()?;
        let rank = total * quantile;
        let (bound, _) = buckets
            .iter()
            .find(|(_, count)| *count >= rank && *count > 0.0)?;
        Some(*bound)
    }
}

/// A webhook is named by its path, which says group and version as well.
fn short(webhook: &str) -> String {
    webhook.replace("-sandbox-opensandbox-io-v1alpha1-", " ")
}

fn milliseconds(seconds: f64) -> String {
    if seconds.is_finite() {
        format!("≤{} ms", (seconds * 1e5).round() / 1e2)
    } else {
        "more".to_owned()
    }
}

type Sample<'a> = (&'a str, BTreeMap<&'a str, &'a str>, f64);

/// `name{key="value",...} number`; our label values hold neither quotes nor commas.
fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (series, ""),
    };
    let labels = labels.split(',').filter_map(|label| {
        let (key, value) = label.split_once('=')?;
        Some((key, value.trim_matches('"')))
    });
    Some((name, labels.collect(), value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP something
opensandbox_webhook_admission_requests_total{webhook="mutate",verdict="allowed"} 8
opensandbox_webhook_admission_requests_total{webhook="mutate",verdict="denied"} 2
opensandbox_webhook_admission_duration_seconds_bucket{le="0.00005",webhook="mutate"} 4
opensandbox_webhook_admission_duration_seconds_bucket{le="0.0001",webhook="mutate"} 6
opensandbox_webhook_admission_duration_seconds_bucket{le="0.0002",webhook="mutate"} 10
opensandbox_webhook_admission_duration_seconds_bucket{le="+Inf",webhook="mutate"} 10
opensandbox_webhook_injections_total{origin="default"} 3
opensandbox_webhook_warnings_total 1
# EOF"#;

    #[test]
    fn replicas_are_added_up() {
        let mut numbers = Numbers::default();
        numbers.add(TEXT);
        numbers.add(TEXT);
        assert!((numbers.reviews() - 20.0).abs() < f64::EPSILON);
        let table = numbers.table();
        let row = table
            .lines()
            .nth(1)
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>();
        let expected = [
            "mutate", "20", "4", "≤0.1", "ms", "≤0.2", "ms", "≤0.2", "ms",
        ];
        assert_eq!(row, expected);
        assert!(table.contains("6 default"), "{table}");
        assert!(table.contains("warnings: 2, panics: 0"), "{table}");
    }
}
