//! The YAML of the examples, unchanged, through kubectl; and who gets the executor.

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use serde_json::{Value, json};

use crate::pools::{container, executor, image, labelled, lacks, names, pool, record};
use crate::site::{Failures, Place, file, shared};

const RESOURCES: &str =
    r#"{"limits":{"cpu":"500m","memory":"256Mi"},"requests":{"cpu":"100m","memory":"128Mi"}}"#;

async fn apply_text(place: &Place<'_>, text: &str) -> Result<()> {
    let kubeconfig = place.site.cluster.kubeconfig();
    let said = place
        .kubectl_as(kubeconfig, &["apply", "-f", "-"], Some(text))
        .await?
        .done()?;
    ensure!(said.stderr.is_empty(), "{said:?}");
    Ok(())
}

async fn printed(place: &Place<'_>, name: &str, path: &str) -> Result<String> {
    let output = format!("-o=jsonpath={{{path}}}");
    Ok(place
        .kubectl(&["get", "pool", name, &output])
        .await?
        .done()?
        .stdout)
}

#[tokio::test]
async fn the_pools_of_the_examples_become_what_their_text_says() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.existing("default").await?;
    let mut failures = Failures::default();
    let containers = ".spec.template.spec.containers";
    let mut table = Vec::new();

    // Opted out by its label, and as it was before it had one.
    let basic = file("examples/basic-pool.yaml")?;
    apply_text(&place, &basic).await?;
    let stored = place.pool("basic-pool").await?;
    ensure!(
        names(&stored) == ["sandbox-container"] && record(&stored).is_none(),
        "{stored}"
    );
    ensure!(
        stored
            .pointer("/spec/template/spec/shareProcessNamespace")
            .is_none(),
        "{stored}"
    );
    place
        .kubectl(&["delete", "pool", "basic-pool"])
        .await?
        .done()?;
    let (head, rest) = basic
        .split_once("  labels:\n")
        .expect("the example has labels");
    let (_, tail) = rest
        .split_once("disabled\n")
        .expect("the example is opted out");
    apply_text(&place, &format!("{head}{tail}")).await?;
    apply_text(&place, &file("examples/task-enabled-pool.yaml")?).await?;
    for name in ["basic-pool", "task-enabled-pool"] {
        table.extend([
            (
                name,
                format!("{containers}[*].name"),
                "sandbox-container task-executor",
            ),
            (
                name,
                ".spec.template.spec.shareProcessNamespace".to_owned(),
                "true",
            ),
            (
                name,
                format!("{containers}[1].securityContext"),
                r#"{"capabilities":{"add":["SYS_PTRACE"]}}"#,
            ),
            (
                name,
                format!("{containers}[1].image"),
                "opensandbox.io/task-executor:v0.0.1",
            ),
            (
                name,
                format!("{containers}[1].imagePullPolicy"),
                "IfNotPresent",
            ),
            (name, format!("{containers}[1].resources"), RESOURCES),
            (name, format!("{containers}[0].resources"), RESOURCES),
            (
                name,
                format!("{containers}[0].command"),
                r#"["sleep","infinity"]"#,
            ),
            (name, format!("{containers}[0].image"), "ubuntu:22.04"),
            (
                name,
                ".spec.capacitySpec".to_owned(),
                r#"{"bufferMax":10,"bufferMin":2,"poolMax":20,"poolMin":5}"#,
            ),
        ]);
    }
    for (name, path, expected) in table {
        let found = printed(&place, name, &path).await?;
        failures.check(found == expected, || {
            format!("{name} {path}: {found}, expected {expected}")
        });
    }

    apply_text(&place, &file("examples/minimal-pool.yaml")?).await?;
    let minimal = place.pool("minimal-pool").await?;
    failures.check(names(&minimal) == ["sandbox", "task-executor"], || {
        minimal.to_string()
    });
    apply_text(&place, &file("examples/batch-sandbox.yaml")?).await?;
    let wide = place
        .kubectl(&["get", "batchsandbox", "task-batch-sandbox", "-o", "wide"])
        .await?
        .done()?;
    failures.check(wide.stdout.contains("TASK_SUCCEED"), || wide.stdout.clone());
    failures.told()
}

#[tokio::test]
async fn what_the_user_wrote_in_the_executors_container_stays() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut written = pool("written");
    let own = json!({
        "name": "task-executor",
        "image": "registry.example/own:7",
        "imagePullPolicy": "Always",
        "resources": { "limits": { "cpu": "2" } },
        "env": [{ "name": "MAIN_CONTAINER_NAME", "value": "helper" }, { "name": "OTHER", "value": "x" }],
        "livenessProbe": { "exec": { "command": ["true"] } },
        "unknownField": { "a~b/c": [null, 1] },
    });
    // Before the sandbox, where a user may put it as well.
    let containers = written
        .pointer_mut("/spec/template/spec/containers")
        .and_then(|list| list.as_array_mut());
    containers.expect("a list").insert(0, own.clone());
    let said = place.apply(&written).await?.done()?;
    let stored = place.pool("written").await?;
    ensure!(
        names(&stored) == ["task-executor", "sandbox"],
        "{stored}\n{}",
        said.stderr
    );
    ensure!(lacks(&stored).is_empty(), "{:?}", lacks(&stored));
    let executor = executor(&stored).expect("it was looked for above");
    for (field, value) in own.as_object().expect("it is one") {
        ensure!(
            executor.get(field) == Some(value),
            "{field}: {} instead of {value}",
            executor[field.as_str()]
        );
    }
    ensure!(
        container(&stored, "sandbox") == Some(&crate::pools::sandbox()),
        "{stored}"
    );
    Ok(())
}

#[tokio::test]
async fn an_executor_that_runs_in_the_sandbox_is_left_alone() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut written = pool("in-container");
    written["spec"]["template"]["spec"]["containers"][0]["command"] = json!([
        "/bin/sh",
        "-c",
        "/opt/opensandbox/task-executor -listen-addr=0.0.0.0:5758 & exec sleep infinity"
    ]);
    place.apply(&written).await?.done()?;
    let stored = place.pool("in-container").await?;
    ensure!(
        stored["spec"] == written["spec"] && record(&stored).is_none(),
        "{stored}"
    );
    Ok(())
}

#[tokio::test]
async fn labels_of_pool_and_namespace_decide_in_this_order() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    for (namespace, pool_label, injected) in [
        (None, None, true),
        (None, Some("enabled"), true),
        (None, Some("disabled"), false),
        (Some("disabled"), None, false),
        (Some("disabled"), Some("enabled"), true),
        (Some("disabled"), Some("disabled"), false),
        (Some("enabled"), None, true),
        (Some("enabled"), Some("disabled"), false),
        (Some("nonsense"), None, true),
    ] {
        let labels: Vec<_> = namespace
            .map(|value| (labels::INJECTION, value))
            .into_iter()
            .collect();
        let place = site.place(&labels).await?;
        let object =
            pool_label.map_or_else(|| pool("labelled"), |value| labelled("labelled", value));
        let case = format!("namespace {namespace:?}, pool {pool_label:?}");
        match place.create(&object, "").await? {
            Ok(stored) => {
                failures.check(injected != image(&stored).is_empty(), || {
                    format!("{case}: {:?}", names(&stored))
                });
                failures.check(injected || stored["spec"] == object["spec"], || {
                    format!("{case}: {stored}")
                });
            }
            Err(message) => failures.check(false, || format!("{case}: {message}")),
        }
    }
    // Misspelt, it would silently follow the namespace.
    for label in ["Enabled", "true", ""] {
        let place = site.place(&[(labels::INJECTION, "disabled")]).await?;
        let message = place
            .create(&labelled("unknown", label), "")
            .await?
            .err()
            .unwrap_or_default();
        let path = format!("metadata.labels[{}]", labels::INJECTION);
        failures.check(
            message.contains(&path) && message.contains("\"enabled\" or \"disabled\""),
            || format!("{label:?}: {message}"),
        );
    }
    failures.told()
}

/// The webhook's watch may not have told of the namespace yet when the Pool is there already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_a_namespace_of_this_moment_count() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let client = site.cluster.client().await?;
    let object = pool("at-once");
    let made = (0..32).map(async |number| {
        let name = format!("at-once-{number}");
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {labels::INJECTION: "disabled"}},
        });
        let create = |path: String, object: &Value| {
            let request = http::Request::post(path).header("content-type", "application/json");
            Ok::<_, anyhow::Error>(request.body(serde_json::to_vec(object)?)?)
        };
        let namespaces = create("/api/v1/namespaces".to_owned(), &namespace)?;
        client.request::<Value>(namespaces).await?;
        let pools = format!(
            "/apis/{}/{}/namespaces/{name}/pools",
            labels::GROUP,
            labels::VERSION
        );
        let stored: Value = client.request(create(pools, &object)?).await?;
        ensure!(stored["spec"] == object["spec"], "{stored}");
        Ok(())
    });
    futures::future::try_join_all(made).await.map(drop)
}

#[tokio::test]
async fn the_label_switches_a_stored_pool_on_but_takes_nothing_away() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    place
        .apply(&labelled("switched", "disabled"))
        .await?
        .done()?;
    let label = |value: &str| format!("{}={value}", labels::INJECTION);
    place
        .kubectl(&[
            "label",
            "--overwrite",
            "pool",
            "switched",
            &label("enabled"),
        ])
        .await?
        .done()?;
    let on = place.pool("switched").await?;
    ensure!(lacks(&on).is_empty(), "{:?}", lacks(&on));
    place
        .kubectl(&[
            "label",
            "--overwrite",
            "pool",
            "switched",
            &label("disabled"),
        ])
        .await?
        .done()?;
    let off = place.pool("switched").await?;
    ensure!(off["spec"] == on["spec"], "the webhook never removes");
    // Applying the user's own file does: it owns the list of containers, and nobody restores it now.
    place
        .apply(&labelled("switched", "disabled"))
        .await?
        .done()?;
    let applied = place.pool("switched").await?;
    ensure!(names(&applied) == ["sandbox"], "{:?}", names(&applied));
    Ok(())
}
