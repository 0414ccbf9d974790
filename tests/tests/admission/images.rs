//! Where the executor's image comes from, and that a change takes effect without a restart and leaves
//! stored Pools alone.

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use opensandbox_tests::installation::NAMESPACE;
use serde_json::{Value, json};

use crate::pools::{image, pool, record};
use crate::site::{Failures, Place, images, own, shared};

const INSTALLED: &str = "opensandbox.io/task-executor:v0.0.1";
const FROM_INSTALLATION: &str =
    "ConfigMap opensandbox-system/opensandbox-images, key taskExecutorImage";

/// A new Pool, which must get this image from there, once the webhook has followed the last change.
async fn new_pool(place: &Place<'_>, name: &str, expected: &str, origin: &str) -> Result<Value> {
    place.image_becomes(expected).await?;
    place.apply(&pool(name)).await?.done()?;
    let stored = place.pool(name).await?;
    ensure!(image(&stored) == expected, "{name}: {}", image(&stored));
    let told = record(&stored).is_some_and(|record| record.contains(origin));
    ensure!(told, "{name}: {:?}", record(&stored));
    Ok(stored)
}

async fn remove(place: &Place<'_>) -> Result<()> {
    place
        .kubectl(&["delete", "configmap", labels::IMAGES_CONFIG_MAP])
        .await?
        .done()?;
    Ok(())
}

/// With an installation of its own, because the installation's ConfigMap is changed.
#[tokio::test]
async fn the_nearest_config_map_wins_and_stored_pools_keep_what_they_have() -> Result<()> {
    let Some(site) = own().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let installation = site.existing(NAMESPACE).await?;
    let here = format!(
        "ConfigMap {}/opensandbox-images, key taskExecutorImage",
        place.namespace
    );
    let mut stored = vec![new_pool(&place, "installed", INSTALLED, FROM_INSTALLATION).await?];

    place
        .apply(&images("registry.example:5000/team/executor:v1"))
        .await?
        .done()?;
    stored.push(
        new_pool(
            &place,
            "here",
            "registry.example:5000/team/executor:v1",
            &here,
        )
        .await?,
    );
    place
        .apply(&images("  registry.example/executor@sha256:0123 \n"))
        .await?
        .done()?;
    stored.push(
        new_pool(
            &place,
            "changed",
            "registry.example/executor@sha256:0123",
            &here,
        )
        .await?,
    );
    remove(&place).await?;
    stored.push(new_pool(&place, "removed", INSTALLED, FROM_INSTALLATION).await?);

    installation
        .apply(&images("installation:v2"))
        .await?
        .done()?;
    stored.push(new_pool(&place, "installation", "installation:v2", FROM_INSTALLATION).await?);
    place.apply(&images("here:v3")).await?.done()?;
    stored.push(new_pool(&place, "here-again", "here:v3", &here).await?);
    remove(&place).await?;
    stored.push(
        new_pool(
            &place,
            "removed-again",
            "installation:v2",
            FROM_INSTALLATION,
        )
        .await?,
    );
    remove(&installation).await?;
    let default = labels::DEFAULT_TASK_EXECUTOR_IMAGE;
    stored.push(new_pool(&place, "none", default, r#".image":"default""#).await?);

    let mut failures = Failures::default();
    for before in stored {
        let name = before["metadata"]["name"].as_str().unwrap_or_default();
        let now = place.pool(name).await?;
        failures.check(now == before, || {
            format!(
                "{name} was written: {} to {}",
                before["metadata"], now["metadata"]
            )
        });
    }
    failures.told()
}

#[tokio::test]
async fn a_malformed_config_map_is_as_if_it_were_not_there_and_spoils_no_other() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let other = site.place(&[]).await?;
    let long = "x".repeat(2000);
    for (index, bad) in ["two words", "", "   ", "tab\there", &long]
        .into_iter()
        .enumerate()
    {
        let good = format!("good:{index}");
        place.set_image(Some(&good), &good).await?;
        place.apply(&images(bad)).await?.done()?;
        let name = format!("malformed-{index}");
        new_pool(&place, &name, INSTALLED, FROM_INSTALLATION).await?;
        other.set_image(Some(&good), &good).await?;
    }
    remove(&place).await?;
    // Without data, with binary data, with the key misspelt.
    for rest in [
        json!({}),
        json!({ "binaryData": { "taskExecutorImage": "eDp5" } }),
        json!({ "data": { "TaskExecutorImage": "x:y" } }),
    ] {
        place.set_image(Some("good:again"), "good:again").await?;
        let mut config_map = images("");
        config_map["data"] = Value::Null;
        for (key, value) in rest.as_object().into_iter().flatten() {
            config_map[key] = value.clone();
        }
        place
            .feed(&["replace", "-f", "-"], &config_map)
            .await?
            .done()?;
        place.image_becomes(INSTALLED).await?;
        remove(&place).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_pools_own_image_wins_over_every_config_map() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    place
        .set_image(Some("config-map:v1"), "config-map:v1")
        .await?;
    let mut written = pool("own-image");
    let containers = written.pointer_mut("/spec/template/spec/containers");
    let containers = containers.and_then(Value::as_array_mut).expect("a list");
    containers.push(json!({ "name": "task-executor", "image": "own:v9" }));
    place.apply(&written).await?.done()?;
    ensure!(image(&place.pool("own-image").await?) == "own:v9");
    Ok(())
}
