//! The sandbox's memory limit is the tasks' limit: the kernel ends the task that exceeds it, the
//! report says so, and everything else lives.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{End, reason};
use opensandbox_tests::executor::{ExecutorPod, task};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe, SANDBOX};

/// Short waits, on a busy machine.
const BOUND: Duration = Duration::from_secs(30);
/// Twice the limit of the seed's sandbox, touched.
const GREEDY: &str = "x = bytearray(512 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1";
/// A shell that lives, with a child that does not.
const PARENT: &str = r#"python3 -c "$0"; code=$?; echo "child: $code"; exit $1"#;

#[tokio::test]
async fn a_task_beyond_the_sandboxs_memory_is_killed_and_nothing_else() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("memory").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "memory", &recipe).await?;
    let (main, agent) = (pod.main_pid(SANDBOX).await?, pod.agent().await?);
    let client = pod.client();
    client
        .create(&task("bystander", &["sleep", "1000"]))
        .await?;
    client.wait_running("bystander", BOUND).await?;

    let finished = pod.run("greedy", &["python3", "-c", GREEDY]).await?;
    let (outcome, terminated) = (finished.outcome()?, finished.terminated()?);
    let killed = End::Signaled {
        signal: 9,
        core_dumped: false,
    };
    assert_eq!(
        (&outcome.end, outcome.oom_killed),
        (&killed, true),
        "{outcome:?}"
    );
    assert_eq!(outcome.stopped_by, None);
    assert_eq!((terminated.exit_code, terminated.signal), (137, 9));
    assert_eq!(terminated.reason, reason::OOM_KILLED);

    // The leader passes on what a shell makes of its child's end.
    let finished = pod
        .run("parent", &["sh", "-c", PARENT, GREEDY, "137"])
        .await?;
    assert_eq!(finished.stdout_text(), "child: 137\n");
    let outcome = finished.outcome()?;
    assert_eq!(
        (&outcome.end, outcome.oom_killed),
        (&End::Exited { code: 137 }, true)
    );
    assert_eq!(finished.terminated()?.reason, reason::OOM_KILLED);

    // The leader copes.
    let finished = pod.run("copes", &["sh", "-c", PARENT, GREEDY, "0"]).await?;
    assert_eq!(finished.terminated()?.reason, reason::SUCCEEDED);
    assert_eq!(finished.stdout_text(), "child: 137\n");

    // Killed likewise, and not for its memory: an old event is no reason for a new end.
    let finished = pod.run("killed", &["sh", "-c", "kill -KILL $$"]).await?;
    let outcome = finished.outcome()?;
    assert_eq!(
        (&outcome.end, outcome.oom_killed),
        (&killed, false),
        "{outcome:?}"
    );
    assert_eq!(finished.terminated()?.reason, reason::FAILED);

    let bystander = client.get("bystander").await?.context("it is known")?;
    let status = bystander.process_status.context("it has a status")?;
    assert!(status.running.is_some(), "{status:?}");
    assert_eq!(
        (pod.main_pid(SANDBOX).await?, pod.agent().await?),
        (main, agent)
    );
    for container in [SANDBOX, EXECUTOR] {
        assert_eq!(pod.status(container).await?.restart_count, 0, "{container}");
    }
    client.delete_and_wait("bystander", BOUND).await?;
    pod.delete().await
}
