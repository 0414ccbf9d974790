//! No process can be started any more: others are told so, nothing breaks, and once the culprit is
//! gone all is well.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{End, StartFailure, State};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::node;
use opensandbox_tests::pods::{Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};

use super::{BOUND, left_as, marked_task, ready};
use crate::observer::Observer;
use crate::processes::{marked, zombies};

/// Forks until it cannot, says so, and takes again whatever becomes free.
const TAKES_ALL: &str = r"
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def fork():
    try: return os.fork()
    except OSError: return -1
while (child := fork()) > 0: pass
if child < 0: os.write(1, b'ready\n')
while True:
    if child < 0 and fork() == 0: child = 0
    time.sleep(0.05)
";
/// What the shell of every beginner does once.
const BOMB: &str = "b() { b | b & }; echo ready; b; exec sleep 1000";

#[tokio::test]
async fn a_task_that_takes_all_of_its_users_processes() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("nproc").await?;
    // The limit counts processes of a user on the whole machine: this one is of nobody else.
    let user = 20_000 + std::process::id() % 10_000;
    let mut recipe = Recipe::new(["serve", "--auth=none"]).restricted(user);
    let limited = ["bash", "-c", "ulimit -u 60 && exec sleep infinity"];
    recipe.command = Some(limited.map(str::to_owned).to_vec());
    let pod = ExecutorPod::start(&node, &namespace, "nproc", &recipe).await?;
    let limits = pod
        .run_ok("limits", &["grep", "processes", "/proc/self/limits"])
        .await?;
    assert_eq!(limits.split_whitespace().nth(2), Some("60"), "{limits}");
    exhaust(&pod, &["python3", "-c", TAKES_ALL]).await?;
    pod.delete().await
}

#[tokio::test]
async fn a_task_that_takes_all_processes_of_the_container() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("pids").await?;
    // Root, whom limits of users do not bind.
    let recipe = Recipe::new(["serve", "--auth=none"]);
    let pod = ExecutorPod::start(&node, &namespace, "pids", &recipe).await?;
    let limit = pids_limit(pod.main_pid(SANDBOX).await?)?;
    fs::write(&limit, "120").with_context(|| format!("write {}", limit.display()))?;
    exhaust(&pod, &["python3", "-c", TAKES_ALL]).await?;
    exhaust(&pod, &["bash", "-c", BOMB]).await?;
    pod.delete().await
}

/// Has a task take all there is; then deletes it.
async fn exhaust(pod: &ExecutorPod<'_>, argv: &[&str]) -> Result<()> {
    let client = pod.client();
    let before = pod.host_pids(SANDBOX).await?;
    let observer = Observer::start(client).await?;
    let (greedy, mark) = marked_task(pod, "greedy", argv, 0).await?;
    client.create(&greedy).await?;
    ready(client, "greedy").await?;

    // Sooner or later one cannot be started; whatever comes of each is told truthfully.
    let mut attempt = 0;
    wait::until("a task that cannot be started", BOUND, async || {
        attempt += 1;
        let finished = pod.run(&format!("attempt-{attempt}"), &["true"]).await?;
        let outcome = finished.outcome()?;
        Ok(match &outcome.end {
            End::NotStarted { failure, message } => {
                assert_eq!(*failure, StartFailure::ResourcesExhausted, "{message}");
                assert!(message.contains("no room"), "{message}");
                assert_eq!(finished.terminated()?.exit_code, 125);
                Probe::Done(())
            }
            end => {
                assert_eq!(end, &End::Exited { code: 0 });
                Probe::not_yet("it ran")
            }
        })
    })
    .await?;
    let told = client.get("greedy").await?.context("it is gone")?;
    assert_eq!(told.state(), State::Running, "{:?}", told.outcome);

    client.delete("greedy").await?;
    observer.gone("greedy", BOUND).await?;
    assert!(marked(&mark).is_empty(), "processes are left");
    left_as(pod, &before).await?;
    assert_eq!(zombies(pod).await?, Vec::<String>::new());
    assert_eq!(pod.run_ok("after", &["echo", "fine"]).await?, "fine\n");
    Ok(())
}

/// The file with the limit on processes of the control group that a process is in.
fn pids_limit(process: i32) -> Result<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let path = |controllers: &str| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (known, path) = rest.split_once(':')?;
            (known == controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    // Version 1, else version 2.
    let directory = match path("pids") {
        Some(path) => PathBuf::from("/sys/fs/cgroup/pids").join(path),
        None => PathBuf::from("/sys/fs/cgroup").join(path("").context("no control group")?),
    };
    Ok(directory.join("pids.max"))
}
