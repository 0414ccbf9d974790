//! What is ordered again and what never is, and which answers are believed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opensandbox_operator::session::{Settings, State, Work};
use tokio::time::{Instant, timeout};

use crate::desk::{BOUND, Desk, POD, SANDBOX, new_key, order, quick, run};
use crate::fake::{Fake, Request, WATCH, answer, list, stay, wait_for_end, write};

const TASK: &str =
    r#"{"name":"task-0","uid":"s.0.1","processStatus":{"running":{"startedAt":null}}}"#;

#[tokio::test]
async fn a_task_that_was_seen_is_never_ordered_again() {
    let watches = Arc::new(AtomicUsize::new(0));
    let mut fake = Fake::start(move |request: Request, _, stream| {
        let watches = Arc::clone(&watches);
        async move {
            if request.orders() {
                return write(&stream, &answer(200, &format!("[{TASK}]"))).await;
            }
            // It forgets everything after the first watch, which breaks.
            let first = watches.fetch_add(1, Ordering::SeqCst) == 0;
            write(&stream, WATCH.as_bytes()).await;
            let tasks: &[&str] = if first { &[TASK] } else { &[] };
            write(&stream, list(tasks).as_bytes()).await;
            if !first {
                wait_for_end(&stream).await;
            }
            false
        }
    })
    .await;
    let mut desk = Desk::quick(fake.port, vec![new_key()]);
    desk.order(run("s.0.1", &["true"]));
    desk.until_task("s.0.1", |_| true).await;
    desk.until_empty().await;
    fake.until_requests(3).await;
    let lines: Vec<_> = fake
        .requests()
        .into_iter()
        .map(|request| request.line)
        .collect();
    let watch = "GET /tasks?watch=true";
    assert_eq!(lines, ["POST /setTasks", watch, watch]);
}

#[tokio::test]
async fn an_order_is_repeated_until_its_task_is_seen() {
    let fake = Fake::start(|request: Request, number, stream| async move {
        match number {
            0 => false,
            1 => write(&stream, &answer(503, "{}")).await,
            _ if request.orders() => write(&stream, &answer(200, &format!("[{TASK}]"))).await,
            _ => {
                stay(&stream, &[TASK]).await;
                false
            }
        }
    })
    .await;
    let mut desk = Desk::quick(fake.port, vec![new_key()]);
    desk.order(run("s.0.1", &["true"]));
    desk.until_task("s.0.1", |_| true).await;
    assert_eq!(fake.orders(), 3);
    let bodies: Vec<_> = fake
        .requests()
        .into_iter()
        .map(|request| request.body)
        .collect();
    assert!(
        bodies[0].contains("\"command\":[\"true\"]"),
        "{}",
        bodies[0]
    );
    assert!(bodies[..3].iter().all(|body| *body == bodies[0]));
}

/// The executor may still get the order whose answer did not come, as long as its token holds.
#[tokio::test]
async fn an_empty_list_proves_nothing_while_an_order_may_be_on_its_way() {
    let mut fake = Fake::start(|request: Request, number, stream| async move {
        if number == 0 {
            wait_for_end(&stream).await;
            return false;
        }
        if request.orders() {
            return write(&stream, &answer(200, "[]")).await;
        }
        stay(&stream, &[]).await;
        false
    })
    .await;
    // Nothing but the doubt makes it ask again.
    let settings = Settings {
        bookmark: BOUND,
        ..quick(fake.port)
    };
    let mut desk = Desk::with(settings, vec![new_key()]);
    // The life of a token is a second then, and clocks may differ by five.
    desk.lease(1);
    let began = Instant::now();
    desk.order(run("s.0.1", &["true"]));
    fake.until_requests(1).await;
    desk.order(Work::Clear);
    fake.until_requests(2).await;
    assert_eq!(fake.requests()[1].body, "[]", "told to stop at once");
    desk.until_empty().await;
    assert!(
        began.elapsed() >= Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    let clears = fake
        .requests()
        .iter()
        .filter(|request| request.body == "[]")
        .count();
    assert_eq!(clears, 2, "and once more when there is no doubt any more");
}

#[tokio::test]
async fn a_report_from_before_another_order_is_not_delivered() {
    let fake = Fake::start(|request: Request, _, stream| async move {
        if request.orders() {
            write(&stream, &answer(500, r#"{"message":"no"}"#)).await;
        } else {
            stay(&stream, &[]).await;
        }
        false
    })
    .await;
    let mut desk = Desk::quick(fake.port, vec![new_key()]);
    desk.order(Work::Look);
    desk.until_empty().await;
    // The same again changes nothing, and is not answered.
    desk.order(Work::Look);
    assert!(
        timeout(Duration::from_millis(200), desk.next())
            .await
            .is_err()
    );
    desk.sessions
        .set("another", vec![order("other-pod", Work::Look)]);
    assert_eq!(desk.next().await.pod_uid, "other-pod");
    desk.order(run("s.0.1", &["true"]));
    desk.order(Work::Look);
    desk.until_empty().await;
    desk.order(Work::Clear);
    assert!(matches!(desk.next().await.state, State::Refused { .. }));
    assert_eq!(desk.sessions.len(), 2);
    desk.sessions.set(SANDBOX, vec![]);
    desk.sessions.set("another", vec![order(POD, Work::Look)]);
    assert_eq!(desk.next().await.pod_uid, POD);
}
