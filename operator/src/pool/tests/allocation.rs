//! Who gets which pods, and what those who wait are told.

use opensandbox_api::conditions::reason;

use super::*;

#[test]
fn a_warm_claim_is_met_at_once_and_told_nothing_else() {
    let mut bench = Bench::new((3, 3, 3, 10));
    let outputs = bench.wake();
    assert_eq!(bench.fill(outputs).len(), 3);
    let outputs = bench.say(wants("a", 0, 2));
    let (grant, pods) = granted(&outputs, "a").unwrap();
    assert_eq!(pods.len(), 2);
    assert_eq!(waiting(&outputs, "a"), []);
    let names: Vec<&str> = pods.iter().map(String::as_str).collect();
    bench.say(holds("a", 0, &names));
    let outputs = bench.answer("a", grant, true);
    assert!(lost(&outputs, "a").is_empty());
}

#[test]
fn older_ready_pods_of_the_current_template_are_given_first() {
    let pool = pool_view(POOL_UID, 1, &spec((0, 9, 0, 9)), &json!({}));
    let old = Arc::new(PodView {
        ready_since: Some(at(-50)),
        ..(*ready_pod("old", "0000000000000000")).clone()
    });
    let newer = Arc::new(PodView {
        ready_since: Some(at(10)),
        ..(*ready_pod("newer", &revision())).clone()
    });
    let pods = vec![old, newer, ready_pod("first", &revision())];
    let mut bench = Bench::start(Some(pool), pods, Vec::new());
    let outputs = bench.say(wants("a", 0, 3));
    assert_eq!(granted(&outputs, "a").unwrap().1, ["first", "newer", "old"]);
}

type Spoil = fn(&mut PodView);

#[test]
fn pods_that_are_not_fit_are_never_given() {
    let pool = pool_view(POOL_UID, 1, &spec((0, 9, 0, 9)), &json!({}));
    let spoil: [(&str, Spoil); 7] = [
        ("evicted", |pod| pod.evict = true),
        ("deleting", |pod| pod.deleting = true),
        ("retiring", |pod| pod.retiring = true),
        ("no-address", |pod| pod.ip = None),
        ("unready", |pod| pod.ready = false),
        ("ended", |pod| pod.phase = PodPhase::Failed),
        ("foreign", |pod| pod.owner = None),
    ];
    let pods = spoil
        .iter()
        .map(|(name, spoil)| {
            let mut pod = (*ready_pod(name, &revision())).clone();
            spoil(&mut pod);
            Arc::new(pod)
        })
        .collect();
    let mut bench = Bench::start(Some(pool), pods, Vec::new());
    let outputs = bench.say(wants("a", 0, 1));
    assert_eq!(granted(&outputs, "a"), None);
}

#[test]
fn first_come_first_served_and_the_first_gets_what_there_is() {
    let mut bench = Bench::new((0, 5, 0, 2));
    let outputs = bench.say(wants("late", 20, 1));
    let outputs_early = bench.say(wants("early", 10, 2));
    // Two pods for three that are asked for: poolMax is 2.
    let mut made = created(&outputs).len();
    made += created(&outputs_early).len();
    assert_eq!(made, 2);
    let told = waits(&outputs_early, "late");
    assert_eq!(told.reason, reason::POOL_CAPACITY_EXHAUSTED);
    let told = waits(&outputs_early, "early");
    assert_eq!(told.reason, reason::PODS_STARTING, "{}", told.message);
    assert!(told.message.contains("2 of 2"), "{}", told.message);
    let names: Vec<String> = [outputs, outputs_early]
        .into_iter()
        .flat_map(|outputs| bench.fill(outputs))
        .collect();
    assert_eq!(names.len(), 2);
    let early = bench.ledger.members.get("early").unwrap();
    assert_eq!(early.grant.as_ref().unwrap().pods.len(), 2);
    assert!(bench.ledger.members.get("late").unwrap().grant.is_none());
}

#[test]
fn pods_that_come_one_by_one_are_given_together() {
    let mut bench = Bench::new((0, 5, 0, 5));
    let outputs = bench.say(wants("a", 0, 3));
    let names: Vec<(String, Arc<Value>)> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::CreatePod { name, pod } => Some((name.clone(), Arc::clone(pod))),
            _ => None,
        })
        .collect();
    let mut views = Vec::new();
    for (name, pod) in &names {
        let view = bench.made(name, pod);
        views.push(view.clone());
        bench.handle(Input::Created {
            name: name.clone(),
            result: Ok(Arc::new(view)),
        });
    }
    let first = bench.ready(&views[0]);
    let outputs = bench.handle(Input::Pod(first));
    assert_eq!(granted(&outputs, "a"), None);
    assert_eq!(
        wake_at(&outputs),
        Some(bench.now + SignedDuration::from_millis(50))
    );
    bench.pass(20);
    let second = bench.ready(&views[1]);
    assert_eq!(granted(&bench.handle(Input::Pod(second)), "a"), None);
    bench.pass(30);
    let outputs = bench.wake();
    assert_eq!(granted(&outputs, "a").unwrap().1.len(), 2);
    let told = waits(&outputs, "a");
    assert!(told.message.contains("1 of 3"), "{}", told.message);
    // One offer at a time.
    let third = bench.ready(&views[2]);
    assert_eq!(granted(&bench.handle(Input::Pod(third)), "a"), None);
}

#[test]
fn a_demand_that_never_fits_does_not_hold_up_others() {
    let mut bench = Bench::new((0, 2, 0, 2));
    let outputs = bench.say(wants("huge", 0, 9));
    let told = waits(&outputs, "huge");
    assert_eq!(told.reason, reason::POOL_CAPACITY_EXHAUSTED);
    assert!(
        told.message.contains("raise poolMax to 9"),
        "{}",
        told.message
    );
    bench.say(wants("small", 5, 1));
    assert_eq!(bench.fill(outputs).len(), 2);
    let offered = |uid: &str| {
        bench
            .ledger
            .members
            .get(uid)
            .unwrap()
            .grant
            .as_ref()
            .unwrap()
            .pods
            .len()
    };
    assert_eq!((offered("small"), offered("huge")), (1, 1));
}

#[test]
fn the_end_of_waiting_is_told_with_the_offer() {
    let mut bench = Bench::new((0, 2, 0, 2));
    let outputs = bench.say(wants("a", 0, 1));
    waits(&outputs, "a");
    let (name, pod) = outputs
        .iter()
        .find_map(|output| match output {
            Output::CreatePod { name, pod } => Some((name.clone(), Arc::clone(pod))),
            _ => None,
        })
        .unwrap();
    let view = bench.made(&name, &pod);
    bench.handle(Input::Created {
        name,
        result: Ok(Arc::new(view.clone())),
    });
    let ready = bench.ready(&view);
    let outputs = bench.handle(Input::Pod(ready));
    assert!(granted(&outputs, "a").is_some());
    assert_eq!(waiting(&outputs, "a"), [None]);
}

#[test]
fn nothing_is_given_without_a_pool_and_the_reason_is_told() {
    let mut bench = Bench::start(None, vec![ready_pod("p", "r")], Vec::new());
    let outputs = bench.say(wants("a", 0, 1));
    assert_eq!(granted(&outputs, "a"), None);
    assert_eq!(waits(&outputs, "a").reason, reason::POOL_NOT_FOUND);
    let view = PoolView {
        deleting: true,
        ..(*pool_view(POOL_UID, 20, &spec((0, 1, 0, 1)), &json!({}))).clone()
    };
    let outputs = bench.handle(Input::Pool(Arc::new(view)));
    assert_eq!(waits(&outputs, "a").reason, reason::POOL_DELETED);
    assert_eq!(deleted(&outputs), []);
    let view = pool_view(POOL_UID, 21, &spec((3, 1, 0, 1)), &json!({}));
    let outputs = bench.handle(Input::Pool(view));
    assert_eq!(waits(&outputs, "a").reason, reason::INVALID_SPEC);
    let view = pool_view(POOL_UID, 22, &spec((0, 1, 0, 1)), &json!({}));
    let outputs = bench.handle(Input::Pool(view));
    assert_eq!(granted(&outputs, "a").unwrap().1, ["p"]);
}

#[test]
fn a_sandbox_that_declines_again_and_again_does_not_make_a_loop() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    bench.fill(outputs);
    let mut outputs = bench.say(wants("a", 0, 1));
    let mut offers = 0;
    while let Some((grant, _)) = granted(&outputs, "a") {
        offers += 1;
        assert!(offers < 5);
        outputs = bench.answer("a", grant, false);
    }
    // Others are served meanwhile.
    assert!(granted(&bench.say(wants("b", 1, 1)), "b").is_some());
}

#[test]
fn an_answer_to_another_offer_says_nothing() {
    let mut bench = Bench::new((1, 1, 1, 1));
    let outputs = bench.wake();
    bench.fill(outputs);
    let (grant, _) = granted(&bench.say(wants("a", 0, 1)), "a").unwrap();
    bench.answer("a", grant.wrapping_add(1), false);
    bench.answer("b", grant, false);
    assert_eq!(bench.ledger.pods.counts().reserved, 1);
}

#[test]
fn ten_thousand_claims_are_met_from_ten_thousand_pods() {
    let pool = pool_view(POOL_UID, 1, &spec((0, 20_000, 0, 20_000)), &json!({}));
    let pods = (0..10_000)
        .map(|number| ready_pod(&format!("p{number}"), &revision()))
        .collect();
    let mut bench = Bench::start(Some(pool), pods, Vec::new());
    bench.wake();
    for number in 0..10_000 {
        assert_eq!(bench.claim(&format!("s{number}"), 1).len(), 1);
    }
    assert_eq!(bench.ledger.pods.counts().allocated, 10_000);
}
