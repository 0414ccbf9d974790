//! Objects that cannot be read, annotations that others wrote, answers that say nothing.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::conditions::{batch_sandbox, reason};
use opensandbox_api::labels;
use serde_json::json;

use super::world::{World, pooled, with_spec};
use super::{object, spec};
use crate::sandbox::{Input, Note, Output, statement};
use crate::write::WriteError;

#[test]
fn what_others_write_while_it_runs_is_taken_back_with_one_write() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    world.settle();
    world.view.alloc_status = Some(r#"{"pods":["another's"]}"#.to_owned());
    world.view.alloc_release = Some("junk".to_owned());
    world.view.finalizers.clear();
    world.bump();
    world.see();
    world.settle();
    assert_eq!(world.writes.len(), 2);
    assert_eq!(
        world.view.alloc_status.as_deref(),
        Some(r#"{"pods":["a"]}"#)
    );
    assert_eq!(world.view.alloc_release, None);
    assert_eq!(world.view.finalizers, [labels::POOL_ALLOCATION_FINALIZER]);
    assert_eq!(world.last_statement().holds, ["a"]);
    assert_eq!(world.reasons(), ["AnnotationRestored"]);
    let note = &world.events[0].note;
    assert!(
        note.contains(labels::ALLOC_STATUS) && note.contains(labels::ALLOC_RELEASE),
        "{note}"
    );
    assert!(!note.contains(labels::ALLOC_RELEASED), "{note}");
}

#[test]
fn an_object_that_cannot_be_read_asks_for_nothing_and_loses_nothing() {
    let mut view = object("box", 3);
    view.alloc_status = Some(r#"{"pods":["a","b"#.to_owned());
    let mut world = World::new(view);
    world.begin();
    assert_eq!(world.last_statement().wants, 0);
    assert_eq!(world.last_statement().holds, ["a", "b"]);
    assert!(world.writes.is_empty());
    let (status, why, _) = world.condition(batch_sandbox::QUARANTINED).unwrap();
    assert_eq!(
        (status.as_str(), why.as_str()),
        ("True", reason::MALFORMED_ANNOTATION)
    );
    assert_eq!(world.notes, [Note::Quarantined]);
    assert_eq!(world.reasons(), [reason::MALFORMED_ANNOTATION]);
    world.see();
    world.settle();
    assert_eq!(world.reasons().len(), 1);

    world.view.alloc_status = Some(r#"{"pods":["a","b"]}"#.to_owned());
    world.bump();
    world.see();
    let pod = world.pod("a");
    world.give(Input::Pool(crate::protocol::FromPool::Pod(pod)));
    let pod = world.pod("b");
    world.give(Input::Pool(crate::protocol::FromPool::Pod(pod)));
    world.settle();
    assert_eq!(world.last_statement().wants, 1);
    assert_eq!(world.last_statement().holds, ["a", "b"]);
    assert_eq!(
        world.condition(batch_sandbox::QUARANTINED).unwrap().0,
        "False"
    );
}

#[test]
fn an_object_that_cannot_be_read_can_be_deleted() {
    let mut view = object("box", 3);
    view.alloc_status = Some("junk".to_owned());
    view.finalizers = vec![labels::POOL_ALLOCATION_FINALIZER.to_owned()];
    let mut world = World::new(view);
    world.begin();
    world.lose("junk");
    world.delete();
    world.see();
    world.settle();
    assert!(world.gone && world.done);
}

#[test]
fn a_spec_that_makes_no_sense_is_set_aside() {
    for value in [
        json!({"replicas": 1}),
        json!({"replicas": -5, "poolRef": "warm"}),
    ] {
        let mut world = with_spec(value);
        world.begin();
        assert_eq!(
            world.condition(batch_sandbox::QUARANTINED).unwrap().1,
            reason::INVALID_SPEC
        );
        assert!(world.writes.is_empty());
        assert!(
            world
                .statements
                .iter()
                .all(|(_, statement)| statement.wants == 0)
        );
    }
    let mut view = object("box", 1);
    view.spec = Err("invalid type".to_owned());
    let mut world = World::new(view);
    world.begin();
    assert_eq!(
        world.condition(batch_sandbox::QUARANTINED).unwrap().1,
        reason::INVALID_SPEC
    );
    world.view.spec = Ok(Arc::new(spec(json!({"replicas": 1, "poolRef": "warm"}))));
    world.bump();
    world.see();
    world.settle();
    assert_eq!(world.last_statement().wants, 1);
    assert_eq!(
        world.condition(batch_sandbox::QUARANTINED).unwrap().0,
        "False"
    );
}

#[test]
fn a_pause_is_refused_with_a_clear_message() {
    let mut world = with_spec(json!({"replicas": 1, "poolRef": "warm", "pause": true}));
    world.begin();
    world.grant(1, &["a"]);
    world.settle();
    let (status, _, message) = world.condition(batch_sandbox::PAUSE_FAILED).unwrap();
    assert_eq!(status, "True");
    assert!(message.contains("spec.pause"), "{message}");
    assert_eq!(world.view.status.ready, 1);
}

#[test]
fn a_status_that_may_not_have_been_written_is_written_again() {
    for happened in [true, false] {
        let mut world = pooled(0);
        world.see();
        let Some(Output::WriteStatus(write)) = world.open.pop_front() else {
            panic!("no status");
        };
        if happened {
            world.view.status = (*write.status).clone();
            world.bump();
        }
        let unclear = WriteError::Unclear {
            message: "no answer".to_owned(),
        };
        world.give(Input::StatusWritten(Err(unclear)));
        world.settle();
        world.pass(1);
        assert_eq!(world.statuses.len(), if happened { 1 } else { 2 });
        assert_eq!(world.condition(batch_sandbox::READY).unwrap().0, "True");
    }
}

#[test]
fn a_read_without_an_answer_is_asked_again() {
    let mut world = pooled(1);
    world.begin();
    world.grant(1, &["a"]);
    world.open.clear();
    let unclear = WriteError::Unclear {
        message: "no answer".to_owned(),
    };
    world.give(Input::Written(Err(unclear)));
    assert_eq!(world.open.pop_front(), Some(Output::Read));
    world.now = super::at(6);
    world.give(Input::Wake);
    assert_eq!(world.open.pop_front(), Some(Output::Read));
}

#[test]
fn the_end_of_time_is_no_accident() {
    let mut world = with_spec(json!({
        "replicas": 1, "poolRef": "warm", "expireTime": "9999-12-31T23:59:59Z",
        "ttlSecondsAfterFinished": i32::MAX,
        "taskTemplate": {"spec": {"process": {"command": ["a"]}}},
    }));
    world.begin();
    assert_eq!(world.last_statement().wants, 1);
    world.grant(1, &["a"]);
    world.settle();
    world.now = Timestamp::MIN;
    world.give(Input::Wake);
    assert!(world.open.is_empty());
    world.now = Timestamp::MAX;
    world.give(Input::Wake);
    assert!(matches!(world.open.front(), Some(Output::Delete { .. })));
}

#[test]
fn what_an_unreadable_spec_holds_stays_held_from_the_start() {
    let mut view = object("box", 2);
    view.alloc_status = Some(r#"{"pods":["a","b"]}"#.to_owned());
    view.finalizers = vec![labels::POOL_ALLOCATION_FINALIZER.to_owned()];
    view.spec = Err("spec cannot be read: invalid value, expected Retain or Release".to_owned());
    view.unread_pool_ref = Some("warm".to_owned());
    let (pool, first) = statement(&view).unwrap();
    assert_eq!(pool, "warm");
    assert_eq!(
        (first.holds.as_slice(), first.wants),
        (["a".to_owned(), "b".to_owned()].as_slice(), 0)
    );
    assert_eq!(first.returns, []);

    let mut world = World::new(view.clone());
    world.begin();
    for name in ["a", "b"] {
        let pod = world.pod(name);
        world.give(Input::Pool(crate::protocol::FromPool::Pod(pod)));
    }
    world.settle();
    assert_eq!(world.last_statement().holds, ["a", "b"]);
    assert_eq!(
        world.condition(batch_sandbox::QUARANTINED).unwrap().1,
        reason::INVALID_SPEC
    );
    assert!(world.writes.is_empty());

    world.view.spec = Ok(Arc::new(spec(json!({"replicas": 2, "poolRef": "warm"}))));
    world.view.unread_pool_ref = None;
    world.bump();
    world.see();
    world.settle();
    assert_eq!(world.last_statement().holds, ["a", "b"]);
    assert_eq!(world.view.status.ready, 2);
    assert_eq!(
        world.condition(batch_sandbox::QUARANTINED).unwrap().0,
        "False"
    );

    // Nobody knows whether tasks ran: on the way back it is asked, and a pod without an answer is not reused.
    let mut deleted = view;
    deleted.deleting = true;
    let (_, statement) = statement(&deleted).unwrap();
    assert_eq!((statement.holds.len(), statement.returns.len()), (2, 0));
}

#[test]
fn a_broken_annotation_gets_back_nothing_that_was_given_back() {
    let mut view = object("box", 2);
    view.alloc_status = Some(r#"{"pods":["anothers","own"]}"#.to_owned());
    view.alloc_release = Some(r#"{"pods":["",null]}"#.to_owned());
    view.alloc_released = Some(r#"{"pods":["anothers"]}"#.to_owned());
    view.finalizers = vec![labels::POOL_ALLOCATION_FINALIZER.to_owned()];
    let (_, at_the_start) = statement(&view).unwrap();
    let mut world = World::new(view);
    world.begin();
    for said in [&at_the_start, world.last_statement()] {
        assert_eq!(said.holds, ["own"]);
        assert!(said.standing.made_out, "others come first");
        assert_eq!(said.wants, 0);
    }
    assert!(world.writes.is_empty());
}

#[test]
fn secrets_are_not_printed() {
    let world = with_spec(json!({
        "replicas": 1, "poolRef": "warm",
        "taskTemplate": {"spec": {"process": {"command": ["geheim"], "env": [{"name": "A", "value": "geheim"}]}}},
    }));
    assert!(!format!("{:?}", world.machine).contains("geheim"));
}

#[test]
fn another_object_of_the_same_name_is_another_sandbox() {
    let mut world = pooled(1);
    world.begin();
    let mut other = world.view.clone();
    other.uid = "another".to_owned();
    world.give(Input::Object(Arc::new(other)));
    assert!(world.done);
    assert_eq!(world.left, 1);
}
