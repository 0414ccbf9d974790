//! The arithmetic of a pool's four numbers, and their validation.
//!
//! `bufferMin..=bufferMax` bounds the idle pods, `poolMin..=poolMax` all pods. The hard rules are
//! `0 <= bufferMin <= bufferMax` and `0 <= poolMin <= poolMax`; nothing ties the two pairs together,
//! since upstream's samples use tuples such as buffer 1..3 with pool 5..10, and 0..0 with 2..10.
//!
//! Pure: numbers in, numbers out.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use crate::v1alpha1::CapacitySpec;
use crate::validation::{Problems, Stage, shape};

/// Share of pods that may be not ready at once where a strategy names none, in percent (upstream's).
pub const DEFAULT_MAX_UNAVAILABLE_PERCENT: u8 = 25;

/// How many pods may be not ready at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxUnavailable {
    /// So many pods, at least 1.
    Pods(u32),
    /// A share, 1 to 100 percent.
    Percent(u8),
}

impl Default for MaxUnavailable {
    fn default() -> Self {
        Self::Percent(DEFAULT_MAX_UNAVAILABLE_PERCENT)
    }
}

impl MaxUnavailable {
    /// Reads what a strategy holds; `None` for what is not a positive number nor `1%` to `100%`.
    pub fn parse(value: &IntOrString) -> Option<Self> {
        match value {
            IntOrString::Int(number) => u32::try_from(*number)
                .ok()
                .filter(|number| *number > 0)
                .map(Self::Pods),
            IntOrString::String(text) => {
                let digits = text.strip_suffix('%')?;
                // No sign, no leading zero: what the CRD's pattern accepts, no more.
                if !digits.bytes().all(|byte| byte.is_ascii_digit()) || digits.starts_with('0') {
                    return None;
                }
                digits
                    .parse()
                    .ok()
                    .filter(|percent| (1..=100).contains(percent))
                    .map(Self::Percent)
            }
        }
    }

    /// In pods, of `of` pods: rounded up, never below 1, as upstream does.
    pub fn resolve(self, of: u32) -> u32 {
        match self {
            Self::Pods(pods) => pods.max(1),
            Self::Percent(percent) => {
                let pods = (u64::from(of) * u64::from(percent)).div_ceil(100);
                u32::try_from(pods).unwrap_or(u32::MAX).max(1)
            }
        }
    }
}

/// What a pool holds, in pods. Every pod is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Held by sandboxes.
    pub allocated: u32,
    /// Idle and ready, or on the way to be; failed ones are not counted here.
    pub idle: u32,
    /// Being deleted. They still take room.
    pub terminating: u32,
    /// Pods that waiting sandboxes ask for.
    pub waiting: u32,
}

/// How far a pool is from where its four numbers want it, in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing to do.
    None,
    /// Create so many.
    Create(u32),
    /// Delete so many idle ones.
    DeleteIdle(u32),
}

/// What to do next, given what the pool holds.
///
/// Idle pods on the way count as idle, so slow starts do not make it grow past `bufferMax`; waiting
/// sandboxes raise the wanted number by what they ask for; terminating pods count against `poolMax`;
/// allocated pods are never deleted. Applied to its own result it is [`Change::None`].
pub fn change(capacity: CapacitySpec, census: Census) -> Change {
    let number = |value: i32| u32::try_from(value).unwrap_or(0);
    let (buffer_min, buffer_max) = (number(capacity.buffer_min), number(capacity.buffer_max));
    let (pool_min, pool_max) = (number(capacity.pool_min), number(capacity.pool_max));
    let Census {
        allocated,
        idle,
        terminating,
        waiting,
    } = census;

    // Idle pods that the waiting will take at once are not a buffer for those who come next.
    let spare = idle.saturating_sub(waiting);
    let live = allocated.saturating_add(idle);
    let wanted_spare = spare.clamp(buffer_min, buffer_max.max(buffer_min));
    let wanted = allocated
        .saturating_add(waiting)
        .saturating_add(wanted_spare)
        .max(pool_min)
        .min(pool_max.max(allocated));

    if wanted > live {
        let room = pool_max.saturating_sub(live.saturating_add(terminating));
        match (wanted - live).min(room) {
            0 => Change::None,
            create => Change::Create(create),
        }
    } else {
        match (live - wanted).min(idle) {
            0 => Change::None,
            delete => Change::DeleteIdle(delete),
        }
    }
}

/// Checks the four numbers of a raw `capacitySpec`.
pub(crate) fn check(problems: &mut Problems, path: &str, numbers: &Map<String, Value>) {
    let mut read = |name: &str| {
        let path = format!("{path}.{name}");
        let value = shape::field(numbers, name);
        if value.is_none() {
            problems.required(
                Stage::Schema,
                path.clone(),
                "must be a number of pods, 0 or more",
            );
        }
        shape::integer(
            problems,
            Stage::Schema,
            &path,
            value,
            0,
            i64::from(i32::MAX),
        )
    };
    let (buffer_max, buffer_min) = (read("bufferMax"), read("bufferMin"));
    let (pool_max, pool_min) = (read("poolMax"), read("poolMin"));
    for (least_name, least, most_name, most) in [
        ("bufferMin", buffer_min, "bufferMax", buffer_max),
        ("poolMin", pool_min, "poolMax", pool_max),
    ] {
        let (Some(least), Some(most)) = (least, most) else {
            continue;
        };
        if least > most {
            problems.invalid(
                Stage::Schema,
                format!("{path}.{least_name}"),
                &json!(least),
                format!("must not be greater than {most_name} ({most}); lower {least_name} or raise {most_name}"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(buffer_min: i32, buffer_max: i32, pool_min: i32, pool_max: i32) -> CapacitySpec {
        CapacitySpec {
            buffer_max,
            buffer_min,
            pool_max,
            pool_min,
        }
    }

    #[test]
    fn percentages_round_up_and_never_reach_zero() {
        let parse = |text: &str| MaxUnavailable::parse(&IntOrString::String(text.to_owned()));
        assert_eq!(parse("25%").map(|share| share.resolve(10)), Some(3));
        assert_eq!(parse("1%").map(|share| share.resolve(0)), Some(1));
        for wrong in ["", "%", "0%", "01%", "101%", "+5%", "5", "5 %", "-1%"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(MaxUnavailable::parse(&IntOrString::Int(0)), None);
        assert_eq!(
            MaxUnavailable::parse(&IntOrString::Int(7)).map(|pods| pods.resolve(1)),
            Some(7)
        );
    }

    #[test]
    fn an_empty_pool_is_filled_to_its_minimum_and_a_full_one_trimmed() {
        let capacity = spec(2, 10, 5, 20);
        assert_eq!(change(capacity, Census::default()), Change::Create(5));
        assert_eq!(
            change(
                capacity,
                Census {
                    idle: 15,
                    ..Census::default()
                }
            ),
            Change::DeleteIdle(5)
        );
        assert_eq!(
            change(
                capacity,
                Census {
                    allocated: 20,
                    waiting: 3,
                    ..Census::default()
                }
            ),
            Change::None
        );
    }

    proptest! {
        /// The bounds hold whatever the pool holds, and the result needs no second step.
        #[test]
        fn bounds_hold_and_a_second_step_is_empty(
            (buffer_min, buffer_more, pool_min, pool_more) in (0..20, 0..20, 0..20, 0..40),
            (allocated, idle, terminating, waiting) in (0u32..40, 0u32..40, 0u32..10, 0u32..40),
        ) {
            let capacity = spec(buffer_min, buffer_min + buffer_more, pool_min, pool_min + pool_more);
            let census = Census { allocated, idle, terminating, waiting };
            let after = match change(capacity, census) {
                Change::None => census,
                Change::Create(create) => {
                    prop_assert!(allocated + idle + terminating + create <= u32::try_from(capacity.pool_max).unwrap());
                    Census { idle: idle + create, ..census }
                }
                Change::DeleteIdle(delete) => {
                    prop_assert!(delete <= idle);
                    // Deleted pods terminate first; then they are gone.
                    Census { idle: idle - delete, ..census }
                }
            };
            let second = change(capacity, after);
            prop_assert_eq!(second, Change::None);
        }
    }
}
