//! `task-executor run`: to its container it is as if the sandbox's command had been started itself.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The executor with a command in the place of the sandbox's.
fn run(command: &[&str]) -> Command {
    let mut run = Command::new(env!("CARGO_BIN_EXE_task-executor"));
    run.args(["run", "--listen-addr=127.0.0.1:0", "--"])
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    run
}

fn output(mut command: Command) -> Output {
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn the_end_of_the_command_is_the_end_with_its_code() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        let ended = output(run(&["sh", "-c", script]));
        assert_eq!(ended.status.code(), Some(code), "{script}: {ended:?}");
    }
}

#[test]
fn a_command_that_cannot_be_started_is_told_as_a_shell_tells_it() {
    for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let ended = output(run(&[program]));
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        let log = String::from_utf8_lossy(&ended.stderr);
        assert!(log.contains(program) && log.contains("command"), "{log}");
    }
    let mut nothing = run(&[]);
    nothing.stdin(Stdio::null());
    assert_eq!(output(nothing).status.code(), Some(2));
}

/// Variables by which `serve` is configured mean nothing here: they are the sandbox's, and reach it.
#[test]
fn the_environment_is_the_commands_alone() {
    let mut command = run(&[
        "sh",
        "-c",
        "echo $LISTEN_ADDR $MAX_TASKS $TASK_EXECUTOR_MODE",
    ]);
    command
        .env("LISTEN_ADDR", ":8080")
        .env("MAX_TASKS", "many")
        .env("TASK_EXECUTOR_MODE", "chroot");
    let ended = output(command);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stdout, b":8080 many chroot\n");
}

#[test]
fn signals_are_handed_to_the_command_and_it_decides_what_they_mean() {
    // It ends with the executor, should that end otherwise.
    let script = "trap 'echo hup' HUP; trap 'echo usr1' USR1; trap 'exit 3' TERM; echo ready; \
                  while kill -0 $PPID; do sleep 0.02; done";
    let mut child = run(&["sh", "-c", script]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut expect = |text: &str| assert_eq!(lines.next().unwrap().unwrap(), text);
    expect("ready");
    for (signal, text) in [(Signal::SIGHUP, "hup"), (Signal::SIGUSR1, "usr1")] {
        send(&child, signal);
        expect(text);
    }
    send(&child, Signal::SIGTERM);
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(3), None));
}

/// A program that does not look at SIGTERM ends by it, which the first process of a container would not.
#[test]
fn a_command_that_knows_nothing_of_signals_ends_by_sigterm() {
    let mut child = run(&["sh", "-c", "echo ready; exec sleep 60"])
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut ready).unwrap();
    send(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, signal).unwrap();
}
