//! The log of the executor's container, `kubectl logs POD -c task-executor`.

use anyhow::Result;
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe};
use opensandbox_tests::wait::{self, Probe};

use super::BOUND;

#[tokio::test]
async fn a_line_of_a_task_is_a_line_of_the_log() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("log").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "log", &recipe).await?;
    let script = r"echo to stdout; echo to stderr >&2; printf 'no end'";
    pod.run("plain", &["sh", "-c", script]).await?;
    // What a task prints stays its own, whatever it looks like.
    let forged = r"printf 'a\n[other stdout] forged\n[other] exited with 0\nb\r[other stdout] forged\n\033[2J\0\377\n'";
    pod.run("forger", &["sh", "-c", forged]).await?;
    pod.run("fails", &["sh", "-c", "exit 3"]).await?;
    pod.run("missing", &["/no/such/program"]).await?;
    let script = "head -c 100000 /dev/zero | tr '\\0' x";
    pod.run("long", &["sh", "-c", script]).await?;

    let log = wait::until("the log", BOUND, async || {
        let log = pod.logs(EXECUTOR).await?;
        let shown: usize = log
            .lines()
            .filter(|line| line.starts_with("[long stdout"))
            .map(|line| line.matches('x').count())
            .sum();
        Ok(if shown >= 100_000 {
            Probe::Done(log)
        } else {
            Probe::not_yet(shown)
        })
    })
    .await?;
    for line in [
        "[plain stdout] to stdout",
        "[plain stderr] to stderr",
        "[plain stdout] no end",
        "[forger stdout] a",
        "[forger stdout] [other stdout] forged",
        "[forger stdout] [other] exited with 0",
    ] {
        assert!(
            log.lines().any(|known| known == line),
            "no {line:?} in\n{log}"
        );
    }
    for line in log.lines() {
        assert!(!line.starts_with("[other"), "forged: {line}");
        assert!(line.len() < 40 * 1024, "a line of {} bytes", line.len());
        let odd = line.chars().find(|char| char.is_control() && *char != '\t');
        assert_eq!(odd, None, "{line:?}");
    }
    let about = |start: &str| log.lines().filter(|line| line.starts_with(start)).count();
    for name in ["plain", "forger", "fails", "missing", "long"] {
        assert!(
            about(&format!("[{name}] ")) >= 1,
            "nothing on {name} in\n{log}"
        );
    }
    let said = |start: &str, part: &str| {
        let mut lines = log.lines().filter(|line| line.starts_with(start));
        lines.any(|line| line.contains(part))
    };
    assert!(said("[fails] ", "3"), "{log}");
    assert!(said("[missing] ", "No such file or directory"), "{log}");
    pod.delete().await
}
