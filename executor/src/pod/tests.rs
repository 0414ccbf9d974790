//! Pods as directories that look like `/proc`.

use super::fake::{Fake, OTHER, UID, id, usual};
use super::*;

fn mains(pod: &Pod) -> Vec<(char, Option<i32>, Option<&str>)> {
    let containers = pod.containers.iter();
    containers
        .map(|c| {
            let main = c.main.as_ref().map(|main| main.pid);
            (c.id.chars().next().unwrap(), main, c.name.as_deref())
        })
        .collect()
}

#[track_caller]
fn check_usual(cgroup: impl Fn(char) -> String) -> Pod {
    let pod = usual(cgroup).read();
    let expected = [
        ('a', Some(20), Some("sandbox")),
        ('b', Some(30), Some("istio-proxy")),
    ];
    assert_eq!(mains(&pod), expected);
    assert_eq!(pod.uid.as_deref(), Some(UID));
    assert_eq!(pod.own.name.as_deref(), Some("task-executor"));
    assert!(pod.shared_pid_namespace);
    let choice = target::choose(&pod, None, None).unwrap();
    assert_eq!(
        (choice.main.pid, choice.reason),
        (20, target::Reason::Marker)
    );
    pod
}

#[test]
fn a_pod_is_seen_with_every_cgroup_driver() {
    let pod = check_usual(|c| format!("/kubepods/besteffort/pod{UID}/{}", id(c)));
    assert_eq!(pod.own.container_id, Some(id('e')));
    check_usual(|c| {
        let uid = UID.replace('-', "_");
        format!(
            "/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{}.scope",
            id(c)
        )
    });
    let private = |c| match c {
        'e' => "/".to_owned(),
        other => format!("/../{}", id(other)),
    };
    assert_eq!(check_usual(private).own.container_id, None);
}

#[test]
fn children_and_exec_and_nested_cgroups_do_not_hide_the_main_process() {
    let cgroup = |c| format!("/kubepods/pod{UID}/{}", id(c));
    let fake = usual(cgroup);
    // A child that inherited the marker, one in a cgroup below, an exec'd process and an orphan.
    fake.process(5, 20, 210, &cgroup('a'));
    fake.file(5, "environ", "SANDBOX_MAIN_CONTAINER=sandbox\0");
    fake.process(6, 5, 211, &format!("{}/docker/{}", cgroup('a'), id('c')));
    fake.process(21, 0, 205, &cgroup('a'));
    fake.process(8, 1, 206, &cgroup('a'));
    let pod = fake.read();
    assert_eq!(mains(&pod)[0], ('a', Some(20), Some("sandbox")));
    assert_eq!(pod.containers.len(), 2);
    assert_eq!(pod.containers[0].processes.len(), 5);
}

#[test]
fn a_restarted_container_is_the_new_one() {
    let cgroup = |c| format!("/kubepods/pod{UID}/{}", id(c));
    let fake = usual(cgroup);
    // An orphan of the sandbox before, with the marker.
    fake.process(15, 1, 150, &cgroup('d'));
    fake.readable(15, "SANDBOX_MAIN_CONTAINER=sandbox", UID, "sandbox");
    // And one whose main process has just ended: what was exec'd into it does not take its place.
    fake.process_in_state(16, 0, 150, &cgroup('f'), 'Z');
    fake.process(17, 0, 160, &cgroup('f'));
    let pod = fake.read();
    let orphaned = pod.containers.iter().filter(|c| c.main.is_none());
    assert_eq!(orphaned.count(), 2);
    assert_eq!(target::choose(&pod, None, None).unwrap().main.pid, 20);
}

#[test]
fn other_pods_on_the_node_are_left_out() {
    let cgroup = |c| format!("/kubepods/pod{UID}/{}", id(c));
    let fake = Fake::new();
    // The node's PID namespace: init, a shim, and another pod's container with the marker.
    fake.process(1, 0, 1, "/init.scope");
    fake.process(3, 1, 90, "/system.slice/containerd.service");
    fake.process(4, 3, 100, &cgroup('9'));
    fake.process(7, 3, 300, &cgroup('e'));
    fake.readable(7, "", UID, "task-executor");
    fake.process(20, 3, 200, &cgroup('a'));
    fake.readable(20, "", UID, "sandbox");
    fake.process(40, 3, 120, &format!("/kubepods/pod{OTHER}/{}", id('c')));
    fake.readable(40, "SANDBOX_MAIN_CONTAINER=sandbox", OTHER, "sandbox");
    fake.process(41, 3, 120, &format!("/docker/{}", id('d')));
    let pod = fake.read();
    assert_eq!(mains(&pod), [('a', Some(20), Some("sandbox"))]);
    assert_eq!(
        target::choose(&pod, Some("sandbox"), None)
            .unwrap()
            .main
            .pid,
        20
    );
}

#[test]
fn what_cannot_be_read_is_unknown() {
    let cgroup = |c| format!("/kubepods/pod{UID}/{}", id(c));
    let fake = Fake::new();
    fake.process(1, 0, 100, &cgroup('9'));
    fake.process(7, 0, 300, &cgroup('e'));
    fake.process(20, 0, 200, &cgroup('a'));
    // Vanished between the listing and the reading.
    std::fs::create_dir(fake.path().join("33")).unwrap();
    fake.file(34, "stat", "34 (x");
    let pod = fake.read();
    assert_eq!(mains(&pod), [('a', Some(20), None)]);
    assert_eq!(pod.uid.as_deref(), Some(UID), "from the cgroup");
    assert_eq!(pod.own.name, None);
    let main = pod.containers[0].main.as_ref().unwrap();
    assert_eq!((main.uid, &main.environment), (None, &None));
}

#[test]
fn alone_in_its_namespace_a_container_sees_only_itself() {
    let path = format!("/kubepods/pod{UID}/{}", id('e'));
    for cgroup in [path.as_str(), "/"] {
        let fake = Fake::new();
        fake.process(1, 0, 100, cgroup);
        fake.process(7, 1, 300, cgroup);
        fake.readable(7, "SANDBOX_MAIN_CONTAINER=main", UID, "main");
        let pod = fake.read();
        assert!(
            !pod.shared_pid_namespace && pod.containers.is_empty(),
            "{cgroup}"
        );
        assert_eq!(pod.own.marker.as_deref(), Some(&b"main"[..]));
    }
}

#[test]
fn the_configured_uid_is_reported_and_the_seen_one_decides() {
    let fake = usual(|c| format!("/kubepods/pod{UID}/{}", id(c)));
    let pod = Pod::read(&Proc::at(fake.path()), Some("mistyped")).unwrap();
    assert_eq!(pod.uid.as_deref(), Some("mistyped"));
    assert_eq!(pod.seen_uid.as_deref(), Some(UID));
    assert_eq!(pod.containers.len(), 2);
}

#[test]
fn without_proc_there_is_an_error() {
    let empty = tempfile::tempdir().unwrap();
    assert!(Pod::read(&Proc::at(empty.path()), None).is_err());
}
