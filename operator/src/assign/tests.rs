//! Upstream's cases, and those that it gets wrong.

use serde_json::{Value, json};

use super::*;
use crate::view::ObjectKey;
use k8s_openapi::jiff::Timestamp;
use opensandbox_api::v1alpha1::{BatchSandboxStatus, PoolSpec, PoolStatus};

fn pool(name: &str, mut object: Value) -> Arc<PoolView> {
    let spec = &mut object["spec"];
    if spec["capacitySpec"].is_null() {
        spec["capacitySpec"] = json!({"bufferMin": 1, "bufferMax": 2, "poolMin": 0, "poolMax": 10});
    }
    if spec.get("template").is_none() {
        spec["template"] = json!({"spec": {"containers": [{"name": "main", "image": "a"}]}});
    }
    let status: PoolStatus = serde_json::from_value(object["status"].clone()).unwrap_or_default();
    Arc::new(PoolView {
        key: ObjectKey::new("ns", name),
        uid: name.to_owned(),
        version: crate::view::Version(1),
        generation: 1,
        deleting: false,
        spec: serde_json::from_value::<PoolSpec>(object["spec"].clone())
            .map(Arc::new)
            .map_err(|error| error.to_string()),
        status,
        raw: Arc::new(object),
    })
}

fn sandbox(labels: &[(&str, &str)], template: Value) -> SandboxView {
    let mut spec = json!({"replicas": 1, "poolRef": "*"});
    spec["template"] = template;
    SandboxView {
        key: ObjectKey::new("ns", "sandbox"),
        uid: "uid".to_owned(),
        version: crate::view::Version(1),
        generation: 1,
        created: Timestamp::UNIX_EPOCH,
        deleting: false,
        finalizers: vec![],
        injection: None,
        executor_mode: None,
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        alloc_status: None,
        alloc_release: None,
        alloc_released: None,
        endpoints: None,
        fence: None,
        spec: Ok(Arc::new(serde_json::from_value(spec).unwrap())),
        unread_pool_ref: None,
        status: BatchSandboxStatus::default(),
    }
}

fn profiles(predicates: &[&str], conf: &Value) -> Profiles {
    let text = json!([{
        "name": "default",
        "plugins": {"predicate": predicates, "score": [{"name": "resbalance", "weight": 100}]},
        "pluginConf": conf,
    }]);
    let (profiles, problems) = Profiles::read(Some(&text.to_string()));
    assert_eq!(problems, [""; 0]);
    profiles
}

/// Whether a pool with this template is chosen for a sandbox with that one.
fn fits(predicate: &str, sandbox_template: Value, pool_object: Value) -> bool {
    let profiles = profiles(&[predicate], &json!(null));
    let sandbox = sandbox(&[], sandbox_template);
    choose(&sandbox, &[pool("p", pool_object)], &profiles).is_ok()
}

fn requests(requests: &[Value]) -> Value {
    let containers: Vec<_> = requests
        .iter()
        .map(|requests| json!({"name": "c", "image": "a", "resources": {"requests": requests}}))
        .collect();
    json!({"spec": {"containers": containers}})
}

fn with_template(template: &Value) -> Value {
    json!({"spec": {"template": template}})
}

#[test]
fn requests_are_compared_in_sum_and_by_name() {
    let cases = [
        (
            json!([{"cpu": "1", "memory": "1Gi"}]),
            json!([{"cpu": "1", "memory": "1Gi"}]),
            true,
        ),
        (
            json!([{"cpu": "1", "memory": "1Gi"}]),
            json!([{"cpu": "2", "memory": "4Gi"}]),
            true,
        ),
        (json!([{"cpu": "2"}]), json!([{"cpu": "1"}]), false),
        (
            json!([{"memory": "4Gi"}]),
            json!([{"memory": "2Gi"}]),
            false,
        ),
        (json!([{}]), json!([{}]), true),
        (json!([{"cpu": "1"}]), json!([{}]), false),
        (
            json!([{"cpu": "500m"}, {"memory": "512Mi"}]),
            json!([{"cpu": 1, "memory": "1Gi"}, {"memory": "2Gi"}]),
            true,
        ),
        (
            json!([{"cpu": "600m"}, {"cpu": "0.6"}]),
            json!([{"cpu": "1"}]),
            false,
        ),
        (
            json!([{"cpu": "600m"}, {"cpu": "0.6"}]),
            json!([{"cpu": "1"}, {"cpu": "200m"}]),
            true,
        ),
        (json!([{"nvidia.com/gpu": 1}]), json!([{"cpu": "8"}]), false),
        (json!([{"memory": "1Gi"}]), json!([{"memory": "1G"}]), false),
        (json!([{"cpu": "much"}]), json!([{"cpu": "8"}]), false),
        (json!([{"cpu": "1"}]), json!([{"cpu": ["8"]}]), false),
        (json!([null]), json!([null]), true),
    ];
    for (wanted, given, expected) in cases {
        let template = |list: &Value| requests(list.as_array().unwrap());
        let got = fits(
            "resource",
            template(&wanted),
            with_template(&template(&given)),
        );
        assert_eq!(got, expected, "{wanted} {given}");
    }
}

#[test]
fn a_limit_counts_as_request_and_the_executor_does_not_count() {
    let limit = |limit: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": limit}}}]}});
    assert!(fits("resource", limit("1"), with_template(&limit("1"))));
    assert!(!fits("resource", limit("1"), with_template(&limit("900m"))));
    let mut injected = requests(&[json!({"cpu": "1"})]);
    let executor =
        json!({"name": "task-executor", "image": "e", "resources": {"requests": {"cpu": "100m"}}});
    injected["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(executor);
    let wanted = requests(&[json!({"cpu": "1100m"})]);
    assert!(!fits("resource", wanted, with_template(&injected)));
    let own = json!({"spec": {"containers": [{"name": "c", "image": "b"}, {"name": "task-executor", "image": "e"}]}});
    assert!(!fits("image", own, with_template(&injected)));
}

#[test]
fn one_image_in_common_is_enough() {
    let images = |images: &[&str]| {
        let containers: Vec<_> = images
            .iter()
            .map(|image| json!({"name": "c", "image": image}))
            .collect();
        json!({"spec": {"containers": containers}})
    };
    assert!(fits(
        "image",
        images(&["a", "b"]),
        with_template(&images(&["c", "b"]))
    ));
    assert!(!fits(
        "image",
        images(&["a"]),
        with_template(&images(&["a:v2"]))
    ));
    assert!(!fits("image", images(&[""]), with_template(&images(&[""]))));
    assert!(fits("image", json!(null), with_template(&images(&["c"]))));
    assert!(!fits(
        "image",
        json!({"spec": {"containers": 3}}),
        with_template(&images(&["c"]))
    ));
}

#[test]
fn node_selector_and_affinity_fit_labels_and_selector_of_the_pool() {
    let object = |labels: Value, selector: Value| json!({"metadata": {"labels": labels}, "spec": {"template": {"spec": {"containers": [], "nodeSelector": selector}}}});
    let selector = |selector: Value| json!({"spec": {"nodeSelector": selector}});
    let zone = json!({"zone": "a"});
    assert!(fits(
        "nodeselector",
        selector(zone.clone()),
        object(zone.clone(), json!(null))
    ));
    assert!(fits(
        "nodeselector",
        selector(zone.clone()),
        object(json!({"zone": "b"}), zone.clone())
    ));
    assert!(!fits(
        "nodeselector",
        selector(zone.clone()),
        object(json!({"zone": "b"}), json!({}))
    ));
    assert!(!fits(
        "nodeselector",
        selector(zone.clone()),
        object(json!({"zone": 3}), json!({}))
    ));
    assert!(fits(
        "nodeselector",
        json!(null),
        object(json!({}), json!({}))
    ));

    let affinity = |terms: Value| json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}});
    let one = |operator: &str, values: Value| {
        affinity(
            json!([{"matchExpressions": [{"key": "n", "operator": operator, "values": values}]}]),
        )
    };
    let seven = || object(json!({"n": "7"}), json!({}));
    let none = || object(json!({}), json!({}));
    for (operator, values, with, without) in [
        ("In", json!(["6", "7"]), true, false),
        ("In", json!(["6"]), false, false),
        ("NotIn", json!(["6"]), true, true),
        ("NotIn", json!(["7"]), false, true),
        ("Exists", json!(null), true, false),
        ("DoesNotExist", json!(null), false, true),
        ("Gt", json!(["6"]), true, false),
        ("Gt", json!(["7"]), false, false),
        ("Gt", json!(["x"]), false, false),
        ("Gt", json!([]), false, false),
        ("Lt", json!(["8"]), true, false),
        ("Lt", json!(["7"]), false, false),
        ("Near", json!(["7"]), false, false),
    ] {
        let got = fits("nodeselector", one(operator, values.clone()), seven());
        assert_eq!(got, with, "{operator} {values}");
        let got = fits("nodeselector", one(operator, values.clone()), none());
        assert_eq!(got, without, "{operator} {values} without the label");
    }
    let two = json!([
        {"matchExpressions": [{"key": "n", "operator": "In", "values": ["1"]}]},
        {"matchExpressions": [{"key": "n", "operator": "In", "values": ["7"]}]},
    ]);
    assert!(
        fits("nodeselector", affinity(two), seven()),
        "terms are alternatives"
    );
    assert!(fits("nodeselector", affinity(json!([])), seven()));
}

#[test]
fn labels_are_compared_where_keys_are_configured() {
    let conf = json!([{"name": "labelselector", "args": {"keys": ["tier"]}}]);
    let with_keys = profiles(&["labelselector"], &conf);
    let without_keys = profiles(&["labelselector"], &json!(null));
    let object = |labels: Value| pool("p", json!({"metadata": {"labels": labels}, "spec": {}}));
    let check = |labels: &[(&str, &str)], pool_labels: Value, profiles: &Profiles| {
        choose(
            &sandbox(labels, json!(null)),
            &[object(pool_labels)],
            profiles,
        )
        .is_ok()
    };
    assert!(check(&[("tier", "x")], json!({"tier": "x"}), &with_keys));
    assert!(!check(&[("tier", "x")], json!({"tier": "y"}), &with_keys));
    assert!(!check(&[("tier", "x")], json!(null), &with_keys));
    assert!(!check(&[], json!({"tier": "x"}), &with_keys));
    assert!(
        !check(&[], json!({}), &with_keys),
        "absent on both sides is no match"
    );
    assert!(check(&[], json!({"tier": "x"}), &without_keys));
}

#[test]
fn a_pool_that_can_never_serve_is_not_chosen_whatever_the_profile() {
    let none = profiles(&[], &json!(null));
    let any = sandbox(&[], json!(null));
    let refuses = |pool: Arc<PoolView>, word: &str| {
        let error = choose(&any, &[pool], &none).unwrap_err();
        assert!(error.contains(word), "{error}");
    };
    let zero = json!({"bufferMin": 0, "bufferMax": 0, "poolMin": 0, "poolMax": 0});
    refuses(
        pool("p", json!({"spec": {"capacitySpec": zero}})),
        "poolMax",
    );
    refuses(pool("p", json!({"spec": {"template": null}})), "template");
    refuses(
        pool("p", json!({"spec": {"capacitySpec": "x"}})),
        "cannot be read",
    );
    let mut deleting = (*pool("p", json!({"spec": {}}))).clone();
    deleting.deleting = true;
    refuses(Arc::new(deleting), "deleted");
    assert!(choose(&any, &[], &none).unwrap_err().contains("no Pool"));
    let mut elsewhere = (*pool("p", json!({"spec": {}}))).clone();
    elsewhere.key.namespace = "other".to_owned();
    assert!(choose(&any, &[Arc::new(elsewhere)], &none).is_err());
}

#[test]
fn capacity_is_what_is_left_of_pool_max() {
    let full = |allocated: i64| {
        let status = json!({"total": 10, "allocated": allocated, "available": 0, "revision": ""});
        pool("p", json!({"spec": {}, "status": status}))
    };
    let any = sandbox(&[], json!(null));
    let default = Profiles::default();
    assert!(choose(&any, &[full(9)], &default).is_ok());
    let error = choose(&any, &[full(10)], &default).unwrap_err();
    assert!(
        error.contains("1 pods are wanted, 10 of at most 10 are allocated"),
        "{error}"
    );
    assert!(choose(&any, &[full(i64::from(i32::MIN))], &default).is_ok());
}

#[test]
fn the_best_score_wins_and_the_smaller_name_among_equals() {
    let used = |name: &str, allocated: i32, total: i32| {
        let status =
            json!({"total": total, "allocated": allocated, "available": 0, "revision": ""});
        pool(name, json!({"spec": {}, "status": status}))
    };
    let pools = [
        used("c", 1, 10),
        used("b", 5, 10),
        used("a", 9, 10),
        used("z", 0, 0),
    ];
    let any = sandbox(&[], json!(null));
    let with = |strategy: &str| {
        profiles(
            &[],
            &json!([{"name": "resbalance", "args": {"strategy": strategy}}]),
        )
    };
    assert_eq!(
        choose(&any, &pools, &with("LeastAllocated")),
        Ok("c".to_owned())
    );
    assert_eq!(
        choose(&any, &pools, &with("MostAllocated")),
        Ok("a".to_owned())
    );
    let equal = [used("c", 1, 2), used("b", 5, 10), used("d", 2, 4)];
    for strategy in ["LeastAllocated", "MostAllocated"] {
        assert_eq!(choose(&any, &equal, &with(strategy)), Ok("b".to_owned()));
    }
    // A pool without pods has the score 0, which is as good as one that is used up.
    assert_eq!(
        choose(
            &any,
            &[used("z", 0, 0), used("a", 9, 9)],
            &with("LeastAllocated")
        ),
        Ok("a".to_owned())
    );
}

#[test]
fn the_reason_names_pools_and_is_bounded() {
    let template = json!({"spec": {"containers": [{"name": "c", "image": "s3cret"}]}});
    let pools: Vec<_> = (0..100)
        .map(|number| pool(&format!("pool-{number:03}"), json!({"spec": {}})))
        .collect();
    let error = choose(
        &sandbox(&[], template.clone()),
        &pools,
        &Profiles::default(),
    )
    .unwrap_err();
    assert!(
        error.starts_with("none of 100 pools fits: pool-000: no container image in common;"),
        "{error}"
    );
    assert!(
        error.ends_with("and 92 more") && error.len() <= ERROR,
        "{error}"
    );
    assert!(!error.contains("s3cret"));
    let mut broken = sandbox(&[], template.clone());
    broken.spec = Err("é".repeat(10_000));
    assert!(
        choose(&broken, &pools, &Profiles::default())
            .unwrap_err()
            .len()
            <= ERROR
    );
}
