//! Kubernetes quantities, such as `500m`, `1.5Gi` or `2e3`, exactly and without overflow. Pure.
//!
//! The grammar is that of `k8s.io/apimachinery/pkg/api/resource`: a sign, a decimal number, and either a
//! decimal suffix (`n u m k M G T P E`), a binary one (`Ki Mi Gi Ti Pi Ei`) or an exponent. What is finer
//! than a thousand-millionth is rounded away from zero and what is larger than 2^63 - 1 is that, as there.

use std::ops::AddAssign;

/// Longest text that is looked at; no canonical quantity is a third as long.
const TEXT: usize = 64;
/// Most significant digits: all that Kubernetes counts with, and times the largest suffix they fit 127 bits.
const DIGITS: usize = 20;
/// 10 to this power of the smallest part make one.
const SCALE: i32 = 9;
/// What larger ones are cut to.
const MOST: i128 = i64::MAX as i128 * 1_000_000_000;

/// A quantity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quantity(i128);

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0).clamp(-MOST, MOST);
    }
}

impl Quantity {
    /// Reads a quantity; `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > TEXT {
            return None;
        }
        let (negative, text) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = text
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || number.bytes().all(|byte| byte == b'.') {
            return None;
        }
        let (factor, exponent) = multiplier(suffix)?;
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        if digits.len() > DIGITS {
            return None;
        }
        let mantissa: i128 = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
        let places = i32::try_from(fraction.len()).ok()?;
        let size = scaled(mantissa, factor, exponent - places + SCALE);
        Some(Self(if negative { -size } else { size }))
    }
}

/// What a suffix multiplies by: a factor and a power of ten.
fn multiplier(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 0));
    match suffix {
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "" => Some((1, 0)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            // Further than any number with so many digits reaches.
            Some((1, exponent.clamp(-200, 200)))
        }
    }
}

/// `mantissa * factor * 10^exponent`, not below zero, rounded up, cut to [`MOST`].
fn scaled(mantissa: i128, factor: i128, exponent: i32) -> i128 {
    if mantissa == 0 {
        return 0;
    }
    // At most 10^20 times 2^60.
    let product = mantissa.saturating_mul(factor);
    match 10_i128.checked_pow(exponent.unsigned_abs()) {
        Some(power) if exponent >= 0 => product.saturating_mul(power).min(MOST),
        Some(power) => (product / power + i128::from(product % power != 0)).min(MOST),
        None if exponent >= 0 => MOST,
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn suffixes_mean_what_they_mean_in_kubernetes() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1k", "1000"),
            ("1Ki", "1024"),
            ("1.5Gi", "1610612736"),
            ("1E", "1000000000000000000"),
            ("1Ei", "1152921504606846976"),
            ("1e3", "1k"),
            ("1E3", "1k"),
            ("1E-3", "1m"),
            ("+2e+1", "20"),
            ("1000000n", "1m"),
            ("1u", "1000n"),
            ("-0", "0"),
            ("0.0000000001", "1n"),
            ("1e-200", "1n"),
            ("0e999", "0"),
            ("-1m", "-0.001"),
            ("99999999999999999999", "9223372036854775807"),
            ("1e200", "9223372036854775807"),
            ("100000Ei", "9223372036854775807"),
            ("1.00000000000000000000000000000000000Ei", "1Ei"),
            ("0.00000000000000000000000000000000001Ei", "1n"),
            ("99999999999999999999Ei", "9223372036854775807"),
        ] {
            assert_eq!(quantity(one), quantity(other), "{one} {other}");
        }
        assert!(quantity("1Gi") > quantity("1G"));
        assert!(quantity("999m") < quantity("1"));
        assert!(quantity("-1") < quantity("0"));
    }

    #[test]
    fn what_is_none_is_none() {
        let long = "1".repeat(1000);
        for text in [
            "",
            "-",
            ".",
            "1.2.3",
            "a",
            "1 ",
            " 1",
            "1K",
            "1mi",
            "1gi",
            "1e",
            "1e+",
            "1e1.5",
            "1ee1",
            "--1",
            "Gi",
            "1Gib",
            "0x1",
            "1_000",
            "1e99999999999",
            "é",
            "-é",
            &long,
        ] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,80}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn whole_numbers_are_ordered_as_they_are(one in any::<i32>(), other in any::<i32>()) {
            let of = |number: i32| quantity(&number.to_string());
            prop_assert_eq!(one.cmp(&other), of(one).cmp(&of(other)));
            let milli = |number: i32| quantity(&format!("{number}m"));
            prop_assert_eq!(one.cmp(&other), milli(one).cmp(&milli(other)));
        }

        #[test]
        fn sums_are_exact(parts in prop::collection::vec(0_u32..1_000_000, 0..20)) {
            let mut sum = Quantity::default();
            for part in &parts {
                sum += quantity(&format!("{part}m"));
            }
            let whole: u64 = parts.iter().map(|part| u64::from(*part)).sum();
            prop_assert_eq!(sum, quantity(&format!("{whole}m")));
        }
    }
}
