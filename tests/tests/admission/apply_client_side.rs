//! `kubectl apply` of a file, again and again: client-side, where the file's lists replace the stored
//! ones, and what else people do to a stored Pool with kubectl.

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use serde_json::{Value, json};

use crate::pools::{added, executor, generation, image, lacks, names, pool, record, sandbox};
use crate::site::{Failures, Place, shared};

const FIRST: &str = "registry.example/executor:first";
const SECOND: &str = "registry.example/executor:second";

/// A Pool stored while the ConfigMap said [`FIRST`]; now it says [`SECOND`].
async fn stored(place: &Place<'_>, object: &Value) -> Result<Value> {
    place.set_image(Some(FIRST), FIRST).await?;
    place.apply(object).await?.done()?;
    place.set_image(Some(SECOND), SECOND).await?;
    let stored = place
        .pool(object["metadata"]["name"].as_str().unwrap_or_default())
        .await?;
    ensure!(
        image(&stored) == FIRST && lacks(&stored).is_empty(),
        "{stored}"
    );
    Ok(stored)
}

/// What an operation did that it must not do to spec, generation and record.
fn changed(what: &str, before: &Value, after: &Value, failures: &mut Failures) {
    failures.check(before["spec"] == after["spec"], || {
        format!("{what}: spec {} became {}", before["spec"], after["spec"])
    });
    failures.check(generation(before) == generation(after), || {
        format!(
            "{what}: generation {:?} became {:?}",
            generation(before),
            generation(after)
        )
    });
    failures.check(added(before) == added(after), || {
        format!(
            "{what}: record {:?} became {:?}",
            added(before),
            added(after)
        )
    });
}

/// A Pool with more than the smallest: fields next to those that are injected.
fn rich(name: &str) -> Value {
    let mut rich = pool(name);
    rich["metadata"]["annotations"] = json!({ "example.com/owner": "team" });
    rich["spec"]["template"] = json!({
        "metadata": { "labels": { "app": "x" }, "annotations": { "example.com/a~b": "c/d" } },
        "spec": {
            "containers": [sandbox(), { "name": "helper", "image": "busybox", "args": ["sleep", "1d"], "resources": { "limits": { "cpu": "1", "memory": "1Gi" } } }],
            "initContainers": [{ "name": "setup", "image": "busybox" }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
            "securityContext": { "runAsUser": 1000 },
            "nodeSelector": { "kubernetes.io/arch": "amd64" },
            "fieldOfAFutureKubernetes": { "list": [1, null, { "a": "b" }] },
        },
    });
    rich["spec"]["recycleStrategy"] = json!({});
    rich
}

#[tokio::test]
async fn applying_a_file_again_changes_nothing() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    let mut own = pool("own-executor");
    own["spec"]["template"]["spec"]["containers"] =
        json!([sandbox(), { "name": "task-executor", "resources": { "limits": { "cpu": "1" } } }]);
    let mut own_first = pool("own-executor-first");
    own_first["spec"]["template"]["spec"]["containers"] =
        json!([{ "name": "task-executor" }, sandbox()]);
    let mut empty = pool("hollow");
    empty["spec"]["template"]["metadata"] = json!({ "annotations": {} });
    for object in [pool("plain"), rich("rich"), own, own_first, empty] {
        let place = site.place(&[]).await?;
        let before = stored(&place, &object).await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        for round in 1..=2 {
            place.apply(&object).await?.done()?;
            let after = place.pool(name).await?;
            changed(
                &format!("{name}, round {round}"),
                &before,
                &after,
                &mut failures,
            );
            failures.check(
                before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"],
                || format!("{name}: written"),
            );
        }
        let difference = place.feed(&["diff", "-f", "-"], &object).await?;
        failures.check(difference.code == Some(0), || {
            format!("{name}: {difference:?}")
        });
    }
    failures.told()
}

#[tokio::test]
async fn replacing_by_the_file_changes_nothing() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    for object in [pool("plain"), rich("rich")] {
        let place = site.place(&[]).await?;
        let before = stored(&place, &object).await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        place.feed(&["replace", "-f", "-"], &object).await?.done()?;
        changed(name, &before, &place.pool(name).await?, &mut failures);
    }
    failures.told()
}

#[tokio::test]
async fn a_changed_file_changes_what_it_says_and_keeps_the_rest() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place, &rich("changing")).await?;
    let mut failures = Failures::default();

    let mut file = rich("changing");
    file["spec"]["template"]["spec"]["containers"][0]["image"] = json!("ubuntu:24.04");
    file["spec"]["capacitySpec"]["poolMax"] = json!(11);
    let difference = place.feed(&["diff", "-f", "-"], &file).await?;
    // The container's image and poolMax, and nothing of ours; generation is what the API server says.
    let changed: Vec<_> = difference
        .stdout
        .lines()
        .filter(|line| line.starts_with('+') && !line.starts_with("+++"))
        .collect();
    failures.check(difference.code == Some(1) && changed.len() == 3, || {
        format!("{difference:?}")
    });
    place.apply(&file).await?.done()?;
    let mut expected = before.clone();
    expected["spec"]["template"]["spec"]["containers"][0]["image"] = json!("ubuntu:24.04");
    expected["spec"]["capacitySpec"]["poolMax"] = json!(11);
    let after = place.pool("changing").await?;
    failures.check(after["spec"] == expected["spec"], || {
        format!("{} instead of {}", after["spec"], expected["spec"])
    });

    // A container less, another name, another order.
    file["spec"]["template"]["spec"]["containers"] = json!([sandbox()]);
    file["spec"]["template"]["spec"]["containers"][0]["name"] = json!("renamed");
    place.apply(&file).await?.done()?;
    let after = place.pool("changing").await?;
    failures.check(names(&after) == ["renamed", "task-executor"], || {
        format!("{:?}", names(&after))
    });
    let main = executor(&after).and_then(|executor| {
        executor["env"]
            .as_array()?
            .iter()
            .find(|entry| entry["name"] == labels::MAIN_CONTAINER_NAME_ENV)
    });
    failures.check(
        main.is_some_and(|entry| entry["value"] == "renamed"),
        || format!("main container: {main:?}"),
    );
    let annotation = after
        .pointer("/spec/template/metadata/annotations")
        .and_then(|map| map.get(labels::DEFAULT_CONTAINER));
    failures.check(annotation == Some(&json!("renamed")), || {
        format!("default container: {annotation:?}")
    });
    failures.check(image(&after) == FIRST, || {
        format!("image {}", image(&after))
    });
    failures.check(lacks(&after).is_empty(), || format!("{:?}", lacks(&after)));
    failures.told()
}

#[tokio::test]
async fn a_dry_run_stores_nothing_and_tells_the_truth() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    for flags in [
        ["apply", "--dry-run=server", "-o=json", "-f", "-"].as_slice(),
        &[
            "apply",
            "--server-side",
            "--dry-run=server",
            "-o=json",
            "-f",
            "-",
        ],
        &["create", "--dry-run=server", "-o=json", "-f", "-"],
    ] {
        let said = place.feed(flags, &rich("dry")).await?.done()?;
        let told: Value = serde_json::from_str(&said.stdout)?;
        ensure!(
            place
                .kubectl(&["get", "pools", "-o=name"])
                .await?
                .done()?
                .stdout
                .is_empty(),
            "{flags:?} stored it"
        );
        let store: Vec<_> = flags
            .iter()
            .copied()
            .filter(|flag| *flag != "--dry-run=server")
            .collect();
        place.feed(&store, &rich("dry")).await?.done()?;
        let stored = place.pool("dry").await?;
        ensure!(
            stored["spec"] == told["spec"] && record(&stored) == record(&told),
            "{flags:?}: {told}\n{stored}"
        );
        place.kubectl(&["delete", "pool", "dry"]).await?.done()?;
    }
    Ok(())
}

#[tokio::test]
async fn two_files_for_one_pool_do_not_fight_over_the_executor() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place, &pool("switching")).await?;
    let mut failures = Failures::default();
    for round in 0..2 {
        place
            .apply_server_side("gitops", &pool("switching"))
            .await?
            .done()?;
        changed(
            &format!("server-side, round {round}"),
            &before,
            &place.pool("switching").await?,
            &mut failures,
        );
        place.apply(&pool("switching")).await?.done()?;
        changed(
            &format!("client-side, round {round}"),
            &before,
            &place.pool("switching").await?,
            &mut failures,
        );
        place
            .apply_server_side("kubectl", &pool("switching"))
            .await?
            .done()?;
        changed(
            &format!("kubectl's own server-side, round {round}"),
            &before,
            &place.pool("switching").await?,
            &mut failures,
        );
    }
    failures.told()
}
