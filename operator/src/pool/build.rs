//! The pod that a Pool's template stands for.
//!
//! In: the Pool as raw JSON and what the injection takes from outside. Out: the whole pod but for its
//! name, or why none can be made. Everything is raw JSON: fields that our types do not know stay.

use std::sync::Arc;

use opensandbox_api::conditions::reason;
use opensandbox_api::labels;
use opensandbox_api::sidecar::{self, Decision, Mode};
use opensandbox_api::template_hash::template_hash;
use serde_json::{Map, Value, json};

use super::InjectionFacts;
use crate::view::{ObjectKey, PoolView, controlled_by};

/// Longest sentence made of other people's words.
const LONGEST_MESSAGE: usize = 512;

/// Members of a template's metadata that the API server sets, or that this pool decides.
const NOT_OF_A_TEMPLATE: [&str; 9] = [
    "name",
    "namespace",
    "generateName",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "ownerReferences",
];

/// Labels that would make a fresh pod look like one to be replaced, or like a sandbox's own.
const NOT_OF_A_FRESH_POD: [&str; 4] = [
    labels::EVICT,
    labels::RETIRING,
    labels::BATCH_SANDBOX_NAME,
    labels::POD_INDEX,
];

/// What pods of a pool are made from.
#[derive(Clone, PartialEq)]
pub(super) struct Mold {
    pod: Value,
    /// Whether the containers of a pod share one process namespace.
    pub(super) shares_processes: bool,
    /// Where its pods have the executor, if they have it because of us.
    pub(super) mode: Option<Mode>,
}

impl Mold {
    /// The pod with this name.
    pub(super) fn pod(&self, name: &str) -> Arc<Value> {
        let mut pod = self.pod.clone();
        pod["metadata"]["name"] = json!(name);
        Arc::new(pod)
    }
}

/// How the Pool stands to the injection, for the condition `InjectionUpToDate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InjectionState {
    pub(super) current: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl InjectionState {
    /// In one word, for the metric.
    pub(super) fn word(&self) -> &'static str {
        match self.reason {
            reason::CURRENT => "current",
            reason::OUTDATED => "outdated",
            reason::INJECTION_IMPOSSIBLE => "impossible",
            // Switched off, or written by the user.
            _ => "off",
        }
    }
}

/// Hash of what the pods of a Pool are made from. The mode `in-container` counts by itself: pods are made in it
/// although the template shows nothing of it, if the webhook was away.
pub(super) fn revision(pool: &PoolView, template: &Value, facts: &InjectionFacts) -> String {
    let decision = sidecar::pool::decision(&pool.raw, &context(facts));
    match (decision.mode(), template) {
        (Some(Mode::InContainer), Value::Object(template)) => {
            let mut template = template.clone();
            template.insert(labels::EXECUTOR_MODE.to_owned(), json!("in-container"));
            template_hash(&Value::Object(template))
        }
        _ => template_hash(template),
    }
}

/// Reads the template of a Pool as it is to be used, and says how it stands to the injection.
pub(super) fn mold(
    pool: &PoolView,
    revision: &str,
    facts: &InjectionFacts,
) -> (Result<Mold, String>, InjectionState) {
    match injected(&pool.raw, facts) {
        Ok((template, mode, state)) => {
            (assemble(pool, revision, Some(&template), Some(mode)), state)
        }
        Err(state) => {
            let template = pool.raw.pointer("/spec/template");
            (assemble(pool, revision, template, None), state)
        }
    }
}

fn context(facts: &InjectionFacts) -> sidecar::pool::Context<'_> {
    sidecar::pool::Context {
        namespace_label: facts.namespace_label.as_deref(),
        default: facts.default,
        settings: &facts.settings,
    }
}

/// The template of the Pool with the executor in it, and in which mode. The error is for a template that stays
/// as it is, whether that is right or not.
fn injected(
    raw: &Value,
    facts: &InjectionFacts,
) -> Result<(Value, Mode, InjectionState), InjectionState> {
    let context = context(facts);
    let impossible = |message: String| InjectionState {
        current: false,
        reason: reason::INJECTION_IMPOSSIBLE,
        message: cut(format!("pods are made without task-executor: {message}")),
    };
    let mutation = sidecar::pool::mutate(raw, None, &context).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        impossible(problems.join("; "))
    })?;
    let reason = match &mutation.decision {
        Decision::Sidecar(_) | Decision::InContainer(_) => reason::CURRENT,
        Decision::Disabled(_) => reason::INJECTION_DISABLED,
        Decision::HandWritten(_) => reason::HAND_WRITTEN,
    };
    let as_decided = InjectionState {
        current: true,
        reason,
        message: cut(mutation.decision.to_string()),
    };
    let Some(mode) = mutation.decision.mode() else {
        return Err(as_decided);
    };
    let mut pool = raw.clone();
    let patched = json_patch::patch(&mut pool, &mutation.operations);
    let template = pool.pointer_mut("/spec/template").map(Value::take);
    let (Ok(()), Some(mut template)) = (patched, template) else {
        return Err(impossible("its template cannot be patched".to_owned()));
    };
    match mode {
        Mode::Sidecar => {
            if let Some(key) = &facts.settings.verification_key {
                renew_key(&mut template, &mutation.record, &key.value);
            }
        }
        Mode::InContainer => sidecar::wrap(&mut template, &facts.settings)
            .map_err(|problem| impossible(problem.to_string()))?,
    }
    let state = if would_change(raw, &context) {
        InjectionState {
            current: false,
            reason: reason::OUTDATED,
            message: format!(
                "injected with earlier settings; give the annotation {} a new value to take the current ones",
                labels::INJECTION_UPGRADE
            ),
        }
    } else {
        as_decided
    };
    Ok((template, mode, state))
}

/// Puts the operator's present key in the place of one that was injected earlier. Every other value of the
/// stored Pool stays until its user asks for a new one; but a pod with a key of an earlier installation
/// would never run a task. A key that the user wrote stays.
fn renew_key(template: &mut Value, record: &sidecar::Record, key: &str) {
    for list in ["containers", "initContainers"] {
        let container = format!("spec.{list}[{}]", labels::TASK_EXECUTOR);
        let entry = format!("{container}.env[{}]", labels::VERIFICATION_KEY_ENV);
        if !record.added.contains_key(&container) && !record.added.contains_key(&entry) {
            continue;
        }
        let named = |value: &&mut Value, name: &str| value["name"] == name;
        let env = template
            .pointer_mut(&format!("/spec/{list}"))
            .and_then(Value::as_array_mut)
            .and_then(|all| all.iter_mut().find(|one| named(one, labels::TASK_EXECUTOR)))
            .and_then(|executor| executor.get_mut("env"))
            .and_then(Value::as_array_mut)
            .and_then(|all| {
                all.iter_mut()
                    .find(|one| named(one, labels::VERIFICATION_KEY_ENV))
            });
        if let Some(variable) = env {
            variable["value"] = json!(key);
        }
    }
}

/// Whether the stored Pool, apart from the key, would get other values if its user asked for current ones.
fn would_change(raw: &Value, context: &sidecar::pool::Context<'_>) -> bool {
    let stored = raw
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(labels::INJECTION_RECORD));
    if stored.is_none() {
        // Nothing of ours is stored, so that pods are made with current values each time.
        return false;
    }
    let mut asked = raw.clone();
    let before = &raw["metadata"]["annotations"][labels::INJECTION_UPGRADE];
    let value = if before == "now" { "again" } else { "now" };
    asked["metadata"]["annotations"][labels::INJECTION_UPGRADE] = json!(value);
    sidecar::pool::mutate(&asked, Some(raw), context).is_ok_and(|mutation| {
        mutation.operations.iter().any(|operation| {
            operation.path().as_str().starts_with("/spec/template") && !concerns_key(operation, raw)
        })
    })
}

/// Whether an operation only brings in the key, or replaces it, which pods get in any case.
fn concerns_key(operation: &json_patch::PatchOperation, raw: &Value) -> bool {
    let path = operation.path().as_str();
    let value = match operation {
        json_patch::PatchOperation::Add(add) => &add.value,
        json_patch::PatchOperation::Replace(replace) => &replace.value,
        _ => return false,
    };
    let is_key = |value: &Value| value["name"] == labels::VERIFICATION_KEY_ENV;
    let entry = path.rsplit_once('/').map_or("", |(entry, _)| entry);
    is_key(value) || raw.pointer(entry).is_some_and(is_key)
}

fn assemble(
    pool: &PoolView,
    revision: &str,
    template: Option<&Value>,
    mode: Option<Mode>,
) -> Result<Mold, String> {
    let template = match template {
        Some(Value::Object(template)) => template,
        None | Some(Value::Null) => {
            return Err("spec.template: Required value: must give the pods of the pool".to_owned());
        }
        Some(_) => return Err("spec.template: Invalid value: must be an object".to_owned()),
    };
    let spec = match template.get("spec") {
        Some(spec @ Value::Object(_)) => spec.clone(),
        _ => {
            return Err(
                "spec.template.spec: Required value: must give the containers of the pods"
                    .to_owned(),
            );
        }
    };
    let mut metadata = object(template.get("metadata"), "spec.template.metadata")?;
    for member in NOT_OF_A_TEMPLATE {
        metadata.shift_remove(member);
    }
    let mut pod_labels = object(metadata.get("labels"), "spec.template.metadata.labels")?;
    for label in NOT_OF_A_FRESH_POD {
        pod_labels.shift_remove(label);
    }
    let ObjectKey { namespace, name } = &pool.key;
    pod_labels.insert(labels::POOL.to_owned(), json!(name));
    pod_labels.insert(labels::POOL_NAME.to_owned(), json!(name));
    pod_labels.insert(labels::POOL_REVISION.to_owned(), json!(revision));
    metadata.insert("labels".to_owned(), Value::Object(pod_labels));
    let mut annotations = object(
        metadata.get("annotations"),
        "spec.template.metadata.annotations",
    )?;
    annotations.shift_remove(labels::RESTART_RECORD);
    if annotations.is_empty() {
        metadata.shift_remove("annotations");
    } else {
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
    }
    metadata.insert("namespace".to_owned(), json!(namespace));
    metadata.insert(
        "ownerReferences".to_owned(),
        controlled_by("Pool", name, &pool.uid),
    );
    let shares_processes = spec.get("shareProcessNamespace") == Some(&Value::Bool(true));
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
    Ok(Mold {
        pod,
        shares_processes,
        mode,
    })
}

fn object(value: Option<&Value>, path: &str) -> Result<Map<String, Value>, String> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(_) => Err(format!("{path}: Invalid value: must be an object")),
    }
}

/// Cut where it is long.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > LONGEST_MESSAGE {
        text.truncate(text.floor_char_boundary(LONGEST_MESSAGE));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
