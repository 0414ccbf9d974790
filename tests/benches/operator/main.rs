//! A controller of Pools and BatchSandboxes on a fresh API server with fake nodes: how long sandboxes take
//! from a warm pool, one by one, in parallel and in batches; what it writes for that; memory and time with
//! many pods. With `--against PATH` the same is done with another controller that speaks this API, such as
//! upstream's, in the same run, and ratios are printed. Tasks are measured on a real node, for ours.
//!
//! `cargo bench -p opensandbox-tests --bench operator [-- --against PATH] [--plot FILE.svg]`. Times are a
//! client's: from the creation it sent to the watch event that says so. See docs/benchmarks.md.

#![forbid(unsafe_code)]

mod controller;
mod observer;
mod plot;
mod scenario;
mod site;
mod tasks;
mod times;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use self::controller::{Contender, Kind};
use self::scenario::Row;

/// Measures a controller of Pools and BatchSandboxes.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// Another controller to measure beside ours: a program that takes `--kubeconfig`, as controllers
    /// made with controller-runtime do.
    #[arg(long, env = "OPENSANDBOX_UPSTREAM_CONTROLLER")]
    against: Option<PathBuf>,
    /// Ours, if it is not to be built.
    #[arg(long)]
    operator: Option<PathBuf>,
    /// Repetitions of a batch of 100.
    #[arg(long, default_value_t = 5)]
    batches: usize,
    /// Sandboxes one by one.
    #[arg(long, default_value_t = 30)]
    singles: usize,
    /// Sandboxes 16 at once.
    #[arg(long, default_value_t = 100)]
    parallel: usize,
    /// Idle pods of the large pool; 0 leaves it out.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Seconds of churn.
    #[arg(long, default_value_t = 20)]
    churn: u64,
    /// Seconds without anything to do.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Sandboxes with a task, one by one on a real node, ours only; 0 leaves them out.
    #[arg(long, default_value_t = 30)]
    tasks: usize,
    /// File for a plot of the results.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Given by Cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let ours = match &arguments.operator {
        Some(program) => program.clone(),
        None => tokio::task::spawn_blocking(opensandbox_tests::programs::operator).await??,
    };
    let mut contenders = vec![Contender {
        name: "ours",
        kind: Kind::Ours,
        program: ours,
    }];
    contenders.extend(arguments.against.clone().map(|program| Contender {
        name: "other",
        kind: Kind::ControllerRuntime,
        program,
    }));
    let mut columns = Vec::new();
    for contender in &contenders {
        let Some(rows) = scenario::all(contender, &arguments).await? else {
            return Ok(());
        };
        columns.push((contender.name, rows));
    }
    report(&columns);
    if arguments.tasks > 0
        && let Some(rows) = Box::pin(tasks::all(&contenders[0], arguments.tasks)).await?
    {
        report(&[(contenders[0].name, rows)]);
    }
    if let Some(path) = &arguments.plot {
        std::fs::write(path, plot::svg(&columns))?;
    }
    Ok(())
}

/// A line per measure, a column per contender, and the ratio where there are two.
fn report(columns: &[(&str, Vec<Row>)]) {
    let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
    let ratio = if names.len() > 1 {
        " ours / other |"
    } else {
        ""
    };
    print(&format!("\n| | {} |{ratio}", names.join(" | ")));
    print(&format!(
        "|---|{}{}",
        "--:|".repeat(names.len()),
        if names.len() > 1 { "--:|" } else { "" }
    ));
    for (index, row) in columns[0].1.iter().enumerate() {
        let values: Vec<_> = columns
            .iter()
            .map(|(_, rows)| rows.get(index).and_then(|row| row.value))
            .collect();
        let cells: Vec<_> = values
            .iter()
            .map(|value| value.map_or_else(|| "not reached".to_owned(), |value| row.shown(value)))
            .collect();
        let ratio = match values.as_slice() {
            [Some(ours), Some(other)] if *other > 0.0 => format!(" {:.2} |", ours / other),
            [_, _] => " |".to_owned(),
            _ => String::new(),
        };
        print(&format!("| {} | {} |{ratio}", row.name, cells.join(" | ")));
    }
    print("");
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
pub(crate) fn print(text: &str) {
    println!("{text}");
}
