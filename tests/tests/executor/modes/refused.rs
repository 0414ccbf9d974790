//! Pods that allow no way in.

use anyhow::{Context as _, Result};
use opensandbox_api::task::StartFailure;
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe};
use serde_json::json;

use super::{doctor, is_refused};

/// Upstream runs tasks in the executor's own container then.
#[tokio::test]
async fn without_a_shared_process_namespace() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("not-shared").await?;
    for (name, arguments) in [
        ("named", vec!["--main-container-name=sandbox-container"]),
        ("sidecar", vec!["--mode=sidecar"]),
        ("inject", vec!["--mode=inject"]),
        ("chroot", vec!["--mode=chroot"]),
        (
            "upstream",
            vec![
                "--enable-sidecar-mode=true",
                "--main-container-name=sandbox-container",
            ],
        ),
    ] {
        let serve = ["serve", "--auth=none"].iter().chain(&arguments).copied();
        let mut recipe = Recipe::new(serve).restricted(1000);
        recipe.pod_extra = json!({"shareProcessNamespace": false});
        let pod = ExecutorPod::start_unready(&node, &namespace, name, &recipe).await?;
        let words = ["shareProcessNamespace"];
        let refused = is_refused(pod.client(), StartFailure::NoTarget, &words).await;
        refused.with_context(|| name)?;
        let report = doctor(&pod, EXECUTOR, &arguments).await?;
        assert!(
            !report.works && report.text.contains("shareProcessNamespace"),
            "{report:?}"
        );
        pod.delete().await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_the_capability() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("no-ptrace").await?;
    let mut recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    recipe.executor_extra = json!({"securityContext": {"capabilities": {"add": []}}});
    let pod = ExecutorPod::start_unready(&node, &namespace, "none", &recipe).await?;
    is_refused(
        pod.client(),
        StartFailure::InjectionRefused,
        &["SYS_PTRACE"],
    )
    .await?;
    // What an alert is made from; no attempt succeeded, so all of the sum are failures.
    assert!(
        pod.client()
            .metric("task_executor_injections_total")
            .await?
            > 0.0
    );
    let report = doctor(&pod, EXECUTOR, &[]).await?;
    assert!(!report.works, "{report:?}");
    for mode in ["inject", "chroot"] {
        assert!(!report.possible(mode), "{report:?}");
        assert!(report.needs(mode).contains("SYS_PTRACE"), "{report:?}");
    }
    pod.delete().await?;

    // With it alone: the files that /proc has of the sandbox's process are not root's.
    let capabilities =
        |add: &[&str]| json!({"securityContext": {"capabilities": {"drop": ["ALL"], "add": add}}});
    recipe.executor_extra = capabilities(&["SYS_PTRACE"]);
    let pod = ExecutorPod::start_unready(&node, &namespace, "alone", &recipe).await?;
    let words = ["DAC_OVERRIDE"];
    is_refused(pod.client(), StartFailure::InjectionRefused, &words).await?;
    let report = doctor(&pod, EXECUTOR, &[]).await?;
    assert!(!report.works, "{report:?}");
    assert!(
        report.needs("inject").contains("DAC_OVERRIDE"),
        "{report:?}"
    );
    pod.delete().await?;

    // The least with which injection works.
    recipe.executor_extra = capabilities(&["SYS_PTRACE", "DAC_OVERRIDE"]);
    let pod = ExecutorPod::start(&node, &namespace, "least", &recipe).await?;
    assert_eq!(pod.run_ok("user", &["id", "-u"]).await?, "1000\n");
    let report = doctor(&pod, EXECUTOR, &[]).await?;
    assert!(report.works && report.possible("inject"), "{report:?}");
    assert!(!report.possible("chroot"), "{report:?}");
    for capability in ["SYS_CHROOT", "SETUID", "SETGID"] {
        assert!(report.needs("chroot").contains(capability), "{report:?}");
    }
    pod.delete().await
}
