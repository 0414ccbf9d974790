//! Executors come and go, or misbehave; tasks do not notice.

use std::io::{Read as _, Write as _};

use task_executor::agent::protocol::{
    Exit, MAX_FRAME, Order, Report, Stage, StartFault, StartOrder, TaskKey, TaskState, VERSION,
};

use crate::client::{Agent, frame, read_to_end, shell, task};
use crate::ends::exit;

#[test]
fn a_new_executor_learns_everything() {
    let mut agent = Agent::start();
    let noted = |note: &str, script: &str| StartOrder {
        note: note.into(),
        ..shell(script)
    };
    let ended = agent.run(noted("ended", "echo out; echo err >&2; exit 3"));
    let running = agent.run(noted(
        "running",
        "echo one; read x < /dev/null; sleep 0.5; echo two",
    ));
    let failed = agent.run(StartOrder {
        note: b"failed".to_vec(),
        ..task(&["no-such-program"])
    });
    let forgotten = agent.run(task(&["true"]));
    assert_eq!(agent.line(running), "one");
    for key in [ended, failed, forgotten] {
        agent.wait_gone(key);
    }
    agent.order(&Order::Note {
        key: running,
        note: b"changed".to_vec(),
    });
    agent.order(&Order::Forget { key: forgotten });
    agent.order(&Order::Forget { key: running });
    agent.order(&Order::Probe { number: 1 });
    while agent.probes.is_empty() {
        agent.receive();
    }

    agent.reconnect();
    assert_eq!(
        agent.tasks.len(),
        3,
        "also the one that was told to be forgotten and still ran"
    );
    assert_eq!(agent.notes[&ended], b"ended");
    assert_eq!(agent.notes[&running], b"changed");
    assert_eq!(agent.notes[&failed], b"failed");
    assert_eq!(exit(&agent.tasks[&ended]), Exit::Code(3));
    assert!(agent.tasks[&ended].gone);
    assert!(matches!(
        agent.tasks[&failed].state,
        TaskState::NotStarted {
            fault: StartFault {
                stage: Stage::Exec,
                errno: 2
            },
            ..
        }
    ));
    let [stdout, stderr] = agent.outputs.remove(&ended).unwrap();
    assert_eq!(nix::unistd::read(&stdout, &mut [0; 9]), Ok(4));
    assert_eq!(nix::unistd::read(&stderr, &mut [0; 9]), Ok(4));
    let [stdout, _] = agent.outputs.remove(&running).unwrap();
    assert_eq!(read_to_end(&stdout), "two\n");
    assert_eq!(exit(&agent.wait_gone(running)), Exit::Code(0));
}

#[test]
fn results_wait_for_an_executor() {
    let mut agent = Agent::start();
    let key = agent.run(shell("echo kept; exit 42"));
    agent.wait(key, |_| true);
    // Nobody is there when it ends.
    let (near, _) = std::os::unix::net::UnixStream::pair().unwrap();
    agent.connection = near;
    let pid = agent.pid();
    crate::client::eventually("it ended", || {
        crate::client::children(pid).is_empty().then_some(())
    });
    agent.reconnect();
    let task = agent.tasks[&key].clone();
    assert_eq!((exit(&task), task.gone), (Exit::Code(42), true));
    let [stdout, _] = agent.outputs.remove(&key).unwrap();
    assert_eq!(read_to_end(&stdout), "kept\n");
}

#[test]
fn output_that_nobody_reads_blocks_that_task_only() {
    let mut agent = Agent::start();
    let flood = agent.run(shell("exec head -c 1000000 /dev/zero"));
    agent.wait_running(flood);
    let (task, stdout, _) = agent.finish(task(&["echo", "free"]));
    assert_eq!((exit(&task), stdout.as_str()), (Exit::Code(0), "free\n"));
    assert!(matches!(
        agent.tasks[&flood].state,
        TaskState::Running { .. }
    ));
    let [stdout, _] = agent.outputs.remove(&flood).unwrap();
    assert_eq!(read_to_end(&stdout).len(), 1_000_000);
    assert_eq!(exit(&agent.wait_gone(flood)), Exit::Code(0));
}

#[test]
fn garbage_costs_the_connection_and_nothing_else() {
    let mut agent = Agent::start();
    let key = agent.run(shell("exec sleep 1000"));
    let pid = agent.wait_running(key);
    let too_long = u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes();
    let hello = frame(&Order::Hello { version: VERSION });
    let trailing = [&[3, 0, 0, 0][..], &hello[4..], &[0]].concat();
    let unasked = frame(&Order::Probe { number: 1 });
    let after_hello = [&hello[..], &[1, 0, 0, 0, 99]].concat();
    let texts = [
        &too_long[..],
        &[255; 64],
        &trailing,
        &unasked,
        &after_hello,
        &[0; 4],
    ];
    for text in texts {
        let mut connection = agent.bare_connection();
        connection.write_all(text).unwrap();
        // Whatever it said before, it closes.
        let mut heard = Vec::new();
        connection.read_to_end(&mut heard).unwrap();
    }
    agent.reconnect();
    assert!(matches!(agent.tasks[&key].state, TaskState::Running { pid: it, .. } if it == pid));
    agent.stop(key, None);
    agent.wait_gone(key);
}

#[test]
fn an_executor_that_does_not_read_gets_the_last_state() {
    let mut agent = Agent::start();
    // Far more answers than the socket holds; all orders are taken in the end, and none is lost.
    let note = vec![b'n'; 50_000];
    let keys: Vec<TaskKey> = (0..60)
        .map(|code| {
            agent.run(StartOrder {
                note: note.clone(),
                ..shell(&format!("exit {code}"))
            })
        })
        .collect();
    // Asks for everything several times without reading any of it.
    for _ in 0..3 {
        agent.order(&Order::Hello { version: VERSION });
    }
    let pid = agent.pid();
    let busy = || crate::client::children(pid).is_empty().then_some(());
    crate::client::eventually("all have ended", busy);
    let mut ends = 0;
    while ends < 3 {
        if agent.receive() == Report::SnapshotEnd {
            ends += 1;
        }
    }
    for (code, key) in (0..).zip(keys) {
        let task = agent.wait_gone(key);
        assert_eq!(exit(&task), Exit::Code(code));
        assert_eq!(agent.notes[&key], note);
    }
}

#[test]
fn there_is_a_limit_to_what_is_remembered() {
    let mut agent = Agent::start();
    let invalid = task(&[]);
    for _ in 0..2048 {
        let key = agent.run(invalid.clone());
        agent.wait_gone(key);
    }
    let refused = agent.run(task(&["true"]));
    let report = agent.wait_gone(refused);
    let fault = StartFault {
        stage: Stage::Fork,
        errno: 11,
    };
    assert!(matches!(report.state, TaskState::NotStarted { fault: it, .. } if it == fault));
    agent.order(&Order::Forget { key: TaskKey(1) });
    let (task, ..) = agent.finish(task(&["true"]));
    assert_eq!(exit(&task), Exit::Code(0));
}
