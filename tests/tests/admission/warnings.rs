//! Warnings: kubectl prints what will hurt later, and the object is stored all the same.

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use serde_json::{Value, json};

use crate::pools::{in_mode, labelled, lacks, pool};
use crate::site::{Failures, shared};

/// What makes a right Pool one to be warned of.
type Edit = fn(&mut Value);

#[tokio::test]
async fn kubectl_prints_what_will_hurt_later() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    let cases: [(&str, Edit, &[&str]); 8] = [
        ("nothing", |_| (), &[]),
        (
            "bufferMax over poolMax",
            |pool| pool["spec"]["capacitySpec"]["bufferMax"] = json!(11),
            &["bufferMax (11) is greater than poolMax (10)"],
        ),
        (
            "nothing kept warm",
            |pool| {
                pool["spec"]["capacitySpec"] =
                    json!({ "bufferMin": 0, "bufferMax": 3, "poolMin": 0, "poolMax": 5 });
            },
            &["no pod is kept warm"],
        ),
        (
            "no limits",
            |pool| pool["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({}),
            &[
                "container \"sandbox\" has no cpu limit",
                "container \"sandbox\" has no memory limit",
            ],
        ),
        (
            "no command",
            |pool| pool["spec"]["template"]["spec"]["containers"][0]["command"] = Value::Null,
            &["container \"sandbox\" has no command"],
        ),
        (
            "a command that ends",
            |pool| {
                pool["spec"]["template"]["spec"]["containers"][0]["command"] =
                    json!(["/bin/echo", "hello"]);
            },
            &["runs \"echo\", which ends at once"],
        ),
        (
            "never restarted",
            |pool| pool["spec"]["template"]["spec"]["restartPolicy"] = json!("Never"),
            &["restartPolicy is Never"],
        ),
        (
            "several at once",
            |pool| {
                pool["spec"]["capacitySpec"]["bufferMax"] = json!(99);
                pool["spec"]["template"]["spec"]["containers"][0] =
                    json!({ "name": "sandbox", "image": "alpine" });
            },
            &[
                "bufferMax (99)",
                "has no cpu limit",
                "has no memory limit",
                "has no command",
            ],
        ),
    ];
    let place = site.place(&[]).await?;
    for (index, (what, edit, expected)) in cases.into_iter().enumerate() {
        let name = format!("warned-{index}");
        let mut object = pool(&name);
        edit(&mut object);
        let said = place.apply(&object).await?;
        let warnings: Vec<_> = said
            .stderr
            .lines()
            .filter(|line| line.starts_with("Warning: "))
            .collect();
        failures.check(
            said.code == Some(0) && warnings.len() == expected.len(),
            || format!("{what}: {said:?}"),
        );
        for text in expected {
            failures.check(
                warnings.iter().any(|warning| warning.contains(text)),
                || format!("{what}: no {text:?} in {warnings:?}"),
            );
        }
        let stored = place.pool(&name).await?;
        failures.check(lacks(&stored).is_empty(), || {
            format!("{what}: {:?}", lacks(&stored))
        });
    }
    failures.told()
}

#[tokio::test]
async fn a_namespace_that_forbids_the_capability_is_warned_of() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    for (level, forbids) in [
        ("restricted", true),
        ("baseline", true),
        ("privileged", false),
    ] {
        let place = site.place(&[(labels::POD_SECURITY_ENFORCE, level)]).await?;
        for (object, expected) in [
            (pool("injected"), forbids),
            (labelled("disabled", "disabled"), false),
            (in_mode(pool("in-container"), "in-container"), false),
        ] {
            let said = place.apply(&object).await?.done()?;
            let warned = said.stderr.contains("Pod Security level") && said.stderr.contains(level);
            failures.check(warned == expected, || format!("{level}: {said:?}"));
            let remedy = format!("{}=in-container", labels::EXECUTOR_MODE);
            failures.check(said.stderr.contains(&remedy) == expected, || {
                format!("the remedy: {}", said.stderr)
            });
            failures.check(!said.stderr.contains('…'), || {
                format!("cut: {}", said.stderr)
            });
        }
        ensure!(lacks(&place.pool("injected").await?).is_empty());
    }
    failures.told()
}

#[tokio::test]
async fn a_batch_sandbox_is_warned_about_too() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let task = json!({ "spec": { "process": { "command": ["a"], "env": [{ "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "x" } } }] } } });
    let object = json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1",
        "kind": "BatchSandbox",
        "metadata": { "name": "warned" },
        "spec": { "replicas": 1, "poolRef": "p", "taskTemplate": task, "shardTaskPatches": [{}, {}, {}] },
    });
    let said = place.apply(&object).await?.done()?;
    for text in [
        "Warning: spec.shardTaskPatches has 3 entries for 1 replicas",
        "Warning: taskTemplate.spec.process.env: valueFrom",
    ] {
        ensure!(said.stderr.contains(text), "{said:?}");
    }
    Ok(())
}
