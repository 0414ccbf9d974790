//! The checker finds what it is there to find: each invariant broken by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use opensandbox_api::labels;
use opensandbox_operator::protocol::{SandboxRef, Standing, Statement, ToPool};
use opensandbox_operator::view::{ObjectKey, Version};
use opensandbox_operator::write::SandboxWrite;
use serde_json::{Value, json};

use crate::executor::{Executor, Request, Step};
use crate::replica::Actor;
use crate::store::{self, Kind};
use crate::world::World;
use crate::writes::Op;

/// A world with a pool of three, a pod of it, and two sandboxes.
fn world() -> World {
    let mut world = World::new(1, false);
    world.calm = true;
    let stamp = world.stamp();
    for name in world.store.names(Kind::Pool) {
        world
            .store
            .delete(Kind::Pool, &name, None, None, &stamp)
            .unwrap();
    }
    let capacity = json!({"bufferMin": 0, "bufferMax": 0, "poolMin": 0, "poolMax": 1});
    let pool = json!({"metadata": {"name": "pool"}, "spec": {"capacitySpec": capacity}});
    world.store.create(Kind::Pool, pool, &stamp).unwrap();
    let pod = pod(&world, "pod");
    world.store.create(Kind::Pod, pod, &stamp).unwrap();
    for name in ["first", "second"] {
        let sandbox = json!({"metadata": {"name": name}, "spec": {"poolRef": "pool"}});
        world.store.create(Kind::Sandbox, sandbox, &stamp).unwrap();
    }
    world.react();
    world
}

fn pod(world: &World, name: &str) -> Value {
    let owner = uid(world, Kind::Pool, "pool");
    json!({"metadata": {
        "name": name, "labels": {labels::POOL_NAME: "pool", labels::POOL: "pool"},
        "ownerReferences": [{"kind": "Pool", "name": "pool", "uid": owner, "controller": true}],
    }})
}

fn uid(world: &World, kind: Kind, name: &str) -> String {
    store::uid(world.store.get(kind, name).unwrap()).to_owned()
}

fn version(world: &World, sandbox: &str) -> Version {
    let raw = world.store.get(Kind::Sandbox, sandbox).unwrap();
    let version = store::text(raw, "/metadata/resourceVersion").unwrap();
    Version(version.parse().unwrap())
}

/// The operator writes `alloc-` annotations of a sandbox, pods as JSON lists.
fn write(world: &mut World, sandbox: &str, annotations: &[(&'static str, &str)]) {
    let version = version(world, sandbox);
    let annotations: BTreeMap<&'static str, Option<String>> = annotations
        .iter()
        .map(|(key, pods)| (*key, Some(format!(r#"{{"pods":{pods}}}"#))))
        .collect();
    let op = Op::Sandbox {
        name: sandbox.to_owned(),
        write: SandboxWrite {
            version,
            annotations,
            ..SandboxWrite::default()
        },
    };
    let actor = Actor::Sandbox(uid(world, Kind::Sandbox, sandbox));
    world.do_now(actor, op);
    world.react();
}

fn violation(world: &World) -> &str {
    world.check.violation.as_deref().unwrap_or_default()
}

#[test]
fn a_pod_in_two_sandboxes_is_found() {
    let mut world = world();
    write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
    assert_eq!(violation(&world), "");
    write(
        &mut world,
        "second",
        &[(labels::ALLOC_STATUS, r#"["pod"]"#)],
    );
    assert!(
        violation(&world).contains("still to first"),
        "{}",
        violation(&world)
    );
}

#[test]
fn reuse_without_recycling_is_found() {
    let mut world = world();
    write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
    write(
        &mut world,
        "first",
        &[(labels::ALLOC_RELEASE, r#"["pod"]"#)],
    );
    write(
        &mut world,
        "first",
        &[(labels::ALLOC_RELEASED, r#"["pod"]"#)],
    );
    write(
        &mut world,
        "second",
        &[(labels::ALLOC_STATUS, r#"["pod"]"#)],
    );
    assert!(
        violation(&world).contains("without being recycled"),
        "{}",
        violation(&world)
    );
}

#[test]
fn a_held_pod_taken_away_is_found() {
    let mut world = world();
    write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
    let op = Op::DeletePod {
        name: "pod".to_owned(),
        uid: uid(&world, Kind::Pod, "pod"),
        version: None,
        reason: "ScaleDown",
    };
    world.do_now(Actor::Pool("pool".to_owned()), op);
    assert!(
        violation(&world).contains("takes pod away"),
        "{}",
        violation(&world)
    );
}

#[test]
fn a_pod_too_many_is_found() {
    let mut world = world();
    world.check.saw_maximum("pool", 1);
    let more = pod(&world, "more");
    world.check_creation(0, "pool", "more", &more);
    assert!(
        violation(&world).contains("2 pods exist"),
        "{}",
        violation(&world)
    );
}

/// The executor of the pod is told to run the first task of `first`, and does.
fn start_task(world: &mut World) {
    let task_uid = format!("{}.0.0", uid(world, Kind::Sandbox, "first"));
    let pod_uid = uid(world, Kind::Pod, "pod");
    let executor = Executor {
        pod: "pod".to_owned(),
        ip: "10.0.0.1".to_owned(),
        reachable: true,
        runs: Vec::new(),
    };
    world.executors.pods.insert(pod_uid.clone(), executor);
    let task = opensandbox_api::task::Task {
        uid: Some(task_uid.clone()),
        ..Default::default()
    };
    world
        .executors
        .accept(&pod_uid, &Request::Run(Box::new(task)));
    world.task_step(&pod_uid, &task_uid, Step::Start);
}

/// A user writes `alloc-status` of `first`.
fn forge(world: &mut World, alloc_status: Option<&str>) {
    let raw = Arc::clone(world.store.get(Kind::Sandbox, "first").unwrap());
    world.check.note_forgery(&raw, alloc_status);
}

#[test]
fn a_task_started_twice_or_in_the_wrong_pod_is_found() {
    for (claimed, expected) in [(true, "started 2 times"), (false, "not its shard")] {
        let mut world = world();
        if claimed {
            write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
        }
        start_task(&mut world);
        start_task(&mut world);
        assert!(
            violation(&world).contains(expected),
            "{}",
            violation(&world)
        );
    }
}

#[test]
fn a_second_start_is_excused_only_where_a_user_wiped_out_that_there_was_a_first() {
    let named = Some(r#"{"pods":["pod"]}"#);
    let another = Some(r#"{"pods":["another"]}"#);
    for (recorded, forged, excused) in [
        (false, None, true),
        (false, named, false),
        (true, None, false),
        (true, another, true),
    ] {
        let mut world = world();
        write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
        if recorded {
            let status = json!({"status": {"taskRecord": "-"}});
            world
                .store
                .put_status(Kind::Sandbox, "first", &status)
                .unwrap();
        }
        start_task(&mut world);
        forge(&mut world, forged);
        start_task(&mut world);
        assert_eq!(
            violation(&world).is_empty(),
            excused,
            "{forged:?}, recorded: {recorded}"
        );
    }
    let mut world = world();
    write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
    forge(&mut world, None);
    write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
    start_task(&mut world);
    start_task(&mut world);
    assert!(violation(&world).contains("started 2 times"), "restored");
}

#[test]
fn a_late_start_is_excused_only_in_a_pod_that_goes_and_was_the_shards() {
    for (placed, deleting) in [(true, true), (true, false), (false, true)] {
        let mut world = world();
        if placed {
            write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
        }
        write(&mut world, "first", &[(labels::ALLOC_STATUS, "[]")]);
        if deleting {
            let node = json!({"spec": {"nodeName": "node"}});
            world.store.patch(Kind::Pod, "pod", &node).unwrap();
            let stamp = world.stamp();
            world
                .store
                .delete(Kind::Pod, "pod", None, None, &stamp)
                .unwrap();
        }
        start_task(&mut world);
        assert_eq!(
            violation(&world).is_empty(),
            placed && deleting,
            "placed: {placed}, deleting: {deleting}"
        );
    }
}

/// What a sandbox says that holds these pods.
fn holds(world: &World, name: &str, pods: &[&str]) -> Statement {
    Statement {
        sandbox: SandboxRef {
            key: ObjectKey::new(store::NAMESPACE, name),
            uid: uid(world, Kind::Sandbox, name),
        },
        standing: Standing {
            made_out: false,
            created: world.time(),
        },
        queued: world.time(),
        holds: pods.iter().map(|pod| (*pod).to_owned()).collect(),
        returns: Vec::new(),
        wants: 0,
        replicas: 1,
    }
}

#[test]
fn the_loss_of_a_pod_is_excused_only_where_an_older_object_was_made_to_name_it() {
    for (forged, made_out, pod, excused) in [
        ("first", false, "pod", true),
        ("first", true, "pod", false),
        ("first", false, "another", false),
        ("second", false, "pod", false),
    ] {
        let mut world = world();
        // Made at the same time, they are told apart by their UIDs.
        let mut first = holds(&world, "first", &[pod]);
        let mut second = holds(&world, "second", &["pod"]);
        assert!(first.sandbox.uid < second.sandbox.uid);
        let (liar, honest) = if forged == "first" {
            (&mut first, second.sandbox.uid.clone())
        } else {
            (&mut second, first.sandbox.uid.clone())
        };
        liar.standing.made_out = made_out;
        world.check.taint(&liar.sandbox.uid.clone(), &[]);
        world.check.note_start(&[first, second]);
        assert_eq!(
            world.check.may_be_taken(&honest, "pod"),
            excused,
            "{forged} names {pod}, made out: {made_out}"
        );
    }
}

#[test]
fn a_pod_named_that_is_not_the_sandboxs_is_found_unless_the_answer_is_still_to_come() {
    for (knows, excused) in [(false, true), (true, false)] {
        let mut world = world();
        write(&mut world, "first", &[(labels::ALLOC_STATUS, r#"["pod"]"#)]);
        let before = version(&world, "first");
        write(
            &mut world,
            "first",
            &[(labels::ALLOC_STATUS, r#"["next"]"#)],
        );
        let heard = if knows {
            version(&world, "first")
        } else {
            before
        };
        let statement = Statement {
            wants: 1,
            ..holds(&world, "first", &["pod"])
        };
        world.check_message("pool", &ToPool::Statement(statement), heard);
        assert_eq!(violation(&world).is_empty(), excused, "knows: {knows}");
    }
}

#[test]
fn a_result_that_is_not_the_truth_is_found() {
    let mut world = world();
    let raw = Arc::clone(world.store.get(Kind::Sandbox, "first").unwrap());
    let version = version(&world, "first");
    let status = json!({
        "replicas": 1, "allocated": 1, "ready": 1, "taskRunning": 0, "taskSucceed": 1,
        "taskFailed": 0, "taskPending": 0, "taskUnknown": 0,
        "taskResults": [{"name": "first-0", "index": 0, "attempt": 0, "state": "Succeeded", "exitCode": 0}],
    });
    let op = Op::SandboxStatus {
        name: "first".to_owned(),
        write: opensandbox_operator::write::SandboxStatusWrite {
            version,
            status: serde_json::from_value(status).unwrap(),
        },
    };
    world.do_now(Actor::Sandbox(store::uid(&raw).to_owned()), op);
    assert!(
        violation(&world).contains("the truth is None"),
        "{}",
        violation(&world)
    );
}
