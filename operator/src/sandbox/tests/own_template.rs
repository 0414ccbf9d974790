//! Sandboxes with a template of their own.

use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use opensandbox_api::conditions::batch_sandbox;
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::BatchSandboxPhase;
use serde_json::{Value, json};

use super::world::{World, exited, running, with_spec};
use crate::sandbox::{Input, Output};
use crate::session::{Report, Seen, State, Work};
use crate::view::{PodPhase, Trouble};
use crate::write::WriteError;

fn template(replicas: i32, more: &Value) -> World {
    let mut spec = json!({
        "replicas": replicas,
        "template": {"spec": {"containers": [{"name": "main", "image": "x"}]}},
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let mut world = with_spec(spec);
    world.begin();
    world
}

fn tasks() -> Value {
    json!({"taskTemplate": {"spec": {"process": {"command": ["a"]}}}})
}

#[test]
fn pods_are_made_and_their_readiness_is_told() {
    let mut world = template(2, &json!({}));
    assert_eq!(world.cluster.keys().collect::<Vec<_>>(), ["box-0", "box-1"]);
    assert_eq!(world.view.status.phase, Some(BatchSandboxPhase::Pending));
    world.run_own_pods();
    assert_eq!(world.view.status.phase, Some(BatchSandboxPhase::Succeed));
    assert_eq!(world.view.status.ready, 2);
    assert_eq!(
        world.view.endpoints.as_deref(),
        Some(r#"["10.1.0.0","10.1.0.1"]"#)
    );
    assert!(world.statements.is_empty());
    assert!(world.view.finalizers.is_empty());
}

#[test]
fn a_restart_makes_no_second_pods() {
    let mut world = template(2, &json!({}));
    world.run_own_pods();
    let uids: Vec<String> = world.cluster.values().map(|pod| pod.uid.clone()).collect();
    world.restart();
    world.pass(60);
    let after: Vec<String> = world.cluster.values().map(|pod| pod.uid.clone()).collect();
    assert_eq!(uids, after);
    assert!(world.writes.is_empty() && world.statuses.is_empty());
}

#[test]
fn replicas_down_delete_the_last_pods() {
    let mut world = template(3, &json!({}));
    world.run_own_pods();
    world.scale(1);
    world.see();
    let deleted: Vec<String> = world
        .open
        .iter()
        .filter_map(|output| match output {
            Output::DeletePod { name, .. } => Some(name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(deleted, ["box-2", "box-1"]);
    world.settle();
    assert_eq!(world.cluster.keys().collect::<Vec<_>>(), ["box-0"]);
    assert_eq!(world.view.status.ready, 1);
    assert!(!world.reasons().contains(&"PodLost"));
}

#[test]
fn a_lost_pod_is_made_again_and_its_task_begun_anew() {
    let mut world = template(1, &tasks());
    world.run_own_pods();
    let task = world.task("box-0").unwrap().clone();
    world.lists("box-0", vec![running(&task)]);
    world.settle();
    world.lose_own_pod("box-0");
    assert!(world.cluster.contains_key("box-0"));
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().1,
        "PodLost"
    );
    assert_eq!(world.view.status.task_record.as_deref(), Some("-1"));
    world.run_own_pods();
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().0,
        "False"
    );
    let again = world.task("box-0").unwrap();
    assert!(again.uid.as_deref().unwrap().ends_with(".0.1"));
    assert_ne!(again.uid, task.uid);
}

#[test]
fn what_ends_because_its_pod_is_deleted_is_begun_anew() {
    let mut world = template(1, &tasks());
    world.run_own_pods();
    let task = world.task("box-0").unwrap().clone();
    world.lists("box-0", vec![running(&task)]);
    let pod_uid = world.order("box-0").unwrap().pod_uid.clone();
    world.change_own_pod("box-0", |pod| pod.deleting = true);
    world.give(Input::Report(Report {
        pod_uid,
        state: State::Tasks(vec![Seen {
            task: exited(&task, 137),
            stderr_tail: None,
        }]),
    }));
    world.settle();
    assert!(world.orders.is_empty());
    assert_eq!(world.view.status.task_record.as_deref(), Some("-1"));
    assert!(world.cluster.contains_key("box-0"), "the name is not free");
    world.lose_own_pod("box-0");
    world.run_own_pods();
    let again = world.task("box-0").unwrap().uid.clone().unwrap();
    assert!(again.ends_with(".0.1"), "{again}");
    let told = world.reasons().into_iter().filter(|why| *why == "PodLost");
    assert_eq!(told.count(), 1);
}

#[test]
fn a_pod_that_vanished_while_no_operator_ran_had_its_attempt() {
    let mut world = template(1, &tasks());
    world.run_own_pods();
    world.cluster.clear();
    world.restart();
    world.run_own_pods();
    assert!(
        world
            .task("box-0")
            .unwrap()
            .uid
            .as_deref()
            .unwrap()
            .ends_with(".0.1")
    );
}

#[test]
fn an_evicted_pod_is_replaced_and_one_that_ended_is_left_to_be_seen() {
    let mut world = template(2, &json!({}));
    world.run_own_pods();
    let uid = world.cluster["box-0"].uid.clone();
    world.change_own_pod("box-0", |pod| {
        pod.phase = PodPhase::Failed;
        pod.ready = false;
        pod.trouble = Some(Trouble {
            reason: "Evicted".to_owned(),
            message: "the node was low on memory".to_owned(),
            error: true,
        });
    });
    world.settle();
    assert_ne!(world.cluster["box-0"].uid, uid);
    let uid = world.cluster["box-1"].uid.clone();
    world.change_own_pod("box-1", |pod| {
        pod.phase = PodPhase::Failed;
        pod.ready = false;
    });
    world.settle();
    world.pass(3600);
    assert_eq!(world.cluster["box-1"].uid, uid);
    assert_eq!(world.view.status.phase, Some(BatchSandboxPhase::Failed));
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().1,
        "PodEnded"
    );
}

#[test]
fn the_task_of_a_pod_that_ended_has_failed() {
    let mut world = template(1, &tasks());
    world.run_own_pods();
    world.change_own_pod("box-0", |pod| {
        pod.phase = PodPhase::Failed;
        pod.ready = false;
    });
    world.settle();
    assert_eq!(world.view.status.task_failed, 0);
    world.pass(11);
    assert_eq!(world.view.status.task_failed, 1);
}

#[test]
fn an_ended_task_with_release_deletes_its_pod() {
    let mut more = tasks();
    more["taskResourcePolicyWhenCompleted"] = json!("Release");
    let mut world = template(1, &more);
    world.run_own_pods();
    let task = world.task("box-0").unwrap().clone();
    world.lists("box-0", vec![exited(&task, 0)]);
    world.settle();
    assert!(world.cluster.is_empty());
    assert_eq!(world.view.status.task_succeed, 1);
    world.restart();
    world.pass(60);
    assert!(world.cluster.is_empty());
}

#[test]
fn failed_phase_is_left_when_the_trouble_is_over() {
    let mut world = template(1, &json!({}));
    world.change_own_pod("box-0", |pod| {
        pod.trouble = Some(Trouble {
            reason: "ErrImagePull".to_owned(),
            message: "not found".to_owned(),
            error: true,
        });
    });
    world.settle();
    assert_eq!(world.view.status.phase, Some(BatchSandboxPhase::Failed));
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().1,
        "ErrImagePull"
    );
    world.change_own_pod("box-0", |pod| pod.trouble = None);
    world.run_own_pods();
    assert_eq!(world.view.status.phase, Some(BatchSandboxPhase::Succeed));
}

#[test]
fn refused_pods_are_told_once_and_tried_again() {
    let mut world = template(0, &json!({}));
    world.scale(1);
    world.see();
    for _ in 0..3 {
        let position = world
            .open
            .iter()
            .position(|output| matches!(output, Output::CreatePod { .. }));
        world.open.remove(position.expect("no creation")).unwrap();
        world.give(Input::PodCreated {
            name: "box-0".to_owned(),
            result: Err(WriteError::Refused {
                reason: "Forbidden".to_owned(),
                message: "quota".to_owned(),
            }),
        });
        assert!(
            !world
                .open
                .iter()
                .any(|output| matches!(output, Output::CreatePod { .. })),
            "hot loop"
        );
        while let Some(output) = world.open.pop_front() {
            world.answer(output);
        }
        world.now = world.wake.unwrap();
        world.give(Input::Wake);
    }
    assert_eq!(world.reasons(), ["FailedCreate"]);
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().1,
        "PodRefused"
    );
    world.settle();
    assert!(world.cluster.contains_key("box-0"));
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().0,
        "False"
    );
}

#[test]
fn a_pod_of_somebody_else_is_left_alone_and_told() {
    let mut world = template(0, &json!({}));
    let foreign = world.own_pod("box-0");
    world.cluster.insert("box-0".to_owned(), foreign.clone());
    world.scale(1);
    world.see();
    world.settle();
    world.pass(60);
    assert_eq!(world.cluster["box-0"], foreign);
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().1,
        "NameTaken"
    );
    assert_eq!(world.reasons(), ["FailedCreate"]);
}

#[test]
fn a_bad_patch_stops_only_its_shard() {
    let world = template(
        2,
        &json!({"shardPatches": [{"spec": {"containers": [{"image": "y"}]}}]}),
    );
    assert_eq!(world.cluster.keys().collect::<Vec<_>>(), ["box-1"]);
    let (status, why, message) = world.condition(batch_sandbox::POD_FAILED).unwrap();
    assert_eq!(
        (status.as_str(), why.as_str()),
        ("True", "InvalidShardPatch")
    );
    assert!(message.starts_with("spec.shardPatches[0]: "), "{message}");
}

#[test]
fn a_deleted_sandbox_makes_no_pods() {
    let mut world = template(2, &tasks());
    world.view.finalizers = vec!["somebody/else".to_owned()];
    world.delete();
    world.see();
    world.settle();
    world.lose_own_pod("box-0");
    assert!(!world.cluster.contains_key("box-0"));
    assert!(world.orders.is_empty());
}

#[test]
fn a_shard_that_is_wanted_again_before_its_pod_is_gone_gets_a_new_pod() {
    let mut world = template(1, &tasks());
    world.run_own_pods();
    let before = world.cluster["box-0"].uid.clone();
    world.scale(0);
    world.see();
    world.scale(1);
    world.see();
    world.settle();
    world.run_own_pods();
    assert_ne!(world.cluster["box-0"].uid, before);
    let uid = world.task("box-0").unwrap().uid.clone().unwrap();
    assert!(uid.ends_with(".0.1"), "{uid}");
}

/// Of a pod that comes and goes while the watch is interrupted, the watch says nothing at all.
#[test]
fn a_pod_whose_end_the_watch_never_shows_is_found_to_be_gone() {
    let mut world = template(2, &json!({}));
    world.scale(1);
    world.see();
    let before = world.cluster.remove("box-1").unwrap().uid;
    world
        .open
        .retain(|output| !matches!(output, Output::DeletePod { name, .. } if name == "box-1"));
    world.give(Input::PodDeleted {
        name: "box-1".to_owned(),
        uid: before,
        result: Ok(()),
    });
    world.scale(2);
    world.see();
    world.settle();
    assert!(!world.cluster.contains_key("box-1"), "it may be there");
    world.pass(120);
    assert!(world.cluster.contains_key("box-1"));
    assert!(!world.reasons().contains(&"PodLost"));
    assert_eq!(world.wake, None);
}

#[test]
fn a_pod_that_the_watch_never_shows_is_asked_for_until_it_does() {
    let mut world = with_spec(json!({
        "replicas": 1,
        "template": {"spec": {"containers": [{"name": "main", "image": "x"}]}},
    }));
    let made = |world: &mut World| {
        let asked = |output: &Output| matches!(output, Output::CreatePod { .. });
        let before = world.open.len();
        world.open.retain(|output| !asked(output));
        before - world.open.len()
    };
    let answer = |world: &mut World, result| {
        let name = "box-0".to_owned();
        world.give(Input::PodCreated { name, result });
        world.settle();
    };
    world.see();
    assert_eq!(made(&mut world), 1);
    let first = Arc::new(world.own_pod("box-0"));
    answer(&mut world, Ok(first));
    world.now += SignedDuration::from_secs(59);
    world.give(Input::Wake);
    assert_eq!(made(&mut world), 0);
    // It is there, and asked for again later; then it is gone.
    for result in [Err(WriteError::AlreadyExists), Ok(world.own_pod("box-0"))] {
        world.now += SignedDuration::from_mins(1);
        world.give(Input::Wake);
        assert_eq!(made(&mut world), 1);
        answer(&mut world, result.map(Arc::new));
    }
    assert_eq!(world.reasons(), ["PodLost"]);
    let (_, pod) = world.machine.pods.first_key_value().unwrap();
    let second = pod.view.clone().unwrap();
    assert!(!pod.found, "it was made here");
    world.cluster.insert("box-0".to_owned(), (*second).clone());
    world.run_own_pods();
    assert_eq!(world.view.status.ready, 1);
    world.pass(60);
    assert_eq!(world.wake, None, "the watch has shown it");
}

fn has_finalizer(world: &World) -> bool {
    let finalizers = &world.view.finalizers;
    finalizers.contains(&labels::TASK_CLEANUP_FINALIZER.to_owned())
}

#[test]
fn a_task_is_begun_only_once_the_object_waits_for_its_end() {
    let mut world = template(1, &tasks());
    assert!(has_finalizer(&world));
    // Somebody takes it away just before the pod becomes ready.
    world.view.finalizers.clear();
    world.bump();
    world.see();
    world.change_own_pod("box-0", |pod| {
        pod.phase = PodPhase::Running;
        pod.ready = true;
        pod.ip = Some("10.1.0.0".to_owned());
    });
    assert!(world.order("box-0").is_none());
    world.settle();
    assert!(has_finalizer(&world));
    assert!(world.task("box-0").is_some());
}

#[test]
fn a_deleted_object_goes_when_its_tasks_are_stopped() {
    let mut world = template(2, &tasks());
    world.run_own_pods();
    let task = world.task("box-0").unwrap().clone();
    world.lists("box-0", vec![running(&task)]);
    world.settle();
    world.delete();
    world.see();
    world.settle();
    assert!(matches!(world.order("box-0").unwrap().work, Work::Clear));
    world.lists("box-1", vec![]);
    world.lists("box-0", vec![running(&task)]);
    world.settle();
    assert!(!world.gone, "a task still runs");
    world.lists("box-0", vec![]);
    world.settle();
    assert!(world.gone);
    assert_eq!(world.cluster.len(), 2, "they go with their object");
}

#[test]
fn a_deleted_object_does_not_wait_for_pods_that_cannot_be_reached_or_are_gone() {
    let mut world = template(3, &tasks());
    world.run_own_pods();
    world.delete();
    world.restart();
    world.settle();
    let since = world.now;
    let message = "connection refused".to_owned();
    world.reports("box-0", State::Unreachable { since, message });
    world.lose_own_pod("box-1");
    world.change_own_pod("box-2", |pod| pod.phase = PodPhase::Failed);
    world.settle();
    world.pass(29);
    assert!(!world.gone);
    world.pass(2);
    assert!(world.gone);
}

#[test]
fn the_answer_to_a_creation_does_not_bring_back_a_pod_that_is_gone() {
    let mut world = with_spec(json!({
        "replicas": 1,
        "template": {"spec": {"containers": [{"name": "main", "image": "x"}]}},
    }));
    world.see();
    world
        .open
        .retain(|output| !matches!(output, Output::CreatePod { .. }));
    let pod = Arc::new(world.own_pod("box-0"));
    world.give(Input::Pod(Arc::clone(&pod)));
    world.give(Input::PodGone {
        name: "box-0".to_owned(),
        uid: pod.uid.clone(),
    });
    world.give(Input::PodCreated {
        name: "box-0".to_owned(),
        result: Ok(pod),
    });
    world.settle();
    world.run_own_pods();
    assert_eq!(world.view.status.ready, 1, "another one was made");
}
