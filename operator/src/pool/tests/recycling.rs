//! What becomes of pods that are given back or lost.

use opensandbox_api::labels;

use super::*;

/// A pool of two with this recycle strategy, whose first pod was held by `a` and is given back.
fn given_back(kind: &str, clean: bool) -> (Bench, String, Vec<Output>) {
    given_back_with(&json!({ "type": kind }), &json!({}), clean)
}

fn given_back_with(
    strategy: &Value,
    annotations: &Value,
    clean: bool,
) -> (Bench, String, Vec<Output>) {
    let mut spec = spec((1, 2, 2, 3));
    spec["recycleStrategy"] = strategy.clone();
    let mut bench = Bench::with(&spec, annotations);
    let outputs = bench.wake();
    bench.fill(outputs);
    let name = bench.claim("a", 1).remove(0);
    let outputs = bench.wake();
    bench.fill(outputs);
    let outputs = bench.say(returns("a", &[&name], clean));
    (bench, name, outputs)
}

fn restart(outputs: &[Output]) -> Option<(Vec<String>, Value)> {
    outputs.iter().find_map(|output| match output {
        Output::Restart {
            containers, record, ..
        } => Some((containers.clone(), serde_json::from_str(record).unwrap())),
        _ => None,
    })
}

fn restarted(bench: &mut Bench, name: &str) -> Vec<Output> {
    let view = bench.changed(name, |_| {});
    let uid = view.uid.clone();
    bench.handle(Input::Restarted {
        name: name.to_owned(),
        uid,
        result: Ok(view),
    })
}

#[test]
fn deleted_pods_are_recycled_when_the_deletion_is_accepted() {
    let (mut bench, name, outputs) = given_back("Delete", true);
    assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
    assert_eq!(recycled(&outputs, "a"), [""; 0]);
    let uid = bench.uid(&name);
    let outputs = bench.handle(Input::Deleted {
        name: name.clone(),
        uid,
        result: Ok(()),
    });
    assert_eq!(recycled(&outputs, "a"), [name.as_str()]);
    let outputs = bench.gone(&name);
    assert_eq!(recycled(&outputs, "a"), [""; 0]);
}

#[test]
fn a_deletion_without_a_clear_answer_is_repeated_and_none_is_told_before() {
    let (mut bench, name, _) = given_back("Delete", true);
    let uid = bench.uid(&name);
    let outputs = bench.handle(Input::Deleted {
        name: name.clone(),
        uid: uid.clone(),
        result: Err(WriteError::Unclear {
            message: "timeout".to_owned(),
        }),
    });
    assert_eq!(recycled(&outputs, "a"), [""; 0]);
    assert_eq!(deleted(&outputs), []);
    bench.pass(1_000);
    assert_eq!(deleted(&bench.wake()), [(name.as_str(), None)]);
    let outputs = bench.handle(Input::Deleted {
        name: name.clone(),
        uid,
        result: Err(WriteError::NotFound),
    });
    assert_eq!(recycled(&outputs, "a"), [name]);
}

#[test]
fn kept_pods_are_idle_only_when_no_statement_names_them() {
    let (mut bench, name, outputs) = given_back("Noop", true);
    assert_eq!(recycled(&outputs, "a"), [name.as_str()]);
    assert_eq!(deleted(&outputs), []);
    let (_, other) = granted(&bench.say(wants("b", 5, 1)), "b").unwrap();
    assert_ne!(other, [name.as_str()]);
    let before = bench.ledger.pods.counts().usable;
    bench.say(returns("a", &[], true));
    assert_eq!(bench.ledger.pods.counts().usable, before + 1);
    assert_eq!(bench.ledger.pods.get(&name).unwrap().sandbox(), None);
}

#[test]
fn without_a_proof_a_pod_is_marked_and_deleted_whatever_the_strategy_is() {
    for kind in ["Noop", "Restart"] {
        let (mut bench, name, outputs) = given_back(kind, false);
        assert_eq!(retired(&outputs), [name.as_str()], "{kind}");
        assert!(outputs.contains(&Output::Note(Note::Recycled("DeleteUnproved"))));
        let marked = bench.changed(&name, |pod| pod.retiring = true);
        let uid = marked.uid.clone();
        let outputs = bench.handle(Input::Retired {
            name: name.clone(),
            uid,
            result: Ok(marked),
        });
        assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
    }
}

#[test]
fn a_pod_of_a_sandbox_that_left_is_deleted() {
    let (mut bench, _, _) = given_back("Noop", true);
    let name = bench.claim("b", 1).remove(0);
    let outputs = bench.handle(Input::Sandbox(ToPool::Left {
        sandbox: sandbox("b"),
    }));
    assert_eq!(retired(&outputs), [name.as_str()]);
    assert_eq!(bench.ledger.pods.counts().allocated, 1);
}

#[test]
fn a_restarted_pod_is_idle_when_every_container_is_another_one() {
    let (mut bench, name, outputs) = given_back("Restart", true);
    let (containers, record) = restart(&outputs).unwrap();
    assert_eq!(containers, ["main"]);
    assert_eq!(record["id"], "a");
    assert_eq!(record["retryCount"], 1);
    assert_eq!(
        record["containers"]["main"],
        format!("containerd://{name}-0")
    );
    let outputs = restarted(&mut bench, &name);
    assert_eq!(recycled(&outputs, "a"), [""; 0]);
    let outputs = bench.see(&name, |pod| pod.containers[0].running = false);
    assert_eq!(recycled(&outputs, "a"), [""; 0]);
    let outputs = bench.see(&name, |pod| {
        pod.containers[0].running = true;
        pod.containers[0].id = Some("containerd://other".to_owned());
    });
    assert_eq!(recycled(&outputs, "a"), [name.as_str()]);
    assert!(outputs.contains(&Output::Note(Note::Recycled("Restart"))));
    bench.say(returns("a", &[], true));
    assert_eq!(bench.ledger.pods.get(&name).unwrap().sandbox(), None);
}

#[test]
fn a_restart_that_does_not_work_ends_in_a_deletion() {
    let config = json!({
        labels::RESTART_CONFIG: r#"{"retryInterval":"10s","maxRetries":2,"restartCommand":["stop"]}"#
    });
    let (mut bench, name, outputs) = given_back_with(&json!({ "type": "Restart" }), &config, true);
    assert!(restart(&outputs).is_some());
    restarted(&mut bench, &name);
    bench.pass(9_999);
    assert_eq!(restart(&bench.wake()), None);
    bench.pass(1);
    let (_, record) = restart(&bench.wake()).unwrap();
    assert_eq!(record["retryCount"], 2);
    restarted(&mut bench, &name);
    bench.pass(10_000);
    let outputs = bench.wake();
    assert_eq!(retired(&outputs), [name.as_str()]);
}

#[test]
fn a_container_that_restarted_by_itself_before_is_no_proof() {
    let (mut bench, name, outputs) = given_back("Restart", true);
    assert!(restart(&outputs).is_some());
    // The ledger knew an old picture: the write meets the newer version.
    let uid = bench.uid(&name);
    let outputs = bench.see(&name, |pod| {
        pod.containers[0].id = Some("containerd://second".to_owned());
    });
    assert_eq!(recycled(&outputs, "a"), [""; 0]);
    let outputs = bench.handle(Input::Restarted {
        name: name.clone(),
        uid,
        result: Err(WriteError::Conflict),
    });
    let (_, record) = restart(&outputs).unwrap();
    assert_eq!(record["containers"]["main"], "containerd://second");
}

#[test]
fn a_container_that_restarted_by_itself_before_is_no_proof_when_the_picture_comes_late() {
    let (mut bench, name, outputs) = given_back("Restart", true);
    assert!(restart(&outputs).is_some());
    let uid = bench.uid(&name);
    let outputs = bench.handle(Input::Restarted {
        name: name.clone(),
        uid,
        result: Err(WriteError::Conflict),
    });
    assert_eq!(restart(&outputs), None, "the old picture again");
    let outputs = bench.see(&name, |pod| {
        pod.containers[0].id = Some("containerd://second".to_owned());
    });
    let (containers, record) = restart(&outputs).unwrap();
    assert_eq!(containers, ["main"]);
    assert_eq!(record["containers"]["main"], "containerd://second");
    let outputs = restarted(&mut bench, &name);
    assert_eq!(recycled(&outputs, "a"), [""; 0]);
}

#[test]
fn a_pod_that_does_not_run_or_shares_processes_is_deleted_instead_of_restarted() {
    let mut spec = spec((1, 2, 2, 3));
    spec["recycleStrategy"] = json!({ "type": "Restart" });
    spec["template"]["spec"]["shareProcessNamespace"] = json!(true);
    let mut bench = Bench::with(&spec, &json!({}));
    let outputs = bench.wake();
    bench.fill(outputs);
    let names = bench.claim("a", 2);
    let outputs = bench.say(returns("a", &[&names[0]], true));
    assert_eq!(deleted(&outputs), [(names[0].as_str(), None)]);
    assert_eq!(events(&outputs), ["RestartImpossible"]);

    let (mut bench, _, _) = given_back("Restart", true);
    let name = bench.claim("b", 1).remove(0);
    bench.see(&name, |pod| pod.phase = PodPhase::Unknown);
    let outputs = bench.say(returns("b", &[&name], true));
    assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
}

#[test]
fn lost_pods_are_told_once_with_a_cause() {
    type Lose = fn(&mut Bench, &str) -> Vec<Output>;
    let ways: [(&str, Lose); 3] = [
        ("gone", |bench, name| bench.gone(name)),
        ("deleted", |bench, name| {
            bench.see(name, |pod| pod.deleting = true)
        }),
        ("(Evicted: no room)", |bench, name| {
            bench.see(name, |pod| {
                pod.phase = PodPhase::Failed;
                pod.ready = false;
                pod.trouble = Some(Trouble {
                    reason: "Evicted".to_owned(),
                    message: "no room".to_owned(),
                    error: true,
                });
            })
        }),
    ];
    for (words, lose) in ways {
        let mut bench = Bench::new((1, 2, 2, 3));
        let outputs = bench.wake();
        bench.fill(outputs);
        let name = bench.claim("a", 1).remove(0);
        let outputs = lose(&mut bench, &name);
        let cause = told(&outputs, "a", |message| match message {
            FromPool::Lost { cause, .. } => Some(cause.clone()),
            _ => None,
        });
        assert_eq!(cause.len(), 1, "{words}");
        assert!(cause[0].contains(words), "{cause:?}");
        assert!(outputs.contains(&Output::Note(Note::Lost)));
        // Named until it is replaced; told no second time.
        let again = bench.say(Statement {
            wants: 1,
            ..holds("a", 0, &[&name])
        });
        assert_eq!(lost(&again, "a"), [""; 0]);
        assert!(granted(&again, "a").is_some(), "{words}");
    }
}

#[test]
fn an_ended_pod_makes_room_for_the_one_that_replaces_it() {
    let mut bench = Bench::new((0, 1, 1, 1));
    let outputs = bench.wake();
    bench.fill(outputs);
    let name = bench.claim("a", 1).remove(0);
    let outputs = bench.see(&name, |pod| pod.phase = PodPhase::Failed);
    assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
    let outputs = bench.say(Statement {
        wants: 1,
        ..holds("a", 0, &[&name])
    });
    assert_eq!(created(&outputs).len(), 0);
    assert_eq!(created(&bench.gone(&name)).len(), 1);
}

#[test]
fn without_a_pool_pods_that_are_given_back_are_deleted_and_no_finalizer_hangs() {
    let (mut bench, _, _) = given_back("Noop", true);
    let name = bench.claim("b", 1).remove(0);
    bench.handle(Input::PoolAbsent);
    let outputs = bench.say(returns("b", &[&name, "never-there"], true));
    assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
    assert_eq!(recycled(&outputs, "b"), ["never-there"]);
    let outputs = bench.see(&name, |pod| pod.deleting = true);
    assert_eq!(recycled(&outputs, "b"), [name]);
}

#[test]
fn a_labelled_pod_is_deleted_when_it_is_given_back_and_not_before() {
    let (mut bench, _, _) = given_back("Noop", true);
    let name = bench.claim("b", 1).remove(0);
    let outputs = bench.see(&name, |pod| pod.evict = true);
    assert_eq!((deleted(&outputs).len(), retired(&outputs).len()), (0, 0));
    let outputs = bench.say(returns("b", &[&name], true));
    assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
}

#[test]
fn a_restart_config_that_cannot_be_read_is_said_once_and_the_defaults_hold() {
    for text in [
        "{",
        r#"{"retryInterval":"-1s"}"#,
        r#"{"retryInterval":"999999h"}"#,
        r#"{"maxRetries":-1}"#,
        r#"{"maxRetries":4294967295}"#,
        r#"{"restartCommand":[]}"#,
        r#"{"restartCommand":null,"blacklist":7}"#,
    ] {
        let error = restart::Config::read(text).unwrap_err();
        assert!(error.contains(labels::RESTART_CONFIG), "{error}");
    }
    let long = format!(r#"{{"blacklist":["{}"]}}"#, "x".repeat(10_000));
    assert!(restart::Config::read(&long).is_err());
    assert_eq!(
        restart::Config::read("{}").unwrap(),
        restart::Config::default()
    );
    let spec = spec((0, 1, 0, 1));
    let mut bench = Bench::with(&spec, &json!({}));
    bench.wake();
    let annotations = json!({ labels::RESTART_CONFIG: "{" });
    let outputs = bench.handle(Input::Pool(pool_view(POOL_UID, 5, &spec, &annotations)));
    assert_eq!(events(&outputs), ["InvalidRestartConfig"]);
    let outputs = bench.handle(Input::Pool(pool_view(POOL_UID, 6, &spec, &annotations)));
    assert_eq!(events(&outputs), [""; 0]);
}
