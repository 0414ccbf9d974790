//! Runs of tasks: which is begun when, and that none is begun twice.

use std::sync::Arc;

use opensandbox_api::conditions::{batch_sandbox, reason};
use opensandbox_api::labels;
use opensandbox_api::names::TaskIdentity;
use opensandbox_api::task::Task;
use opensandbox_api::v1alpha1::TaskResultState;
use serde_json::json;

use super::tasks::{claimed, counts, with_tasks};
use super::world::{World, exited, running};
use super::{object, spec};
use crate::protocol::FromPool;
use crate::sandbox::Input;
use crate::session::Work;

#[test]
fn a_lost_pod_is_replaced_in_its_place_and_its_task_begun_anew() {
    let mut world = claimed(2, &["a", "b"]);
    let task = world.task("a").unwrap().clone();
    world.lists("a", vec![running(&task)]);
    world.settle();
    world.lose("a");
    world.lose("a");
    world.settle();
    assert_eq!(world.last_statement().wants, 1);
    let (status, why, message) = world.condition(batch_sandbox::POD_FAILED).unwrap();
    assert_eq!((status.as_str(), why.as_str()), ("True", reason::POD_LOST));
    assert!(message.contains(" a"), "{message}");
    assert_eq!(world.reasons(), ["PodLost", "TaskRestarted"]);
    assert_eq!(world.view.status.task_record.as_deref(), Some("-1 -"));

    world.grant(2, &["c"]);
    world.settle();
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["c","b"]}"#)
    );
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().0,
        "False"
    );
    let again = world.task("c").unwrap();
    assert_eq!(again.name, "box-0");
    let identity: TaskIdentity = again.uid.as_deref().unwrap().parse().unwrap();
    assert_eq!((identity.index, identity.attempt), (0, 1));
    assert_eq!(world.view.status.task_results[0].attempt, Some(1));
}

#[test]
fn the_next_attempt_is_recorded_before_a_new_pod_is_taken() {
    let mut world = claimed(1, &["a"]);
    world.lose("a");
    world.grant(2, &["b"]);
    assert!(world.view.status.task_record.as_deref() == Some("-"));
    let takes = |world: &World| {
        let took = |write: &&crate::write::SandboxWrite| {
            write.annotations.contains_key(labels::ALLOC_STATUS)
        };
        world.writes.iter().filter(took).count()
    };
    assert_eq!(takes(&world), 1, "the pod was taken first");
    world.settle();
    assert_eq!(takes(&world), 2);
    assert_eq!(world.view.status.task_record.as_deref(), Some("-1"));
    assert_eq!(world.answers, [(1, true), (2, true)]);
}

#[test]
fn an_end_is_recorded_before_the_pod_is_replaced() {
    let mut world = with_tasks(1);
    world.begin();
    world.grant(1, &["a"]);
    let claim = world.open.pop_front().expect("it claims the pod");
    world.answer(claim);
    let task = world.task("a").unwrap().clone();
    world.lists("a", vec![exited(&task, 0)]);
    world.lose("a");
    world.grant(2, &["b"]);
    while let Some(output) = world.open.pop_front() {
        world.answer(output);
        let placed = world.view.alloc_status.as_deref().unwrap_or_default();
        let recorded = world.view.status.task_record.as_deref() == Some("S");
        assert!(recorded || !placed.contains("\"b\""), "{placed}");
    }
    assert_eq!(world.answers, [(1, true), (2, true)]);
    world.restart();
    let pod = world.pod("b");
    world.give(Input::Pool(FromPool::Pod(pod)));
    assert!(world.orders.is_empty(), "it has ended");
}

#[test]
fn attempts_of_shards_that_were_scaled_away_are_never_used_again() {
    let mut world = claimed(3, &["a", "b", "c"]);
    world.restart();
    world.scale(0);
    world.see();
    for name in ["a", "b", "c"] {
        let pod = world.pod(name);
        world.give(Input::Pool(FromPool::Pod(pod)));
    }
    world.settle();
    for name in ["a", "b", "c"] {
        world.lists(name, vec![]);
        world.settle();
        world.recycled(name);
    }
    world.settle();
    assert_eq!(world.view.alloc_status, None);
    assert_eq!(world.view.status.task_record.as_deref(), Some("x*3"));
    world.scale(4);
    world.restart();
    world.grant(2, &["d", "e", "f", "g"]);
    world.settle();
    for (name, expected) in [("d", ".0.1"), ("e", ".1.1"), ("f", ".2.1"), ("g", ".3.0")] {
        let uid = world.task(name).unwrap().uid.clone().unwrap();
        assert!(uid.ends_with(expected), "{uid}");
    }
}

#[test]
fn an_attempt_is_not_used_again_when_somebody_removed_its_pod_from_the_annotations() {
    for (annotation, readable_later) in [(None, false), (Some("{".to_owned()), true)] {
        let mut world = claimed(2, &["a", "b"]);
        let task = world.task("b").unwrap().clone();
        world.lists("b", vec![exited(&task, 0)]);
        world.settle();
        assert_eq!(world.view.status.task_record.as_deref(), Some("- S"));
        world.view.alloc_status = annotation;
        world.bump();
        world.restart();
        if readable_later {
            world.view.alloc_status = None;
            world.bump();
            world.see();
            world.settle();
        }
        world.grant(2, &["c", "d"]);
        world.settle();
        let again = world.task("c").unwrap().uid.clone().unwrap();
        assert!(again.ends_with(".0.1"), "{again}");
        assert!(world.task("d").is_none(), "it has ended");
        assert_eq!(world.view.status.task_record.as_deref(), Some("-1 S"));
    }
}

#[test]
fn a_task_that_waits_for_its_first_pod_is_not_taken_for_one_that_lost_it() {
    let mut world = with_tasks(3);
    world.begin();
    world.grant(1, &["a"]);
    world.settle();
    world.pass(2);
    assert_eq!(world.view.status.task_record.as_deref(), Some("-"));
    world.restart();
    world.grant(2, &["b", "c"]);
    world.settle();
    let first = world.task("b").unwrap().uid.clone().unwrap();
    assert!(first.ends_with(".1.0"), "{first}");
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn what_was_scaled_away_stays_so_while_the_object_is_being_deleted() {
    let mut world = claimed(1, &["a"]);
    let task = world.task("a").unwrap().clone();
    world.lists("a", vec![exited(&task, 0)]);
    world.delete();
    world.scale(0);
    world.see();
    world.settle();
    world.scale(1);
    world.restart();
    world.pass(11);
    let result = &world.view.status.task_results[0];
    assert_eq!(
        (result.state, result.exit_code),
        (TaskResultState::Pending, None),
        "an end without its details"
    );
}

#[test]
fn what_upstreams_operator_began_is_not_begun_again() {
    let mut view = object("box", 2);
    view.spec = Ok(Arc::new(spec(json!({
        "replicas": 2, "poolRef": "warm",
        "taskTemplate": {"spec": {"process": {"command": ["sleep", "1"]}}},
    }))));
    view.alloc_status = Some(r#"{"pods":["a","b"]}"#.to_owned());
    view.finalizers = vec![
        labels::TASK_CLEANUP_FINALIZER.to_owned(),
        labels::POOL_ALLOCATION_FINALIZER.to_owned(),
    ];
    let mut world = World::new(view);
    let named = |name: &str| Task {
        name: name.to_owned(),
        ..Task::default()
    };
    // The second time after a restart of ours, which has written a record by then.
    for _ in 0..2 {
        world.restart();
        for name in ["a", "b"] {
            let pod = world.pod(name);
            world.give(Input::Pool(FromPool::Pod(pod)));
        }
        if counts(&world)[2] == 0 {
            world.lists("b", vec![exited(&named("box-1"), 0)]);
        }
        world.lists("a", vec![running(&named("box-0"))]);
        world.settle();
        assert!(matches!(world.order("a").unwrap().work, Work::Look));
        assert_eq!(counts(&world), [0, 1, 1, 0, 0]);
    }
    // In a pod that ours gave it, nobody else begins anything.
    world.lose("a");
    world.settle();
    world.grant(1, &["c"]);
    world.settle();
    world.lists("c", vec![running(&named("box-0"))]);
    world.settle();
    assert!(world.task("c").unwrap().uid.is_some());
    assert_eq!(counts(&world), [1, 0, 1, 0, 0]);
}
