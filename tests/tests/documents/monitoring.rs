//! Alerts and dashboard: they use metrics that exist, say where to read on, and the alerts fire when they
//! should and not else, by Prometheus' own tool. Each program's own tests compare docs/metrics.md with what
//! it registers.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::installation::repository;
use opensandbox_tests::promtool;
use serde_json::{Value, json};

use opensandbox_tests::documents::{Page, read};

const RULES: &str = "config/helm/opensandbox/files/alerts.yaml";
const DASHBOARD: &str = "config/helm/opensandbox/files/dashboard.json";
const PREFIXES: [&str; 3] = [
    "opensandbox_operator_",
    "opensandbox_webhook_",
    "task_executor_",
];
/// Alerts that the project promises, of whatever else there is.
const PROMISED: [&str; 8] = [
    "OpenSandboxTasksFail",
    "OpenSandboxTasksSlow",
    "OpenSandboxPoolExhausted",
    "OpenSandboxCertificateExpires",
    "OpenSandboxInjectionFails",
    "OpenSandboxExecutorsOutdated",
    "OpenSandboxOperatorNoLeader",
    "OpenSandboxAllocationSlow",
];

fn rules() -> Result<Vec<Value>> {
    let file: Value = serde_saphyr::from_str(&read(RULES)?)?;
    let groups = file["groups"].as_array().context("groups")?;
    let rules = groups.iter().filter_map(|group| group["rules"].as_array());
    Ok(rules.flatten().cloned().collect())
}

/// Every expression of the dashboard, those of its variables included.
fn expressions() -> Result<Vec<String>> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match member {
                        Value::String(text) if name == "expr" => found.push(text.clone()),
                        other => collect(other, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)?)?;
    let mut found = Vec::new();
    collect(&dashboard["panels"], &mut found);
    Ok(found)
}

/// Series that docs/metrics.md names: histograms by the three names that their series have.
fn series() -> Result<BTreeSet<String>> {
    let mut series = BTreeSet::new();
    for line in read("docs/metrics.md")?.lines() {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let name = cells
            .next()
            .unwrap_or_default()
            .trim_matches('`')
            .to_owned();
        if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        if cells.next() == Some("histogram") {
            for suffix in ["_bucket", "_sum", "_count"] {
                series.insert(format!("{name}{suffix}"));
            }
        } else {
            series.insert(name);
        }
    }
    ensure!(series.len() > 50, "{series:?}");
    Ok(series)
}

/// Words of a text that are names of metrics of ours.
fn metrics(text: &str) -> Vec<&str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() -> Result<()> {
    let series = series()?;
    let mut texts = expressions()?;
    ensure!(texts.len() > 30, "{texts:?}");
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)?)?;
    texts.push(dashboard["templating"].to_string());
    for rule in rules()? {
        texts.push(rule["expr"].as_str().context("an expression")?.to_owned());
    }
    for text in &texts {
        let used = metrics(text);
        ensure!(!used.is_empty(), "no metric of ours in {text}");
        for name in used {
            ensure!(
                series.contains(name),
                "{name} in {text}: not in docs/metrics.md"
            );
        }
    }
    // What is kept of the executors is what is used of them.
    let kept = read("config/monitoring/podmonitors.yaml")?;
    let kept = kept
        .split_once("task_executor_(")
        .and_then(|(_, rest)| rest.split_once(')'))
        .context("a pattern of metrics")?
        .0;
    let kept: BTreeSet<_> = kept
        .split('|')
        .map(|name| format!("task_executor_{name}"))
        .collect();
    let used: BTreeSet<_> = texts.iter().flat_map(|text| metrics(text)).collect();
    let used = used
        .into_iter()
        .filter(|name| name.starts_with("task_executor_"));
    let used: BTreeSet<_> = used.map(str::to_owned).collect();
    ensure!(kept == used, "kept: {kept:?}, used: {used:?}");
    Ok(())
}

#[test]
fn every_alert_says_how_bad_it_is_and_where_to_read_on() -> Result<()> {
    let rules = rules()?;
    let cases = read("config/monitoring/alerts_test.yaml")?;
    let cases: Value = serde_saphyr::from_str(&cases)?;
    let cases = cases["tests"].as_array().context("tests")?;
    let cases = cases
        .iter()
        .filter_map(|case| case["alert_rule_test"].as_array());
    let cases: Vec<_> = cases.flatten().collect();
    let chapters = Page::read("docs/operations.md")?.anchors();
    for name in PROMISED {
        ensure!(
            rules.iter().any(|rule| rule["alert"] == name),
            "no alert {name}"
        );
    }
    for rule in &rules {
        let name = rule["alert"].as_str().context("a name")?;
        let severity = &rule["labels"]["severity"];
        ensure!(
            ["critical", "warning", "info"]
                .iter()
                .any(|known| severity == known),
            "{name}: severity {severity}"
        );
        for annotation in ["summary", "description"] {
            ensure!(
                rule["annotations"][annotation].is_string(),
                "{name}: no {annotation}"
            );
        }
        let anchor = name.to_lowercase();
        ensure!(
            rule["annotations"]["runbook_url"] == format!("docs/operations.md#{anchor}"),
            "{rule}"
        );
        ensure!(
            chapters.contains(&anchor),
            "docs/operations.md has no chapter {name}"
        );
        let fires = |case: &&Value| {
            case["exp_alerts"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
        };
        let of: Vec<_> = cases
            .iter()
            .copied()
            .filter(|case| case["alertname"] == name)
            .collect();
        ensure!(of.iter().any(fires), "no case in which {name} fires");
        ensure!(
            !of.iter().all(fires),
            "no case in which {name} does not fire"
        );
    }
    Ok(())
}

/// The object repeats the file, since kustomize cannot put one into the other.
#[test]
fn the_rules_of_kustomize_are_those_of_the_chart() -> Result<()> {
    let file: Value = serde_saphyr::from_str(&read(RULES)?)?;
    let object: Value = serde_saphyr::from_str(&read("config/monitoring/rules.yaml")?)?;
    ensure!(
        object["spec"] == file,
        "config/monitoring/rules.yaml is stale; run `just gen`"
    );
    Ok(())
}

#[test]
fn alerts_fire_when_they_should_and_expressions_are_promql() -> Result<()> {
    let Some(promtool) = promtool::program()? else {
        return Ok(());
    };
    promtool::run(&promtool, &["check", "rules"], &repository(RULES))?;
    let cases = repository("config/monitoring/alerts_test.yaml");
    promtool::run(&promtool, &["test", "rules"], &cases)?;

    // Grafana puts something in the place of its variables.
    let rules: Vec<_> = expressions()?
        .iter()
        .map(|text| text.replace("$__rate_interval", "5m"))
        .enumerate()
        .map(|(number, text)| json!({"record": format!("expression:{number}"), "expr": text}))
        .collect();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("dashboard.yaml");
    // JSON is YAML.
    std::fs::write(
        &file,
        json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string(),
    )?;
    promtool::run(&promtool, &["check", "rules"], &file)?;
    Ok(())
}
