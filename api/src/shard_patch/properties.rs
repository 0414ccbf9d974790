use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Error, Fault, Kind, apply};

const KINDS: [Kind; 3] = [Kind::Pod, Kind::PodTemplate, Kind::TaskTemplate];

/// Any JSON, made of the names that mean something to us, so that cases reach deep.
fn json_like_a_pod() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "process",
        "containers",
        "env",
        "ports",
        "volumes",
        "finalizers",
        "tolerations",
        "labels",
        "name",
        "value",
        "containerPort",
        "conditions",
        "type",
        "x.y/z",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..3).prop_map(Value::from),
        Just(json!(1.0)),
        prop::sample::select(vec!["a", "b", "delete", "replace", "name"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6).prop_map(|members| Value::Object(
                members
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect()
            )),
        ]
    })
}

/// The same with directives strewn in.
fn patch_like() -> impl Strategy<Value = Value> {
    let directive = prop::sample::select(vec![
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$setElementOrder/finalizers",
        "$setElementOrder",
        "$deleteFromPrimitiveList/finalizers",
        "$deleteFromPrimitiveList/env",
        "$deleteFromPrimitiveList",
        "$other",
    ]);
    (
        json_like_a_pod(),
        prop::collection::vec(
            (any::<prop::sample::Index>(), directive, json_like_a_pod()),
            0..4,
        ),
    )
        .prop_map(|(mut patch, directives)| {
            for (place, directive, value) in directives {
                let mut objects = 0;
                visit(&mut patch, &mut |_| objects += 1);
                if objects == 0 {
                    break;
                }
                let mut countdown = place.index(objects);
                visit(&mut patch, &mut |members| {
                    if countdown == 0 {
                        members.insert(directive.to_owned(), value.clone());
                    }
                    countdown = countdown.wrapping_sub(1);
                });
            }
            patch
        })
}

fn visit(value: &mut Value, act: &mut impl FnMut(&mut serde_json::Map<String, Value>)) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(|member| visit(member, act));
            act(members);
        }
        Value::Array(items) => items.iter_mut().for_each(|item| visit(item, act)),
        _ => {}
    }
}

/// Documents with a well-formed list, on which a patch without directives must succeed.
fn pod() -> impl Strategy<Value = Value> {
    let container = (
        prop::sample::select(vec!["a", "b", "c", "d"]),
        prop::option::of(0..3_i64),
    );
    (
        prop::collection::vec(container, 0..4),
        prop::collection::vec(prop::sample::select(vec!["f", "g", "h"]), 0..3),
    )
        .prop_map(|(containers, finalizers)| {
            let containers: Vec<Value> = containers
                .into_iter()
                .map(|(name, image)| match image {
                    Some(image) => json!({"name": name, "image": image}),
                    None => json!({"name": name}),
                })
                .collect();
            json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers}})
        })
}

fn has_directive(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(name, value)| {
            name == "$patch"
                || name == "$retainKeys"
                || name.starts_with("$setElementOrder")
                || name.starts_with("$deleteFromPrimitiveList")
                || has_directive(value)
        }),
        Value::Array(items) => items.iter().any(has_directive),
        _ => false,
    }
}

proptest! {
    #[test]
    fn an_empty_patch_changes_nothing(original in json_like_a_pod()) {
        for kind in KINDS {
            match apply(&original, &json!({}), kind) {
                Ok(result) if original.is_null() => prop_assert_eq!(result, json!({})),
                Ok(result) => prop_assert_eq!(&result, &original),
                Err(Error { fault, .. }) => {
                    let named = matches!(fault, Fault::NotAnObject { .. });
                    prop_assert!(named, "{}", fault);
                    prop_assert!(!original.is_object());
                }
            }
        }
    }

    #[test]
    fn any_patch_on_anything_gives_a_result_without_directives_or_an_error(
        original in json_like_a_pod(),
        patch in patch_like(),
    ) {
        for kind in KINDS {
            if let Ok(result) = apply(&original, &patch, kind) {
                prop_assert!(!has_directive(&result), "{}", result);
            }
        }
    }

    #[test]
    fn a_patch_without_directives_applied_twice_is_as_applied_once(original in pod(), patch in pod()) {
        let once = apply(&original, &patch, Kind::Pod).unwrap();
        let twice = apply(&once, &patch, Kind::Pod).unwrap();
        prop_assert_eq!(twice, once);
    }
}
