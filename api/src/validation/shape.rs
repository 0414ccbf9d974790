//! Reading raw JSON field by field: what is absent, `null`, of the wrong type.

use serde_json::{Map, Value};

use super::{Problems, Stage};

/// A field of an object, with `null` read as absent.
pub(crate) fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// What JSON calls the type of a value.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong_type(problems: &mut Problems, stage: Stage, path: &str, value: &Value, wanted: &str) {
    // What stands in an environment, or in a patch of one, may be a secret and is never shown.
    let secret = path.contains(".env[") || path.contains("atches[");
    let shown = if secret {
        super::NOT_SHOWN.to_owned()
    } else {
        super::shown(value)
    };
    let detail = format!("must be {wanted}, not {}", type_name(value));
    problems.push(stage, path, super::Fault::Invalid(shown), detail);
}

/// An object, or a problem. Absent is `None` without one.
pub(crate) fn object<'a>(
    problems: &mut Problems,
    stage: Stage,
    path: &str,
    value: Option<&'a Value>,
) -> Option<&'a Map<String, Value>> {
    match value? {
        Value::Object(map) => Some(map),
        other => {
            wrong_type(problems, stage, path, other, "an object");
            None
        }
    }
}

/// A list, or a problem.
pub(crate) fn list<'a>(
    problems: &mut Problems,
    stage: Stage,
    path: &str,
    value: Option<&'a Value>,
) -> Option<&'a [Value]> {
    match value? {
        Value::Array(items) => Some(items),
        other => {
            wrong_type(problems, stage, path, other, "a list");
            None
        }
    }
}

/// A string, or a problem.
pub(crate) fn string<'a>(
    problems: &mut Problems,
    stage: Stage,
    path: &str,
    value: Option<&'a Value>,
) -> Option<&'a str> {
    match value? {
        Value::String(text) => Some(text),
        other => {
            wrong_type(problems, stage, path, other, "a string");
            None
        }
    }
}

/// A boolean, or a problem.
pub(crate) fn boolean(
    problems: &mut Problems,
    stage: Stage,
    path: &str,
    value: Option<&Value>,
) -> Option<bool> {
    match value? {
        Value::Bool(flag) => Some(*flag),
        other => {
            wrong_type(problems, stage, path, other, "true or false");
            None
        }
    }
}

/// A whole number in `least..=most`, or a problem. `2.0` is whole, as it is for the API server.
pub(crate) fn integer(
    problems: &mut Problems,
    stage: Stage,
    path: &str,
    value: Option<&Value>,
    least: i64,
    most: i64,
) -> Option<i64> {
    let value = value?;
    let Some(number) = whole(value) else {
        wrong_type(problems, stage, path, value, "a whole number");
        return None;
    };
    if number < least {
        problems.invalid(stage, path, value, format!("must be at least {least}"));
        return None;
    }
    if number > most {
        problems.invalid(stage, path, value, format!("must be at most {most}"));
        return None;
    }
    Some(number)
}

/// The whole number that a JSON number stands for.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    let number = value.as_number()?;
    if let Some(whole) = number.as_i64() {
        return Some(whole);
    }
    if let Some(large) = number.as_u64() {
        // Beyond i64: too large for every field of ours, and so out of range below.
        return i64::try_from(large).ok().or(Some(i64::MAX));
    }
    let float = number.as_f64()?;
    // 2^53: beyond it a float no longer stands for one whole number.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded by the check before it"
    )]
    (float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0).then_some(float as i64)
}
