//! JSON as block-style YAML, the way `kubectl` lays it out: two spaces, lists not indented.
//!
//! Invariant, with a property test: what is written reads back as the same JSON. A text stands
//! without quotes only if no reader of any version could take it for something else.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::scalar::ambiguous;

/// Longest key, in bytes as written, that may stand before its colon (YAML allows 1024 characters).
const LONGEST_SIMPLE_KEY: usize = 900;

/// Writes one document, with a line break at its end.
pub(in crate::cli) fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => object(&mut out, map, 0),
        Value::Array(items) if !items.is_empty() => list(&mut out, items, 0),
        other => {
            scalar(&mut out, other, 2);
            out.push('\n');
        }
    }
    out
}

fn spaces(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// The entries of an object; the first one begins where the text ends.
fn object(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 {
            spaces(out, indent);
        }
        let mut key_text = String::new();
        inline(&mut key_text, key);
        let simple = key_text.len() <= LONGEST_SIMPLE_KEY;
        if simple {
            out.push_str(&key_text);
        } else {
            out.push_str("? ");
            out.push_str(&key_text);
            out.push('\n');
            spaces(out, indent);
        }
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                spaces(out, indent + 2);
                object(out, map, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                let inner = if simple { indent } else { indent + 2 };
                out.push('\n');
                spaces(out, inner);
                list(out, items, inner);
            }
            other => {
                out.push(' ');
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

/// The items of a list; the first one begins where the text ends.
fn list(out: &mut String, items: &[Value], indent: usize) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            spaces(out, indent);
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => object(out, map, indent + 2),
            Value::Array(items) if !items.is_empty() => list(out, items, indent + 2),
            other => {
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

/// A scalar or an empty collection. A block scalar's lines are indented by `indent`; the last line
/// break is left to the caller.
fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number_text(number)),
        Value::String(text) if fits_block(text) => block(out, text, indent),
        Value::String(text) => inline(out, text),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
    }
}

/// A float is written with a point, and a sign in its exponent: YAML 1.1 asks for both.
fn number_text(number: &serde_json::Number) -> String {
    let text = number.to_string();
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return text;
    };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) {
        ""
    } else {
        "+"
    };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// Whether a text is a script or the like, that reads best line by line and loses nothing by it.
fn fits_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let sound = |line: &str| !line.ends_with([' ', '\t']) && !line.starts_with('\t');
    body.contains('\n')
        && !body.starts_with([' ', '\n'])
        && !body.ends_with('\n')
        && text
            .chars()
            .all(|character| character == '\n' || character == '\t' || printable(character))
        && body.split('\n').all(sound)
}

fn block(out: &mut String, text: &str, indent: usize) {
    let body = text.strip_suffix('\n');
    out.push_str(if body.is_some() { "|" } else { "|-" });
    let body = body.unwrap_or(text);
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            spaces(out, indent);
            out.push_str(line);
        }
    }
}

/// A text in one line: bare, in single or in double quotes.
fn inline(out: &mut String, text: &str) {
    if fits_plain(text) {
        out.push_str(text);
    } else if text.contains(['"', '\\']) && text.chars().all(printable) {
        out.push('\'');
        out.push_str(&text.replace('\'', "''"));
        out.push('\'');
    } else {
        double_quoted(out, text);
    }
}

fn fits_plain(text: &str) -> bool {
    const INSIDE: &str = " _./-+=@,():$%*&;?!<>'[]{}|^~#";
    let mut characters = text.chars();
    let starts = match characters.next() {
        // One that is followed by a space begins an item; three begin a document.
        Some('-') => {
            !text.starts_with("---")
                && characters
                    .next()
                    .is_some_and(|next| next.is_alphanumeric() || next == '-')
        }
        Some(first) => first.is_alphanumeric() || matches!(first, '_' | '.' | '/' | '(' | '$'),
        None => false,
    };
    starts
        && !text.starts_with("...")
        && text
            .chars()
            .all(|character| character.is_alphanumeric() || INSIDE.contains(character))
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.ends_with([':', ' '])
        && !ambiguous(text)
}

fn double_quoted(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            other if printable(other) => out.push(other),
            other => {
                let code = u32::from(other);
                if code > 0xFFFF {
                    let _ = write!(out, "\\U{code:08X}");
                } else {
                    let _ = write!(out, "\\u{code:04X}");
                }
            }
        }
    }
    out.push('"');
}

/// What may stand as itself: not a control character, none of Unicode's line breaks, no byte-order
/// mark, and nothing that YAML does not allow.
fn printable(character: char) -> bool {
    let never_a_character = u32::from(character) & 0xFFFE == 0xFFFE;
    !character.is_control()
        && !matches!(character, '\u{2028}' | '\u{2029}' | '\u{FEFF}')
        && !never_a_character
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::cli::yaml::read;

    #[test]
    fn the_layout_is_that_of_kubectl() {
        let value = json!({
            "metadata": {"name": "a", "labels": {}},
            "spec": {"containers": [{"name": "b", "command": ["sh", "-c", "exit 1"], "args": []}], "nested": [[1, 2]]},
        });
        let expected = "metadata:\n  name: a\n  labels: {}\nspec:\n  containers:\n  - name: b\n    command:\n    - sh\n    - -c\n    - exit 1\n    args: []\n  nested:\n  - - 1\n    - 2\n";
        assert_eq!(write(&value), expected);
    }

    #[test]
    fn texts_that_could_be_something_else_are_quoted() {
        for text in [
            "yes",
            "on",
            "null",
            "~",
            "",
            "1_000",
            "0x10",
            "2024-01-01",
            "1:30",
            "123",
            "1.5",
            "1e3",
            "true",
            "n",
            "<<",
            "=",
            "- a",
            "a: b",
            "a #b",
            "#a",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "---",
            "...",
            " a",
            "a ",
            "a:",
            "?",
            "-",
            "a\u{85}b",
            "\u{FEFF}a",
            "a\u{2028}b",
            "\u{7}",
            "a\rb",
            "\n",
            "a\n\n",
            " a\nb",
            "0o17",
            "NaN",
            ".inf",
            "Null",
        ] {
            let written = write(&json!({ "k": text }));
            assert!(
                written.starts_with("k: \"") || !ambiguous(text),
                "{text:?}: {written}"
            );
            assert_eq!(
                read(&written).unwrap(),
                Some(json!({ "k": text })),
                "{written}"
            );
        }
        assert_eq!(write(&json!({"k": "{\"a\":'b'}"})), "k: '{\"a\":''b''}'\n");
        assert_eq!(
            write(&json!({"k": "set -e\nrun\n"})),
            "k: |\n  set -e\n  run\n"
        );
    }

    #[test]
    fn a_long_key_is_written_so_that_it_reads_back() {
        for inner in [json!(1), json!({"a": 1}), json!([{"a": 1}, 2])] {
            let value = json!({"x": [{"k".repeat(5000): inner}]});
            assert_eq!(read(&write(&value)).unwrap(), Some(value));
        }
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[-+.0-9_:eExXobTZ ]{0,12}",
            "[a-zA-Z~ \n\t'\"#:,\\[\\]{}&*!|>%@`?=-]{0,12}",
            "([ -~]{0,6}\n){0,4}[ -~]{0,3}",
            "[yYnN]|[oO][nNfF]{1,2}|[nN]ull|[tT]rue|---|\\.\\.\\.",
        ]
    }

    fn json_values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            // Whole floats are read as whole numbers, as kubectl does.
            any::<f64>()
                .prop_filter("a JSON number", |float| float.is_finite()
                    && float.fract() != 0.0)
                .prop_map(Value::from),
            Just(json!(1e300)),
            Just(json!(1.5e-300)),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 48, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((text(), inner), 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_reads_back(value in json_values()) {
            let written = write(&value);
            prop_assert_eq!(read(&written).map_err(|error| TestCaseError::fail(format!("{error}\n{written}")))?, Some(value), "{}", written);
        }
    }

    fn cases() -> u32 {
        std::env::var("OPENSANDBOX_CASES")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(2000)
    }
}
