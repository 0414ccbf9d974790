//! The injection of a whole Pool: decision, template, record.

use json_patch::PatchOperation;
use serde_json::{Map, Value, json};

use super::edit::operation;
use super::record::{POOL_ANNOTATIONS, Record};
use super::{
    Decision, InjectionDefault, Mode, Previous, Settings, decide, in_container, inject, mode,
};
use crate::labels;
use crate::validation::{Fault, Problem, Stage};

/// What the injection of a Pool depends on besides the Pool.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// Label [`labels::INJECTION`] of the Pool's namespace.
    pub namespace_label: Option<&'a str>,
    /// Where neither label says.
    pub default: InjectionDefault,
    /// Image and key.
    pub settings: &'a Settings,
}

/// What was decided, and the patch that does it.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// What was decided.
    pub decision: Decision,
    /// JSON Patch on the Pool: adds and replaces, empty when nothing is to do. It removes only what was
    /// added for another mode.
    pub operations: Vec<PatchOperation>,
    /// What is ours in the result.
    pub record: Record,
}

/// Injects the executor into a Pool, `old` being the stored one on an update.
///
/// # Errors
///
/// Every reason why the template cannot carry the executor.
pub fn mutate(
    pool: &Value,
    old: Option<&Value>,
    context: &Context<'_>,
) -> Result<Mutation, Vec<Problem>> {
    let nothing = |decision| {
        Ok(Mutation {
            decision,
            operations: Vec::new(),
            record: Record::default(),
        })
    };
    let decision = decision(pool, context);
    if !decision.has_executor() {
        return nothing(decision);
    }
    let mode = Mode::of(pool).map_err(|problem| vec![problem])?;
    let Some(template) = pool
        .pointer("/spec/template")
        .filter(|template| !template.is_null())
    else {
        return Err(vec![Problem {
            path: "spec.template".to_owned(),
            fault: Fault::Required,
            detail: "must give the pods of the pool".to_owned(),
            stage: Stage::Schema,
        }]);
    };
    let own = Record::parse(annotation(pool, labels::INJECTION_RECORD));
    let old_record = old.map(|old| Record::parse(annotation(old, labels::INJECTION_RECORD)));
    let old_template = old.and_then(|old| old.pointer("/spec/template"));
    let previous = match (old_template, &old_record) {
        (Some(template), Some(record)) => Some(Previous { template, record }),
        _ => None,
    };
    let take_new = old.is_some_and(|old| upgrade_asked(pool, old));
    let injection = inject(template, mode, &own, previous, context.settings, take_new)?;
    let mut operations = injection.operations;
    for operation in &mut operations {
        rebase(operation, "/spec/template");
    }
    let mut record = injection.record;
    annotate(
        pool,
        &own,
        old_record.as_ref(),
        &mut record,
        &mut operations,
    )?;
    Ok(Mutation {
        decision,
        operations,
        record,
    })
}

/// What is to be done with this Pool.
pub fn decision(pool: &Value, context: &Context<'_>) -> Decision {
    let label = pool
        .pointer("/metadata/labels")
        .and_then(|map| map.get(labels::INJECTION))
        .and_then(Value::as_str);
    let (enabled, by) = decide(label, context.namespace_label, context.default);
    if !enabled {
        return Decision::Disabled(by);
    }
    let template = pool.pointer("/spec/template").unwrap_or(&Value::Null);
    match in_container::evidence(template) {
        // With a sidecar of that name besides, the user wants the sidecar, and it is the odd port
        // or command that must be told apart by a person.
        Some(evidence) if !has_sidecar(template) => Decision::HandWritten(evidence),
        // What is no mode is refused before this matters.
        _ => match Mode::of(pool).unwrap_or_default() {
            Mode::Sidecar => Decision::Sidecar(by),
            Mode::InContainer => Decision::InContainer(by),
        },
    }
}

fn has_sidecar(template: &Value) -> bool {
    mode::sidecars()
        .iter()
        .any(|path| path.get(template).is_some())
}

fn annotation<'a>(pool: &'a Value, key: &str) -> Option<&'a Value> {
    pool.pointer("/metadata/annotations")?.get(key)
}

/// Whether this update asks for current settings: a new value of the upgrade annotation, or another
/// value of the label.
fn upgrade_asked(pool: &Value, old: &Value) -> bool {
    let asked = annotation(pool, labels::INJECTION_UPGRADE).filter(|value| !value.is_null());
    let label = |pool: &Value| {
        pool.pointer("/metadata/labels")
            .and_then(|map| map.get(labels::INJECTION))
            .cloned()
    };
    (asked.is_some() && asked != annotation(old, labels::INJECTION_UPGRADE))
        || label(pool) != label(old)
}

fn rebase(operation: &mut PatchOperation, prefix: &str) {
    let path = match operation {
        PatchOperation::Add(add) => &mut add.path,
        PatchOperation::Replace(replace) => &mut replace.path,
        PatchOperation::Remove(remove) => &mut remove.path,
        // None of the others is made.
        _ => return,
    };
    *path = json_patch::jsonptr::PointerBuf::parse(format!("{prefix}{path}"))
        .expect("two pointers make a pointer");
}

/// Writes the record onto the Pool, unless it says so already or there is nothing to say.
fn annotate(
    pool: &Value,
    own: &Record,
    old: Option<&Record>,
    record: &mut Record,
    operations: &mut Vec<PatchOperation>,
) -> Result<(), Vec<Problem>> {
    let odd = |path: &str, value: &Value| {
        vec![Problem {
            path: path.to_owned(),
            fault: Fault::Invalid(crate::validation::shown(value)),
            detail: "must be an object".to_owned(),
            stage: Stage::Schema,
        }]
    };
    let metadata = match pool.get("metadata") {
        Some(Value::Object(metadata)) => metadata,
        Some(value) if !value.is_null() => return Err(odd("metadata", value)),
        _ => {
            return Err(vec![Problem {
                path: "metadata".to_owned(),
                fault: Fault::Required,
                detail: "must give at least a name".to_owned(),
                stage: Stage::Schema,
            }]);
        }
    };
    let annotations = metadata.get("annotations");
    let present = annotations.and_then(|annotations| annotations.get(labels::INJECTION_RECORD));
    if record.added.is_empty() && present.is_none() {
        return Ok(());
    }
    // An annotations map is not noted as made by us: `kubectl apply` makes one too, and the record shall
    // not depend on who was first. Only what stood in its place is, if that was not nothing.
    match annotations {
        None => {}
        Some(Value::Object(map)) if !map.is_empty() => {
            for earlier in old.into_iter().chain([own]) {
                if let Some(before) = earlier.replaced.get(POOL_ANNOTATIONS) {
                    record
                        .replaced
                        .insert(POOL_ANNOTATIONS.to_owned(), before.clone());
                }
            }
        }
        Some(hollow @ (Value::Object(_) | Value::Null)) => {
            record
                .replaced
                .insert(POOL_ANNOTATIONS.to_owned(), hollow.clone());
        }
        Some(value) => return Err(odd("metadata.annotations", value)),
    }
    if present.is_some() && own == record {
        return Ok(());
    }
    let text = json!(record.to_annotation());
    let pointer = "/metadata/annotations";
    operations.push(match annotations {
        Some(Value::Object(_)) => {
            let mut pointer = pointer.to_owned();
            super::path::push_token(&mut pointer, labels::INJECTION_RECORD);
            operation(&pointer, text, present.is_none())
        }
        other => {
            let map: Map<String, Value> = [(labels::INJECTION_RECORD.to_owned(), text)]
                .into_iter()
                .collect();
            operation(pointer, Value::Object(map), other.is_none())
        }
    });
    Ok(())
}
