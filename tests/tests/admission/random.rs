//! Random right Pools, applied to the real API server: what is stored is what the pure function says,
//! and applying the same again changes nothing.

use anyhow::{Result, ensure};
use json_patch::Patch;
use opensandbox_api::labels;
use opensandbox_api::sidecar::pool::{Context, mutate};
use opensandbox_api::sidecar::{ImagesConfig, InjectionDefault, Settings, default_image};
use opensandbox_api::validation;
use opensandbox_tests::installation::NAMESPACE;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use crate::pools::{generation, lacks, pool, record};
use crate::site::{Place, shared};
use crate::support::anything;

/// Number of Pools: each costs some requests to a real API server.
fn cases() -> u32 {
    std::env::var("OPENSANDBOX_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60)
}

fn sometimes(value: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Option<Value>> {
    prop_oneof![3 => Just(None), 2 => value.prop_map(Some)].boxed()
}

/// An object of these fields and perhaps one that nobody knows.
fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let unknown = proptest::option::weighted(0.3, ("[a-z]{1,3}[~/.][a-z]{1,3}", anything()));
    (values, unknown)
        .prop_map(move |(values, unknown)| {
            let known = names
                .iter()
                .zip(values)
                .filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
            Value::Object(unknown.into_iter().chain(known).collect::<Map<_, _>>())
        })
        .boxed()
}

fn fixed(value: Value) -> BoxedStrategy<Option<Value>> {
    Just(Some(value)).boxed()
}

/// Fields of the executor as a user might write some of them.
fn executor() -> BoxedStrategy<Value> {
    let capabilities = select(vec![
        json!({}),
        json!({ "capabilities": null }),
        json!({ "capabilities": { "add": [] } }),
        json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } }),
        json!({ "capabilities": { "add": ["SYS_PTRACE"] } }),
        json!({ "privileged": true }),
        json!({ "runAsUser": 0 }),
    ]);
    object(vec![
        ("name", fixed(json!(labels::TASK_EXECUTOR))),
        (
            "image",
            sometimes(select(vec![
                json!("own:v1"),
                json!(""),
                Value::Null,
                json!("opensandbox.io/task-executor:v7"),
            ])),
        ),
        ("imagePullPolicy", sometimes(Just(json!("Always")))),
        (
            "resources",
            sometimes(select(vec![
                json!({}),
                Value::Null,
                json!({ "limits": { "cpu": "1" } }),
            ])),
        ),
        (
            "env",
            sometimes(select(vec![
                json!([]),
                json!([{ "name": "MAIN_CONTAINER_NAME", "value": "x" }]),
                json!([{ "name": "A", "value": "b" }]),
            ])),
        ),
        (
            "ports",
            sometimes(select(vec![
                json!([]),
                json!([{ "containerPort": 9000 }]),
                json!([{ "containerPort": 5758, "name": "x" }]),
            ])),
        ),
        (
            "readinessProbe",
            sometimes(Just(json!({ "exec": { "command": ["true"] } }))),
        ),
        ("securityContext", sometimes(capabilities)),
    ])
}

fn container(name: &'static str) -> BoxedStrategy<Value> {
    object(vec![
        ("name", fixed(json!(name))),
        ("image", fixed(json!("ubuntu:22.04"))),
        (
            "command",
            sometimes(select(vec![json!(["sleep", "infinity"]), json!([])])),
        ),
        (
            "env",
            sometimes(Just(
                json!([{ "name": "A", "value": "" }, { "name": "A", "value": "a" }]),
            )),
        ),
        ("ports", sometimes(Just(json!([{ "containerPort": 80 }])))),
        (
            "volumeMounts",
            sometimes(Just(json!([{ "name": "data", "mountPath": "/data" }]))),
        ),
    ])
}

fn containers() -> BoxedStrategy<Value> {
    let helper = proptest::option::of(container("helper"));
    let executor = proptest::option::weighted(0.4, (executor(), 0_usize..3));
    (container("main"), helper, executor)
        .prop_map(|(main, helper, executor)| {
            let mut list: Vec<Value> = std::iter::once(main).chain(helper).collect();
            if let Some((executor, index)) = executor {
                list.insert(index.min(list.len()), executor);
            }
            Value::Array(list)
        })
        .boxed()
}

fn templates() -> BoxedStrategy<Value> {
    let annotations = select(vec![
        Value::Null,
        json!({}),
        json!({ "a.b/c~d": "e" }),
        json!({ "kubectl.kubernetes.io/default-container": "helper" }),
        json!({ "kubectl.kubernetes.io/default-container": "gone" }),
    ]);
    let metadata = object(vec![
        ("annotations", sometimes(annotations)),
        ("labels", sometimes(Just(json!({ "a": "b" })))),
    ]);
    let spec = object(vec![
        ("containers", containers().prop_map(Some).boxed()),
        (
            "initContainers",
            sometimes(vec(container("setup"), 0..2).prop_map(Value::from)),
        ),
        (
            "volumes",
            sometimes(select(vec![
                json!([]),
                Value::Null,
                json!([{ "name": "data", "emptyDir": {} }]),
            ])),
        ),
        (
            "shareProcessNamespace",
            sometimes(select(vec![json!(true), Value::Null])),
        ),
        (
            "securityContext",
            sometimes(select(vec![
                json!({}),
                Value::Null,
                json!({ "runAsUser": 1000 }),
                json!({ "runAsNonRoot": true }),
            ])),
        ),
        ("restartPolicy", sometimes(Just(json!("Always")))),
    ]);
    object(vec![
        (
            "metadata",
            sometimes(prop_oneof![5 => metadata, 1 => Just(Value::Null)]),
        ),
        ("spec", spec.prop_map(Some).boxed()),
    ])
}

/// What client-side apply of `file` sends for `stored`: lists are replaced, what is equal is left out,
/// and `null` deletes nothing that was not in the file before.
fn difference(stored: &Value, file: &Value) -> Option<Value> {
    match (stored, file) {
        (_, Value::Null) => None,
        (Value::Object(stored), Value::Object(file)) => {
            let changed = file.iter().filter_map(|(key, value)| {
                let value = match stored.get(key) {
                    Some(stored) => difference(stored, value)?,
                    None => value.clone(),
                };
                Some((key.clone(), value))
            });
            let changed: Map<_, _> = changed.collect();
            (!changed.is_empty()).then_some(Value::Object(changed))
        }
        (stored, file) => (stored != file).then(|| file.clone()),
    }
}

fn has_null_in_list(value: &Value) -> bool {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(has_null),
            Value::Object(map) => map.values().any(has_null),
            _ => false,
        }
    }
    match value {
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(map) => map.values().any(has_null_in_list),
        _ => false,
    }
}

async fn check(place: &Place<'_>, settings: &Settings, file: &Value) -> Result<()> {
    let name = file["metadata"]["name"].as_str().unwrap_or_default();
    let context = Context {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings,
    };
    let mutation = mutate(file, None, &context)
        .map_err(|problems| anyhow::anyhow!("not a right Pool: {problems:?}"))?;
    let mut expected = file.clone();
    json_patch::patch(&mut expected, &Patch(mutation.operations))?;

    let created = place.create(file, "").await?.map_err(anyhow::Error::msg)?;
    ensure!(
        created["spec"] == expected["spec"],
        "stored {}\nexpected {}",
        created["spec"],
        expected["spec"]
    );
    ensure!(
        record(&created) == record(&expected),
        "record {:?}\nexpected {:?}",
        record(&created),
        record(&expected)
    );
    if has_null_in_list(&file["spec"]) {
        // The API server drops those when it merges a patch, with the executor or without.
        return Ok(());
    }
    let patch = difference(&created, file).unwrap_or_else(|| json!({}));
    for round in 1..=2 {
        let applied = place
            .merge("pools", name, &patch)
            .await?
            .map_err(anyhow::Error::msg)?;
        ensure!(
            applied["spec"] == created["spec"],
            "round {round} by {patch}: {} became {}",
            created["spec"],
            applied["spec"]
        );
        ensure!(
            generation(&applied) == generation(&created),
            "round {round}: another generation"
        );
        ensure!(
            record(&applied) == record(&created),
            "round {round}: {:?} became {:?}",
            record(&created),
            record(&applied)
        );
    }
    // Server-side apply by another manager, of the same file.
    let said = place.apply_server_side("other", file).await?;
    if said.code == Some(0) {
        let applied = place.pool(name).await?;
        ensure!(
            applied["spec"] == created["spec"],
            "server-side: {} became {}",
            created["spec"],
            applied["spec"]
        );
        ensure!(
            generation(&applied) == generation(&created),
            "server-side: another generation"
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_is_stored_is_what_the_pure_function_says() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let image = labels::DEFAULT_TASK_EXECUTOR_IMAGE;
    let (installed, _) = ImagesConfig::read(NAMESPACE, |key| {
        (key == labels::TASK_EXECUTOR_IMAGE_KEY).then_some(image)
    });
    let settings = Settings::resolve(None, Some(&installed), &default_image());
    let mut runner = TestRunner::default();
    let mut injected = 0_u32;
    for index in 0..cases() {
        let mut file = pool(&format!("random-{index}"));
        file["spec"]["template"] = templates()
            .new_tree(&mut runner)
            .expect("a strategy without filters")
            .current();
        if !validation::pool(&file).is_empty() {
            continue;
        }
        injected += 1;
        check(&place, &settings, &file)
            .await
            .map_err(|error| error.context(file.to_string()))?;
        let stored = place.pool(&format!("random-{index}")).await?;
        ensure!(
            record(&stored).is_some()
                && !lacks(&stored).contains(&"no shareProcessNamespace".to_owned()),
            "{stored}"
        );
    }
    ensure!(
        injected > cases() / 2,
        "only {injected} of the random Pools were right"
    );
    Ok(())
}
