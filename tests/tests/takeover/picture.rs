//! What is stored of sandboxes and pods, to be compared before and after a change of controllers.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::core::DynamicObject;
use opensandbox_tests::allocation::held;

/// A pod of a sandbox. Its version tells whether anybody touched it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    holder: String,
    uid: String,
    version: String,
}

/// What sandboxes hold.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// What a controller writes into a sandbox's metadata, by its name.
    metadata: BTreeMap<String, (BTreeMap<String, String>, Vec<String>)>,
    /// Pods of sandboxes by name.
    pods: BTreeMap<String, Seen>,
}

impl Picture {
    /// # Errors
    /// A pod is held twice.
    pub(crate) fn of(sandboxes: &[DynamicObject], pods: &[Pod]) -> Result<Self> {
        let mut picture = Self {
            metadata: BTreeMap::new(),
            pods: BTreeMap::new(),
        };
        for sandbox in sandboxes {
            let holder = sandbox.name_any();
            let own = sandbox.uid();
            let owned = pods.iter().filter(|pod| {
                let owners = pod.owner_references();
                owners.iter().any(|owner| Some(&owner.uid) == own.as_ref())
            });
            let names = held(sandbox).into_iter().chain(owned.map(Pod::name_any));
            for name in names {
                let Some(pod) = pods.iter().find(|pod| pod.name_any() == name) else {
                    continue;
                };
                let seen = Seen {
                    holder: holder.clone(),
                    uid: pod.uid().context("a pod has a UID")?,
                    version: pod.resource_version().context("a pod has a version")?,
                };
                if let Some(other) = picture.pods.insert(name.clone(), seen) {
                    bail!("{name} is held by {} and by {holder}", other.holder);
                }
            }
            let mut finalizers = sandbox.finalizers().to_vec();
            finalizers.sort();
            let metadata = (sandbox.annotations().clone(), finalizers);
            picture.metadata.insert(holder, metadata);
        }
        Ok(picture)
    }

    /// How many pods sandboxes hold.
    pub(crate) fn pods(&self) -> usize {
        self.pods.len()
    }

    /// Every sandbox has in `later` the pods that it has here, and nobody touched these; but for those in
    /// `changed`, its annotations and finalizers say what they said. Those in `gone` may be gone.
    pub(crate) fn ensure_untouched(
        &self,
        later: &Self,
        changed: &[&str],
        gone: &[&str],
    ) -> Result<()> {
        for (name, metadata) in &self.metadata {
            if changed.contains(&name.as_str()) || gone.contains(&name.as_str()) {
                continue;
            }
            let after = later.metadata.get(name);
            ensure!(
                after == Some(metadata),
                "{name} was {metadata:?} and is {after:?}"
            );
        }
        for (name, pod) in &self.pods {
            if gone.contains(&pod.holder.as_str()) {
                continue;
            }
            let after = later.pods.get(name);
            ensure!(
                after == Some(pod),
                "pod {name} was {pod:?} and is {after:?}"
            );
        }
        Ok(())
    }
}
