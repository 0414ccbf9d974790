use clap::Parser as _;

use super::*;
use crate::pod::Own;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    config: Config,
}

fn config(arguments: &str) -> Config {
    let all = std::iter::once("task-executor").chain(arguments.split_ascii_whitespace());
    Command::try_parse_from(all).unwrap().config
}

fn pod(shared: bool, name: Option<&str>, marker: Option<&str>) -> Pod {
    Pod {
        uid: None,
        seen_uid: None,
        own: Own {
            pid: 7,
            container_id: None,
            name: name.map(str::to_owned),
            marker: marker.map(|value| value.as_bytes().to_vec()),
        },
        containers: Vec::new(),
        shared_pid_namespace: shared,
    }
}

#[test]
fn the_place_of_tasks_is_decided_once_and_never_guessed() {
    use Place::{InContainer, Sidecar};
    for (arguments, pod, expected) in [
        ("--mode=sidecar", pod(true, None, None), Some(Sidecar)),
        ("--mode=inject", pod(true, None, None), Some(Sidecar)),
        ("--mode=chroot", pod(true, None, None), Some(Sidecar)),
        // There is no other container to see, and none can come.
        ("--mode=sidecar", pod(false, None, None), None),
        ("--mode=inject", pod(false, None, None), None),
        ("--mode=chroot", pod(false, None, None), None),
        (
            "--mode=in-container",
            pod(true, None, None),
            Some(InContainer),
        ),
        (
            "--enable-sidecar-mode",
            pod(true, None, None),
            Some(Sidecar),
        ),
        ("--enable-sidecar-mode", pod(false, None, None), None),
        (
            "--enable-sidecar-mode=false",
            pod(false, None, None),
            Some(InContainer),
        ),
        ("", pod(false, None, None), Some(InContainer)),
        ("", pod(true, Some("task-executor"), None), Some(Sidecar)),
        // The executor in the sandbox container of a pod that shares its PID namespace.
        (
            "--main-container-name=main",
            pod(true, Some("main"), None),
            Some(InContainer),
        ),
        (
            "--main-container-name=main",
            pod(true, None, Some("main")),
            Some(InContainer),
        ),
        ("", pod(true, None, Some("main")), Some(InContainer)),
        (
            "--main-container-name=main",
            pod(true, Some("x"), Some("other")),
            Some(Sidecar),
        ),
        // Upstream ran tasks in the executor's container here.
        (
            "--main-container-name=main",
            pod(false, Some("task-executor"), None),
            None,
        ),
        ("--main-container-name=main", pod(false, None, None), None),
    ] {
        let found = mode(&config(arguments), &pod)
            .ok()
            .map(|decision| decision.place);
        assert_eq!(found, expected, "{arguments} {pod:?}");
    }
}

#[test]
fn a_namespace_that_is_not_shared_is_said_with_the_remedy() {
    let config = config("--main-container-name=main");
    let error = mode(&config, &pod(false, Some("task-executor"), None)).unwrap_err();
    let text = error.to_string();
    for part in [
        "\"main\"",
        "task-executor",
        "shareProcessNamespace: true",
        "--mode=in-container",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(error.failure(), StartFailure::NoTarget);
}

#[test]
fn both_refusals_are_told() {
    let error = LaunchError::Refused {
        injection: Some("it is traced".to_owned()),
        chroot: Some("SETUID is missing".to_owned()),
    };
    let text = "the sandbox container cannot be entered: injection: it is traced; chroot: SETUID is missing";
    assert_eq!(error.to_string(), text);
    assert_eq!(error.failure(), StartFailure::InjectionRefused);
    assert_eq!(error.attempt(), Some((Mode::Injected, "refused")));
}

#[test]
fn only_attempts_to_enter_a_container_are_counted() {
    let ended = LaunchError::TargetEnded(7);
    assert_eq!(ended.attempt(), None);
    let by_chroot = LaunchError::Refused {
        injection: None,
        chroot: Some("SETUID is missing".to_owned()),
    };
    assert_eq!(by_chroot.attempt(), Some((Mode::Chroot, "refused")));
}

#[test]
fn what_came_from_outside_is_no_remains() {
    use crate::launch::remains::{Scope, remains};
    use crate::pod::fake::{UID, id, usual};

    let cgroup = |c| format!("/kubepods/pod{UID}/{}", id(c));
    let fake = usual(cgroup);
    // A shell of `kubectl exec`, which has the number of a task's session by now, and its child.
    fake.process_in_session(21, 0, 400, &cgroup('a'), 21);
    fake.process_in_session(22, 21, 401, &cgroup('a'), 21);
    // Orphans of a task: in its session, and below.
    fake.process_in_session(24, 1, 300, &cgroup('a'), 23);
    fake.process_in_session(25, 24, 301, &cgroup('a'), 25);
    // In another container.
    fake.process_in_session(31, 1, 300, &cgroup('b'), 23);
    // A supervisor, with its task.
    fake.process_in_session(26, 1, 302, &cgroup('a'), 26);
    fake.file(26, "cmdline", "task-executor-agent\0injected\0");
    fake.process_in_session(27, 26, 303, &cgroup('a'), 27);
    let container = id('a');
    let found = remains(
        &Proc::at(fake.path()),
        Scope::Container(&container),
        &[21, 23],
    )
    .unwrap();
    let pids: Vec<i32> = found.iter().map(|stat| stat.pid).collect();
    assert_eq!(pids, [24, 25, 26, 27]);
}
