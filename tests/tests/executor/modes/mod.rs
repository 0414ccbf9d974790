//! The other ways into a sandbox, and pods that allow none: what works is what is said to work, and
//! where nothing works nothing runs.

#![cfg(test)]

mod in_container;
mod refused;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{End, StartFailure};
use opensandbox_tests::Node;
use opensandbox_tests::executor::{Client, ExecutorPod, task, variable};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Pod, Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};
use serde_json::Value;

use crate::observer::Observer;
use crate::processes::marked;

const BOUND: Duration = Duration::from_mins(1);
/// CAP_SYS_CHROOT in a set of capabilities.
const SYS_CHROOT: u64 = 1 << 18;
/// Fields of `/proc/self/status` that say who a process is.
const IDENTITY: [&str; 8] = [
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
];

#[tokio::test]
async fn by_chroot_into_a_restricted_sandbox() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let mut recipe = Recipe::new(["serve", "--auth=none", "--mode=chroot"]).restricted(1000);
    recipe.pod_extra = serde_json::json!({"securityContext": {"supplementalGroups": [2001, 2002]}});
    by_chroot(&node, "chroot-user", &recipe).await
}

#[tokio::test]
async fn by_chroot_into_a_sandbox_of_root() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let recipe = Recipe::new(["serve", "--auth=none", "--mode=chroot"]);
    by_chroot(&node, "chroot-root", &recipe).await
}

async fn by_chroot(node: &Node, name: &str, recipe: &Recipe) -> Result<()> {
    let namespace = node.namespace(name).await?;
    let pod = ExecutorPod::start(node, &namespace, name, recipe).await?;
    let client = pod.client();

    // Who a task is: the sandbox's user, with no more rights than it has.
    let status = ["cat", "/proc/self/status"];
    let task_status = identity(&pod.run_ok("status", &status).await?);
    let mut exec_status = identity(&pod.exec_ok(SANDBOX, &status).await?);
    // Save for the one by which it could leave the chroot.
    for (name, value) in &mut exec_status {
        if name.starts_with("Cap") {
            let set = u64::from_str_radix(value, 16)?;
            *value = format!("{:016x}", set & !SYS_CHROOT);
        }
    }
    assert_eq!(task_status, exec_status);
    let unprivileged = pod.run_ok("privileges", &["grep", "NoNewPrivs", "/proc/self/status"]);
    assert_eq!(unprivileged.await?.split_whitespace().last(), Some("1"));

    // Where it is: among the sandbox's files, in its directory, with its variables.
    for argv in [
        ["cat", "/etc/os-release"],
        ["readlink", "/proc/self/cwd"],
        ["ls", "/"],
    ] {
        let expected = pod.exec_ok(SANDBOX, &argv).await?;
        assert_eq!(pod.run_ok("where", &argv).await?, expected, "{argv:?}");
    }
    // No way out of the chroot, and no file descriptor of the executor's.
    let escape = "import os; os.mkdir('/tmp/x'); os.chroot('/tmp/x')";
    let finished = pod.run("escape", &["python3", "-c", escape]).await?;
    assert_ne!(finished.terminated()?.exit_code, 0, "it may call chroot");
    assert!(
        finished.stderr_text().contains("PermissionError"),
        "{finished:?}"
    );
    let descriptors = pod.run_ok("descriptors", &["ls", "/proc/self/fd"]).await?;
    // 3 is the directory that is being listed.
    assert_eq!(
        descriptors.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );

    // What is not as it should be is said.
    let readiness: Value = serde_json::from_slice(&client.readiness().await?.body)?;
    let text = |field: &str| {
        readiness
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    assert_eq!(text("mode"), "chroot", "{readiness}");
    assert!(text("reason").contains("cgroup"), "{readiness}");

    stops_completely(&pod).await?;
    let report = doctor(&pod, EXECUTOR, &["--mode=chroot"]).await?;
    assert!(report.works && report.possible("chroot"), "{report:?}");
    pod.delete().await
}

/// A task with processes that try to get away is stopped, and nothing is left.
async fn stops_completely(pod: &ExecutorPod<'_>) -> Result<()> {
    let client = pod.client();
    let observer = Observer::start(client).await?;
    let mark = format!("OPENSANDBOX_TEST_MODE={}", pod.uid().await?);
    let script = "(setsid sh -c 'trap \"\" TERM; sleep 1000; :' &); trap '' TERM; sleep 1000; :";
    let mut ordered = task("stubborn", &["sh", "-c", script]);
    let process = ordered.process.as_mut().context("a process")?;
    let (name, value) = mark.split_once('=').context("a variable")?;
    process.env = vec![variable(name, value)];
    process.grace_period_seconds = Some(1);
    client.create(&ordered).await?;
    wait::until("processes", BOUND, async || {
        let there = marked(&mark).len();
        Ok(if there >= 4 {
            Probe::Done(())
        } else {
            Probe::not_yet(there)
        })
    })
    .await?;
    client.delete("stubborn").await?;
    let last = observer.gone("stubborn", BOUND).await?;
    let end = last.outcome.map(|outcome| outcome.end);
    assert!(
        matches!(end, Some(End::Signaled { signal: 9, .. })),
        "{end:?}"
    );
    assert!(marked(&mark).is_empty(), "processes are left");
    Ok(())
}

fn identity(status: &str) -> BTreeMap<String, String> {
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    let fields: BTreeMap<_, _> = fields
        .filter(|(name, _)| IDENTITY.contains(name))
        .map(|(name, value)| {
            (
                name.to_owned(),
                value.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        })
        .collect();
    assert_eq!(fields.len(), IDENTITY.len(), "{status}");
    fields
}

/// What `task-executor doctor` said.
#[derive(Debug)]
struct Report {
    /// Whether some way works; its exit code says the same.
    works: bool,
    json: Value,
    text: String,
}

impl Report {
    fn possible(&self, mode: &str) -> bool {
        self.way(mode)
            .and_then(|way| way.get("possible")?.as_bool())
            == Some(true)
    }

    /// What a way lacks.
    fn needs(&self, mode: &str) -> String {
        let needs = self.way(mode).and_then(|way| way.get("needs"));
        needs.map(Value::to_string).unwrap_or_default()
    }

    fn way(&self, mode: &str) -> Option<&Value> {
        let mut ways = self.json.get("modes")?.as_array()?.iter();
        ways.find(|way| way.get("mode").and_then(Value::as_str) == Some(mode))
    }
}

/// Has the executor examine its pod, in both forms.
async fn doctor(pod: &Pod<'_>, container: &str, arguments: &[&str]) -> Result<Report> {
    let program = if container == EXECUTOR {
        "/task-executor"
    } else {
        in_container::PROGRAM
    };
    let run = async |form: &str| {
        let argv: Vec<_> = [program, "doctor", form]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        pod.exec(container, &argv).await
    };
    let json = run("--output=json").await?;
    let text = run("--output=text").await?;
    assert_eq!(json.code, text.code, "{json:?} {text:?}");
    let value: Value = serde_json::from_str(&json.stdout).with_context(|| format!("{json:?}"))?;
    let works = value.get("works").and_then(Value::as_bool);
    assert_eq!(works, Some(json.code == 0), "{json:?}");
    assert!(text.stdout.lines().count() > 5, "{text:?}");
    Ok(Report {
        works: json.code == 0,
        json: value,
        text: text.stdout,
    })
}

/// A task fails to start for this reason, and its message contains these words.
async fn is_refused(client: &Client, failure: StartFailure, words: &[&str]) -> Result<()> {
    client
        .create(&task("refused", &["/task-executor", "--version"]))
        .await?;
    let ended = client.wait_ended("refused", BOUND).await?;
    let Some(End::NotStarted {
        failure: told,
        message,
    }) = ended.outcome.map(|outcome| outcome.end)
    else {
        panic!("it was started");
    };
    assert_eq!(told, failure, "{message}");
    for word in words {
        assert!(message.contains(word), "{message:?} without {word:?}");
    }
    let terminated = ended.process_status.and_then(|status| status.terminated);
    assert_eq!(terminated.map(|end| end.exit_code), Some(125));
    let output = client.stdout("refused").await?;
    assert_eq!(output, "", "it ran somewhere");

    let reply = client.readiness().await?;
    let text = reply.text();
    assert_eq!(reply.status, 503, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} without {word:?}");
    }
    client.delete_and_wait("refused", BOUND).await
}
