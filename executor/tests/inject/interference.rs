//! Signals, stops and ends in the middle of an injection.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use task_executor::inject::inject;
use task_executor::sys::fd::{pidfd_open, pidfd_send_signal};

use crate::harness::{Target, eventually, status};

/// The `SIGRTMIN + 3` of C libraries.
const REALTIME: i32 = 37;
const SIGKILL: i32 = 9;
const SIGUSR1: i32 = 10;
const SIGSEGV: i32 = 11;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// Sends a signal so much later, by a clock that does not depend on when a sleeper is woken.
fn send_after(pidfd: BorrowedFd<'_>, signal: i32, delay: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < delay {
        std::hint::spin_loop();
    }
    // Whether it still exists is for the test to see.
    let _ = pidfd_send_signal(pidfd, signal);
}

#[test]
fn no_signal_is_lost() {
    let mut target = Target::start(&["signals"]);
    let pidfd = pidfd_open(target.pid).unwrap();
    let enough = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) {
                // Refused when too many wait.
                sent += usize::from(pidfd_send_signal(pidfd.as_fd(), REALTIME).is_ok());
                thread::yield_now();
            }
            sent
        });
        for _ in 0..50 {
            let injected = target.inject(&["ready"]).unwrap();
            assert_eq!(target.ended(injected.pid), "code 42");
        }
        enough.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    pidfd_send_signal(pidfd.as_fd(), SIGTERM).unwrap();
    pidfd_send_signal(pidfd.as_fd(), REALTIME).unwrap();
    assert_eq!(target.line("got "), (sent + 1).to_string());
    let pid = target.pid;
    assert_eq!(target.ended(pid), "code 7");
}

#[test]
fn a_call_with_a_mask_of_its_own_waits_for_its_signal() {
    let mut target = Target::start(&["suspend"]);
    target.wait_for_state('S');
    let before = target.snapshot();
    for _ in 0..20 {
        target.inject(&["ready"]).unwrap();
        target.wait_for_state('S');
    }
    assert!(
        before.contains("SigBlk 0000000000000000"),
        "it sleeps with nothing blocked"
    );
    target.assert_as(&before);
    pidfd_send_signal(pidfd_open(target.pid).unwrap().as_fd(), SIGUSR1).unwrap();
    let pid = target.pid;
    assert_eq!(target.ended(pid), "code 7");
}

#[test]
fn a_fatal_signal_from_outside_is_fatal() {
    for round in 0..30 {
        let mut target = Target::start(&["sleep", "1000000"]);
        let pidfd = pidfd_open(target.pid).unwrap();
        let request = target.request(&["ready"]);
        thread::scope(|scope| {
            scope.spawn(|| send_after(pidfd.as_fd(), SIGSEGV, Duration::from_micros(round * 50)));
            let _ = inject(&request);
        });
        let pid = target.pid;
        assert_eq!(target.ended(pid), "signal 11");
    }
}

#[test]
fn a_stop_of_the_process_takes_effect() {
    let mut target = Target::start(&["sleep", "1000000"]);
    let pidfd = pidfd_open(target.pid).unwrap();
    target.wait_for_state('S');
    let before = target.snapshot();
    for round in 0..60 {
        let request = target.request(&["ready"]);
        let outcome = thread::scope(|scope| {
            let delay = Duration::from_micros(round * 40);
            let pidfd = pidfd.as_fd();
            let sender = scope.spawn(move || send_after(pidfd, SIGSTOP, delay));
            let outcome = inject(&request);
            sender.join().unwrap();
            outcome
        });
        target.wait_for_state('T');
        match outcome {
            Ok(injected) => assert_eq!(target.ended(injected.pid), "code 42"),
            Err(failure) => assert_eq!(failure.reason(), "stopped"),
        }
        pidfd_send_signal(pidfd.as_fd(), SIGCONT).unwrap();
        target.wait_for_state('S');
        target.assert_as(&before);
    }
}

#[test]
fn killed_in_the_middle_nothing_is_left() {
    let mut ended = 0;
    for round in 0..200_u64 {
        let target = if round % 4 == 0 {
            "spinning-threads"
        } else {
            "sleep"
        };
        let mut target = Target::start(&[target, "1000000"]);
        let pidfd = pidfd_open(target.pid).unwrap();
        let request = target.request(&["ready"]);
        let outcome = thread::scope(|scope| {
            let delay = Duration::from_micros(round * 97 % 4000);
            let pidfd = pidfd.as_fd();
            scope.spawn(move || send_after(pidfd, SIGKILL, delay));
            inject(&request)
        });
        let pid = target.pid;
        assert_eq!(target.ended(pid), "signal 9", "round {round}: {outcome:?}");
        match outcome {
            Ok(injected) => assert_eq!(target.ended(injected.pid), "code 42"),
            Err(failure) => {
                ended += 1;
                let reason = failure.reason();
                assert!(
                    matches!(reason, "target_ended" | "no_process" | "zombie"),
                    "round {round}: {failure}"
                );
            }
        }
        eventually("nothing is left", || target.siblings().is_empty());
    }
    assert!(ended > 0, "it was never killed in the middle");
}

#[test]
fn a_stop_signal_from_another_does_not_make_it_ready() {
    // It never stops itself; a SIGSTOP of ours must not be taken for its own.
    let target = Target::start(&["sleep", "1000000"]);
    let mut request = target.request(&["mute"]);
    request.time_limit = Duration::from_millis(500);
    let failure = thread::scope(|scope| {
        let injection = scope.spawn(|| inject(&request));
        eventually("there is a child", || target.siblings().len() > 1);
        for pid in target.siblings() {
            if pid != target.pid {
                eventually("it executes", || status(pid, "Name") != "inject-helper");
                pidfd_send_signal(pidfd_open(pid).unwrap().as_fd(), SIGSTOP).unwrap();
            }
        }
        injection.join().unwrap().unwrap_err()
    });
    assert_eq!(failure.reason(), "agent_not_ready", "{failure}");
    eventually("the child is gone", || target.siblings() == [target.pid]);
}
