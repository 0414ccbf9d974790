//! How a task ended, exactly.

use std::collections::HashMap;

use task_executor::agent::protocol::{Exit, Order, StartOrder, StopCause, TaskReport, TaskState};

use crate::client::{Agent, children, shell, task};

#[track_caller]
pub(crate) fn exit(task: &TaskReport) -> Exit {
    match task.state {
        TaskState::Ended { exit, .. } => exit,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn every_exit_code_is_reported() {
    let mut agent = Agent::start();
    for code in 0..=255 {
        let (task, ..) = agent.finish(shell(&format!("exit {code}")));
        assert_eq!(exit(&task), Exit::Code(code));
        assert_eq!(task.stop, None);
    }
}

#[test]
fn every_fatal_signal_is_reported() {
    let mut agent = Agent::start();
    // Not fatal by default: CHLD, CONT, URG, WINCH, and those that stop. And the last real-time signal.
    let harmless = [17, 18, 19, 20, 21, 22, 23, 28];
    for signal in (1..=31)
        .chain([64])
        .filter(|signal| !harmless.contains(signal))
    {
        let (task, ..) = agent.finish(shell(&format!("kill -{signal} $$; sleep 1000")));
        let Exit::Signal {
            signal: reported, ..
        } = exit(&task)
        else {
            panic!("{task:?}")
        };
        assert_eq!(reported, signal);
        assert_eq!(task.stop, None);
        assert!(matches!(
            task.state,
            TaskState::Ended {
                oom_killed: false,
                ..
            }
        ));
    }
}

#[test]
fn a_core_is_reported_if_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    for (limit, dumped) in [("0", false), ("unlimited", true)] {
        let order = StartOrder {
            working_directory: Some(directory.path().to_str().unwrap().into()),
            ..shell(&format!("ulimit -c {limit} && kill -SEGV $$"))
        };
        let (task, ..) = agent.finish(order);
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        // Elsewhere than in the working directory it is the machine's matter whether one is written.
        if !dumped || pattern.trim() == "core" {
            assert_eq!(
                exit(&task),
                Exit::Signal {
                    signal: 11,
                    core_dumped: dumped
                }
            );
        }
    }
}

#[test]
fn times_are_those_of_the_task() {
    let mut agent = Agent::start();
    let (task, ..) = agent.finish(shell("sleep 0.2"));
    let TaskState::Ended {
        started_at,
        finished_at,
        duration_micros,
        ..
    } = task.state
    else {
        panic!("{task:?}");
    };
    assert!(
        finished_at >= started_at + 150,
        "{started_at} {finished_at}"
    );
    assert!(duration_micros >= 200_000, "{duration_micros}");
}

#[test]
fn a_time_limit_ends_a_task() {
    let mut agent = Agent::start();
    let order = StartOrder {
        timeout_millis: Some(100),
        ..shell("exec sleep 1000")
    };
    let (task, ..) = agent.finish(order);
    assert_eq!(task.stop, Some(StopCause::Timeout));
    assert_eq!(
        exit(&task),
        Exit::Signal {
            signal: 15,
            core_dumped: false
        }
    );

    let order = StartOrder {
        timeout_millis: Some(100),
        grace_millis: 100,
        ..shell("trap '' TERM; while :; do sleep 0.01; done")
    };
    let (task, ..) = agent.finish(order);
    assert_eq!(task.stop, Some(StopCause::Timeout));
    assert_eq!(
        exit(&task),
        Exit::Signal {
            signal: 9,
            core_dumped: false
        }
    );

    let order = StartOrder {
        timeout_millis: Some(100_000),
        ..shell("exit 3")
    };
    let (task, ..) = agent.finish(order);
    assert_eq!((task.stop, exit(&task)), (None, Exit::Code(3)));
}

#[test]
fn a_time_limit_does_not_end_what_a_task_left_behind() {
    let mut agent = Agent::start();
    let order = StartOrder {
        timeout_millis: Some(300),
        ..shell("(sleep 1; echo still here; exec sleep 1000) & echo started")
    };
    let key = agent.run(order);
    let task = agent.wait(key, |task| matches!(task.state, TaskState::Ended { .. }));
    assert_eq!(exit(&task), Exit::Code(0));
    assert!(!task.gone);
    assert_eq!(agent.line(key), "started");
    assert_eq!(agent.line(key), "still here");
    agent.stop(key, None);
    let task = agent.wait_gone(key);
    assert_eq!(
        (exit(&task), task.stop),
        (Exit::Code(0), Some(StopCause::Request))
    );
}

#[test]
fn a_thousand_tasks_leave_no_zombie() {
    let mut agent = Agent::start();
    for round in 0..100 {
        let mut codes = HashMap::new();
        for number in 0..10 {
            let code = (round * 10 + number) % 256;
            // Half of them leave an orphan that ends by itself.
            let orphan = if number % 2 == 0 { "(sleep 0 &)" } else { ":" };
            codes.insert(agent.run(shell(&format!("{orphan}; exit {code}"))), code);
        }
        for (key, code) in codes {
            let task = agent.wait_gone(key);
            assert_eq!((exit(&task), task.stop), (Exit::Code(code), None));
            agent.order(&Order::Forget { key });
        }
    }
    agent.order(&Order::Probe { number: 0 });
    while agent.probes.is_empty() {
        agent.receive();
    }
    // A supervisor says that all is gone, and ends then.
    let pid = agent.pid();
    crate::client::eventually("no child is left", || {
        children(pid).is_empty().then_some(())
    });
    agent.reconnect();
    assert!(agent.tasks.is_empty(), "all are forgotten");
}

#[test]
fn sixty_four_run_at_once() {
    let mut agent = Agent::start();
    let keys: Vec<_> = (0..64)
        .map(|code| (code, agent.run(shell(&format!("read x; exit {code}")))))
        .collect();
    let waiting: Vec<_> = (0..64)
        .map(|_| agent.run(shell("exec sleep 1000")))
        .collect();
    for key in &waiting {
        agent.wait_running(*key);
    }
    for (code, key) in keys {
        assert_eq!(exit(&agent.wait_gone(key)), Exit::Code(code));
    }
    for key in &waiting {
        agent.stop(*key, None);
    }
    for key in waiting {
        let task = agent.wait_gone(key);
        assert_eq!(
            exit(&task),
            Exit::Signal {
                signal: 15,
                core_dumped: false
            }
        );
    }
}

#[test]
fn an_agent_without_executor_ends_all_tasks() {
    let mut agent = Agent::start();
    let marker = crate::client::marker();
    let script = "trap '' TERM; (setsid sleep 1000 &) ; echo up; while :; do sleep 1; done";
    let mut order = shell(script);
    order.env.push(marker.clone().into_bytes());
    let key = agent.run(order);
    assert_eq!(agent.line(key), "up");
    assert!(!crate::client::marked(&marker).is_empty());
    assert!(agent.end().success());
    assert_eq!(crate::client::marked(&marker), [0; 0]);
}

#[test]
fn a_shutdown_ends_all_tasks_and_the_agent() {
    let mut agent = Agent::start();
    let key = agent.run(task(&["sleep", "1000"]));
    let running = agent.wait_running(key);
    agent.order(&Order::Shutdown);
    let child = &mut agent.child;
    let status = crate::client::eventually("the agent ends", || child.try_wait().unwrap());
    assert!(status.success());
    assert_eq!(crate::client::state(running), None);
}
