//! Paths as people write them: `spec.containers[task-executor].env[NAME].value`.
//!
//! A key in brackets picks the item of a list by what tells its items apart (name, port number, the
//! string itself), or the entry of a map whose keys hold dots.

use std::fmt;

use serde_json::Value;

/// One step of a [`Path`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// A field of an object.
    Field(&'a str),
    /// An item of a list, or an entry of a map, by its key.
    Key(&'a str),
}

impl<'a> Segment<'a> {
    /// The name or the key.
    pub fn text(self) -> &'a str {
        let (Self::Field(text) | Self::Key(text)) = self;
        text
    }
}

/// A place in a JSON document that stays the same when lists are reordered.
///
/// Kept as its text, which is what records are looked up by, and taken apart on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The document itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// A field of what this path names.
    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        let mut text = String::with_capacity(self.0.len() + name.len() + 1);
        text.push_str(&self.0);
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(name);
        Self(text)
    }

    /// An item of the list, or an entry of the map, that this path names.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let mut text = String::with_capacity(self.0.len() + key.len() + 2);
        text.push_str(&self.0);
        text.push('[');
        text.push_str(key);
        text.push(']');
        Self(text)
    }

    /// Reads what [`fmt::Display`] writes; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        while !rest.is_empty() {
            rest = next_segment(rest)?.1;
        }
        Some(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The steps, from the document on.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let mut rest = self.0.as_str();
        std::iter::from_fn(move || {
            let (segment, after) = next_segment(rest)?;
            rest = after;
            Some(segment)
        })
    }

    /// The last step.
    pub fn last(&self) -> Option<Segment<'_>> {
        self.segments().last()
    }

    /// The path without its last step.
    pub fn parent(&self) -> Option<Self> {
        let length = match self.last()? {
            Segment::Key(key) => key.len() + 2,
            Segment::Field(name) => (name.len() + 1).min(self.0.len()),
        };
        Some(Self(self.0[..self.0.len() - length].to_owned()))
    }

    /// What stands there, if anything does.
    pub fn get<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        let mut value = document;
        let mut list = "";
        for segment in self.segments() {
            value = match (value, segment) {
                (Value::Object(map), segment) => map.get(segment.text())?,
                (Value::Array(items), Segment::Key(key)) => {
                    items.get(index_of(items, list, key)?)?
                }
                _ => return None,
            };
            if let Segment::Field(name) = segment {
                list = name;
            }
        }
        Some(value)
    }

    /// The JSON pointer (RFC 6901) of what stands there now.
    pub fn pointer(&self, document: &Value) -> Option<String> {
        let mut pointer = String::with_capacity(self.0.len() + 4);
        let mut value = document;
        let mut list = "";
        for segment in self.segments() {
            match (value, segment) {
                (Value::Array(items), Segment::Key(key)) => {
                    let index = index_of(items, list, key)?;
                    push_token(&mut pointer, &index.to_string());
                    value = &items[index];
                }
                (Value::Object(map), segment) => {
                    push_token(&mut pointer, segment.text());
                    value = map.get(segment.text())?;
                }
                _ => return None,
            }
            if let Segment::Field(name) = segment {
                list = name;
            }
        }
        Some(pointer)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first step of a text and what follows it.
fn next_segment(text: &str) -> Option<(Segment<'_>, &str)> {
    if let Some(inside) = text.strip_prefix('[') {
        let end = inside.find(']')?;
        return Some((Segment::Key(&inside[..end]), &inside[end + 1..]));
    }
    let field = text.strip_prefix('.').unwrap_or(text);
    let end = field
        .bytes()
        .position(|byte| byte == b'.' || byte == b'[')
        .unwrap_or(field.len());
    (end > 0).then(|| (Segment::Field(&field[..end]), &field[end..]))
}

/// The item of the list named `list` that a key picks: of ports by number, of strings by value, of
/// everything else by name. The first one, should there be more.
pub(super) fn index_of(items: &[Value], list: &str, key: &str) -> Option<usize> {
    items.iter().position(|item| match item {
        Value::String(text) => text == key,
        Value::Object(map) if list == "ports" => map
            .get("containerPort")
            .and_then(Value::as_u64)
            .is_some_and(|port| key.parse() == Ok(port)),
        Value::Object(map) => map.get("name").and_then(Value::as_str) == Some(key),
        _ => false,
    })
}

/// Appends one token to a JSON pointer, escaped.
pub(super) fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    for character in token.chars() {
        match character {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            other => pointer.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_reads_back_and_finds_its_place() {
        let text = "spec.containers[task-executor].ports[5758].name";
        let path = Path::parse(text).unwrap();
        assert_eq!(path.to_string(), text);
        let document = json!({"spec": {"containers": [
            {"name": "main"},
            {"name": "task-executor", "ports": [{"containerPort": 5758, "name": "x"}]},
        ]}});
        assert_eq!(path.get(&document), Some(&json!("x")));
        assert_eq!(
            path.pointer(&document).as_deref(),
            Some("/spec/containers/1/ports/0/name")
        );
    }

    #[test]
    fn keys_with_dots_and_slashes_are_escaped_in_pointers() {
        let path = Path::root().field("annotations").key("a.b/c~d");
        assert_eq!(path.to_string(), "annotations[a.b/c~d]");
        assert_eq!(Path::parse("annotations[a.b/c~d]"), Some(path.clone()));
        let document = json!({"annotations": {"a.b/c~d": 1}});
        assert_eq!(
            path.pointer(&document).as_deref(),
            Some("/annotations/a.b~1c~0d")
        );
    }

    #[test]
    fn nonsense_is_no_path() {
        for text in ["[", "a[b", "..", "a..b", "."] {
            assert_eq!(Path::parse(text), None, "{text}");
        }
    }
}
