//! The chart and kustomize make the same objects, but for what only Helm has: labels of its own, and the
//! order to keep the kinds. And two releases make no object in common.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use opensandbox_tests::cluster;
use opensandbox_tests::helm::{Helm, Rendered};
use opensandbox_tests::installation::repository;
use serde_json::Value;

use crate::{NAMESPACE, RELEASE, find, kustomize};

/// Labels of Helm, in metadata and in selectors.
const OF_HELM: [&str; 4] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
];

/// Kind, namespace, name.
type Identity = [String; 3];

fn identity(document: &Value) -> Identity {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &document["metadata"];
    [&document["kind"], &metadata["namespace"], &metadata["name"]].map(text)
}

/// Without what only Helm has.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !OF_HELM.contains(&name.as_str()));
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn comparable(documents: Vec<Value>) -> BTreeMap<Identity, Value> {
    let documents = documents.into_iter().map(|mut document| {
        strip(&mut document);
        if document["kind"] == "CustomResourceDefinition" {
            // The generated files have neither; nothing selects kinds by labels.
            let metadata = document["metadata"].as_object_mut();
            let metadata = metadata.expect("metadata is an object");
            metadata.remove("labels");
            metadata.remove("annotations");
        }
        (identity(&document), document)
    });
    documents.collect()
}

/// What differs, as far as it helps.
fn differences(
    chart: &BTreeMap<Identity, Value>,
    kustomize: &BTreeMap<Identity, Value>,
) -> Vec<String> {
    let mut found = Vec::new();
    for identity in kustomize.keys().filter(|key| !chart.contains_key(*key)) {
        found.push(format!("{identity:?} is not in the chart"));
    }
    for (identity, in_chart) in chart {
        match kustomize.get(identity) {
            None => found.push(format!("{identity:?} is in the chart only")),
            Some(document) => {
                let patch = json_patch::diff(document, in_chart).0;
                let changes = patch.iter().map(|change| format!("{identity:?}: {change}"));
                found.extend(changes);
            }
        }
    }
    found
}

#[tokio::test]
async fn the_chart_makes_the_objects_of_kustomize() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let Some(helm) = Helm::on(&cluster).await? else {
        return Ok(());
    };
    for (directories, settings) in [
        (["config/default"].as_slice(), [].as_slice()),
        (
            &["config/with-cert-manager"],
            &["--set=certificates.mode=cert-manager"],
        ),
        (
            &["config/default", "config/monitoring"],
            &[
                "--set=metrics.podMonitor.enabled=true",
                "--set=metrics.prometheusRule.enabled=true",
                "--set=metrics.dashboard.enabled=true",
            ],
        ),
    ] {
        let rendered = helm.template(RELEASE, NAMESPACE, settings).await?;
        let mut documents = Vec::new();
        for directory in directories {
            documents.extend(kustomize(&cluster, &repository(directory)).await?);
        }
        let mut kustomize = comparable(documents);
        // Helm's namespace exists before the release, which is stored in it.
        let namespace = ["Namespace", "", NAMESPACE].map(str::to_owned);
        ensure!(kustomize.remove(&namespace).is_some(), "{directories:?}");
        let found = differences(&comparable(rendered.objects), &kustomize);
        ensure!(found.is_empty(), "{directories:?}: {}", found.join("\n"));
    }
    Ok(())
}

/// What belongs to the whole cluster, without the kinds, which are there once.
fn of_the_cluster(rendered: &Rendered) -> BTreeSet<Identity> {
    let objects = rendered.objects.iter();
    objects
        .filter(|object| object["metadata"].get("namespace").is_none())
        .filter(|object| object["kind"] != "CustomResourceDefinition")
        .map(identity)
        .collect()
}

#[tokio::test]
async fn two_releases_make_no_object_in_common() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let Some(helm) = Helm::on(&cluster).await? else {
        return Ok(());
    };
    let mut seen = BTreeSet::new();
    // The last two would meet, were the namespace put behind the name by a dash.
    for (release, namespace) in [
        (RELEASE, NAMESPACE),
        (RELEASE, "team"),
        ("acme", NAMESPACE),
        ("acme", "team"),
        ("opensandbox-webhook", "team"),
        ("opensandbox", "webhook-team"),
    ] {
        let rendered = helm.template(release, namespace, &[]).await?;
        for object in of_the_cluster(&rendered) {
            ensure!(
                seen.insert(object.clone()),
                "{object:?} of {release} in {namespace} was there"
            );
        }
    }
    Ok(())
}

/// With `watchNamespaces`, rights and reviews end at these namespaces.
#[tokio::test]
async fn watched_namespaces_are_all_that_a_release_acts_in() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let Some(helm) = Helm::on(&cluster).await? else {
        return Ok(());
    };
    let settings = ["--set=watchNamespaces={team-a,team-b}"];
    let objects = helm.template(RELEASE, NAMESPACE, &settings).await?.objects;
    ensure!(find(&objects, "ClusterRoleBinding", "opensandbox-operator").is_err());
    let bindings: Vec<_> = objects
        .iter()
        .filter(|object| {
            object["kind"] == "RoleBinding" && object["roleRef"]["kind"] == "ClusterRole"
        })
        .map(|binding| {
            let role = &binding["roleRef"]["name"];
            (binding["metadata"]["namespace"].clone(), role.clone())
        })
        .collect();
    let expected = ["team-a", "team-b"].map(|namespace| {
        let role = Value::from("opensandbox-operator");
        (Value::from(namespace), role)
    });
    ensure!(bindings == expected, "{bindings:?}");

    let watched = serde_json::json!({
        "key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"],
    });
    for kind in [
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ] {
        let configuration = find(&objects, kind, "opensandbox-webhook")?;
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            let selected = &webhook["namespaceSelector"]["matchExpressions"];
            let selected = selected.as_array().into_iter().flatten();
            ensure!(
                selected.into_iter().any(|one| one == &watched),
                "{kind}: {webhook}"
            );
        }
    }
    let operator = find(&objects, "Deployment", "opensandbox-operator")?;
    let variables = &operator["spec"]["template"]["spec"]["containers"][0]["env"];
    let variable = serde_json::json!({"name": "WATCH_NAMESPACES", "value": "team-a,team-b"});
    ensure!(
        variables
            .as_array()
            .is_some_and(|all| all.contains(&variable)),
        "{variables}"
    );
    Ok(())
}
