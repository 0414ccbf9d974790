//! `validate`: everything that the server would refuse or warn about.

use std::collections::BTreeMap;

use clap::Args;

use super::document::{Input, Unreadable};
use super::input::Files;
use super::report::Report;
use super::review::{Cluster, Installation, Kind, title};
use super::{Done, Status};

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub struct Validate {
    #[command(flatten)]
    pub(super) files: Files,
    #[command(flatten)]
    installation: Installation,
    /// Exit with status 1 on warnings, too.
    #[arg(long)]
    strict: bool,
}

/// Finds every problem of every Pool and BatchSandbox.
pub(super) fn validate(
    arguments: &Validate,
    mut inputs: Vec<Input>,
    unreadable: &[Unreadable],
) -> Done {
    let mut cluster = Cluster::new(&arguments.installation, &arguments.files.namespace);
    let mut report = Report::default();
    report.unreadable(unreadable);
    let mut checked: BTreeMap<&str, usize> =
        [("Pool", 0), ("BatchSandbox", 0), ("other object", 0)].into();
    for input in &mut inputs {
        input.for_each_object(|place, object| {
            let kind = match Kind::of(object) {
                Kind::Pool => "Pool",
                Kind::BatchSandbox => "BatchSandbox",
                Kind::Namespace | Kind::ImagesConfigMap | Kind::Other => "other object",
            };
            *checked.entry(kind).or_default() += 1;
            let verdict = cluster.review(object);
            report.verdict(&title(place, object, cluster.namespace(object)), &verdict);
            false
        });
    }
    let count = |kind: &str| counted(checked.get(kind).copied().unwrap_or_default(), kind);
    let Report {
        problems, warnings, ..
    } = report;
    let out = format!(
        "{}, {} and {} in {}: {}, {}\n",
        count("Pool"),
        count("BatchSandbox"),
        count("other object"),
        counted(inputs.len(), "file"),
        counted(problems, "problem"),
        counted(warnings, "warning"),
    );
    let failed = problems > 0 || (arguments.strict && warnings > 0);
    Done {
        out,
        log: report.into_text(),
        status: if failed {
            Status::Findings
        } else {
            Status::Fine
        },
    }
}

/// A number with its noun.
fn counted(number: usize, noun: &str) -> String {
    let ending = match noun {
        _ if number == 1 => "",
        "BatchSandbox" => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}
