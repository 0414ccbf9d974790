//! What cannot be done is refused with its reason, and leaves the target as it was.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use nix::sys::ptrace as tracing;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, gettid};
use task_executor::inject::{Failure, Injected, Precondition, Verdict, check, inject};
use task_executor::sys::capability::{self, Sets};
use task_executor::sys::fd::{pidfd_open, pidfd_send_signal};
use task_executor::sys::ptrace::{Resume, resume};

use crate::harness::{Target, eventually, request, root, start_time, status};

/// See capabilities(7).
const CAP_FOWNER: u32 = 3;

/// The target is refused and is as it was.
#[track_caller]
fn refused(target: &Target) -> Failure {
    let before = target.snapshot();
    let failure = target.inject(&["ready"]).unwrap_err();
    target.assert_as(&before);
    // A child that could not execute has ended; its reaper may need a moment.
    eventually("nothing else is left", || target.siblings() == [target.pid]);
    failure
}

#[track_caller]
fn says(failure: &Failure, reason: &str, words: &[&str]) {
    assert_eq!(failure.reason(), reason, "{failure}");
    let text = failure.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

fn verdict(pid: i32, precondition: Precondition) -> Verdict {
    let findings = check(pid);
    findings
        .iter()
        .find(|finding| finding.precondition == precondition)
        .unwrap()
        .verdict
}

#[test]
fn one_that_is_traced() {
    let target = Target::start(&["sleep", "1000000"]);
    target.wait_for_state('S');
    assert_eq!(verdict(target.pid, Precondition::NotTraced), Verdict::Holds);
    let pid = Pid::from_raw(target.pid);
    tracing::seize(pid, tracing::Options::empty()).unwrap();
    let tracer = status(target.pid, "TracerPid");
    let failure = refused(&target);
    says(
        &failure,
        "already_traced",
        &[&format!("by process {tracer}")],
    );
    assert_eq!(verdict(target.pid, Precondition::NotTraced), Verdict::Fails);
    tracing::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    says(&refused(&target), "already_traced", &[&tracer]);
    resume(target.pid, Resume::Detached, 0).unwrap();
}

#[test]
fn one_that_is_stopped() {
    let target = Target::start(&["spinning-threads"]);
    let pidfd = pidfd_open(target.pid).unwrap();
    pidfd_send_signal(pidfd.as_fd(), 19).unwrap();
    target.wait_for_state('T');
    says(&refused(&target), "stopped", &["state T", "SIGCONT"]);
    assert_eq!(
        verdict(target.pid, Precondition::NotStopped),
        Verdict::Fails
    );
    target.wait_for_state('T');
}

#[test]
fn one_that_has_ended() {
    let mut target = Target::start(&["zombie"]);
    let zombie: i32 = target.line("zombie ").parse().unwrap();
    eventually("it is a zombie", || {
        status(zombie, "State").starts_with('Z')
    });
    let failure = inject(&request(zombie, start_time(zombie), &["ready"])).unwrap_err();
    says(&failure, "zombie", &["has ended"]);
    assert_eq!(verdict(zombie, Precondition::Alive), Verdict::Fails);
    assert!(status(zombie, "State").starts_with('Z'));
}

#[test]
fn one_that_is_another() {
    let target = Target::start(&["sleep", "1000000"]);
    let failure = inject(&request(target.pid, target.start_time() + 1, &["ready"])).unwrap_err();
    says(&failure, "no_process", &["no longer exists"]);
    // No pid is as high.
    let failure = inject(&request(i32::MAX, 1, &["ready"])).unwrap_err();
    says(&failure, "no_process", &[]);
    assert_eq!(check(i32::MAX)[0].verdict, Verdict::Fails);
}

#[test]
fn requests_that_cannot_be_meant() {
    let target = Target::start(&["sleep", "1000000"]);
    let mut nul = target.request(&["ready"]);
    nul.envp.push(b"SECRET=a\0b".to_vec());
    says(&inject(&nul).unwrap_err(), "invalid", &["NUL"]);
    assert!(!format!("{nul:?}").contains("SECRET"));
    let mut empty = target.request(&["ready"]);
    empty.argv.clear();
    says(&inject(&empty).unwrap_err(), "invalid", &["no arguments"]);
    let own = i32::try_from(std::process::id()).unwrap();
    says(
        &inject(&request(own, start_time(own), &[])).unwrap_err(),
        "invalid",
        &["another process"],
    );
}

#[cfg(target_arch = "x86_64")]
#[test]
fn one_of_32_bits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("i386");
    fs::write(&path, i386_program()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let target = Target::run(None, &[path.to_str().unwrap()]);
    eventually("it executes", || {
        fs::read_link(format!("/proc/{}/exe", target.pid)).is_ok_and(|exe| exe == path)
    });
    target.wait_for_state('S');
    says(
        &refused(&target),
        "foreign_architecture",
        &["32-bit", "x86_64"],
    );
    assert_eq!(
        verdict(target.pid, Precondition::Architecture),
        Verdict::Fails
    );
}

/// A program that calls `pause` for ever.
#[cfg(target_arch = "x86_64")]
fn i386_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let code: &[u8] = &[
        0xb8, 29, 0, 0, 0, // mov $29, %eax
        0xcd, 0x80, // int $0x80
        0xeb, 0xf7, // jmp to the start
    ];
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
    file.resize(16, 0);
    for half in [2_u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let size = HEADERS + u32::try_from(code.len()).unwrap();
    for word in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[test]
fn ones_whose_seccomp_filter_denies_a_call() {
    for call in ["memfd_create", "execveat", "clone"] {
        for (how, errno) in [("deny", "EPERM"), ("trap", "ENOSYS")] {
            let target = Target::start(&[how, call]);
            target.wait_for_state('S');
            let failure = refused(&target);
            says(
                &failure,
                "seccomp_refused",
                &["seccomp filter", call, errno],
            );
            assert_eq!(verdict(target.pid, Precondition::Seccomp), Verdict::Unknown);
            target.wait_for_state('S');
        }
    }
}

/// Who owns the memfd may set its mode: the target's user, or who has `CAP_FOWNER`.
#[test]
fn one_that_may_not_set_a_mode_where_we_may_not_either() {
    assert!(root(), "a right has to be there to be dropped");
    let user = Some(54_325);
    let has_mode = |target: &Target, injected: &Injected| {
        let program = fs::metadata(format!("/proc/{}/exe", injected.pid)).unwrap();
        assert_eq!(program.permissions().mode() & 0o7777, 0o111);
        pidfd_send_signal(injected.pidfd.as_fd(), 9).unwrap();
        eventually("it has ended", || target.siblings() == [target.pid]);
    };

    let denies = Target::start_as(user, &["deny", "fchmod"]);
    denies.wait_for_state('S');
    has_mode(&denies, &denies.inject(&["stay"]).unwrap());

    let on_a_thread_without_the_right = |target: &Target| {
        let request = target.request(&["stay"]);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let has = u64::from_str_radix(&status(gettid().as_raw(), "CapEff"), 16).unwrap();
                let sets = Sets {
                    permitted: has,
                    effective: has & !(1 << CAP_FOWNER),
                    inheritable: 0,
                };
                capability::set(sets).unwrap();
                inject(&request)
            });
            thread.join().unwrap()
        })
    };
    let allows = Target::start_as(user, &["sleep", "1000000"]);
    allows.wait_for_state('S');
    has_mode(&allows, &on_a_thread_without_the_right(&allows).unwrap());

    let before = denies.snapshot();
    let failure = on_a_thread_without_the_right(&denies).unwrap_err();
    says(
        &failure,
        "seccomp_refused",
        &["seccomp filter", "fchmod", "EPERM"],
    );
    denies.assert_as(&before);
}

#[test]
fn one_without_descriptors() {
    let target = Target::start(&["no-descriptors"]);
    target.wait_for_state('S');
    says(
        &refused(&target),
        "memfd_refused",
        &["RLIMIT_NOFILE", "EMFILE"],
    );
}

#[test]
fn one_without_memory() {
    let target = Target::start(&["no-memory"]);
    target.wait_for_state('S');
    says(
        &refused(&target),
        "call_failed",
        &["mmap", "RLIMIT_AS", "ENOMEM"],
    );
}

#[test]
fn one_without_processes() {
    // The limit counts all processes of a user, and binds no root.
    assert!(
        root(),
        "this test becomes another user, so it has to run as root"
    );
    let target = Target::start_as(Some(54_321), &["no-processes"]);
    target.wait_for_state('S');
    says(
        &refused(&target),
        "call_failed",
        &["clone", "RLIMIT_NPROC", "EAGAIN"],
    );
}

/// A target that is the first process of a PID namespace, and its outer one.
fn first_process(memfd_noexec: &str) -> (i32, Target) {
    assert!(root(), "a PID namespace takes root");
    let mut target = Target::start(&["first-process", memfd_noexec]);
    let first: i32 = target.line("first ").parse().unwrap();
    target.line("restricted");
    eventually("it sleeps", || status(first, "State").starts_with('S'));
    (first, target)
}

#[test]
fn one_that_may_not_execute_memfds() {
    let (first, _outer) = first_process("2");
    let failure = inject(&request(first, start_time(first), &["ready"])).unwrap_err();
    says(
        &failure,
        "memfd_refused",
        &["EACCES", "vm.memfd_noexec is 2"],
    );
    assert_eq!(status(first, "TracerPid"), "0");
}

#[test]
fn one_that_is_the_first_of_its_namespace() {
    // With 1, memfds can be executed if that is asked for.
    let (first, _outer) = first_process("1");
    let failure = inject(&request(first, start_time(first), &["ready"])).unwrap_err();
    says(
        &failure,
        "call_failed",
        &["clone", "EINVAL", "first process of a PID namespace"],
    );
    assert_eq!(status(first, "TracerPid"), "0");
}

#[test]
fn one_in_uninterruptible_sleep() {
    let mut target = Target::start(&["vfork", "1500"]);
    target.wait_for_state('D');
    let mut request = target.request(&["ready"]);
    request.time_limit = Duration::from_millis(300);
    let failure = inject(&request).unwrap_err();
    says(&failure, "stuck", &["state of the last: D"]);
    assert_eq!(status(target.pid, "TracerPid"), "0");
    let pid = target.pid;
    assert_eq!(target.ended(pid), "code 7");
}

#[test]
fn another_thread_serves_when_the_main_one_is_stuck() {
    let mut target = Target::start(&["vfork-thread", "3000"]);
    eventually("it is stuck", || {
        status(target.pid, "State").starts_with('D')
    });
    let injected = target.inject(&["ready"]).unwrap();
    assert_eq!(target.ended(injected.pid), "code 42");
    let pid = target.pid;
    assert_eq!(target.ended(pid), "code 7");
}

#[test]
fn a_program_that_ends_early() {
    let target = Target::start(&["sleep", "1000000"]);
    target.wait_for_state('S');
    let before = target.snapshot();
    let failure = target.inject(&["early"]).unwrap_err();
    says(&failure, "agent_ended", &["ended with code 5"]);
    target.assert_as(&before);
    eventually("it is reaped", || target.siblings() == [target.pid]);
}

#[test]
fn a_program_that_is_never_ready() {
    let target = Target::start(&["sleep", "1000000"]);
    target.wait_for_state('S');
    let before = target.snapshot();
    let mut request = target.request(&["mute"]);
    request.time_limit = Duration::from_millis(200);
    says(
        &inject(&request).unwrap_err(),
        "agent_not_ready",
        &["200 ms"],
    );
    target.assert_as(&before);
    eventually("it is killed and reaped", || {
        target.siblings() == [target.pid]
    });
}

#[test]
fn a_program_that_is_none() {
    let target = Target::start(&["sleep", "1000000"]);
    target.wait_for_state('S');
    let before = target.snapshot();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("text");
    fs::write(&path, "no program").unwrap();
    let mut request = target.request(&["ready"]);
    request.program = fs::File::open(path).unwrap();
    says(
        &inject(&request).unwrap_err(),
        "call_failed",
        &["execveat", "ENOEXEC", "architecture"],
    );
    target.assert_as(&before);
    eventually("the child is reaped", || target.siblings() == [target.pid]);
}

#[test]
fn arguments_that_are_too_long() {
    let target = Target::start(&["sleep", "1000000"]);
    target.wait_for_state('S');
    let before = target.snapshot();
    let mut request = target.request(&["ready"]);
    request.argv.push(vec![b'x'; 200 * 1024]);
    says(
        &inject(&request).unwrap_err(),
        "call_failed",
        &["execveat", "E2BIG", "too long"],
    );
    target.assert_as(&before);
    eventually("the child is reaped", || target.siblings() == [target.pid]);
}

/// Runs a test of this file as another user, on a target.
fn as_user(user: u32, name: &str, target: &Target) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", &format!("failures::{name}")])
        .env("TARGET", target.pid.to_string())
        .uid(user)
        .gid(user)
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn given() -> i32 {
    std::env::var("TARGET")
        .expect("run by another test")
        .parse()
        .unwrap()
}

#[test]
fn one_that_we_may_not_trace() {
    assert!(
        root(),
        "this test becomes other users, so it has to run as root"
    );
    let target = Target::start_as(Some(54_322), &["sleep", "1000000"]);
    target.wait_for_state('S');
    let before = target.snapshot();
    as_user(54_323, "is_refused", &target);
    target.assert_as(&before);
}

#[test]
#[ignore = "run as another user by `one_that_we_may_not_trace`"]
fn is_refused() {
    let pid = given();
    let failure = inject(&crate::harness::request_as_built(pid)).unwrap_err();
    says(
        &failure,
        "ptrace_refused",
        &["EPERM", "CAP_SYS_PTRACE", "as user 54322, we as 54323"],
    );
    assert_eq!(verdict(pid, Precondition::MayTrace), Verdict::Fails);
}

#[test]
fn one_of_the_same_user_needs_no_capability() {
    assert!(
        root(),
        "this test becomes other users, so it has to run as root"
    );
    let target = Target::start_as(Some(54_324), &["sleep", "1000000"]);
    target.wait_for_state('S');
    let before = target.snapshot();
    as_user(54_324, "is_served", &target);
    target.assert_as(&before);
}

#[test]
#[ignore = "run as another user by `one_of_the_same_user_needs_no_capability`"]
fn is_served() {
    inject(&crate::harness::request_as_built(given())).unwrap();
}
