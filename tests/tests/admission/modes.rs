//! The mode in-container: what is stored of it, that applying again changes nothing, and the way from one mode
//! to the other.

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use serde_json::{Value, json};

use crate::pools::{container, generation, in_mode, lacks, names, pool, record, sandbox};
use crate::site::{Failures, Place, shared};

const FIRST: &str = "registry.example/executor:first";
const SECOND: &str = "registry.example/executor:second";
const MODES: [&str; 2] = ["in-container", "sidecar"];

/// The init container that copies the executor.
fn installer(pool: &Value) -> Option<&Value> {
    let list = pool.pointer("/spec/template/spec/initContainers")?;
    let mut items = list.as_array()?.iter();
    items.find(|item| item["name"] == labels::TASK_EXECUTOR_INSTALLER)
}

/// What a Pool in the mode in-container has too much or too little.
fn differs(pool: &Value) -> Vec<String> {
    let mut differs = Vec::new();
    let spec = &pool["spec"]["template"]["spec"];
    if container(pool, "sandbox") != Some(&sandbox()) {
        differs.push("the user's container was changed".to_owned());
    }
    if names(pool).contains(&labels::TASK_EXECUTOR) || !spec["shareProcessNamespace"].is_null() {
        differs.push("something of the sidecar".to_owned());
    }
    if spec["volumes"].to_string().matches("emptyDir").count() != 1 {
        differs.push(format!("volumes {}", spec["volumes"]));
    }
    let context = installer(pool).map(|installer| &installer["securityContext"]);
    if context.is_none_or(|context| context["capabilities"] != json!({"drop": ["ALL"]})) {
        differs.push(format!("init containers {}", spec["initContainers"]));
    }
    if record(pool).is_none() {
        differs.push("no record".to_owned());
    }
    differs
}

/// A way to bring a Pool to the API server.
type Apply = for<'a> fn(&'a Place<'a>, &'a Value) -> futures::future::BoxFuture<'a, Result<()>>;

const WAYS: [(&str, Apply); 2] = [
    ("client-side", |place, pool| {
        Box::pin(async { place.apply(pool).await?.done().map(drop) })
    }),
    ("server-side", |place, pool| {
        Box::pin(async {
            place
                .apply_server_side("gitops", pool)
                .await?
                .done()
                .map(drop)
        })
    }),
];

#[tokio::test]
async fn only_what_merges_is_stored_and_applying_again_changes_nothing() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    for (way, apply) in WAYS {
        let place = site.place(&[]).await?;
        let file = in_mode(pool("pool"), "in-container");
        place.set_image(Some(FIRST), FIRST).await?;
        apply(&place, &file).await?;
        let before = place.pool("pool").await?;
        failures.check(differs(&before).is_empty(), || {
            format!("{way}: {:?} in {before}", differs(&before))
        });
        let image = installer(&before).map(|installer| &installer["image"]);
        failures.check(image == Some(&json!(FIRST)), || format!("{way}: {image:?}"));

        place.set_image(Some(SECOND), SECOND).await?;
        apply(&place, &file).await?;
        let after = place.pool("pool").await?;
        failures.check(
            after["spec"] == before["spec"] && generation(&after) == generation(&before),
            || format!("{way}: {} became {}", before["spec"], after["spec"]),
        );

        // What was taken away comes back as it was.
        let list =
            json!({"spec": {"template": {"spec": {"initContainers": null, "volumes": null}}}});
        place.patch("pool", &list).await?.done()?;
        let after = place.pool("pool").await?;
        failures.check(after["spec"] == before["spec"], || {
            format!("{way}: {} became {}", before["spec"], after["spec"])
        });

        // Somebody else's volume and init container stand beside ours.
        let setup = json!({"name": "setup", "image": "busybox", "command": ["true"]});
        let other = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
            "metadata": {"name": "pool"},
            "spec": {
                "template": {"spec": {
                    "initContainers": [setup],
                    "volumes": [{"name": "data", "hostPath": {"path": "/data"}}],
                }},
                "capacitySpec": before["spec"]["capacitySpec"],
            },
        });
        place.apply_server_side("other", &other).await?.done()?;
        let both = place.pool("pool").await?;
        let count = |list: &str| {
            both["spec"]["template"]["spec"][list]
                .as_array()
                .map(Vec::len)
        };
        failures.check(
            differs(&both).is_empty()
                && (count("initContainers"), count("volumes")) == (Some(2), Some(2)),
            || format!("{way}: {both}"),
        );
    }
    failures.told()
}

#[tokio::test]
async fn a_pool_goes_from_one_mode_to_the_other_and_back() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut failures = Failures::default();
    for mode in MODES {
        place.apply(&in_mode(pool(mode), mode)).await?.done()?;
    }
    let fresh = [place.pool(MODES[0]).await?, place.pool(MODES[1]).await?];
    ensure!(
        differs(&fresh[0]).is_empty() && lacks(&fresh[1]).is_empty(),
        "{fresh:?}"
    );

    place.apply(&pool("annotated")).await?.done()?;
    for (mode, fresh) in MODES.iter().zip(&fresh) {
        let annotation = format!("{}={mode}", labels::EXECUTOR_MODE);
        let command = ["annotate", "--overwrite", "pool", "annotated", &annotation];
        place.kubectl(&command).await?.done()?;
        let changed = place.pool("annotated").await?;
        failures.check(changed["spec"] == fresh["spec"], || {
            format!(
                "annotated {mode}: {} and not {}",
                changed["spec"], fresh["spec"]
            )
        });
    }
    for (change, fresh) in [
        (format!("{}=in-container", labels::EXECUTOR_MODE), &fresh[0]),
        (format!("{}-", labels::EXECUTOR_MODE), &fresh[1]),
    ] {
        let command = ["annotate", "--overwrite", "pool", "annotated", &change];
        place.kubectl(&command).await?.done()?;
        let changed = place.pool("annotated").await?;
        failures.check(changed["spec"] == fresh["spec"], || {
            format!("{change}: {} and not {}", changed["spec"], fresh["spec"])
        });
    }
    for (way, apply) in WAYS {
        apply(&place, &pool(way)).await?;
        for (mode, fresh) in MODES.iter().zip(&fresh) {
            apply(&place, &in_mode(pool(way), mode)).await?;
            let changed = place.pool(way).await?;
            failures.check(changed["spec"] == fresh["spec"], || {
                format!(
                    "{way} {mode}: {} and not {}",
                    changed["spec"], fresh["spec"]
                )
            });
        }
    }
    failures.told()
}

#[tokio::test]
async fn a_mode_that_cannot_be_is_refused_and_changes_nothing() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut object = pool("pool");
    object["spec"]["template"]["spec"]["containers"][0]["command"] = Value::Null;
    place.apply(&object).await?.done()?;
    let before = place.pool("pool").await?;
    for (mode, named) in [
        (
            "in-container",
            "spec.template.spec.containers[0].command: Required value",
        ),
        (
            "inside",
            "Unsupported value: \"inside\": must be \"sidecar\" or \"in-container\"",
        ),
    ] {
        let annotation = format!("{}={mode}", labels::EXECUTOR_MODE);
        let said = place
            .kubectl(&["annotate", "pool", "pool", &annotation])
            .await?
            .refused()?;
        ensure!(said.contains(named), "{said}");
    }
    ensure!(place.pool("pool").await? == before);
    Ok(())
}
