//! Random Pools: sound ones with odd corners, for the promises that hold for every shape.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

/// Number of cases, from `OPENSANDBOX_CASES`.
pub(crate) fn cases() -> u32 {
    std::env::var("OPENSANDBOX_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1000)
}

fn keys() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec![
            "a",
            "b/c",
            "d~e",
            "f.g",
            "name",
            "~1",
            "",
            "labels",
            "env",
            "new field",
            "é",
            "containerPort",
            "value",
        ])
        .prop_map(str::to_owned),
        "[a-z~/.]{1,6}",
    ]
}

/// Any JSON, small.
pub(crate) fn anything() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z~/ ]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((keys(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
    .boxed()
}

/// A field's value: often absent, sometimes `null` or of an odd type, else from `sound`.
fn maybe(sound: BoxedStrategy<Value>) -> BoxedStrategy<Option<Value>> {
    prop_oneof![
        6 => sound.prop_map(Some),
        5 => Just(None),
        1 => Just(Some(Value::Null)),
        1 => Just(Some(json!({}))),
        1 => anything().prop_map(Some),
    ]
    .boxed()
}

fn fields(parts: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> BoxedStrategy<Value> {
    let (names, strategies): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    (strategies, vec((keys(), anything()), 0..2))
        .prop_map(move |(values, unknown)| {
            let mut map: Map<String, Value> = unknown.into_iter().collect();
            for (name, value) in names.iter().zip(values) {
                match value {
                    Some(value) => map.insert((*name).to_owned(), value),
                    None => map.remove(*name),
                };
            }
            Value::Object(map)
        })
        .boxed()
}

#[expect(clippy::too_many_lines, reason = "one field after the other")]
fn container() -> BoxedStrategy<Value> {
    let name = select(vec![
        "main",
        "helper",
        "task-executor",
        "task-executor",
        "task-executor-installer",
        "sandbox",
        "x",
    ])
    .prop_map(|name| Some(json!(name)));
    let image = select(vec![
        "ubuntu:22.04",
        "opensandbox.io/task-executor:v9",
        "registry/executor:7",
        "",
    ])
    .prop_map(Value::from);
    let env_item = fields(vec![
        (
            "name",
            maybe(
                select(vec![
                    "A",
                    "MAIN_CONTAINER_NAME",
                    "TASK_EXECUTOR_VERIFICATION_KEY",
                ])
                .prop_map(Value::from)
                .boxed(),
            ),
        ),
        (
            "value",
            maybe(select(vec!["main", "x"]).prop_map(Value::from).boxed()),
        ),
    ]);
    let port = fields(vec![
        (
            "containerPort",
            maybe(select(vec![80, 5758]).prop_map(Value::from).boxed()),
        ),
        ("name", maybe(Just(json!("web")).boxed())),
    ]);
    let capabilities = fields(vec![
        (
            "add",
            maybe(
                vec(
                    select(vec!["SYS_PTRACE", "CAP_SYS_PTRACE", "ALL", "KILL"])
                        .prop_map(Value::from),
                    0..3,
                )
                .prop_map(Value::from)
                .boxed(),
            ),
        ),
        (
            "drop",
            maybe(
                vec(
                    select(vec!["ALL", "SYS_PTRACE", "KILL"]).prop_map(Value::from),
                    0..2,
                )
                .prop_map(Value::from)
                .boxed(),
            ),
        ),
    ]);
    let security = fields(vec![
        (
            "privileged",
            maybe(any::<bool>().prop_map(Value::from).boxed()),
        ),
        ("capabilities", maybe(capabilities)),
    ]);
    fields(vec![
        ("name", prop_oneof![9 => name, 1 => Just(None)].boxed()),
        ("image", maybe(image.boxed())),
        ("imagePullPolicy", maybe(Just(json!("Always")).boxed())),
        (
            "command",
            maybe(
                vec(
                    select(vec!["sleep", "/opt/task-executor", "infinity"]).prop_map(Value::from),
                    0..3,
                )
                .prop_map(Value::from)
                .boxed(),
            ),
        ),
        (
            "env",
            maybe(vec(env_item, 0..3).prop_map(Value::from).boxed()),
        ),
        (
            "ports",
            maybe(vec(port, 0..2).prop_map(Value::from).boxed()),
        ),
        (
            "resources",
            maybe(Just(json!({"limits": {"cpu": "1"}})).boxed()),
        ),
        (
            "readinessProbe",
            maybe(Just(json!({"exec": {"command": ["true"]}})).boxed()),
        ),
        ("securityContext", maybe(security)),
        ("restartPolicy", maybe(Just(json!("Always")).boxed())),
    ])
}

fn list(item: BoxedStrategy<Value>, most: usize) -> BoxedStrategy<Value> {
    vec(prop_oneof![12 => item, 1 => anything()], 0..most)
        .prop_map(Value::from)
        .boxed()
}

fn volume() -> BoxedStrategy<Value> {
    fields(vec![
        (
            "name",
            select(vec!["data", "task-executor"])
                .prop_map(|name| Some(json!(name)))
                .boxed(),
        ),
        ("emptyDir", maybe(Just(json!({})).boxed())),
    ])
}

fn template() -> BoxedStrategy<Value> {
    let annotations = fields(vec![(
        "kubectl.kubernetes.io/default-container",
        maybe(
            select(vec!["main", "helper", "gone", "task-executor"])
                .prop_map(Value::from)
                .boxed(),
        ),
    )]);
    let metadata = fields(vec![
        ("annotations", maybe(annotations)),
        ("labels", maybe(Just(json!({"a": "b"})).boxed())),
    ]);
    let context = fields(vec![
        (
            "runAsUser",
            maybe(select(vec![0, 1000]).prop_map(Value::from).boxed()),
        ),
        (
            "runAsNonRoot",
            maybe(any::<bool>().prop_map(Value::from).boxed()),
        ),
    ]);
    let spec = fields(vec![
        ("containers", prop_oneof![12 => list(container(), 4).prop_map(Some), 1 => anything().prop_map(Some), 1 => Just(None)].boxed()),
        ("initContainers", maybe(list(container(), 2))),
        ("volumes", maybe(list(volume(), 2))),
        ("shareProcessNamespace", prop_oneof![6 => Just(None), 2 => Just(Some(json!(true))), 1 => Just(Some(Value::Null)), 1 => Just(Some(json!(false)))].boxed()),
        ("hostPID", prop_oneof![9 => Just(None), 1 => any::<bool>().prop_map(|value| Some(json!(value)))].boxed()),
        ("securityContext", maybe(context)),
    ]);
    fields(vec![
        ("metadata", maybe(metadata)),
        (
            "spec",
            prop_oneof![16 => spec.prop_map(Some), 1 => anything().prop_map(Some), 1 => Just(None)]
                .boxed(),
        ),
    ])
}

/// A Pool whose template has any shape.
pub(crate) fn pools() -> BoxedStrategy<Value> {
    let mode = select(vec!["in-container", "in-container", "sidecar"]);
    let annotations = fields(vec![
        (
            "sandbox.opensandbox.io/task-executor-injection",
            prop_oneof![30 => Just(None), 1 => anything().prop_map(Some)].boxed(),
        ),
        (
            "sandbox.opensandbox.io/task-executor-mode",
            prop_oneof![10 => Just(None), 10 => mode.prop_map(|mode| Some(json!(mode))), 1 => anything().prop_map(Some)]
                .boxed(),
        ),
    ]);
    let metadata = fields(vec![
        ("name", Just(Some(json!("p"))).boxed()),
        ("annotations", maybe(annotations)),
    ]);
    let spec = fields(vec![
        ("template", prop_oneof![20 => template().prop_map(Some), 1 => anything().prop_map(Some), 1 => Just(None)].boxed()),
        ("capacitySpec", Just(Some(json!({"bufferMax": 1, "bufferMin": 0, "poolMax": 1, "poolMin": 0}))).boxed()),
    ]);
    fields(vec![
        (
            "metadata",
            prop_oneof![20 => metadata.prop_map(Some), 1 => anything().prop_map(Some)].boxed(),
        ),
        (
            "spec",
            prop_oneof![20 => spec.prop_map(Some), 1 => anything().prop_map(Some)].boxed(),
        ),
    ])
}
