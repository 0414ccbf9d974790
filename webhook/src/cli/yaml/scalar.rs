//! What a plain scalar stands for, by the rules of go-yaml 2 and `sigs.k8s.io/yaml`, which `kubectl`
//! uses.

use serde_json::{Number, Value};

/// A float whose JSON would not be JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotFinite;

/// Reads a plain scalar without a tag.
pub(super) fn resolve(text: &str) -> Result<Value, NotFinite> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Ok(Value::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Ok(Value::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF"
        | "-.inf" | "-.Inf" | "-.INF" => return Err(NotFinite),
        _ => {}
    }
    Ok(number(text).map_or_else(|| Value::from(text), Value::Number))
}

/// The number that a plain scalar stands for, if it does.
fn number(text: &str) -> Option<Number> {
    match text.as_bytes().first()? {
        // Without a digit before the point only a decimal float is tried, underscores and all.
        b'.' => float(text),
        b'0'..=b'9' | b'+' | b'-' => {
            let plain = text.replace('_', "");
            whole(&plain).or_else(|| float(&plain))
        }
        _ => None,
    }
}

/// A whole number: decimal, `0x`, `0b`, `0o`, or octal by a leading zero.
fn whole(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    // The standard library would take another sign here.
    if digits.is_empty()
        || !digits
            .bytes()
            .all(|digit| char::from(digit).is_digit(radix))
    {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        Some(Number::from(0_i64.checked_sub_unsigned(magnitude)?))
    } else if text.starts_with('+') {
        // With a sign it is read as a signed number or not at all.
        i64::try_from(magnitude).ok().map(Number::from)
    } else {
        Some(Number::from(magnitude))
    }
}

/// A decimal float. One that is whole becomes a whole number, because that is how it is printed as
/// JSON on its way to the API server.
fn float(text: &str) -> Option<Number> {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = |rest: &mut &str| {
        let count = rest.bytes().take_while(u8::is_ascii_digit).count();
        *rest = &rest[count..];
        count
    };
    let before = digits(&mut rest);
    let mut after = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = fraction;
        after = digits(&mut rest);
    }
    if before + after == 0 {
        return None;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        rest = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if digits(&mut rest) == 0 {
            return None;
        }
    }
    if !rest.is_empty() {
        return None;
    }
    // Too large for a float: then it is a text.
    let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite())?;
    json_number(value)
}

/// The JSON of a float.
pub(super) fn json_number(value: f64) -> Option<Number> {
    // 2^63: the bounds of i64, both exact as floats.
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole and bounded by the check before it"
    )]
    if value.fract() == 0.0 && (-BOUND..BOUND).contains(&value) {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

/// A plain scalar that is a key: JSON has only texts as keys.
pub(super) fn key(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => {
            let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
                return Some(number.to_string());
            };
            // Keys are printed with the precision of 32 bits; beyond this range with an exponent
            // whose form no two libraries agree on.
            #[expect(clippy::cast_possible_truncation, reason = "this loss is the rule")]
            (1e-4..1e6)
                .contains(&float.abs())
                .then(|| (float as f32).to_string())
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether a reader of YAML, of whichever version, might take this text for something else than a
/// text if it stood without quotes.
pub(super) fn ambiguous(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    if !matches!(resolve(text), Ok(Value::String(_))) {
        return true;
    }
    if WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return true;
    }
    // Dates, times, numbers with base 60, versions: everything made of what numbers are made of.
    let first =
        text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.'));
    first
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || b"_:.,+- oOxXtTzZ".contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_are_read_as_kubectl_reads_them() {
        for (text, expected) in [
            ("on", json!(true)),
            ("No", json!(false)),
            ("nO", json!("nO")),
            ("~", json!(null)),
            ("", json!(null)),
            ("0777", json!(511)),
            ("08", json!(8)),
            ("0o17", json!(15)),
            ("0x10", json!(16)),
            ("-0x10", json!(-16)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("+7", json!(7)),
            ("1e3", json!(1000)),
            ("1.0", json!(1)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1.", json!(1)),
            ("1:30", json!("1:30")),
            ("2024-01-01", json!("2024-01-01")),
            (
                "18446744073709551615",
                json!(18_446_744_073_709_551_615_u64),
            ),
            ("99999999999999999999", json!(1e20)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1e400", json!("1e400")),
            ("100m", json!("100m")),
            ("1e", json!("1e")),
            ("+-1", json!("+-1")),
            ("-", json!("-")),
            (".", json!(".")),
            ("0x", json!("0x")),
            ("=", json!("=")),
        ] {
            assert_eq!(resolve(text), Ok(expected), "{text}");
        }
        assert_eq!(resolve(".inf"), Err(NotFinite));
    }

    #[test]
    fn keys_become_texts() {
        assert_eq!(key(&json!(8080)).as_deref(), Some("8080"));
        assert_eq!(key(&json!(true)).as_deref(), Some("true"));
        assert_eq!(key(&json!(1.5)).as_deref(), Some("1.5"));
        assert_eq!(key(&json!(null)), None);
    }

    #[test]
    fn texts_that_look_like_something_else_are_ambiguous() {
        for text in [
            "yes",
            "ON",
            "oN",
            "null",
            "1_000",
            "0x10",
            "2024-01-01",
            "1:30",
            "1.2.3",
            "-1",
            "1e3",
            "12e",
        ] {
            assert!(ambiguous(text), "{text}");
        }
        for text in [
            "100m",
            "128Mi",
            "-c",
            "--flag",
            "ubuntu:22.04",
            "IfNotPresent",
            "v1",
        ] {
            assert!(!ambiguous(text), "{text}");
        }
    }
}
