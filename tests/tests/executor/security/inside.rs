//! From inside the sandbox, as its user and as its root, with everything that can be read there.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::executor::{ExecutorPod, host, task};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};
use serde::Deserialize;

use super::{Signed, recipe};

const BOUND: Duration = Duration::from_mins(1);
const PROGRAM: &str = include_str!("inside.py");
const FLOOD: &str = include_str!("flood.py");

/// What came of each attempt: `DONE`, or the name of an error.
type Attempts = BTreeMap<String, String>;

/// What `inside.py` prints.
#[derive(Debug, Deserialize)]
struct Findings {
    /// By the name and id of a process that is not the sandbox's.
    processes: BTreeMap<String, Attempts>,
    /// The same with a child of its own.
    control: Attempts,
    /// Whether it may send signals.
    signal: Attempts,
    /// Descriptors of what agents are executed from.
    #[serde(rename = "memory files")]
    memory_files: Vec<(i32, String)>,
    /// Unix sockets that it could connect to.
    sockets: Vec<String>,
    /// Status of each request.
    requests: Vec<(String, u16)>,
    /// Status of what is no request.
    garbage: Vec<String>,
}

async fn look_around(name: &str, recipe: &Recipe, is_root: bool) -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("inside").await?;
    let signed = Signed::start(&node, &namespace, name, recipe).await?;
    let other = Signed::start(&node, &namespace, &format!("{name}-other"), recipe).await?;
    let pod = &signed.pod;
    // There is a task, so that there is also a process that watches over it.
    pod.client()
        .create(&task("runs", &["sleep", "1000"]))
        .await?;
    pod.client().wait_running("runs", BOUND).await?;
    // Whoever reads the network sees tokens go by.
    let seen = signed.signer.sign("GET", "/getTasks", b"")?;
    pod.client()
        .send_with("GET", "/getTasks", b"", Some(&seen))
        .await?;
    let (own, foreign) = (
        pod.address().await?.to_string(),
        other.pod.address().await?.to_string(),
    );
    let addresses = ["127.0.0.1", &own, &foreign];
    let mut argv = vec!["python3", "-c", PROGRAM];
    argv.extend(addresses);
    argv.extend(["--", &seen]);
    let text = pod.exec_ok(SANDBOX, &argv).await?;
    let findings: Findings = serde_json::from_str(&text).with_context(|| text.clone())?;
    check(&findings, is_root)?;
    for pod in [pod, &other.pod] {
        assert!(!fs::exists(pod.file("/tmp/forged-inside").await?)?);
        for container in [SANDBOX, EXECUTOR] {
            assert_eq!(pod.status(container).await?.restart_count, 0, "{container}");
        }
    }
    // What was tried on the agent did not harm it.
    pod.run_ok("still", &["echo", "works"]).await?;
    other.pod.delete().await?;
    signed.pod.delete().await
}

fn check(findings: &Findings, is_root: bool) -> Result<()> {
    let kinds = |kind: &str| {
        let names = findings.processes.keys();
        names
            .filter(|name| name.split(' ').next() == Some(kind))
            .count()
    };
    ensure!(
        kinds("task-executor") == 1,
        "the executor was not found: {findings:?}"
    );
    ensure!(
        kinds("task-executor-agent") >= 1,
        "no agent was found: {findings:?}"
    );
    for (process, attempts) in &findings.processes {
        for (attempt, result) in attempts {
            assert_ne!(result, "DONE", "{attempt} of {process}");
        }
    }
    // The same attempts succeed where they may, but for those that the kernel, or the runtime's filter,
    // refuses to everybody without a capability.
    let refused: &[&str] = if is_root {
        &["stack", "write program"]
    } else {
        &["stack", "write program", "take descriptor", "read memory"]
    };
    for (attempt, result) in &findings.control {
        let may = result == "DONE" || refused.contains(&attempt.as_str());
        assert!(may, "control: {attempt} of its own child: {result}");
    }
    for (process, result) in &findings.signal {
        if process.starts_with("task-executor ") && !is_root {
            assert_eq!(result, "EPERM", "a signal to {process}");
        }
    }
    assert_eq!(
        findings.memory_files,
        [],
        "descriptors of the agent's program"
    );
    assert_eq!(findings.sockets, ["@control"], "only its own socket");
    ensure!(
        findings.requests.len() == 12,
        "all requests: {:?}",
        findings.requests
    );
    for (address, status) in &findings.requests {
        assert_eq!(*status, 401, "a request to {address}");
    }
    for status in &findings.garbage {
        assert_eq!(status, "400");
    }
    Ok(())
}

#[tokio::test]
async fn a_user_reaches_nothing_beyond_the_sandbox() -> Result<()> {
    look_around("user", &recipe().restricted(1000), false).await
}

#[tokio::test]
async fn root_reaches_nothing_beyond_the_sandbox() -> Result<()> {
    look_around("root", &recipe(), true).await
}

async fn flood(pod: &ExecutorPod<'_>) -> Result<()> {
    let client = pod.client();
    client
        .create(&task("flood", &["python3", "-c", FLOOD, "300"]))
        .await?;
    let executor = pod.main_pid(EXECUTOR).await?;
    let mut answered = 0;
    wait::until("300 connections to be tried", BOUND, async || {
        // Meanwhile, the operator works on.
        let text = client.stdout("flood").await?;
        answered += 1;
        // A connection that is refused is no way in, so it may be that not all are ever open.
        let enough = text.contains("open") || answered > 100;
        Ok(if enough {
            Probe::Done(())
        } else {
            Probe::not_yet(answered)
        })
    })
    .await?;
    for round in 0..20 {
        let name = format!("during-{round}");
        assert_eq!(pod.run_ok(&name, &["echo", "works"]).await?, "works\n");
    }
    let resident = host::resident_kib(executor).context("it lives")?;
    assert!(resident < 64 << 10, "{resident} KiB");
    client.delete_and_wait("flood", BOUND).await?;
    assert_eq!(pod.status(EXECUTOR).await?.restart_count, 0);
    Ok(())
}

#[tokio::test]
async fn a_flood_of_connections_does_not_lock_the_operator_out() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("inside").await?;
    let signed = Signed::start(&node, &namespace, "flood", &recipe().restricted(1000)).await?;
    flood(&signed.pod).await?;
    signed.pod.delete().await
}
