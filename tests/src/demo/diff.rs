//! What the API server made of an object, as lines of YAML with `+` before what was added. Goes in:
//! the object as written and as stored. Comes out: marked lines. Pure.
//!
//! The two are walked together instead of comparing texts, so order and style of the file do not
//! matter, and an unchanged line is unchanged whatever stands beside it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Longest object or list that is written on one line, indentation included.
const FLOW_WIDTH: usize = 84;
/// What the server sets in every object and says nothing of this one.
const SERVER_SET: [&str; 6] = [
    "creationTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];
/// Where client-side apply keeps the file.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What became of a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mark {
    Same,
    Added,
    Removed,
}

/// A line of YAML.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Line {
    pub(super) mark: Mark,
    pub(super) text: String,
}

/// The object without what the server sets in every object, and without status.
pub(super) fn visible(stored: &Value) -> Value {
    let mut object = stored.clone();
    if let Some(object) = object.as_object_mut() {
        object.shift_remove("status");
    }
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return object;
    };
    metadata.retain(|key, _| !SERVER_SET.contains(&key.as_str()));
    if let Some(annotations) = metadata
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.shift_remove(LAST_APPLIED);
        if annotations.is_empty() {
            metadata.shift_remove("annotations");
        }
    }
    object
}

/// The lines of both objects: those of `written` in its order, with what `stored` adds.
pub(super) fn changes(written: &Value, stored: &Value) -> Vec<Line> {
    let mut lines = Vec::new();
    let empty = Map::new();
    let (written, stored) = (written.as_object(), stored.as_object());
    map(
        &mut lines,
        0,
        false,
        written.unwrap_or(&empty),
        stored.unwrap_or(&empty),
    );
    lines
}

fn map(
    lines: &mut Vec<Line>,
    indent: usize,
    dash: bool,
    written: &Map<String, Value>,
    stored: &Map<String, Value>,
) {
    let added = stored.keys().filter(|key| !written.contains_key(*key));
    for (index, key) in written.keys().chain(added).enumerate() {
        let before = match (dash, index) {
            (false, _) => "",
            (true, 0) => "- ",
            (true, _) => "  ",
        };
        let lead = format!("{}{before}{}:", " ".repeat(indent), plain_or_quoted(key));
        node(
            lines,
            &lead,
            indent + before.len(),
            written.get(key),
            stored.get(key),
        );
    }
}

/// A value after its `lead`, the key or the dash of a list; `indent` is the column of its key.
fn node(
    lines: &mut Vec<Line>,
    lead: &str,
    indent: usize,
    written: Option<&Value>,
    stored: Option<&Value>,
) {
    let mark = match (written, stored) {
        (Some(written), Some(stored)) if written == stored => Mark::Same,
        (None, Some(_)) => Mark::Added,
        (Some(_), None) => Mark::Removed,
        (Some(Value::Object(written)), Some(Value::Object(stored))) => {
            lines.push(Line {
                mark: Mark::Same,
                text: lead.to_owned(),
            });
            return map(lines, indent + 2, false, written, stored);
        }
        (Some(Value::Array(written)), Some(Value::Array(stored))) => {
            lines.push(Line {
                mark: Mark::Same,
                text: lead.to_owned(),
            });
            return list(lines, indent, written, stored);
        }
        (Some(_), Some(_)) => {
            node(lines, lead, indent, written, None);
            return node(lines, lead, indent, None, stored);
        }
        (None, None) => return,
    };
    if let Some(value) = written.or(stored) {
        block(lead, indent, value, &mut |text| {
            lines.push(Line { mark, text });
        });
    }
}

fn list(lines: &mut Vec<Line>, indent: usize, written: &[Value], stored: &[Value]) {
    for (written, stored) in pairs(written, stored) {
        if let (Some(Value::Object(written)), Some(Value::Object(stored))) = (written, stored)
            && written != stored
        {
            map(lines, indent, true, written, stored);
        } else {
            node(
                lines,
                &format!("{}-", " ".repeat(indent)),
                indent + 2,
                written,
                stored,
            );
        }
    }
}

type Pair<'a> = (Option<&'a Value>, Option<&'a Value>);

/// Items that belong together: those of the same name where all have one, else of the same index.
fn pairs<'a>(written: &'a [Value], stored: &'a [Value]) -> Vec<Pair<'a>> {
    let name = |item: &'a Value| item.get("name").and_then(Value::as_str);
    let named = |items: &'a [Value]| {
        let names: BTreeSet<_> = items.iter().filter_map(name).collect();
        names.len() == items.len()
    };
    if named(written) && named(stored) {
        let find = |items: &'a [Value], item| items.iter().find(|other| name(other) == name(item));
        let mut pairs: Vec<_> = written
            .iter()
            .map(|item| (Some(item), find(stored, item)))
            .collect();
        let added = stored.iter().filter(|item| find(written, item).is_none());
        pairs.extend(added.map(|item| (None, Some(item))));
        pairs
    } else {
        let length = written.len().max(stored.len());
        (0..length)
            .map(|index| (written.get(index), stored.get(index)))
            .collect()
    }
}

/// A value as YAML after its `lead`, on one line if it fits.
fn block(lead: &str, indent: usize, value: &Value, emit: &mut impl FnMut(String)) {
    let line = format!("{lead} {}", flow(value));
    let fits = line.chars().count() <= FLOW_WIDTH;
    match value {
        Value::Object(map) if !fits => {
            let dash = lead.ends_with('-');
            if !dash {
                emit(lead.to_owned());
            }
            let column = if dash { indent } else { indent + 2 };
            // The server sorts keys; a person looks for the name first.
            let (name, rest): (Vec<_>, Vec<_>) = map.iter().partition(|(key, _)| *key == "name");
            for (index, (key, value)) in name.into_iter().chain(rest).enumerate() {
                let before = if dash && index == 0 {
                    format!("{lead} ")
                } else {
                    " ".repeat(column)
                };
                block(
                    &format!("{before}{}:", plain_or_quoted(key)),
                    column,
                    value,
                    emit,
                );
            }
        }
        Value::Array(items) if !fits => {
            emit(lead.to_owned());
            for item in items {
                block(&format!("{}-", " ".repeat(indent)), indent + 2, item, emit);
            }
        }
        _ => emit(line),
    }
}

/// A value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(flow).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                format!("{}: {}", plain_or_quoted(key), flow(value))
            };
            format!(
                "{{{}}}",
                map.iter().map(entry).collect::<Vec<_>>().join(", ")
            )
        }
        other => other.to_string(),
    }
}

/// Text without quotes only where no YAML parser could take it for something else; JSON's quotes are
/// YAML's too.
fn plain_or_quoted(text: &str) -> String {
    let word = |character: char| character.is_ascii_alphanumeric() || "_-./:".contains(character);
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.chars().all(word)
        && !text.ends_with(':');
    let special = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let quantity = text.starts_with(|first: char| first.is_ascii_digit())
        && text.ends_with(|last: char| last.is_ascii_alphabetic())
        && text
            .chars()
            .all(|character| character.is_ascii_alphanumeric())
        && !text.contains(['e', 'E', 'x', 'o', 'b']);
    if (plain && !special.contains(&text.to_ascii_lowercase().as_str())) || quantity {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(written: &Value, stored: &Value) -> Vec<String> {
        let mark = |mark| match mark {
            Mark::Same => ' ',
            Mark::Added => '+',
            Mark::Removed => '-',
        };
        let lines = changes(written, stored);
        lines
            .iter()
            .map(|line| format!("{}{}", mark(line.mark), line.text))
            .collect()
    }

    #[test]
    fn additions_stand_where_they_were_made() {
        let written =
            json!({"kind": "Pool", "spec": {"containers": [{"name": "a", "image": "b:1"}]}});
        let stored = json!({"spec": {"shared": true, "containers": [
            {"image": "b:1", "name": "a", "ports": [{"port": 1}]}, {"name": "executor", "port": "1"}]},
            "kind": "Pool"});
        let expected = [
            " kind: Pool",
            " spec:",
            "   containers:",
            "   - name: a",
            "     image: b:1",
            "+    ports: [{port: 1}]",
            "+  - {name: executor, port: \"1\"}",
            "+  shared: true",
        ];
        assert_eq!(shown(&written, &stored), expected);
    }

    #[test]
    fn a_changed_value_is_a_removal_and_an_addition() {
        let lines = shown(&json!({"a": {"b": 1, "c": 2}}), &json!({"a": {"b": 2}}));
        assert_eq!(lines, [" a:", "-  b: 1", "+  b: 2", "-  c: 2"]);
    }

    #[test]
    fn long_values_are_written_as_blocks_that_read_back() {
        let long = "word ".repeat(30);
        let value = json!({"list": [{"name": long, "inner": {"on": "yes", "cpu": "500m"}}, long],
            "map": {"a": [1, 2, {"b": long}], "date": "2024-01-01", "hex": "0x10"}});
        let text = shown(&json!({}), &value)
            .iter()
            .map(|line| line.trim_start_matches('+'))
            .collect::<Vec<_>>()
            .join("\n");
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
    }

    #[test]
    fn what_the_server_sets_is_not_visible() {
        let annotations = json!({LAST_APPLIED: "{}"});
        let stored = json!({"metadata": {"name": "a", "uid": "u", "annotations": annotations},
            "status": {}});
        assert_eq!(visible(&stored), json!({"metadata": {"name": "a"}}));
    }
}
