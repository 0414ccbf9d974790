//! Which requests cost a call of the webhook. Each test has its own installation, because it counts.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::labels;
use opensandbox_tests::cluster::start_or_skip;
use opensandbox_tests::installation::{self, Installation};
use serde_json::{Value, json};

use crate::pools::{labelled, lacks, names, pool};
use crate::site::{Failures, Place, Site, own};

/// Reviews answered so far: of the mutating webhook of Pools, the validating one, and that of
/// BatchSandboxes.
async fn calls(site: &Site) -> Result<[u64; 3]> {
    let (_, text) = site.webhook.replicas()[0].get("/metrics").await?;
    let mut counts = BTreeMap::<&str, u64>::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("opensandbox_webhook_admission_requests_total{") else { continue };
        let (series, count) = rest.rsplit_once(' ').context("a sample has a value")?;
        let name = ["mutate-sandbox", "v1alpha1-pool", "batchsandbox"];
        let which = if series.contains(name[0]) { "mutate" } else if series.contains(name[2]) { "sandbox" } else { "validate" };
        *counts.entry(which).or_default() += count.parse::<u64>()?;
    }
    Ok(["mutate", "validate", "sandbox"].map(|which| counts.get(which).copied().unwrap_or_default()))
}

/// Runs kubectl and tells how many calls it cost.
async fn cost(place: &Place<'_>, args: &[&str], input: Option<&Value>) -> Result<[u64; 3]> {
    let before = calls(place.site).await?;
    match input {
        Some(object) => place.feed(args, object).await?.done()?,
        None => place.kubectl(args).await?.done()?,
    };
    let after = calls(place.site).await?;
    Ok([0, 1, 2].map(|index| after[index] - before[index]))
}

#[tokio::test]
async fn only_what_the_webhook_can_change_or_judge_costs_a_call() -> Result<()> {
    let Some(site) = own().await? else { return Ok(()) };
    let place = site.place(&[]).await?;
    let quiet = site.place(&[(labels::INJECTION, "disabled")]).await?;
    let mut failures = Failures::default();
    let apply = ["apply", "-f", "-"];
    let merge = |patch: &'static str| ["patch", "pool", "injected", "--type=merge", "--patch", patch];
    let mut check = |what: &str, found: [u64; 3], expected: [u64; 3]| {
        failures.check(found == expected, || format!("{what}: {found:?} instead of {expected:?}"));
    };

    check("an opted-out Pool", cost(&place, &apply, Some(&labelled("out", "disabled"))).await?, [0, 0, 0]);
    check("its update", cost(&place, &["patch", "pool", "out", "--type=merge", "--patch", r#"{"spec":{"template":{"spec":{"hostNetwork":true}}}}"#], None).await?, [0, 0, 0]);
    check("a Pool in an opted-out namespace", cost(&quiet, &apply, Some(&pool("out"))).await?, [0, 1, 0]);
    check("an opted-in Pool there", cost(&quiet, &apply, Some(&labelled("in", "enabled"))).await?, [1, 1, 0]);
    check("an injected Pool", cost(&place, &apply, Some(&pool("injected"))).await?, [1, 1, 0]);
    check("a labelled Pool", cost(&place, &apply, Some(&labelled("labelled", "enabled"))).await?, [1, 1, 0]);

    let status = r#"{"status":{"total":1,"allocated":0,"available":1,"revision":"x"}}"#;
    check("a write of status", cost(&place, &["patch", "pool", "injected", "--subresource=status", "--type=merge", "--patch", status], None).await?, [0, 0, 0]);
    check("an annotation", cost(&place, &["annotate", "pool", "injected", "example.com/a=b"], None).await?, [0, 0, 0]);
    check("a finalizer", cost(&place, &merge(r#"{"metadata":{"finalizers":["example.com/wait"]}}"#), None).await?, [0, 0, 0]);
    check("a label", cost(&place, &["label", "pool", "injected", "example.com/a=b"], None).await?, [0, 1, 0]);
    check("capacity", cost(&place, &merge(r#"{"spec":{"capacitySpec":{"poolMax":20}}}"#), None).await?, [0, 1, 0]);
    check("a strategy", cost(&place, &merge(r#"{"spec":{"scaleStrategy":{"maxUnavailable":"10%"}}}"#), None).await?, [0, 1, 0]);
    check("the template", cost(&place, &merge(r#"{"spec":{"template":{"spec":{"nodeSelector":{"a":"b"}}}}}"#), None).await?, [1, 1, 0]);
    let upgrade = format!("{}=1", labels::INJECTION_UPGRADE);
    check("an upgrade without a new image", cost(&place, &["annotate", "pool", "injected", &upgrade], None).await?, [1, 0, 0]);
    let removal = format!("{}-", labels::INJECTION_RECORD);
    check("the record", cost(&place, &["annotate", "pool", "injected", &removal], None).await?, [1, 0, 0]);
    check("a deletion that waits", cost(&place, &["delete", "pool", "injected", "--wait=false"], None).await?, [0, 0, 0]);
    check("its last update", cost(&place, &merge(r#"{"metadata":{"finalizers":[]}}"#), None).await?, [0, 0, 0]);

    let sandbox_status = r#"{"status":{"replicas":1,"allocated":0,"ready":0,"taskFailed":0,"taskPending":0,"taskRunning":0,"taskSucceed":0,"taskUnknown":0}}"#;
    let sandbox = |name: &str, extra: Value| {
        let mut object = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
            "metadata": { "name": name }, "spec": { "replicas": 1, "poolRef": "p" },
        });
        object["spec"].as_object_mut().expect("an object").extend(extra.as_object().cloned().unwrap_or_default());
        object
    };
    let task = json!({ "taskTemplate": { "spec": { "process": { "command": ["a"] } } } });
    check("a plain BatchSandbox", cost(&place, &apply, Some(&sandbox("plain", json!({})))).await?, [0, 0, 0]);
    check("its update", cost(&place, &["patch", "batchsandbox", "plain", "--type=merge", "--patch", r#"{"spec":{"replicas":4}}"#], None).await?, [0, 0, 0]);
    check("nulls", cost(&place, &apply, Some(&sandbox("nulls", json!({ "taskTemplate": null, "shardPatches": null })))).await?, [0, 0, 0]);
    check("one with tasks", cost(&place, &apply, Some(&sandbox("tasks", task))).await?, [0, 0, 1]);
    check("its annotation", cost(&place, &["annotate", "batchsandbox", "tasks", "a=b"], None).await?, [0, 0, 0]);
    check("its status", cost(&place, &["patch", "batchsandbox", "tasks", "--subresource=status", "--type=merge", "--patch", sandbox_status], None).await?, [0, 0, 0]);
    check("a server's dry run", cost(&place, &["apply", "--dry-run=server", "-f", "-"], Some(&pool("dry"))).await?, [1, 1, 0]);
    failures.told()
}

/// Takes the schemas out of the CRDs: what a cluster may have stored before.
fn loose(mut crd: Value) -> Value {
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
        version["schema"]["openAPIV3Schema"] = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    }
    crd
}

fn odd_pools() -> Vec<(&'static str, Value)> {
    let capacity = json!({ "bufferMin": 0, "bufferMax": 1, "poolMin": 0, "poolMax": 2 });
    let template = json!({ "spec": { "containers": [crate::pools::sandbox()] } });
    vec![
        ("right", json!({ "template": template, "capacitySpec": capacity })),
        ("template-null", json!({ "template": null, "capacitySpec": capacity })),
        ("template-missing", json!({ "capacitySpec": capacity })),
        ("template-empty", json!({ "template": {}, "capacitySpec": capacity })),
        ("template-spec-null", json!({ "template": { "spec": null }, "capacitySpec": capacity })),
        ("template-a-string", json!({ "template": "pod", "capacitySpec": capacity })),
        ("containers-null", json!({ "template": { "spec": { "containers": null } }, "capacitySpec": capacity })),
        ("capacity-missing", json!({ "template": template })),
        ("capacity-null", json!({ "template": template, "capacitySpec": null })),
        ("spec-empty", json!({})),
        ("spec-null", Value::Null),
        ("spec-a-list", json!([])),
        ("spec-a-string", json!("x")),
        ("bounds", json!({ "template": template, "capacitySpec": { "bufferMin": 9, "bufferMax": 1, "poolMin": 0, "poolMax": 2 } })),
    ]
}

/// Objects that somebody stored before the rules existed are looked after like all others.
#[tokio::test]
async fn odd_stored_objects_never_make_a_match_condition_fail() -> Result<()> {
    let Some(cluster) = start_or_skip(opensandbox_tests::Settings::default()).await? else { return Ok(()) };
    for plural in ["pools", "batchsandboxes"] {
        let text = crate::site::file(&format!("config/crd/{plural}.sandbox.opensandbox.io.yaml"))?;
        let crd: Value = serde_saphyr::from_str(&text)?;
        cluster.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &loose(crd).to_string()).await?;
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).await?;
    cluster.kubectl(&["create", "namespace", "odd"]).await?;
    let api = "sandbox.opensandbox.io/v1alpha1";
    for (name, spec) in odd_pools() {
        let object = json!({ "apiVersion": api, "kind": "Pool", "metadata": { "name": name }, "spec": spec });
        cluster.kubectl_with_input(&["create", "--namespace=odd", "-f", "-"], &object.to_string()).await?;
        let sandbox = json!({ "apiVersion": api, "kind": "BatchSandbox", "metadata": { "name": name }, "spec": spec });
        cluster.kubectl_with_input(&["create", "--namespace=odd", "-f", "-"], &sandbox.to_string()).await?;
    }
    let without = json!({ "apiVersion": api, "kind": "Pool", "metadata": { "name": "no-spec" } });
    cluster.kubectl_with_input(&["create", "--namespace=odd", "-f", "-"], &without.to_string()).await?;

    let webhook = Installation::install(&cluster, installation::Settings::default()).await?;
    let site = Site { webhook, cluster };
    let place = site.existing("odd").await?;
    let mut failures = Failures::default();
    let all = odd_pools().into_iter().map(|(name, _)| name).chain(["no-spec"]);
    let upgrade = format!("{}=1", labels::INJECTION_UPGRADE);
    let (enabled, disabled) = (format!("{}=enabled", labels::INJECTION), format!("{}=disabled", labels::INJECTION));
    for name in all {
        let pool: Vec<Vec<&str>> = vec![
            vec!["annotate", "pool", name, "a=b"],
            vec!["annotate", "pool", name, &upgrade],
            vec!["label", "pool", name, "a=b"],
            vec!["label", "pool", name, &enabled],
            vec!["label", "--overwrite", "pool", name, &disabled],
            vec!["patch", "pool", name, "--subresource=status", "--type=merge", "--patch", r#"{"status":{"total":1,"allocated":0,"available":1,"revision":"x"}}"#],
            vec!["patch", "pool", name, "--type=merge", "--patch", r#"{"spec":{"capacitySpec":{"poolMax":30}}}"#],
            vec!["patch", "pool", name, "--type=merge", "--patch", r#"{"spec":{"template":null}}"#],
            vec!["patch", "pool", name, "--type=json", "--patch", r#"[{"op":"add","path":"/metadata/finalizers","value":["example.com/wait"]}]"#],
            vec!["delete", "pool", name, "--wait=false"],
            vec!["patch", "pool", name, "--type=json", "--patch", r#"[{"op":"remove","path":"/metadata/finalizers"}]"#],
        ];
        let sandbox: Vec<Vec<&str>> = vec![
            vec!["annotate", "batchsandbox", name, "a=b"],
            vec!["annotate", "batchsandbox", name, "sandbox.opensandbox.io/alloc-status={}"],
            vec!["patch", "batchsandbox", name, "--type=merge", "--patch", r#"{"spec":{"replicas":3}}"#],
            vec!["delete", "batchsandbox", name],
        ];
        let sandbox = if name == "no-spec" { Vec::new() } else { sandbox };
        for args in pool.into_iter().chain(sandbox) {
            let said = place.kubectl(&args).await?;
            let text = said.stderr.to_lowercase();
            let bad = ["matchcondition", "match condition", "expression", "no such key", "no such overload", "failed calling", "panic"];
            failures.check(!bad.iter().any(|bad| text.contains(bad)), || format!("{name}: {said:?}"));
            // What touches neither spec nor labels must not be refused for what was stored before.
            let harmless = matches!(args[0], "delete") || args.contains(&"--subresource=status") || args.contains(&"/metadata/finalizers");
            // A type that no schema of this API ever allowed is refused by the API server itself.
            let never_allowed = ["template-a-string", "spec-a-list", "spec-a-string"].contains(&name);
            failures.check(!harmless || never_allowed || said.code == Some(0), || format!("{name}: {said:?}"));
        }
    }
    // One that was stored without the executor gets it with the first change that the webhook sees.
    let object = json!({ "apiVersion": api, "kind": "Pool", "metadata": { "name": "later" }, "spec": pool("later")["spec"] });
    place.apply(&object).await?.done()?;
    let stored = place.pool("later").await?;
    ensure!(names(&stored) == ["sandbox", "task-executor"] && lacks(&stored).is_empty(), "{stored}");
    failures.told()
}
