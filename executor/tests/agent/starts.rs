//! What a task is started with, and what is said if it cannot be.

use std::os::unix::fs::PermissionsExt;

use task_executor::agent::protocol::{
    Exit, Order, Report, Stage, StartFault, StartOrder, TaskReport, TaskState,
};

use crate::client::{Agent, read_to_end, shell, state, task};

#[track_caller]
fn fault(task: &TaskReport) -> (Stage, i32) {
    assert!(task.gone);
    match task.state {
        TaskState::NotStarted {
            fault: StartFault { stage, errno },
            ..
        } => (stage, errno),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn start_failures_say_what_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("plain"), "echo no").unwrap();
    std::fs::write(at("text"), "echo no").unwrap();
    std::fs::set_permissions(at("text"), PermissionsExt::from_mode(0o755)).unwrap();
    let (plain, text, below) = (at("plain"), at("text"), at("plain/x"));
    let in_directory = |directory: &str| StartOrder {
        working_directory: Some(directory.as_bytes().to_vec()),
        ..task(&["true"])
    };
    let (e2big, enoent, enoexec, eacces, enotdir) = (7, 2, 8, 13, 20);
    let long = "x".repeat(200_000);
    let searched = |name: &str, path: &str| StartOrder {
        env: vec![format!("PATH={path}").into_bytes()],
        ..task(&[name])
    };
    let cases = [
        (task(&["/nowhere/at/all"]), Stage::Exec, enoent),
        (task(&["no-such-program"]), Stage::Exec, enoent),
        (task(&[""]), Stage::Exec, enoent),
        (task(&[&plain]), Stage::Exec, eacces),
        (task(&["/tmp"]), Stage::Exec, eacces),
        (task(&[&text]), Stage::Exec, enoexec),
        (task(&[&below]), Stage::Exec, enotdir),
        (task(&["true", &long]), Stage::Exec, e2big),
        (
            searched("plain", &format!("/nowhere:{plain}:{}:/", at(""))),
            Stage::Exec,
            eacces,
        ),
        (
            searched("plain", &format!("/nowhere:{plain}")),
            Stage::Exec,
            enoent,
        ),
        (in_directory("/nowhere"), Stage::WorkingDirectory, enoent),
        (in_directory(&plain), Stage::WorkingDirectory, enotdir),
        (task(&[]), Stage::Invalid, 22),
        (task(&["true", "a\0b"]), Stage::Invalid, 22),
    ];
    let mut agent = Agent::start();
    for (order, stage, errno) in cases {
        let name = format!(
            "{:?}",
            order
                .argv
                .first()
                .map(|name| name.escape_ascii().to_string())
        );
        let (task, stdout, _) = agent.finish(order);
        assert_eq!(
            (fault(&task), stdout.as_str()),
            ((stage, errno), ""),
            "{name}"
        );
    }
    let (task, ..) = agent.finish(task(&["true"]));
    assert!(
        matches!(
            task.state,
            TaskState::Ended {
                exit: Exit::Code(0),
                ..
            }
        ),
        "it goes on"
    );
}

#[test]
fn a_task_has_what_it_is_given_and_nothing_else() {
    // What the agent was started with is not for tasks: signals, descriptors, limits.
    let mut agent = Agent::start_after("trap '' HUP PIPE TERM; ulimit -Sn 256; exec 7</dev/null");
    let order = StartOrder {
        env: vec![
            b"PATH=/usr/bin:/bin".to_vec(),
            b"RAW=\xff\xfe".to_vec(),
            b"no equals".to_vec(),
        ],
        working_directory: Some(b"/usr".to_vec()),
        ..task(&[
            "cat",
            "/proc/self/status",
            "/proc/self/environ",
            "/proc/self/limits",
        ])
    };
    let key = agent.run(order);
    agent.wait_gone(key);
    let [stdout, _] = agent.outputs.remove(&key).unwrap();
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(stdout), &mut text).unwrap();
    let text = text.escape_ascii().to_string();
    let zeros = "0000000000000000";
    for wanted in [
        format!("SigBlk:\\t{zeros}\\n"),
        format!("SigIgn:\\t{zeros}\\n"),
        "PATH=/usr/bin:/bin\\x00RAW=\\xff\\xfe\\x00no equals\\x00".to_owned(),
        "Max open files            256  ".to_owned(),
    ] {
        assert!(text.contains(&wanted), "{wanted} in {text}");
    }
    let (_, stdout, _) = agent.finish(shell(
        "pwd; cd /; ls /proc/self/fd | wc -l; readlink /proc/self/fd/0; \
         read pid comm state parent group session rest < /proc/self/stat; \
         test $pid = $group && test $pid = $session && echo leads; \
         test -O /proc/$$/environ && cat /proc/$$/environ | wc -c",
    ));
    let lines: Vec<&str> = stdout.lines().collect();
    // 0 to 2, and the directory that is listed.
    let here = std::env::current_dir().unwrap();
    let wanted = [here.to_str().unwrap(), "4", "/dev/null", "leads", "19"];
    assert_eq!(lines, wanted, "and it is dumpable again");
}

#[test]
fn a_program_is_searched_in_the_directory_it_starts_in() {
    let mut agent = Agent::start();
    let order = StartOrder {
        env: vec![b"PATH=nowhere:bin".to_vec()],
        working_directory: Some(b"/usr".to_vec()),
        ..task(&["echo", "here"])
    };
    assert_eq!(agent.finish(order).1, "here\n");
    let order = StartOrder {
        env: Vec::new(),
        ..task(&["env"])
    };
    let (task, stdout, _) = agent.finish(order);
    assert!(matches!(
        task.state,
        TaskState::Ended {
            exit: Exit::Code(0),
            ..
        }
    ));
    assert_eq!(stdout, "", "the default PATH is for the search only");
}

#[test]
fn an_argument_of_100_kib_arrives() {
    let mut agent = Agent::start();
    let long = "é".repeat(50 * 1024);
    let key = agent.run(task(&["printf", "%s", &long]));
    agent.wait_running(key);
    let [stdout, _] = agent.outputs.remove(&key).unwrap();
    assert_eq!(read_to_end(&stdout), long);
}

#[test]
fn a_key_starts_one_task() {
    let mut agent = Agent::start();
    let mut order = shell("echo once; exec sleep 1000");
    let key = agent.run(order.clone());
    let pid = agent.wait_running(key);
    order.key = key;
    agent.order(&Order::Start(Box::new(order)));
    assert_eq!(agent.line(key), "once");
    agent.order(&Order::Probe { number: 1 });
    while agent.probes.is_empty() {
        agent.receive();
    }
    assert!(matches!(agent.tasks[&key].state, TaskState::Running { pid: it, .. } if it == pid));
    assert_eq!(
        crate::client::children(agent.pid()).len(),
        1,
        "one supervisor"
    );
}

#[test]
fn probes_are_answered_and_reaped() {
    let mut agent = Agent::start();
    for number in 0..40 {
        agent.order(&Order::Probe { number });
        while agent.probes.is_empty() {
            agent.receive();
        }
        let answer = agent.probes.pop().unwrap();
        assert_eq!(
            answer,
            Report::Probe {
                number,
                failure: None
            }
        );
    }
    let pid = agent.pid();
    assert_eq!(crate::client::children(pid), [0; 0]);
    assert!(state(pid).is_some());
}

#[test]
fn pipes_that_cannot_be_made_fail_that_task_only() {
    let mut agent = Agent::start_after("ulimit -n 40");
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(agent.run(shell("read x < /dev/null; exec sleep 1000")));
    }
    let mut failed = 0;
    for key in &keys {
        let task = agent.wait(*key, |task| !matches!(task.state, TaskState::Starting));
        if matches!(task.state, TaskState::NotStarted { .. }) {
            assert_eq!(fault(&task), (Stage::Pipes, 24));
            failed += 1;
        }
    }
    assert!(failed > 0 && failed < 20, "{failed}");
    for key in keys {
        agent.stop(key, Some(0));
        agent.wait_gone(key);
    }
    // Nobody has read their output, but there is none: their pipes are given up when others are needed.
    agent.outputs.clear();
    let (task, ..) = agent.finish(task(&["true"]));
    assert!(
        matches!(
            task.state,
            TaskState::Ended {
                exit: Exit::Code(0),
                ..
            }
        ),
        "{task:?}"
    );
}
