use opensandbox_api::sidecar::default_image;
use serde_json::{Value, json};

use super::*;
use crate::view::parse;

fn world() -> World {
    World::new(InjectionDefaults {
        namespace: "system".to_owned(),
        default: InjectionDefault::Enabled,
        image: default_image(),
    })
}

fn pool_pod(name: &str, uid: &str, pool: &str) -> Change {
    let object = json!({"metadata": {
        "namespace": "ns", "name": name, "uid": uid,
        "labels": {"sandbox.opensandbox.io/pool-name": pool},
    }});
    Change::PoolPod(Arc::new(parse::pod(&object).unwrap()))
}

fn template_pod(name: &str, label: &str, owner: &Value) -> Change {
    let object = json!({"metadata": {
        "namespace": "ns", "name": name, "uid": format!("{name}-uid"),
        "labels": {"batch-sandbox.sandbox.opensandbox.io/name": label},
        "ownerReferences": [owner],
    }});
    Change::TemplatePod(Arc::new(parse::pod(&object).unwrap()))
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v", "kind": kind, "name": name, "uid": uid, "controller": true})
}

fn sandbox_object(name: &str, uid: &str) -> Change {
    let object = json!({
        "metadata": {"namespace": "ns", "name": name, "uid": uid},
        "spec": {"replicas": 1, "poolRef": "p"},
    });
    Change::Sandbox(Arc::new(parse::sandbox(&object).unwrap()))
}

fn pool_object(namespace: &str, name: &str) -> Change {
    let object = json!({"metadata": {"namespace": namespace, "name": name, "uid": "u"}});
    Change::Pool(Arc::new(parse::pool(&object).unwrap()))
}

fn images(namespace: &str, image: &str) -> Change {
    let (config, _) = ImagesConfig::read(namespace, |key| {
        (key == opensandbox_api::labels::TASK_EXECUTOR_IMAGE_KEY).then_some(image)
    });
    Change::Images(config)
}

/// What is delivered, in words.
fn told(deliveries: Vec<Delivery>) -> Vec<String> {
    let words = |delivery| match delivery {
        Delivery::Pool(key, input) => match input {
            pool::Input::Pool(_) => format!("{key} is there"),
            pool::Input::PoolAbsent => format!("{key} is gone"),
            pool::Input::Pod(pod) => format!("{key}: pod {} {}", pod.key.name, pod.uid),
            pool::Input::PodGone { name, uid } => format!("{key}: no pod {name} {uid}"),
            other => format!("{key}: {other:?}"),
        },
        Delivery::NewSandbox(view) => format!("{} {}", view.key, view.uid),
        Delivery::Sandbox(uid, sandbox::Input::Pod(pod)) => format!("{uid}: pod {}", pod.key.name),
        Delivery::Sandbox(uid, sandbox::Input::PodGone { name, .. }) => {
            format!("{uid}: no pod {name}")
        }
        Delivery::Sandbox(uid, other) => format!("{uid}: {other:?}"),
        Delivery::SandboxGone(uid) => format!("{uid} is gone"),
        Delivery::Injection(namespace, facts) => {
            format!("{namespace}: {}", facts.settings.image.value)
        }
    };
    deliveries.into_iter().map(words).collect()
}

#[test]
fn a_sandbox_made_anew_under_its_name_is_another_one() {
    let mut world = world();
    assert_eq!(told(world.apply(sandbox_object("s", "1"))), ["ns/s 1"]);
    assert_eq!(told(world.apply(sandbox_object("s", "1"))), ["ns/s 1"]);
    assert_eq!(
        told(world.apply(sandbox_object("s", "2"))),
        ["1 is gone", "ns/s 2"]
    );
    let gone = || Change::SandboxGone(ObjectKey::new("ns", "s"));
    assert_eq!(told(world.apply(gone())), ["2 is gone"]);
    assert!(world.apply(gone()).is_empty());
}

#[test]
fn a_pod_that_changes_its_pool_or_is_made_anew_leaves_the_old_one() {
    let mut world = world();
    assert_eq!(
        told(world.apply(pool_pod("x", "1", "a"))),
        ["ns/a: pod x 1"]
    );
    assert_eq!(
        told(world.apply(pool_pod("x", "1", "b"))),
        ["ns/a: no pod x 1", "ns/b: pod x 1"]
    );
    assert_eq!(
        told(world.apply(pool_pod("x", "2", "b"))),
        ["ns/b: no pod x 1", "ns/b: pod x 2"]
    );
    assert_eq!(world.pods_of_pool(&ObjectKey::new("ns", "b")).len(), 1);
    assert!(world.pods_of_pool(&ObjectKey::new("ns", "a")).is_empty());
    let gone = || Change::PoolPodGone(ObjectKey::new("ns", "x"));
    assert_eq!(told(world.apply(gone())), ["ns/b: no pod x 2"]);
    assert!(world.apply(gone()).is_empty());
}

#[test]
fn a_pod_is_a_sandboxs_by_label_and_owner_together() {
    let mut world = world();
    let real = owner("BatchSandbox", "s", "1");
    assert_eq!(
        told(world.apply(template_pod("s-0", "s", &real))),
        ["1: pod s-0"]
    );
    for (label, owner) in [
        ("other", &real),
        ("s", &owner("Pool", "s", "1")),
        (
            "s",
            &json!({"apiVersion": "v", "kind": "BatchSandbox", "name": "s", "uid": "1"}),
        ),
    ] {
        assert!(world.apply(template_pod("forged", label, owner)).is_empty());
    }
    assert_eq!(world.template_pods()["1"].len(), 1);
    // The label is taken off and put elsewhere.
    assert_eq!(
        told(world.apply(template_pod("s-0", "other", &real))),
        ["1: no pod s-0"]
    );
    assert!(world.template_pods().is_empty());
}

#[test]
fn settings_of_the_installation_reach_every_namespace_that_has_none_of_its_own() {
    let mut world = world();
    world.apply(images("own", "own:1"));
    assert_eq!(world.injection("own").settings.image.value, "own:1");
    let built_in = world.injection("ns").settings.image.value.clone();
    assert_eq!(told(world.apply(images("system", "all:1"))), ["ns: all:1"]);
    assert!(world.apply(images("system", "all:1")).is_empty());
    // Nobody there has asked.
    assert!(world.apply(images("elsewhere", "e:1")).is_empty());
    assert_eq!(told(world.apply(images("ns", "ns:1"))), ["ns: ns:1"]);
    let gone = |namespace| Change::ImagesGone(ObjectKey::new(namespace, "opensandbox-images"));
    assert_eq!(told(world.apply(gone("ns"))), ["ns: all:1"]);
    assert_eq!(
        told(world.apply(gone("system"))),
        [format!("ns: {built_in}")]
    );
}

#[test]
fn the_label_of_a_namespace_is_a_fact_of_it() {
    let mut world = world();
    world.injection("ns");
    let label = |label: Option<&str>| Change::Namespace("ns".to_owned(), label.map(str::to_owned));
    assert!(world.apply(label(None)).is_empty());
    assert_eq!(world.apply(label(Some("disabled"))).len(), 1);
    let facts = world.injection("ns");
    assert_eq!(facts.namespace_label.as_deref(), Some("disabled"));
    assert_eq!(world.apply(Change::NamespaceGone("ns".to_owned())).len(), 1);
}

#[test]
fn pools_start_from_objects_and_from_pods() {
    let mut world = world();
    world.apply(pool_object("ns", "a"));
    world.apply(pool_object("other", "c"));
    world.apply(pool_pod("x", "1", "a"));
    world.apply(pool_pod("y", "1", "b"));
    let starts = world.pools_at_start();
    let pods: Vec<_> = starts
        .iter()
        .map(|(key, start)| (key.to_string(), start.pods.len()))
        .collect();
    assert_eq!(
        pods,
        [
            ("ns/a".to_owned(), 1),
            ("ns/b".to_owned(), 1),
            ("other/c".to_owned(), 0)
        ]
    );
    assert_eq!(world.pools_of("ns").len(), 1);
    world.apply(Change::PoolGone(ObjectKey::new("ns", "a")));
    assert!(world.pools_of("ns").is_empty());
}
