//! What people do to a stored Pool: edit a field, take the executor away, set an image by hand, ask for
//! a new one.

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use serde_json::{Value, json};

use crate::pools::{
    added, container, executor, generation, image, lacks, names, pool, record, sandbox,
};
use crate::site::{Failures, Place, shared};

const FIRST: &str = "registry.example/executor:first";
const SECOND: &str = "registry.example/executor:second";

async fn stored(place: &Place<'_>) -> Result<Value> {
    place.set_image(Some(FIRST), FIRST).await?;
    place.apply(&pool("pool")).await?.done()?;
    place.set_image(Some(SECOND), SECOND).await?;
    place.pool("pool").await
}

async fn json_patch(place: &Place<'_>, patch: &Value) -> Result<Value> {
    place
        .kubectl(&[
            "patch",
            "pool",
            "pool",
            "--type=json",
            "--patch",
            &patch.to_string(),
        ])
        .await?
        .done()?;
    place.pool("pool").await
}

#[tokio::test]
async fn an_edit_of_another_field_changes_that_field() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut expected = stored(&place).await?;
    let mut failures = Failures::default();

    // `kubectl edit` sends the whole changed object's difference, as a merge patch.
    let script = "sed -i s/poolMax:.*/poolMax:\\ 12/";
    let mut command = site.cluster.kubectl_command(site.cluster.kubeconfig());
    command.env("KUBE_EDITOR", script).args([
        "--namespace",
        &place.namespace,
        "edit",
        "pool",
        "pool",
    ]);
    let output = command.output().await?;
    ensure!(output.status.success(), "{output:?}");
    expected["spec"]["capacitySpec"]["poolMax"] = json!(12);
    let after = place.pool("pool").await?;
    failures.check(after["spec"] == expected["spec"], || {
        format!("edit: {} instead of {}", after["spec"], expected["spec"])
    });

    let containers = "/spec/template/spec/containers/0";
    expected["spec"]["template"]["spec"]["containers"][0]["image"] = json!("ubuntu:24.04");
    let after = json_patch(&place, &json!([{ "op": "replace", "path": format!("{containers}/image"), "value": "ubuntu:24.04" }])).await?;
    failures.check(after["spec"] == expected["spec"], || {
        format!(
            "JSON patch: {} instead of {}",
            after["spec"], expected["spec"]
        )
    });

    // A merge patch replaces the whole list, as a client does that does not know of the executor.
    let mut only = sandbox();
    only["image"] = json!("debian:12");
    place
        .patch(
            "pool",
            &json!({ "spec": { "template": { "spec": { "containers": [only] } } } }),
        )
        .await?
        .done()?;
    expected["spec"]["template"]["spec"]["containers"][0]["image"] = json!("debian:12");
    let after = place.pool("pool").await?;
    failures.check(after["spec"] == expected["spec"], || {
        format!(
            "merge patch: {} instead of {}",
            after["spec"], expected["spec"]
        )
    });

    for args in [
        ["annotate", "pool", "pool", "example.com/a=b"],
        ["label", "pool", "pool", "example.com/a=b"],
    ] {
        place.kubectl(&args).await?.done()?;
        let now = place.pool("pool").await?;
        failures.check(
            now["spec"] == after["spec"]
                && generation(&now) == generation(&after)
                && record(&now) == record(&after),
            || format!("{args:?}: {now}"),
        );
    }
    failures.told()
}

#[tokio::test]
async fn what_is_taken_away_of_the_executor_comes_back_as_it_was() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place).await?;
    let mut failures = Failures::default();
    let executor = "/spec/template/spec/containers/1";
    let record_pointer = format!(
        "/metadata/annotations/{}",
        labels::INJECTION_RECORD.replace('/', "~1")
    );
    let remove = |pointer: &str| json!({ "op": "remove", "path": pointer });
    for patch in [
        json!([remove(executor)]),
        json!([remove(&format!("{executor}/image"))]),
        json!([remove(&format!("{executor}/securityContext"))]),
        json!([remove(&format!("{executor}/env"))]),
        json!([remove(&format!("{executor}/ports"))]),
        json!([
            remove(&format!("{executor}/resources")),
            remove(&format!("{executor}/readinessProbe"))
        ]),
        json!([{ "op": "replace", "path": format!("{executor}/image"), "value": "" }]),
        json!([{ "op": "replace", "path": format!("{executor}/ports"), "value": null }]),
        json!([remove("/spec/template/spec/shareProcessNamespace")]),
        json!([remove("/spec/template/metadata")]),
        json!([remove(&record_pointer)]),
        json!([
            remove(&record_pointer),
            remove(executor),
            remove("/spec/template/spec/shareProcessNamespace")
        ]),
        json!([{ "op": "replace", "path": record_pointer, "value": "nonsense" }]),
        json!([{ "op": "replace", "path": record_pointer, "value": "{\"added\":{}}" }]),
        json!([remove("/metadata/annotations")]),
        json!([{ "op": "move", "from": executor, "path": "/spec/template/spec/containers/0" }, { "op": "move", "from": "/spec/template/spec/containers/0", "path": executor }]),
    ] {
        let after = json_patch(&place, &patch).await?;
        failures.check(after["spec"] == before["spec"], || {
            format!("{patch}: {} became {}", before["spec"], after["spec"])
        });
        failures.check(generation(&after) == generation(&before), || {
            format!(
                "{patch}: generation {:?} became {:?}",
                generation(&before),
                generation(&after)
            )
        });
        failures.check(added(&after) == added(&before), || {
            format!(
                "{patch}: record {:?} became {:?}",
                record(&before),
                record(&after)
            )
        });
    }
    failures.told()
}

#[tokio::test]
async fn an_image_set_by_hand_is_the_users_from_then_on() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place).await?;
    let by_hand = json!([{ "op": "replace", "path": "/spec/template/spec/containers/1/image", "value": "own:v1" }]);
    let after = json_patch(&place, &by_hand).await?;
    ensure!(
        image(&after) == "own:v1" && lacks(&after).is_empty(),
        "{after}"
    );
    ensure!(
        record(&after).is_some_and(|record| !record.contains("[task-executor].image\"")),
        "{:?}",
        record(&after)
    );
    let mut expected = before.clone();
    expected["spec"]["template"]["spec"]["containers"][1]["image"] = json!("own:v1");
    ensure!(after["spec"] == expected["spec"], "{after}");

    // An upgrade takes current values of what is ours; the image is not any more.
    let upgrade = format!("{}=1", labels::INJECTION_UPGRADE);
    place
        .kubectl(&["annotate", "pool", "pool", &upgrade])
        .await?
        .done()?;
    ensure!(image(&place.pool("pool").await?) == "own:v1");
    place
        .kubectl(&["annotate", "pool", "pool", "example.com/a=b"])
        .await?
        .done()?;
    ensure!(image(&place.pool("pool").await?) == "own:v1");
    Ok(())
}

#[tokio::test]
async fn other_fields_of_the_executor_set_by_hand_stay() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    stored(&place).await?;
    let after = json_patch(&place, &json!([
        { "op": "replace", "path": "/spec/template/spec/containers/1/resources/limits/cpu", "value": "3" },
        { "op": "add", "path": "/spec/template/spec/containers/1/volumeMounts", "value": [{ "name": "data", "mountPath": "/data" }] },
        { "op": "add", "path": "/spec/template/spec/volumes", "value": [{ "name": "data", "emptyDir": {} }] },
    ])).await?;
    let executor = executor(&after).expect("it was not removed");
    ensure!(
        executor.pointer("/resources/limits/cpu") == Some(&json!("3")),
        "{executor}"
    );
    ensure!(
        executor.pointer("/volumeMounts/0/name") == Some(&json!("data")),
        "{executor}"
    );
    ensure!(
        image(&after) == FIRST && lacks(&after).is_empty(),
        "{after}"
    );
    let upgrade = format!("{}=1", labels::INJECTION_UPGRADE);
    place
        .kubectl(&["annotate", "pool", "pool", &upgrade])
        .await?
        .done()?;
    let upgraded = place.pool("pool").await?;
    ensure!(image(&upgraded) == SECOND, "{}", image(&upgraded));
    let executor = container(&upgraded, "task-executor").expect("it was not removed");
    ensure!(
        executor.pointer("/resources/limits/cpu") == Some(&json!("3")),
        "{executor}"
    );
    ensure!(
        executor.pointer("/volumeMounts/0/name") == Some(&json!("data")),
        "{executor}"
    );
    Ok(())
}

#[tokio::test]
async fn an_upgrade_takes_the_new_image_once() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let before = stored(&place).await?;
    let annotate = async |value: &str| -> Result<Value> {
        let annotation = format!("{}={value}", labels::INJECTION_UPGRADE);
        place
            .kubectl(&["annotate", "--overwrite", "pool", "pool", &annotation])
            .await?
            .done()?;
        place.pool("pool").await
    };
    let upgraded = annotate("1").await?;
    ensure!(
        image(&upgraded) == SECOND && lacks(&upgraded).is_empty(),
        "{upgraded}"
    );
    ensure!(
        generation(&upgraded) == generation(&before).map(|generation| generation + 1),
        "{upgraded}"
    );
    let mut expected = before.clone();
    expected["spec"]["template"]["spec"]["containers"][1]["image"] = json!(SECOND);
    ensure!(upgraded["spec"] == expected["spec"], "{upgraded}");

    place.set_image(Some("third:v3"), "third:v3").await?;
    place.apply(&pool("pool")).await?.done()?;
    let applied = place.pool("pool").await?;
    ensure!(
        applied["spec"] == upgraded["spec"] && generation(&applied) == generation(&upgraded),
        "{applied}"
    );
    ensure!(
        annotate("1").await?["spec"] == upgraded["spec"],
        "the same value asked again"
    );
    let removed = format!("{}-", labels::INJECTION_UPGRADE);
    place
        .kubectl(&["annotate", "pool", "pool", &removed])
        .await?
        .done()?;
    ensure!(
        image(&place.pool("pool").await?) == SECOND,
        "its removal asked for something"
    );
    ensure!(image(&annotate("2").await?) == "third:v3");
    ensure!(image(&annotate("3").await?) == "third:v3");

    // The other documented way: an edit of the label.
    place.set_image(Some("fourth:v4"), "fourth:v4").await?;
    let label = format!("{}=enabled", labels::INJECTION);
    place
        .kubectl(&["label", "pool", "pool", &label])
        .await?
        .done()?;
    let labelled = place.pool("pool").await?;
    ensure!(
        image(&labelled) == "fourth:v4" && names(&labelled) == ["sandbox", "task-executor"],
        "{labelled}"
    );
    Ok(())
}
