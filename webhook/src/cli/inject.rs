//! `inject` and `uninject`: the documents with what the webhook would add, or without it.

use clap::Args;
use json_patch::Patch;
use opensandbox_api::sidecar;
use serde_json::Value;

use super::document::{Input, Unreadable};
use super::input::Files;
use super::output::{self, Change, Format};
use super::report::Report;
use super::review::{Cluster, Installation, Kind, title};
use super::{Done, Status};

/// Arguments of `inject`.
#[derive(Debug, Args)]
pub struct Inject {
    #[command(flatten)]
    pub(super) files: Files,
    #[command(flatten)]
    installation: Installation,
    /// How the documents are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Arguments of `uninject`.
#[derive(Debug, Args)]
pub struct Uninject {
    #[command(flatten)]
    pub(super) files: Files,
    /// How the documents are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The documents as a fresh cluster stores them, or every reason why it would refuse one.
pub(super) fn inject(
    arguments: &Inject,
    mut inputs: Vec<Input>,
    unreadable: &[Unreadable],
) -> Done {
    let mut cluster = Cluster::new(&arguments.installation, &arguments.files.namespace);
    let mut report = Report::default();
    report.unreadable(unreadable);
    let mut changes = Vec::new();
    for input in &mut inputs {
        input.for_each_object(|place, object| {
            let verdict = cluster.review(object);
            let namespace = cluster.namespace(object).to_owned();
            report.verdict(&title(place, object, &namespace), &verdict);
            let Some(mutation) = verdict.mutation else {
                return false;
            };
            let patch = Patch(mutation.operations);
            if patch.is_empty() {
                return false;
            }
            json_patch::patch(object, &patch).expect("the patch was made for this object");
            // A patch is about as large as what it adds: kept only to be printed.
            if arguments.output == Format::Patch {
                changes.push(Change::new(place, object, &namespace, patch));
            }
            true
        });
    }
    finish(arguments.output, &inputs, &changes, report)
}

/// The documents without what the record on each Pool says was added.
pub(super) fn uninject(
    arguments: &Uninject,
    mut inputs: Vec<Input>,
    unreadable: &[Unreadable],
) -> Done {
    let mut report = Report::default();
    report.unreadable(unreadable);
    let mut changes = Vec::new();
    for input in &mut inputs {
        input.for_each_object(|place, object| {
            if Kind::of(object) != Kind::Pool {
                return false;
            }
            let bare = sidecar::uninject(object);
            let patch = json_patch::diff(object, &bare);
            if patch.is_empty() {
                return false;
            }
            let namespace = object
                .pointer("/metadata/namespace")
                .and_then(Value::as_str);
            let namespace = namespace.unwrap_or(&arguments.files.namespace).to_owned();
            *object = bare;
            // A patch is about as large as what it adds: kept only to be printed.
            if arguments.output == Format::Patch {
                changes.push(Change::new(place, object, &namespace, patch));
            }
            true
        });
    }
    finish(arguments.output, &inputs, &changes, report)
}

/// With a problem nothing is printed: half an output might be applied.
fn finish(format: Format, inputs: &[Input], changes: &[Change], report: Report) -> Done {
    let refused = report.problems > 0;
    let out = if refused {
        String::new()
    } else {
        output::print(format, inputs, changes)
    };
    let status = if refused {
        Status::Findings
    } else {
        Status::Fine
    };
    Done {
        out,
        log: report.into_text(),
        status,
    }
}
