//! Our strategic merge against the results of Kubernetes' own, recorded in `data/strategic_merge.json`
//! (see `data/README.md` for how they were made).

#![cfg(feature = "crd")]
#![expect(clippy::tests_outside_test_module, reason = "integration test")]

use opensandbox_api::shard_patch::{Kind, apply};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Case {
    kind: String,
    original: Value,
    patch: Value,
    /// Absent where Kubernetes refuses the patch.
    result: Option<Value>,
    #[serde(default)]
    refused: bool,
}

impl Case {
    fn kind(&self) -> Kind {
        match self.kind.as_str() {
            "Pod" => Kind::Pod,
            "PodTemplate" => Kind::PodTemplate,
            "TaskTemplate" => Kind::TaskTemplate,
            other => unreachable!("unknown kind {other}"),
        }
    }
}

/// Kubernetes leaves `null` members and directives of the patch in new list elements, and the API
/// server drops them when it decodes the result. Ours leaves none, so neither is compared.
fn decoded(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
            .map(|(name, value)| (name.clone(), decoded(value)))
            .collect(),
        Value::Array(items) => items.iter().map(decoded).collect(),
        scalar => scalar.clone(),
    }
}

#[test]
fn agrees_with_kubernetes_on_every_recorded_case() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/strategic_merge.json")).unwrap();
    assert!(cases.len() > 300, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let ours = apply(&case.original, &case.patch, case.kind());
        let agrees = match (&ours, &case.result) {
            (Ok(ours), Some(theirs)) => decoded(ours) == decoded(theirs),
            (Err(_), None) => case.refused,
            _ => false,
        };
        if !agrees {
            wrong.push(format!(
                "case {index}:\n original {}\n patch    {}\n expected {:?}\n got      {ours:?}",
                case.original,
                case.patch,
                case.result.as_ref().map(Value::to_string),
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}
