//! Upstream's executor, which has neither signatures nor `uid` nor a watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use opensandbox_api::task::State as TaskState;
use opensandbox_operator::session::{Protocol, Settings, State, Work};

use crate::desk::{Desk, quick, run};
use crate::fake::{Fake, Request, answer, write};

#[tokio::test]
async fn a_task_is_ordered_once_and_asked_for_until_it_has_ended() {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut fake = Fake::start(move |request: Request, _, stream| {
        let asked = Arc::clone(&asked);
        async move {
            let status = match (request.line.as_str(), request.body.as_str()) {
                ("POST /setTasks", "[]") => return write(&stream, &answer(200, "[]\n")).await,
                ("POST /setTasks", _) => r#"{"waiting":{"reason":"Pending"}}"#,
                ("GET /getTasks", "") if asked.fetch_add(1, Ordering::SeqCst) < 2 => {
                    r#"{"running":{"startedAt":"2026-06-15T09:00:00Z"}}"#
                }
                ("GET /getTasks", "") => {
                    r#"{"terminated":{"exitCode":0,"reason":"Succeeded","startedAt":null,"finishedAt":null}}"#
                }
                other => panic!("{other:?}"),
            };
            let list = format!(r#"[{{"name":"task-0","processStatus":{status}}}]"#);
            write(&stream, &answer(200, &list)).await
        }
    })
    .await;
    let settings = Settings {
        protocol: Protocol::Upstream,
        ..quick(fake.port)
    };
    let mut desk = Desk::with(settings, vec![]);
    desk.order(run("s.0.1", &["true"]));
    let mut states = Vec::new();
    desk.until(|state| {
        let State::Tasks(tasks) = state else {
            panic!("{state:?}");
        };
        states.push(tasks[0].task.state());
        tasks[0].task.state().is_terminal().then_some(())
    })
    .await;
    assert_eq!(
        states,
        [TaskState::Waiting, TaskState::Running, TaskState::Succeeded]
    );
    let requests = fake.requests();
    assert_eq!(requests.len(), 4, "nothing more after its end");
    assert_eq!(
        requests[0].body,
        r#"[{"name":"task-0","process":{"command":["true"]}}]"#
    );
    assert_eq!(fake.orders(), 1);
    desk.order(Work::Clear);
    desk.until_empty().await;
    fake.until_requests(5).await;
    assert_eq!(fake.orders(), 2);
}
