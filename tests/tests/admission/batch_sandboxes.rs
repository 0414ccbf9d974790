//! BatchSandboxes: schema and CEL decide most, the webhook what they cannot see, and nobody but the
//! operator writes the allocation.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use opensandbox_api::labels;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use crate::site::{BOUND, Failures, Place, shared};
use crate::table::{self, names_path, put};

const OPERATOR: &str = "system:serviceaccount:opensandbox-system:opensandbox-operator";

/// A right one, with tasks, so that the webhook is asked.
pub(crate) fn sandbox(name: &str) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1",
        "kind": "BatchSandbox",
        "metadata": { "name": name },
        "spec": {
            "replicas": 2,
            "poolRef": "some-pool",
            "taskTemplate": { "spec": { "process": { "command": ["echo", "x"] } } },
        },
    })
}

fn template() -> Value {
    json!({ "spec": { "containers": [{ "name": "main", "image": "ubuntu:22.04" }] } })
}

/// Changes of a right object: a pointer, and what is put there; nothing means that it is taken away.
type Edits = Vec<(&'static str, Option<Value>)>;

fn one(pointer: &'static str, value: Value) -> Edits {
    vec![(pointer, Some(value))]
}

pub(crate) const TABLE: &str = include_str!("wrong_batch_sandboxes.yaml");

#[tokio::test]
async fn wrong_batch_sandboxes_are_refused_with_every_reason_of_a_stage() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    table::check(&site.place(&[]).await?, TABLE, sandbox, true).await
}

#[tokio::test]
async fn right_batch_sandboxes_are_accepted() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut failures = Failures::default();
    let no_base: Edits = vec![
        ("/spec/taskTemplate/spec/process/command", None),
        (
            "/spec/shardTaskPatches",
            Some(
                json!([{ "spec": { "process": { "command": ["a"] } } }, { "spec": { "process": { "command": ["b"] } } }]),
            ),
        ),
    ];
    let cases: Vec<(&str, Edits)> = vec![
        ("as it is", vec![]),
        ("no tasks", vec![("/spec/taskTemplate", None)]),
        ("replicas absent", vec![("/spec/replicas", None)]),
        ("no replicas", one("/spec/replicas", json!(0))),
        ("any pool", one("/spec/poolRef", json!("*"))),
        (
            "any pool, with a template",
            vec![
                ("/spec/poolRef", Some(json!("*"))),
                ("/spec/template", Some(template())),
            ],
        ),
        (
            "a template",
            vec![
                ("/spec/poolRef", None),
                ("/spec/template", Some(template())),
            ],
        ),
        ("every task from its patch", no_base),
        ("not paused", one("/spec/pause", json!(false))),
        (
            "retain",
            one("/spec/taskResourcePolicyWhenCompleted", json!("Retain")),
        ),
        (
            "unknown fields of a task",
            one("/spec/taskTemplate/spec/later", json!({ "a": [1] })),
        ),
        (
            "nulls",
            vec![
                ("/spec/template", Some(json!(null))),
                ("/spec/shardPatches", Some(json!(null))),
                ("/spec/shardTaskPatches", Some(json!(null))),
            ],
        ),
        (
            "patches by strategic merge",
            vec![
                ("/spec/poolRef", None),
                ("/spec/template", Some(template())),
                (
                    "/spec/shardPatches",
                    Some(
                        json!([{ "spec": { "containers": [{ "name": "main", "env": [{ "name": "A", "value": "1" }] }] } }]),
                    ),
                ),
            ],
        ),
    ];
    for (index, (what, edits)) in cases.into_iter().enumerate() {
        let mut object = sandbox(&format!("right-{index}"));
        for (pointer, value) in &edits {
            put(&mut object, pointer, value.as_ref());
        }
        let stored = place.create(&object, "").await?;
        failures.check(stored.is_ok(), || format!("{what}: {stored:?}"));
    }
    failures.told()
}

#[tokio::test]
async fn a_pool_reference_never_changes_save_from_any_to_one() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut failures = Failures::default();
    let reference = |value: Value| json!({ "spec": { "poolRef": value } });
    place
        .create(&sandbox("named"), "")
        .await?
        .map_err(anyhow::Error::msg)?;
    for value in [json!("other"), json!("*")] {
        let refusal = place
            .merge("batchsandboxes", "named", &reference(value.clone()))
            .await?
            .err()
            .unwrap_or_default();
        failures.check(
            names_path(&refusal, "spec.poolRef") && refusal.contains("immutable"),
            || format!("to {value}: {refusal}"),
        );
    }
    let removed = place
        .merge("batchsandboxes", "named", &reference(Value::Null))
        .await?;
    failures.check(removed.is_err(), || "the reference was removed".to_owned());
    let with_template = json!({ "spec": { "poolRef": null, "template": template() } });
    let replaced = place
        .merge("batchsandboxes", "named", &with_template)
        .await?;
    failures.check(replaced.is_err(), || {
        "the reference gave way to a template".to_owned()
    });

    for (name, has_template) in [("any", false), ("any-with-template", true)] {
        let mut any = sandbox(name);
        any["spec"]["poolRef"] = json!("*");
        if has_template {
            any["spec"]["template"] = template();
        }
        place.create(&any, "").await?.map_err(anyhow::Error::msg)?;
        let assigned = place
            .merge("batchsandboxes", name, &reference(json!("chosen")))
            .await?;
        failures.check(assigned.is_ok(), || format!("{name}: {assigned:?}"));
        let again = place
            .merge("batchsandboxes", name, &reference(json!("another")))
            .await?;
        failures.check(again.is_err(), || format!("{name}: assigned twice"));
        // What follows the assignment must still be possible.
        let labelled = place
            .merge(
                "batchsandboxes",
                name,
                &json!({ "spec": { "replicas": 3 } }),
            )
            .await?;
        failures.check(labelled.is_ok(), || format!("{name}: {labelled:?}"));
    }
    failures.told()
}

/// A kubeconfig for somebody who may do anything to the BatchSandboxes here.
async fn member(place: &Place<'_>, user: &str, groups: &[&str]) -> Result<PathBuf> {
    let kubeconfig = place.site.cluster.kubeconfig_for(user, groups)?;
    let name = format!("member-{}", user.rsplit(':').next().unwrap_or_default());
    let resource = "--resource=batchsandboxes.sandbox.opensandbox.io";
    place
        .kubectl(&["create", "role", &name, "--verb=*", resource])
        .await?
        .done()?;
    let (role, user) = (format!("--role={name}"), format!("--user={user}"));
    place
        .kubectl(&["create", "rolebinding", &name, &role, &user])
        .await?
        .done()?;
    wait::until("the role to take effect", BOUND, async || {
        let said = place
            .kubectl_as(&kubeconfig, &["get", "batchsandboxes"], None)
            .await?;
        Ok(if said.code == Some(0) {
            Probe::Done(())
        } else {
            Probe::not_yet(said.stderr)
        })
    })
    .await?;
    Ok(kubeconfig)
}

#[tokio::test]
async fn nobody_but_the_operator_writes_the_allocation() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let groups = [
        "system:serviceaccounts",
        "system:serviceaccounts:opensandbox-system",
    ];
    let operator = member(&place, OPERATOR, &groups).await?;
    let upstream = member(
        &place,
        "system:serviceaccount:opensandbox-system:opensandbox-controller-manager",
        &groups,
    )
    .await?;
    let jane = member(&place, "jane", &[]).await?;
    let administrator = site.cluster.kubeconfig().to_owned();
    let mut failures = Failures::default();
    for (with_tasks, name) in [(true, "with-tasks"), (false, "plain")] {
        let mut object = sandbox(name);
        if !with_tasks {
            put(&mut object, "/spec/taskTemplate", None);
        }
        place
            .create(&object, "")
            .await?
            .map_err(anyhow::Error::msg)?;
        let annotate = async |who: &PathBuf, annotation: &str| {
            place
                .kubectl_as(
                    who,
                    &["annotate", "--overwrite", "batchsandbox", name, annotation],
                    None,
                )
                .await
        };
        for key in [
            labels::ALLOC_STATUS,
            labels::ALLOC_RELEASE,
            labels::ALLOC_RELEASED,
        ] {
            let mine = format!("{key}={{\"pods\":[\"mine\"]}}");
            let ours = format!("{key}={{\"pods\":[\"ours\"]}}");
            let gone = format!("{key}-");
            let path = format!("metadata.annotations[{key}]: Forbidden");
            for (who, what) in [(&jane, &mine), (&administrator, &mine)] {
                let said = annotate(who, what).await?;
                failures.check(said.code == Some(1) && said.stderr.contains(&path), || {
                    format!("{said:?}")
                });
            }
            for who in [&operator, &upstream] {
                let said = annotate(who, if who == &operator { &mine } else { &ours }).await?;
                failures.check(said.code == Some(0), || format!("{said:?}"));
            }
            for what in [&mine, &gone] {
                let said = annotate(&jane, what).await?;
                failures.check(said.code == Some(1) && said.stderr.contains(&path), || {
                    format!("{said:?}")
                });
            }
        }
        let others = annotate(&jane, "example.com/note=x").await?;
        failures.check(others.code == Some(0), || {
            format!("other annotations: {others:?}")
        });
        let replicas = place
            .kubectl_as(
                &jane,
                &[
                    "patch",
                    "batchsandbox",
                    name,
                    "--type=merge",
                    "--patch",
                    r#"{"spec":{"replicas":5}}"#,
                ],
                None,
            )
            .await?;
        failures.check(replicas.code == Some(0), || {
            format!("another field: {replicas:?}")
        });
        let deleted = place
            .kubectl_as(&jane, &["delete", "batchsandbox", name], None)
            .await?;
        failures.check(deleted.code == Some(0), || format!("{deleted:?}"));
    }
    failures.told()
}

#[tokio::test]
async fn secrets_in_a_task_are_not_repeated_in_a_refusal() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut object = sandbox("secret");
    object["spec"]["shardTaskPatches"] = json!([
        { "spec": { "process": { "env": [{ "name": "TOKEN", "value": { "hunter": "hunter2" } }, { "value": "hunter2" }], "command": [] } } },
        { "spec": { "process": "hunter2" } },
    ]);
    let message = place.create(&object, "").await?.err().unwrap_or_default();
    ensure!(message.contains("spec.shardTaskPatches[0]"), "{message}");
    ensure!(!message.contains("hunter2"), "{message}");
    Ok(())
}
