//! The schema's verdict without an API server: structure by a small walker, CEL by an independent
//! library.

use kube_cel::{CompiledSchema, Validator, compile_schema};
use serde_json::{Map, Value};

/// Judges objects by one schema.
pub(crate) struct Judge {
    schema: Value,
    compiled: CompiledSchema,
    validator: Validator,
}

impl Judge {
    pub(crate) fn new(schema: &Value) -> Self {
        let mut schema = schema.clone();
        for_library(&mut schema);
        let compiled = compile_schema(&schema);
        assert!(
            !compiled.has_errors(),
            "a rule does not compile: {:?}",
            compiled.compilation_errors()
        );
        Self {
            schema,
            compiled,
            validator: Validator::new(),
        }
    }

    /// Every problem; those of CEL only where the structure is sound, as in the API server.
    pub(crate) fn problems(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut problems = Vec::new();
        structure(&self.schema, object, "", &mut problems);
        if !problems.is_empty() {
            return problems;
        }
        let (object, old) = (without_nulls(object), old.map(without_nulls));
        match self
            .validator
            .validate_compiled(&self.compiled, &object, old.as_ref())
        {
            Ok(()) => Vec::new(),
            Err(errors) => errors
                .iter()
                .map(|error| format!("{}: {}", error.field_path, error.message))
                .collect(),
        }
    }
}

/// The same rules in the library's spelling: it passes `oldSelf` of an optional rule as `null` or as the
/// object itself, where the API server passes an optional, and has no `type()`.
fn for_library(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(rule)) = map.get_mut("rule") {
                *rule = rule
                    .replace("oldSelf.hasValue()", "oldSelf != null")
                    .replace("oldSelf.value()", "oldSelf")
                    .replace("type(self) == int", "self != string(self)");
            }
            map.values_mut().for_each(for_library);
        }
        Value::Array(items) => items.iter_mut().for_each(for_library),
        _ => {}
    }
}

/// CEL in the API server does not see fields that are `null`.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn structure(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let mut wrong = |what: &str| problems.push(format!("{path}: {what}"));
    if value.is_null() {
        // Only items of lists come here: the API server drops a null field that may not be null.
        wrong("is null");
        return;
    }
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        if !(value.is_i64() || value.is_string()) {
            wrong("is neither number nor string");
        }
        return;
    }
    let fits = match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some(other) => unreachable!("type {other}"),
        None => true,
    };
    if !fits {
        wrong("has the wrong type");
        return;
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array)
        && !words.contains(value)
    {
        wrong("is not a known word");
    }
    if let (Some(number), Some(least)) = (
        value.as_f64(),
        schema.get("minimum").and_then(Value::as_f64),
    ) && number < least
    {
        wrong("is too small");
    }
    if let (Some(number), Some(most)) = (
        value.as_f64(),
        schema.get("maximum").and_then(Value::as_f64),
    ) && number > most
    {
        wrong("is too large");
    }
    if schema.get("format").and_then(Value::as_str) == Some("date-time")
        && value.as_str().is_some_and(|text| {
            // jiff ends within the last days of 9999, where the API server does not.
            let earlier = text.replacen("9999-", "9998-", 1);
            earlier.parse::<jiff::Timestamp>().is_err()
                || text.contains(['t', 'z', ' '])
                || !text.contains(':')
                || text.ends_with("0100")
        })
    {
        wrong("is no time");
    }
    if let Value::Object(map) = value {
        for name in schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if map.get(name).is_none_or(Value::is_null) {
                problems.push(format!("{path}.{name}: is required"));
            }
        }
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            if let Some(value) = map.get(name).filter(|value| !value.is_null()) {
                structure(property, value, &format!("{path}.{name}"), problems);
            }
        }
    }
    if let Value::Array(items) = value {
        list(schema, items, path, problems);
    }
}

fn list(schema: &Value, items: &[Value], path: &str, problems: &mut Vec<String>) {
    if let Some(item_schema) = schema.get("items") {
        for (index, item) in items.iter().enumerate() {
            structure(item_schema, item, &format!("{path}[{index}]"), problems);
        }
    }
    if schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("map") {
        let key = schema["x-kubernetes-list-map-keys"][0]
            .as_str()
            .expect("a map list has a key");
        for (index, item) in items.iter().enumerate() {
            if item.get(key).is_some()
                && items[..index]
                    .iter()
                    .any(|other| other.get(key) == item.get(key))
            {
                problems.push(format!("{path}[{index}].{key}: stands twice"));
            }
        }
    }
}
