//! The real executor.

use std::sync::Arc;

use opensandbox_api::task::State as TaskState;
use opensandbox_operator::session::Work;
use tokio::time::timeout;

use crate::desk::{BOUND, Desk, POD, new_key, run};
use crate::process::Executor;

fn desk() -> (Desk, Executor) {
    let key = new_key();
    let executor = Executor::start(&key.verification_key(), POD);
    (Desk::quick(executor.port, vec![key]), executor)
}

#[tokio::test]
async fn a_task_runs_once_and_its_end_is_reported() {
    let (mut desk, _executor) = desk();
    let directory = tempfile::tempdir().unwrap();
    let script = "echo x >> ran; exec sleep 0.2";
    let script = format!("cd {}; {script}", directory.path().display());
    let work = run("s.0.1", &["sh", "-c", &script]);
    desk.order(work.clone());
    desk.until_task("s.0.1", |seen| seen.task.state() == TaskState::Running)
        .await;
    desk.order(work.clone());
    let seen = desk
        .until_task("s.0.1", |seen| seen.task.state().is_terminal())
        .await;
    assert_eq!(seen.task.state(), TaskState::Succeeded);
    assert_eq!(seen.task.process, None, "what was ordered is known");
    assert_eq!(seen.stderr_tail, None);

    // Another process of the operator knows nothing of it, and orders the same.
    desk.sessions.set(crate::desk::SANDBOX, vec![]);
    assert!(desk.sessions.is_empty());
    desk.order(work);
    desk.until_task("s.0.1", |seen| seen.task.state().is_terminal())
        .await;
    let ran = std::fs::read_to_string(directory.path().join("ran")).unwrap();
    assert_eq!(ran, "x\n");
}

#[tokio::test]
async fn failed_task_comes_with_its_last_words() {
    let (mut desk, _executor) = desk();
    let script = "seq 1 1000 >&2; echo broken: s >&2; exit 3";
    desk.order(run("s.0.1", &["sh", "-c", script]));
    let seen = desk
        .until_task("s.0.1", |seen| seen.stderr_tail.is_some())
        .await;
    assert_eq!(seen.task.state(), TaskState::Failed);
    let tail = seen.stderr_tail.unwrap();
    assert!(tail.ends_with("\n999\n1000\nbroken: s"), "{tail}");
    let first: u32 = tail.lines().next().unwrap().parse().unwrap();
    assert!(first > 100 && tail.len() <= 1024, "{tail}");
    assert!(
        tail.len() > 900,
        "only what has no beginning is left out: {tail}"
    );
}

#[tokio::test]
async fn clearing_is_done_when_nothing_is_left() {
    let (mut desk, _executor) = desk();
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let script = format!(
        "trap '' TERM; setsid sleep 1000 & echo $$ $! > {}; wait; wait",
        pids.display()
    );
    let mut task = crate::desk::task("s.0.1", &["sh", "-c", &script]);
    task.process.as_mut().unwrap().grace_period_seconds = Some(0);
    desk.order(Work::Run(Box::new(task)));
    desk.until_task("s.0.1", |seen| seen.task.state() == TaskState::Running)
        .await;
    let written = async {
        loop {
            if let Ok(text) = std::fs::read_to_string(&pids)
                && text.ends_with('\n')
            {
                return text;
            }
            tokio::task::yield_now().await;
        }
    };
    let text = timeout(BOUND, written).await.unwrap();
    desk.order(Work::Clear);
    desk.until_empty().await;
    for pid in text.split_whitespace() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "lives: {stat}");
    }
}

#[tokio::test]
async fn an_executor_at_a_reused_address_refuses_and_runs_nothing() {
    let key = new_key();
    let executor = Executor::start(&key.verification_key(), "another pod");
    let mut desk = Desk::quick(executor.port, vec![key]);
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("made");
    desk.order(run("s.0.1", &["touch", made.to_str().unwrap()]));
    let words = desk.until_refused().await;
    assert!(words.contains("another pod"), "{words}");
    assert!(!made.exists());
}

#[tokio::test]
async fn a_pod_that_knows_only_the_old_key_is_signed_for_with_it() {
    let (old, other) = (new_key(), new_key());
    let executor = Executor::start(&old.verification_key(), POD);
    let mut desk = Desk::quick(executor.port, vec![Arc::clone(&other), new_key(), old]);
    desk.order(run("s.0.1", &["true"]));
    desk.until_task("s.0.1", |seen| seen.task.state().is_terminal())
        .await;

    // Keys can be forgotten, and the conversation goes on with those that are left.
    desk.forget_newer_keys();
    desk.order(run("s.0.2", &["true"]));
    desk.until_task("s.0.2", |seen| seen.task.state().is_terminal())
        .await;

    let mut stranger = Desk::quick(executor.port, vec![other]);
    stranger.order(Work::Look);
    let words = stranger.until_refused().await;
    assert!(words.contains("operator's key"), "{words}");
}

#[tokio::test]
async fn a_replica_that_does_not_lead_sends_nothing() {
    let (mut desk, _executor) = desk();
    desk.order(Work::Look);
    desk.until_empty().await;
    desk.lease(0);
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("made");
    desk.order(run("s.0.1", &["touch", made.to_str().unwrap()]));
    let quiet = timeout(std::time::Duration::from_millis(500), desk.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert!(!made.exists());
    desk.lease(60);
    desk.until_task("s.0.1", |seen| seen.task.state() == TaskState::Succeeded)
        .await;
    assert!(made.exists());
}

/// In this mode tasks end with their executor, so that the next one knows of none.
#[tokio::test]
async fn an_executor_that_restarts_is_found_again_and_asked_to_run_nothing_twice() {
    let (mut desk, mut executor) = desk();
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        "echo x >> {}/ran; exec sleep 1000",
        directory.path().display()
    );
    desk.order(run("s.0.1", &["sh", "-c", &script]));
    desk.until_task("s.0.1", |seen| seen.task.state() == TaskState::Running)
        .await;
    executor.kill();
    let words = desk.until_unreachable().await;
    assert!(words.contains("refused"), "{words}");
    executor.restart();
    desk.until_empty().await;
    let ran = std::fs::read_to_string(directory.path().join("ran")).unwrap();
    assert_eq!(ran, "x\n");
}
