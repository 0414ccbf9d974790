//! Takes away what the record says was added: the input of the injection comes back.

use serde_json::Value;

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

fn restore(template: &mut Value, record: &Record) {
    let Record {
        added,
        parents,
        replaced,
    } = record;
    for text in added.keys() {
        take_away(template, text, replaced.get(text), false);
    }
    // The innermost first, so that an outer one is empty when its turn comes.
    let mut parents: Vec<&String> = parents.iter().collect();
    parents.sort_by_key(|text| {
        std::cmp::Reverse(Path::parse(text).map_or(0, |path| path.segments().count()))
    });
    for text in parents {
        take_away(template, text, replaced.get(text), true);
    }
}

fn take_away(template: &mut Value, text: &str, before: Option<&Value>, only_if_empty: bool) {
    let Some(path) = Path::parse(text) else {
        return;
    };
    let Some(found) = path.get(template) else {
        return;
    };
    if only_if_empty && !super::edit::hollow(found) {
        return;
    }
    let Some(pointer) = path.pointer(template) else {
        return;
    };
    if let Some(before) = before {
        if let Some(place) = template.pointer_mut(&pointer) {
            *place = before.clone();
        }
        return;
    }
    let Some((parent, _)) = pointer.rsplit_once('/') else {
        return;
    };
    let Some(name) = path.last().map(super::Segment::text) else {
        return;
    };
    match template.pointer_mut(parent) {
        Some(Value::Object(map)) => {
            map.shift_remove(name);
        }
        Some(Value::Array(items)) => {
            if let Some(index) = pointer
                .rsplit('/')
                .next()
                .and_then(|token| token.parse::<usize>().ok())
                && index < items.len()
            {
                items.remove(index);
            }
        }
        _ => {}
    }
}
