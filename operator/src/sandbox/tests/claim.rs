//! Claims: statements, grants, the one write, endpoints, replicas up.

use std::sync::Arc;

use opensandbox_api::conditions::{batch_sandbox, reason};
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::BatchSandboxPhase;
use serde_json::json;

use super::world::{World, pooled, with_spec};
use super::{at, facts, object};
use crate::protocol::{FromPool, Waiting};
use crate::sandbox::{Input, Note, Output, Setting, statement};
use crate::view::Version;
use crate::write::WriteError;

#[test]
fn a_warm_claim_costs_two_writes() {
    let mut world = pooled(3);
    world.begin();
    assert_eq!(world.last_statement().wants, 3);
    assert_eq!(world.last_statement().queued, at(0));
    assert!(world.writes.is_empty() && world.statuses.is_empty());

    world.grant(7, &["a", "b", "c"]);
    assert_eq!(world.writes.len(), 1);
    assert!(world.answers.is_empty(), "answered before the write was");
    world.settle();

    assert_eq!(world.writes.len(), 1);
    assert_eq!(world.statuses.len(), 1);
    assert_eq!(world.answers, [(7, true)]);
    assert_eq!(world.last_statement().holds, ["a", "b", "c"]);
    assert_eq!(world.last_statement().wants, 0);
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["a","b","c"]}"#)
    );
    assert_eq!(world.view.finalizers, [labels::POOL_ALLOCATION_FINALIZER]);
    let endpoints: Vec<String> =
        serde_json::from_str(world.view.endpoints.as_deref().unwrap()).unwrap();
    assert_eq!(endpoints.len(), 3);
    assert!(endpoints.iter().all(|ip| ip.starts_with("10.0.")));
    let status = world.last_status();
    assert_eq!((status.replicas, status.allocated, status.ready), (3, 3, 3));
    assert_eq!(status.phase, Some(BatchSandboxPhase::Succeed));
    assert_eq!(world.condition(batch_sandbox::READY).unwrap().0, "True");
    assert_eq!(
        world.condition(batch_sandbox::PROGRESSING).unwrap().0,
        "False"
    );
    assert_eq!(
        world.condition(batch_sandbox::POD_FAILED).unwrap().0,
        "False"
    );
    assert!(matches!(
        world.notes[..],
        [Note::Ready { pooled: true, .. }]
    ));
    assert!(world.events.is_empty());
}

#[test]
fn with_nothing_to_do_nothing_is_said() {
    let mut world = pooled(2);
    world.begin();
    world.grant(1, &["a", "b"]);
    world.settle();
    for _ in 0..3 {
        assert_eq!(world.see(), 0);
        assert_eq!(world.give(Input::Wake), 0);
    }
    let pod = Arc::clone(world.machine.pods["a"].view.as_ref().unwrap());
    assert_eq!(world.give(Input::Pool(FromPool::Pod(pod))), 0);
    world.pass(3600);
    assert_eq!((world.writes.len(), world.statuses.len()), (1, 1));
}

#[test]
fn what_is_said_before_the_machine_runs_is_what_it_says_first() {
    for (replicas, annotation) in [
        (0, None),
        (3, None),
        (3, Some(r#"{"pods":["a"]}"#)),
        (2, Some("odd")),
    ] {
        let mut view = object("box", replicas);
        view.alloc_status = annotation.map(str::to_owned);
        view.version = Version(5);
        let before = statement(&view).unwrap();
        let mut world = World::new(view);
        world.begin();
        assert_eq!(world.statements.first(), Some(&before));
    }
}

#[test]
fn a_waiting_sandbox_says_so_at_once_and_why() {
    let mut world = pooled(2);
    world.begin();
    world.give(Input::Pool(FromPool::Waiting(Some(Waiting {
        reason: reason::POOL_CAPACITY_EXHAUSTED,
        message: "waits for 2 pods".to_owned(),
    }))));
    world.settle();
    assert_eq!(world.statuses.len(), 1);
    assert_eq!(world.last_status().phase, Some(BatchSandboxPhase::Pending));
    let (status, why, message) = world
        .condition(batch_sandbox::POOL_ALLOCATION_PENDING)
        .unwrap();
    assert_eq!(
        (status.as_str(), why.as_str()),
        ("True", reason::POOL_CAPACITY_EXHAUSTED)
    );
    assert_eq!(message, "waits for 2 pods");

    world.grant(1, &["a"]);
    world.settle();
    assert_eq!(world.last_statement().wants, 1);
    world.grant(2, &["b"]);
    world.settle();
    assert_eq!(
        world
            .condition(batch_sandbox::POOL_ALLOCATION_PENDING)
            .unwrap()
            .0,
        "False"
    );
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["a","b"]}"#)
    );
}

#[test]
fn a_silent_pool_does_not_keep_the_status_empty() {
    let mut world = pooled(1);
    world.begin();
    assert!(world.statuses.is_empty());
    world.pass(2);
    assert_eq!(world.statuses.len(), 1);
    assert_eq!(
        world
            .condition(batch_sandbox::POOL_ALLOCATION_PENDING)
            .unwrap()
            .0,
        "True"
    );
}

#[test]
fn after_a_conflict_it_decides_again() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    world.edit_spec(|spec| spec["expireTime"] = json!("2099-01-01T00:00:00Z"));
    world.settle();
    assert_eq!(world.answers, [(1, true)]);
    assert_eq!(world.writes.len(), 2);
    assert_eq!(world.last_statement().holds, ["a"]);
}

#[test]
fn a_grant_is_declined_when_the_object_was_deleted_meanwhile() {
    let mut world = pooled(1);
    world.view.finalizers = vec!["somebody/else".to_owned()];
    world.begin();
    world.grant(1, &["a"]);
    world.delete();
    world.settle();
    assert_eq!(world.answers, [(1, false)]);
    assert_eq!(world.view.alloc_status, None);
    assert_eq!(world.view.finalizers, ["somebody/else"]);
    assert_eq!(world.last_statement().wants, 0);
}

#[test]
fn a_grant_is_declined_when_fewer_are_wanted_meanwhile() {
    let mut world = pooled(3);
    world.begin();
    world.grant(1, &["a", "b", "c"]);
    world.scale(1);
    world.settle();
    assert_eq!(world.answers, [(1, false)]);
    assert_eq!(world.last_statement().wants, 1);
}

#[test]
fn a_write_without_a_clear_answer_is_looked_for() {
    for happened in [true, false] {
        let mut world = pooled(1);
        world.begin();
        world.grant(1, &["a"]);
        let Some(Output::Write(write)) = world.open.pop_front() else {
            panic!("no write");
        };
        if happened {
            world.apply(&write).unwrap();
        }
        let unclear = WriteError::Unclear {
            message: "no answer".to_owned(),
        };
        world.give(Input::Written(Err(unclear)));
        assert!(world.answers.is_empty());
        world.settle();
        world.pass(1);
        assert_eq!(world.answers, [(1, true)], "happened: {happened}");
        assert_eq!(
            world.view.alloc_status.as_deref(),
            Some(r#"{"pods":["a"]}"#)
        );
        let sent = if happened { 1 } else { 2 };
        assert_eq!(world.writes.len(), sent);
    }
}

#[test]
fn a_doubtful_write_that_never_happened_is_answered_with_no() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    world.open.clear();
    world.view.finalizers = vec!["somebody/else".to_owned()];
    world.delete();
    let unclear = WriteError::Unclear {
        message: "no answer".to_owned(),
    };
    world.give(Input::Written(Err(unclear)));
    world.settle();
    assert_eq!(world.answers, [(1, false)]);
    assert_eq!(world.view.alloc_status, None);
}

#[test]
fn a_refused_claim_is_declined_and_tried_again_later() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    world.open.clear();
    let refused = WriteError::Refused {
        reason: "Forbidden".to_owned(),
        message: "no".to_owned(),
    };
    world.give(Input::Written(Err(refused)));
    world.settle();
    assert_eq!(world.answers, [(1, false)]);
    assert_eq!(world.last_statement().wants, 0);
    assert_eq!(world.reasons(), ["WriteRefused"]);
    world.pass(2);
    assert_eq!(world.last_statement().wants, 1);
    world.grant(2, &["a"]);
    world.settle();
    assert_eq!(world.answers, [(1, false), (2, true)]);
}

#[test]
fn more_replicas_queue_from_then_on() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    world.settle();
    world.pass(100);
    world.scale(3);
    world.see();
    world.settle();
    assert_eq!(world.last_statement().wants, 2);
    assert_eq!(world.last_statement().queued, at(100));
    world.grant(2, &["b", "c"]);
    world.settle();
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["a","b","c"]}"#)
    );
}

#[test]
fn no_replicas_are_legal() {
    let mut world = pooled(0);
    world.begin();
    assert_eq!(world.last_statement().wants, 0);
    assert_eq!(world.statuses.len(), 1);
    assert!(world.writes.is_empty());
    assert_eq!(world.condition(batch_sandbox::READY).unwrap().0, "True");
}

#[test]
fn ten_thousand_replicas_are_one_write() {
    let mut world = pooled(10_000);
    world.begin();
    assert_eq!(world.last_statement().wants, 10_000);
    let names: Vec<String> = (0..10_000).map(|n| format!("warm-{n:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.grant(1, &names);
    world.settle();
    assert_eq!((world.writes.len(), world.statuses.len()), (1, 1));
    assert_eq!(world.last_status().ready, 10_000);
    let bytes = world.view.alloc_status.as_ref().unwrap().len()
        + world.view.endpoints.as_ref().unwrap().len();
    assert!(bytes < 256 * 1024, "{bytes}");
}

#[test]
fn too_many_replicas_ask_for_no_more_than_fits() {
    let mut world = pooled(i32::MAX);
    world.begin();
    let wants = world.last_statement().wants;
    assert!((10_000..20_000).contains(&wants), "{wants}");
    let names: Vec<String> = (0..wants).map(|n| format!("warm-{n:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.grant(1, &names);
    world.settle();
    assert_eq!(world.last_statement().wants, 0);
    let (status, why, _) = world
        .condition(batch_sandbox::POOL_ALLOCATION_PENDING)
        .unwrap();
    assert_eq!((status.as_str(), why.as_str()), ("True", "TooManyReplicas"));
}

#[test]
fn a_changed_address_is_published_and_a_missing_one_is_empty() {
    let mut world = pooled(2);
    world.begin();
    world.grant(1, &["a", "b"]);
    world.settle();
    let mut pod = (**world.machine.pods["b"].view.as_ref().unwrap()).clone();
    pod.version = Version(9999);
    pod.ip = None;
    pod.ready = false;
    world.give(Input::Pool(FromPool::Pod(Arc::new(pod))));
    world.settle();
    let endpoints: Vec<String> =
        serde_json::from_str(world.view.endpoints.as_deref().unwrap()).unwrap();
    assert_eq!(endpoints[1], "");
    assert_eq!(world.last_status().ready, 1);
    assert_eq!(world.condition(batch_sandbox::READY).unwrap().0, "False");
}

#[test]
fn a_pool_is_chosen_for_an_asterisk() {
    let mut world = with_spec(json!({"replicas": 1, "poolRef": "*", "template": {"spec": {}}}));
    world.see();
    assert_eq!(world.open.pop_front(), Some(Output::Assign));
    world.give(Input::Assigned(Err("pool a: no such image".to_owned())));
    world.settle();
    let (status, why, message) = world
        .condition(batch_sandbox::POOL_ALLOCATION_PENDING)
        .unwrap();
    assert_eq!(
        (status.as_str(), why.as_str()),
        ("True", reason::NO_ELIGIBLE_POOL)
    );
    assert_eq!(message, "pool a: no such image");
    world.now = at(1);
    world.give(Input::Wake);
    assert_eq!(world.open.pop_front(), Some(Output::Assign));
    world.give(Input::Assigned(Ok("warm".to_owned())));
    world.settle();
    assert_eq!(
        world.view.spec.as_ref().unwrap().pool_ref.as_deref(),
        Some("warm")
    );
    assert_eq!(world.last_statement().wants, 1);
    world.grant(1, &["a"]);
    world.settle();
    assert_eq!(world.answers, [(1, true)]);
}

#[test]
fn another_pool_is_not_followed_while_pods_are_held() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    world.settle();
    world.edit_spec(|spec| spec["poolRef"] = json!("other"));
    world.see();
    world.settle();
    assert_eq!(world.left, 0);
    assert_eq!(world.last_statement().holds, ["a"]);
    assert_eq!(
        world
            .condition(batch_sandbox::POOL_ALLOCATION_PENDING)
            .unwrap()
            .1,
        "PoolRefKept"
    );
    world.edit_spec(|spec| spec["poolRef"] = json!("warm"));
    world.see();
    world.settle();
    assert_eq!(
        world
            .condition(batch_sandbox::POOL_ALLOCATION_PENDING)
            .unwrap()
            .0,
        "False"
    );
}

#[test]
fn after_a_takeover_the_object_is_marked_before_it_asks() {
    let setting = Setting {
        injection: Arc::new(facts()),
        fence: Some("b 2".to_owned()),
        upstream_executors: false,
    };
    let mut world = World::with_setting(object("box", 1), setting);
    world.see();
    assert!(world.statements.is_empty());
    // Somebody changes it meanwhile.
    world.bump();
    world.settle();
    assert_eq!(world.view.fence.as_deref(), Some("b 2"));
    assert_eq!(world.view.alloc_status, None);
    assert_eq!(world.last_statement().wants, 1);
    assert!(world.last_statement().holds.is_empty());
}

/// From then on users see the addresses, and may use the pods.
#[test]
fn what_the_leader_before_claimed_before_the_object_was_marked_is_held() {
    for answered in [true, false] {
        let setting = Setting {
            injection: Arc::new(facts()),
            fence: Some("b 2".to_owned()),
            upstream_executors: false,
        };
        let mut world = World::with_setting(object("box", 2), setting);
        world.see();
        world.view.alloc_status = Some(r#"{"pods":["late"]}"#.to_owned());
        world.bump();
        if !answered {
            // The mark has no clear answer, and the object is newer.
            world.open.clear();
            let message = "timed out".to_owned();
            world.give(Input::Written(Err(WriteError::Unclear { message })));
            world.open.clear();
            world.see();
        }
        assert!(world.statements.is_empty());
        world.settle();
        world.pass(1);
        assert_eq!(
            world.view.alloc_status.as_deref(),
            Some(r#"{"pods":["late"]}"#)
        );
        assert_eq!(world.view.fence.as_deref(), Some("b 2"));
        assert_eq!(world.last_statement().holds, ["late"]);
        assert_eq!(world.last_statement().wants, 1);
    }
}

#[test]
fn a_conflict_after_a_doubtful_write_proves_nothing() {
    let mut world = pooled(3);
    world.begin();
    let stale = Arc::new(world.view.clone());
    world.grant(1, &["a", "b", "c"]);
    let Some(Output::Write(write)) = world.open.pop_front() else {
        panic!("no write");
    };
    world.apply(&write).unwrap();
    let unclear = WriteError::Unclear {
        message: "no answer".to_owned(),
    };
    world.give(Input::Written(Err(unclear)));
    world.open.clear();
    world.give(Input::Object(stale));
    world.now = at(1);
    world.give(Input::Wake);
    assert_eq!(world.writes.len(), 2);
    world.see();
    world.scale(2);
    world.see();
    world.settle();
    assert_eq!(world.answers, [(1, true)]);
    let last = world.last_statement();
    assert_eq!(last.holds, ["a", "b"]);
    assert_eq!(last.returns.len(), 1);
}

#[test]
fn a_restart_of_the_operator_is_no_reason_to_write_that_a_sandbox_waits() {
    let mut world = pooled(1);
    world.begin();
    let waits = || {
        Input::Pool(FromPool::Waiting(Some(Waiting {
            reason: reason::POOL_NOT_FOUND,
            message: "there is no such pool".to_owned(),
        })))
    };
    world.give(waits());
    world.settle();
    world.restart();
    world.pass(60);
    world.give(waits());
    world.settle();
    assert!(world.writes.is_empty() && world.statuses.is_empty());
}

#[test]
fn an_object_that_overtakes_the_answer_to_a_claim_makes_no_wrong_statement() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    let Some(Output::Write(write)) = world.open.pop_front() else {
        panic!("it claims the pod");
    };
    let written = world.apply(&write).unwrap();
    world.scale(2);
    let said = world.statements.len();
    world.see();
    assert_eq!(
        world.statements.len(),
        said,
        "it knows less than the object"
    );
    world.give(Input::Written(Ok(written)));
    assert_eq!(world.last_statement().holds, ["a"]);
    assert_eq!(world.last_statement().wants, 1);
    assert_eq!(world.answers, [(1, true)]);
}
