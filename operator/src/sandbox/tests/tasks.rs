//! Tasks: orders, reports, results, restarts.

use opensandbox_api::conditions::{batch_sandbox, reason};
use opensandbox_api::labels;
use opensandbox_api::names::TaskIdentity;
use opensandbox_api::v1alpha1::TaskResultState;
use serde_json::json;

use super::world::{World, exited, running, with_spec};
use crate::protocol::FromPool;
use crate::sandbox::{Input, Note};
use crate::session::{State, Work};

pub(super) fn with_tasks(replicas: i32) -> World {
    with_spec(json!({
        "replicas": replicas, "poolRef": "warm",
        "taskTemplate": {"spec": {"process": {"command": ["sleep", "1"]}}},
    }))
}

pub(super) fn claimed(replicas: i32, pods: &[&str]) -> World {
    let mut world = with_tasks(replicas);
    world.begin();
    world.grant(1, pods);
    world.settle();
    world
}

pub(super) fn counts(world: &World) -> [i32; 5] {
    let status = &world.view.status;
    [
        status.task_pending,
        status.task_running,
        status.task_succeed,
        status.task_failed,
        status.task_unknown,
    ]
}

#[test]
fn tasks_are_ordered_once_their_pods_are_durable_and_end_in_the_status() {
    let mut world = with_tasks(2);
    world.begin();
    world.grant(1, &["a", "b"]);
    assert!(
        world.orders.is_empty(),
        "ordered before the pod was the sandbox's"
    );
    world.settle();
    assert_eq!((world.writes.len(), world.statuses.len()), (1, 1));
    assert!(
        world
            .view
            .finalizers
            .contains(&labels::TASK_CLEANUP_FINALIZER.to_owned())
    );
    assert_eq!(counts(&world), [2, 0, 0, 0, 0]);

    let first = world.task("a").unwrap().clone();
    let second = world.task("b").unwrap().clone();
    assert_eq!(first.name, "box-0");
    let identity: TaskIdentity = second.uid.as_deref().unwrap().parse().unwrap();
    assert_eq!((identity.index, identity.attempt), (1, 0));

    world.lists("a", vec![running(&first)]);
    world.settle();
    assert_eq!(counts(&world), [1, 1, 0, 0, 0]);
    world.lists("a", vec![exited(&first, 0)]);
    world.lists("b", vec![exited(&second, 3)]);
    world.settle();
    assert_eq!(counts(&world), [0, 0, 1, 1, 0]);
    let (status, why, _) = world.condition(batch_sandbox::TASKS_FINISHED).unwrap();
    assert_eq!(
        (status.as_str(), why.as_str()),
        ("True", reason::TASKS_FAILED)
    );
    let failed = &world.view.status.task_results[0];
    assert_eq!(failed.name, "box-1");
    assert_eq!(
        (failed.state, failed.exit_code),
        (TaskResultState::Failed, Some(3))
    );
    assert_eq!(failed.pod.as_deref(), Some("b"));
    assert_eq!(world.view.status.task_record.as_deref(), Some("S F"));
    let ends = world
        .notes
        .iter()
        .filter(|note| matches!(note, Note::TaskEnded { .. }));
    assert_eq!(ends.count(), 2);
    world.pass(10);
    assert!(world.orders.is_empty(), "conversations go on for nothing");
}

#[test]
fn a_terminal_result_stays() {
    let mut world = claimed(1, &["a"]);
    let task = world.task("a").unwrap().clone();
    world.lists("a", vec![exited(&task, 7)]);
    world.lists("a", vec![exited(&task, 0)]);
    world.lists("a", vec![running(&task)]);
    world.lists("a", vec![]);
    world.settle();
    world.pass(60);
    assert_eq!(counts(&world), [0, 0, 0, 1, 0]);
    assert_eq!(world.view.status.task_results[0].exit_code, Some(7));
}

#[test]
fn tasks_of_others_are_not_believed() {
    let mut world = claimed(1, &["a"]);
    let task = world.task("a").unwrap().clone();
    for uid in [
        None,
        Some("uid-of-other.0.0"),
        Some("uid-of-box.1.0"),
        Some("junk"),
    ] {
        let mut other = exited(&task, 0);
        other.uid = uid.map(str::to_owned);
        world.lists("a", vec![other]);
    }
    world.settle();
    assert_eq!(counts(&world), [1, 0, 0, 0, 0]);
}

#[test]
fn an_unreachable_executor_makes_its_task_unknown_and_nothing_more() {
    let mut world = claimed(1, &["a"]);
    let task = world.task("a").unwrap().clone();
    world.lists("a", vec![running(&task)]);
    world.settle();
    let since = world.now;
    world.reports(
        "a",
        State::Unreachable {
            since,
            message: "connection refused".to_owned(),
        },
    );
    world.settle();
    assert_eq!(counts(&world), [0, 1, 0, 0, 0]);
    world.pass(11);
    assert_eq!(counts(&world), [0, 0, 0, 0, 1]);
    assert_eq!(
        world.view.status.task_results[0].reason.as_deref(),
        Some("ExecutorUnreachable")
    );
    let (_, why, message) = world.condition(batch_sandbox::TASKS_FINISHED).unwrap();
    assert_eq!(why, "ExecutorUnreachable");
    assert!(message.contains("connection refused"), "{message}");
    world.pass(100_000);
    assert_eq!(counts(&world), [0, 0, 0, 0, 1]);
    world.lists("a", vec![exited(&task, 0)]);
    world.settle();
    assert_eq!(counts(&world), [0, 0, 1, 0, 0]);
}

#[test]
fn a_task_that_its_executor_forgot_is_lost_and_not_begun_again() {
    let mut world = claimed(1, &["a"]);
    let task = world.task("a").unwrap().clone();
    world.lists("a", vec![running(&task)]);
    world.lists("a", vec![]);
    world.settle();
    assert!(matches!(world.order("a").unwrap().work, Work::Look));
    world.pass(11);
    assert_eq!(counts(&world), [0, 0, 0, 1, 0]);
}

#[test]
fn a_restarted_operator_looks_before_it_orders() {
    let mut world = claimed(2, &["a", "b"]);
    let task = world.task("a").unwrap().clone();
    world.restart();
    assert!(world.orders.is_empty(), "no pod is known yet");
    for name in ["a", "b"] {
        let pod = world.pod(name);
        world.give(Input::Pool(FromPool::Pod(pod)));
    }
    assert!(world.orders.iter().all(|order| order.work == Work::Look));
    world.lists("a", vec![running(&task)]);
    world.lists("b", vec![]);
    world.settle();
    assert!(matches!(world.order("a").unwrap().work, Work::Look));
    assert!(matches!(world.order("b").unwrap().work, Work::Run(_)));
    assert_eq!(counts(&world), [1, 1, 0, 0, 0]);
}

#[test]
fn results_survive_a_restart() {
    let mut world = claimed(3, &["a", "b", "c"]);
    let tasks: Vec<_> = ["a", "b", "c"]
        .map(|pod| world.task(pod).unwrap().clone())
        .into();
    world.lists("a", vec![exited(&tasks[0], 0)]);
    world.lists("b", vec![exited(&tasks[1], 9)]);
    world.lists("c", vec![running(&tasks[2])]);
    world.settle();
    let before = world.view.status.task_results.clone();
    world.restart();
    for name in ["a", "b", "c"] {
        let pod = world.pod(name);
        world.give(Input::Pool(FromPool::Pod(pod)));
    }
    world.settle();
    assert_eq!(world.orders.len(), 1, "only what is not known is asked for");
    world.lists("c", vec![running(&tasks[2])]);
    world.settle();
    assert_eq!(world.view.status.task_results, before);
    assert_eq!(counts(&world), [0, 1, 1, 1, 0]);
}

#[test]
fn a_task_that_cannot_be_built_fails_and_the_others_run() {
    let mut world = with_spec(json!({
        "replicas": 2, "poolRef": "warm",
        "taskTemplate": {"spec": {"process": {"command": ["a"]}}},
        "shardTaskPatches": [{"spec": {"process": null}}],
    }));
    world.begin();
    world.grant(1, &["a", "b"]);
    world.settle();
    assert!(world.task("a").is_none());
    assert!(world.task("b").is_some());
    assert_eq!(counts(&world), [1, 0, 0, 1, 0]);
    let message = world.view.status.task_results[0].message.clone().unwrap();
    assert!(
        message.starts_with("spec.shardTaskPatches[0]: "),
        "{message}"
    );
}

#[test]
fn results_are_bounded_and_failures_come_first() {
    let mut world = with_tasks(300);
    world.begin();
    let names: Vec<String> = (0..300).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.grant(1, &names);
    world.settle();
    for name in &names {
        let task = world.task(name).unwrap().clone();
        let mut ended = exited(&task, i32::from(*name != "p0"));
        let status = ended.process_status.as_mut().unwrap();
        status.terminated.as_mut().unwrap().message = "\u{1}".repeat(5000);
        world.lists(name, vec![ended]);
    }
    world.settle();
    assert_eq!(counts(&world), [0, 0, 1, 299, 0]);
    let results = &world.view.status.task_results;
    assert!(!results.is_empty() && results.len() <= 100);
    assert!(serde_json::to_string(results).unwrap().len() <= 64 * 1024);
    assert!(
        results
            .iter()
            .all(|result| result.state == TaskResultState::Failed)
    );
    assert_eq!(world.view.status.task_record.as_deref(), Some("S F*299"));
}

#[test]
fn the_last_lines_of_a_failed_task_may_come_later() {
    let mut world = claimed(1, &["a"]);
    let task = world.task("a").unwrap().clone();
    world.lists("a", vec![exited(&task, 1)]);
    world.settle();
    world.reports(
        "a",
        State::Tasks(vec![crate::session::Seen {
            task: exited(&task, 1),
            stderr_tail: Some("boom\n".to_owned()),
        }]),
    );
    world.settle();
    assert_eq!(
        world.view.status.task_results[0].stderr_tail.as_deref(),
        Some("boom\n")
    );
}
