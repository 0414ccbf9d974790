//! The executor's container is killed with SIGKILL. Tasks go on; what they print and how they end is
//! reported afterwards, exactly; and nothing is run twice.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use opensandbox_api::task::{End, Process, State, StoppedBy, Task, WatchEvent};
use opensandbox_tests::executor::{ExecutorPod, Stream, host, task_of};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};

use super::{BOUND, ended, loss, no_zombies, none_left};

/// Every task leaves a line for each time that it is run.
const RAN: &str = "/tmp/ran";
/// Once this is there, those that wait for it go on.
const AWAY: &str = "/tmp/away";
/// Likewise, later.
const BACK: &str = "/tmp/back";

/// A task that says that it ran, and then does this in a shell.
fn shell(name: &str, script: &str) -> Task {
    let script = format!("echo ran >> {RAN}/{name}; {script}");
    task_of(name, &format!("uid-{name}"), &["sh", "-c", &script])
}

fn until_there(path: &str) -> String {
    format!("while [ ! -e {path} ]; do sleep 0.02; done")
}

/// How often each task ran, by what it left.
fn runs(directory: &Path) -> Result<BTreeMap<String, usize>> {
    let mut runs = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let lines = fs::read_to_string(entry.path())?.lines().count();
        runs.insert(entry.file_name().to_string_lossy().into_owned(), lines);
    }
    Ok(runs)
}

fn exits(task: &Task, code: i32) {
    let outcome = task.outcome.as_ref().expect("it has ended");
    assert_eq!(
        outcome.end,
        End::Exited { code },
        "{}: {outcome:?}",
        task.name
    );
    assert_eq!(outcome.stopped_by, None, "{}", task.name);
}

async fn process_of(pod: &ExecutorPod<'_>, name: &str) -> Result<i32> {
    let processes = pod.processes_with(&format!("{RAN}/{name};")).await?;
    processes
        .first()
        .copied()
        .with_context(|| format!("{name} does not run"))
}

/// Tasks of every kind: what is to happen to them is in their names.
fn eight() -> [Task; 8] {
    const PRINTS: &str =
        "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done; echo end >&2";
    let (away, back) = (until_there(AWAY), until_there(BACK));
    let mut timed = shell("timed", "sleep 1000");
    timed.process.get_or_insert_default().timeout_seconds = Some(1);
    [
        shell("short", "echo printed; exit 3"),
        shell("ends-away", &format!("{away}; exit 7")),
        shell(
            "crashes-away",
            &format!("{away}; ulimit -c 0; kill -SEGV $$"),
        ),
        shell(
            "prints",
            &format!("{away}; {PRINTS}; {back}; echo last; exit 4"),
        ),
        shell("leaves-one", &format!("sleep 4713 & {away}; exit 5")),
        shell("long", &format!("{back}; exit 9")),
        shell("endless", "sleep 1000"),
        timed,
    ]
}

#[tokio::test]
async fn eight_tasks_outlive_it_and_their_results_are_exact() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("survival").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "executor", &recipe).await?;
    pod.exec_ok(SANDBOX, &["mkdir", RAN]).await?;
    let tasks = eight();
    let client = pod.client();
    client.set_tasks(&tasks).await?;
    for task in &tasks[1..7] {
        client.wait_running(&task.name, BOUND).await?;
    }
    exits(&client.wait_ended("short", BOUND).await?, 3);
    let agent = pod.agent().await?;
    let mut last = Vec::new();
    for name in ["ends-away", "crashes-away", "leaves-one"] {
        last.push(process_of(&pod, name).await?);
    }
    pod.while_executor_is_away(async || {
        fs::write(pod.file(AWAY).await?, "")?;
        for process in last {
            ended(process).await?;
        }
        Ok(())
    })
    .await?;
    assert_eq!(pod.agent().await?, agent, "the same agent");

    // The operator repeats its order, whatever happened.
    let reported = client.set_tasks(&tasks).await?;
    ensure!(reported.len() == tasks.len(), "{reported:?}");
    for task in &reported {
        assert_eq!(task.uid, Some(format!("uid-{}", task.name)));
    }
    what_ended_is_exact(&pod).await?;
    for name in ["prints", "long", "endless"] {
        let task = client.get(name).await?.context("it is known")?;
        assert_eq!(task.state(), State::Running, "{name}");
    }
    fs::write(pod.file(BACK).await?, "")?;
    what_goes_on_is_exact(&pod).await?;
    all_can_be_stopped(&pod).await?;
    let runs = runs(&pod.file(RAN).await?)?;
    assert_eq!(runs.len(), tasks.len());
    assert!(runs.values().all(|count| *count == 1), "{runs:?}");
    pod.delete().await
}

async fn what_ended_is_exact(pod: &ExecutorPod<'_>) -> Result<()> {
    let client = pod.client();
    for (name, code) in [("short", 3), ("ends-away", 7), ("leaves-one", 5)] {
        exits(&client.wait_ended(name, BOUND).await?, code);
    }
    assert_eq!(
        pod.processes_with("4713").await?.len(),
        1,
        "what a task left lives on"
    );
    let crashed = client
        .wait_ended("crashes-away", BOUND)
        .await?
        .outcome
        .context("an end")?;
    assert_eq!(
        crashed.end,
        End::Signaled {
            signal: 11,
            core_dumped: false
        }
    );
    let timed = client
        .wait_ended("timed", BOUND)
        .await?
        .outcome
        .context("an end")?;
    assert_eq!(
        (timed.timed_out, timed.exit_code()),
        (true, 137),
        "{timed:?}"
    );
    Ok(())
}

async fn what_goes_on_is_exact(pod: &ExecutorPod<'_>) -> Result<()> {
    let client = pod.client();
    exits(&client.wait_ended("long", BOUND).await?, 9);
    exits(&client.wait_ended("prints", BOUND).await?, 4);
    // Nothing was printed before the executor went away, so all of it is there.
    let lines = (1..=200).map(|number| format!("line {number}"));
    let expected: Vec<_> = lines.chain(["last".to_owned()]).collect();
    let printed = client.stdout("prints").await?;
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
    let errors = client.output("prints", Stream::Stderr).await?;
    assert_eq!(String::from_utf8_lossy(&errors), "end\n");
    Ok(())
}

/// Also what was started by the executor before.
async fn all_can_be_stopped(pod: &ExecutorPod<'_>) -> Result<()> {
    let client = pod.client();
    let mut watch = client.watch(None).await?;
    client.delete("endless").await?;
    let gone = |event: &WatchEvent| matches!(event, WatchEvent::Deleted { task, .. } if task.name == "endless");
    let events = watch.until(BOUND, gone).await?;
    let Some(WatchEvent::Deleted { task, .. }) = events.last() else {
        bail!("it is not gone");
    };
    let outcome = task.outcome.as_ref().context("it has ended")?;
    assert_eq!(outcome.stopped_by, Some(StoppedBy::Request));
    assert_eq!(outcome.signal(), Some(15));
    client.set_tasks(&[]).await?;
    wait::until("all tasks to be gone", BOUND, async || {
        let left = client.tasks().await?;
        Ok(if left.is_empty() {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{left:?}"))
        })
    })
    .await?;
    none_left(pod, "4713").await?;
    none_left(pod, RAN).await?;
    no_zombies(pod).await
}

#[tokio::test]
async fn killed_while_it_starts_tasks_it_starts_each_once() -> Result<()> {
    const TASKS: usize = 64;
    let rounds = rounds(5);
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("survival").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "starting", &recipe).await?;
    let client = pod.client();
    pod.exec_ok(SANDBOX, &["mkdir", RAN]).await?;
    let ran = pod.file(RAN).await?;
    for round in 0..rounds {
        let tasks: Vec<_> = (0..TASKS)
            .map(|number| {
                let name = format!("r{round}-t{number}");
                shell(&name, &format!("exit {number}"))
            })
            .collect();
        // Earlier and later in the middle of it.
        let enough = round * TASKS + 1 + (round * 13) % TASKS;
        let order = tokio::spawn({
            let (client, tasks) = (client.clone(), tasks.clone());
            // Its connection breaks, or it is answered in time: both are right.
            async move { client.set_tasks(&tasks).await.is_ok() }
        });
        wait::until("some tasks to run", BOUND, async || {
            let count = runs(&ran)?.len();
            Ok(if count >= enough {
                Probe::Done(())
            } else {
                Probe::not_yet(count)
            })
        })
        .await?;
        pod.crash_executor().await?;
        order.await?;
        client.set_tasks(&tasks).await?;
        for (number, task) in tasks.iter().enumerate() {
            exits(
                &client.wait_ended(&task.name, BOUND).await?,
                i32::try_from(number)?,
            );
        }
        let runs = runs(&ran)?;
        assert_eq!(runs.len(), TASKS * (round + 1));
        assert!(runs.values().all(|count| *count == 1), "{runs:?}");
    }
    no_zombies(&pod).await?;
    pod.delete().await
}

fn rounds(default: usize) -> usize {
    let wanted = std::env::var("OPENSANDBOX_ROUNDS").ok();
    wanted
        .and_then(|wanted| wanted.parse().ok())
        .unwrap_or(default)
}

#[tokio::test]
async fn killed_by_the_sandboxs_root_it_comes_back_and_knows_all() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("survival").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]);
    let pod = ExecutorPod::start(&node, &namespace, "root", &recipe).await?;
    let client = pod.client();
    client
        .create(&task_of(
            "waits",
            "u",
            &["sh", "-c", &format!("{}; exit 6", until_there(BACK))],
        ))
        .await?;
    client.wait_running("waits", BOUND).await?;
    let before = pod.status(EXECUTOR).await?.restart_count;
    // Root in the sandbox may signal root in the sidecar.
    let executor = pod.main_pid(EXECUTOR).await?;
    let inside = host::status(executor, "NSpid").context("it lives")?;
    let inside = inside
        .split_whitespace()
        .last()
        .context("a number")?
        .to_owned();
    pod.exec_ok(SANDBOX, &["sh", "-c", &format!("kill -KILL {inside}")])
        .await?;
    pod.wait_for("a restart", BOUND, |object| {
        let statuses = object
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref());
        statuses
            .into_iter()
            .flatten()
            .any(|status| status.name == EXECUTOR && status.restart_count > before && status.ready)
    })
    .await?;
    pod.wait_executor().await?;
    fs::write(pod.file(BACK).await?, "")?;
    exits(&client.wait_ended("waits", BOUND).await?, 6);
    pod.delete().await
}

#[tokio::test]
async fn killed_with_its_agent_it_reports_the_tasks_as_lost() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("survival").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "both", &recipe).await?;
    let client = pod.client();
    let task = task_of("lost", "u", &["sleep", "4714"]);
    client.set_tasks(std::slice::from_ref(&task)).await?;
    client.wait_running("lost", BOUND).await?;
    let agent = pod.agent().await?;
    pod.while_executor_is_away(async || {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::SIGKILL)?;
        ended(agent).await
    })
    .await?;
    // Whoever repeats the order either learns that the task was lost or has it run: nobody can know
    // any more that it ran. Never both at once, and never silence.
    client.set_tasks(&[task]).await?;
    let seen = client
        .wait_for("lost", BOUND, |task| task.state() != State::Waiting)
        .await?;
    let processes = pod.processes_with("4714").await?;
    if seen.state() == State::Running {
        assert_eq!(processes.len(), 1);
    } else {
        loss(&seen)?;
        assert_eq!(processes.len(), 0);
    }
    client.set_tasks(&[]).await?;
    none_left(&pod, "4714").await?;
    assert_eq!(pod.run_ok("next", &["echo", "works"]).await?, "works\n");
    pod.delete().await
}

/// Time limits are the supervisor's, so they hold while the executor is away.
#[tokio::test]
async fn time_limits_hold_while_it_is_away() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("survival").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "limits", &recipe).await?;
    let process = Process {
        command: ["sh", "-c", "trap '' TERM; while :; do sleep 4715; done"]
            .map(str::to_owned)
            .into(),
        timeout_seconds: Some(3),
        grace_period_seconds: Some(1),
        ..Process::default()
    };
    let task = Task {
        process: Some(process),
        ..task_of("limited", "u", &[])
    };
    let client = pod.client();
    client.create(&task).await?;
    client.wait_running("limited", BOUND).await?;
    // A stopped process answers nobody, as one that is away; and its pod stays.
    let executor = nix::unistd::Pid::from_raw(pod.main_pid(EXECUTOR).await?);
    nix::sys::signal::kill(executor, nix::sys::signal::SIGSTOP)?;
    let gone = none_left(&pod, "4715").await;
    nix::sys::signal::kill(executor, nix::sys::signal::SIGCONT)?;
    gone?;
    let outcome = client
        .wait_ended("limited", Duration::from_secs(30))
        .await?
        .outcome;
    let outcome = outcome.context("an end")?;
    assert_eq!(
        (outcome.timed_out, outcome.stopped_by),
        (true, Some(StoppedBy::Timeout))
    );
    pod.delete().await
}
