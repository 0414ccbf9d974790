//! Annotations that make no sense.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    ALLOC_RELEASE, ALLOC_RELEASED, ALLOC_STATUS, ENDPOINTS, FENCE, arena, nodes, of_pool, pool,
    sandbox, unharmed,
};
use crate::site::{Site, site};

/// The annotations that decide who holds what, with a word for the name of an object.
const KEYS: [(&str, &str); 3] = [
    ("status", ALLOC_STATUS),
    ("release", ALLOC_RELEASE),
    ("released", ALLOC_RELEASED),
];

/// What no reader takes, with a word for the name of the object.
fn malformed() -> Vec<(&'static str, String)> {
    vec![
        ("empty", String::new()),
        ("garbage", "{{{".to_owned()),
        ("null", "null".to_owned()),
        ("number", "-1e999".to_owned()),
        ("list", "[]".to_owned()),
        ("text", r#"{"pods":"all"}"#.to_owned()),
        ("numbers", r#"{"pods":[1,2]}"#.to_owned()),
        ("nameless", r#"{"pods":[""]}"#.to_owned()),
        ("twice", r#"{"pods":["a","a"]}"#.to_owned()),
        ("deep", format!(r#"{{"pods":{}"#, "[".repeat(100_000))),
        ("long", format!(r#"{{"pods":["{}"]}}"#, "x".repeat(200_000))),
        ("control", "\u{0}\u{1b}[31m\u{202e}".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_annotations_are_set_aside_and_named() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let (crowded, quiet, operator) = arena(&site, "malformed").await?;
    for namespace in [&crowded, &quiet] {
        site.create(namespace, &pool("shared", [1, 4, 2, 20]))
            .await?;
    }
    site.create(&crowded, &of_pool("first", 2, "shared"))
        .await?;
    let first = site.ready(&crowded, "first", 2).await?;

    set_aside(&site, &crowded).await?;
    restored(&site, &crowded, &first).await?;

    // The others do not notice.
    for (namespace, name) in [(&crowded, "second"), (&quiet, "only")] {
        site.create(namespace, &of_pool(name, 2, "shared")).await?;
        site.ready(namespace, name, 2).await?;
    }
    unharmed(&operator).await?;

    // An operator that starts with all of that does likewise.
    operator.stop().await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    site.create(&crowded, &of_pool("third", 2, "shared"))
        .await?;
    site.ready(&crowded, "third", 2).await?;
    ensure!(site.ready(&crowded, "first", 2).await? == first);
    // A mended object goes on.
    site.annotate(&crowded, "status-deep", &json!({ALLOC_STATUS: null}))
        .await?;
    site.ready(&crowded, "status-deep", 1).await?;
    site.nobody_shares(&crowded).await?;
    unharmed(&operator).await?;
    // And whatever it is, it can be deleted.
    site.kubectl(&[
        "delete",
        "batchsandbox",
        "--all",
        "-n",
        &crowded,
        "--timeout=60s",
    ])
    .await?;
    operator.stop().await
}

/// Objects that come with annotations that make no sense: each says which, and what to do about it.
async fn set_aside(site: &Site, namespace: &str) -> Result<()> {
    for (kind, key) in KEYS {
        for (word, text) in malformed() {
            let spec = json!({"replicas": 1, "poolRef": "shared"});
            let annotations = json!({key: text});
            let object = sandbox(&format!("{kind}-{word}"), &spec, &annotations);
            site.create(namespace, &object).await?;
        }
    }
    for (kind, key) in KEYS {
        for (word, _) in malformed() {
            let name = format!("{kind}-{word}");
            let type_ = "Quarantined";
            let reason = "MalformedAnnotation";
            let message = site
                .condition(namespace, "batchsandbox", &name, type_, reason)
                .await?;
            for expected in [key, "restore it, or remove it if the sandbox holds no pods"] {
                ensure!(message.contains(expected), "{name}: {message}");
            }
            ensure!(
                message.len() <= 1024 && !message.contains('\u{1b}'),
                "{message}"
            );
        }
    }
    let note = site
        .event(namespace, "status-deep", "MalformedAnnotation")
        .await?;
    ensure!(note.contains(ALLOC_STATUS), "{note}");
    Ok(())
}

/// Annotations that somebody writes over later: what is so is written again.
async fn restored(site: &Site, namespace: &str, first: &BTreeSet<String>) -> Result<()> {
    // What nobody depends on is written anew without a word, or not looked at.
    for (word, text) in malformed() {
        let name = format!("other-{word}");
        let spec = json!({"replicas": 0, "poolRef": "shared"});
        let annotations = json!({ENDPOINTS: text, FENCE: "x"});
        site.create(namespace, &sandbox(&name, &spec, &annotations))
            .await?;
    }
    for (_, text) in malformed() {
        site.annotate(namespace, "first", &json!({ENDPOINTS: text}))
            .await?;
        endpoints_are_right(site, namespace, "first", 2).await?;
    }
    // What was believed once stays believed, whatever is written over it.
    for (key, text) in KEYS.iter().zip(malformed().into_iter().cycle().skip(1)) {
        site.annotate(namespace, "first", &json!({key.1: text.1}))
            .await?;
        ensure!(site.ready(namespace, "first", 2).await? == *first);
    }
    site.annotate(
        namespace,
        "first",
        &json!({ALLOC_STATUS: null, ENDPOINTS: null}),
    )
    .await?;
    ensure!(site.ready(namespace, "first", 2).await? == *first);

    let note = site.event(namespace, "first", "AnnotationRestored").await?;
    ensure!(note.contains("sandbox.opensandbox.io/alloc-"), "{note}");
    Ok(())
}

async fn endpoints_are_right(site: &Site, namespace: &str, name: &str, count: usize) -> Result<()> {
    let path = "metadata.annotations.sandbox\\.opensandbox\\.io/endpoints";
    site.until(namespace, "batchsandbox", name, path, |endpoints| {
        endpoints.as_array().is_some_and(|all| {
            let addresses = all.iter().filter_map(Value::as_str);
            all.len() == count && addresses.clone().all(|one| one.starts_with("10."))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_and_its_pods_with_garbage_on_them_work_on() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    nodes(&site).await?;
    let namespace = site.namespace("garbled").await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    let mut garbled = pool("garbled", [1, 2, 2, 6]);
    garbled["spec"]["recycleStrategy"] = json!({"type": "Restart"});
    garbled["metadata"]["annotations"] = json!({
        "sandbox.opensandbox.io/restart-config": "x".repeat(100_000),
        "sandbox.opensandbox.io/task-executor-injection": "[".repeat(100_000),
    });
    site.create(&namespace, &garbled).await?;
    let note = site
        .event(&namespace, "garbled", "InvalidRestartConfig")
        .await?;
    for words in ["restart-config", "until it is mended"] {
        ensure!(note.contains(words), "{note}");
    }
    let pods = site.pods(&namespace, "garbled", 2).await?;
    let record = format!(
        "sandbox.opensandbox.io/restart-record={}",
        "{".repeat(60_000)
    );
    for pod in &pods {
        site.kubectl(&["annotate", "pod", pod, "-n", &namespace, &record])
            .await?;
        let labels = "batch-sandbox.sandbox.opensandbox.io/pod-index=many";
        site.kubectl(&["label", "pod", pod, "-n", &namespace, labels])
            .await?;
    }
    site.create(&namespace, &of_pool("user", 2, "garbled"))
        .await?;
    site.ready(&namespace, "user", 2).await?;
    // Given back: what cannot be restarted goes, and others come.
    site.kubectl(&[
        "delete",
        "batchsandbox",
        "user",
        "-n",
        &namespace,
        "--timeout=60s",
    ])
    .await?;
    site.create(&namespace, &of_pool("next", 3, "garbled"))
        .await?;
    site.ready(&namespace, "next", 3).await?;
    // The status is the operator's own, and whoever may write it may write anything.
    let status = json!({"status": {"taskRecord": "S*99999999 q ".repeat(5_000), "ready": -1}});
    let patch = status.to_string();
    site.kubectl(&[
        "patch",
        "batchsandbox",
        "next",
        "-n",
        &namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ])
    .await?;
    site.ready(&namespace, "next", 3).await?;
    unharmed(&operator).await?;
    operator.stop().await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    site.create(&namespace, &of_pool("last", 1, "garbled"))
        .await?;
    site.ready(&namespace, "last", 1).await?;
    unharmed(&operator).await?;
    operator.stop().await
}
