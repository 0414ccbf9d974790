use serde_json::{Value, json};

use super::{Fault, Kind, apply};

fn check(original: &Value, patch: &Value, expected: &Value) {
    let result = apply(original, patch, Kind::Pod);
    assert_eq!(result.as_ref(), Ok(expected), "patch {patch} on {original}");
}

fn refused(original: &Value, patch: &Value) -> String {
    apply(original, patch, Kind::Pod).unwrap_err().to_string()
}

fn containers(names: &[&str]) -> Value {
    let items: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
    json!({ "spec": { "containers": items } })
}

#[test]
fn objects_merge_and_null_removes() {
    check(
        &json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"hostname": "h"}}),
        &json!({"metadata": {"labels": {"b": null, "c": "3"}}, "spec": {"hostname": "i"}}),
        &json!({"metadata": {"labels": {"a": "1", "c": "3"}}, "spec": {"hostname": "i"}}),
    );
}

#[test]
fn a_container_is_found_by_its_name_and_its_environment_merges() {
    check(
        &json!({"spec": {"containers": [
            {"name": "main", "image": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"name": "task-executor", "image": "t"},
        ]}}),
        &json!({"spec": {"containers": [{"name": "main", "env": [{"name": "B", "value": "3"}]}]}}),
        &json!({"spec": {"containers": [
            {"name": "main", "image": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}]},
            {"name": "task-executor", "image": "t"},
        ]}}),
    );
}

#[test]
fn new_elements_come_first_unless_the_patch_names_what_stands_before() {
    let original = containers(&["a", "b"]);
    check(
        &original,
        &containers(&["n"]),
        &containers(&["n", "a", "b"]),
    );
    check(
        &original,
        &containers(&["b", "n"]),
        &containers(&["a", "b", "n"]),
    );
    check(
        &original,
        &containers(&["a", "n"]),
        &containers(&["a", "n", "b"]),
    );
    check(
        &original,
        &json!({"spec": {
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "n"}],
            "containers": [{"name": "n"}],
        }}),
        &containers(&["a", "b", "n"]),
    );
}

#[test]
fn only_the_first_of_two_ports_with_one_number_is_patched() {
    check(
        &json!({"spec": {"containers": [{"name": "a", "ports": [
            {"containerPort": 53, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"},
        ]}]}}),
        &json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 53, "name": "dns"}]}]}}),
        &json!({"spec": {"containers": [{"name": "a", "ports": [
            {"containerPort": 53, "protocol": "TCP", "name": "dns"}, {"containerPort": 53, "protocol": "UDP"},
        ]}]}}),
    );
}

#[test]
fn lists_without_a_merge_key_are_replaced() {
    check(
        &json!({"spec": {"containers": [{"name": "a", "command": ["x", "y"]}], "tolerations": [{"key": "a"}]}}),
        &json!({"spec": {"containers": [{"name": "a", "command": ["z"]}], "tolerations": [{"key": "b"}]}}),
        &json!({"spec": {"containers": [{"name": "a", "command": ["z"]}], "tolerations": [{"key": "b"}]}}),
    );
}

#[test]
fn finalizers_are_a_set() {
    check(
        &json!({"metadata": {"finalizers": ["a", "b"]}}),
        &json!({"metadata": {"finalizers": ["c", "b"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
        &json!({"metadata": {"finalizers": ["c", "b"]}}),
    );
}

#[test]
fn what_one_patch_adds_and_deletes_is_deleted() {
    check(
        &json!({"metadata": {"finalizers": ["a"]}}),
        &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["b"]}}),
        &json!({"metadata": {"finalizers": ["a"]}}),
    );
}

#[test]
fn directives_delete_and_replace() {
    let original = json!({"spec": {"securityContext": {"runAsUser": 1}, "containers": [{"name": "a"}, {"name": "b"}]}});
    check(
        &original,
        &json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}], "securityContext": {"$patch": "delete"}}}),
        &json!({"spec": {"securityContext": {}, "containers": [{"name": "b"}]}}),
    );
    check(
        &original,
        &json!({"spec": {
            "containers": [{"$patch": "replace"}, {"name": "c", "image": null}],
            "securityContext": {"$patch": "replace", "runAsGroup": 2},
        }}),
        &json!({"spec": {"securityContext": {"runAsGroup": 2}, "containers": [{"name": "c"}]}}),
    );
}

#[test]
fn retained_keys_drop_the_rest_of_the_original() {
    check(
        &json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
        &json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}}),
        &json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
    );
}

#[test]
fn nothing_of_the_patch_language_is_left_in_what_is_new() {
    let patch = json!({"spec": {
        "securityContext": {"$patch": "replace", "runAsUser": 5, "$retainKeys": ["runAsUser"]},
        "affinity": {"$patch": "delete"},
        "containers": [{
            "name": "n", "image": null,
            "env": [{"name": "A", "$patch": "delete"}, {"name": "B", "value": "1"}],
            "$setElementOrder/env": [{"name": "B"}],
        }],
        "$setElementOrder/volumes": [{"name": "v"}],
    }});
    let expected = json!({"spec": {
        "securityContext": {"runAsUser": 5},
        "containers": [{"name": "n", "env": [{"name": "B", "value": "1"}]}],
    }});
    check(&json!({"spec": {}}), &patch, &expected);
    check(&json!({"spec": {"containers": []}}), &patch, &expected);
    check(&json!({}), &patch, &expected);
}

#[test]
fn unknown_fields_merge_like_plain_json() {
    check(
        &json!({"spec": {"future": {"a": 1, "list": [{"name": "a"}]}}, "other": [1]}),
        &json!({"spec": {"future": {"b": 2, "list": [{"name": "b"}]}}, "other": [2, 3]}),
        &json!({"spec": {"future": {"a": 1, "list": [{"name": "b"}], "b": 2}}, "other": [2, 3]}),
    );
}

#[test]
fn null_originals_and_lists_count_as_absent() {
    check(&Value::Null, &json!({"spec": {}}), &json!({"spec": {}}));
    check(
        &json!({"spec": {"containers": null}}),
        &containers(&["a"]),
        &containers(&["a"]),
    );
    check(&containers(&["a"]), &Value::Null, &containers(&["a"]));
    check(
        &json!({"spec": {"containers": null}}),
        &json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a"}]}}),
        &containers(&["a"]),
    );
}

#[test]
fn an_order_for_nothing_orders_nothing() {
    check(
        &containers(&[]),
        &json!({"spec": {"$setElementOrder/containers": [{"name": "a"}]}}),
        &containers(&[]),
    );
    check(
        &containers(&["b", "a"]),
        &json!({"spec": {"$setElementOrder/containers": []}}),
        &containers(&["b", "a"]),
    );
    check(
        &containers(&["a"]),
        &json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a"}, {"$patch": "replace"}]}}),
        &containers(&["a"]),
    );
}

#[test]
fn the_environment_of_a_task_merges_by_name() {
    let result = apply(
        &json!({"spec": {"process": {"command": ["echo"], "env": [{"name": "A", "value": "1"}]}, "timeoutSeconds": 5}}),
        &json!({"spec": {"process": {"command": ["ls", "-l"], "env": [{"name": "A", "value": "2"}]}}}),
        Kind::TaskTemplate,
    );
    assert_eq!(
        result,
        Ok(
            json!({"spec": {"process": {"command": ["ls", "-l"], "env": [{"name": "A", "value": "2"}]}, "timeoutSeconds": 5}})
        )
    );
}

#[test]
fn a_pod_template_has_no_status() {
    let original = json!({"status": {"conditions": [{"type": "A"}]}});
    let patch = json!({"status": {"conditions": [{"type": "B"}]}});
    assert_eq!(
        apply(&original, &patch, Kind::PodTemplate),
        Ok(patch.clone())
    );
    check(
        &original,
        &patch,
        &json!({"status": {"conditions": [{"type": "B"}, {"type": "A"}]}}),
    );
}

#[test]
fn refusals_name_the_place_and_the_remedy() {
    let original = json!({
        "metadata": {"finalizers": ["a"]},
        "spec": {"containers": [{"name": "main", "env": [{"name": "A"}]}], "tolerations": [{"key": "k"}], "volumes": [{"emptyDir": {}}]},
    });
    let cases = [
        (json!([]), ".: the patch must be an object, not a list"),
        (
            json!({"spec": {"containers": [{"name": "main", "env": [{"value": "1"}]}]}}),
            "spec.containers[0].env[0]: has no name, by which this list is merged; add it",
        ),
        (
            json!({"spec": {"containers": [{"name": "main", "env": ["A=1"]}]}}),
            "spec.containers[0].env: element 0 of the patch list must be an object, not a string",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v"}]}}),
            "spec.volumes: element 0 of the original list has no name, by which this list is merged",
        ),
        (
            json!({"spec": {"$patch": "merge"}}),
            r#"spec: $patch must be "replace" or "delete", not "merge""#,
        ),
        (
            json!({"spec": {"new": {"deep": {"$patch": 1}}}}),
            r#"spec.new.deep: $patch must be "replace" or "delete", not a number"#,
        ),
        (
            json!({"spec": {"tolerations": [{"key": "k", "$patch": "delete"}]}}),
            "spec.tolerations[0]: $patch: delete works only in lists with a merge key; this list is replaced as a whole, give all of its elements",
        ),
        (
            json!({"spec": {"$setElementOrder/tolerations": [{"key": "k"}]}}),
            "spec.$setElementOrder/tolerations: this list has no merge key, so its elements cannot be ordered; give the whole list",
        ),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "x"}], "containers": [{"name": "main"}]}}),
            r#"spec.$setElementOrder/containers: the order contradicts the patch: "main" is missing from it or stands elsewhere"#,
        ),
        (
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": null}}),
            "metadata.$deleteFromPrimitiveList/finalizers: must be a list, not null",
        ),
        (
            json!({"metadata": {"$deleteFromPrimitiveList": ["a"]}}),
            "metadata.$deleteFromPrimitiveList: $deleteFromPrimitiveList must name a list as $deleteFromPrimitiveList/FIELD",
        ),
        (
            json!({"metadata": {"finalizers": [["a"]]}}),
            "metadata.finalizers: element 0 of the patch list must be a string, not a list",
        ),
        (
            json!({"metadata": {"labels": {"a.b/c": {"$patch": "x"}}}}),
            r#"metadata.labels[a.b/c]: $patch must be "replace" or "delete", not "x""#,
        ),
        (
            json!({"spec": {"$retainKeys": ["containers"], "hostname": "h"}}),
            "spec: $retainKeys does not name hostname, which the patch sets; add it to the list",
        ),
    ];
    for (patch, expected) in cases {
        assert_eq!(refused(&original, &patch), expected, "patch {patch}");
    }
}

#[test]
fn messages_do_not_carry_values() {
    let patch = json!({"spec": {"containers": [{"name": "a", "env": [{"value": "s3cret"}]}]}});
    assert!(!refused(&patch_target(), &patch).contains("s3cret"));
    let error = apply(&json!("s3cret"), &json!({}), Kind::Pod).unwrap_err();
    assert_eq!(
        error.fault,
        Fault::NotAnObject {
            document: "original",
            found: "a string"
        }
    );
}

fn patch_target() -> Value {
    json!({"spec": {"containers": [{"name": "a", "env": [{"name": "A", "value": "s3cret"}]}]}})
}

#[test]
fn work_grows_with_the_size_not_with_its_square() {
    let names: Vec<String> = (0..50_000).map(|number| number.to_string()).collect();
    let original = json!({"metadata": {"finalizers": names}});
    let reversed: Vec<&String> = names.iter().rev().collect();
    let patch = json!({"metadata": {
        "finalizers": reversed, "$setElementOrder/finalizers": reversed,
        "$deleteFromPrimitiveList/finalizers": &names[..25_000],
    }});
    let result = apply(&original, &patch, Kind::Pod).unwrap();
    assert_eq!(
        result["metadata"]["finalizers"].as_array().map(Vec::len),
        Some(25_000)
    );

    // Bounded work for wide objects, too: a list, a `null` and a retained key in every member.
    let wide = |value: Value| -> Value {
        Value::Object(
            names
                .iter()
                .map(|name| (name.clone(), value.clone()))
                .collect(),
        )
    };
    let mut retaining = wide(json!([2]));
    retaining["$retainKeys"] = json!(names);
    for (patch, members) in [(retaining, 50_000), (wide(Value::Null), 0)] {
        let result = apply(&wide(json!([1])), &patch, Kind::Pod).unwrap();
        assert_eq!(result.as_object().map(serde_json::Map::len), Some(members));
    }
}
