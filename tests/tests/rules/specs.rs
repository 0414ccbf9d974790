//! Random objects near the edges of the rules: most fields right, each bound crossed now and then.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::string::string_regex;
use serde_json::{Map, Value, json};

/// A field: from `values` mostly, else absent, `null` or of another type.
///
/// Whole floats such as `1.0` are left out: the API server's own JSON reader makes floats of them on
/// a direct call, and integers on their way through a webhook.
fn field(weight: u32, values: BoxedStrategy<Value>) -> BoxedStrategy<Option<Value>> {
    prop_oneof![
        weight => values.prop_map(Some),
        8 => Just(None),
        1 => Just(Some(Value::Null)),
        1 => select(vec![json!("x"), json!(7), json!(1.5), json!(true), json!([]), json!({}), json!([null]), json!("")]).prop_map(Some),
    ]
    .boxed()
}

/// A field that is nearly always there and right.
fn needed(values: BoxedStrategy<Value>) -> BoxedStrategy<Option<Value>> {
    prop_oneof![40 => values.prop_map(Some), 1 => field(1, Just(json!(0)).boxed())].boxed()
}

fn one_of(values: Vec<Value>) -> BoxedStrategy<Value> {
    select(values).boxed()
}

fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    values
        .prop_map(move |values| {
            let entries = names
                .iter()
                .zip(values)
                .filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
            Value::Object(entries.collect::<Map<_, _>>())
        })
        .boxed()
}

fn number() -> BoxedStrategy<Value> {
    prop_oneof![
        10 => (0i64..12).prop_map(Value::from),
        1 => select(vec![-1i64, 2_147_483_647, 2_147_483_648, i64::MIN, i64::MAX]).prop_map(Value::from),
    ]
    .boxed()
}

fn capacity() -> BoxedStrategy<Value> {
    // Half of them in order, so that both verdicts are common.
    let ordered = (0i64..6, 0i64..6, 0i64..6, 0i64..6).prop_map(
        |(least_buffer, more_buffer, least, more)| {
            json!({
                "bufferMin": least_buffer, "bufferMax": least_buffer + more_buffer,
                "poolMin": least, "poolMax": least + more,
            })
        },
    );
    let any = object(
        ["bufferMin", "bufferMax", "poolMin", "poolMax"]
            .map(|name| (name, needed(number())))
            .into(),
    );
    prop_oneof![2 => ordered, 1 => any].boxed()
}

fn max_unavailable() -> BoxedStrategy<Value> {
    let texts = [
        "1%", "25%", "100%", "0%", "101%", "00%", "5", "", "%", "1 %", "-1%", "99%", "10%", "1%%",
    ];
    prop_oneof![
        number(),
        select(texts.map(Value::from).to_vec()),
        "[0-9]{0,3}%".prop_map(Value::from),
    ]
    .boxed()
}

fn strategy() -> BoxedStrategy<Value> {
    object(vec![("maxUnavailable", field(20, max_unavailable()))])
}

fn container() -> BoxedStrategy<Value> {
    object(vec![
        (
            "name",
            needed(one_of(vec![
                json!("a"),
                json!("b"),
                json!("c"),
                json!("task-executor"),
            ])),
        ),
        ("image", needed(one_of(vec![json!("image:1")]))),
        ("unknown", field(2, one_of(vec![json!({"a": [1]})]))),
    ])
}

fn named_list(most: usize) -> BoxedStrategy<Value> {
    vec(container(), 0..most).prop_map(Value::from).boxed()
}

fn template() -> BoxedStrategy<Value> {
    let containers =
        prop_oneof![9 => vec(container(), 1..3).prop_map(Value::from), 1 => named_list(3)].boxed();
    let spec = object(vec![
        ("containers", needed(containers)),
        ("initContainers", field(3, named_list(3))),
        ("volumes", field(3, named_list(3))),
        ("unknown", field(2, one_of(vec![json!([1, "x", null])]))),
    ]);
    object(vec![
        ("spec", needed(spec)),
        (
            "metadata",
            field(2, one_of(vec![json!({"labels": {"a": "b"}})])),
        ),
    ])
}

fn name() -> BoxedStrategy<Value> {
    prop_oneof![
        30 => Just("x".to_owned()),
        1 => (62usize..66).prop_map(|length| "n".repeat(length)),
    ]
    .prop_map(|name| json!({ "name": name }))
    .boxed()
}

fn whole(kind: &'static str, spec: BoxedStrategy<Option<Value>>) -> BoxedStrategy<Value> {
    (name(), spec)
        .prop_map(move |(metadata, spec)| {
            let mut object = json!({ "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": kind, "metadata": metadata });
            if let Some(spec) = spec {
                object["spec"] = spec;
            }
            object
        })
        .boxed()
}

/// Random Pools.
pub(crate) fn pools() -> BoxedStrategy<Value> {
    let recycle = object(vec![(
        "type",
        field(
            20,
            one_of(vec![
                json!("Delete"),
                json!("Restart"),
                json!("Noop"),
                json!("delete"),
            ]),
        ),
    )]);
    let spec = object(vec![
        ("template", needed(template())),
        ("capacitySpec", needed(capacity())),
        ("scaleStrategy", field(4, strategy())),
        ("updateStrategy", field(4, strategy())),
        ("recycleStrategy", field(4, recycle)),
    ]);
    whole("Pool", needed(spec))
}

fn words() -> BoxedStrategy<Value> {
    prop_oneof![
        8 => vec(one_of(vec![json!("echo"), json!("x")]), 1..3).prop_map(Value::from),
        1 => Just(json!([])),
        1 => vec(one_of(vec![json!("a"), json!(1), Value::Null]), 0..3).prop_map(Value::from),
    ]
    .boxed()
}

fn task() -> BoxedStrategy<Value> {
    let variable = object(vec![
        ("name", needed(one_of(vec![json!("A"), json!("B")]))),
        ("value", field(10, one_of(vec![json!("x"), json!("")]))),
    ]);
    let process = object(vec![
        ("command", needed(words())),
        ("args", field(3, words())),
        (
            "env",
            field(3, vec(variable, 0..3).prop_map(Value::from).boxed()),
        ),
        ("workingDir", field(3, one_of(vec![json!("/tmp")]))),
    ]);
    let spec = object(vec![
        ("process", needed(process)),
        ("timeoutSeconds", field(3, number())),
        ("gracePeriodSeconds", field(3, number())),
        ("unknown", field(1, number())),
    ]);
    object(vec![("spec", needed(spec))])
}

fn patches() -> BoxedStrategy<Value> {
    vec(
        one_of(vec![
            json!({"spec": {"process": {"command": ["y"]}}}),
            json!({}),
            json!({"spec": {"x": 1}}),
        ]),
        0..3,
    )
    .prop_map(Value::from)
    .boxed()
}

/// BatchSandboxes that are right, but for an `expireTime` near the edges of what is a time.
pub(crate) fn expiring() -> BoxedStrategy<Value> {
    let date = "(0000|0001|1969|1970|2024|2030|9998|9999)-(01|02|12|13)-(00|01|29|30|31|32)";
    let clock = "(00|23|24):(00|59|60):(00|59|60)";
    let zone = "(Z|Z|Z|z||[+-](00|23|24|25):(00|59|60|61))";
    let common =
        "(1970|2030|9999)-12-(30|31)T23:(00|59):59([.,][0-9]{0,12})?(Z|[+-](00|24):(00|60))";
    let rare = format!("{date}[Tt ]{clock}([.,;][0-9]{{0,12}})?{zone}");
    let texts = |pattern: &str| string_regex(pattern).expect("a pattern");
    prop_oneof![texts(common), texts(&rare)]
        .prop_map(|time| {
            json!({
                "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
                "metadata": {"name": "x"},
                "spec": {"replicas": 1, "poolRef": "p", "expireTime": time},
            })
        })
        .boxed()
}

/// Random BatchSandboxes.
pub(crate) fn batch_sandboxes() -> BoxedStrategy<Value> {
    let reference = one_of(vec![json!("p"), json!("q"), json!("*"), json!("")]);
    let times = one_of(vec![
        json!("2030-01-02T15:04:05Z"),
        json!("2030-01-02T15:04:05.123456+01:00"),
        json!("2030-13-02T15:04:05Z"),
        json!("2030-01-02t15:04:05Z"),
        json!("2030-01-02T15:04:05z"),
        json!("2030-01-02T25:04:05Z"),
        json!("2030-02-30T15:04:05Z"),
        json!("2030-01-02T15:04:05+0100"),
        json!("2030-01-02T15:04:05"),
        json!("2030-01-02"),
        json!("1969-12-31T23:59:59Z"),
        json!("9999-12-30T21:00:00Z"),
        json!("9999-12-31T23:59:59Z"),
        json!("9999-12-32T23:59:59Z"),
        json!("0000-01-01T00:00:00Z"),
        json!("tomorrow"),
    ]);
    let spec = object(vec![
        (
            "replicas",
            field(
                8,
                prop_oneof![9 => (0i64..4).prop_map(Value::from), 1 => number()].boxed(),
            ),
        ),
        ("poolRef", field(20, reference)),
        ("template", field(8, template())),
        ("shardPatches", field(2, patches())),
        ("expireTime", field(2, times)),
        ("ttlSecondsAfterFinished", field(3, number())),
        ("taskTemplate", field(8, task())),
        ("shardTaskPatches", field(3, patches())),
        (
            "taskResourcePolicyWhenCompleted",
            field(
                3,
                one_of(vec![json!("Retain"), json!("Release"), json!("Keep")]),
            ),
        ),
        ("pause", field(2, one_of(vec![json!(false), json!(true)]))),
    ]);
    whole("BatchSandbox", needed(spec))
}
