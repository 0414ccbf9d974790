use opensandbox_api::labels;
use serde_json::json;

use super::{MESSAGE, pod, pool, sandbox};
use crate::view::{PodPhase, Version};

#[test]
fn a_ready_pod_of_a_pool() {
    let view = pod(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "ns", "name": "p-1", "uid": "u", "resourceVersion": "12",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {
                "sandbox.opensandbox.io/pool-name": "p",
                "sandbox.opensandbox.io/pool-revision": "r",
                "sandbox.opensandbox.io/retiring": "ScaleDown",
            },
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "ou"},
                {"apiVersion": "x/v1", "kind": "Pool", "name": "p", "uid": "pu", "controller": true},
            ],
        },
        "spec": {"nodeName": "n", "containers": [{"name": "main", "image": "i"}]},
        "status": {
            "phase": "Running", "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:06Z"}],
            "containerStatuses": [{
                "name": "main", "containerID": "containerd://c", "restartCount": 2, "ready": true,
                "image": "i", "imageID": "i", "state": {"running": {}},
            }],
        },
    }))
    .unwrap();
    assert_eq!(view.key.to_string(), "ns/p-1");
    assert_eq!((view.uid.as_str(), view.version), ("u", Version(12)));
    assert_eq!(view.pool.as_deref(), Some("p"));
    assert_eq!(view.revision.as_deref(), Some("r"));
    assert_eq!(view.owner.as_ref().unwrap().uid, "pu");
    assert!(view.ready && view.scheduled && view.retiring && !view.evict);
    assert!(view.ready_since.unwrap() > view.created);
    assert_eq!(view.phase, PodPhase::Running);
    assert_eq!(view.ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(view.trouble, None);
    assert_eq!(view.containers[0].id.as_deref(), Some("containerd://c"));
    assert!(view.containers[0].running);
    assert!(!view.is_usable(), "it is retiring");
}

#[test]
fn trouble_is_the_worst_that_is_said_and_bounded() {
    let waiting =
        |reason: &str| json!({"waiting": {"reason": reason, "message": "m".repeat(9999)}});
    let status = |state: serde_json::Value| json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
    let unschedulable = json!([{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"
    }]);
    let unready = json!([{
        "type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "[c]"
    }]);
    let table = [
        (json!({}), None),
        (
            json!({"containerStatuses": [status(waiting("ContainerCreating"))]}),
            None,
        ),
        (
            json!({"containerStatuses": [status(waiting("CrashLoopBackOff"))]}),
            Some(("CrashLoopBackOff", true)),
        ),
        (
            json!({"initContainerStatuses": [status(waiting("ErrImagePull"))],
                   "containerStatuses": [status(waiting("PodInitializing"))]}),
            Some(("ErrImagePull", true)),
        ),
        (
            json!({"phase": "Pending", "conditions": unschedulable}),
            Some(("Unschedulable", false)),
        ),
        (
            json!({"phase": "Running", "conditions": unready}),
            Some(("ContainersNotReady", false)),
        ),
        // On its way, as every pod is.
        (json!({"phase": "Pending", "conditions": unready}), None),
        (
            json!({"phase": "Failed", "reason": "Evicted", "message": "memory"}),
            Some(("Evicted", true)),
        ),
        (
            json!({"phase": "Failed", "containerStatuses":
                [status(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}))]}),
            Some(("OOMKilled", true)),
        ),
        (json!({"phase": "Failed"}), Some(("Failed", true))),
    ];
    for (status, expected) in table {
        let view = pod(&json!({"metadata": {}, "status": status})).unwrap();
        let trouble = view.trouble.as_ref();
        assert_eq!(
            trouble.map(|trouble| (trouble.reason.as_str(), trouble.error)),
            expected,
            "{status}"
        );
        assert!(trouble.is_none_or(|trouble| trouble.message.len() <= MESSAGE));
    }
}

#[test]
fn what_a_user_writes_on_a_pod_is_bounded_and_never_fatal() {
    let view = pod(&json!({
        "metadata": {
            "resourceVersion": "none", "labels": {"batch-sandbox.sandbox.opensandbox.io/pod-index": "-1"},
            "annotations": {"sandbox.opensandbox.io/restart-record": "ä".repeat(100_000)},
        },
    }))
    .unwrap();
    assert_eq!((view.version, view.index), (Version(0), None));
    let record = view.restart_record.unwrap();
    assert!(record.len() <= super::RECORD && record.ends_with('ä'));
}

#[test]
fn a_pool_keeps_what_no_type_knows_and_loses_managed_fields() {
    let view = pool(&json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {
            "namespace": "ns", "name": "p", "uid": "u", "resourceVersion": "3", "generation": 2,
            "managedFields": [{"manager": "m"}], "deletionTimestamp": "2026-01-02T03:04:05Z",
            "annotations": {"a": "b"},
        },
        "spec": {
            "template": {"spec": {"containers": [], "brandNew": 1}},
            "capacitySpec": {"bufferMin": 1, "bufferMax": 2, "poolMin": 0, "poolMax": 5},
        },
        "status": {"total": "garbage"},
    }))
    .unwrap();
    assert!(view.deleting);
    assert_eq!(view.generation, 2);
    assert_eq!(view.spec.as_ref().unwrap().capacity_spec.pool_max, 5);
    assert_eq!(view.status.total, 0);
    assert_eq!(view.raw["spec"]["template"]["spec"]["brandNew"], 1);
    assert_eq!(view.raw["metadata"]["annotations"]["a"], "b");
    assert_eq!(view.raw["kind"], "Pool");
    assert_eq!(view.raw["metadata"].get("managedFields"), None);
}

#[test]
fn a_spec_that_cannot_be_read_says_why_without_its_values() {
    for (spec, expected) in [
        (json!(null), "spec cannot be read"),
        (json!({"capacitySpec": "hunter2"}), "invalid type, expected"),
        (json!({"template": {}}), "missing field `capacitySpec`"),
    ] {
        let view = pool(&json!({"metadata": {}, "spec": spec})).unwrap();
        let problem = view.spec.unwrap_err();
        assert!(problem.contains(expected), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
    }
    let view = sandbox(&json!({
        "metadata": {},
        "spec": {"taskResourcePolicyWhenCompleted": "hunter2, expected", "replicas": 1},
    }))
    .unwrap();
    let problem = view.spec.unwrap_err();
    assert!(
        problem.contains("Retain") && !problem.contains("hunter2"),
        "{problem}"
    );
    assert_eq!(
        pool(&json!({"metadata": {}})).unwrap().spec.unwrap_err(),
        "spec is missing"
    );
}

#[test]
fn of_a_spec_that_cannot_be_read_the_pool_is() {
    let view = |spec| sandbox(&json!({"metadata": {}, "spec": spec})).unwrap();
    let broken = view(json!({"replicas": "many", "poolRef": "p"}));
    assert!(broken.spec.is_err());
    assert_eq!(broken.unread_pool_ref.as_deref(), Some("p"));
    assert_eq!(
        view(json!({"replicas": 1, "poolRef": "p"})).unread_pool_ref,
        None
    );
    for spec in [json!({"poolRef": 7}), json!("p"), json!(null)] {
        let view = view(spec);
        assert!(view.spec.is_err());
        assert_eq!(view.unread_pool_ref, None);
    }
}

#[test]
fn a_status_is_read_as_far_as_it_can_be() {
    let status = json!({
        "replicas": 1, "allocated": 1, "ready": 1, "taskRunning": 0, "taskSucceed": 0, "taskFailed": 0,
        "taskPending": 0, "taskUnknown": "many", "taskRecord": "S F", "phase": "Hibernating",
        "conditions": {"Ready": true}, "observedGeneration": 4,
    });
    let read = sandbox(&json!({"metadata": {}, "status": status}))
        .unwrap()
        .status;
    assert_eq!((read.ready, read.task_unknown), (1, 0));
    assert_eq!(read.task_record.as_deref(), Some("S F"));
    assert_eq!((read.observed_generation, read.phase), (Some(4), None));
    assert!(read.conditions.is_empty());
    let nothing = sandbox(&json!({"metadata": {}, "status": ["ready"]})).unwrap();
    assert_eq!(
        nothing.status,
        opensandbox_api::v1alpha1::BatchSandboxStatus::default()
    );
}

#[test]
fn a_sandbox_with_its_annotations() {
    let view = sandbox(&json!({
        "metadata": {
            "namespace": "ns", "name": "s", "uid": "u", "resourceVersion": "3",
            "finalizers": ["f"], "labels": {labels::INJECTION: "disabled", "x": "y"},
            "annotations": {
                labels::ALLOC_STATUS: "1", labels::ALLOC_RELEASE: "2", labels::ALLOC_RELEASED: "3",
                labels::ENDPOINTS: "4", labels::FENCE: "5",
            },
        },
        "spec": {"replicas": 3, "poolRef": "p"},
        "status": {"replicas": 3, "allocated": 1, "ready": 1, "taskRunning": 0, "taskSucceed": 0,
                   "taskFailed": 0, "taskPending": 0, "taskUnknown": 0},
    }))
    .unwrap();
    let texts = [
        view.alloc_status,
        view.alloc_release,
        view.alloc_released,
        view.endpoints,
        view.fence,
    ];
    assert_eq!(texts.map(Option::unwrap), ["1", "2", "3", "4", "5"]);
    assert_eq!(view.finalizers, ["f"]);
    assert_eq!(view.injection.as_deref(), Some("disabled"));
    assert_eq!(view.labels["x"], "y");
    assert_eq!(view.spec.unwrap().pool_ref.as_deref(), Some("p"));
    assert_eq!(view.status.allocated, 1);
}
