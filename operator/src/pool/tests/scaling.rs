//! How many pods there are: creations, removals, updates, replacements.

use opensandbox_api::conditions;

use super::*;

fn refused() -> WriteError {
    WriteError::Refused {
        reason: "Forbidden".to_owned(),
        message: "exceeded quota".to_owned(),
    }
}

fn unclear() -> WriteError {
    WriteError::Unclear {
        message: "timeout".to_owned(),
    }
}

fn answer(bench: &mut Bench, name: &str, result: Result<Arc<PodView>, WriteError>) -> Vec<Output> {
    bench.handle(Input::Created {
        name: name.to_owned(),
        result,
    })
}

#[test]
fn a_fresh_pool_grows_to_its_minimum_and_then_is_quiet() {
    let mut bench = Bench::new((1, 2, 3, 5));
    let outputs = bench.wake();
    assert_eq!(created(&outputs).len(), 3);
    assert_eq!(bench.fill(outputs).len(), 3);
    bench.handle(Input::StatusWritten(Ok(Version(2))));
    bench.pass(1_000);
    let outputs = bench.wake();
    assert!(written(&outputs).is_some());
    bench.handle(Input::StatusWritten(Ok(Version(3))));
    for _ in 0..100 {
        bench.pass(60_000);
        assert_eq!(bench.wake(), []);
    }
}

#[test]
fn growth_is_bounded_by_pods_that_are_not_ready() {
    let mut spec = spec((10, 10, 10, 20));
    spec["scaleStrategy"] = json!({ "maxUnavailable": "25%" });
    let mut bench = Bench::with(&spec, &json!({}));
    let outputs = bench.wake();
    assert_eq!(created(&outputs).len(), 3);
    assert_eq!(bench.fill(outputs).len(), 10);
}

#[test]
fn terminating_pods_and_creations_under_way_count_against_pool_max() {
    let mut bench = Bench::new((0, 2, 2, 2));
    let outputs = bench.wake();
    let names = bench.fill(outputs);
    let outputs = bench.see(&names[0], |pod| pod.deleting = true);
    assert_eq!(created(&outputs).len(), 0);
    assert_eq!(created(&bench.gone(&names[0])).len(), 1);
    assert_eq!(created(&bench.wake()).len(), 0);
}

#[test]
fn a_creation_without_a_clear_answer_is_repeated_under_the_same_name() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    let name = created(&outputs)[0].to_owned();
    assert_eq!(created(&answer(&mut bench, &name, Err(unclear()))).len(), 0);
    bench.pass(1_000);
    let outputs = bench.wake();
    assert_eq!(created(&outputs), [name.as_str()]);
    // It had been made: no other pod is, and the watch brings it.
    let outputs = answer(&mut bench, &name, Err(WriteError::AlreadyExists));
    assert_eq!(created(&outputs).len(), 0);
    let outputs = bench.handle(Input::Pod(ready_pod(&name, &revision())));
    assert_eq!(created(&outputs).len(), 0);
    bench.pass(120_000);
    assert_eq!(created(&bench.wake()).len(), 0);
}

#[test]
fn a_refused_repetition_does_not_forget_that_an_earlier_try_may_have_worked() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    let name = created(&outputs)[0].to_owned();
    answer(&mut bench, &name, Err(unclear()));
    bench.pass(1_000);
    assert_eq!(created(&bench.wake()), [name.as_str()]);
    answer(&mut bench, &name, Err(refused()));
    bench.pass(30_000);
    assert_eq!(created(&bench.wake()).len(), 0);
    bench.pass(30_000);
    assert_eq!(created(&bench.wake()).len(), 1);
}

#[test]
fn of_two_tries_without_an_answer_each_may_have_made_a_pod() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    let name = created(&outputs)[0].to_owned();
    answer(&mut bench, &name, Err(unclear()));
    bench.pass(1_000);
    assert_eq!(created(&bench.wake()), [name.as_str()]);
    answer(&mut bench, &name, Err(unclear()));
    // The first one's pod is gone before the second: the watch, which lags, shows it only now.
    bench.handle(Input::Pod(ready_pod(&name, &revision())));
    assert_eq!(created(&bench.gone(&name)).len(), 0, "there may be another");
    bench.pass(59_000);
    assert_eq!(created(&bench.wake()).len(), 0);
    bench.pass(1_000);
    assert_eq!(created(&bench.wake()).len(), 1, "there is none");
}

#[test]
fn a_name_that_another_has_is_not_tried_again() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    let name = created(&outputs)[0].to_owned();
    let outputs = answer(&mut bench, &name, Err(WriteError::AlreadyExists));
    assert_eq!(created(&outputs).len(), 1);
    assert_ne!(created(&outputs), [name.as_str()]);
}

#[test]
fn a_refused_creation_is_tried_again_ever_more_seldom_and_said_once() {
    let mut bench = Bench::new((1, 1, 3, 3));
    let mut outputs = bench.wake();
    let names: Vec<String> = created(&outputs).into_iter().map(str::to_owned).collect();
    assert_eq!(names.len(), 3);
    let mut said = Vec::new();
    for name in &names {
        outputs = answer(&mut bench, name, Err(refused()));
        said.extend(events(&outputs));
        assert_eq!(created(&outputs).len(), 0);
    }
    assert_eq!(said, ["FailedCreate"]);
    bench.handle(Input::StatusWritten(Ok(Version(2))));
    bench.pass(999);
    let outputs = bench.wake();
    assert_eq!(created(&outputs).len(), 0);
    let status = written(&outputs).unwrap();
    let condition = conditions::find(&status.conditions, "PodCreationFailed").unwrap();
    assert_eq!(condition.status, "True");
    assert!(
        condition.message.contains("exceeded quota"),
        "{}",
        condition.message
    );
    let mut tries = 0;
    for _ in 0..3_600 {
        bench.pass(1_000);
        let outputs = bench.wake();
        for name in created(&outputs) {
            tries += 1;
            let outputs = answer(&mut bench, name, Err(refused()));
            assert_eq!(events(&outputs), [""; 0]);
        }
    }
    assert!((10..=25).contains(&tries), "{tries}");
    // As soon as it works, all come.
    bench.pass(300_000);
    let outputs = bench.wake();
    assert_eq!(bench.fill(outputs).len(), 3);
}

#[test]
fn lowering_pool_max_trims_idle_pods_those_not_ready_first() {
    let mut bench = Bench::new((0, 9, 4, 9));
    let outputs = bench.wake();
    let names = bench.fill(outputs);
    let claimed = bench.claim("a", 1);
    bench.see(&names[3], |pod| pod.ready = false);
    let outputs = bench.handle(Input::Pool(pool_view(
        POOL_UID,
        9,
        &spec((0, 1, 0, 2)),
        &json!({}),
    )));
    assert_eq!(deleted(&outputs).len(), 1);
    assert_eq!(deleted(&outputs)[0].0, names[3]);
    assert!(
        deleted(&outputs)[0].1.is_some(),
        "with the version as precondition"
    );
    assert_eq!(retired(&outputs).len(), 1);
    assert_ne!(retired(&outputs), [claimed[0].as_str()]);
}

#[test]
fn a_ready_pod_goes_in_two_steps_and_a_conflict_stops_it() {
    let mut bench = Bench::new((0, 9, 1, 9));
    let outputs = bench.wake();
    let name = bench.fill(outputs).remove(0);
    let outputs = bench.see(&name, |pod| pod.evict = true);
    assert_eq!(retired(&outputs), [name.as_str()]);
    assert_eq!(deleted(&outputs), []);
    let uid = bench.uid(&name);
    let outputs = bench.handle(Input::Retired {
        name: name.clone(),
        uid: uid.clone(),
        result: Err(WriteError::Conflict),
    });
    assert_eq!(retired(&outputs), [""; 0], "not before the change is seen");
    let outputs = bench.see(&name, |pod| pod.evict = true);
    assert_eq!(retired(&outputs), [name.as_str()]);
    let marked = bench.changed(&name, |pod| pod.retiring = true);
    let outputs = bench.handle(Input::Retired {
        name: name.clone(),
        uid: uid.clone(),
        result: Ok(marked),
    });
    assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
    let outputs = bench.handle(Input::Deleted {
        name,
        uid,
        result: Ok(()),
    });
    assert_eq!(events(&outputs), ["PodEvicted"]);
}

/// Of a pod that comes and goes while the watch is interrupted, the watch says nothing at all.
#[test]
fn a_pod_that_the_watch_never_showed_takes_no_room_once_it_is_deleted() {
    let mut bench = Bench::new((0, 1, 1, 1));
    let outputs = bench.wake();
    let name = created(&outputs)[0].to_owned();
    let less = spec((0, 0, 0, 1));
    bench.handle(Input::Pool(pool_view(POOL_UID, 9, &less, &json!({}))));
    let view = bench.made(&name, &json!({}));
    let uid = view.uid.clone();
    let outputs = answer(&mut bench, &name, Ok(Arc::new(view)));
    assert_eq!(deleted(&outputs).len(), 1);
    let accepted = |bench: &mut Bench, result| {
        let (name, uid) = (name.clone(), uid.clone());
        bench.handle(Input::Deleted { name, uid, result })
    };
    accepted(&mut bench, Ok(()));
    let more = spec((0, 1, 1, 1));
    let outputs = bench.handle(Input::Pool(pool_view(POOL_UID, 10, &more, &json!({}))));
    assert_eq!(created(&outputs), [""; 0], "it may be there");
    bench.now = bench.ledger.wake.expect("it asks");
    let mut outputs = bench.wake();
    while deleted(&outputs).is_empty() {
        bench.now = bench.ledger.wake.expect("it asks");
        outputs = bench.wake();
    }
    assert_eq!(deleted(&outputs), [(name.as_str(), None)]);
    let outputs = accepted(&mut bench, Err(WriteError::NotFound));
    assert_eq!(created(&outputs).len(), 1);
    assert_eq!(bench.ledger.pods.counts().leaving, 0);
}

#[test]
fn a_pod_that_the_watch_shows_to_be_deleted_is_not_deleted_again() {
    let mut bench = Bench::new((0, 1, 1, 1));
    let outputs = bench.wake();
    let name = bench.fill(outputs).remove(0);
    let uid = bench.uid(&name);
    bench.see(&name, |pod| pod.ready = false);
    let less = spec((0, 0, 0, 0));
    let outputs = bench.handle(Input::Pool(pool_view(POOL_UID, 9, &less, &json!({}))));
    assert_eq!(deleted(&outputs).len(), 1);
    bench.handle(Input::Deleted {
        name: name.clone(),
        uid,
        result: Ok(()),
    });
    bench.see(&name, |pod| pod.deleting = true);
    for _ in 0..100 {
        bench.pass(60_000);
        assert_eq!(deleted(&bench.wake()), []);
    }
}

#[test]
fn a_pod_that_changed_unseen_and_ended_unseen_is_replaced() {
    let mut bench = Bench::new((0, 1, 1, 1));
    let outputs = bench.wake();
    let name = created(&outputs)[0].to_owned();
    let less = spec((0, 0, 0, 1));
    bench.handle(Input::Pool(pool_view(POOL_UID, 9, &less, &json!({}))));
    let view = bench.made(&name, &json!({}));
    let uid = view.uid.clone();
    let outputs = answer(&mut bench, &name, Ok(Arc::new(view)));
    assert_eq!(deleted(&outputs).len(), 1);
    bench.handle(Input::Deleted {
        name: name.clone(),
        uid: uid.clone(),
        result: Err(WriteError::Conflict),
    });
    let more = spec((0, 1, 1, 1));
    bench.handle(Input::Pool(pool_view(POOL_UID, 10, &more, &json!({}))));
    bench.pass(300_000);
    let outputs = bench.wake();
    assert_eq!(deleted(&outputs).len(), 1);
    let result = Err(WriteError::NotFound);
    let outputs = bench.handle(Input::Deleted { name, uid, result });
    assert_eq!(created(&outputs).len(), 1);
}

#[test]
fn a_new_template_replaces_idle_pods_within_the_budget_and_no_held_one() {
    let mut old = spec((4, 4, 5, 10));
    old["updateStrategy"] = json!({ "maxUnavailable": 1 });
    let mut bench = Bench::with(&old, &json!({}));
    let outputs = bench.wake();
    bench.fill(outputs);
    let held = bench.claim("a", 1).remove(0);
    old["template"]["spec"]["containers"][0]["image"] = json!("i:2");
    let mut outputs = bench.handle(Input::Pool(pool_view(POOL_UID, 9, &old, &json!({}))));
    let mut replaced = 0;
    while let Some(name) = retired(&outputs).first().map(|name| (*name).to_owned()) {
        assert_eq!(retired(&outputs).len(), 1);
        assert_ne!(name, held);
        replaced += 1;
        let marked = bench.changed(&name, |pod| pod.retiring = true);
        let uid = marked.uid.clone();
        let mut next = bench.handle(Input::Retired {
            name: name.clone(),
            uid: uid.clone(),
            result: Ok(marked),
        });
        next.extend(bench.handle(Input::Deleted {
            name: name.clone(),
            uid,
            result: Ok(()),
        }));
        next.extend(bench.gone(&name));
        outputs.extend(next);
        let mut more = Vec::new();
        for (name, pod) in outputs.iter().filter_map(|output| match output {
            Output::CreatePod { name, pod } => Some((name, pod)),
            _ => None,
        }) {
            let view = bench.made(name, pod);
            more.extend(answer(&mut bench, name, Ok(Arc::new(view.clone()))));
            let ready = bench.ready(&view);
            more.extend(bench.handle(Input::Pod(ready)));
        }
        outputs = more;
    }
    assert_eq!(replaced, 4);
    assert_eq!(bench.ledger.pods.counts().outdated_idle, 0);
    assert_eq!(bench.ledger.pods.counts().total(), 5);
}

#[test]
fn another_executor_image_replaces_no_pod() {
    let mut bench = Bench::new((2, 2, 2, 4));
    let outputs = bench.wake();
    bench.fill(outputs);
    let mut facts = (*injection(InjectionDefault::Enabled)).clone();
    facts.settings.image.value = "executor:2".to_owned();
    let outputs = bench.handle(Input::Injection(Arc::new(facts)));
    assert_eq!((retired(&outputs).len(), deleted(&outputs).len()), (0, 0));
}

#[test]
fn pods_that_never_work_are_replaced_ever_more_seldom_and_the_status_says_why() {
    let mut bench = Bench::new((1, 1, 1, 2));
    let mut outputs = bench.wake();
    let mut replaced = 0;
    let mut said = Vec::new();
    let mut words = String::new();
    let mut steps = 0;
    while bench.now < at(3_600_000) {
        steps += 1;
        assert!(steps < 10_000);
        let mut next = Vec::new();
        said.extend(events(&outputs));
        if let Some(status) = written(&outputs) {
            let ready = conditions::find(&status.conditions, "Ready").unwrap();
            assert_eq!(ready.status, "False");
            words.clone_from(&ready.message);
            let version = bench.version();
            next.extend(bench.handle(Input::StatusWritten(Ok(version))));
        }
        for output in &outputs {
            match output {
                Output::CreatePod { name, pod } => {
                    let view = PodView {
                        trouble: Some(Trouble {
                            reason: "ErrImagePull".to_owned(),
                            message: "no such image".to_owned(),
                            error: true,
                        }),
                        ..bench.made(name, pod)
                    };
                    next.extend(answer(&mut bench, name, Ok(Arc::new(view))));
                }
                Output::DeletePod { name, uid, .. } => {
                    replaced += 1;
                    next.extend(bench.handle(Input::Deleted {
                        name: name.clone(),
                        uid: uid.clone(),
                        result: Ok(()),
                    }));
                    next.extend(bench.gone(name));
                }
                _ => {}
            }
        }
        if next.is_empty() {
            bench.now = bench.ledger.wake.expect("it goes on trying").max(bench.now);
            next = bench.wake();
        }
        outputs = next;
    }
    assert!((10..=30).contains(&replaced), "{replaced}");
    assert_eq!(said, ["PodsReplaced"]);
    assert!(words.contains("ErrImagePull: no such image"), "{words}");
}

#[test]
fn ended_idle_pods_are_replaced_at_once_and_pods_that_are_not_ready_any_more_soon() {
    let mut bench = Bench::new((2, 2, 2, 4));
    let outputs = bench.wake();
    let names = bench.fill(outputs);
    let outputs = bench.see(&names[0], |pod| {
        pod.phase = PodPhase::Failed;
        pod.ready = false;
    });
    assert_eq!(deleted(&outputs)[0].0, names[0]);
    assert_eq!(created(&outputs).len(), 1);
    bench.pass(10_000);
    let since = bench.now;
    let outputs = bench.see(&names[1], |pod| {
        pod.ready = false;
        pod.ready_since = Some(since);
    });
    assert_eq!(deleted(&outputs), []);
    bench.pass(29_999);
    assert!(
        deleted(&bench.wake())
            .iter()
            .all(|(name, _)| *name != names[1])
    );
    bench.pass(1);
    assert!(
        deleted(&bench.wake())
            .iter()
            .any(|(name, _)| *name == names[1])
    );
}

#[test]
fn pods_that_start_or_start_again_have_five_minutes_to_become_ready() {
    let mut bench = Bench::new((1, 1, 1, 4));
    let outputs = bench.wake();
    let names = bench.fill(outputs);
    let since = bench.now;
    bench.see(&names[0], |pod| {
        pod.ready = false;
        pod.ready_since = Some(since);
        pod.containers = vec![ContainerView {
            name: "main".to_owned(),
            id: Some("containerd://another".to_owned()),
            running: true,
        }];
    });
    bench.pass(299_999);
    assert_eq!(deleted(&bench.wake()), []);
    bench.pass(1);
    assert_eq!(deleted(&bench.wake())[0].0, names[0]);
}

#[test]
fn a_pool_that_breaks_a_rule_is_left_alone() {
    let mut bench = Bench::new((2, 2, 2, 4));
    let outputs = bench.wake();
    let names = bench.fill(outputs);
    for (version, broken) in [
        (20, spec((3, 2, 0, 1))),
        (21, spec((0, 0, -1, 0))),
        (22, json!({})),
    ] {
        let outputs = bench.handle(Input::Pool(pool_view(
            POOL_UID,
            version,
            &broken,
            &json!({}),
        )));
        assert_eq!((retired(&outputs).len(), deleted(&outputs).len()), (0, 0));
        assert_eq!(created(&outputs).len(), 0);
        assert_eq!(events(&outputs).len(), usize::from(version == 20));
    }
    assert_eq!(created(&bench.gone(&names[0])).len(), 0);
}
