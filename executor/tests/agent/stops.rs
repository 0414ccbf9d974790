//! A stop is over when nothing of the task is left, and not before.

use task_executor::agent::protocol::{
    Exit, Order, StartOrder, StopCause, TaskKey, TaskReport, TaskState,
};

use crate::client::{Agent, eventually, marked, marker, perl, shell, state, task};
use crate::ends::exit;

const KILLED: Exit = Exit::Signal {
    signal: 9,
    core_dumped: false,
};
const TERMINATED: Exit = Exit::Signal {
    signal: 15,
    core_dumped: false,
};

/// A task whose processes can be found by a marker, once it has printed a line.
fn started(agent: &mut Agent, mut order: StartOrder) -> (TaskKey, String) {
    let marker = marker();
    order.env.push(marker.clone().into_bytes());
    let key = agent.run(order);
    assert_eq!(agent.line(key), "up");
    assert_ne!(marked(&marker), [0; 0]);
    (key, marker)
}

#[track_caller]
fn stopped(agent: &mut Agent, key: TaskKey, marker: &str) -> TaskReport {
    let task = agent.wait_gone(key);
    assert_eq!(marked(marker), [0; 0], "nothing of it is left");
    assert_eq!(task.stop, Some(StopCause::Request));
    task
}

#[test]
fn a_task_may_end_in_its_own_way() {
    let mut agent = Agent::start();
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.01; done";
    let (key, marker) = started(&mut agent, shell(script));
    agent.stop(key, None);
    assert_eq!(agent.line(key), "bye");
    assert_eq!(exit(&stopped(&mut agent, key, &marker)), Exit::Code(5));
}

#[test]
fn all_of_the_group_are_asked() {
    let mut agent = Agent::start();
    let (key, marker) = started(&mut agent, shell("sleep 1000 & sleep 1000 & echo up; wait"));
    agent.stop(key, None);
    assert_eq!(exit(&stopped(&mut agent, key, &marker)), TERMINATED);
}

#[test]
fn who_does_not_listen_is_killed_after_the_grace_period() {
    let mut agent = Agent::start();
    let script = "trap '' TERM; echo up; while :; do sleep 0.01; done";
    let (key, marker) = started(&mut agent, shell(script));
    agent.stop(key, Some(200));
    let stopping = agent.wait(key, |task| task.stop.is_some());
    assert!(!stopping.gone, "it says at once that it is being stopped");
    assert_eq!(exit(&stopped(&mut agent, key, &marker)), KILLED);
}

#[test]
fn a_second_stop_can_only_be_quicker() {
    let mut agent = Agent::start();
    let script = "trap '' TERM; echo up; while :; do sleep 0.01; done";
    let (key, marker) = started(&mut agent, shell(script));
    agent.stop(key, Some(1_000_000));
    agent.order(&Order::Stop {
        key,
        cause: StopCause::Replacement,
        grace_millis: Some(0),
    });
    agent.stop(key, Some(1_000_000));
    assert_eq!(exit(&stopped(&mut agent, key, &marker)), KILLED);
}

#[test]
fn a_stop_finds_a_task_that_is_just_being_started() {
    let mut agent = Agent::start();
    for grace in [Some(0), Some(1), None] {
        for _ in 0..30 {
            let key = agent.run(task(&["sleep", "1000"]));
            agent.stop(key, grace);
            let task = agent.wait_gone(key);
            assert_eq!(task.stop, Some(StopCause::Request));
            assert!(matches!(exit(&task), Exit::Signal { signal: 9 | 15, .. }));
        }
    }
}

#[test]
fn sessions_of_its_own_do_not_save_a_process() {
    let mut agent = Agent::start();
    let script = "trap '' TERM; setsid sh -c \"trap '' TERM; setsid sleep 1000 & \
                  echo up; while :; do sleep 0.01; done\"";
    let (key, marker) = started(&mut agent, shell(script));
    agent.stop(key, Some(100));
    stopped(&mut agent, key, &marker);
}

#[test]
fn daemons_do_not_survive() {
    let mut agent = Agent::start();
    let daemon = "if (!fork) { setsid; if (!fork) { $SIG{TERM} = 'IGNORE'; $| = 1; print \"up\\n\"; \
                  sleep 1000 } exit } sleep 1000";
    let (key, marker) = started(&mut agent, perl(daemon));
    agent.stop(key, Some(100));
    assert_eq!(exit(&stopped(&mut agent, key, &marker)), TERMINATED);
}

#[test]
fn what_a_task_left_behind_is_asked_as_well() {
    let mut agent = Agent::start();
    // In its group, and out of it: both get to say goodbye, long before the grace period is over.
    for apart in ["", "setsid "] {
        let script = format!(
            "{apart}sh -c 'trap \"echo bye; exit\" TERM; echo up; while :; do sleep 0.01; done' &"
        );
        let (key, marker) = started(&mut agent, shell(&script));
        let ended = agent.wait(key, |task| matches!(task.state, TaskState::Ended { .. }));
        assert!(!ended.gone);
        agent.stop(key, Some(1_000_000));
        assert_eq!(agent.line(key), "bye");
        assert_eq!(exit(&stopped(&mut agent, key, &marker)), Exit::Code(0));
    }
}

#[test]
fn what_was_left_behind_and_ended_needs_no_stop() {
    let mut agent = Agent::start();
    let (task, stdout, _) = agent.finish(shell("(setsid sh -c 'sleep 0.2; echo late' &) ; exit 7"));
    assert_eq!(
        (exit(&task), task.stop, stdout.as_str()),
        (Exit::Code(7), None, "late\n")
    );
}

#[test]
fn a_stop_of_what_is_gone_changes_nothing() {
    let mut agent = Agent::start();
    let key = agent.run(task(&["true"]));
    let before = agent.wait_gone(key);
    agent.stop(key, Some(0));
    agent.stop(TaskKey(999), Some(0));
    agent.reconnect();
    let after = TaskReport {
        note: None,
        output: false,
        ..agent.tasks[&key].clone()
    };
    assert_eq!(
        after,
        TaskReport {
            output: false,
            ..before
        }
    );
}

#[test]
fn stopped_processes_are_ended() {
    let mut agent = Agent::start();
    let (key, marker) = started(&mut agent, shell("sleep 1000 & echo up; kill -STOP 0"));
    let leader = agent.wait_running(key);
    eventually("it stops itself", || {
        (state(leader)?.0 == 'T').then_some(())
    });
    agent.stop(key, Some(100));
    assert_eq!(exit(&stopped(&mut agent, key, &marker)), KILLED);
}
