//! Every report equals the truth: many tasks at once, of all the ways in which a task can end, and
//! what a task is given: arguments, environment, directory.

#![cfg(test)]

mod cases;
mod given;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use jiff::Timestamp;
use opensandbox_api::task::{End, Outcome, Task};
use opensandbox_tests::executor::{Client, ExecutorPod, Stream};
use opensandbox_tests::node;
use opensandbox_tests::pods::{Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};

use self::cases::{Case, FILES, PREPARE, cases};
use crate::observer::Observer;
use crate::settings::number;

/// Tasks at once, which is what an executor runs by default.
const AT_ONCE: usize = 64;
/// A task has ended, and is gone, within this on a busy machine.
const BOUND: Duration = Duration::from_mins(2);

#[tokio::test]
async fn every_report_equals_the_truth() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("outcomes").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "truth", &recipe).await?;
    pod.exec_ok(SANDBOX, &["sh", "-c", PREPARE]).await?;
    let observer = Observer::start(pod.client()).await?;

    let began = now()?;
    let cases = cases(number("OPENSANDBOX_CASES", 600));
    let total = cases.len();
    let checks = futures::stream::iter(cases.into_iter().enumerate()).map(|(index, case)| {
        let (client, observer) = (pod.client(), &observer);
        async move {
            let about = format!("case {index}: {}", case.about);
            let checked = check(client, observer, &format!("case-{index}"), case, began).await;
            checked.with_context(|| about)
        }
    });
    let results: Vec<_> = checks.buffer_unordered(AT_ONCE).collect().await;
    let (mut cores, mut wrong) = (HashMap::new(), Vec::new());
    for result in results {
        match result {
            Ok(core) => cores.extend(core),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {total}:\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        pod.executor_log_tail().await
    );
    check_cores(&pod, &cores).await?;
    assert_eq!(pod.client().tasks().await?, []);
    pod.delete().await
}

/// Runs a case. Returns the directory to look for a core in, and whether its end says there is one.
async fn check(
    client: &Client,
    observer: &Observer,
    name: &str,
    case: Case,
    began: Timestamp,
) -> Result<Option<(String, bool)>> {
    let task = Task {
        name: name.to_owned(),
        process: Some(case.process),
        ..Task::default()
    };
    let start = Instant::now();
    client.create(&task).await?;
    if case.stop {
        ready(client, name).await?;
        client.delete(name).await?;
    }
    let ended = observer.ended(name, BOUND).await?;
    let took = start.elapsed();
    if !case.stop {
        let told = client.get(name).await?.context("it is gone")?;
        ensure!(
            told == ended,
            "a request and the watch differ: {told:?}, {ended:?}"
        );
        client.delete(name).await?;
    }
    let last = observer.gone(name, BOUND).await?;

    let outcome = ended.outcome.clone().context("no outcome")?;
    let mut expected = case.expected;
    let reported_core = matches!(
        outcome.end,
        End::Signaled {
            core_dumped: true,
            ..
        }
    );
    if let (Some(_), End::Signaled { core_dumped, .. }) = (&case.core_directory, &mut expected.end)
    {
        *core_dumped = reported_core;
    }
    let (plain, message) = without_details(&outcome);
    ensure!(plain == expected, "{outcome:?}, not {expected:?}");
    ensure!(
        message.contains(case.message),
        "{message:?} without {:?}",
        case.message
    );
    check_times(&ended, &expected, began)?;
    let started = !matches!(expected.end, End::NotStarted { .. });
    ensure!(
        observer.ran(name) <= started,
        "told to run, and not started"
    );
    if started {
        let millis = outcome.duration_millis.context("no duration")?;
        ensure!(
            millis >= case.at_least_millis && u128::from(millis) <= took.as_millis(),
            "said to have taken {millis} ms of {took:?}"
        );
    }
    ensure!(
        last.outcome.as_ref() == Some(&outcome),
        "told otherwise when it was gone"
    );
    Ok(case
        .core_directory
        .map(|directory| (directory, reported_core)))
}

/// Upstream's fields say the same as ours, and times are those of this test.
fn check_times(task: &Task, expected: &Outcome, began: Timestamp) -> Result<()> {
    let status = task.process_status.as_ref();
    let terminated = status.and_then(|status| status.terminated.as_ref());
    let terminated = terminated.context("it has not ended")?;
    let same = expected.terminated(
        terminated.started_at.clone(),
        terminated.finished_at.clone(),
    );
    ensure!(
        (terminated.exit_code, terminated.signal, &terminated.reason)
            == (same.exit_code, same.signal, &same.reason),
        "{terminated:?}, not {same:?}"
    );
    let time = |text: &str| -> Result<Timestamp> {
        // RFC 3339, UTC, whole seconds.
        ensure!(text.len() == 20 && text.ends_with('Z'), "{text} is no time");
        Ok(text.parse()?)
    };
    let finished = time(terminated.finished_at.as_deref().context("no end")?)?;
    let started = terminated.started_at.as_deref().map(time).transpose()?;
    let never = matches!(expected.end, End::NotStarted { .. });
    ensure!(started.is_some() != never, "started at {started:?}");
    // Fractions of seconds are cut off.
    let first = Timestamp::from_second(began.as_second())?;
    let in_order = first <= started.unwrap_or(first) && started.unwrap_or(first) <= finished;
    ensure!(
        in_order && finished <= now()?,
        "{first}, {started:?}, {finished}"
    );
    Ok(())
}

fn without_details(outcome: &Outcome) -> (Outcome, String) {
    let mut plain = Outcome {
        duration_millis: None,
        ..outcome.clone()
    };
    let message = match &mut plain.end {
        End::NotStarted { message, .. } => std::mem::take(message),
        _ => String::new(),
    };
    (plain, message)
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

/// A core is where an end says so, and nowhere else.
async fn check_cores(pod: &ExecutorPod<'_>, told: &HashMap<String, bool>) -> Result<()> {
    let list = format!("ls -1d {FILES}/cores/*/core* 2>/dev/null || true");
    let found = pod.exec_ok(SANDBOX, &["sh", "-c", &list]).await?;
    for (directory, told) in told {
        let there = found
            .lines()
            .any(|path| path.starts_with(&format!("{directory}/")));
        assert_eq!(there, *told, "a core in {directory}");
    }
    // An independent view of whether there should be any.
    let limit = pod.exec_ok(SANDBOX, &["sh", "-c", "ulimit -H -c"]).await?;
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    if limit.trim() == "unlimited" && pattern.starts_with("core") {
        assert!(
            told.values().all(|told| *told),
            "cores can be made here: {told:?}"
        );
    }
    Ok(())
}

fn now() -> Result<Timestamp> {
    #[expect(
        clippy::disallowed_methods,
        reason = "compared with times of the real clock"
    )]
    let now = std::time::SystemTime::now();
    Ok(now.try_into()?)
}
