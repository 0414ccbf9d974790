//! The documents after a command, as YAML, as JSON, or as the patches that lead to them.
//!
//! As YAML every document that was not changed keeps its very bytes; of a changed one the comments
//! around it stay, and those inside it are lost.

use json_patch::Patch;
use serde::Serialize;
use serde_json::{Value, json};

use super::document::{Document, Input, Place, is_list};
use super::{split, yaml};

/// How documents are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// All documents; those that are not changed keep their text.
    #[default]
    Yaml,
    /// The object, or a List of all objects if there are several.
    Json,
    /// For each changed object one line of JSON with file, document, kind, name and an RFC 6902
    /// patch.
    Patch,
}

/// A change of one object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Change {
    file: String,
    document: usize,
    /// Where the object stands in Lists, from 1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<usize>,
    api_version: Value,
    kind: Value,
    namespace: String,
    name: String,
    patch: Patch,
}

impl Change {
    pub(super) fn new(place: &Place, object: &Value, namespace: &str, patch: Patch) -> Self {
        let Place {
            file,
            document,
            items,
        } = place.clone();
        let field = |name: &str| object.get(name).cloned().unwrap_or_default();
        Self {
            file,
            document,
            items,
            api_version: field("apiVersion"),
            kind: field("kind"),
            namespace: namespace.to_owned(),
            name: super::review::name(object),
            patch,
        }
    }
}

/// Prints in a format.
pub(super) fn print(format: Format, inputs: &[Input], changes: &[Change]) -> String {
    match format {
        Format::Yaml => yaml(inputs),
        Format::Json => json_text(&json(inputs)),
        Format::Patch => changes
            .iter()
            .map(|change| json_line(&json!(change)))
            .collect(),
    }
}

fn json_line(value: &Value) -> String {
    format!("{value}\n")
}

/// Indented JSON with a line break at its end.
pub(super) fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn yaml(inputs: &[Input]) -> String {
    let mut out = String::new();
    let mut first = true;
    for input in inputs {
        if first && input.bom {
            out.push('\u{FEFF}');
        }
        for (index, document) in input.documents.iter().enumerate() {
            let text = document_text(document);
            // Within one file the text brings its own markers.
            let needs_marker = index == 0 || document.text.is_none();
            if needs_marker && !first && !text.is_empty() {
                if !out.ends_with('\n') {
                    out.push('\n');
                }
                if split::begins_with_directive(&text) {
                    out.push_str("...\n");
                } else if !split::begins_with_marker(&text) {
                    out.push_str("---\n");
                }
            }
            first &= text.is_empty();
            out.push_str(&text);
        }
    }
    out
}

fn document_text(document: &Document) -> String {
    let written = || document.value.as_ref().map(yaml::write).unwrap_or_default();
    match &document.text {
        None => written(),
        Some(text) if !document.changed => text.clone(),
        Some(text) => {
            let split::Parts {
                before,
                inline,
                after,
            } = split::parts(text);
            let line_break = if inline { "\n" } else { "" };
            format!("{before}{line_break}{}{after}", written())
        }
    }
}

/// The one object, or a List as `kubectl` prints several; Lists among several are taken apart.
fn json(inputs: &[Input]) -> Value {
    let mut values = inputs
        .iter()
        .flat_map(|input| &input.documents)
        .filter_map(|document| document.value.as_ref());
    match (values.next(), values.next()) {
        (Some(only), None) => only.clone(),
        (first, second) => {
            let mut items = Vec::new();
            for value in first.into_iter().chain(second).chain(values) {
                flatten(value, &mut items);
            }
            json!({ "apiVersion": "v1", "kind": "List", "items": items })
        }
    }
}

fn flatten(value: &Value, items: &mut Vec<Value>) {
    if is_list(value) {
        for item in value
            .get("items")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            flatten(item, items);
        }
    } else {
        items.push(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::input::Source;

    fn inputs(texts: &[&str]) -> Vec<Input> {
        let source = |text: &&str| Source {
            name: "f".to_owned(),
            bytes: text.as_bytes().to_vec(),
        };
        texts
            .iter()
            .map(|text| Input::read(source(text)).0)
            .collect()
    }

    fn change(inputs: &mut [Input], kind: &str) {
        for input in inputs {
            input.for_each_object(|_, object| {
                let found = object["kind"] == kind;
                if found {
                    object["new"] = json!("yes");
                }
                found
            });
        }
    }

    #[test]
    fn unchanged_documents_keep_every_byte() {
        for text in [
            "",
            "# a\n---\na:   1 # x\n---\n\n---\nb: [ 1,\n 2]",
            "\u{FEFF}a: 'x'\r\n---\r\nb: 1\r\n",
            "a\n...\nb: 1\n...",
        ] {
            assert_eq!(yaml(&inputs(&[text])), text);
        }
    }

    #[test]
    fn changed_documents_keep_the_comments_around_them() {
        let mut read =
            inputs(&["# one\n---\nkind: A # lost\n# two\n---\nkind:   B\n--- {kind: A}\n"]);
        change(&mut read, "A");
        assert_eq!(
            yaml(&read),
            "# one\n---\nkind: A\nnew: \"yes\"\n# two\n---\nkind:   B\n---\nkind: A\nnew: \"yes\"\n"
        );
    }

    #[test]
    fn files_are_joined_into_one_stream() {
        let texts = [
            "a: 1",
            "",
            "# c\n",
            "---\nb: 1\n",
            "%YAML 1.2\n---\nc: 1\n",
            "{\"d\": 1}{\"e\": 2}",
            "\u{FEFF}f: 1\n",
        ];
        let joined = yaml(&inputs(&texts));
        assert_eq!(
            joined,
            "a: 1\n---\n# c\n---\nb: 1\n...\n%YAML 1.2\n---\nc: 1\n---\nd: 1\n---\ne: 2\n---\nf: 1\n"
        );
        let again = inputs(&[&joined]);
        let values: Vec<_> = again[0]
            .documents
            .iter()
            .filter_map(|document| document.value.clone())
            .collect();
        assert_eq!(
            values,
            [
                json!({"a": 1}),
                json!({"b": 1}),
                json!({"c": 1}),
                json!({"d": 1}),
                json!({"e": 2}),
                json!({"f": 1})
            ]
        );
    }

    #[test]
    fn json_is_the_object_or_a_list_of_all() {
        assert_eq!(json(&inputs(&["a: 1\n---\n"])), json!({"a": 1}));
        let list = "kind: List\nitems: [{a: 1}]\n";
        assert_eq!(
            json(&inputs(&[list])),
            json!({"kind": "List", "items": [{"a": 1}]})
        );
        assert_eq!(
            json(&inputs(&[list, "b: 1\n"])),
            json!({"apiVersion": "v1", "kind": "List", "items": [{"a": 1}, {"b": 1}]})
        );
        assert_eq!(
            json(&inputs(&[])),
            json!({"apiVersion": "v1", "kind": "List", "items": []})
        );
    }
}
