//! What `/metrics` says and what docs/metrics.md says, in one form, so that the tests of each program can
//! compare them. For tests only.

use std::collections::{BTreeMap, BTreeSet};

/// A metric as one asks Prometheus for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Names of its labels; `le` of histograms is not one.
    pub labels: BTreeSet<String>,
    /// `seconds` or `bytes`, if its name says so.
    pub unit: Option<String>,
}

/// Metrics by name: counters with `_total`, histograms without `_bucket`.
pub type Table = BTreeMap<String, Described>;

/// The metrics of an OpenMetrics text. Labels are those of the series that are there, so each metric needs
/// at least one.
pub fn registered(text: &str) -> Table {
    let mut table = Table::new();
    let mut family = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            let suffix = if kind == "counter" { "_total" } else { "" };
            family = (name.to_owned(), format!("{name}{suffix}"));
            let described = Described {
                kind: kind.to_owned(),
                unit: unit(name),
                ..Described::default()
            };
            table.insert(family.1.clone(), described);
        } else if line.starts_with(&family.0)
            && let Some(described) = table.get_mut(&family.1)
        {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest);
            let labels = labels.rsplit_once('}').map_or("", |(labels, _)| labels);
            // Values hold no comma in these tests.
            let names = labels.split(',').filter_map(|pair| pair.split('=').next());
            let names = names.filter(|name| !name.is_empty() && *name != "le");
            described.labels.extend(names.map(str::to_owned));
        }
    }
    table
}

/// The rows of a markdown page whose metrics begin with `prefix`; columns are name, type, labels, unit.
pub fn documented(page: &str, prefix: &str) -> Table {
    let mut table = Table::new();
    for line in page.lines() {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().unwrap_or_default().trim_matches('`');
        if !line.starts_with('|') || !name.starts_with(prefix) {
            continue;
        }
        let mut cell = || cells.next().unwrap_or_default();
        let (kind, labels, unit) = (cell().to_owned(), cell(), cell());
        let labels = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`'));
        let described = Described {
            kind,
            labels: labels
                .filter(|label| !label.is_empty())
                .map(str::to_owned)
                .collect(),
            // Other units are words for people: pods, requests.
            unit: Some(unit.to_owned())
                .filter(|unit| ["seconds", "bytes"].contains(&unit.as_str())),
        };
        table.insert(name.to_owned(), described);
    }
    table
}

fn unit(name: &str) -> Option<String> {
    ["seconds", "bytes"]
        .into_iter()
        .find(|unit| name.ends_with(&format!("_{unit}")))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_read_alike() {
        let text = "# HELP a_b B.\n# TYPE a_b counter\na_b_total{x=\"1\",y=\"2\"} 3\n\
                    # HELP a_c_seconds C.\n# TYPE a_c_seconds histogram\n# UNIT a_c_seconds seconds\n\
                    a_c_seconds_sum 1.0\na_c_seconds_bucket{le=\"1\"} 1\n# EOF\n";
        let page = "| Metric | Type | Labels | Unit | Meaning |\n| --- | --- | --- | --- | --- |\n\
                    | `a_b_total` | counter | `x`, `y` | requests | B |\n\
                    | `a_c_seconds` | histogram | | seconds | C |\n| `other_d` | gauge | | | D |\n";
        assert_eq!(registered(text), documented(page, "a_"));
        assert_eq!(registered(text).len(), 2);
    }
}
