//! The revision of a pod template: a short hash by which a pod shows which template it was made from.
//!
//! In: the template as raw JSON. Out: 16 lower case hex digits, the form of upstream's
//! `sandbox.opensandbox.io/pool-revision`, which fits a label. Pure.
//!
//! The hash is over the raw JSON in a canonical form, not over a typed struct, so that it stays the
//! same when our types learn a new field. Equal, because Kubernetes reads them as equal:
//!
//! - another order of members, and `2.0` for `2`;
//! - a member that is `null` and one that is absent; a `null` or empty template;
//! - an absent `metadata` of the template, or of a volume claim template, and an empty one; the absent
//!   and the empty `resources` of a container or volume claim. These are what Go programs write for a
//!   field that nobody set, so that a Pool which upstream's server or a Go client has rewritten keeps
//!   its revision.
//!
//! Every other empty object or list counts, because it can mean something: an empty
//! `namespaceSelector` selects every namespace, an absent one only the pod's own. To replace idle pods
//! once too often is cheap; to miss a change is not. The order of list elements counts.
//!
//! Upstream hashes its own Go structs as Go's encoder writes them. That changes with every update of
//! the Kubernetes libraries and cannot be reproduced without them, so idle pods that upstream's
//! controller made are replaced once when a cluster switches over (as upstream itself does on such
//! updates).

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// Hash of a pod template: 16 lower case hex digits.
pub fn template_hash(template: &Value) -> String {
    let canonical = match canonical(template, Place::Template) {
        Value::Null => Value::Object(Map::new()),
        other => other,
    };
    let digest = Sha256::digest(canonical.to_string());
    let first = digest
        .iter()
        .take(8)
        .fold(0_u64, |first, byte| (first << 8) | u64::from(*byte));
    format!("{first:016x}")
}

/// Where in the template a value stands, as far as an empty object there means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The template, or a volume claim template.
    Template,
    /// The spec of either.
    Spec,
    /// A list of containers.
    Containers,
    /// A container.
    Container,
    /// Anything else.
    Other,
}

impl Place {
    /// The place of a member.
    fn member(self, name: &str) -> Self {
        match (self, name) {
            (Self::Template, "spec") => Self::Spec,
            (Self::Spec, "containers" | "initContainers" | "ephemeralContainers") => {
                Self::Containers
            }
            (_, "volumeClaimTemplate") => Self::Template,
            _ => Self::Other,
        }
    }

    /// The place of a list's elements.
    fn element(self) -> Self {
        match self {
            Self::Containers => Self::Container,
            _ => Self::Other,
        }
    }

    /// Whether an empty object under this name is what Go writes for a field that is not set.
    fn ignores_empty(self, name: &str) -> bool {
        matches!(
            (self, name),
            (Self::Template, "metadata") | (Self::Container | Self::Spec, "resources")
        )
    }
}

fn canonical(value: &Value, place: Place) -> Value {
    match value {
        Value::Object(members) => {
            let mut kept: Vec<(&String, Value)> = members
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name, canonical(value, place.member(name))))
                .filter(|(name, value)| {
                    !(place.ignores_empty(name) && value.as_object().is_some_and(Map::is_empty))
                })
                .collect();
            kept.sort_by_key(|(name, _)| *name);
            kept.into_iter()
                .map(|(name, value)| (name.clone(), value))
                .collect()
        }
        Value::Array(items) => items
            .iter()
            .map(|item| canonical(item, place.element()))
            .collect(),
        Value::Number(number) => Value::Number(whole(number).unwrap_or_else(|| number.clone())),
        scalar => scalar.clone(),
    }
}

/// The integer that a float stands for, if it stands for exactly one.
fn whole(number: &Number) -> Option<Number> {
    // 2^53: beyond it a float no longer stands for one whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = number.as_f64().filter(|_| number.is_f64())?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
    (float.fract() == 0.0 && float.abs() < EXACT).then(|| Number::from(float as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pool() -> Value {
        json!({"spec": {"containers": [{"name": "main", "image": "a:1"}]}})
    }

    #[test]
    fn is_sixteen_hex_digits_and_never_changes() {
        // Pods carry it: another value here would replace every idle pod of every cluster.
        assert_eq!(template_hash(&pool()), "6c0e0880489e6f1b");
    }

    #[test]
    fn what_kubernetes_reads_as_equal_has_one_hash() {
        for same in [
            json!({"spec": {"containers": [{"image": "a:1", "name": "main"}]}}),
            json!({"metadata": null, "spec": {"containers": [{"image": "a:1", "name": "main"}], "hostname": null}}),
            json!({"metadata": {}, "spec": {"containers": [{"image": "a:1", "name": "main", "resources": {}}]}}),
            json!({"metadata": {"creationTimestamp": null}, "spec": {"containers": [{"image": "a:1", "name": "main"}]}}),
        ] {
            assert_eq!(template_hash(&same), template_hash(&pool()), "{same}");
        }
        assert_eq!(template_hash(&Value::Null), template_hash(&json!({})));
        assert_eq!(
            template_hash(&json!({"a": 2.0})),
            template_hash(&json!({"a": 2}))
        );
    }

    #[test]
    fn what_may_mean_something_else_has_another_hash() {
        let base = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        for other in [
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}}),
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "env": []}]}}),
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "affinity": {}}}),
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "future": {"x": 1}}),
            json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {}}}]}}),
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, null]}}),
            json!({}),
        ] {
            assert_ne!(template_hash(&other), template_hash(&base), "{other}");
        }
        assert_ne!(
            template_hash(&json!({"a": 2.5})),
            template_hash(&json!({"a": 2}))
        );
        assert_ne!(
            template_hash(&json!({"a": "2"})),
            template_hash(&json!({"a": 2}))
        );
    }

    #[test]
    fn a_claim_that_a_go_program_rewrote_keeps_its_hash() {
        let claim = |metadata: Value, resources: Value| {
            json!({"spec": {"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {
                "metadata": metadata, "spec": {"accessModes": ["ReadWriteOnce"], "resources": resources},
            }}}]}})
        };
        assert_eq!(
            template_hash(&claim(json!({"creationTimestamp": null}), json!({}))),
            template_hash(&claim(Value::Null, Value::Null)),
        );
    }

    fn reversed(value: &Value) -> Value {
        match value {
            Value::Object(members) => members
                .iter()
                .rev()
                .map(|(name, value)| (name.clone(), reversed(value)))
                .collect(),
            Value::Array(items) => items.iter().map(reversed).collect(),
            scalar => scalar.clone(),
        }
    }

    fn with_nulls(value: &Value) -> Value {
        match value {
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| (name.clone(), with_nulls(value)))
                .chain([("unset".to_owned(), Value::Null)])
                .collect(),
            Value::Array(items) => items.iter().map(with_nulls).collect(),
            scalar => scalar.clone(),
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z ]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("metadata|spec|containers|resources|[a-c]", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn neither_order_nor_nulls_count(template in json()) {
            let hash = template_hash(&template);
            prop_assert!(hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
            prop_assert_eq!(template_hash(&reversed(&template)), hash.clone());
            prop_assert_eq!(template_hash(&with_nulls(&template)), hash);
        }
    }
}
