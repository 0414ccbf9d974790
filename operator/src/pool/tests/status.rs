//! What the Pool's status says, and how often it is written.

use opensandbox_api::conditions;
use opensandbox_api::v1alpha1::CapacitySpec;

use super::*;

fn condition(status: &PoolStatus, type_: &str) -> (bool, String) {
    let condition = conditions::find(&status.conditions, type_).unwrap();
    (condition.status == "True", condition.reason.clone())
}

#[test]
fn false_conditions_are_written_as_false() {
    let mut bench = Bench::new((0, 1, 0, 1));
    let status = written(&bench.wake()).unwrap();
    assert_eq!(condition(&status, "Ready"), (true, "PodsReady".to_owned()));
    assert_eq!(
        condition(&status, "Progressing"),
        (false, "Stable".to_owned())
    );
    assert_eq!(
        condition(&status, "PodCreationFailed"),
        (false, "PodCreated".to_owned())
    );
    assert_eq!(
        condition(&status, "Quarantined"),
        (false, "Readable".to_owned())
    );
    assert_eq!(
        condition(&status, "InjectionUpToDate"),
        (true, "InjectionDisabled".to_owned())
    );
    assert_eq!(status.revision, revision());
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn what_the_pool_asks_for_is_noted_once_and_when_it_changes() {
    let asked = |outputs: &[Output]| {
        let notes = outputs.iter().filter_map(|output| match output {
            Output::Note(note @ Note::Asked { .. }) => Some(note.clone()),
            _ => None,
        });
        notes.collect::<Vec<_>>()
    };
    let expected = |numbers: Numbers, injection| Note::Asked {
        capacity: Some(CapacitySpec {
            buffer_min: numbers.0,
            buffer_max: numbers.1,
            pool_min: numbers.2,
            pool_max: numbers.3,
        }),
        injection: Some(injection),
    };
    let mut bench = Bench::new((0, 1, 0, 1));
    assert_eq!(asked(&bench.wake()), [expected((0, 1, 0, 1), "off")]);
    assert_eq!(asked(&bench.wake()), []);
    let edited = pool_view(POOL_UID, 2, &spec((0, 1, 0, 7)), &json!({}));
    let outputs = bench.handle(Input::Pool(edited));
    assert_eq!(asked(&outputs), [expected((0, 1, 0, 7), "off")]);
    let enabled = injection(InjectionDefault::Enabled);
    let outputs = bench.handle(Input::Injection(enabled));
    assert_eq!(asked(&outputs), [expected((0, 1, 0, 7), "current")]);
    let outputs = bench.handle(Input::PoolAbsent);
    let nothing = Note::Asked {
        capacity: None,
        injection: None,
    };
    assert_eq!(asked(&outputs), [nothing]);
}

#[test]
fn the_numbers_are_those_of_the_pods() {
    let mut bench = Bench::new((2, 3, 4, 9));
    let outputs = bench.wake();
    let names = bench.fill(outputs);
    bench.claim("a", 2);
    let idle = names
        .iter()
        .find(|name| bench.ledger.pods.get(name).unwrap().sandbox().is_none())
        .unwrap()
        .clone();
    bench.see(&idle, |pod| pod.ready = false);
    bench.handle(Input::StatusWritten(Ok(Version(2))));
    bench.pass(100);
    let status = written(&bench.wake()).unwrap();
    let numbers = (
        status.total,
        status.allocated,
        status.available,
        status.updated,
    );
    assert_eq!(numbers, (4, 2, 1, Some(4)));
}

#[test]
fn one_write_at_a_time_and_the_changes_meanwhile_in_one() {
    let mut bench = Bench::new((1, 3, 3, 9));
    let outputs = bench.wake();
    assert!(written(&outputs).is_some());
    let outputs: Vec<Output> = outputs
        .into_iter()
        .filter(|output| !matches!(output, Output::WriteStatus { .. }))
        .collect();
    let names = bench.fill(outputs);
    assert_eq!(names.len(), 3);
    let outputs = bench.handle(Input::StatusWritten(Ok(Version(2))));
    assert_eq!(written(&outputs), None, "less than 100 ms after the last");
    assert_eq!(
        wake_at(&outputs),
        Some(bench.now + SignedDuration::from_millis(100))
    );
    bench.pass(100);
    let outputs = bench.wake();
    let Some(Output::WriteStatus { version, status }) = outputs
        .iter()
        .find(|output| matches!(output, Output::WriteStatus { .. }))
    else {
        panic!("{outputs:?}");
    };
    assert_eq!(
        *version,
        Version(2),
        "the version that the write before made"
    );
    assert_eq!(status.available, 3);
}

#[test]
fn a_conflict_waits_for_the_newer_pool() {
    let mut bench = Bench::new((0, 1, 0, 1));
    bench.wake();
    let outputs = bench.handle(Input::StatusWritten(Err(WriteError::Conflict)));
    assert_eq!(written(&outputs), None);
    bench.pass(1_000);
    assert_eq!(written(&bench.wake()), None);
    let view = pool_view(POOL_UID, 5, &spec((0, 1, 0, 1)), &json!({}));
    let outputs = bench.handle(Input::Pool(view));
    assert!(outputs.iter().any(
        |output| matches!(output, Output::WriteStatus { version, .. } if *version == Version(5))
    ));
}

#[test]
fn what_is_stored_already_is_not_written_after_a_restart() {
    let mut bench = Bench::new((0, 1, 0, 1));
    let status = written(&bench.wake()).unwrap();
    let view = PoolView {
        status,
        ..(*pool_view(POOL_UID, 1, &spec((0, 1, 0, 1)), &json!({}))).clone()
    };
    let mut bench = Bench::start(Some(Arc::new(view)), Vec::new(), Vec::new());
    bench.pass(500_000);
    assert_eq!(written(&bench.wake()), None);
}

#[test]
fn a_status_that_somebody_else_writes_too_is_not_fought_over() {
    let mut bench = Bench::new((0, 1, 0, 1));
    let mut writes = 0;
    let mut outputs = bench.wake();
    for version in 2..1_000 {
        if written(&outputs).is_some() {
            writes += 1;
            bench.handle(Input::StatusWritten(Ok(Version(version * 2))));
        }
        bench.pass(200);
        // An older CRD drops a field that was written.
        let view = PoolView {
            generation: 1,
            ..(*pool_view(POOL_UID, version * 2 + 1, &spec((0, 1, 0, 1)), &json!({}))).clone()
        };
        outputs = bench.handle(Input::Pool(Arc::new(view)));
    }
    assert!(writes <= 2, "{writes}");
}

#[test]
fn a_stale_pool_is_not_believed() {
    let mut bench = Bench::new((0, 1, 0, 1));
    bench.wake();
    bench.handle(Input::StatusWritten(Ok(Version(9))));
    let outputs = bench.handle(Input::Pool(pool_view(
        POOL_UID,
        8,
        &spec((5, 5, 5, 5)),
        &json!({}),
    )));
    assert_eq!(created(&outputs).len(), 0);
}
