//! What is compared of pod templates, read from raw JSON that may be anything. Pure.

use std::collections::{BTreeMap, BTreeSet};

use opensandbox_api::labels::TASK_EXECUTOR;
use serde_json::Value;

use super::quantity::Quantity;

/// A pod template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template<'a>(&'a Value);

impl<'a> Template<'a> {
    /// A template, unless it is absent, `null` or no object.
    pub(super) fn new(template: Option<&'a Value>) -> Option<Self> {
        template.filter(|template| template.is_object()).map(Self)
    }

    /// Its containers, without the executor's: that one is added to some templates as they are stored
    /// and to others later, and nobody chooses a pool for it.
    fn containers(self) -> impl Iterator<Item = (usize, &'a Value)> {
        let containers = self.0.pointer("/spec/containers").and_then(Value::as_array);
        containers
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .enumerate()
            .filter(|(_, container)| {
                container.get("name").and_then(Value::as_str) != Some(TASK_EXECUTOR)
            })
    }

    /// The images of its containers.
    pub(super) fn images(self) -> BTreeSet<&'a str> {
        self.containers()
            .filter_map(|(_, container)| container.get("image")?.as_str())
            .filter(|image| !image.is_empty())
            .collect()
    }

    /// What its containers request together; where a container requests nothing of a resource that it has
    /// a limit for, Kubernetes takes the limit. The error is the path of what is no quantity.
    pub(super) fn requests(self) -> Result<BTreeMap<&'a str, Quantity>, String> {
        let mut sums = BTreeMap::new();
        for (index, container) in self.containers() {
            let mut own = BTreeMap::new();
            for kind in ["limits", "requests"] {
                let resources = container.get("resources").and_then(|all| all.get(kind));
                for (name, quantity) in resources.and_then(Value::as_object).into_iter().flatten() {
                    let parsed = match quantity {
                        Value::String(text) => Quantity::parse(text),
                        Value::Number(number) => Quantity::parse(&number.to_string()),
                        _ => None,
                    };
                    let parsed = parsed.ok_or_else(|| {
                        let name: String = name.chars().take(64).collect();
                        format!("spec.template.spec.containers[{index}].resources.{kind}.{name}")
                    })?;
                    own.insert(name.as_str(), parsed);
                }
            }
            for (name, quantity) in own {
                *sums.entry(name).or_default() += quantity;
            }
        }
        Ok(sums)
    }

    /// Its node selector.
    pub(super) fn node_selector(self) -> BTreeMap<&'a str, &'a str> {
        texts(self.0.pointer("/spec/nodeSelector"))
    }

    /// The terms of its required node affinity, of which one has to fit; none means that all nodes do.
    pub(super) fn affinity(self) -> &'a [Value] {
        let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
        let terms = self
            .0
            .pointer(required)
            .and_then(|required| required.get("nodeSelectorTerms"));
        terms.and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// The members of an object that are texts.
pub(super) fn texts(object: Option<&Value>) -> BTreeMap<&str, &str> {
    let members = object.and_then(Value::as_object).into_iter().flatten();
    members
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect()
}
