//! Takes away what the record says was added: the input of the injection comes back.
//!
//! The only place where anything is removed, and only what is ours: at the command line, and where a Pool
//! changes from one mode to the other.

use json_patch::jsonptr::PointerBuf;
use json_patch::{PatchOperation, RemoveOperation};
use serde_json::Value;

use super::Mode;
use super::edit::operation;
use super::inject::{Previous, is_ours};
use super::path::Path;
use super::record::{POOL_ANNOTATIONS, Record};
use crate::labels;

/// The Pool without what was injected. A Pool that carries no record is returned as it is.
///
/// Values that somebody changed since are not in the record and stay.
pub fn uninject(pool: &Value) -> Value {
    let mut pool = pool.clone();
    let Some(annotations) = pool.pointer("/metadata/annotations") else {
        return pool;
    };
    let Some(annotation) = annotations.get(labels::INJECTION_RECORD) else {
        return pool;
    };
    let record = Record::parse(Some(annotation));
    if let Some(template) = pool.pointer_mut("/spec/template") {
        restore(template, &record);
    }
    if let Some(Value::Object(annotations)) = pool.pointer_mut("/metadata/annotations") {
        annotations.shift_remove(labels::INJECTION_RECORD);
        if annotations.is_empty() {
            let before = record.replaced.get(POOL_ANNOTATIONS).cloned();
            if let Some(Value::Object(metadata)) = pool.get_mut("metadata") {
                match before {
                    Some(before) => metadata.insert("annotations".to_owned(), before),
                    None => metadata.shift_remove("annotations"),
                };
            }
        }
    }
    pool
}

/// Takes away what was added for `mode` and nobody has changed since. Returns the operations that do so,
/// each on what the ones before it left; none if there is nothing of that mode.
pub(super) fn leave(
    template: &mut Value,
    mode: Mode,
    own: &Record,
    previous: Option<Previous<'_>>,
) -> Vec<PatchOperation> {
    let mut gone = Record::default();
    let records = previous
        .map(|previous| previous.record)
        .into_iter()
        .chain([own]);
    for record in records.clone() {
        for (text, origin) in &record.added {
            let ours = mode.adds(text)
                && Path::parse(text).is_some_and(|path| {
                    path.get(template).is_some() && is_ours(&path, template, own, previous)
                });
            if ours {
                gone.added.insert(text.clone(), origin.clone());
            }
        }
    }
    if gone.added.is_empty() {
        return Vec::new();
    }
    for record in records {
        gone.parents.extend(record.parents.iter().cloned());
        for (path, before) in &record.replaced {
            gone.replaced
                .entry(path.clone())
                .or_insert_with(|| before.clone());
        }
    }
    restore(template, &gone)
}

fn restore(template: &mut Value, record: &Record) -> Vec<PatchOperation> {
    let Record {
        added,
        parents,
        replaced,
    } = record;
    let mut operations = Vec::new();
    for text in added.keys() {
        operations.extend(take_away(template, text, replaced.get(text), false));
    }
    // The innermost first, so that an outer one is empty when its turn comes.
    let mut parents: Vec<&String> = parents.iter().collect();
    parents.sort_by_key(|text| {
        std::cmp::Reverse(Path::parse(text).map_or(0, |path| path.segments().count()))
    });
    for text in parents {
        operations.extend(take_away(template, text, replaced.get(text), true));
    }
    operations
}

fn take_away(
    template: &mut Value,
    text: &str,
    before: Option<&Value>,
    only_if_empty: bool,
) -> Option<PatchOperation> {
    let path = Path::parse(text)?;
    let found = path.get(template)?;
    if only_if_empty && !super::edit::hollow(found) {
        return None;
    }
    let pointer = path.pointer(template)?;
    if let Some(before) = before {
        *template.pointer_mut(&pointer)? = before.clone();
        return Some(operation(&pointer, before.clone(), false));
    }
    let (parent, token) = pointer.rsplit_once('/')?;
    match template.pointer_mut(parent)? {
        Value::Object(map) => {
            map.shift_remove(path.last()?.text())?;
        }
        Value::Array(items) => {
            let index = token.parse::<usize>().ok()?;
            if index >= items.len() {
                return None;
            }
            items.remove(index);
        }
        _ => return None,
    }
    let path = PointerBuf::parse(pointer).expect("built from escaped tokens");
    Some(PatchOperation::Remove(RemoveOperation { path }))
}
