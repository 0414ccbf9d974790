//! The executor in the sandbox's own container, as its first process or as a child of it: upstream's
//! samples copy it there.

use anyhow::{Context as _, Result};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::pods::{Pod, Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Node, TestNamespace, node, programs};
use serde_json::{Value, json};

use super::{BOUND, doctor, stops_completely};
use crate::processes::zombies;

/// Where the sandbox has the executor.
pub(super) const PROGRAM: &str = "/opt/opensandbox/task-executor";

#[tokio::test]
async fn as_the_first_process() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let argv = [PROGRAM, "serve", "--auth=none", "--mode=in-container"];
    check(&node, "first", &argv).await
}

/// Nothing says so: there is nothing else it could be.
#[tokio::test]
async fn as_a_child_of_a_shell() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let script = format!("{PROGRAM} --auth=none --listen-addr=0.0.0.0:5758 & wait");
    check(&node, "child", &["sh", "-c", &script]).await
}

async fn check(node: &Node, name: &str, argv: &[&str]) -> Result<()> {
    let namespace = node.namespace(name).await?;
    let pod = start(node, &namespace, name, argv).await?;
    let client = pod.client();
    if let Err(error) = client.wait_ready(BOUND).await {
        return Err(error.context(pod.logs(SANDBOX).await?));
    }
    let readiness: Value = serde_json::from_slice(&client.readiness().await?.body)?;
    assert_eq!(
        readiness.get("mode"),
        Some(&json!("in-container")),
        "{readiness}"
    );

    for argv in [
        vec!["id"],
        vec!["cat", "/proc/self/cgroup"],
        vec![
            "readlink",
            "/proc/self/ns/mnt",
            "/proc/self/ns/pid",
            "/proc/self/cwd",
        ],
        vec![
            "sh",
            "-c",
            "grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/self/status; wc -l < /proc/self/mountinfo",
        ],
    ] {
        let expected = pod.exec_ok(SANDBOX, &argv).await?;
        assert_eq!(pod.run_ok("same", &argv).await?, expected, "{argv:?}");
    }
    for code in [0, 7, 255] {
        let finished = pod
            .run("code", &["sh", "-c", &format!("exit {code}")])
            .await?;
        assert_eq!(finished.terminated()?.exit_code, code);
    }
    let finished = pod.run("nobody", &["/no/such/program"]).await?;
    assert_eq!(finished.terminated()?.exit_code, 127);
    stops_completely(&pod).await?;

    // Orphans of tasks, and of what others start here, are reaped.
    pod.run_ok("orphans", &["sh", "-c", "(sleep 0.1 &); (setsid true &)"])
        .await?;
    pod.exec_ok(SANDBOX, &["sh", "-c", "(sleep 0.1 &); (setsid true &)"])
        .await?;
    wait::until("no zombie", BOUND, async || {
        let zombies = zombies(&pod).await?;
        Ok(if zombies.is_empty() {
            Probe::Done(())
        } else {
            Probe::not_yet(zombies.join("\n"))
        })
    })
    .await?;
    let report = doctor(&pod, SANDBOX, &[]).await?;
    assert!(
        report.works && report.possible("in-container"),
        "{report:?}"
    );
    assert!(!report.possible("inject"), "{report:?}");
    pod.delete().await
}

/// A pod whose only container is a sandbox that has the executor in it.
async fn start<'a>(
    node: &'a Node,
    namespace: &TestNamespace,
    name: &str,
    argv: &[&str],
) -> Result<ExecutorPod<'a>> {
    let mut recipe = Recipe::new(Vec::<String>::new()).restricted(1000);
    recipe.executor_args = None;
    recipe.command = Some(argv.iter().map(|&argument| argument.to_owned()).collect());
    let program = tokio::task::spawn_blocking(programs::static_executor).await??;
    recipe.pod_extra = json!({
        "shareProcessNamespace": false,
        "volumes": [{"name": "executor", "hostPath": {"path": program, "type": "File"}}],
    });
    let mut manifest = recipe.manifest(name);
    let sandbox = manifest
        .pointer_mut("/spec/containers/0")
        .context("a container")?;
    let mount = json!([{"name": "executor", "mountPath": PROGRAM, "readOnly": true}]);
    sandbox
        .as_object_mut()
        .context("an object")?
        .insert("volumeMounts".to_owned(), mount);
    node.import_known(&recipe.image).await?;
    let pod = Pod::create(node, namespace, manifest).await?;
    pod.wait_ready().await?;
    ExecutorPod::of(pod).await
}
