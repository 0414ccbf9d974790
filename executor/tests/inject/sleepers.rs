//! Targets that sleep or work: they go on as if nothing had been.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use crate::harness::{BOUND, Target, eventually, root, status, value};

/// Injects until the target ends by itself; how it ended, and how often.
fn inject_until_end(target: &mut Target) -> (String, usize) {
    let mut count = 0;
    let until = Instant::now() + BOUND;
    while !target.has_ended() {
        assert!(Instant::now() < until, "it never ends: {count} injections");
        match target.inject(&["ready"]) {
            Ok(injected) => {
                count += 1;
                assert_eq!(target.ended(injected.pid), "code 42");
            }
            // It may end at any time; that is then how the loop ends, or the shim never tells.
            Err(failure) => assert!(
                matches!(failure.reason(), "target_ended" | "no_process" | "zombie"),
                "{failure}"
            ),
        }
    }
    let pid = target.pid;
    (target.ended(pid), count)
}

fn check(arguments: &[&str]) -> Target {
    let mut target = Target::start(arguments);
    let (end, count) = inject_until_end(&mut target);
    assert_eq!(end, "code 7", "after {count} injections");
    assert!(count > 0);
    target
}

fn check_sleep(call: &str) {
    const MILLIS: u64 = 400;
    // Each injection interrupts it: it would never end if it began anew every time.
    let mut target = check(&[call, &MILLIS.to_string()]);
    let slept: u64 = target.line("slept ").parse().unwrap();
    assert!(slept >= MILLIS, "{slept}");
}

#[test]
fn a_sleep_lasts_as_long_as_it_should() {
    check_sleep("sleep");
}

#[test]
fn a_poll_lasts_as_long_as_it_should() {
    check_sleep("poll");
}

#[test]
fn a_futex_wait_lasts_as_long_as_it_should() {
    check_sleep("futex");
}

#[test]
fn epoll_wait_is_interrupted_at_most_once_for_each() {
    let mut target = Target::start(&["epoll", "300"]);
    let (end, count) = inject_until_end(&mut target);
    assert_eq!(end, "code 7");
    let interruptions: usize = target.line("interrupted ").parse().unwrap();
    assert!(interruptions <= count, "{interruptions} of {count}");
}

#[test]
fn another_thread_spares_the_main_one_an_interruption() {
    let mut target = Target::start(&["epoll-thread", "300"]);
    let injected = target.inject(&["ready"]).unwrap();
    assert_eq!(target.ended(injected.pid), "code 42");
    assert_eq!(target.line("interrupted "), "0");
    let pid = target.pid;
    assert_eq!(target.ended(pid), "code 7");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_restartable_sequence_is_aborted() {
    // Where an injection did not abort it, it would stay in it for ever.
    check(&["restartable", "300"]);
}

#[test]
fn a_process_whose_main_thread_has_ended() {
    let mut target = Target::start(&["main-ended"]);
    eventually("it has ended", || {
        status(target.pid, "State").starts_with('Z')
    });
    for _ in 0..20 {
        let injected = target.inject(&["ready"]).unwrap();
        assert_eq!(target.ended(injected.pid), "code 42");
    }
}

#[test]
fn a_read_goes_on() {
    check(&["read", "300"]);
}

#[test]
fn a_wait_sees_only_its_own_children() {
    check(&["wait", "300"]);
}

#[test]
fn computing_goes_on_with_all_registers() {
    const ROUNDS: &str = "100000000";
    let undisturbed = {
        let mut target = Target::start(&["busy", ROUNDS]);
        let pid = target.pid;
        assert_eq!(target.ended(pid), "code 7");
        target.line("sum ")
    };
    assert_eq!(check(&["busy", ROUNDS]).line("sum "), undisturbed);
}

#[test]
fn eight_busy_threads_count_to_the_end() {
    check(&["threads", "60000000"]);
}

#[test]
fn signals_of_timers_arrive() {
    check(&["timer", "400"]);
}

#[test]
fn two_hundred_injections_leave_nothing() {
    let mut target = Target::start(&["sleep", "1000000"]);
    target.wait_for_state('S');
    // The first interruption turns the call into `restart_syscall`, for good.
    let _ = target.registers();
    target.wait_for_state('S');
    let registers = target.registers();
    target.wait_for_state('S');
    let before = target.snapshot();
    for _ in 0..200 {
        let injected = target.inject(&["ready"]).unwrap();
        assert_eq!(target.ended(injected.pid), "code 42");
    }
    target.wait_for_state('S');
    assert_eq!(target.snapshot(), before);
    assert_eq!(
        format!("{:?}", target.registers()),
        format!("{registers:?}")
    );
    assert_eq!(status(target.pid, "TracerPid"), "0");
    assert_eq!(target.siblings(), [target.pid]);
}

#[test]
fn what_is_injected_has_what_the_target_has() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let report = directory.path().join("report");
    let report_name = report.to_str().unwrap();
    let user = root().then_some(1000);
    let mut target = Target::start_as(user, &["deny", "none"]);
    target.wait_for_state('S');
    let injected = target
        .inject(&["report", report_name, "an argument"])
        .unwrap();
    assert_eq!(target.ended(injected.pid), "code 42");
    let report = fs::read_to_string(report).unwrap();
    for name in [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "PPid",
    ] {
        assert_eq!(value(&report, name), status(target.pid, name), "{name}");
    }
    assert_eq!(value(&report, "Seccomp"), "2");
    assert_eq!(value(&report, "TracerPid"), injected_by_us(&report));
    assert_eq!(value(&report, "SigBlk"), "0000000000000000");
    let cwd = fs::read_link(format!("/proc/{}/cwd", target.pid)).unwrap();
    assert_eq!(value(&report, "cwd"), cwd.to_str().unwrap());
    assert_eq!(value(&report, "argument"), "an argument");
    assert_eq!(value(&report, "variable"), "value of it");
    assert_eq!(value(&report, "sealed"), "1");
    if user.is_some() {
        assert_eq!(
            value(&report, "dumpable"),
            "0",
            "from its first instruction"
        );
    }
}

/// While it writes its report it is still traced.
fn injected_by_us(report: &str) -> String {
    let tracer = value(report, "TracerPid");
    assert_ne!(tracer, "0");
    tracer
}

#[test]
fn what_is_injected_stays_untraced_and_known_for_good() {
    let target = Target::start(&["spinning-threads"]);
    let injected = target.inject(&["stay"]).unwrap();
    assert_eq!(status(injected.pid, "TracerPid"), "0");
    eventually("it goes on", || {
        status(injected.pid, "State").starts_with('S')
    });
    assert_eq!(
        crate::harness::start_time(injected.pid),
        injected.start_time
    );
    task_executor::sys::fd::pidfd_send_signal(std::os::fd::AsFd::as_fd(&injected.pidfd), 9)
        .unwrap();
    eventually("it is reaped", || target.siblings() == [target.pid]);
}
