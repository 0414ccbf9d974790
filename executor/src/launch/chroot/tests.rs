use super::*;

fn status(uid: u32, effective: u64) -> Status {
    let ids = Ids {
        real: uid,
        effective: uid,
        saved: uid,
    };
    Status {
        uids: ids,
        gids: ids,
        groups: Vec::new(),
        umask: None,
        tracer: 0,
        capabilities: Capabilities {
            permitted: effective,
            effective,
            ..Capabilities::default()
        },
        no_new_privs: false,
        seccomp: 0,
    }
}

fn set(numbers: &[u32]) -> u64 {
    numbers
        .iter()
        .fold(0, |set, number| set | capability::bit(*number))
}

#[track_caller]
fn check(own: &Status, target: &Status, expected: &[&str]) {
    let needs = missing(own, target);
    let names: Vec<String> = needs
        .iter()
        .map(|need| capability::name(need.capability))
        .collect();
    assert_eq!(names, expected);
}

#[test]
fn needs_depend_on_who_is_entered() {
    use capability::{SETGID, SETUID, SYS_CHROOT, SYS_PTRACE};
    let usual = set(&[SYS_CHROOT, SETUID, SETGID]);
    check(
        &status(0, usual | set(&[SYS_PTRACE])),
        &status(1000, 0),
        &[],
    );
    check(&status(0, usual), &status(1000, 0), &["SYS_PTRACE"]);
    check(&status(0, usual), &status(0, usual), &[]);
    check(&status(0, usual), &status(0, usual | 1), &["SYS_PTRACE"]);
    check(&status(1000, 0), &status(1000, 0), &["SYS_CHROOT"]);
    check(&status(1000, set(&[SYS_CHROOT])), &status(1000, 0), &[]);
    let mut grouped = status(1000, 0);
    grouped.groups = vec![3, 2];
    check(&status(1000, set(&[SYS_CHROOT])), &grouped, &["SETGID"]);
    check(
        &status(1000, 0),
        &status(0, 0),
        &["SYS_CHROOT", "SETUID", "SETGID", "SYS_PTRACE"],
    );
}

#[test]
fn nothing_is_kept_that_the_target_has_not_nor_a_way_out_of_the_root() {
    use capability::{KILL, SYS_CHROOT, SYS_PTRACE};
    let own = status(0, set(&[KILL, SYS_CHROOT, SYS_PTRACE])).capabilities;
    let target = status(0, set(&[0, KILL, SYS_CHROOT])).capabilities;
    assert_eq!(wanted(own, target).permitted, set(&[KILL]));
    assert_eq!(wanted(own, target).effective, set(&[KILL]));
    assert_eq!(
        wanted(own, Capabilities::default()),
        Capabilities::default()
    );
}

#[test]
fn only_whole_arguments_are_taken() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(parse(&words("chroot 12 34")), Some((12, 34)));
    for bad in [
        "",
        "chroot",
        "chroot 12",
        "chroot 12 x",
        "chroot 1 2 3",
        "root 12 34",
    ] {
        assert_eq!(parse(&words(bad)), None, "{bad}");
    }
    assert!(enter(&[]).is_ok());
}

#[test]
fn what_is_missing_is_named_with_the_remedy() {
    let text = Failure::Missing(missing(&status(1000, 0), &status(0, 0))).to_string();
    for part in [
        "SYS_CHROOT",
        "SETUID",
        "SETGID",
        "SYS_PTRACE",
        "capabilities.add",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
