//! YAML in documents: it can be read, and what is of our kinds is right. And the example of docs/pools.md,
//! computed.

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::capacity::{self, Census, Change};
use opensandbox_api::v1alpha1::{BatchSandbox, CapacitySpec, Pool};
use opensandbox_api::validation;
use opensandbox_tests::documents::{Page, read};
use serde_json::Value;

#[test]
fn yaml_can_be_read_and_is_right() -> Result<()> {
    let mut seen = (0, 0);
    for page in Page::all()? {
        for block in page.blocks() {
            if block.language != "yaml" {
                continue;
            }
            seen.0 += 1;
            let place = || format!("{}\n{}", block.place, block.text);
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(&block.text).with_context(place)?;
            for document in documents {
                let problems = match document["kind"].as_str() {
                    Some("Pool") => {
                        serde_json::from_value::<Pool>(document.clone()).with_context(place)?;
                        validation::pool(&document)
                    }
                    Some("BatchSandbox") => {
                        serde_json::from_value::<BatchSandbox>(document.clone())
                            .with_context(place)?;
                        validation::batch_sandbox(&document, None)
                    }
                    _ => continue,
                };
                seen.1 += 1;
                ensure!(problems.is_empty(), "{}\n{problems:?}", place());
            }
        }
    }
    ensure!(seen.0 >= 5 && seen.1 >= 2, "blocks and objects: {seen:?}");
    Ok(())
}

#[test]
fn the_readme_shows_the_example_that_is_applied() -> Result<()> {
    let page = Page::read("README.md")?;
    let example = read("examples/minimal-pool.yaml")?;
    ensure!(
        page.blocks().iter().any(|block| block.text == example),
        "README.md shows another Pool than examples/minimal-pool.yaml"
    );
    Ok(())
}

/// The comparison with upstream's controller is the measured one, row by row.
#[test]
fn the_readmes_compare_with_what_was_measured() -> Result<()> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim_matches('|').split('|').skip(1);
        cells.map(|cell| cell.trim().replace(',', "")).collect()
    };
    let measured: Vec<_> = read("docs/benchmarks.md")?.lines().map(cells).collect();
    for page in ["README.md", "README-ZH.md"] {
        let text = read(page)?;
        let rows: Vec<_> = text.lines().filter(|line| line.contains(" ms |")).collect();
        ensure!(rows.len() >= 5, "{page}: {rows:?}");
        for row in rows {
            ensure!(
                measured.contains(&cells(row)),
                "{page}: docs/benchmarks.md does not have {row}"
            );
        }
    }
    Ok(())
}

/// Rows: held, idle, being deleted, asked for, and what the operator does.
#[test]
fn the_operator_does_what_the_example_of_pools_says() -> Result<()> {
    let example = read("examples/task-enabled-pool.yaml")?;
    let example: Value = serde_saphyr::from_str(&example)?;
    let capacity: CapacitySpec = serde_json::from_value(example["spec"]["capacitySpec"].clone())?;
    let page = read("docs/pools.md")?;
    let mut rows = 0;
    for line in page.lines() {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [held, idle, terminating, waiting, does, ..] = cells.as_slice() else {
            continue;
        };
        let Ok(allocated) = held.parse() else {
            continue;
        };
        rows += 1;
        let census = Census {
            allocated,
            idle: idle.parse()?,
            terminating: terminating.parse()?,
            waiting: waiting.parse()?,
        };
        let words = match capacity::change(capacity, census) {
            Change::None => "nothing".to_owned(),
            Change::Create(pods) => format!("makes {pods}"),
            Change::DeleteIdle(pods) => format!("removes {pods}"),
        };
        ensure!(words == *does, "{line}: the operator {words}");
    }
    ensure!(rows >= 8, "only {rows} rows");
    Ok(())
}
