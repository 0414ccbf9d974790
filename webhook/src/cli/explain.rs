//! `explain`: who decided, and where each value of the executor comes from.
//!
//! A Pool that carries a record (one read from a cluster) is explained by it; one without is
//! explained as the injection would make it.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use json_patch::Patch;
use opensandbox_api::labels;
use opensandbox_api::sidecar::{self, DecidedBy, Decision, Mode, Path, Record, Segment};
use serde::Serialize;
use serde_json::{Value, json};

use super::document::{Input, Place, Unreadable};
use super::input::Files;
use super::report::Report;
use super::review::{Cluster, Installation, Kind, Verdict, name, title};
use super::{Done, Status, output};

/// Columns that a terminal has at least.
const WIDTH: usize = 80;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    pub(super) files: Files,
    #[command(flatten)]
    installation: Installation,
    /// How the explanation is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// What there is to say of one Pool.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    file: String,
    document: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<usize>,
    namespace: String,
    name: String,
    /// Whether its pods hold the executor by the injection; `None` if it is refused.
    injected: Option<bool>,
    /// The sentence that the server writes to the audit log.
    decision: Option<String>,
    decided_by: Option<&'static str>,
    /// Whether the values are read from the record on the Pool.
    from_record: bool,
    main_container: Option<String>,
    values: Vec<Row>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// One value of the executor.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    path: String,
    value: Value,
    origin: String,
}

/// Origin of values that the user wrote.
const OWN: &str = "Pool";

/// Explains every Pool; findings of other objects go to standard error.
pub(super) fn explain(
    arguments: &Explain,
    mut inputs: Vec<Input>,
    unreadable: &[Unreadable],
) -> Done {
    let mut cluster = Cluster::new(&arguments.installation, &arguments.files.namespace);
    let mut report = Report::default();
    report.unreadable(unreadable);
    let mut explanations = Vec::new();
    for input in &mut inputs {
        input.for_each_object(|place, object| {
            let verdict = cluster.review(object);
            if Kind::of(object) == Kind::Pool {
                explanations.push(explanation(place, object, &cluster, verdict));
            } else {
                report.verdict(&title(place, object, cluster.namespace(object)), &verdict);
            }
            false
        });
    }
    let failed = report.problems > 0
        || explanations
            .iter()
            .any(|explanation| !explanation.problems.is_empty());
    let out = match arguments.output {
        Format::Json => output::json_text(&json!({ "pools": explanations })),
        Format::Text if explanations.is_empty() => "no Pool in the input\n".to_owned(),
        Format::Text => explanations.iter().map(text).collect::<Vec<_>>().join("\n"),
    };
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

fn explanation(place: &Place, pool: &Value, cluster: &Cluster, verdict: Verdict) -> Explanation {
    let Place {
        file,
        document,
        items,
    } = place.clone();
    let Verdict {
        problems,
        warnings,
        mutation,
    } = verdict;
    let annotation = pool
        .pointer("/metadata/annotations")
        .and_then(|map| map.get(labels::INJECTION_RECORD));
    let own = annotation
        .map(|annotation| Record::parse(Some(annotation)))
        .filter(|record| !record.added.is_empty());
    let namespace = cluster.namespace(pool).to_owned();
    let from_record = own.is_some();
    let decision = mutation.as_ref().map(|mutation| mutation.decision.clone());
    let explained = match (own, mutation) {
        (Some(record), _) => Some((pool.clone(), record)),
        (None, Some(mutation)) if mutation.decision.has_executor() => {
            let mut injected = pool.clone();
            json_patch::patch(&mut injected, &Patch(mutation.operations))
                .expect("the patch was made for this object");
            Some((injected, mutation.record))
        }
        (None, _) => None,
    };
    let values = explained
        .as_ref()
        .map(|(pool, record)| rows(pool, record))
        .unwrap_or_default();
    Explanation {
        file,
        document,
        items,
        name: name(pool),
        injected: if explained.is_some() {
            Some(true)
        } else {
            decision.as_ref().map(Decision::has_executor)
        },
        decision: decision
            .as_ref()
            .map(|decision| sentence(decision, from_record, &namespace, cluster)),
        decided_by: decision.as_ref().and_then(decided_by).map(DecidedBy::words),
        from_record,
        main_container: explained
            .as_ref()
            .and_then(|(pool, _)| main_container(pool)),
        values,
        problems: problems.iter().map(ToString::to_string).collect(),
        warnings,
        namespace,
    }
}

fn decided_by(decision: &Decision) -> Option<DecidedBy> {
    match decision {
        Decision::Disabled(by) | Decision::Sidecar(by) | Decision::InContainer(by) => Some(*by),
        Decision::HandWritten(_) => None,
    }
}

/// The decision in the words of the server. `added` says whether the Pool holds an earlier injection.
fn sentence(decision: &Decision, added: bool, namespace: &str, cluster: &Cluster) -> String {
    let stays = added && !decision.has_executor();
    let mut sentence = decision.to_string();
    if stays {
        sentence.push_str("; what was added before stays");
    }
    if decided_by(decision) == Some(DecidedBy::Default) && !cluster.knows(namespace) {
        let _ = write!(sentence, " (Namespace {namespace} is not in the input)");
    }
    sentence
}

/// The executor's container, or the one that copies it, wherever it is.
fn executor(template: &Value) -> Option<Path> {
    let spec = Path::root().field("spec");
    [
        ("containers", labels::TASK_EXECUTOR),
        ("initContainers", labels::TASK_EXECUTOR),
        ("initContainers", labels::TASK_EXECUTOR_INSTALLER),
    ]
    .into_iter()
    .map(|(list, name)| spec.field(list).key(name))
    .find(|path| path.get(template).is_some())
}

fn main_container(pool: &Value) -> Option<String> {
    let template = pool.pointer("/spec/template")?;
    if Mode::of(pool) == Ok(Mode::InContainer) {
        return sidecar::main_container(template).map(str::to_owned);
    }
    let variable = executor(template)?
        .field("env")
        .key(labels::MAIN_CONTAINER_NAME_ENV)
        .field("value");
    Some(variable.get(template)?.as_str()?.to_owned())
}

/// Every value of the executor, and of the pod where it concerns the executor.
fn rows(pool: &Value, record: &Record) -> Vec<Row> {
    let mut rows = Vec::new();
    let Some(template) = pool.pointer("/spec/template") else {
        return rows;
    };
    let root = Path::root();
    let places = [
        Some(root.field("spec").field("shareProcessNamespace")),
        executor(template),
        Some(
            root.field("spec")
                .field("volumes")
                .key(labels::TASK_EXECUTOR_VOLUME),
        ),
        Some(
            root.field("metadata")
                .field("annotations")
                .key(labels::DEFAULT_CONTAINER),
        ),
    ];
    for path in places.into_iter().flatten() {
        if let Some(value) = path.get(template) {
            descend(&path, value, record, &mut rows);
        }
    }
    rows
}

/// Goes as deep as values of ours stand beside the user's.
fn descend(path: &Path, value: &Value, record: &Record, rows: &mut Vec<Row>) {
    let text = path.to_string();
    let inside = |added: &String| {
        added
            .strip_prefix(&text)
            .is_some_and(|rest| rest.starts_with(['.', '[']))
    };
    let is_container = executor_key(path);
    match value {
        Value::Object(map) if is_container || record.added.keys().any(inside) => {
            for (key, value) in map {
                let child = if key.contains(['.', '[', ']']) {
                    path.key(key)
                } else {
                    path.field(key)
                };
                descend(&child, value, record, rows);
            }
        }
        Value::Array(items) if record.added.keys().any(inside) => {
            for (index, item) in items.iter().enumerate() {
                descend(&path.key(&item_key(item, index)), item, record, rows);
            }
        }
        _ => rows.push(row(path, value, record)),
    }
}

fn row(path: &Path, value: &Value, record: &Record) -> Row {
    let text = path.to_string();
    // The name is what makes the container: whoever added the container added it.
    let container = path
        .parent()
        .filter(|parent| executor_key(parent) && text.ends_with("].name"));
    let origin = record
        .origin(path)
        .or_else(|| record.origin(&container?))
        .unwrap_or(OWN);
    let secret = origin == OWN && text.contains("].env");
    Row {
        path: format!("spec.template.{text}"),
        value: if secret {
            Value::from("(not shown)")
        } else {
            value.clone()
        },
        origin: origin.to_owned(),
    }
}

fn executor_key(path: &Path) -> bool {
    let is_list = path
        .parent()
        .and_then(|parent| parent.last().map(|list| list.text().ends_with("ontainers")))
        == Some(true);
    let names = [labels::TASK_EXECUTOR, labels::TASK_EXECUTOR_INSTALLER];
    is_list && names.map(Segment::Key).map(Some).contains(&path.last())
}

/// By what an item is told from the others of its list.
fn item_key(item: &Value, index: usize) -> String {
    let field = |name: &str| {
        item.get(name)
            .filter(|value| value.is_string() || value.is_number())
    };
    match item
        .as_str()
        .map(Value::from)
        .as_ref()
        .or_else(|| field("containerPort"))
        .or_else(|| field("name"))
    {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => index.to_string(),
    }
}

/// For people, in 80 columns.
fn text(explanation: &Explanation) -> String {
    let Explanation {
        file,
        document,
        items,
        namespace,
        name,
        ..
    } = explanation;
    let Explanation {
        decision,
        from_record,
        main_container,
        values,
        problems,
        warnings,
        ..
    } = explanation;
    let place = Place {
        file: file.clone(),
        document: *document,
        items: items.clone(),
    };
    let mut out = format!("Pool {namespace}/{name} ({place})\n");
    let mut say = |word: &str, sentence: &str| wrapped(&mut out, word, sentence);
    if *from_record {
        say(
            "record",
            "injected: the annotation on the Pool lists what was added",
        );
    }
    match decision {
        Some(decision) => say("decision", decision),
        None => say("decision", "refused, because of the problems below"),
    }
    if let Some(main) = main_container {
        say("main container", main);
    }
    for problem in problems {
        say("problem", problem);
    }
    for warning in warnings {
        say("warning", warning);
    }
    if !values.is_empty() {
        say(
            "values",
            if *from_record {
                "as they stand"
            } else {
                "as the injection would write them"
            },
        );
    }
    for Row {
        path,
        value,
        origin,
    } in values
    {
        let value = short(value);
        let _ = writeln!(out, "    {path}");
        let line = format!("        {value}  <- {origin}");
        if line.chars().count() <= WIDTH {
            let _ = writeln!(out, "{line}");
        } else {
            let _ = writeln!(out, "        {value}\n        <- {origin}");
        }
    }
    out
}

/// A sentence behind its word, broken between words where the line is full.
fn wrapped(out: &mut String, word: &str, sentence: &str) {
    const INDENT: usize = 18;
    let mut line = format!("  {:<width$}", format!("{word}:"), width = INDENT - 2);
    let mut empty = true;
    for piece in sentence.split(' ') {
        if !empty && line.chars().count() + 1 + piece.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(INDENT);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(piece);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// A value as it fits in a line.
fn short(value: &Value) -> String {
    const LONGEST: usize = WIDTH - 8;
    let text = match value {
        Value::String(text) if !text.contains(char::is_control) && !text.is_empty() => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= LONGEST {
        return text;
    }
    let cut: String = text.chars().take(LONGEST - 1).collect();
    format!("{cut}…")
}
