//! Tasks and how they have to end: every exit code, every signal that ends a process, every way not to
//! start, time limits and stops.

use opensandbox_api::task::{End, Outcome, Process, StartFailure, StoppedBy};

/// Where [`PREPARE`] puts files.
pub(super) const FILES: &str = "/tmp/outcomes";

/// A shell script that makes what the cases need.
pub(super) const PREPARE: &str = r"set -eu
mkdir -p /tmp/outcomes/cores /tmp/outcomes/bin /tmp/outcomes/directory
cd /tmp/outcomes
echo 'exit 0' > text; chmod 644 text
echo 'exit 0' > noshebang; : > empty; printf '\177ELFgarbage' > garbage
printf '#!/nope/interpreter\n' > nointerpreter
printf '#!/tmp/outcomes/text\n' > badinterpreter
printf '#!/bin/sh\nexit 42\n' > bin/only-here
chmod 755 noshebang empty garbage nointerpreter badinterpreter bin/only-here
ln -sf loop loop
";

/// A task and its truth.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// What it is about.
    pub(super) about: String,
    pub(super) process: Process,
    /// It is deleted once it has printed `ready`.
    pub(super) stop: bool,
    /// A directory in which a core is if and only if the task's end says so.
    pub(super) core_directory: Option<String>,
    /// Without duration and without messages.
    pub(super) expected: Outcome,
    /// Part of the message of one that is not started.
    pub(super) message: &'static str,
    /// The least number of milliseconds it takes.
    pub(super) at_least_millis: u64,
}

/// `count` cases; all kinds are among the first [`base`] ones.
pub(super) fn cases(count: usize) -> Vec<Case> {
    let base = base();
    let mut cases: Vec<_> = (0..count)
        .filter_map(|index| {
            let mut case = base.get(index % base.len())?.clone();
            if let Some(directory) = &mut case.core_directory {
                *directory = format!("{FILES}/cores/{index}");
                let script = case.process.command.last_mut()?;
                *script = script.replace("DIRECTORY", directory);
            }
            Some(case)
        })
        .collect();
    // Spread, so that at any time many kinds run. Any fixed order will do.
    let mut place = 0;
    cases.sort_by_cached_key(|_| {
        place += 1_u32;
        place.wrapping_mul(0x9e37_79b1)
    });
    cases
}

fn base() -> Vec<Case> {
    let mut cases: Vec<Case> = (0..=255)
        .map(|code| sh(&format!("exit {code}"), exited(code)))
        .collect();
    cases.extend(signals());
    cases.extend(not_started());
    cases.extend(limits());
    cases.extend(stops());
    cases
}

/// Signals that end a process which does not handle them, by number; those of which a core may be
/// dumped.
const FATAL: [i32; 23] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31,
];
const WITH_CORE: [i32; 10] = [3, 4, 5, 6, 7, 8, 11, 24, 25, 31];
/// Signals that are ignored by default: CHLD, CONT, URG, WINCH.
const IGNORED: [i32; 4] = [17, 18, 23, 28];

fn signals() -> Vec<Case> {
    // 32 and 33 belong to the C library.
    let numbers = FATAL.into_iter().chain(34..=64);
    let mut cases: Vec<_> = numbers
        .map(|signal| {
            sh(
                &format!("ulimit -c 0; kill -{signal} $$; exit 99"),
                signaled(signal),
            )
        })
        .collect();
    cases.extend(IGNORED.map(|signal| sh(&format!("kill -{signal} $$; exit 5"), exited(5))));
    for signal in WITH_CORE {
        let script = format!(
            "mkdir DIRECTORY && cd DIRECTORY && ulimit -c unlimited && kill -{signal} $$; exit 99"
        );
        let mut case = sh(&script, signaled(signal));
        // Compared with the directory instead.
        case.core_directory = Some(String::new());
        cases.push(case);
    }
    // Where no file can be made there is no core, whatever the limit.
    cases.push(sh(
        "cd /proc; ulimit -c unlimited; kill -11 $$",
        signaled(11),
    ));
    // One that looks like a signal and is none.
    cases.push(sh("exit 137 # by itself", exited(137)));
    // The shell ends as its child did, and was not killed itself.
    cases.push(sh("sh -c 'kill -9 $$'; exit $?", exited(137)));
    // Another process does it.
    cases.push(sh(
        "sleep 60 & kill -15 $!; wait $!; kill -10 $$",
        signaled(10),
    ));
    cases
}

fn not_started() -> Vec<Case> {
    use StartFailure::{BadWorkingDirectory, NotExecutable, NotFound};
    let missing = "No such file or directory";
    let mut cases: Vec<_> = [
        ("/nope/program", NotFound, missing),
        ("no-such-program", NotFound, missing),
        ("/etc/passwd/program", NotFound, "Not a directory"),
        ("/tmp/outcomes/nointerpreter", NotFound, missing),
        ("/tmp/outcomes/text", NotExecutable, "Permission denied"),
        (
            "/tmp/outcomes/badinterpreter",
            NotExecutable,
            "Permission denied",
        ),
        (
            "/tmp/outcomes/directory",
            NotExecutable,
            "Permission denied",
        ),
        (
            "/tmp/outcomes/noshebang",
            NotExecutable,
            "Exec format error",
        ),
        ("/tmp/outcomes/empty", NotExecutable, "Exec format error"),
        ("/tmp/outcomes/garbage", NotExecutable, "Exec format error"),
        ("/tmp/outcomes/loop", NotExecutable, "symbolic links"),
        ("outcomes/../bin/sh", NotFound, missing),
    ]
    .into_iter()
    .map(|(program, failure, message)| {
        let mut case = of(&[program], failed(failure));
        case.message = message;
        case
    })
    .collect();
    for (directory, message) in [
        ("/nope", missing),
        ("/etc/passwd", "Not a directory"),
        ("/root", "Permission denied"),
    ] {
        let mut case = of(&["true"], failed(BadWorkingDirectory));
        directory.clone_into(&mut case.process.working_dir);
        case.about = format!("workingDir {directory}");
        case.message = message;
        cases.push(case);
    }
    let path = |path: &str, program: &str, expected| {
        let mut case = of(&[program], expected);
        case.about = format!("{program} in {path}");
        case.process.env = vec![opensandbox_tests::executor::variable("PATH", path)];
        case.message = if matches!(case.expected.end, End::NotStarted { .. }) {
            missing
        } else {
            ""
        };
        case
    };
    cases.push(path("/nowhere", "true", failed(NotFound)));
    cases.push(path("/nowhere:/tmp/outcomes/bin", "only-here", exited(42)));
    cases.push(path("/tmp/outcomes:/bin", "true", exited(0)));
    cases.push(of(&["only-here"], failed(NotFound)));
    if let Some(last) = cases.last_mut() {
        last.message = missing;
    }
    // The program is found from the task's own directory.
    let mut relative = of(&["bin/only-here"], exited(42));
    FILES.clone_into(&mut relative.process.working_dir);
    cases.push(relative);
    // The shell's own words for the same.
    cases.push(sh("/nope/program 2>/dev/null", exited(127)));
    cases
}

fn limits() -> Vec<Case> {
    let timed_out = |end| Outcome {
        timed_out: true,
        stopped_by: Some(StoppedBy::Timeout),
        ..Outcome::of(end)
    };
    let limited = |script: &str, end| {
        let mut case = sh(script, timed_out(end));
        case.process.timeout_seconds = Some(1);
        case.process.grace_period_seconds = Some(1);
        case.at_least_millis = 1000;
        case.about = format!("limited {script}");
        case
    };
    let mut cases = vec![
        limited("exec sleep 60", by(15)),
        limited("sleep 60; sleep 60", by(15)),
        limited(
            "trap 'exit 0' TERM; sleep 60 & wait",
            End::Exited { code: 0 },
        ),
        limited(
            "trap 'exit 3' TERM; sleep 60 & wait",
            End::Exited { code: 3 },
        ),
        limited("trap '' TERM; while :; do sleep 0.1; done", by(9)),
        limited("kill -STOP $$", by(9)),
    ];
    // A grace of 0 is no grace: the handler does not run.
    let mut at_once = limited("trap 'exit 0' TERM; sleep 60 & wait", by(9));
    at_once.process.grace_period_seconds = Some(0);
    at_once.about.push_str(" at once");
    cases.push(at_once);
    // In time.
    for (seconds, code) in [(60, 7), (0, 8), (-1, 9)] {
        let mut case = sh(&format!("sleep 0.05; exit {code}"), exited(code));
        case.process.timeout_seconds = Some(seconds);
        cases.push(case);
    }
    cases
}

fn stops() -> Vec<Case> {
    let stopped = |end| Outcome {
        stopped_by: Some(StoppedBy::Request),
        ..Outcome::of(end)
    };
    let stop = |script: &str, grace: Option<i64>, end| {
        let mut case = sh(script, stopped(end));
        case.process.grace_period_seconds = grace;
        case.stop = true;
        case.about = format!("stopped {grace:?} {script}");
        case
    };
    vec![
        stop("echo ready; exec sleep 60", None, by(15)),
        stop("echo ready; exec sleep 60", Some(0), by(9)),
        stop("echo ready; exec sleep 60", Some(-5), by(9)),
        stop(
            "trap 'exit 0' TERM; sleep 60 & echo ready; wait",
            None,
            End::Exited { code: 0 },
        ),
        stop(
            "trap 'sleep 0.1; exit 7' TERM; sleep 60 & echo ready; wait",
            Some(30),
            End::Exited { code: 7 },
        ),
        stop(
            "trap 'exit 7' TERM; sleep 60 & echo ready; wait",
            Some(0),
            by(9),
        ),
        stop(
            "trap '' TERM; echo ready; while :; do sleep 0.1; done",
            Some(1),
            by(9),
        ),
        stop("echo ready; kill -STOP $$", Some(1), by(9)),
    ]
}

fn of(command: &[&str], expected: Outcome) -> Case {
    Case {
        about: command.join(" "),
        process: Process {
            command: command.iter().map(|&part| part.to_owned()).collect(),
            ..Process::default()
        },
        stop: false,
        core_directory: None,
        expected,
        message: "",
        at_least_millis: 0,
    }
}

fn sh(script: &str, expected: Outcome) -> Case {
    let mut case = of(&["sh", "-c", script], expected);
    script.clone_into(&mut case.about);
    case
}

fn exited(code: i32) -> Outcome {
    Outcome::of(End::Exited { code })
}

fn by(signal: i32) -> End {
    End::Signaled {
        signal,
        core_dumped: false,
    }
}

fn signaled(signal: i32) -> Outcome {
    Outcome::of(by(signal))
}

fn failed(failure: StartFailure) -> Outcome {
    Outcome::of(End::NotStarted {
        failure,
        message: String::new(),
    })
}
