//! The steps, in order. Each shows one thing and checks that it is so.

use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::labels::{DEFAULT_TASK_EXECUTOR_IMAGE, INJECTION_UPGRADE};
use serde_json::{Value, json};

use super::diff;
use super::numbers::Numbers;
use super::stage::{Stage, containers, executor_field};
use crate::installation::repository;
use crate::wait::{self, Probe};

const MINIMAL: &str = "examples/minimal-pool.yaml";
const IMAGES: &str = "examples/images-configmap.yaml";
const OVERLAY: &str = "examples/kustomize";
/// The image in [`IMAGES`] and [`OVERLAY`].
const NEW_IMAGE: &str = "your-registry/opensandbox-task-executor:v1.0.0";
/// A changed ConfigMap is seen within milliseconds; this is for a machine that does something else.
const SEEN: Duration = Duration::from_secs(15);

/// The image that the examples name, as a container runtime calls it.
pub(super) const SANDBOX_IMAGE: &str = "docker.io/library/ubuntu:22.04";
/// [`NEW_IMAGE`], likewise.
pub(super) const NEW_IMAGE_REFERENCE: &str =
    "docker.io/your-registry/opensandbox-task-executor:v1.0.0";

const WRONG: &str = "\
apiVersion: sandbox.opensandbox.io/v1alpha1
kind: Pool
metadata: {name: wrong-pool}
spec:
  template:
    spec:
      containers: []
  capacitySpec: {bufferMin: 8, bufferMax: 4, poolMin: 30, poolMax: 20}
";

/// A ten-line Pool gets what it needs.
pub(super) async fn minimal_pool(stage: &Stage<'_>) -> Result<()> {
    let terminal = stage.terminal;
    terminal.step("A minimal Pool becomes a working one")?;
    terminal.command(&format!("cat {MINIMAL}"))?;
    terminal.output(&std::fs::read_to_string(repository(MINIMAL))?)?;
    let text = stage.apply_example(MINIMAL).await?;
    let stored = stage.stored("pool", "minimal-pool").await?;

    terminal.note("\nStored, with + before what was added:\n")?;
    let mut written: Value = serde_saphyr::from_str(&text)?;
    // Where it was applied is no news.
    written["metadata"]["namespace"] = json!(stage.namespace);
    terminal.diff(&diff::changes(&written, &diff::visible(&stored)))?;
    terminal.note("")?;

    stage.expect_kept("all that was written is kept", &text, &stored)?;
    stage.expect(
        "containers are sandbox and task-executor",
        &containers(&stored),
        &vec!["sandbox", "task-executor"],
    )?;
    stage.expect(
        "its pods share a process namespace",
        &stored.pointer("/spec/template/spec/shareProcessNamespace"),
        &Some(&json!(true)),
    )?;
    stage.expect(
        "the executor has the capability SYS_PTRACE, and no other",
        &executor_field(&stored, "securityContext"),
        &Some(&json!({"capabilities": {"add": ["SYS_PTRACE"]}})),
    )?;
    stage.expect(
        &format!("the executor's image is {}", stage.image),
        &executor_field(&stored, "image"),
        &Some(&json!(stage.image)),
    )
}

/// Every value has an origin.
pub(super) async fn origins(stage: &Stage<'_>) -> Result<()> {
    stage.terminal.step("Where each value came from")?;
    let text = stage.explain("minimal-pool").await?;
    let origin = "ConfigMap opensandbox-system/opensandbox-images";
    let words = ["task-executor", "SYS_PTRACE", origin];
    stage.terminal.note("")?;
    stage.expect_words(
        "the image came from the installation's ConfigMap",
        &text,
        &words,
    )
}

/// What users write themselves is respected.
pub(super) async fn written_by_hand(stage: &Stage<'_>) -> Result<()> {
    stage
        .terminal
        .step("A sidecar written by hand is kept, and no means no")?;
    let text = stage
        .apply_example("examples/task-enabled-pool.yaml")
        .await?;
    let enabled = stage.stored("pool", "task-enabled-pool").await?;
    let disabled_text = stage.apply_example("examples/basic-pool.yaml").await?;
    let disabled = stage.stored("pool", "basic-pool").await?;
    let columns = "custom-columns=NAME:.metadata.name,\
        CONTAINERS:.spec.template.spec.containers[*].name";
    stage.kubectl(&["get", "pools", "-o", columns]).await?;
    stage.terminal.note("")?;
    stage.expect(
        "task-enabled-pool has the two containers of its file",
        &containers(&enabled),
        &vec!["sandbox-container", "task-executor"],
    )?;
    stage.expect_kept("with all the values of its file", &text, &enabled)?;
    stage.expect_kept("basic-pool is as written", &disabled_text, &disabled)?;
    stage.expect(
        "and nothing was added to its template, since its label says disabled",
        disabled
            .pointer("/spec/template")
            .context("a Pool has a template")?,
        &serde_saphyr::from_str::<Value>(&disabled_text)?["spec"]["template"],
    )
}

/// A senseless Pool is refused, with every reason.
pub(super) async fn refusal(stage: &Stage<'_>) -> Result<()> {
    stage
        .terminal
        .step("A senseless Pool is refused, with every reason at once")?;
    let said = stage.apply_refused(WRONG).await?;
    stage.terminal.note("")?;
    let words = ["bufferMin", "poolMin", "spec.template.spec.containers"];
    stage.expect_words(
        "all three mistakes were named, with their paths",
        &said,
        &words,
    )?;
    let left = stage
        .quietly(&["get", "pool", "wrong-pool", "--ignore-not-found"], None)
        .await?;
    stage.expect("nothing was stored", left.trim(), "")
}

/// Where a new image of the executor is named.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A ConfigMap of the namespace.
    ConfigMap,
    /// That of the installation, by kustomize.
    Kustomize,
}

/// A changed image is for new Pools; others take it when asked to.
pub(super) async fn images(stage: &Stage<'_>, change: Change) -> Result<()> {
    let terminal = stage.terminal;
    match change {
        Change::ConfigMap => {
            terminal.step("A new image is for new Pools; others take it when they are asked to")?;
            stage.apply_example(IMAGES).await?;
        }
        Change::Kustomize => {
            terminal.step(
                "A new image, by kustomize, is for new Pools; others take it when they are asked to",
            )?;
            let file = format!("{OVERLAY}/kustomization.yaml");
            terminal.command(&format!("cat {file}"))?;
            terminal.output(&std::fs::read_to_string(repository(&file))?)?;
            stage.apply_kustomization(OVERLAY).await?;
            terminal.note("")?;
            stage.expect(
                "the one beside it in the overlay has it too",
                image(stage, "kustomize-pool").await?.as_str(),
                NEW_IMAGE,
            )?;
        }
    }
    wait_until_seen(stage).await?;
    stage
        .apply_renamed(MINIMAL, "minimal-pool", "second-pool")
        .await?;
    let before = stage.stored("pool", "minimal-pool").await?;
    // What a pipeline does: the same file again.
    stage.apply_example(MINIMAL).await?;
    let after = stage.stored("pool", "minimal-pool").await?;
    show_images(stage).await?;
    stage.expect(
        "the new Pool has the new image",
        image(stage, "second-pool").await?.as_str(),
        NEW_IMAGE,
    )?;
    stage.expect(
        "the old one keeps what it had, also when its file is applied again",
        &image(stage, "minimal-pool").await?,
        &stage.image,
    )?;
    stage.expect(
        "which changes nothing in it",
        after
            .pointer("/metadata/generation")
            .context("a stored object has a generation")?,
        &before["metadata"]["generation"],
    )?;

    let ask = format!("{INJECTION_UPGRADE}=v1.0.0");
    stage
        .kubectl(&["annotate", "pool", "minimal-pool", "--overwrite", &ask])
        .await?;
    show_images(stage).await?;
    stage.expect(
        "asked to, it takes the new one",
        image(stage, "minimal-pool").await?.as_str(),
        NEW_IMAGE,
    )?;
    stage.expect(
        "the one that names its image itself keeps that",
        image(stage, "task-enabled-pool").await?.as_str(),
        DEFAULT_TASK_EXECUTOR_IMAGE,
    )
}

/// The webhook watches ConfigMaps, so it learns of a change a moment later than kubectl does. Asked
/// without storing anything.
async fn wait_until_seen(stage: &Stage<'_>) -> Result<()> {
    let text = std::fs::read_to_string(repository(MINIMAL))?.replace("minimal-pool", "dry-run");
    wait::until("the webhook to see the ConfigMap", SEEN, async || {
        let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let pool = serde_json::from_str(&stage.quietly(&create, Some(&text)).await?)?;
        Ok(
            match executor_field(&pool, "image").and_then(Value::as_str) {
                Some(NEW_IMAGE) => Probe::Done(()),
                other => Probe::not_yet(format!("a new Pool would have the image {other:?}")),
            },
        )
    })
    .await
}

async fn show_images(stage: &Stage<'_>) -> Result<()> {
    let columns = r#"custom-columns=NAME:.metadata.name,EXECUTOR:.spec.template.spec.containers[?(@.name=="task-executor")].image"#;
    stage.kubectl(&["get", "pools", "-o", columns]).await?;
    stage.terminal.note("")
}

async fn image(stage: &Stage<'_>, pool: &str) -> Result<String> {
    let pool = stage.stored("pool", pool).await?;
    Ok(executor_field(&pool, "image")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned())
}

/// What the node has no room for, or no image.
pub(super) async fn fewer_pools(stage: &Stage<'_>) -> Result<()> {
    stage.terminal.step("One Pool is enough for what follows")?;
    let delete = [
        "delete",
        "pool",
        "minimal-pool",
        "second-pool",
        "basic-pool",
        "kustomize-pool",
    ];
    stage.kubectl(&delete).await?;
    Ok(())
}

/// What the webhook says of itself.
pub(super) fn numbers(stage: &Stage<'_>, numbers: &Numbers) -> Result<()> {
    let terminal = stage.terminal;
    terminal.step("The webhook's own numbers, from its /metrics")?;
    terminal.note("")?;
    terminal.output(&numbers.table())?;
    if cfg!(debug_assertions) {
        terminal.note("(Of a few reviews, by a build without optimisation; docs/benchmarks.md has real ones.)")?;
    }
    terminal.note("")?;
    stage.expect("it answered reviews", &(numbers.reviews() > 0.0), &true)?;
    stage.expect("and never panicked", &(numbers.panics > 0.0), &false)
}
