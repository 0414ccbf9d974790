//! What is believed of watches and answers, and what pods are made of.

use opensandbox_api::labels;

use super::*;

#[test]
fn a_stale_event_does_not_hide_an_own_result() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    let (name, pod) = match &outputs[..] {
        [Output::CreatePod { name, pod }, ..] => (name.clone(), Arc::clone(pod)),
        other => panic!("{other:?}"),
    };
    let view = bench.made(&name, &pod);
    let ready = bench.ready(&view);
    bench.handle(Input::Created {
        name: name.clone(),
        result: Ok(Arc::new(view.clone())),
    });
    bench.handle(Input::Pod(ready));
    bench.handle(Input::Pod(Arc::new(view.clone())));
    assert_eq!(bench.ledger.pods.counts().usable, 1);
    // The end of an earlier pod of that name is not its end.
    bench.handle(Input::PodGone {
        name: name.clone(),
        uid: "earlier".to_owned(),
    });
    assert_eq!(bench.ledger.pods.counts().usable, 1);
    // After its end, no late event brings it back, and no late answer.
    bench.gone(&name);
    bench.handle(Input::Pod(Arc::new(view.clone())));
    bench.handle(Input::Created {
        name,
        result: Ok(Arc::new(view)),
    });
    assert_eq!(bench.ledger.pods.counts().total(), 0);
}

#[test]
fn an_answer_that_comes_after_the_watch_changes_nothing() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    let name = created(&outputs)[0].to_owned();
    let view = ready_pod(&name, &revision());
    bench.handle(Input::Pod(Arc::clone(&view)));
    let earlier = PodView {
        version: Version(1),
        ready: false,
        ..(*view).clone()
    };
    let outputs = bench.handle(Input::Created {
        name,
        result: Ok(Arc::new(earlier)),
    });
    assert_eq!(created(&outputs).len(), 0);
    assert_eq!(bench.ledger.pods.counts().usable, 1);
}

#[test]
fn a_pod_has_the_template_the_labels_and_the_owner_and_loses_nothing() {
    let mut spec = spec((1, 1, 1, 1));
    spec["template"] = json!({
        "metadata": {
            "name": "x", "uid": "y", "creationTimestamp": null, "finalizers": ["f/g"],
            "labels": { "app": "a", labels::EVICT: "", labels::POOL: "other" },
            "annotations": { "n": "1", labels::RESTART_RECORD: "{}" },
        },
        "spec": {
            "containers": [{ "name": "main", "image": "i", "fieldOfTheFuture": { "x": [null, 1] } }],
            "unknown": true,
        },
    });
    let mut bench = Bench::with(&spec, &json!({}));
    let outputs = bench.wake();
    let Some(Output::CreatePod { name, pod }) = outputs.first() else {
        panic!("{outputs:?}");
    };
    let revision = opensandbox_api::template_hash::template_hash(&spec["template"]);
    let wanted = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "ns", "finalizers": ["f/g"],
            "labels": {
                "app": "a", "pool": POOL, labels::POOL_NAME: POOL, labels::POOL_REVISION: revision,
            },
            "annotations": { "n": "1" },
            "ownerReferences": [{
                "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool", "name": POOL,
                "uid": POOL_UID, "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": spec["template"]["spec"],
    });
    assert_eq!(**pod, wanted);
}

#[test]
fn pods_get_the_executor_even_if_the_pool_was_stored_without() {
    let pool = pool_view(POOL_UID, 1, &spec((1, 1, 1, 1)), &json!({}));
    let mut ledger = Ledger::new(
        ObjectKey::new("ns", POOL),
        Some(pool),
        injection(InjectionDefault::Enabled),
        Vec::new(),
        Vec::new(),
        1,
    );
    let outputs = ledger.handle(Input::Wake, at(0));
    let Some(Output::CreatePod { pod, .. }) = outputs.first() else {
        panic!("{outputs:?}");
    };
    assert!(pod["spec"].to_string().contains(labels::TASK_EXECUTOR));
    assert_eq!(pod["metadata"]["labels"][labels::POOL_REVISION], revision());
}

#[test]
fn odd_templates_are_no_panic_and_are_said() {
    for template in [
        json!(null),
        json!("text"),
        json!({}),
        json!({ "spec": 7 }),
        json!({ "metadata": [], "spec": {} }),
        json!({ "metadata": { "labels": "x" }, "spec": {} }),
        json!({ "metadata": { "annotations": 1 }, "spec": {} }),
    ] {
        let mut spec = spec((1, 1, 1, 1));
        spec["template"] = template.clone();
        let mut bench = Bench::with(&spec, &json!(7));
        let outputs = bench.wake();
        assert_eq!(created(&outputs).len(), 0, "{template}");
        let status = written(&outputs).unwrap();
        let failed = opensandbox_api::conditions::find(&status.conditions, "PodCreationFailed");
        assert!(
            failed.unwrap().message.contains("spec.template"),
            "{template}"
        );
    }
}
