//! JSON objects one after the other, with keys that stand twice refused.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> DeserializeSeed<'de> for StrictVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "key {key:?} stands twice in the same object"
                )));
            }
            let value = access.next_value_seed(Self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Whether a text is taken for JSON at first: as `kubectl` does, by its first character.
pub(super) fn looks_like(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// Reads all objects of a text, up to the first that cannot be read.
pub(super) fn read(text: &str) -> (Vec<Value>, Option<serde_json::Error>) {
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Strict>() {
        match value {
            Ok(Strict(value)) => values.push(value),
            Err(error) => return (values, Some(error)),
        }
    }
    (values, None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_follow_each_other() {
        let (values, error) = read("{\"a\": [1, 1.5, -2, null, true, \"x\"]}\n{\"b\": {}}\n");
        assert_eq!(
            values,
            [
                json!({"a": [1, 1.5, -2, null, true, "x"]}),
                json!({"b": {}})
            ]
        );
        assert!(error.is_none());
    }

    #[test]
    fn a_key_that_stands_twice_and_broken_text_are_told_with_their_place() {
        let (_, error) = read("{\"a\": {\"b\": 1,\n \"b\": 2}}");
        let error = error.unwrap();
        assert!(
            error.is_data() && error.to_string().contains("\"b\" stands twice"),
            "{error}"
        );
        assert_eq!(error.line(), 2);
        let (values, error) = read("{} {\"a\": ");
        assert_eq!(values.len(), 1);
        assert!(error.unwrap().is_eof());
        let (_, error) = read(&"{\"a\":".repeat(100_000));
        assert!(error.unwrap().is_syntax());
    }
}
