//! The command line says what the server does: `inject` equals what is stored, `uninject` takes it back,
//! `explain` tells where each value came from.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::labels;
use opensandbox_tests::{installation, programs};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::pools::{pool, sandbox};
use crate::site::{Failures, Place, file, own, shared};

/// What the webhook's program prints with these arguments, which must succeed.
async fn printed(args: &[&str], input: Option<&str>) -> Result<String> {
    let program = tokio::task::spawn_blocking(programs::webhook).await??;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    let write = async {
        stdin
            .write_all(input.unwrap_or_default().as_bytes())
            .await
            .ok();
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output?;
    ensure!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Takes away what the API server and kubectl add to every object.
fn as_written(mut object: Value) -> Value {
    object
        .as_object_mut()
        .map(|object| object.shift_remove("status"));
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        for field in [
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "managedFields",
            "namespace",
        ] {
            metadata.shift_remove(field);
        }
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.shift_remove("kubectl.kubernetes.io/last-applied-configuration");
            if annotations.is_empty() {
                metadata.shift_remove("annotations");
            }
        }
    }
    object
}

/// Takes away what the schema's defaults put where `written` has nothing.
fn drop_defaults(stored: &mut Value, written: &Value, schema: &Value) {
    let (Value::Object(stored), Value::Object(written)) = (stored, written) else {
        return;
    };
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        match (stored.get_mut(name), written.get(name)) {
            (Some(value), None) if schema.get("default") == Some(value) => {
                stored.shift_remove(name);
            }
            (Some(value), Some(written)) => drop_defaults(value, written, schema),
            _ => {}
        }
    }
}

async fn stored(place: &Place<'_>, written: &Value) -> Result<Value> {
    let kind = written["kind"].as_str().unwrap_or_default().to_lowercase();
    let name = written["metadata"]["name"].as_str().unwrap_or_default();
    let said = place
        .kubectl(&["get", &kind, name, "-o=json"])
        .await?
        .done()?;
    let mut stored = as_written(serde_json::from_str(&said.stdout)?);
    if kind == "pool" || kind == "batchsandbox" {
        let plural = if kind == "pool" {
            "pools"
        } else {
            "batchsandboxes"
        };
        let crd: Value = serde_saphyr::from_str(&file(&format!(
            "config/crd/{plural}.sandbox.opensandbox.io.yaml"
        ))?)?;
        drop_defaults(
            &mut stored,
            written,
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
        );
    }
    Ok(stored)
}

/// With an installation of its own: the examples change a ConfigMap, and live in `default`.
#[tokio::test]
async fn inject_prints_what_a_fresh_cluster_stores() -> Result<()> {
    let Some(site) = own().await? else {
        return Ok(());
    };
    let place = site.existing("default").await?;
    let examples = installation::repository("examples").display().to_string();
    let list: Value =
        serde_json::from_str(&printed(&["inject", "-f", &examples, "-o", "json"], None).await?)?;
    let written = list["items"]
        .as_array()
        .context("several documents make a List")?;
    ensure!(written.len() == 6, "{} documents", written.len());
    // The ConfigMap among them counts for the Pools after it, milliseconds later.
    place.kubectl(&["apply", "-f", &examples]).await?.done()?;
    let mut failures = Failures::default();
    for written in written {
        let stored = stored(&place, written).await?;
        let written = as_written(written.clone());
        failures.check(stored == written, || {
            format!("stored {stored}\nwritten {written}")
        });
    }
    failures.told()?;

    // And back: each Pool as in its file.
    for name in ["basic-pool", "minimal-pool", "task-enabled-pool"] {
        let text = place
            .kubectl(&["get", "pool", name, "-o=yaml"])
            .await?
            .done()?
            .stdout;
        let back: Value = serde_json::from_str(
            &printed(&["uninject", "-f", "-", "-o", "json"], Some(&text)).await?,
        )?;
        let source: Value = serde_saphyr::from_str(&file(&format!("examples/{name}.yaml"))?)?;
        ensure!(
            as_written(back.clone()) == as_written(source.clone()),
            "{name}: {back}\n{source}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn explain_names_the_origin_of_each_value_of_a_stored_pool() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    place
        .set_image(Some("from-config-map:v1"), "from-config-map:v1")
        .await?;
    let mut object = pool("explained");
    object["spec"]["template"]["spec"]["containers"] =
        json!([sandbox(), { "name": labels::TASK_EXECUTOR, "imagePullPolicy": "Always" }]);
    place.apply(&object).await?.done()?;
    let text = place
        .kubectl(&["get", "pool", "explained", "-o=yaml"])
        .await?
        .done()?
        .stdout;
    let explained = printed(&["explain", "-f", "-"], Some(&text)).await?;
    let origin = format!(
        "ConfigMap {}/opensandbox-images, key taskExecutorImage",
        place.namespace
    );
    for words in [
        "from-config-map:v1",
        &origin,
        "spec.template.spec.shareProcessNamespace",
        "spec.template.spec.containers[task-executor].image",
        "spec.template.spec.containers[task-executor].imagePullPolicy",
        "SYS_PTRACE",
        "default",
    ] {
        // A long word may be broken over lines.
        let flat: String = explained.split_whitespace().collect();
        let wanted: String = words.split_whitespace().collect();
        ensure!(flat.contains(&wanted), "no {words} in:\n{explained}");
    }
    let json: Value =
        serde_json::from_str(&printed(&["explain", "-f", "-", "-o", "json"], Some(&text)).await?)?;
    ensure!(json.to_string().contains(&origin), "{json}");
    Ok(())
}

/// Files of a person, not the examples: injected offline and stored by the server, in a namespace with
/// labels and a ConfigMap of its own.
#[tokio::test]
async fn labels_and_config_maps_among_the_files_count_as_on_the_server() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    for (label, image) in [
        (None, None),
        (Some("disabled"), None),
        (Some("enabled"), Some("here:v1")),
        (None, Some("two words")),
    ] {
        let labels: Vec<_> = label
            .map(|value| (labels::INJECTION, value))
            .into_iter()
            .collect();
        let place = site.place(&labels).await?;
        let entries: Map<_, _> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": place.namespace, "labels": entries } });
        let mut files = vec![namespace];
        if let Some(image) = image {
            let mut config_map = crate::site::images(image);
            config_map["metadata"]["namespace"] = json!(place.namespace);
            place.apply(&config_map).await?.done()?;
            if label != Some("disabled") && !image.contains(' ') {
                place.image_becomes(image).await?;
            }
            files.push(config_map);
        }
        let installed = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": labels::IMAGES_CONFIG_MAP, "namespace": installation::NAMESPACE },
            "data": { (labels::TASK_EXECUTOR_IMAGE_KEY): labels::DEFAULT_TASK_EXECUTOR_IMAGE },
        });
        files.insert(0, installed);
        let mut pools = vec![
            pool("plain"),
            crate::pools::labelled("in", "enabled"),
            crate::pools::labelled("out", "disabled"),
        ];
        let mut own_image = pool("own-image");
        own_image["spec"]["template"]["spec"]["containers"] =
            json!([{ "name": labels::TASK_EXECUTOR, "image": "own:v1", "env": null }, sandbox()]);
        pools.push(own_image);
        for pool in &mut pools {
            pool["metadata"]["namespace"] = json!(place.namespace);
            files.push(pool.clone());
        }
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": files }).to_string();
        let injected: Value = serde_json::from_str(
            &printed(&["inject", "-f", "-", "-o", "json"], Some(&list)).await?,
        )?;
        for pool in &pools {
            place.create(pool, "").await?.map_err(anyhow::Error::msg)?;
            let name = &pool["metadata"]["name"];
            let written = injected["items"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|item| item["kind"] == "Pool" && item["metadata"]["name"] == *name);
            let written = as_written(
                written
                    .with_context(|| format!("{name} is not among the results"))?
                    .clone(),
            );
            let stored = stored(&place, &written).await?;
            failures.check(stored == written, || {
                format!("{label:?} {image:?} {name}: stored {stored}\nwritten {written}")
            });
        }
    }
    failures.told()
}
