//! Tables of wrong objects, and whether the API server refuses each with every reason at once.

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::site::{Failures, Place};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrong {
    what: String,
    #[serde(default)]
    put: Map<String, Value>,
    #[serde(default)]
    drop: Vec<String>,
    /// Paths that the refusal names.
    paths: Vec<String>,
    /// Those that schema and CEL name, where they differ. Empty: they see nothing wrong.
    schema: Option<Vec<String>>,
}

/// Puts `value` at `pointer`, whose parent must stand; nothing means that it is taken away.
pub(crate) fn put(object: &mut Value, pointer: &str, value: Option<&Value>) {
    let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent);
    match (parent.expect("the table puts into what stands"), value) {
        (Value::Object(map), Some(value)) => {
            map.insert(last.to_owned(), value.clone());
        }
        (Value::Object(map), None) => {
            map.shift_remove(last);
        }
        (Value::Array(items), Some(value)) if last == "-" => items.push(value.clone()),
        (Value::Array(items), Some(value)) => {
            let place = last
                .parse()
                .ok()
                .and_then(|index: usize| items.get_mut(index));
            value.clone_into(place.expect("the table names items that are there"));
        }
        (parent, _) => unreachable!("{pointer} is in {parent}"),
    }
}

/// Whether a message names a path: followed by what is wrong with it, so that a longer path does not
/// count. (Rules of the API server about metadata have no path, but a sentence.)
pub(crate) fn names_path(message: &str, path: &str) -> bool {
    let at_end = |at: usize| message[at + path.len()..].starts_with(':') || path.contains(' ');
    message.match_indices(path).any(|(at, _)| at_end(at))
}

/// Creates every object of a table, with the webhook or without; `right` makes a right one of a name.
pub(crate) async fn check(
    place: &Place<'_>,
    table: &str,
    right: fn(&str) -> Value,
    with_webhook: bool,
) -> Result<()> {
    let table: Vec<Wrong> = serde_saphyr::from_str(table)?;
    let mut failures = Failures::default();
    for (index, wrong) in table.iter().enumerate() {
        let Wrong {
            what,
            put: added,
            drop,
            paths,
            schema,
        } = wrong;
        let mut object = right(&format!("wrong-{index}"));
        for (pointer, value) in added {
            put(&mut object, pointer, Some(value));
        }
        for pointer in drop {
            put(&mut object, pointer, None);
        }
        let expected = if with_webhook {
            paths
        } else {
            schema.as_ref().unwrap_or(paths)
        };
        match place.create(&object, "").await? {
            Ok(_) => failures.check(expected.is_empty(), || format!("{what}: accepted")),
            Err(message) => {
                failures.check(!expected.is_empty(), || {
                    format!("{what}: refused: {message}")
                });
                for path in expected {
                    let named = names_path(&message, path);
                    failures.check(named, || format!("{what}: no {path} in: {message}"));
                }
                let foreign = message.contains("failed calling") || message.contains("expression");
                failures.check(!foreign, || format!("{what}: helps nobody: {message}"));
            }
        }
    }
    failures.check(table.len() > 30, || format!("only {} cases", table.len()));
    failures.told()
}

#[test]
fn a_path_is_not_found_in_a_longer_one() {
    assert!(names_path("x: [spec.a: wrong]", "spec.a"));
    assert!(!names_path("x: [spec.a.b: wrong]", "spec.a"));
    let mut object = json!({ "a": [1] });
    put(&mut object, "/a/0", Some(&json!(2)));
    put(&mut object, "/a/-", Some(&json!(3)));
    assert_eq!(object, json!({ "a": [2, 3] }));
}
