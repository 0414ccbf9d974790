//! Giving pods back: scale down, Release, deletion, expiry.

use opensandbox_api::conditions::batch_sandbox;
use opensandbox_api::labels;
use serde_json::json;

use super::world::{World, exited, pooled, running, with_spec};
use crate::protocol::{FromPool, Return};
use crate::sandbox::{Input, Output};
use crate::session::{State, Work};

fn returns(world: &World) -> Vec<(&str, bool)> {
    let returns = &world.last_statement().returns;
    returns
        .iter()
        .map(|Return { pod, clean }| (pod.as_str(), *clean))
        .collect()
}

fn with_tasks(replicas: i32, policy: &str) -> World {
    let mut world = with_spec(json!({
        "replicas": replicas, "poolRef": "warm",
        "taskTemplate": {"spec": {"process": {"command": ["a"]}}},
        "taskResourcePolicyWhenCompleted": policy,
    }));
    world.begin();
    let names: Vec<String> = (0..replicas).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.grant(1, &names);
    world.settle();
    world
}

#[test]
fn fewer_replicas_give_back_the_last_pods() {
    let mut world = pooled(3);
    world.begin();
    world.grant(1, &["a", "b", "c"]);
    world.settle();
    world.scale(1);
    world.see();
    assert!(returns(&world).is_empty(), "told before it was durable");
    world.settle();
    assert_eq!(
        world.view.alloc_release.as_deref(),
        Some(r#"{"pods":["b","c"]}"#)
    );
    assert_eq!(returns(&world), [("b", true), ("c", true)]);
    world.recycled("c");
    world.recycled("b");
    world.settle();
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["a"]}"#)
    );
    assert_eq!(
        (&world.view.alloc_release, &world.view.alloc_released),
        (&None, &None)
    );
    assert!(returns(&world).is_empty());
    assert_eq!(world.last_statement().holds, ["a"]);
    let endpoints: Vec<String> =
        serde_json::from_str(world.view.endpoints.as_deref().unwrap()).unwrap();
    assert_eq!(endpoints.len(), 1);
}

#[test]
fn tasks_are_stopped_before_their_pods_are_given_back() {
    let mut world = with_tasks(2, "Retain");
    world.scale(1);
    world.see();
    world.settle();
    assert!(matches!(world.order("p1").unwrap().work, Work::Clear));
    assert_eq!(world.view.alloc_release, None);
    let task = world.task("p0").unwrap().clone();
    world.lists("p1", vec![running(&task)]);
    world.settle();
    assert_eq!(world.view.alloc_release, None);
    world.lists("p1", vec![]);
    world.settle();
    assert_eq!(returns(&world), [("p1", true)]);
    world.recycled("p1");
    world.settle();
    world.scale(2);
    world.see();
    world.settle();
    world.grant(2, &["p2"]);
    world.settle();
    let again = world.task("p2").unwrap();
    assert!(
        again.uid.as_deref().unwrap().ends_with(".1.1"),
        "an attempt was used twice"
    );
}

#[test]
fn a_task_is_stopped_only_once_the_object_says_that_its_run_is_over() {
    let mut world = with_tasks(1, "Retain");
    let task = world.task("p0").unwrap().clone();
    world.lists("p0", vec![running(&task)]);
    world.settle();
    world.scale(0);
    world.see();
    assert!(matches!(world.order("p0").unwrap().work, Work::Look));
    world.lists("p0", vec![]);
    assert!(returns(&world).is_empty(), "nobody was told to stop it");
    world.settle();
    assert_eq!(world.view.status.task_record.as_deref(), Some("x"));
    assert!(matches!(world.order("p0").unwrap().work, Work::Clear));
    assert_eq!(world.view.alloc_release, None);

    // The user wants it after all, and the operator starts anew.
    world.scale(1);
    world.restart();
    let pod = world.pod("p0");
    world.give(Input::Pool(FromPool::Pod(pod)));
    world.settle();
    assert!(matches!(world.order("p0").unwrap().work, Work::Clear));
    world.lists("p0", vec![]);
    world.settle();
    assert_eq!(returns(&world), [("p0", true)]);
    world.recycled("p0");
    world.settle();
    world.grant(2, &["p1"]);
    world.settle();
    let again = world.task("p1").unwrap();
    assert!(again.uid.as_deref().unwrap().ends_with(".0.1"));
}

#[test]
fn an_unreachable_executor_is_given_up_after_a_while() {
    let mut world = with_tasks(1, "Retain");
    world.scale(0);
    world.see();
    world.settle();
    let since = world.now;
    world.reports(
        "p0",
        State::Unreachable {
            since,
            message: "timeout".to_owned(),
        },
    );
    world.settle();
    world.pass(29);
    assert!(returns(&world).is_empty());
    world.pass(2);
    assert_eq!(returns(&world), [("p0", false)]);
}

#[test]
fn an_ended_task_releases_its_pod_and_keeps_its_result() {
    let mut world = with_tasks(2, "Release");
    let task = world.task("p0").unwrap().clone();
    world.lists("p0", vec![exited(&task, 0)]);
    assert!(
        !matches!(
            world.order("p0").map(|order| &order.work),
            Some(Work::Clear)
        ),
        "cleared before its result was durable"
    );
    world.settle();
    assert!(matches!(world.order("p0").unwrap().work, Work::Clear));
    world.lists("p0", vec![]);
    world.settle();
    assert_eq!(returns(&world), [("p0", true)]);
    world.recycled("p0");
    world.settle();
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["p0","p1"]}"#)
    );
    assert_eq!(
        world.view.alloc_release.as_deref(),
        Some(r#"{"pods":["p0"]}"#)
    );
    assert_eq!(
        world.view.alloc_released.as_deref(),
        Some(r#"{"pods":["p0"]}"#)
    );
    assert_eq!(world.last_statement().holds, ["p1"]);
    assert_eq!(world.last_statement().wants, 0);
    assert_eq!(world.view.status.task_succeed, 1);
    assert_eq!(world.condition(batch_sandbox::READY).unwrap().0, "True");
    world.restart();
    assert_eq!(world.last_statement().wants, 0);
    let pod = world.pod("p1");
    world.give(Input::Pool(FromPool::Pod(pod)));
    world.settle();
    assert_eq!(world.view.status.task_succeed, 1);
    assert_eq!(world.view.status.task_pending, 1);
}

#[test]
fn a_deleted_sandbox_is_gone_when_its_pods_are_back() {
    let mut world = pooled(2);
    world.begin();
    world.grant(1, &["a", "b"]);
    world.settle();
    world.delete();
    world.see();
    world.settle();
    assert_eq!(returns(&world), [("a", true), ("b", true)]);
    assert_eq!(world.writes.len(), 1);
    world.recycled("a");
    world.settle();
    assert_eq!(world.writes.len(), 1);
    world.recycled("b");
    world.settle();
    assert_eq!(world.writes.len(), 2);
    assert!(world.gone && world.done);
    assert_eq!(world.left, 1);
}

#[test]
fn only_our_finalizers_are_removed() {
    let mut world = with_tasks(1, "Retain");
    world.view.finalizers.push("somebody/else".to_owned());
    world.bump();
    world.delete();
    world.see();
    world.settle();
    world.lists("p0", vec![]);
    world.recycled("p0");
    world.settle();
    assert_eq!(world.view.finalizers, ["somebody/else"]);
    assert!(!world.done);
    assert!(world.last_statement().holds.is_empty() && world.last_statement().returns.is_empty());
    world.restart();
    assert!(world.last_statement().holds.is_empty() && world.last_statement().returns.is_empty());
}

#[test]
fn a_deletion_ends_whatever_pool_and_executors_do() {
    let mut world = with_tasks(1, "Retain");
    world.delete();
    world.see();
    world.settle();
    world.pass(3600);
    assert!(world.gone && world.done);

    let mut unknown = pooled(1);
    unknown.view.alloc_status = Some(r#"{"pods":["never-seen"]}"#.to_owned());
    unknown.view.finalizers = vec![labels::POOL_ALLOCATION_FINALIZER.to_owned()];
    unknown.restart();
    unknown.lose("never-seen");
    unknown.delete();
    unknown.see();
    unknown.settle();
    assert!(unknown.gone && unknown.done);
}

#[test]
fn a_sandbox_of_no_pool_at_all_is_let_go() {
    let mut world = with_spec(json!({"replicas": 1}));
    world.view.finalizers = vec![labels::TASK_CLEANUP_FINALIZER.to_owned()];
    world.view.deleting = true;
    world.restart();
    world.settle();
    assert!(world.gone && world.done);
}

#[test]
fn an_expired_sandbox_is_deleted_unless_it_was_renewed() {
    let mut world = pooled(1);
    world.edit_spec(|spec| spec["expireTime"] = json!("2026-05-28T20:27:20Z"));
    world.now = super::at(0);
    world.begin();
    world.grant(1, &["a"]);
    world.settle();
    let expires = world
        .view
        .spec
        .as_ref()
        .unwrap()
        .expire_time
        .clone()
        .unwrap()
        .0;
    world.now = expires;
    world.give(Input::Wake);
    let Some(Output::Delete { version }) = world.open.pop_front() else {
        panic!("not deleted");
    };
    assert_eq!(version, world.view.version);
    world.edit_spec(|spec| spec["expireTime"] = json!("9999-12-31T23:59:59Z"));
    world.answer(Output::Delete { version });
    world.settle();
    assert!(!world.view.deleting, "a renewal lost");
    world.pass(100_000);
    assert!(!world.view.deleting);
    world.edit_spec(|spec| spec["expireTime"] = json!("1971-01-01T00:00:00Z"));
    world.see();
    world.settle();
    assert!(world.view.deleting);
}

#[test]
fn a_finished_sandbox_is_deleted_after_its_ttl_also_across_a_restart() {
    let mut world = with_tasks(1, "Retain");
    world.edit_spec(|spec| spec["ttlSecondsAfterFinished"] = json!(60));
    world.see();
    world.settle();
    let task = world.task("p0").unwrap().clone();
    world.pass(100);
    world.lists("p0", vec![exited(&task, 0)]);
    world.settle();
    world.pass(50);
    world.restart();
    assert!(!world.view.deleting);
    world.pass(9);
    assert!(!world.view.deleting);
    world.pass(2);
    assert!(world.view.deleting);
}

#[test]
fn a_pod_is_told_to_be_free_only_after_its_order_is_withdrawn() {
    let mut world = with_tasks(1, "Release");
    let task = world.task("p0").unwrap().clone();
    world.lists("p0", vec![exited(&task, 0)]);
    world.settle();
    world.lists("p0", vec![]);
    assert!(
        world.orders.is_empty(),
        "the next sandbox would meet the order"
    );
    world.settle();
    assert_eq!(returns(&world), [("p0", true)]);
}

#[test]
fn a_pod_that_was_given_back_may_come_again() {
    let mut world = pooled(2);
    world.begin();
    world.grant(1, &["a", "b"]);
    world.settle();
    world.scale(1);
    world.see();
    world.settle();
    world.scale(2);
    world.see();
    world.recycled("b");
    world.settle();
    assert_eq!(world.last_statement().wants, 1);
    world.grant(2, &["b"]);
    world.settle();
    assert_eq!(world.answers, [(1, true), (2, true)]);
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["a","b"]}"#)
    );
    assert_eq!(
        (&world.view.alloc_release, &world.view.alloc_released),
        (&None, &None)
    );
}

#[test]
fn a_pod_that_was_given_back_may_come_again_for_another_shard() {
    let mut world = with_tasks(1, "Release");
    let task = world.task("p0").unwrap().clone();
    world.lists("p0", vec![exited(&task, 0)]);
    world.settle();
    world.lists("p0", vec![]);
    world.settle();
    world.recycled("p0");
    world.settle();
    world.scale(2);
    world.see();
    world.settle();
    world.grant(2, &["p0"]);
    world.settle();
    assert_eq!(world.answers, [(1, true), (2, true)]);
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["p0~0","p0"]}"#)
    );
    assert_eq!(
        world.view.alloc_released.as_deref(),
        Some(r#"{"pods":["p0~0"]}"#)
    );
    assert_eq!(world.last_statement().holds, ["p0"]);
    assert!(
        world
            .task("p0")
            .unwrap()
            .uid
            .as_deref()
            .unwrap()
            .ends_with(".1.0")
    );
    assert_eq!(world.view.status.task_succeed, 1);
}
