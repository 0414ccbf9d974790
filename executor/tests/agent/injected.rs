//! The agent as it begins after an injection, apart from how it came there.

use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use task_executor::agent::protocol::{AGENT_NAME, ARG_INJECTED, CONTROL_PEER_FD, Exit, Order};
use task_executor::sys::fd::{pidfd_getfd, pidfd_open};

use crate::client::{Agent, eventually, shell, state, task};
use crate::ends::exit;

#[test]
fn an_injected_agent_stops_once_and_can_be_found_by_every_executor() {
    // What it inherits from the main process must not matter.
    let script = r#"trap '' TERM CHLD; exec 3</etc/passwd 4</etc/passwd 77</etc/passwd;
                    exec -a "$0" "$@" <&- >&-"#;
    let child = Command::new("bash")
        .args(["-c", script, AGENT_NAME])
        .args([env!("CARGO_BIN_EXE_task-executor"), ARG_INJECTED])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    eventually("it stops itself", || (state(pid)?.0 == 'T').then_some(()));
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();

    let pidfd = pidfd_open(pid).unwrap();
    let control = pidfd_getfd(pidfd.as_fd(), CONTROL_PEER_FD).unwrap();
    let mut agent = Agent::of(child, control);
    let (ended, stdout, _) = agent.finish(shell("ls /proc/self/fd | wc -l; exit 3"));
    assert_eq!((exit(&ended), stdout.as_str()), (Exit::Code(3), "4\n"));
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            Some(
                std::fs::read_link(entry.ok()?.path())
                    .ok()?
                    .display()
                    .to_string(),
            )
        })
        .collect();
    assert!(
        !open.iter().any(|target| target.contains("passwd")),
        "{open:?}"
    );
    assert_eq!(
        open.iter().filter(|target| *target == "/dev/null").count(),
        3,
        "{open:?}"
    );

    // An executor that goes does not end it; the next one takes the same descriptor.
    let key = agent.run(task(&["sleep", "1000"]));
    let running = agent.wait_running(key);
    let control = pidfd_getfd(pidfd.as_fd(), CONTROL_PEER_FD).unwrap();
    agent.replace_control(control);
    agent.reconnect();
    assert!(state(running).is_some());
    agent.stop(key, None);
    agent.wait_gone(key);
    assert!(agent.child.try_wait().unwrap().is_none());
    agent.order(&Order::Shutdown);
    let child = &mut agent.child;
    assert!(eventually("it ends", || child.try_wait().unwrap()).success());
}

#[test]
fn an_agent_that_cannot_begin_says_why_by_its_exit_code() {
    let run = |script: &str| {
        let mut command = Command::new("bash");
        command.args([
            "-c",
            script,
            AGENT_NAME,
            env!("CARGO_BIN_EXE_task-executor"),
        ]);
        command.stdin(Stdio::null()).status().unwrap().code()
    };
    assert_eq!(run(r#"exec -a "$0" "$1""#), Some(11), "no mode");
    assert_eq!(
        run(r#"exec -a "$0" "$1" child 3<&-"#),
        Some(12),
        "no control socket"
    );
    assert_eq!(
        run(r#"exec -a "$0" "$1" child somewhere 3</dev/null"#),
        Some(13)
    );
}
