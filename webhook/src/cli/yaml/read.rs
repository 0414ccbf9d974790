//! One YAML document as JSON.
//!
//! Bounded in every direction: depth, and what anchors and aliases may expand to. A key that stands
//! twice is refused, since one of the two values would be lost without a word.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Tag};

use super::scalar;

/// Deepest nesting of objects and lists: JSON is read back with a limit of 128, by the webhook too,
/// and a List around the object takes a few of them.
const MAX_DEPTH: usize = 120;

/// What anchors and aliases may expand to in one document, counted by [`cost`].
const MAX_EXPANSION: usize = 32 << 20;

/// Why a document cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub(in crate::cli) struct Error {
    /// From 1, counted in the text given.
    line: usize,
    /// From 1, in characters.
    column: usize,
    reason: String,
}

impl Error {
    /// The same in a longer text, with so many lines before the one that was read.
    pub(in crate::cli) fn after_lines(self, lines: usize) -> Self {
        Self {
            line: self.line + lines,
            ..self
        }
    }
}

/// Reads a text of at most one document; `None` if it holds none, as a text of comments does.
pub(in crate::cli) fn read(text: &str) -> Result<Option<Value>, Error> {
    let mut options = serde_saphyr::granit_parser::options! {};
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| Error {
            line: error.marker().line(),
            column: error.marker().col() + 1,
            reason: match error.kind() {
                ErrorKind::RecursionLimitExceeded => too_deep(),
                _ => error.info().replace('\n', " "),
            },
        })?;
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
        }
        let outcome = if documents > 1 {
            Err("another document begins here without a line '---' before it".to_owned())
        } else {
            builder.event(event)
        };
        outcome.map_err(|reason| Error {
            line: span.start.line(),
            column: span.start.col() + 1,
            reason,
        })?;
    }
    Ok(builder.root)
}

#[derive(Default)]
struct Builder {
    root: Option<Value>,
    open: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    expansion: usize,
}

/// A value with a name, which may be repeated.
struct Anchored {
    value: Value,
    cost: usize,
    depth: usize,
}

/// A collection that is not complete.
struct Frame {
    anchor: usize,
    contents: Contents,
}

enum Contents {
    List(Vec<Value>),
    Object {
        map: Map<String, Value>,
        next: Next,
        merged: HashSet<String>,
    },
}

/// What comes next in an object.
enum Next {
    Key,
    Value(String),
    /// The value of `<<`.
    Merge,
}

type Outcome = Result<(), String>;

impl Builder {
    fn event(&mut self, event: Event<'_>) -> Outcome {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.scalar(text, style, anchor, tag.as_deref())
            }
            // Tags of collections have no meaning in JSON.
            Event::SequenceStart(_, anchor, _) => self.open(Frame {
                anchor,
                contents: Contents::List(Vec::new()),
            }),
            Event::MappingStart(_, anchor, _) => {
                let contents = Contents::Object {
                    map: Map::new(),
                    next: Next::Key,
                    merged: HashSet::new(),
                };
                self.open(Frame { anchor, contents })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let frame = self
                    .open
                    .pop()
                    .expect("the parser closes only what it opened");
                let value = match frame.contents {
                    Contents::List(items) => Value::Array(items),
                    Contents::Object { map, .. } => Value::Object(map),
                };
                self.complete(value, frame.anchor)
            }
            Event::Alias(id) => {
                let Some(Anchored { value, cost, depth }) = self.anchors.get(&id) else {
                    return Err("an alias refers to something that contains it".to_owned());
                };
                if self.open.len() + depth > MAX_DEPTH {
                    return Err(too_deep());
                }
                let (value, cost) = (value.clone(), *cost);
                self.expand(cost)?;
                self.complete(value, 0)
            }
            // The parser tells of others only if asked.
            _ => Ok(()),
        }
    }

    fn open(&mut self, frame: Frame) -> Outcome {
        if let Some(Frame {
            contents: Contents::Object {
                next: Next::Key, ..
            },
            ..
        }) = self.open.last()
        {
            return Err("a key must be a text, not a list or an object".to_owned());
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep());
        }
        self.open.push(frame);
        Ok(())
    }

    fn scalar(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
    ) -> Outcome {
        if let Some(Frame {
            contents: Contents::Object { next, .. },
            ..
        }) = self.open.last_mut()
            && matches!(next, Next::Key)
            && text == "<<"
            && style == ScalarStyle::Plain
            && tag.is_none()
        {
            *next = Next::Merge;
            return Ok(());
        }
        let value = typed(text, style, tag)?;
        self.complete(value, anchor)
    }

    /// A value is complete: it goes where the innermost open collection expects it.
    fn complete(&mut self, value: Value, anchor: usize) -> Outcome {
        if anchor != 0 {
            let cost = cost(&value);
            self.expand(cost)?;
            self.anchors.insert(
                anchor,
                Anchored {
                    depth: depth(&value),
                    cost,
                    value: value.clone(),
                },
            );
        }
        let Some(frame) = self.open.last_mut() else {
            self.root = Some(value);
            return Ok(());
        };
        match &mut frame.contents {
            Contents::List(items) => items.push(value),
            Contents::Object { map, next, merged } => match std::mem::replace(next, Next::Key) {
                Next::Key => {
                    let key = scalar::key(&value)
                        .ok_or_else(|| format!("{value} cannot be a key; put it in quotes"))?;
                    if map.contains_key(&key) && !merged.remove(&key) {
                        return Err(format!("key {key:?} stands twice in the same object"));
                    }
                    *next = Next::Value(key);
                }
                Next::Value(key) => {
                    map.insert(key, value);
                }
                Next::Merge => merge(map, merged, value)?,
            },
        }
        Ok(())
    }

    fn expand(&mut self, cost: usize) -> Outcome {
        self.expansion = self.expansion.saturating_add(cost);
        if self.expansion > MAX_EXPANSION {
            return Err("anchors and aliases of this document expand to too much".to_owned());
        }
        Ok(())
    }
}

/// Merges what stands under `<<`. As `kubectl` does it: at this place, so that keys after it win and
/// keys before it do not; of several objects the first one wins.
fn merge(map: &mut Map<String, Value>, merged: &mut HashSet<String>, value: Value) -> Outcome {
    let objects = match value {
        Value::Array(items) => items,
        other => vec![other],
    };
    for object in objects.into_iter().rev() {
        let Value::Object(object) = object else {
            return Err(
                "what is merged with << must be an object, or a list of objects".to_owned(),
            );
        };
        for (key, value) in object {
            merged.insert(key.clone());
            map.insert(key, value);
        }
    }
    Ok(())
}

/// A scalar's value, by its style and tag.
fn typed(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let plain = |text: &str| {
        scalar::resolve(text).map_err(|scalar::NotFinite| {
            format!("{text} cannot be written as JSON; put it in quotes")
        })
    };
    let Some(tag) = tag else {
        return match style {
            ScalarStyle::Plain => plain(&text),
            _ => Ok(Value::String(text.into_owned())),
        };
    };
    let wrong = |kind: &str| Err(format!("{text:?} cannot be read as {kind}"));
    match tag.core_suffix() {
        Some("str") => Ok(Value::String(text.into_owned())),
        Some("null") => match plain(&text)? {
            Value::Null => Ok(Value::Null),
            _ => wrong("null"),
        },
        Some("bool") => match plain(&text)? {
            value @ Value::Bool(_) => Ok(value),
            _ => wrong("a boolean"),
        },
        Some("int") => match plain(&text)? {
            value @ Value::Number(_) if !value.is_f64() => Ok(value),
            _ => wrong("a whole number"),
        },
        Some("float") => match plain(&text)? {
            value @ Value::Number(_) => Ok(value),
            _ => wrong("a number"),
        },
        // A tag that JSON has no word for makes a text, as it does for kubectl.
        _ if tag.suffix_in_namespace("tag:yaml.org,2002:").as_deref() != Some("binary") => {
            Ok(Value::String(text.into_owned()))
        }
        _ => binary(&text).map(Value::String),
    }
}

/// The text that stands there as base64.
fn binary(text: &str) -> Result<String, String> {
    let text: String = text
        .chars()
        .filter(|character| !matches!(character, '\r' | '\n'))
        .collect();
    let bytes = STANDARD
        .decode(text)
        .map_err(|error| format!("tag !!binary: {error}"))?;
    String::from_utf8(bytes)
        .map_err(|_| "tag !!binary: the bytes are not UTF-8, which JSON needs".to_owned())
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

/// About how much memory a value takes, in bytes.
fn cost(value: &Value) -> usize {
    const NODE: usize = 64;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => NODE,
        Value::String(text) => NODE + text.len(),
        Value::Array(items) => NODE + items.iter().map(cost).sum::<usize>(),
        Value::Object(map) => {
            NODE + map
                .iter()
                .map(|(key, value)| NODE + key.len() + cost(value))
                .sum::<usize>()
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reads(text: &str, expected: &Value) {
        assert_eq!(read(text).unwrap().as_ref(), Some(expected), "{text}");
    }

    fn refuses(text: &str, reason: &str) {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn anchors_merge_keys_tags_and_block_scalars() {
        reads(
            "a: &x {b: 1}\nc: *x\n",
            &json!({"a": {"b": 1}, "c": {"b": 1}}),
        );
        reads(
            "p: &x {b: 1, c: 2}\nq:\n  <<: *x\n  c: 3\n",
            &json!({"p": {"b": 1, "c": 2}, "q": {"b": 1, "c": 3}}),
        );
        reads(
            "- &a {k: 1}\n- &b {k: 2, l: 3}\n- <<: [*a, *b]\n",
            &json!([{"k": 1}, {"k": 2, "l": 3}, {"k": 1, "l": 3}]),
        );
        reads(
            "a: !!str 123\nb: '123'\nc: \"yes\"\nd: yes\n",
            &json!({"a": "123", "b": "123", "c": "yes", "d": true}),
        );
        reads(
            "a: !mine 1\nb: !mine {c: !!binary aGk=}\n",
            &json!({"a": "1", "b": {"c": "hi"}}),
        );
        reads(
            "a: |\n  x\n   y\nb: >-\n  x\n  y\nc: |+\n  x\n\n",
            &json!({"a": "x\n y\n", "b": "x y", "c": "x\n\n"}),
        );
        reads("1: a\ntrue: b\n", &json!({"1": "a", "true": "b"}));
        reads("'<<': 1\n", &json!({"<<": 1}));
        assert_eq!(read("# only a comment\n").unwrap(), None);
        assert_eq!(read("").unwrap(), None);
        reads("---\n", &Value::Null);
    }

    #[test]
    fn what_would_be_lost_or_cannot_be_json_is_refused() {
        refuses("a: 1\na: 2\n", "line 2, column 1: key \"a\" stands twice");
        refuses("1: a\n'1': b\n", "stands twice");
        refuses("a: .inf\n", "cannot be written as JSON");
        refuses("? [a]\n: b\n", "a key must be a text");
        refuses("~: b\n", "cannot be a key");
        refuses("a: !!binary '~'\n", "tag !!binary");
        refuses("a: !!binary /w==\n", "not UTF-8");
        refuses("a: &x [*x]\n", "contains it");
        refuses("a: *x\n", "line 1");
        refuses("<<: 1\n", "must be an object");
        refuses("a:\n\tb: 1\n", "line 2");
        refuses("a: [1\n", "line");
        refuses("a: 1\n---\nb: 1\n", "another document");
    }

    #[test]
    fn depth_and_expansion_are_bounded() {
        refuses(&"[".repeat(100_000), "nested deeper than 120");
        refuses(&"- ".repeat(100_000), "nested deeper than 120");
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let alias = format!("*a{}", level - 1);
            bomb.extend([format!(
                "a{level}: &a{level} [{}]\n",
                [alias.as_str(); 10].join(", ")
            )]);
        }
        refuses(&bomb, "expand to too much");
        let mut tower = format!("a0: &a0 {}{}\n", "[".repeat(60), "]".repeat(60));
        for level in 1..3 {
            tower.extend([format!(
                "a{level}: &a{level} {}*a{}{}\n",
                "[".repeat(40),
                level - 1,
                "]".repeat(40)
            )]);
        }
        refuses(&tower, "nested deeper than 120");
    }
}
