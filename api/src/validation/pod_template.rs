//! A pod template in raw JSON: what the schema asks of it and what a pod could not be made from.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::shape::{field, list, object, string};
use super::{Fault, Problems, Stage};

/// Checks the template at `path`. `None` means that there is none (absent or `null`).
pub(super) fn check(problems: &mut Problems, path: &str, template: Option<&Value>) {
    let Some(template) = object(problems, Stage::Schema, path, template) else {
        return;
    };
    metadata(problems, path, template);
    let spec_path = format!("{path}.spec");
    let containers_path = format!("{spec_path}.containers");
    let spec_value = field(template, "spec");
    let spec = object(problems, Stage::Schema, &spec_path, spec_value);
    let Some(spec) = spec else {
        if spec_value.is_none() {
            no_containers(problems, containers_path);
        }
        return;
    };
    match field(spec, "containers") {
        Some(Value::Array(items)) if !items.is_empty() => {}
        None | Some(Value::Array(_)) => no_containers(problems, containers_path),
        // Of the wrong type: reported below.
        Some(_) => {}
    }
    let mut taken = BTreeSet::new();
    for (name, is_container) in [
        ("initContainers", true),
        ("containers", true),
        ("volumes", false),
    ] {
        let list_path = format!("{spec_path}.{name}");
        let items =
            list(problems, Stage::Schema, &list_path, field(spec, name)).unwrap_or_default();
        let mut own = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let item_path = format!("{list_path}[{index}]");
            let Some((item, item_name)) = named(problems, &item_path, item) else {
                continue;
            };
            let name_path = format!("{item_path}.name");
            if !own.insert(item_name) {
                problems.push(
                    Stage::Schema,
                    name_path.clone(),
                    Fault::Duplicate(quoted(item_name)),
                    "names in this list must differ; rename one of the two",
                );
            } else if is_container && !taken.insert(item_name) {
                problems.push(
                    Stage::Webhook,
                    name_path.clone(),
                    Fault::Duplicate(quoted(item_name)),
                    "an init container has this name already; rename one of the two",
                );
            }
            if let Err(rule) = dns_label(item_name) {
                problems.push(
                    Stage::Webhook,
                    name_path,
                    Fault::Invalid(quoted(item_name)),
                    rule,
                );
            }
            if is_container {
                container(problems, &item_path, item);
            }
        }
    }
}

fn no_containers(problems: &mut Problems, path: String) {
    problems.required(
        Stage::Schema,
        path,
        "must list at least one container; add the sandbox's container",
    );
}

/// Labels and annotations must be maps of strings, or no pod can be made.
fn metadata(problems: &mut Problems, path: &str, template: &Map<String, Value>) {
    let path = format!("{path}.metadata");
    let Some(metadata) = object(problems, Stage::Webhook, &path, field(template, "metadata"))
    else {
        return;
    };
    for name in ["labels", "annotations"] {
        let path = format!("{path}.{name}");
        let Some(entries) = object(problems, Stage::Webhook, &path, field(metadata, name)) else {
            continue;
        };
        for (key, value) in entries {
            string(
                problems,
                Stage::Webhook,
                &format!("{path}[{key}]"),
                Some(value).filter(|value| !value.is_null()),
            );
        }
    }
}

/// An item of a list that is merged by name.
fn named<'a>(
    problems: &mut Problems,
    path: &str,
    item: &'a Value,
) -> Option<(&'a Map<String, Value>, &'a str)> {
    let item = object(problems, Stage::Schema, path, Some(item))?;
    let name_path = format!("{path}.name");
    let Some(name) = field(item, "name") else {
        problems.required(
            Stage::Schema,
            name_path,
            "must be set; items of this list are told apart by it",
        );
        return None;
    };
    let name = string(problems, Stage::Schema, &name_path, Some(name))?;
    Some((item, name))
}

fn container(problems: &mut Problems, path: &str, container: &Map<String, Value>) {
    // The executor's own image is filled in by the injection.
    if container.get("name").and_then(Value::as_str) == Some(crate::labels::TASK_EXECUTOR) {
        return;
    }
    let image_path = format!("{path}.image");
    match string(
        problems,
        Stage::Webhook,
        &image_path,
        field(container, "image"),
    ) {
        Some("") => problems.required(Stage::Webhook, image_path, "must name an image"),
        None if field(container, "image").is_none() => {
            problems.required(Stage::Webhook, image_path, "must name an image");
        }
        _ => {}
    }
}

/// The rule of a container's name, RFC 1123.
fn dns_label(name: &str) -> Result<(), &'static str> {
    let valid = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if valid {
        Ok(())
    } else {
        Err(
            "must be at most 63 lower case letters, digits and '-', and start and end with a letter or digit",
        )
    }
}

fn quoted(text: &str) -> String {
    super::shown(&Value::from(text))
}
