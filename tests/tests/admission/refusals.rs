//! Wrong Pools are refused with every reason and path at once; right ones of every kind are not.
//!
//! Each case runs twice: with the webhook, which sees everything, and on a cluster whose webhook
//! configurations were deleted, where schema and CEL refuse what they can see.

use anyhow::{Result, ensure};
use opensandbox_tests::wait::{self, Probe};
use serde_json::json;

use crate::batch_sandboxes;
use crate::pools::{names, pool};
use crate::site::{BOUND, Failures, own, shared};
use crate::table::{self, names_path, put};

const TABLE: &str = include_str!("wrong_pools.yaml");
const BUFFER_MIN: &str = "/spec/capacitySpec/bufferMin";
const POOL_MIN: &str = "/spec/capacitySpec/poolMin";
const CONTAINERS: &str = "/spec/template/spec/containers";

#[tokio::test]
async fn wrong_pools_are_refused_with_every_reason_in_one_message() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    table::check(&site.place(&[]).await?, TABLE, pool, true).await
}

#[tokio::test]
async fn without_the_webhook_schema_and_cel_refuse_what_they_can_see() -> Result<()> {
    let Some(site) = own().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    for configuration in [
        "mutatingwebhookconfiguration",
        "validatingwebhookconfiguration",
    ] {
        place
            .kubectl(&["delete", configuration, "opensandbox-webhook"])
            .await?
            .done()?;
    }
    wait::until("the API server to forget the webhook", BOUND, async || {
        let stored = place.create(&pool("probe"), "?dryRun=All").await?;
        let left_alone = stored.is_ok_and(|pool| names(&pool) == ["sandbox"]);
        Ok(if left_alone {
            Probe::Done(())
        } else {
            Probe::not_yet("still injected")
        })
    })
    .await?;
    table::check(&place, TABLE, pool, false).await?;
    table::check(
        &place,
        batch_sandboxes::TABLE,
        batch_sandboxes::sandbox,
        false,
    )
    .await
}

#[tokio::test]
async fn kubectl_prints_every_reason_and_stores_nothing() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut object = pool("wrong");
    put(&mut object, BUFFER_MIN, Some(&json!(40)));
    put(&mut object, POOL_MIN, Some(&json!(50)));
    put(&mut object, CONTAINERS, Some(&json!([])));
    for args in [
        ["apply", "-f", "-"].as_slice(),
        &["create", "-f", "-"],
        &["apply", "--server-side", "-f", "-"],
        &["apply", "--dry-run=server", "-f", "-"],
    ] {
        let said = place.feed(args, &object).await?.refused()?;
        for path in [
            "spec.capacitySpec.bufferMin",
            "spec.capacitySpec.poolMin",
            "spec.template.spec.containers",
        ] {
            ensure!(names_path(&said, path), "{args:?}: no {path} in: {said}");
        }
    }
    ensure!(
        place
            .kubectl(&["get", "pools", "-o", "name"])
            .await?
            .done()?
            .stdout
            .is_empty()
    );
    Ok(())
}

#[tokio::test]
async fn every_capacity_that_makes_sense_is_accepted() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut failures = Failures::default();
    // The first are those of upstream's samples and tests.
    for (index, numbers) in [
        [0, 0, 2, 10],
        [1, 3, 5, 10],
        [1, 1, 0, 2],
        [0, 0, 0, 0],
        [2, 10, 5, 20],
        [0, 5, 0, 5],
        [1, 1, 1, 1],
        [5, 5, 0, 3],
        [0, 100, 0, 1],
        [3, 3, 3, 3],
        [0, 0, 0, 10],
        [0, i32::MAX, 0, i32::MAX],
        [i32::MAX, i32::MAX, i32::MAX, i32::MAX],
    ]
    .into_iter()
    .enumerate()
    {
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
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    place.apply(&pool("stored")).await?.done()?;
    let before = place.pool("stored").await?;
    let mut failures = Failures::default();
    for (patch, path) in [
        (
            json!({ "spec": { "capacitySpec": { "bufferMin": 9 } } }),
            "spec.capacitySpec.bufferMin",
        ),
        (
            json!({ "spec": { "capacitySpec": null } }),
            "spec.capacitySpec",
        ),
        (json!({ "spec": { "template": null } }), "spec.template"),
        (
            json!({ "spec": { "template": { "spec": { "hostPID": true } } } }),
            "spec.template.spec.hostPID",
        ),
        (
            json!({ "spec": { "template": { "spec": { "containers": [] } } } }),
            "spec.template.spec.containers",
        ),
    ] {
        let said = place.patch("stored", &patch).await?;
        failures.check(
            said.code == Some(1) && names_path(&said.stderr, path),
            || format!("{patch}: {said:?}"),
        );
    }
    failures.check(place.pool("stored").await? == before, || {
        "a refused update was stored".to_owned()
    });
    failures.told()
}
