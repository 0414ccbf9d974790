//! Paths as people write them: `spec.containers[task-executor].env[NAME].value`.
//!
//! A key in brackets picks the item of a list by what tells its items apart (name, port number, the
//! string itself), or the entry of a map whose keys hold dots.

use std::fmt;

use serde_json::Value;

/// One step of a [`Path`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// A field of an object.
    Field(String),
    /// An item of a list, or an entry of a map, by its key.
    Key(String),
}

/// A place in a JSON document that stays the same when lists are reordered.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<Segment>);

impl Path {
    /// The document itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// A field of what this path names.
    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        self.with(Segment::Field(name.to_owned()))
    }

    /// An item of the list, or an entry of the map, that this path names.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(Segment::Key(key.to_owned()))
    }

    fn with(&self, segment: Segment) -> Self {
        let mut segments = Vec::with_capacity(self.0.len() + 1);
        segments.extend_from_slice(&self.0);
        segments.push(segment);
        Self(segments)
    }

    /// Reads what [`fmt::Display`] writes; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut segments = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let end = inside.find(']')?;
                segments.push(Segment::Key(inside[..end].to_owned()));
                rest = &inside[end + 1..];
            } else {
                let field = rest.strip_prefix('.').unwrap_or(rest);
                let end = field.find(['.', '[']).unwrap_or(field.len());
                if end == 0 {
                    return None;
                }
                segments.push(Segment::Field(field[..end].to_owned()));
                rest = &field[end..];
            }
        }
        Some(Self(segments))
    }

    /// The steps.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// The path without its last step.
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(Self(rest.to_vec()))
    }

    /// What stands there, if anything does.
    pub fn get<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        let mut list = "";
        self.0.iter().try_fold(document, |value, segment| {
            let next = match (value, segment) {
                (Value::Object(map), Segment::Field(name) | Segment::Key(name)) => map.get(name),
                (Value::Array(items), Segment::Key(key)) => items.get(index_of(items, list, key)?),
                _ => None,
            };
            if let Segment::Field(name) = segment {
                list = name;
            }
            next
        })
    }

    /// The JSON pointer (RFC 6901) of what stands there now.
    pub fn pointer(&self, document: &Value) -> Option<String> {
        let mut pointer = String::new();
        let mut value = document;
        let mut list = "";
        for segment in &self.0 {
            match (value, segment) {
                (Value::Array(items), Segment::Key(key)) => {
                    let index = index_of(items, list, key)?;
                    push_token(&mut pointer, &index.to_string());
                    value = &items[index];
                }
                (Value::Object(map), Segment::Field(name) | Segment::Key(name)) => {
                    push_token(&mut pointer, name);
                    value = map.get(name)?;
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
        for (index, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Field(name) if index == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
                Segment::Key(key) => write!(f, "[{key}]")?,
            }
        }
        Ok(())
    }
}

/// The item of the list named `list` that a key picks: of ports by number, of strings by value, of
/// everything else by name. The first one, should there be more.
pub(super) fn index_of(items: &[Value], list: &str, key: &str) -> Option<usize> {
    items.iter().position(|item| match item {
        Value::String(text) => text == key,
        Value::Object(map) if list == "ports" => {
            map.get("containerPort").and_then(Value::as_u64).is_some_and(|port| key.parse() == Ok(port))
        }
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
        assert_eq!(path.pointer(&document).as_deref(), Some("/spec/containers/1/ports/0/name"));
    }

    #[test]
    fn keys_with_dots_and_slashes_are_escaped_in_pointers() {
        let path = Path::root().field("annotations").key("a.b/c~d");
        assert_eq!(path.to_string(), "annotations[a.b/c~d]");
        assert_eq!(Path::parse("annotations[a.b/c~d]"), Some(path.clone()));
        let document = json!({"annotations": {"a.b/c~d": 1}});
        assert_eq!(path.pointer(&document).as_deref(), Some("/annotations/a.b~1c~0d"));
    }

    #[test]
    fn nonsense_is_no_path() {
        for text in ["[", "a[b", "..", "a..b", "."] {
            assert_eq!(Path::parse(text), None, "{text}");
        }
    }
}
