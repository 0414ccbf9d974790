use super::*;
use crate::pod::Own;
use crate::pod::proc::Environment;

struct Given {
    id: char,
    name: Option<&'static str>,
    main: State,
}

#[derive(Clone, Copy)]
enum State {
    Runs(&'static [&'static str]),
    Unreadable,
    Ended,
}

const PLAIN: State = State::Runs(&["PATH=/bin"]);
const MARKED: State = State::Runs(&["SANDBOX_MAIN_CONTAINER=main"]);

fn main(pid: i32, variables: Option<&[&str]>) -> Main {
    let variables = variables.map(|all| all.iter().map(|v| v.as_bytes().to_vec()).collect());
    Main {
        pid,
        start_time: 1,
        parent: 0,
        uid: Some(1000),
        environment: variables.map(Environment),
    }
}

fn pod(containers: &[Given]) -> Pod {
    let own = Own {
        pid: 7,
        container_id: Some("e".repeat(64)),
        name: Some("task-executor".to_owned()),
        marker: None,
    };
    let containers = containers.iter().zip(10..).map(|(given, pid)| Container {
        id: std::iter::repeat_n(given.id, 64).collect(),
        name: given.name.map(str::to_owned),
        main: match given.main {
            State::Runs(variables) => Some(main(pid, Some(variables))),
            State::Unreadable => Some(main(pid, None)),
            State::Ended => None,
        },
        processes: Vec::new(),
    });
    Pod {
        uid: None,
        seen_uid: None,
        own,
        containers: containers.collect(),
        shared_pid_namespace: true,
    }
}

fn given(id: char, name: &'static str, main: State) -> Given {
    let name = Some(name);
    Given { id, name, main }
}

#[track_caller]
fn check(
    containers: &[Given],
    name: Option<&str>,
    wanted: Option<&str>,
    expected: Result<(char, Reason), &str>,
) {
    let pod = pod(containers);
    let wanted = wanted.map(|text| ContainerRef::parse(text).unwrap());
    let found = choose(&pod, name, wanted.as_ref());
    match (found, expected) {
        (Ok(choice), Ok((id, reason))) => {
            assert!(
                choice.container.id.starts_with(id),
                "{:?}",
                choice.container
            );
            assert_eq!(choice.reason, reason);
        }
        (Err(error), Err(part)) => {
            let text = error.to_string();
            assert!(text.contains(part), "{text}");
        }
        (found, expected) => panic!("{found:?} instead of {expected:?}"),
    }
}

#[test]
fn the_id_of_the_request_decides() {
    let three = || {
        [
            given('a', "main", MARKED),
            given('b', "istio-proxy", PLAIN),
            given('c', "x", State::Ended),
        ]
    };
    let b = "b".repeat(64);
    check(
        &three(),
        Some("main"),
        Some(&format!("containerd://{b}")),
        Ok(('b', Reason::Id)),
    );
    check(
        &three(),
        Some("main"),
        Some(&b[..12]),
        Ok(('b', Reason::Id)),
    );
    let missing = Err("is not among the running containers");
    check(&three(), Some("main"), Some(&"d".repeat(64)), missing);
    check(&three(), None, Some(&"c".repeat(64)), Err("has ended"));
    check(
        &three(),
        None,
        Some(&"e".repeat(64)),
        Err("the executor's own"),
    );
    let twins = [given('a', "x", PLAIN), given('a', "y", PLAIN)];
    check(
        &twins,
        None,
        Some(&"a".repeat(12)),
        Err("more than one container"),
    );
}

#[test]
fn the_marker_comes_before_the_name() {
    let both = [given('a', "x", MARKED), given('b', "main", PLAIN)];
    check(&both, Some("main"), None, Ok(('a', Reason::Marker)));
    check(&both, None, None, Ok(('a', Reason::Marker)));
    // It speaks of another main container than ours.
    let other = [given('a', "x", MARKED), given('b', "sandbox", PLAIN)];
    check(&other, Some("sandbox"), None, Ok(('b', Reason::Name)));
}

#[test]
fn two_markers_are_settled_by_the_name_or_not_at_all() {
    let two = [given('a', "main", MARKED), given('b', "copy", MARKED)];
    check(&two, Some("main"), None, Ok(('a', Reason::Name)));
    check(&two, None, None, Err("set in more than one container"));
    let unnamed = [given('a', "x", MARKED), given('b', "y", MARKED)];
    check(
        &unnamed,
        Some("main"),
        None,
        Err("set in more than one container"),
    );
}

#[test]
fn an_unreadable_environment_is_no_marker() {
    let sidecar = || given('b', "istio-proxy", State::Unreadable);
    check(
        &[given('a', "x", MARKED), sidecar()],
        Some("main"),
        None,
        Ok(('a', Reason::Marker)),
    );
    check(
        &[given('a', "main", PLAIN), sidecar()],
        Some("main"),
        None,
        Ok(('a', Reason::Name)),
    );
    check(
        &[given('a', "x", PLAIN), sidecar()],
        None,
        None,
        Err("more than one container could be"),
    );
}

#[test]
fn the_only_one_is_taken_unless_its_name_is_wrong() {
    check(
        &[given('a', "x", PLAIN)],
        None,
        None,
        Ok(('a', Reason::Only)),
    );
    let unknown = Given {
        id: 'a',
        name: None,
        main: PLAIN,
    };
    check(&[unknown], Some("main"), None, Ok(('a', Reason::Only)));
    // The sandbox container is just restarting.
    let wrong = Err("no container named \"main\" runs");
    check(
        &[given('a', "istio-proxy", PLAIN)],
        Some("main"),
        None,
        wrong,
    );
    check(&[], None, None, Err("no other container"));
    check(
        &[given('a', "x", State::Ended)],
        None,
        None,
        Err("(main process ended)"),
    );
}

#[test]
fn what_is_left_of_a_restarted_container_does_not_count() {
    let restarted = [given('a', "main", State::Ended), given('b', "main", MARKED)];
    check(&restarted, Some("main"), None, Ok(('b', Reason::Marker)));
    let both = [given('a', "main", PLAIN), given('b', "main", PLAIN)];
    check(&both, Some("main"), None, Err("two containers are named"));
}

#[test]
fn an_error_names_all_that_was_seen_and_a_remedy() {
    let pod = pod(&[given('a', "x", PLAIN), given('b', "y", PLAIN)]);
    let text = choose(&pod, None, None).unwrap_err().to_string();
    for part in [
        "x aaaaaaaaaaaa (main process 10)",
        "y bbbbbbbbbbbb",
        "--main-container-name",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn container_ids_are_read_strictly() {
    for good in [
        "0123456789ab",
        &"a".repeat(64),
        "cri-o://0123456789ab",
        "docker://0123456789ab",
    ] {
        assert!(ContainerRef::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "0123456789a",
        "0123456789aB",
        "main",
        "containerd://",
        &"a".repeat(65),
    ] {
        assert!(ContainerRef::parse(bad).is_err(), "{bad}");
    }
}
