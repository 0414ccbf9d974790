//! Which requests cost a call of the webhook. Each test has its own installation, because it counts.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::labels;
use opensandbox_tests::cluster::start_or_skip;
use opensandbox_tests::installation::{self, Installation};
use serde_json::{Value, json};

use crate::batch_sandboxes::sandbox;
use crate::pools::{self, labelled, lacks, names, pool};
use crate::site::{Failures, Place, Site, file, own};
use crate::table::put;

/// Reviews answered so far: of the mutating webhook of Pools, the validating one, and that of
/// BatchSandboxes.
async fn calls(site: &Site) -> Result<[u64; 3]> {
    let (_, text) = site.webhook.replicas()[0].get("/metrics").await?;
    let mut counts = BTreeMap::<&str, u64>::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("opensandbox_webhook_admission_requests_total{") else {
            continue;
        };
        let (series, count) = rest.rsplit_once(' ').context("a sample has a value")?;
        let name = ["mutate-sandbox", "v1alpha1-pool", "batchsandbox"];
        let which = if series.contains(name[0]) {
            "mutate"
        } else if series.contains(name[2]) {
            "sandbox"
        } else {
            "validate"
        };
        *counts.entry(which).or_default() += count.parse::<u64>()?;
    }
    Ok(["mutate", "validate", "sandbox"]
        .map(|which| counts.get(which).copied().unwrap_or_default()))
}

/// Runs kubectl, words apart by spaces, and tells how many calls it cost.
async fn cost(place: &Place<'_>, command: &str, input: Option<&Value>) -> Result<[u64; 3]> {
    let args: Vec<_> = command.split(' ').collect();
    let before = calls(place.site).await?;
    match input {
        Some(object) => place.feed(&args, object).await?.done()?,
        None => place.kubectl(&args).await?.done()?,
    };
    let after = calls(place.site).await?;
    Ok([0, 1, 2].map(|index| after[index] - before[index]))
}

const POOL_STATUS: &str = r#"{"status":{"total":1,"allocated":0,"available":1,"revision":"x"}}"#;
const SANDBOX_STATUS: &str = r#"{"status":{"replicas":1,"allocated":0,"ready":0,"taskFailed":0,"taskPending":0,"taskRunning":0,"taskSucceed":0,"taskUnknown":0}}"#;
const MERGE: &str = "--type=merge --patch";

/// What is done to stored objects, and the calls it costs: mutation and validation of Pools, validation
/// of BatchSandboxes.
fn commands() -> Vec<(&'static str, String, [u64; 3])> {
    let (record, upgrade) = (labels::INJECTION_RECORD, labels::INJECTION_UPGRADE);
    let patch = |spec: &str| format!("patch pool injected {MERGE} {{\"spec\":{{{spec}}}}}");
    vec![
        (
            "an opted-out Pool",
            format!(
                r#"patch pool out {MERGE} {{"spec":{{"template":{{"spec":{{"hostNetwork":true}}}}}}}}"#
            ),
            [0, 0, 0],
        ),
        (
            "a write of status",
            format!("patch pool injected --subresource=status {MERGE} {POOL_STATUS}"),
            [0, 0, 0],
        ),
        (
            "an annotation",
            "annotate pool injected example.com/a=b".to_owned(),
            [0, 0, 0],
        ),
        (
            "a finalizer",
            format!(
                r#"patch pool injected {MERGE} {{"metadata":{{"finalizers":["example.com/wait"]}}}}"#
            ),
            [0, 0, 0],
        ),
        (
            "a label",
            "label pool injected example.com/a=b".to_owned(),
            [0, 1, 0],
        ),
        (
            "capacity",
            patch(r#""capacitySpec":{"poolMax":20}"#),
            [0, 1, 0],
        ),
        (
            "a strategy",
            patch(r#""scaleStrategy":{"maxUnavailable":"10%"}"#),
            [0, 1, 0],
        ),
        (
            "the template",
            patch(r#""template":{"spec":{"nodeSelector":{"a":"b"}}}"#),
            [1, 1, 0],
        ),
        (
            "an upgrade without a new image",
            format!("annotate pool injected {upgrade}=1"),
            [1, 0, 0],
        ),
        (
            "the record",
            format!("annotate pool injected {record}-"),
            [1, 0, 0],
        ),
        (
            "a deletion that waits",
            "delete pool injected --wait=false".to_owned(),
            [0, 0, 0],
        ),
        (
            "its last update",
            format!(r#"patch pool injected {MERGE} {{"metadata":{{"finalizers":[]}}}}"#),
            [0, 0, 0],
        ),
        (
            "a plain BatchSandbox",
            format!(r#"patch batchsandbox plain {MERGE} {{"spec":{{"replicas":4}}}}"#),
            [0, 0, 0],
        ),
        (
            "one with tasks",
            format!(r#"patch batchsandbox tasks {MERGE} {{"spec":{{"replicas":4}}}}"#),
            [0, 0, 1],
        ),
        (
            "its annotation",
            "annotate batchsandbox tasks a=b".to_owned(),
            [0, 0, 0],
        ),
        (
            "its status",
            format!("patch batchsandbox tasks --subresource=status {MERGE} {SANDBOX_STATUS}"),
            [0, 0, 0],
        ),
    ]
}

#[tokio::test]
async fn only_what_the_webhook_can_change_or_judge_costs_a_call() -> Result<()> {
    let Some(site) = own().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let quiet = site.place(&[(labels::INJECTION, "disabled")]).await?;
    let mut plain = sandbox("plain");
    put(&mut plain, "/spec/taskTemplate", None);
    let mut nulls = sandbox("nulls");
    for pointer in [
        "/spec/taskTemplate",
        "/spec/shardPatches",
        "/spec/shardTaskPatches",
    ] {
        put(&mut nulls, pointer, Some(&Value::Null));
    }
    let mut failures = Failures::default();
    let mut check = |what: &str, found: [u64; 3], expected: [u64; 3]| {
        failures.check(found == expected, || {
            format!("{what}: {found:?} instead of {expected:?}")
        });
    };
    for (what, place, object, expected) in [
        (
            "an opted-out Pool",
            &place,
            labelled("out", "disabled"),
            [0, 0, 0],
        ),
        (
            "a Pool in an opted-out namespace",
            &quiet,
            pool("out"),
            [0, 1, 0],
        ),
        (
            "an opted-in Pool there",
            &quiet,
            labelled("in", "enabled"),
            [1, 1, 0],
        ),
        ("an injected Pool", &place, pool("injected"), [1, 1, 0]),
        (
            "a labelled Pool",
            &place,
            labelled("labelled", "enabled"),
            [1, 1, 0],
        ),
        ("a plain BatchSandbox", &place, plain, [0, 0, 0]),
        ("one with nulls", &place, nulls, [0, 0, 0]),
        ("one with tasks", &place, sandbox("tasks"), [0, 0, 1]),
    ] {
        check(
            what,
            cost(place, "apply --dry-run=server -f -", Some(&object)).await?,
            expected,
        );
        check(
            what,
            cost(place, "apply -f -", Some(&object)).await?,
            expected,
        );
    }
    for (what, command, expected) in commands() {
        let what = format!("update: {what}");
        check(&what, cost(&place, &command, None).await?, expected);
    }
    failures.told()
}

/// Takes the schemas out of the CRDs: what a cluster may have stored before.
fn loose(mut crd: Value) -> Value {
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
        version["schema"]["openAPIV3Schema"] =
            json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    }
    crd
}

fn odd_pools() -> Vec<(&'static str, Value)> {
    let capacity = json!({ "bufferMin": 0, "bufferMax": 1, "poolMin": 0, "poolMax": 2 });
    let template = json!({ "spec": { "containers": [pools::sandbox()] } });
    vec![
        (
            "right",
            json!({ "template": template, "capacitySpec": capacity }),
        ),
        (
            "template-null",
            json!({ "template": null, "capacitySpec": capacity }),
        ),
        ("template-missing", json!({ "capacitySpec": capacity })),
        (
            "template-empty",
            json!({ "template": {}, "capacitySpec": capacity }),
        ),
        (
            "template-spec-null",
            json!({ "template": { "spec": null }, "capacitySpec": capacity }),
        ),
        (
            "template-a-string",
            json!({ "template": "pod", "capacitySpec": capacity }),
        ),
        (
            "containers-null",
            json!({ "template": { "spec": { "containers": null } }, "capacitySpec": capacity }),
        ),
        ("capacity-missing", json!({ "template": template })),
        (
            "capacity-null",
            json!({ "template": template, "capacitySpec": null }),
        ),
        ("spec-empty", json!({})),
        ("spec-null", Value::Null),
        ("spec-a-list", json!([])),
        ("spec-a-string", json!("x")),
        (
            "bounds",
            json!({ "template": template, "capacitySpec": { "bufferMin": 9, "bufferMax": 1, "poolMin": 0, "poolMax": 2 } }),
        ),
    ]
}

const API: &str = "sandbox.opensandbox.io/v1alpha1";

/// A cluster where odd objects of both kinds were stored before the rules existed.
async fn with_odd_objects() -> Result<Option<Site>> {
    let Some(cluster) = start_or_skip(opensandbox_tests::Settings::default()).await? else {
        return Ok(None);
    };
    for plural in ["pools", "batchsandboxes"] {
        let text = file(&format!("config/crd/{plural}.sandbox.opensandbox.io.yaml"))?;
        let crd = loose(serde_saphyr::from_str(&text)?).to_string();
        cluster
            .kubectl_with_input(&["apply", "--server-side", "-f", "-"], &crd)
            .await?;
    }
    let established = [
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=30s",
    ];
    cluster.kubectl(&established).await?;
    cluster.kubectl(&["create", "namespace", "odd"]).await?;
    let mut objects =
        vec![json!({ "apiVersion": API, "kind": "Pool", "metadata": { "name": "no-spec" } })];
    for (name, spec) in odd_pools() {
        for kind in ["Pool", "BatchSandbox"] {
            objects.push(json!({ "apiVersion": API, "kind": kind, "metadata": { "name": name }, "spec": spec }));
        }
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
    cluster
        .kubectl_with_input(
            &["create", "--validate=false", "--namespace=odd", "-f", "-"],
            &list,
        )
        .await?;
    let webhook = Installation::install(&cluster, installation::Settings::default()).await?;
    Ok(Some(Site { webhook, cluster }))
}

/// What is done to each, words apart by spaces; and whether it touches neither spec nor labels, so that
/// it must not be refused for what was stored before.
fn touches(name: &str) -> Vec<(String, bool)> {
    let (label, upgrade) = (labels::INJECTION, labels::INJECTION_UPGRADE);
    let mut touches = vec![
        (format!("annotate pool {name} a=b"), false),
        (format!("annotate pool {name} {upgrade}=1"), false),
        (format!("label pool {name} a=b"), false),
        (format!("label pool {name} {label}=enabled"), false),
        (
            format!("label --overwrite pool {name} {label}=disabled"),
            false,
        ),
        (
            format!("patch pool {name} --subresource=status {MERGE} {POOL_STATUS}"),
            true,
        ),
        (
            format!(r#"patch pool {name} {MERGE} {{"spec":{{"capacitySpec":{{"poolMax":30}}}}}}"#),
            false,
        ),
        (
            format!(r#"patch pool {name} {MERGE} {{"spec":{{"template":null}}}}"#),
            false,
        ),
        (
            format!(
                r#"patch pool {name} {MERGE} {{"metadata":{{"finalizers":["example.com/wait"]}}}}"#
            ),
            false,
        ),
        (format!("delete pool {name} --wait=false"), true),
        (
            format!(r#"patch pool {name} {MERGE} {{"metadata":{{"finalizers":[]}}}}"#),
            false,
        ),
    ];
    if name != "no-spec" {
        touches.extend([
            (format!("annotate batchsandbox {name} a=b"), false),
            (
                format!("annotate batchsandbox {name} sandbox.opensandbox.io/alloc-status={{}}"),
                false,
            ),
            (
                format!(r#"patch batchsandbox {name} {MERGE} {{"spec":{{"replicas":3}}}}"#),
                false,
            ),
            (format!("delete batchsandbox {name}"), true),
        ]);
    }
    touches
}

#[tokio::test]
async fn odd_stored_objects_never_make_a_match_condition_fail() -> Result<()> {
    let Some(site) = with_odd_objects().await? else {
        return Ok(());
    };
    let place = site.existing("odd").await?;
    let mut failures = Failures::default();
    for name in odd_pools()
        .into_iter()
        .map(|(name, _)| name)
        .chain(["no-spec"])
    {
        for (command, harmless) in touches(name) {
            let said = place
                .kubectl(&command.split(' ').collect::<Vec<_>>())
                .await?;
            let text = said.stderr.to_lowercase();
            let bad = [
                "matchcondition",
                "match condition",
                "expression",
                "no such key",
                "no such overload",
                "failed calling",
                "panic",
            ];
            failures.check(!bad.iter().any(|bad| text.contains(bad)), || {
                format!("{name}: {said:?}")
            });
            // A type that no schema of this API ever allowed is refused by the API server itself.
            let never_allowed =
                ["template-a-string", "spec-a-list", "spec-a-string"].contains(&name);
            let refused = harmless && !never_allowed && said.code != Some(0);
            failures.check(!refused, || format!("{name}: {said:?}"));
        }
    }
    failures.told()
}

/// One that was stored without the executor gets it with the first change that anybody makes.
#[tokio::test]
async fn a_pool_that_was_stored_without_the_webhook_is_injected_later() -> Result<()> {
    let Some(site) = with_odd_objects().await? else {
        return Ok(());
    };
    let place = site.existing("odd").await?;
    ensure!(names(&place.pool("right").await?) == ["sandbox"]);
    place
        .kubectl(&["annotate", "pool", "right", "example.com/a=b"])
        .await?
        .done()?;
    let stored = place.pool("right").await?;
    ensure!(
        names(&stored) == ["sandbox", "task-executor"] && lacks(&stored).is_empty(),
        "{stored}"
    );
    Ok(())
}
