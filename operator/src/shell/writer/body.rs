//! What is sent: patches as JSON. Pure.

use std::sync::LazyLock;

use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{PoolStatus, crds};
use serde_json::{Map, Value, json};

use crate::view::Version;
use crate::write::{SandboxStatusWrite, SandboxWrite};

/// Annotations, finalizers and `poolRef` of a BatchSandbox.
pub fn sandbox(write: &SandboxWrite) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), version(write.version));
    if !write.annotations.is_empty() {
        let annotations: Map<String, Value> = write
            .annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        metadata.insert("annotations".to_owned(), annotations.into());
    }
    if let Some(finalizers) = &write.finalizers {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
    let mut patch = json!({ "metadata": metadata });
    if let Some(pool_ref) = &write.pool_ref {
        patch["spec"] = json!({ "poolRef": pool_ref });
    }
    patch
}

/// Status of a BatchSandbox.
pub(super) fn sandbox_status(write: &SandboxStatusWrite) -> Value {
    static MEMBERS: LazyLock<Vec<String>> = LazyLock::new(|| status_members("BatchSandbox"));
    status(write.version, json!(write.status), &MEMBERS)
}

/// Status of a Pool.
pub(super) fn pool_status(at: Version, written: &PoolStatus) -> Value {
    static MEMBERS: LazyLock<Vec<String>> = LazyLock::new(|| status_members("Pool"));
    status(at, json!(written), &MEMBERS)
}

/// A whole status: members that it does not have are removed.
fn status(at: Version, mut status: Value, members: &[String]) -> Value {
    if let Value::Object(status) = &mut status {
        for member in members {
            status.entry(member.as_str()).or_insert(Value::Null);
        }
    }
    json!({ "metadata": { "resourceVersion": at.to_string() }, "status": status })
}

/// The members that our version of a kind knows; what others put beside them is left alone.
fn status_members(kind: &str) -> Vec<String> {
    crds()
        .into_iter()
        .filter(|crd| crd.spec.names.kind == kind)
        .flat_map(|crd| crd.spec.versions)
        .filter_map(|version| version.schema?.open_api_v3_schema?.properties)
        .filter_map(|mut properties| properties.remove("status")?.properties)
        .flat_map(std::collections::BTreeMap::into_keys)
        .collect()
}

/// The mark of a pod on its way out.
pub(super) fn retire(at: Version, reason: &str) -> Value {
    json!({ "metadata": {
        "resourceVersion": at.to_string(),
        "labels": { labels::RETIRING: reason },
    } })
}

/// The record of a restart.
pub(super) fn restart(at: Version, record: &str) -> Value {
    json!({ "metadata": {
        "resourceVersion": at.to_string(),
        "annotations": { labels::RESTART_RECORD: record },
    } })
}

fn version(version: Version) -> Value {
    Value::String(version.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use opensandbox_api::v1alpha1::BatchSandboxStatus;

    use super::*;

    #[test]
    fn a_sandbox_is_patched_with_what_changes_and_its_version() {
        let write = SandboxWrite {
            version: Version(7),
            ..SandboxWrite::default()
        };
        let bare = json!({"metadata": {"resourceVersion": "7"}});
        assert_eq!(sandbox(&write), bare);
        let write = SandboxWrite {
            version: Version(8),
            annotations: BTreeMap::from([
                (labels::ALLOC_STATUS, Some("{}".to_owned())),
                (labels::ALLOC_RELEASE, None),
            ]),
            finalizers: Some(Vec::new()),
            pool_ref: Some("p".to_owned()),
        };
        let full = json!({
            "metadata": {
                "resourceVersion": "8",
                "annotations": {labels::ALLOC_STATUS: "{}", labels::ALLOC_RELEASE: null},
                "finalizers": [],
            },
            "spec": {"poolRef": "p"},
        });
        assert_eq!(sandbox(&write), full);
    }

    #[test]
    fn a_status_is_written_whole_so_that_cleared_members_go() {
        let write = SandboxStatusWrite {
            version: Version(7),
            status: Box::new(BatchSandboxStatus {
                ready: 3,
                ..BatchSandboxStatus::default()
            }),
        };
        let patch = sandbox_status(&write);
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7"}));
        let status = patch["status"].as_object().unwrap();
        assert_eq!(status["ready"], 3);
        for cleared in ["phase", "conditions", "taskResults", "observedGeneration"] {
            assert_eq!(status.get(cleared), Some(&Value::Null), "{cleared}");
        }
        let pool = pool_status(Version(1), &PoolStatus::default());
        assert_eq!(pool["status"].get("updated"), Some(&Value::Null));
        assert_eq!(pool["status"]["total"], 0);
    }
}
