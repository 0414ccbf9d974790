//! Rules of `Pool`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value};

use super::shape::{field, object, string, whole};
use super::{Fault, Problem, Problems, Stage, pod_template};
use crate::sidecar::Mode;
use crate::{capacity, labels};

/// Every reason to refuse this Pool, in the order of its fields. Empty means that it is right.
pub fn pool(pool: &Value) -> Vec<Problem> {
    let mut problems = Problems::default();
    metadata(&mut problems, pool);
    let spec = match pool.get("spec").filter(|spec| !spec.is_null()) {
        None => {
            problems.required(
                Stage::Schema,
                "spec",
                "must be set; see `kubectl explain pool.spec`",
            );
            return problems.into_vec();
        }
        spec => object(&mut problems, Stage::Schema, "spec", spec),
    };
    if let Some(spec) = spec {
        capacity_spec(&mut problems, spec);
        for strategy in ["scaleStrategy", "updateStrategy"] {
            let path = format!("spec.{strategy}");
            if let Some(strategy) =
                object(&mut problems, Stage::Schema, &path, field(spec, strategy))
            {
                max_unavailable(
                    &mut problems,
                    &format!("{path}.maxUnavailable"),
                    field(strategy, "maxUnavailable"),
                );
            }
        }
        recycle_strategy(&mut problems, spec);
        template(&mut problems, spec);
    }
    problems.into_vec()
}

/// What both kinds ask of their metadata.
pub(super) fn metadata(problems: &mut Problems, root: &Value) {
    let name = root
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if name.chars().count() > super::MAX_LABEL_VALUE {
        problems.push(
            Stage::Schema,
            "metadata.name",
            Fault::Invalid(format!("\"{name}\"")),
            "must not be longer than 63 characters, because pods carry it as a label value; choose a shorter one",
        );
    }
    problems.extend(Mode::of(root).err());
    let Some(label) = root
        .pointer("/metadata/labels")
        .and_then(|map| map.get(labels::INJECTION))
    else {
        return;
    };
    if !matches!(label.as_str(), Some("enabled" | "disabled")) {
        problems.push(
            Stage::Webhook,
            format!("metadata.labels[{}]", labels::INJECTION),
            Fault::NotSupported(label.to_string()),
            "must be \"enabled\" or \"disabled\"; remove the label to follow the namespace",
        );
    }
}

fn capacity_spec(problems: &mut Problems, spec: &Map<String, Value>) {
    const PATH: &str = "spec.capacitySpec";
    let value = field(spec, "capacitySpec");
    if value.is_none() {
        problems.required(
            Stage::Schema,
            PATH,
            "must give bufferMax, bufferMin, poolMax and poolMin",
        );
    }
    if let Some(numbers) = object(problems, Stage::Schema, PATH, value) {
        capacity::check(problems, PATH, numbers);
    }
}

fn max_unavailable(problems: &mut Problems, path: &str, value: Option<&Value>) {
    let Some(value) = value else { return };
    let parsed = match value {
        Value::String(text) => capacity::MaxUnavailable::parse(&IntOrString::String(text.clone())),
        Value::Number(_) => match whole(value).map(i32::try_from) {
            Some(Ok(number)) => capacity::MaxUnavailable::parse(&IntOrString::Int(number)),
            Some(Err(_)) | None => None,
        },
        _ => None,
    };
    if parsed.is_none() {
        problems.invalid(
            Stage::Schema,
            path,
            value,
            "must be a positive number or a percentage from 1% to 100%, such as 2 or 25%",
        );
    }
}

fn recycle_strategy(problems: &mut Problems, spec: &Map<String, Value>) {
    const PATH: &str = "spec.recycleStrategy";
    let Some(strategy) = object(
        problems,
        Stage::Schema,
        PATH,
        field(spec, "recycleStrategy"),
    ) else {
        return;
    };
    let path = format!("{PATH}.type");
    let Some(kind) = string(problems, Stage::Schema, &path, field(strategy, "type")) else {
        return;
    };
    if !matches!(kind, "Delete" | "Restart" | "Noop") {
        problems.push(
            Stage::Schema,
            path,
            Fault::NotSupported(format!("\"{kind}\"")),
            "supported values are \"Delete\", \"Restart\" and \"Noop\"",
        );
    }
}

fn template(problems: &mut Problems, spec: &Map<String, Value>) {
    const PATH: &str = "spec.template";
    let template = field(spec, "template");
    if template.is_none() {
        problems.required(Stage::Schema, PATH, "must give the pods of the pool");
    }
    pod_template::check(problems, PATH, template);
}
