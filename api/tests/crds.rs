//! The CRDs in config/ are those that the types make.

#![cfg(feature = "crd")]
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::path::Path;

use opensandbox_api::v1alpha1::{BatchSandbox, Pool, REFERENCE, crd_files, reference};
use serde_json::json;

#[test]
fn the_crds_of_kustomize_and_of_the_chart_are_what_the_types_make() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for directory in ["config/crd", "config/helm/opensandbox/files/crds"] {
        for (name, text) in crd_files() {
            let path = root.join(directory).join(&name);
            let found = std::fs::read_to_string(path).unwrap_or_default();
            assert!(
                found == text,
                "{directory}/{name} is stale; run `cargo crdgen`"
            );
        }
    }
}

#[test]
fn the_reference_is_what_the_types_make() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(REFERENCE);
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == reference(),
        "{REFERENCE} is stale; run `cargo crdgen`"
    );
}

/// `kubectl apply` without `--server-side` keeps the whole object in an annotation of 256 KiB.
#[test]
fn crds_are_small_enough_for_client_side_apply() {
    for (name, text) in crd_files() {
        assert!(text.len() < 64 * 1024, "{name} has {} bytes", text.len());
    }
}

/// What upstream's writers store where a Go slice, map or pointer is nil.
#[test]
fn explicit_nulls_are_read() {
    let pool: Pool = serde_json::from_value(json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": { "name": "p" },
        "spec": {
            "template": null, "scaleStrategy": null, "updateStrategy": null, "recycleStrategy": null,
            "capacitySpec": { "bufferMax": 1, "bufferMin": 0, "poolMax": 1, "poolMin": 0 },
        },
        "status": { "total": 0, "allocated": 0, "available": 0, "revision": "", "conditions": null },
    }))
    .unwrap();
    assert_eq!(pool.spec.template, None);
    let sandbox: BatchSandbox = serde_json::from_value(json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": { "name": "b" },
        "spec": {
            "poolRef": "p", "template": null, "shardPatches": null, "expireTime": null,
            "taskTemplate": null, "shardTaskPatches": null, "pause": null,
            "taskResourcePolicyWhenCompleted": null,
        },
        "status": {
            "replicas": 0, "allocated": 0, "ready": 0, "taskRunning": 0, "taskSucceed": 0,
            "taskFailed": 0, "taskPending": 0, "taskUnknown": 0, "taskResults": null,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    }))
    .unwrap();
    assert_eq!(sandbox.spec.replicas, 1);
    assert!(sandbox.spec.shard_patches.is_empty());
    assert_eq!(sandbox.status.unwrap().conditions.len(), 1);
}
