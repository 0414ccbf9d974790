//! What is refused and what is warned about, once for the webhook, the command line and the operator.
//!
//! In: the object as raw JSON, before any schema has seen it, and on updates the stored one. Out:
//! every problem at once, each with field path, value and remedy. Pure.
//!
//! The part of the rules that the API server itself can check (schema and CEL, see [`cel`]) is marked
//! [`Stage::Schema`]; a property test runs both on random objects and lets them never disagree.

mod batch_sandbox;
pub mod cel;
mod expire_time;
mod pod_template;
mod pool;
pub(crate) mod shape;
mod warnings;

use std::fmt;

use serde_json::Value;

pub use batch_sandbox::{batch_sandbox, batch_sandbox_annotations};
pub use pool::pool;
pub use warnings::{NamespaceFacts, batch_sandbox_warnings, pool_warnings};

/// Longest name of an object that becomes a label value (Kubernetes bounds label values).
pub const MAX_LABEL_VALUE: usize = 63;

/// Where a problem can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// By the CRD's schema and CEL rules: the API server refuses it even without the webhook.
    Schema,
    /// Only by the webhook and the command line.
    Webhook,
}

/// The kinds of problems, with the words that Kubernetes uses for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A field that must be there is not, or is `null`.
    Required,
    /// The value, as compact JSON, is not allowed.
    Invalid(String),
    /// The value, as compact JSON, is none of the known ones.
    NotSupported(String),
    /// The value, as compact JSON, stands twice.
    Duplicate(String),
    /// The field must not be set or changed here.
    Forbidden,
}

/// One reason to refuse an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, as `kubectl explain` writes it, with indices: `spec.capacitySpec.bufferMin`.
    pub path: String,
    /// What is wrong with it.
    pub fault: Fault,
    /// The rule, and what to do about it.
    pub detail: String,
    /// Who can see it.
    pub stage: Stage,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl Problem {
    /// The problem without its path, which the API server keeps in a field of its own.
    pub fn body(&self) -> String {
        let Self { fault, detail, .. } = self;
        match fault {
            Fault::Required => format!("Required value: {detail}"),
            Fault::Invalid(value) => format!("Invalid value: {value}: {detail}"),
            Fault::NotSupported(value) => format!("Unsupported value: {value}: {detail}"),
            Fault::Duplicate(value) => format!("Duplicate value: {value}: {detail}"),
            Fault::Forbidden => format!("Forbidden: {detail}"),
        }
    }
}

impl Fault {
    /// The `reason` of a status cause, as the API server names it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid(_) => "FieldValueInvalid",
            Self::NotSupported(_) => "FieldValueNotSupported",
            Self::Duplicate(_) => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
        }
    }
}

/// Collects problems; knows the words for the common ones.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn push(
        &mut self,
        stage: Stage,
        path: impl Into<String>,
        fault: Fault,
        detail: impl Into<String>,
    ) {
        self.0.push(Problem {
            path: path.into(),
            fault,
            detail: detail.into(),
            stage,
        });
    }

    pub(crate) fn required(
        &mut self,
        stage: Stage,
        path: impl Into<String>,
        detail: impl Into<String>,
    ) {
        self.push(stage, path, Fault::Required, detail);
    }

    pub(crate) fn invalid(
        &mut self,
        stage: Stage,
        path: impl Into<String>,
        value: &Value,
        detail: impl Into<String>,
    ) {
        self.push(stage, path, Fault::Invalid(shown(value)), detail);
    }

    fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        self.0.extend(problems);
    }

    fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

/// What stands in a message for a value that may be a secret.
pub(crate) const NOT_SHOWN: &str = "(not shown)";

/// A value as it is shown in a message: compact JSON, cut where it is long; of objects and lists only
/// that they are some, since what is in them may be long, secret or not even read.
pub(crate) fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = match value {
        Value::Object(_) => return "{…}".to_owned(),
        Value::Array(_) => return "[…]".to_owned(),
        simple => simple.to_string(),
    };
    if text.len() <= LONGEST {
        return text;
    }
    let mut end = LONGEST;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// The problems of `new` that `old` does not have: an update is not refused for what was stored
/// before the rule existed and is not touched now. Kubernetes calls this ratcheting.
pub fn new_problems(new: Vec<Problem>, old: &[Problem]) -> Vec<Problem> {
    new.into_iter()
        .filter(|problem| !old.contains(problem))
        .collect()
}
