//! The injection's promises, on random templates of every shape.
//!
//! `OPENSANDBOX_CASES` sets the number of cases (1,000 by default; `just soak-injection` uses 10^5).

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use json_patch::{Patch, PatchOperation, patch};
use opensandbox_api::labels;
use opensandbox_api::sidecar::pool::{Context, mutate};
use opensandbox_api::sidecar::{InjectionDefault, Settings, Sourced, uninject};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use support::{cases, pools};

fn settings(image: &str) -> Settings {
    Settings {
        image: Sourced {
            value: image.to_owned(),
            origin: format!("ConfigMap a/{image}"),
        },
        verification_key: None,
    }
}

fn context(settings: &Settings) -> Context<'_> {
    Context {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings,
    }
}

/// The Pool after the webhook saw it, or `None` if it is refused.
fn admitted(pool: &Value, old: Option<&Value>, settings: &Settings) -> Option<Value> {
    let mutation = mutate(pool, old, &context(settings)).ok()?;
    let mut result = pool.clone();
    patch(&mut result, &Patch(mutation.operations))
        .expect("the patch applies to what it was made for");
    Some(result)
}

/// An implementation of the two operations that knows nothing of the other one.
fn apply_by_hand(document: &Value, operations: &[PatchOperation]) -> Value {
    let mut document = document.clone();
    for operation in serde_json::to_value(operations)
        .unwrap()
        .as_array()
        .unwrap()
    {
        let kind = operation["op"].as_str().unwrap();
        let tokens: Vec<String> = operation["path"]
            .as_str()
            .unwrap()
            .split('/')
            .skip(1)
            .map(|token| token.replace("~1", "/").replace("~0", "~"))
            .collect();
        let (last, parents) = tokens.split_last().unwrap();
        let mut place = &mut document;
        for token in parents {
            place = match place {
                Value::Object(map) => map.get_mut(token).unwrap(),
                Value::Array(items) => &mut items[token.parse::<usize>().unwrap()],
                _ => unreachable!("no place for {token}"),
            };
        }
        let value = operation["value"].clone();
        match (place, kind) {
            (Value::Object(map), "add") => {
                map.insert(last.clone(), value);
            }
            (Value::Object(map), "replace") => *map.get_mut(last).unwrap() = value,
            (Value::Array(items), "add") if last == "-" => items.push(value),
            (Value::Array(items), "add") => items.insert(last.parse().unwrap(), value),
            (Value::Array(items), "replace") => items[last.parse::<usize>().unwrap()] = value,
            (place, _) => unreachable!("{kind} into {place}"),
        }
    }
    document
}

/// Whether everything that says something in `before` is in `after`, items of lists in the same order.
fn kept(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().all(|(key, value)| {
            hollow(value) || after.get(key).is_some_and(|after| kept(value, after))
        }),
        (Value::Array(before), Value::Array(after)) => {
            let mut rest = after.iter();
            before
                .iter()
                .all(|item| rest.any(|after| kept(item, after)))
        }
        (before, after) => before == after || hollow(before),
    }
}

fn hollow(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_a_second_pass_is_empty(pool in pools()) {
        let settings = settings("registry/executor:1");
        let Ok(mutation) = mutate(&pool, None, &context(&settings)) else { return Ok(()) };
        for operation in &mutation.operations {
            prop_assert!(matches!(operation, PatchOperation::Add(_) | PatchOperation::Replace(_)), "{operation}");
        }
        let mut result = pool.clone();
        patch(&mut result, &Patch(mutation.operations.clone())).unwrap();
        prop_assert_eq!(&result, &apply_by_hand(&pool, &mutation.operations));
        let mut users = pool.clone();
        if let Some(Value::Object(annotations)) = users.pointer_mut("/metadata/annotations") {
            annotations.remove(labels::INJECTION_RECORD);
        }
        prop_assert!(kept(&users, &result), "lost something:\n{pool}\n{result}");
        let second = mutate(&result, None, &context(&settings)).unwrap();
        prop_assert_eq!(second.operations, vec![], "first record {:?}", mutation.record);
        // Other settings do not change what is there.
        let other = mutate(&result, None, &context(&self::settings("other:2"))).unwrap();
        prop_assert_eq!(other.operations, vec![]);
    }

    #[test]
    fn uninject_gives_the_input_back(pool in pools()) {
        let settings = settings("registry/executor:1");
        let Some(result) = admitted(&pool, None, &settings) else { return Ok(()) };
        if pool.pointer("/metadata/annotations").and_then(|map| map.get(labels::INJECTION_RECORD)).is_none() {
            prop_assert_eq!(uninject(&result), pool);
        }
    }

    /// `kubectl apply` of the same file, client-side: lists are replaced by the file's, the rest is
    /// merged; the image in the ConfigMap has changed in between. The stored object does not change.
    #[test]
    fn applying_the_same_file_again_changes_nothing(pool in pools()) {
        let Some(stored) = admitted(&pool, None, &settings("executor:1")) else { return Ok(()) };
        let mut request = stored.clone();
        merge(&mut request, &pool);
        let Some(result) = admitted(&request, Some(&stored), &settings("executor:2")) else {
            return Err(TestCaseError::fail("refused the second time"));
        };
        prop_assert_eq!(&result, &stored);
        // Reinvocation within the same request.
        prop_assert_eq!(admitted(&result, Some(&stored), &settings("executor:2")), Some(stored));
    }

    /// `kubectl replace` of the same file: everything that is not in it is gone from the request.
    #[test]
    fn replacing_by_the_same_file_changes_nothing(pool in pools()) {
        let Some(stored) = admitted(&pool, None, &settings("executor:1")) else { return Ok(()) };
        prop_assert_eq!(admitted(&pool, Some(&stored), &settings("executor:2")), Some(stored));
    }

    /// An upgrade asked for takes the new image where the image was ours, and is done once.
    #[test]
    fn an_upgrade_takes_the_new_image_where_it_was_ours(pool in pools()) {
        let Some(stored) = admitted(&pool, None, &settings("executor:1")) else { return Ok(()) };
        if stored.pointer("/metadata/annotations").is_none_or(|map| !map.is_object()) {
            return Ok(());
        }
        let mut request = stored.clone();
        request["metadata"]["annotations"][labels::INJECTION_UPGRADE] = json!("1");
        let result = admitted(&request, Some(&stored), &settings("executor:2")).unwrap();
        let image = |pool: &Value| {
            [
                ("containers", labels::TASK_EXECUTOR),
                ("initContainers", labels::TASK_EXECUTOR),
                ("initContainers", labels::TASK_EXECUTOR_INSTALLER),
            ].iter().find_map(|(list, name)| {
                let items = pool.pointer(&format!("/spec/template/spec/{list}"))?.as_array()?;
                items.iter().find(|item| item["name"] == *name).map(|item| item["image"].clone())
            })
        };
        match image(&stored) {
            Some(image_before) if image_before == "executor:1" => prop_assert_eq!(image(&result), Some(json!("executor:2"))),
            before => prop_assert_eq!(image(&result), before),
        }
        prop_assert_eq!(admitted(&result, Some(&stored), &settings("executor:2")), Some(result.clone()));
        prop_assert_eq!(admitted(&result, Some(&result), &settings("executor:3")), Some(result));
    }
}

proptest! {
    // Each case is a dozen reviews.
    #![proptest_config(ProptestConfig { cases: cases() / 4, ..ProptestConfig::default() })]

    /// What is stored after a change of the mode is what would be stored of the user's Pool in that mode from
    /// the start; and the same on the way back.
    #[test]
    fn a_change_of_the_mode_leaves_nothing_of_the_other(pool in pools_of_both_modes()) {
        let modes = ["sidecar", "in-container"].map(|mode| in_mode(&pool, mode));
        let [Some(one), Some(other)] = modes else { return Ok(()) };
        let settings = settings("executor:1");
        let (Some(first), Some(second)) = (admitted(&one, None, &settings), admitted(&other, None, &settings)) else {
            return Ok(());
        };
        for (mode, wanted, stored, expected) in
            [("in-container", &other, &first, &second), ("sidecar", &one, &second, &first)]
        {
            let request = in_mode(stored, mode).unwrap();
            let Some(result) = admitted(&request, Some(stored), &settings) else {
                return Err(TestCaseError::fail("the change is refused"));
            };
            prop_assert_eq!(&result["spec"], &expected["spec"], "{} of {}", mode, stored);
            if stored.pointer("/metadata/annotations").and_then(|map| map.get(labels::INJECTION_RECORD)).is_some()
                && pool.pointer("/metadata/annotations").and_then(|map| map.get(labels::INJECTION_RECORD)).is_none()
            {
                prop_assert_eq!(&uninject(&result), wanted);
            }
            // Reinvocation within the same request, a second pass later, and the operator, which knows no stored one.
            prop_assert_eq!(admitted(&result, Some(stored), &settings), Some(result.clone()));
            prop_assert_eq!(admitted(&result, Some(&result), &settings), Some(result.clone()));
            let alone = admitted(&request, None, &settings).unwrap();
            prop_assert_eq!(&alone["spec"], &expected["spec"]);
            // The user's file, applied again.
            let mut applied = result.clone();
            merge(&mut applied, wanted);
            prop_assert_eq!(admitted(&applied, Some(&result), &settings), Some(result.clone()));
            // By `kubectl apply` of the changed file: the lists are the file's.
            let mut applied = stored.clone();
            merge(&mut applied, wanted);
            let applied = admitted(&applied, Some(stored), &settings).unwrap();
            prop_assert_eq!(&applied["spec"], &expected["spec"]);
        }
    }

    /// In the mode in-container the Pool's containers stay as they were written, to the letter.
    #[test]
    fn in_container_no_container_of_the_users_changes(pool in pools_of_both_modes()) {
        let Some(pool) = in_mode(&pool, "in-container") else { return Ok(()) };
        let Some(result) = admitted(&pool, None, &settings("executor:1")) else { return Ok(()) };
        prop_assert_eq!(result.pointer("/spec/template/spec/containers"), pool.pointer("/spec/template/spec/containers"));
        prop_assert_eq!(result.pointer("/spec/template/metadata"), pool.pointer("/spec/template/metadata"));
    }
}

/// The properties of the modes look at Pools that can be stored in both, of which there must be some.
#[test]
fn some_of_the_random_pools_can_be_stored_in_both_modes() {
    let mut runner = TestRunner::deterministic();
    let settings = settings("executor:1");
    let both = (0..1000).filter(|_| {
        let pool = pools_of_both_modes()
            .new_tree(&mut runner)
            .unwrap()
            .current();
        ["sidecar", "in-container"].iter().all(|mode| {
            let result = in_mode(&pool, mode).and_then(|pool| admitted(&pool, None, &settings));
            result.is_some_and(|result| {
                result["metadata"]["annotations"]
                    .get(labels::INJECTION_RECORD)
                    .is_some()
            })
        })
    });
    let both = both.count();
    assert!(both > 200, "only {both} of 1000");
}

/// Random Pools, of which many can be stored in either mode: without a sidecar of the user's, and with a command.
fn pools_of_both_modes() -> impl Strategy<Value = Value> {
    pools().prop_map(|mut pool| {
        for list in ["containers", "initContainers"] {
            let items = pool.pointer_mut(&format!("/spec/template/spec/{list}"));
            let Some(Value::Array(items)) = items else {
                continue;
            };
            items.retain(|item| item["name"] != labels::TASK_EXECUTOR);
            for item in items.iter_mut().filter_map(Value::as_object_mut) {
                item.insert("command".to_owned(), json!(["sleep", "1d"]));
            }
        }
        pool
    })
}

/// The Pool with this mode asked for, where it can have annotations.
fn in_mode(pool: &Value, mode: &str) -> Option<Value> {
    let mut pool = pool.clone();
    let metadata = pool.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    let annotations = annotations.as_object_mut()?;
    annotations.insert(labels::EXECUTOR_MODE.to_owned(), json!(mode));
    Some(pool)
}

/// JSON merge patch (RFC 7396) without its removals: what client-side apply of an unchanged file sends.
fn merge(target: &mut Value, source: &Value) {
    match (target, source) {
        (Value::Object(target), Value::Object(source)) => {
            for (key, value) in source {
                match target.get_mut(key) {
                    Some(place) => merge(place, value),
                    None => {
                        target.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (target, source) => {
            if !source.is_null() {
                target.clone_from(source);
            }
        }
    }
}
