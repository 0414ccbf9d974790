//! After a stop nothing of a task is left, however it tried to get away, and the executor goes on.

#![cfg(test)]

mod exhausted;
mod storm;
mod zombies;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use opensandbox_api::task::{End, State, Task};
use opensandbox_tests::executor::{Client, ExecutorPod, Stream, task, variable};
use opensandbox_tests::node;
use opensandbox_tests::pods::{Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};

use crate::observer::Observer;
use crate::processes::{marked, zombies};

/// Whatever has to happen has happened within this on a busy machine.
const BOUND: Duration = Duration::from_mins(2);
/// A variable that all processes of a task inherit, by which the machine finds them.
const MARK: &str = "OPENSANDBOX_TEST_MARK";

/// The process that watched over a task says that nothing of it is left, and ends itself after that.
const WATCHER_ENDS: Duration = Duration::from_secs(5);

/// Waits until the sandbox has no other processes than these, and no zombies.
pub(super) async fn left_as(pod: &ExecutorPod<'_>, before: &[i32]) -> Result<()> {
    wait::until("no other processes than before", WATCHER_ENDS, async || {
        let (now, zombies) = (pod.host_pids(SANDBOX).await?, zombies(pod).await?);
        Ok(if now == before && zombies.is_empty() {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{now:?} instead of {before:?}, {zombies:?}"))
        })
    })
    .await
}

/// A way to get away.
struct Escape {
    name: &'static str,
    argv: &'static [&'static str],
    /// So many processes there are at least once it says that it is ready.
    processes: usize,
    /// Its first process ends by itself, with 0; the others stay.
    ends: bool,
}

const fn sh(name: &'static str, script: &'static [&'static str; 3], processes: usize) -> Escape {
    Escape {
        name,
        argv: script,
        processes,
        ends: false,
    }
}

const fn leaves(
    name: &'static str,
    script: &'static [&'static str; 3],
    processes: usize,
) -> Escape {
    Escape {
        name,
        argv: script,
        processes,
        ends: true,
    }
}

const ESCAPES: [Escape; 13] = [
    sh(
        "ignores-term",
        &[
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 1; done",
        ],
        2,
    ),
    sh(
        "new-session",
        &[
            "sh",
            "-c",
            "setsid sh -c 'trap \"\" TERM; echo ready; sleep 1000; :' & wait",
        ],
        3,
    ),
    sh(
        "double-fork",
        &[
            "sh",
            "-c",
            "(setsid sh -c 'sleep 1000; :' &); (sleep 1000 &); sleep 1000 & echo ready; wait",
        ],
        5,
    ),
    sh(
        "stopped",
        &[
            "sh",
            "-c",
            "trap '' TERM; setsid sh -c 'echo ready; kill -STOP $$' & kill -STOP $$",
        ],
        2,
    ),
    sh(
        "a-hundred-sessions",
        &[
            "sh",
            "-c",
            "for i in $(seq 100); do setsid sleep 1000 & done; echo ready; wait",
        ],
        101,
    ),
    sh(
        "another-subreaper",
        &[
            "python3",
            "-c",
            r"
import ctypes, os, signal, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.write(1, b'ready\n')
        while True: time.sleep(1000)
    os._exit(0)
while True: time.sleep(1000)
",
        ],
        2,
    ),
    sh(
        "traced",
        &[
            "python3",
            "-c",
            r"
import ctypes, os, signal, time
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.write(1, b'ready\n')
    os.kill(os.getpid(), signal.SIGSTOP)
while True: time.sleep(1000)
",
        ],
        2,
    ),
    sh(
        "handles-everything",
        &[
            "python3",
            "-c",
            r"
import os, signal, time
for number in set(range(1, 65)) - {9, 19, 32, 33}:
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0: os.setpgid(0, 0)
os.write(1, b'ready\n')
while True: time.sleep(1000)
",
        ],
        8,
    ),
    leaves(
        "leaves-a-child",
        &["sh", "-c", "sleep 1000 & echo ready"],
        1,
    ),
    leaves(
        "leaves-a-daemon",
        &["sh", "-c", "(setsid sleep 1000 <&- >&- 2>&- &); echo ready"],
        1,
    ),
    leaves(
        "leaves-one-that-ignores-term",
        &[
            "sh",
            "-c",
            "(trap '' TERM; setsid sh -c 'while :; do sleep 1; done' >&- &); echo ready",
        ],
        2,
    ),
    leaves(
        "leaves-a-stopped-one",
        &[
            "sh",
            "-c",
            "(setsid sh -c 'kill -STOP $$' &); sleep 0.1; echo ready",
        ],
        1,
    ),
    leaves(
        "leaves-a-tree",
        &[
            "sh",
            "-c",
            "for i in 1 2 3; do (setsid sh -c 'sleep 1000 & sleep 1000' &); done; echo ready",
        ],
        9,
    ),
];

#[tokio::test]
async fn nothing_survives_a_stop() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("stop").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "stop", &recipe).await?;
    // The agent is there by now.
    let before = pod.host_pids(SANDBOX).await?;
    let observer = Observer::start(pod.client()).await?;
    // With grace and without.
    for grace in [1, 0] {
        let escapes = ESCAPES.iter().map(|escape| {
            let (pod, observer) = (&pod, &observer);
            async move {
                let name = format!("{}-{grace}", escape.name);
                let checked = escape.check(pod, observer, &name, grace).await;
                checked.with_context(|| name)
            }
        });
        let results: Vec<_> = futures::stream::iter(escapes)
            .buffer_unordered(6)
            .collect()
            .await;
        let wrong: Vec<_> = results
            .into_iter()
            .filter_map(Result::err)
            .map(|error| format!("{error:#}"))
            .collect();
        assert!(
            wrong.is_empty(),
            "{}\n{}",
            wrong.join("\n"),
            pod.executor_log_tail().await
        );
    }
    left_as(&pod, &before).await?;
    assert_eq!(zombies(&pod).await?, Vec::<String>::new());
    pod.delete().await
}

impl Escape {
    async fn check(
        &self,
        pod: &ExecutorPod<'_>,
        observer: &Observer,
        name: &str,
        grace: i64,
    ) -> Result<()> {
        let client = pod.client();
        let (ordered, mark) = marked_task(pod, name, self.argv, grace).await?;
        client.create(&ordered).await?;
        ready(client, name).await?;
        wait::until("processes", BOUND, async || {
            let there = marked(&mark).len();
            Ok(if there >= self.processes {
                Probe::Done(())
            } else {
                Probe::not_yet(there)
            })
        })
        .await?;
        if self.ends {
            let ended = observer.ended(name, BOUND).await?;
            let exited = ended.outcome.as_ref().map(|outcome| &outcome.end);
            ensure!(exited == Some(&End::Exited { code: 0 }), "{exited:?}");
            // What it left behind lives until somebody deletes it.
            pod.run_ok(&format!("{name}-meanwhile"), &["true"]).await?;
            ensure!(
                marked(&mark).len() >= self.processes,
                "killed without an order"
            );
        } else {
            let told = client.get(name).await?.context("it is gone")?;
            ensure!(told.state() == State::Running, "{:?}", told.process_status);
        }
        client.delete(name).await?;
        observer.gone(name, BOUND).await?;
        let left = marked(&mark);
        ensure!(left.is_empty(), "said to be gone with {left:?}");
        Ok(())
    }
}

/// Many tasks that ignore SIGTERM are stopped together, and not one after another.
#[tokio::test]
async fn an_empty_list_ends_them_all() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("stop-all").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "all", &recipe).await?;
    let before = pod.host_pids(SANDBOX).await?;
    let client = pod.client();
    let mut tasks = Vec::new();
    for index in 0..64 {
        let argv = [
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 5; done",
        ];
        // One after another they would need more than a minute beyond BOUND.
        let (task, _) = marked_task(&pod, &format!("all-{index}"), &argv, 3).await?;
        tasks.push(task);
    }
    let observer = Observer::start(client).await?;
    client.set_tasks(&tasks).await?;
    for task in &tasks {
        ready(client, &task.name).await?;
    }
    let stopping = client.set_tasks(&[]).await?;
    assert_eq!(
        stopping.len(),
        tasks.len(),
        "they are told of until they are gone"
    );
    // Again and again changes nothing.
    client.set_tasks(&[]).await?;
    client.delete("all-1").await?;
    for task in &tasks {
        let last = observer.gone(&task.name, BOUND).await?;
        let end = last.outcome.map(|outcome| outcome.end);
        assert!(
            matches!(end, Some(End::Signaled { signal: 9, .. })),
            "{end:?}"
        );
    }
    left_as(&pod, &before).await?;
    assert_eq!(client.tasks().await?, []);
    pod.delete().await
}

/// What a task does with its output does not hide how it ends, nor keep it from being stopped.
#[tokio::test]
async fn pipes_that_are_closed_or_full_change_nothing() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("pipes").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "pipes", &recipe).await?;
    let client = pod.client();

    let closes =
        "echo ready; exec <&- >&- 2>&-; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 3";
    client
        .create(&task("closes", &["sh", "-c", closes]))
        .await?;
    ready(client, "closes").await?;
    pod.run_ok("meanwhile", &["touch", "/tmp/ready"]).await?;
    client.wait_running("closes", BOUND).await?;
    pod.run_ok("go", &["touch", "/tmp/go"]).await?;
    let ended = client.wait_ended("closes", BOUND).await?;
    let end = ended.outcome.map(|outcome| outcome.end);
    assert_eq!(end, Some(End::Exited { code: 3 }));
    assert_eq!(client.output("closes", Stream::Stdout).await?, b"ready\n");
    client.delete_and_wait("closes", BOUND).await?;

    // One that only waits for room in its pipe, and one that writes as fast as it can.
    let (fills, mark) = marked_task(&pod, "fills", &["sh", "-c", "yes & yes >&2"], 1).await?;
    client.create(&fills).await?;
    wait::until("a flood", BOUND, async || {
        let total = client.metric("task_executor_output_bytes_total").await?;
        Ok(if total > 4e6 {
            Probe::Done(())
        } else {
            Probe::not_yet(total)
        })
    })
    .await?;
    client.delete_and_wait("fills", BOUND).await?;
    assert_eq!(marked(&mark), BTreeSet::new());
    pod.delete().await
}

/// A task whose processes all carry a mark that no other has.
async fn marked_task(
    pod: &ExecutorPod<'_>,
    name: &str,
    argv: &[&str],
    grace: i64,
) -> Result<(Task, String)> {
    let mark = format!("{MARK}={}-{name}", pod.uid().await?);
    let mut task = task(name, argv);
    let process = task.process.as_mut().context("a process")?;
    process.grace_period_seconds = Some(grace);
    let (variable_name, value) = mark.split_once('=').context("a variable")?;
    process.env = vec![variable(variable_name, value)];
    Ok((task, mark))
}

/// Waits until a task has printed `ready`.
async fn ready(client: &Client, name: &str) -> Result<()> {
    wait::until("ready", BOUND, async || {
        let output = client.output(name, Stream::Stdout).await?;
        Ok(if output.starts_with(b"ready\n") {
            Probe::Done(())
        } else {
            Probe::not_yet(String::from_utf8_lossy(&output))
        })
    })
    .await
}
