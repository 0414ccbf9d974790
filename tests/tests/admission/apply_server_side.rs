//! Server-side apply: several managers, each of which owns its part of the lists, and the executor that
//! belongs to none of them.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::pools::{added, container, generation, image, lacks, names, pool, record, sandbox};
use crate::site::{Failures, Place, shared};

const FIRST: &str = "registry.example/executor:first";
const SECOND: &str = "registry.example/executor:second";

async fn stored(place: &Place<'_>, object: &Value) -> Result<Value> {
    place.set_image(Some(FIRST), FIRST).await?;
    place.apply_server_side("gitops", object).await?.done()?;
    place.set_image(Some(SECOND), SECOND).await?;
    let stored = place.pool("pool").await?;
    ensure!(
        image(&stored) == FIRST && lacks(&stored).is_empty(),
        "{stored}"
    );
    Ok(stored)
}

/// A part of a Pool, as a manager applies it.
fn part(spec: &Value) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1",
        "kind": "Pool",
        "metadata": { "name": "pool" },
        "spec": spec,
    })
}

fn same(what: &str, before: &Value, after: &Value, failures: &mut Failures) {
    failures.check(before["spec"] == after["spec"], || {
        format!("{what}: {} became {}", before["spec"], after["spec"])
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

#[tokio::test]
async fn applying_the_same_again_changes_nothing() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place, &pool("pool")).await?;
    let mut failures = Failures::default();
    for round in 1..=2 {
        place
            .apply_server_side("gitops", &pool("pool"))
            .await?
            .done()?;
        let after = place.pool("pool").await?;
        same(&format!("round {round}"), &before, &after, &mut failures);
        failures.check(
            before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"],
            || "written".to_owned(),
        );
    }
    let difference = place
        .feed(
            &["diff", "--server-side", "--field-manager=gitops", "-f", "-"],
            &pool("pool"),
        )
        .await?;
    failures.check(difference.code == Some(0), || format!("{difference:?}"));
    failures.told()
}

#[tokio::test]
async fn a_second_manager_owns_its_part_and_loses_nobody_elses() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place, &pool("pool")).await?;
    let mut failures = Failures::default();

    // The same container, the same values: shared ownership.
    let capacity = before["spec"]["capacitySpec"].clone();
    let sandbox_alone = part(
        &json!({ "template": { "spec": { "containers": [sandbox()] } }, "capacitySpec": capacity }),
    );
    place
        .apply_server_side("second", &sandbox_alone)
        .await?
        .done()?;
    same(
        "the sandbox by a second manager",
        &before,
        &place.pool("pool").await?,
        &mut failures,
    );

    // A container and a volume of its own, applied twice.
    let helper = json!({ "name": "helper", "image": "busybox", "command": ["sleep", "1d"] });
    let additions = part(&json!({
        "template": { "spec": { "containers": [helper], "volumes": [{ "name": "cache", "emptyDir": {} }] } },
        "capacitySpec": capacity,
    }));
    place.apply_server_side("third", &additions).await?.done()?;
    let with_helper = place.pool("pool").await?;
    let mut sorted = names(&with_helper);
    sorted.sort_unstable();
    failures.check(sorted == ["helper", "sandbox", "task-executor"], || {
        format!("{:?}", names(&with_helper))
    });
    failures.check(
        with_helper.pointer("/spec/template/spec/volumes/0/name") == Some(&json!("cache")),
        || with_helper.to_string(),
    );
    failures.check(
        image(&with_helper) == FIRST && lacks(&with_helper).is_empty(),
        || format!("{} {:?}", image(&with_helper), lacks(&with_helper)),
    );
    failures.check(
        container(&with_helper, "sandbox") == Some(&sandbox()),
        || with_helper.to_string(),
    );
    place.apply_server_side("third", &additions).await?.done()?;
    same(
        "additions applied twice",
        &with_helper,
        &place.pool("pool").await?,
        &mut failures,
    );
    place
        .apply_server_side("gitops", &pool("pool"))
        .await?
        .done()?;
    same(
        "the first manager after additions",
        &with_helper,
        &place.pool("pool").await?,
        &mut failures,
    );

    // Its owner takes the container away, and only that.
    let without = part(
        &json!({ "template": { "spec": { "volumes": [{ "name": "cache", "emptyDir": {} }] } }, "capacitySpec": capacity }),
    );
    place.apply_server_side("third", &without).await?.done()?;
    let after = place.pool("pool").await?;
    failures.check(names(&after) == ["sandbox", "task-executor"], || {
        format!("{:?}", names(&after))
    });
    failures.check(
        container(&after, "task-executor") == container(&before, "task-executor"),
        || after.to_string(),
    );
    failures.check(
        after.pointer("/spec/template/spec/volumes/0/name") == Some(&json!("cache")),
        || after.to_string(),
    );
    failures.told()
}

#[tokio::test]
async fn a_manager_may_own_single_fields_of_the_executor() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place, &pool("pool")).await?;
    let mut failures = Failures::default();
    let capacity = before["spec"]["capacitySpec"].clone();
    let limits = |cpu: &str| {
        let executor =
            json!({ "name": "task-executor", "resources": { "limits": { "cpu": cpu } } });
        part(
            &json!({ "template": { "spec": { "containers": [executor] } }, "capacitySpec": capacity }),
        )
    };
    // What admission added has no owner, so that taking it over is no conflict.
    place
        .apply_server_side("limits", &limits("2"))
        .await?
        .done()?;
    let after = place.pool("pool").await?;
    failures.check(lacks(&after).is_empty() && image(&after) == FIRST, || {
        after.to_string()
    });
    let cpu = container(&after, "task-executor")
        .and_then(|executor| executor.pointer("/resources/limits/cpu"));
    failures.check(cpu == Some(&json!("2")), || format!("{cpu:?}"));
    failures.check(
        !record(&after).is_some_and(|record| record.contains(".resources")),
        || format!("{:?}", record(&after)),
    );
    place
        .apply_server_side("gitops", &pool("pool"))
        .await?
        .done()?;
    same(
        "the first manager afterwards",
        &after,
        &place.pool("pool").await?,
        &mut failures,
    );
    place
        .apply_server_side("limits", &limits("3"))
        .await?
        .done()?;
    let cpu = place.pool("pool").await?;
    failures.check(
        container(&cpu, "task-executor")
            .and_then(|executor| executor.pointer("/resources/limits/cpu"))
            == Some(&json!("3")),
        || cpu.to_string(),
    );
    failures.told()
}

#[tokio::test]
async fn a_manager_that_wrote_the_executor_and_lets_go_leaves_a_working_one() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut own = pool("pool");
    own["spec"]["template"]["spec"]["containers"] =
        json!([sandbox(), { "name": "task-executor", "image": "own:v1" }]);
    place.apply_server_side("gitops", &own).await?.done()?;
    ensure!(image(&place.pool("pool").await?) == "own:v1");
    place
        .apply_server_side("gitops", &pool("pool"))
        .await?
        .done()?;
    let after = place.pool("pool").await?;
    ensure!(lacks(&after).is_empty(), "{:?} in {after}", lacks(&after));
    ensure!(
        names(&after) == ["sandbox", "task-executor"],
        "{:?}",
        names(&after)
    );
    Ok(())
}

#[tokio::test]
async fn nobody_owns_what_admission_added() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let stored = stored(&place, &pool("pool")).await?;
    let managers = stored["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let gitops = managers
        .iter()
        .find(|entry| entry["manager"] == "gitops")
        .cloned()
        .unwrap_or_default();
    let containers = gitops
        .pointer("/fieldsV1/f:spec/f:template/f:spec/f:containers")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    ensure!(
        containers.contains_key(r#"k:{"name":"sandbox"}"#),
        "{gitops}"
    );
    ensure!(
        !containers.contains_key(r#"k:{"name":"task-executor"}"#),
        "{gitops}"
    );
    Ok(())
}
