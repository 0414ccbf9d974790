//! Pods to measure in. None has a limit on processor time: one of half a processor, as the seed has it,
//! would stop executor and sandbox for 50 ms at a time once they are busy.

use std::path::Path;

use anyhow::{Context as _, Result};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::pods::{Pod, Recipe};
use opensandbox_tests::{Node, TestNamespace, images};
use serde_json::{Value, json};

const PROGRAM: &str = "/opt/opensandbox/task-executor";

/// The seed's recipe, the sandbox restricted, and an executor in this mode.
pub(crate) fn sidecar(mode: &str) -> Recipe {
    let mut recipe =
        Recipe::new(["serve", "--auth=none", &format!("--mode={mode}")]).restricted(1000);
    recipe.resources = json!({"requests": {"cpu": "100m", "memory": "128Mi"}});
    recipe.executor_extra = json!({"resources": {"limits": null}});
    recipe
}

/// A sandbox in which this program is the first process.
pub(crate) async fn alone<'a>(
    node: &'a Node,
    namespace: &TestNamespace,
    name: &str,
    program: &Path,
    arguments: &[&str],
) -> Result<ExecutorPod<'a>> {
    let mut recipe = sidecar("in-container");
    recipe.executor_args = None;
    let command = std::iter::once(PROGRAM).chain(arguments.iter().copied());
    recipe.command = Some(command.map(str::to_owned).collect());
    recipe.pod_extra = json!({
        "shareProcessNamespace": false,
        "volumes": [{"name": "executor", "hostPath": {"path": program, "type": "File"}}],
    });
    let mut manifest = recipe.manifest(name);
    manifest
        .pointer_mut("/spec/containers/0")
        .and_then(Value::as_object_mut)
        .context("a container")?
        .insert(
            "volumeMounts".to_owned(),
            json!([{"name": "executor", "mountPath": PROGRAM, "readOnly": true}]),
        );
    node.import_known(images::SANDBOX).await?;
    let pod = Pod::create(node, namespace, manifest).await?;
    pod.wait_ready().await?;
    ExecutorPod::of(pod).await
}
