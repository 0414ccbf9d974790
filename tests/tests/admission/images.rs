//! Where the executor's image comes from, and that a change takes effect without a restart and leaves
//! stored Pools alone.

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use serde_json::json;

use crate::pools::{image, pool, record};
use crate::site::{Failures, images, own};

const INSTALLED: &str = "opensandbox.io/task-executor:v0.0.1";

/// With an installation of its own, because the installation's ConfigMap is changed.
#[tokio::test]
async fn the_nearest_config_map_wins_and_stored_pools_keep_what_they_have() -> Result<()> {
    let Some(site) = own().await? else { return Ok(()) };
    let place = site.place(&[]).await?;
    let other = site.place(&[]).await?;
    let installation = site.existing("opensandbox-system").await?;
    let mut failures = Failures::default();
    let mut made = Vec::new();
    let mut check = async |name: &str, expected: &str, origin: &str| -> Result<()> {
        place.image_becomes(expected).await?;
        place.apply(&pool(name)).await?.done()?;
        let stored = place.pool(name).await?;
        ensure!(image(&stored) == expected, "{name}: {}", image(&stored));
        ensure!(record(&stored).is_some_and(|record| record.contains(origin)), "{name}: {:?}", record(&stored));
        made.push(stored);
        Ok(())
    };
    let own_origin = format!("ConfigMap {}/opensandbox-images, key taskExecutorImage", place.namespace);
    let installed_origin = "ConfigMap opensandbox-system/opensandbox-images, key taskExecutorImage";

    check("installed", INSTALLED, installed_origin).await?;
    place.apply(&images("registry.example:5000/team/executor:v1")).await?.done()?;
    check("own", "registry.example:5000/team/executor:v1", &own_origin).await?;
    place.apply(&images("  registry.example/executor@sha256:0123 \n")).await?.done()?;
    check("changed", "registry.example/executor@sha256:0123", &own_origin).await?;

    // Malformed: as if it were not there, here and nowhere else.
    for (index, bad) in ["two words", "", "   ", "tab\there", &"x".repeat(2000)].into_iter().enumerate() {
        place.apply(&images(&format!("between:{index}"))).await?.done()?;
        place.image_becomes(&format!("between:{index}")).await?;
        place.apply(&images(bad)).await?.done()?;
        check(&format!("malformed-{index}"), INSTALLED, installed_origin).await?;
        other.set_image(Some(&format!("other:{index}")), &format!("other:{index}")).await?;
    }
    // Without data, with binary data, with the key misspelt.
    for data in [json!({}), json!({ "binaryData": { "taskExecutorImage": "eDp5" } }), json!({ "data": { "TaskExecutorImage": "x:y" } })] {
        place.kubectl(&["delete", "configmap", labels::IMAGES_CONFIG_MAP]).await?.done()?;
        place.apply(&images("between:again")).await?.done()?;
        place.image_becomes("between:again").await?;
        place.kubectl(&["delete", "configmap", labels::IMAGES_CONFIG_MAP]).await?.done()?;
        let mut config_map = images("");
        config_map.as_object_mut().expect("an object").shift_remove("data");
        config_map.as_object_mut().expect("an object").extend(data.as_object().expect("an object").clone());
        place.apply(&config_map).await?.done()?;
        place.image_becomes(INSTALLED).await?;
    }

    installation.apply(&images("installation:v2")).await?.done()?;
    check("installation", "installation:v2", installed_origin).await?;
    place.apply(&images("own:v3")).await?.done()?;
    check("own-again", "own:v3", &own_origin).await?;
    place.kubectl(&["delete", "configmap", labels::IMAGES_CONFIG_MAP]).await?.done()?;
    check("removed", "installation:v2", installed_origin).await?;
    installation.kubectl(&["delete", "configmap", labels::IMAGES_CONFIG_MAP]).await?.done()?;
    check("none", labels::DEFAULT_TASK_EXECUTOR_IMAGE, r#".image":"default""#).await?;

    for before in made {
        let name = before["metadata"]["name"].as_str().unwrap_or_default();
        let now = place.pool(name).await?;
        let told = || format!("{name} was written: {} to {}", before["metadata"], now["metadata"]);
        failures.check(now == before, told);
    }
    failures.told()
}

#[tokio::test]
async fn the_pools_own_image_wins_over_every_config_map() -> Result<()> {
    let Some(site) = crate::site::shared().await? else { return Ok(()) };
    let place = site.place(&[]).await?;
    place.set_image(Some("config-map:v1"), "config-map:v1").await?;
    let mut written = pool("own-image");
    let containers = written.pointer_mut("/spec/template/spec/containers").and_then(|list| list.as_array_mut());
    containers.expect("a list").push(json!({ "name": "task-executor", "image": "own:v9" }));
    place.apply(&written).await?.done()?;
    ensure!(image(&place.pool("own-image").await?) == "own:v9");
    Ok(())
}
