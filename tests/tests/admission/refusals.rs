//! Wrong Pools are refused with every reason and path at once; right ones of every kind are not.
//!
//! Each case runs twice: with the webhook, which sees everything, and on a cluster whose webhook
//! configurations were deleted, where schema and CEL refuse what they can see.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::pools::{names, pool, sandbox};
use crate::site::{Failures, Place, own, shared};

/// Changes of a right object: a pointer, and what is put there; nothing means that it is taken away.
type Edits = Vec<(&'static str, Option<Value>)>;

struct Wrong {
    what: &'static str,
    edits: Edits,
    /// Paths that the webhook must name, all in one message.
    paths: &'static [&'static str],
    /// Paths that schema and CEL name without the webhook. Empty: they see nothing wrong.
    schema: &'static [&'static str],
}

fn wrong(what: &'static str, edits: Edits, paths: &'static [&'static str], schema: &'static [&'static str]) -> Wrong {
    Wrong { what, edits, paths, schema }
}

/// Puts `value` at `pointer`, whose parent must stand; nothing means that it is taken away.
pub(crate) fn put(object: &mut Value, pointer: &str, value: Option<&Value>) {
    let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).unwrap_or_else(|| unreachable!("no place for {pointer}"));
    match (parent, value) {
        (Value::Object(map), Some(value)) => {
            map.insert(last.to_owned(), value.clone());
        }
        (Value::Object(map), None) => {
            map.shift_remove(last);
        }
        (Value::Array(items), Some(value)) if last == "-" => items.push(value.clone()),
        (Value::Array(items), Some(value)) => items[last.parse::<usize>().expect("an index")] = value.clone(),
        (parent, _) => unreachable!("{pointer} is in {parent}"),
    }
}

const BUFFER_MIN: &str = "/spec/capacitySpec/bufferMin";
const BUFFER_MAX: &str = "/spec/capacitySpec/bufferMax";
const POOL_MIN: &str = "/spec/capacitySpec/poolMin";
const POOL_MAX: &str = "/spec/capacitySpec/poolMax";
const CONTAINERS: &str = "/spec/template/spec/containers";
const FIRST: &str = "/spec/template/spec/containers/0";

fn put_one(pointer: &'static str, value: Value) -> Edits {
    vec![(pointer, Some(value))]
}

fn numbers() -> Vec<Wrong> {
    vec![
        wrong("bufferMin over bufferMax", put_one(BUFFER_MIN, json!(4)), &["spec.capacitySpec.bufferMin"], &["spec.capacitySpec.bufferMin"]),
        wrong("poolMin over poolMax", put_one(POOL_MIN, json!(11)), &["spec.capacitySpec.poolMin"], &["spec.capacitySpec.poolMin"]),
        wrong("negative bufferMin", put_one(BUFFER_MIN, json!(-1)), &["spec.capacitySpec.bufferMin"], &["spec.capacitySpec.bufferMin"]),
        wrong("negative bufferMax", put_one(BUFFER_MAX, json!(-1)), &["spec.capacitySpec.bufferMax"], &["spec.capacitySpec.bufferMax"]),
        wrong("negative poolMin", put_one(POOL_MIN, json!(-5)), &["spec.capacitySpec.poolMin"], &["spec.capacitySpec.poolMin"]),
        wrong("negative poolMax", put_one(POOL_MAX, json!(-2_147_483_648_i64)), &["spec.capacitySpec.poolMax"], &["spec.capacitySpec.poolMax"]),
        wrong("too large", put_one(POOL_MAX, json!(2_147_483_648_i64)), &["spec.capacitySpec.poolMax"], &["spec.capacitySpec.poolMax"]),
        wrong("huge", put_one(BUFFER_MAX, json!(i64::MAX)), &["spec.capacitySpec.bufferMax"], &["spec.capacitySpec.bufferMax"]),
        wrong("a string for a number", put_one(BUFFER_MIN, json!("2")), &["spec.capacitySpec.bufferMin"], &["spec.capacitySpec.bufferMin"]),
        wrong("a fraction", put_one(POOL_MIN, json!(1.5)), &["spec.capacitySpec.poolMin"], &["spec.capacitySpec.poolMin"]),
        wrong("a boolean for a number", put_one(POOL_MIN, json!(true)), &["spec.capacitySpec.poolMin"], &["spec.capacitySpec.poolMin"]),
        wrong("null for a number", put_one(BUFFER_MAX, json!(null)), &["spec.capacitySpec.bufferMax"], &["spec.capacitySpec.bufferMax"]),
        wrong("bufferMin missing", vec![(BUFFER_MIN, None)], &["spec.capacitySpec.bufferMin"], &["spec.capacitySpec.bufferMin"]),
        wrong("bufferMax missing", vec![(BUFFER_MAX, None)], &["spec.capacitySpec.bufferMax"], &["spec.capacitySpec.bufferMax"]),
        wrong("poolMin missing", vec![(POOL_MIN, None)], &["spec.capacitySpec.poolMin"], &["spec.capacitySpec.poolMin"]),
        wrong("poolMax missing", vec![(POOL_MAX, None)], &["spec.capacitySpec.poolMax"], &["spec.capacitySpec.poolMax"]),
        wrong("capacitySpec missing", vec![("/spec/capacitySpec", None)], &["spec.capacitySpec"], &["spec.capacitySpec"]),
        wrong("capacitySpec null", put_one("/spec/capacitySpec", json!(null)), &["spec.capacitySpec"], &["spec.capacitySpec"]),
        wrong("capacitySpec a list", put_one("/spec/capacitySpec", json!([1, 2])), &["spec.capacitySpec"], &["spec.capacitySpec"]),
        wrong(
            "capacitySpec empty",
            put_one("/spec/capacitySpec", json!({})),
            &["spec.capacitySpec.bufferMin", "spec.capacitySpec.bufferMax", "spec.capacitySpec.poolMin", "spec.capacitySpec.poolMax"],
            &["spec.capacitySpec.bufferMin", "spec.capacitySpec.bufferMax", "spec.capacitySpec.poolMin", "spec.capacitySpec.poolMax"],
        ),
    ]
}

fn templates() -> Vec<Wrong> {
    vec![
        wrong("no containers", vec![(CONTAINERS, None)], &["spec.template.spec.containers"], &["spec.template"]),
        wrong("containers empty", put_one(CONTAINERS, json!([])), &["spec.template.spec.containers"], &["spec.template"]),
        wrong("containers null", put_one(CONTAINERS, json!(null)), &["spec.template.spec.containers"], &["spec.template"]),
        wrong("containers an object", put_one(CONTAINERS, json!({ "name": "a" })), &["spec.template.spec.containers"], &["spec.template.spec.containers"]),
        wrong("a container that is a string", put_one(FIRST, json!("ubuntu")), &["spec.template.spec.containers[0]"], &["spec.template.spec.containers[0]"]),
        wrong("the executor alone", put_one(CONTAINERS, json!([{ "name": "task-executor" }])), &["spec.template.spec.containers"], &[]),
        wrong("no name", vec![("/spec/template/spec/containers/0/name", None)], &["spec.template.spec.containers[0].name"], &["spec.template.spec.containers[0].name"]),
        wrong("a name that is a number", put_one("/spec/template/spec/containers/0/name", json!(7)), &["spec.template.spec.containers[0].name"], &["spec.template.spec.containers[0].name"]),
        wrong("a name twice", put_one("/spec/template/spec/containers/-", sandbox()), &["spec.template.spec.containers[1].name"], &["spec.template.spec.containers[1]"]),
        wrong("a name that no container can have", put_one("/spec/template/spec/containers/0/name", json!("Sandbox_1")), &["spec.template.spec.containers[0].name"], &[]),
        wrong("a name of an init container", put_one("/spec/template/spec/initContainers", json!([sandbox()])), &["spec.template.spec.containers[0].name"], &[]),
        wrong("no image", vec![("/spec/template/spec/containers/0/image", None)], &["spec.template.spec.containers[0].image"], &[]),
        wrong("an empty image", put_one("/spec/template/spec/containers/0/image", json!("")), &["spec.template.spec.containers[0].image"], &[]),
        wrong("an image that is a number", put_one("/spec/template/spec/containers/0/image", json!(1)), &["spec.template.spec.containers[0].image"], &[]),
        wrong("template missing", vec![("/spec/template", None)], &["spec.template"], &["spec"]),
        wrong("template null", put_one("/spec/template", json!(null)), &["spec.template"], &["spec"]),
        wrong("template empty", put_one("/spec/template", json!({})), &["spec.template.spec"], &["spec.template"]),
        wrong("template a string", put_one("/spec/template", json!("pod")), &["spec.template"], &["spec.template"]),
        wrong("template spec null", put_one("/spec/template/spec", json!(null)), &["spec.template.spec"], &["spec.template"]),
        wrong("template spec a list", put_one("/spec/template/spec", json!([])), &["spec.template.spec"], &["spec.template.spec"]),
        wrong("labels that are numbers", put_one("/spec/template/metadata", json!({ "labels": { "a": 1 } })), &["spec.template.metadata.labels[a]"], &[]),
        wrong("processes kept apart", put_one("/spec/template/spec/shareProcessNamespace", json!(false)), &["spec.template.spec.shareProcessNamespace"], &[]),
        wrong("processes of the host", put_one("/spec/template/spec/hostPID", json!(true)), &["spec.template.spec.hostPID"], &[]),
        wrong("windows", put_one("/spec/template/spec/os", json!({ "name": "windows" })), &["spec.template.spec.os.name"], &[]),
        wrong("an init container with the executor's name", put_one("/spec/template/spec/initContainers", json!([{ "name": "task-executor", "image": "a" }])), &["spec.template.spec.initContainers[0].name"], &[]),
        wrong(
            "an executor that drops what it needs",
            put_one("/spec/template/spec/containers/-", json!({ "name": "task-executor", "securityContext": { "capabilities": { "drop": ["ALL", "SYS_PTRACE"] } } })),
            &["spec.template.spec.containers[1].securityContext.capabilities.drop[1]"],
            &[],
        ),
        wrong(
            "an executor of an odd shape",
            put_one("/spec/template/spec/containers/-", json!({ "name": "task-executor", "securityContext": "privileged" })),
            &["spec.template.spec.containers[task-executor].securityContext"],
            &[],
        ),
        wrong("annotations of an odd shape", put_one("/spec/template/metadata", json!({ "annotations": "x" })), &["spec.template.metadata.annotations"], &[]),
    ]
}

fn others() -> Vec<Wrong> {
    vec![
        wrong("spec missing", vec![("/spec", None)], &["spec"], &["spec"]),
        wrong("spec null", put_one("/spec", json!(null)), &["spec"], &["spec"]),
        wrong("spec a list", put_one("/spec", json!([])), &["spec"], &["spec"]),
        wrong("a long name", put_one("/metadata/name", json!("n".repeat(64))), &["metadata.name"], &["metadata.name must"]),
        wrong("maxUnavailable 0", put_one("/spec/scaleStrategy", json!({ "maxUnavailable": 0 })), &["spec.scaleStrategy.maxUnavailable"], &["spec.scaleStrategy.maxUnavailable"]),
        wrong("maxUnavailable 101%", put_one("/spec/updateStrategy", json!({ "maxUnavailable": "101%" })), &["spec.updateStrategy.maxUnavailable"], &["spec.updateStrategy.maxUnavailable"]),
        wrong("maxUnavailable a word", put_one("/spec/scaleStrategy", json!({ "maxUnavailable": "some" })), &["spec.scaleStrategy.maxUnavailable"], &["spec.scaleStrategy.maxUnavailable"]),
        wrong("an unknown recycling", put_one("/spec/recycleStrategy", json!({ "type": "Keep" })), &["spec.recycleStrategy.type"], &["spec.recycleStrategy.type"]),
        wrong(
            "two problems",
            vec![(BUFFER_MIN, Some(json!(4))), (POOL_MIN, Some(json!(11)))],
            &["spec.capacitySpec.bufferMin", "spec.capacitySpec.poolMin"],
            &["spec.capacitySpec.bufferMin", "spec.capacitySpec.poolMin"],
        ),
        wrong(
            "three problems at three stages",
            vec![(BUFFER_MIN, Some(json!(4))), ("/spec/template/spec/containers/0/image", None), ("/spec/template/spec/hostPID", Some(json!(true)))],
            &["spec.capacitySpec.bufferMin", "spec.template.spec.containers[0].image", "spec.template.spec.hostPID"],
            &["spec.capacitySpec.bufferMin"],
        ),
        wrong(
            "numbers and containers",
            vec![(BUFFER_MIN, Some(json!("1"))), (POOL_MAX, None), (CONTAINERS, None)],
            &["spec.capacitySpec.bufferMin", "spec.capacitySpec.poolMax", "spec.template.spec.containers"],
            &["spec.capacitySpec.bufferMin", "spec.capacitySpec.poolMax"],
        ),
        wrong(
            "null everywhere",
            put_one("/spec", json!({ "template": null, "capacitySpec": null, "scaleStrategy": null })),
            &["spec.template", "spec.capacitySpec"],
            &["spec.capacitySpec"],
        ),
        wrong(
            "a label and a number",
            vec![("/metadata/labels", Some(json!({ "sandbox.opensandbox.io/task-executor": "maybe" }))), (POOL_MIN, Some(json!(-1)))],
            &["metadata.labels[sandbox.opensandbox.io/task-executor]", "spec.capacitySpec.poolMin"],
            &["spec.capacitySpec.poolMin"],
        ),
    ]
}

fn table() -> Vec<Wrong> {
    numbers().into_iter().chain(templates()).chain(others()).collect()
}

fn object(wrong: &Wrong) -> Value {
    let mut object = pool("wrong");
    for (pointer, value) in &wrong.edits {
        put(&mut object, pointer, value.as_ref());
    }
    object
}

/// Whether a message names a path: followed by what is wrong with it, so that a longer path does not
/// count. (Rules of the API server about metadata have no path, but a sentence.)
pub(crate) fn names_path(message: &str, path: &str) -> bool {
    let at_end = |at: usize| message[at + path.len()..].starts_with(':') || path.contains(' ');
    message.match_indices(path).any(|(at, _)| at_end(at))
}

async fn check(place: &Place<'_>, with_webhook: bool) -> Result<()> {
    let mut failures = Failures::default();
    for (index, case) in table().iter().enumerate() {
        let Wrong { what, paths, schema, .. } = case;
        let mut object = object(case);
        if object["metadata"]["name"] == "wrong" {
            object["metadata"]["name"] = json!(format!("wrong-{index}"));
        }
        let expected = if with_webhook { paths } else { schema };
        match place.create(&object, "").await? {
            Ok(_) => failures.check(expected.is_empty(), || format!("{what}: accepted")),
            Err(message) => {
                failures.check(!expected.is_empty(), || format!("{what}: refused: {message}"));
                for path in *expected {
                    failures.check(names_path(&message, path), || format!("{what}: no {path} in: {message}"));
                }
                let foreign = message.contains("failed calling") || message.contains("expression");
                failures.check(!foreign, || format!("{what}: words that help nobody: {message}"));
            }
        }
    }
    failures.told()
}

#[tokio::test]
async fn wrong_pools_are_refused_with_every_reason_in_one_message() -> Result<()> {
    let Some(site) = shared().await? else { return Ok(()) };
    check(&site.place(&[]).await?, true).await
}

#[tokio::test]
async fn without_the_webhook_schema_and_cel_refuse_what_they_can_see() -> Result<()> {
    let Some(site) = own().await? else { return Ok(()) };
    let place = site.place(&[]).await?;
    for configuration in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        place.kubectl(&["delete", configuration, "opensandbox-webhook"]).await?.done()?;
    }
    opensandbox_tests::wait::until("the API server to forget the webhook", crate::site::BOUND, async || {
        let stored = place.create(&pool("probe"), "?dryRun=All").await?;
        let left_alone = stored.is_ok_and(|pool| names(&pool) == ["sandbox"]);
        Ok(if left_alone { opensandbox_tests::wait::Probe::Done(()) } else { opensandbox_tests::wait::Probe::not_yet("still injected") })
    })
    .await?;
    check(&place, false).await?;
    crate::batch_sandboxes::check(&place, false).await
}

#[tokio::test]
async fn kubectl_prints_every_reason_and_stores_nothing() -> Result<()> {
    let Some(site) = shared().await? else { return Ok(()) };
    let place = site.place(&[]).await?;
    let mut object = pool("wrong");
    put(&mut object, BUFFER_MIN, Some(&json!(40)));
    put(&mut object, POOL_MIN, Some(&json!(50)));
    put(&mut object, CONTAINERS, Some(&json!([])));
    for args in [["apply", "-f", "-"].as_slice(), &["create", "-f", "-"], &["apply", "--server-side", "-f", "-"], &["apply", "--dry-run=server", "-f", "-"]] {
        let said = place.feed(args, &object).await?.refused()?;
        for path in ["spec.capacitySpec.bufferMin", "spec.capacitySpec.poolMin", "spec.template.spec.containers"] {
            ensure!(names_path(&said, path), "{args:?}: no {path} in: {said}");
        }
    }
    ensure!(place.kubectl(&["get", "pools", "-o", "name"]).await?.done()?.stdout.is_empty());
    Ok(())
}

#[tokio::test]
async fn every_capacity_that_makes_sense_is_accepted() -> Result<()> {
    let Some(site) = shared().await? else { return Ok(()) };
    let place = site.place(&[]).await?;
    let mut failures = Failures::default();
    // The first are those of upstream's samples and tests.
    for (index, numbers) in [
        [0, 0, 2, 10], [1, 3, 5, 10], [1, 1, 0, 2], [0, 0, 0, 0], [2, 10, 5, 20], [0, 5, 0, 5], [1, 1, 1, 1],
        [5, 5, 0, 3], [0, 100, 0, 1], [3, 3, 3, 3], [0, 0, 0, 10], [0, i32::MAX, 0, i32::MAX],
        [i32::MAX, i32::MAX, i32::MAX, i32::MAX],
    ].into_iter().enumerate() {
        let [buffer_min, buffer_max, pool_min, pool_max] = numbers;
        let mut object = pool(&format!("capacity-{index}"));
        object["spec"]["capacitySpec"] = json!({
            "bufferMin": buffer_min, "bufferMax": buffer_max, "poolMin": pool_min, "poolMax": pool_max,
        });
        let stored = place.create(&object, "").await?;
        failures.check(stored.is_ok(), || format!("{numbers:?}: {stored:?}"));
    }
    failures.told()
}

#[tokio::test]
async fn an_update_is_refused_for_what_it_breaks() -> Result<()> {
    let Some(site) = shared().await? else { return Ok(()) };
    let place = site.place(&[]).await?;
    place.apply(&pool("stored")).await?.done()?;
    let before = place.pool("stored").await?;
    let mut failures = Failures::default();
    for (patch, path) in [
        (json!({ "spec": { "capacitySpec": { "bufferMin": 9 } } }), "spec.capacitySpec.bufferMin"),
        (json!({ "spec": { "capacitySpec": null } }), "spec.capacitySpec"),
        (json!({ "spec": { "template": null } }), "spec.template"),
        (json!({ "spec": { "template": { "spec": { "hostPID": true } } } }), "spec.template.spec.hostPID"),
        (json!({ "spec": { "template": { "spec": { "containers": [] } } } }), "spec.template.spec.containers"),
    ] {
        let said = place.patch("stored", &patch).await?;
        failures.check(said.code == Some(1) && names_path(&said.stderr, path), || format!("{patch}: {said:?}"));
    }
    failures.check(place.pool("stored").await? == before, || "a refused update was stored".to_owned());
    failures.told()
}
