//! Documents of the input: their JSON, their text, and the objects in them.
//!
//! A `List` (or `PoolList` and the like) is one document with several objects. What cannot be read is
//! told with its place and does not keep the rest from being looked at.

use std::fmt;

use serde_json::Value;

use super::input::Source;
use super::split::{self, Piece};
use super::{json, yaml};

/// One file.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) file: String,
    /// A byte-order mark that stood before the text.
    pub(super) bom: bool,
    pub(super) documents: Vec<Document>,
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// From 1.
    pub(super) number: usize,
    /// Its YAML with everything around it; `None` if it came as JSON.
    pub(super) text: Option<String>,
    /// `None` if it holds nothing.
    pub(super) value: Option<Value>,
    /// Whether the value is no longer what the text says.
    pub(super) changed: bool,
}

/// Something that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: String,
    /// From 1.
    pub(super) document: usize,
    /// Numbers of the items of the Lists it is in, from 1.
    pub(super) items: Vec<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            document,
            items,
        } = self;
        write!(f, "{file}: document {document}")?;
        for item in items {
            write!(f, ", item {item}")?;
        }
        Ok(())
    }
}

impl Input {
    /// Reads the documents of a file, and whatever is wrong with them.
    pub(super) fn read(source: Source) -> (Self, Vec<Unreadable>) {
        let Source { name: file, bytes } = source;
        let mut input = Self {
            file,
            bom: false,
            documents: Vec::new(),
        };
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let line = error.as_bytes()[..valid]
                    .split(|byte| *byte == b'\n')
                    .count();
                let problem = format!("{}: line {line}: not UTF-8 (byte {valid})", input.file);
                return (input, vec![Unreadable(problem)]);
            }
        };
        let text = match text.strip_prefix('\u{FEFF}') {
            Some(rest) => {
                input.bom = true;
                rest
            }
            None => &text,
        };
        let problems = input.documents(text);
        (input, problems)
    }

    fn documents(&mut self, text: &str) -> Vec<Unreadable> {
        let mut json_error = None;
        if json::looks_like(text) {
            let (values, error) = json::read(text);
            // It may be YAML that begins with a brace, or with one document in braces.
            let maybe_yaml = error
                .as_ref()
                .is_some_and(|error| error.is_syntax() || error.is_eof());
            if !maybe_yaml {
                let failed = values.len() + 1;
                let numbered = (1..).zip(values);
                self.documents = numbered
                    .map(|(number, value)| Document {
                        number,
                        text: None,
                        value: Some(value),
                        changed: false,
                    })
                    .collect();
                return error
                    .map(|error| self.unreadable(failed, &error))
                    .into_iter()
                    .collect();
            }
            json_error = error.map(|error| (values.len() + 1, error));
        }
        let mut problems = Vec::new();
        for (number, Piece { text, line }) in (1..).zip(split::pieces(text)) {
            match yaml::read(text) {
                Ok(value) => {
                    // A document of nothing, such as one of comments alone, reads as null.
                    let value = value.filter(|value| !value.is_null());
                    self.documents.push(Document {
                        number,
                        text: Some(text.to_owned()),
                        value,
                        changed: false,
                    });
                }
                Err(error) => {
                    problems.push(self.unreadable(number, &error.after_lines(line - 1)));
                }
            }
        }
        match json_error {
            Some((number, error)) if !problems.is_empty() => vec![self.unreadable(number, &error)],
            _ => problems,
        }
    }

    fn unreadable(&self, document: usize, error: &dyn fmt::Display) -> Unreadable {
        Unreadable(format!("{}: document {document}: {error}", self.file))
    }

    /// Looks at every object, those in Lists one by one; `look` says whether it changed its object.
    pub(super) fn for_each_object(&mut self, mut look: impl FnMut(&Place, &mut Value) -> bool) {
        for document in &mut self.documents {
            let Some(value) = &mut document.value else {
                continue;
            };
            let mut place = Place {
                file: self.file.clone(),
                document: document.number,
                items: Vec::new(),
            };
            document.changed |= visit(&mut place, value, &mut look);
        }
    }
}

fn visit(
    place: &mut Place,
    value: &mut Value,
    look: &mut impl FnMut(&Place, &mut Value) -> bool,
) -> bool {
    if !is_list(value) {
        return look(place, value);
    }
    let items = value.get_mut("items").and_then(Value::as_array_mut);
    let mut changed = false;
    for (number, item) in (1..).zip(items.into_iter().flatten()) {
        place.items.push(number);
        changed |= visit(place, item, look);
        place.items.pop();
    }
    changed
}

/// Whether an object is a list of objects, as `kubectl` tells it: by its kind and its items.
pub(super) fn is_list(value: &Value) -> bool {
    value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.ends_with("List"))
        && value.get("items").is_some_and(Value::is_array)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &[u8]) -> (Input, Vec<String>) {
        let (input, problems) = Input::read(Source {
            name: "f".to_owned(),
            bytes: text.to_vec(),
        });
        (input, problems.iter().map(ToString::to_string).collect())
    }

    fn values(text: &str) -> Vec<Option<Value>> {
        let (input, problems) = read(text.as_bytes());
        assert_eq!(problems, Vec::<String>::new(), "{text}");
        input
            .documents
            .into_iter()
            .map(|document| document.value)
            .collect()
    }

    #[test]
    fn yaml_and_json_in_every_mixture() {
        assert_eq!(
            values("a: 1\n---\n# none\n---\nb: 2\n"),
            [Some(json!({"a": 1})), None, Some(json!({"b": 2}))]
        );
        assert_eq!(
            values("\u{FEFF}{\"a\": 1}\n{\"b\":\t2}"),
            [Some(json!({"a": 1})), Some(json!({"b": 2}))]
        );
        assert_eq!(values("{a: 1}\n"), [Some(json!({"a": 1}))]);
        assert_eq!(
            values("{\"a\": 1}\n---\n{\"b\":\n\t2}\n"),
            [Some(json!({"a": 1})), Some(json!({"b": 2}))]
        );
        assert_eq!(values(""), [None]);
    }

    #[test]
    fn problems_name_file_document_and_line_and_the_rest_is_read() {
        let (input, problems) = read(b"a: 1\n---\n\nb: 1\nb: 2\n---\nc: [\n---\nd: 1\n");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(
            problems[0],
            "f: document 2: line 5, column 1: key \"b\" stands twice in the same object"
        );
        assert!(
            problems[1].starts_with("f: document 3: line "),
            "{problems:?}"
        );
        assert_eq!(
            input
                .documents
                .iter()
                .map(|document| document.number)
                .collect::<Vec<_>>(),
            [1, 4]
        );
        assert_eq!(
            read(b"a: 1\nb: \xff\n").1,
            ["f: line 2: not UTF-8 (byte 8)"]
        );
        let (_, problems) = read(b"{\"a\": 1, \"a\": 2}");
        assert!(
            problems[0].starts_with("f: document 1: key \"a\" stands twice"),
            "{problems:?}"
        );
        let (_, problems) = read(b"{\"a\": 1,\n");
        assert!(
            problems[0].starts_with("f: document 1: EOF"),
            "{problems:?}"
        );
    }

    #[test]
    fn items_of_lists_are_objects() {
        let (mut input, _) = read(b"kind: List\nitems:\n- kind: A\n- kind: PoolList\n  items:\n  - kind: B\n---\nkind: C\n");
        let mut seen = Vec::new();
        input.for_each_object(|place, value| {
            seen.push(format!("{place}: {}", value["kind"]));
            value["kind"] == "B"
        });
        assert_eq!(
            seen,
            [
                "f: document 1, item 1: \"A\"",
                "f: document 1, item 2, item 1: \"B\"",
                "f: document 2: \"C\""
            ]
        );
        assert!(input.documents[0].changed && !input.documents[1].changed);
    }

    #[test]
    fn ten_megabytes_are_read() {
        let mut text = String::new();
        while text.len() < 10 << 20 {
            text.push_str("---\napiVersion: v1\nkind: ConfigMap\ndata:\n  a: 'x'\n  b: |\n    line\n    line\n");
        }
        let (input, problems) = read(text.as_bytes());
        assert_eq!(problems, Vec::<String>::new());
        assert!(input.documents.len() > 100_000);
    }
}
