//! What a ledger makes of the objects it starts from.

use super::*;

fn start(pods: Vec<Arc<PodView>>, statements: Vec<Statement>) -> (Bench, Vec<Output>) {
    let pool = pool_view(POOL_UID, 1, &spec((0, 9, 0, 9)), &json!({}));
    let mut bench = Bench::start(Some(pool), pods, statements);
    let outputs = bench.wake();
    (bench, outputs)
}

#[test]
fn a_pod_named_twice_belongs_to_the_older_and_the_other_is_told() {
    let pods = vec![ready_pod("p", &revision()), ready_pod("q", &revision())];
    let statements = vec![holds("young", 5, &["p", "q"]), holds("old", 1, &["p"])];
    let (bench, outputs) = start(pods, statements);
    assert_eq!(lost(&outputs, "young"), ["p"]);
    assert_eq!(lost(&outputs, "old"), [""; 0]);
    assert_eq!(bench.ledger.pods.get("p").unwrap().sandbox(), Some("old"));
    assert_eq!(bench.ledger.pods.get("q").unwrap().sandbox(), Some("young"));
    // Each learns how its pods are.
    let seen = told(&outputs, "young", |message| match message {
        FromPool::Pod(pod) => Some(pod.key.name.clone()),
        _ => None,
    });
    assert_eq!(seen, ["q"]);
}

#[test]
fn neither_waiting_for_more_nor_a_broken_annotation_makes_a_pod_anothers() {
    // The first was created before all others, and waits for a pod since a moment ago.
    let waits = Statement {
        standing: standing(1),
        wants: 1,
        ..holds("waits", 9, &["p"])
    };
    let thief = holds("thief", 2, &["p"]);
    // What can be made out in the oldest names a pod that it gave back.
    let broken = Statement {
        standing: Standing {
            made_out: true,
            ..standing(0)
        },
        ..holds("broken", 0, &["q", "r"])
    };
    let holder = holds("holder", 3, &["q"]);
    let pods = ["p", "q", "r"].map(|name| ready_pod(name, &revision()));
    let (bench, outputs) = start(pods.into(), vec![broken, thief, holder, waits]);
    for (pod, owner) in [("p", "waits"), ("q", "holder"), ("r", "broken")] {
        let owned = bench.ledger.pods.get(pod).unwrap();
        assert_eq!(owned.sandbox(), Some(owner), "{pod}");
    }
    assert_eq!(lost(&outputs, "thief"), ["p"]);
    assert_eq!(lost(&outputs, "broken"), ["q"]);
}

#[test]
fn pods_that_do_not_exist_or_are_not_the_pools_are_lost() {
    let foreign = Arc::new(PodView {
        owner: None,
        ..(*ready_pod("foreign", &revision())).clone()
    });
    let (_, outputs) = start(vec![foreign], vec![holds("a", 0, &["foreign", "missing"])]);
    assert_eq!(lost(&outputs, "a"), ["foreign", "missing"]);
    assert_eq!(deleted(&outputs), []);
}

#[test]
fn a_statement_that_names_others_pods_changes_nothing() {
    let pods = vec![ready_pod("p", &revision()), ready_pod("idle", &revision())];
    let (mut bench, _) = start(pods, vec![holds("a", 0, &["p"])]);
    let outputs = bench.say(holds("thief", 1, &["p", "idle", "none"]));
    assert_eq!(lost(&outputs, "thief"), ["p", "idle", "none"]);
    let outputs = bench.say(returns("thief", &["p", "idle"], true));
    assert_eq!(recycled(&outputs, "thief"), ["p", "idle"]);
    assert_eq!(deleted(&outputs), []);
    assert_eq!(retired(&outputs), [""; 0]);
    assert_eq!(bench.ledger.pods.get("p").unwrap().sandbox(), Some("a"));
    // Said again, it is told nothing again.
    let outputs = bench.say(returns("thief", &["p", "idle"], true));
    assert_eq!(recycled(&outputs, "thief"), [""; 0]);
}

#[test]
fn nothing_is_given_or_removed_until_those_who_wait_have_spoken() {
    let pods = vec![
        ready_pod("p", &revision()),
        ready_pod("q", "0000000000000000"),
    ];
    let pool = pool_view(POOL_UID, 1, &spec((0, 0, 0, 9)), &json!({}));
    let statements = vec![wants("a", 0, 1), wants("b", 1, 1)];
    let mut bench = Bench::start(Some(pool), pods, statements);
    let outputs = bench.wake();
    assert_eq!(granted(&outputs, "a"), None);
    assert_eq!(retired(&outputs), [""; 0]);
    // The earlier leader's last write gave p to a.
    let outputs = bench.say(holds("a", 0, &["p"]));
    assert_eq!(lost(&outputs, "a"), [""; 0]);
    assert_eq!(granted(&outputs, "b"), None);
    let outputs = bench.say(wants("b", 1, 1));
    assert_eq!(granted(&outputs, "b").unwrap().1, ["q"]);
    assert_eq!(bench.ledger.pods.get("p").unwrap().sandbox(), Some("a"));
}

#[test]
fn marked_pods_of_an_earlier_leader_are_deleted_and_held_ones_kept() {
    let marked = |name: &str| {
        Arc::new(PodView {
            retiring: true,
            ..(*ready_pod(name, &revision())).clone()
        })
    };
    let (_, outputs) = start(
        vec![marked("idle"), marked("held")],
        vec![holds("a", 0, &["held"])],
    );
    assert_eq!(deleted(&outputs), [("idle", None)]);
}

#[test]
fn a_held_pod_that_is_to_be_evicted_is_kept_over_a_restart() {
    let labelled = Arc::new(PodView {
        evict: true,
        ..(*ready_pod("p", &revision())).clone()
    });
    let (_, outputs) = start(vec![labelled], vec![holds("a", 0, &["p"])]);
    assert_eq!(deleted(&outputs), []);
    assert_eq!(retired(&outputs), [""; 0]);
}

#[test]
fn pods_of_an_earlier_pool_of_the_name_are_never_given() {
    let (mut bench, _) = start(vec![ready_pod("p", &revision())], vec![]);
    let outputs = bench.handle(Input::Pool(pool_view(
        "pool-2",
        50,
        &spec((0, 9, 0, 9)),
        &json!({}),
    )));
    assert_eq!(deleted(&outputs), []);
    let outputs = bench.say(wants("a", 0, 1));
    assert_eq!(granted(&outputs, "a"), None);
    assert_eq!(created(&outputs).len(), 1);
}

#[test]
fn debug_shows_no_template() {
    let (bench, _) = start(vec![ready_pod("p", &revision())], vec![]);
    let text = format!("{:?}", bench.ledger);
    assert!(!text.contains("i:1"), "{text}");
}

#[test]
fn what_is_wrong_with_a_pool_is_said_at_the_start_unless_it_was_said_before() {
    let annotations = json!({ labels::RESTART_CONFIG: "{" });
    let pool = pool_view(POOL_UID, 1, &spec((0, 1, 0, 1)), &annotations);
    let mut bench = Bench::start(Some(Arc::clone(&pool)), vec![], vec![]);
    assert_eq!(
        events(&bench.handle(Input::Pool(pool))),
        ["InvalidRestartConfig"]
    );

    let pool = pool_view(POOL_UID, 1, &spec((3, 1, 0, 1)), &json!({}));
    let mut bench = Bench::start(Some(Arc::clone(&pool)), vec![], vec![]);
    let outputs = bench.wake();
    assert_eq!(events(&outputs), ["Quarantined"]);
    let stored = Arc::new(PoolView {
        status: written(&outputs).unwrap(),
        ..(*pool).clone()
    });
    let mut bench = Bench::start(Some(stored), vec![], vec![]);
    assert_eq!(events(&bench.wake()), [""; 0]);
}
