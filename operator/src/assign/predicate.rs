//! Whether a pool may be chosen, and why not. Pure.

use std::collections::BTreeMap;

use opensandbox_api::v1alpha1::{BatchSandboxSpec, PoolSpec};
use serde_json::Value;

use super::profile::Predicate;
use super::template::{Template, texts};
use crate::view::{PoolView, SandboxView};

/// Both sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub(super) sandbox: &'a SandboxView,
    pub(super) sandbox_spec: &'a BatchSandboxSpec,
    pub(super) pool: &'a PoolView,
    pub(super) pool_spec: &'a PoolSpec,
    /// The sandbox's and the pool's, which most predicates compare; where a sandbox has none, there is
    /// nothing to compare.
    pub(super) templates: Option<(Template<'a>, Template<'a>)>,
}

impl Pair<'_> {
    /// Whether the pool fulfils it; if not, why.
    pub(super) fn check(self, predicate: &Predicate) -> Result<(), String> {
        match predicate {
            Predicate::Capacity => self.capacity(),
            Predicate::Image => self.image(),
            Predicate::Resource => self.resource(),
            Predicate::NodeSelector => self.node_selector(),
            Predicate::LabelSelector(keys) => self.labels(keys),
        }
    }

    fn capacity(self) -> Result<(), String> {
        let most = self.pool_spec.capacity_spec.pool_max;
        let allocated = self.pool.status.allocated;
        let left = i64::from(most) - i64::from(allocated);
        let wanted = i64::from(self.sandbox_spec.replicas);
        if left >= wanted {
            return Ok(());
        }
        Err(format!(
            "{wanted} pods are wanted, {allocated} of at most {most} are allocated"
        ))
    }

    fn image(self) -> Result<(), String> {
        let Some((sandbox, pool)) = self.templates else {
            return Ok(());
        };
        if sandbox.images().is_disjoint(&pool.images()) {
            return Err("no container image in common".to_owned());
        }
        Ok(())
    }

    fn resource(self) -> Result<(), String> {
        let Some((sandbox, pool)) = self.templates else {
            return Ok(());
        };
        let wanted = sandbox
            .requests()
            .map_err(|path| format!("the BatchSandbox's {path} is no quantity"))?;
        let given = pool
            .requests()
            .map_err(|path| format!("its {path} is no quantity"))?;
        for (name, quantity) in wanted {
            if given.get(name).copied().unwrap_or_default() < quantity {
                let name: String = name.chars().take(64).collect();
                return Err(format!("its pods request less {name}"));
            }
        }
        Ok(())
    }

    fn node_selector(self) -> Result<(), String> {
        let Some((sandbox, pool)) = self.templates else {
            return Ok(());
        };
        let mut labels = texts(self.pool.raw.pointer("/metadata/labels"));
        labels.extend(pool.node_selector());
        for (key, value) in sandbox.node_selector() {
            if labels.get(key) != Some(&value) {
                let key: String = key.chars().take(64).collect();
                return Err(format!("node selector {key} does not fit"));
            }
        }
        let terms = sandbox.affinity();
        if !terms.is_empty() && !terms.iter().any(|term| fits(term, &labels)) {
            return Err("required node affinity does not fit".to_owned());
        }
        Ok(())
    }

    fn labels(self, keys: &[String]) -> Result<(), String> {
        let labels = texts(self.pool.raw.pointer("/metadata/labels"));
        for key in keys {
            let wanted = self.sandbox.labels.get(key).map(String::as_str);
            let given = labels.get(key.as_str()).copied();
            if wanted.is_none() || wanted != given {
                let who = if wanted.is_none() {
                    "the BatchSandbox"
                } else {
                    "it"
                };
                let key: String = key.chars().take(64).collect();
                return Err(format!("{who} lacks the label {key}, or it differs"));
            }
        }
        Ok(())
    }
}

/// Whether all expressions of a term hold; one that cannot be read does not. `matchFields` are not looked at:
/// they name nodes, and a pool is none.
fn fits(term: &Value, labels: &BTreeMap<&str, &str>) -> bool {
    let expressions = term.get("matchExpressions").and_then(Value::as_array);
    expressions
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .all(|expression| holds(expression, labels))
}

fn holds(expression: &Value, labels: &BTreeMap<&str, &str>) -> bool {
    let text = |name: &str| expression.get(name).and_then(Value::as_str);
    let (Some(key), Some(operator)) = (text("key"), text("operator")) else {
        return false;
    };
    let value = labels.get(key).copied();
    let values = expression.get("values").and_then(Value::as_array);
    let mut values = values.into_iter().flatten().filter_map(Value::as_str);
    // Of several values the first counts, as upstream has it; the API server takes no more than one.
    let compare = |first: Option<&str>| {
        let value: i64 = value?.parse().ok()?;
        Some(value.cmp(&first?.parse().ok()?))
    };
    match operator {
        "In" => value.is_some_and(|value| values.any(|listed| listed == value)),
        "NotIn" => value.is_none_or(|value| values.all(|listed| listed != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(values.next()).is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compare(values.next()).is_some_and(std::cmp::Ordering::is_lt),
        _ => false,
    }
}
