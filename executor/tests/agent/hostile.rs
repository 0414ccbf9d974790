//! Tasks that mean harm: to those that watch over them, and to who looks for them.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use task_executor::agent::protocol::{Exit, StartOrder, TaskKey, TaskReport, TaskState};

use crate::client::{Agent, children, eventually, marked, marker, perl, shell, state, task};
use crate::ends::exit;

fn marked_task(agent: &mut Agent, mut order: StartOrder) -> (TaskKey, String) {
    let marker = marker();
    order.env.push(marker.clone().into_bytes());
    (agent.run(order), marker)
}

fn next_task_runs(agent: &mut Agent) {
    let (task, stdout, _) = agent.finish(task(&["echo", "fine"]));
    assert_eq!((exit(&task), stdout.as_str()), (Exit::Code(0), "fine\n"));
}

/// Stops a storm, and checks that nothing of it is left. A storm that wins is ended by its own clock.
fn stop_storm(agent: &mut Agent, key: TaskKey, marker: &str) {
    assert_eq!(agent.line(key), "up");
    agent.stop(key, Some(50));
    agent.wait_gone(key);
    assert_eq!(marked(marker), [0; 0]);
    next_task_runs(agent);
}

#[test]
fn a_storm_of_forks_is_ended() {
    let mut agent = Agent::start();
    // Each process makes another and ends; eight lines of them at once, for 30 s at most.
    let storm = "$SIG{TERM} = 'IGNORE'; $SIG{CHLD} = 'IGNORE'; $| = 1; my $end = time + 30; \
                 for (1..7) { last if !fork } print \"up\\n\"; \
                 while (time < $end) { my $pid = fork; exit if $pid }";
    let (key, marker) = marked_task(&mut agent, perl(storm));
    stop_storm(&mut agent, key, &marker);
}

#[test]
fn a_storm_of_sessions_is_ended() {
    let mut agent = Agent::start();
    let storm = "$SIG{TERM} = 'IGNORE'; $SIG{CHLD} = 'IGNORE'; $| = 1; my $end = time + 30; \
                 for (1..7) { last if !fork } print \"up\\n\"; \
                 while (time < $end) { my $pid = fork; exit if $pid; setsid }";
    let (key, marker) = marked_task(&mut agent, perl(storm));
    stop_storm(&mut agent, key, &marker);
}

#[test]
fn a_storm_that_grows_again_is_ended() {
    let mut agent = Agent::start();
    // A tree of up to some hundred processes, each of which keeps three children of its own sessions
    // alive down to a depth, and wakes whoever was stopped.
    let storm = "$SIG{TERM} = 'IGNORE'; $| = 1; my $end = time + 30; my $depth = 0; print \"up\\n\"; \
                 GROW: my %mine; while (time < $end) { \
                   while ($depth < 4 && keys %mine < 3) { \
                     my $pid = fork; if (!defined $pid) { last } \
                     if (!$pid) { setsid; $depth++; goto GROW } $mine{$pid} = 1 } \
                   kill 'CONT', keys %mine; \
                   while ((my $pid = waitpid -1, WNOHANG) > 0) { delete $mine{$pid} } \
                   select undef, undef, undef, 0.002 }";
    let (key, marker) = marked_task(&mut agent, perl(storm));
    stop_storm(&mut agent, key, &marker);
}

#[test]
fn a_task_that_kills_its_supervisor_is_lost_with_all_it_has() {
    let mut agent = Agent::start();
    let script = "(setsid sh -c 'setsid sleep 1000 & exec sleep 1000' &); \
                  trap 'kill -9 $PPID' USR1; echo up; while :; do sleep 0.01; done";
    let (key, marker) = marked_task(&mut agent, shell(script));
    let leader = agent.wait_running(key);
    assert_eq!(agent.line(key), "up");
    kill(Pid::from_raw(leader), Signal::SIGUSR1).unwrap();
    let task = agent.wait_gone(key);
    assert!(matches!(
        task.state,
        TaskState::Lost {
            pid: Some(_),
            started_at: Some(_),
            ..
        }
    ));
    assert_eq!(task.stop, None);
    assert_eq!(marked(&marker), [0; 0]);
    let pid = agent.pid();
    eventually("no child is left", || {
        children(pid).is_empty().then_some(())
    });
    next_task_runs(&mut agent);
}

#[test]
fn a_result_that_is_known_outlives_the_supervisor() {
    let mut agent = Agent::start();
    let script = "(setsid sh -c 'sleep 1000' &) ; exit 9";
    let (key, marker) = marked_task(&mut agent, shell(script));
    agent.wait(key, |task| matches!(task.state, TaskState::Ended { .. }));
    let supervisors = children(agent.pid());
    assert_eq!(supervisors.len(), 1);
    kill(Pid::from_raw(supervisors[0]), Signal::SIGKILL).unwrap();
    assert_eq!(exit(&agent.wait_gone(key)), Exit::Code(9));
    assert_eq!(marked(&marker), [0; 0]);
}

#[test]
fn other_tasks_do_not_notice_that_a_supervisor_was_killed() {
    let mut agent = Agent::start();
    let bystander = agent.run(shell("(setsid sleep 1000 &); sleep 1; exit 4"));
    agent.wait_running(bystander);
    let key = agent.run(shell("kill -9 $PPID; sleep 1000"));
    let lost = agent.wait_gone(key);
    assert!(matches!(lost.state, TaskState::Lost { .. }), "{lost:?}");
    let ended = agent.wait(bystander, |task| {
        matches!(task.state, TaskState::Ended { .. })
    });
    assert_eq!(exit(&ended), Exit::Code(4));
    assert!(!ended.gone, "what it left behind lives");
    agent.stop(bystander, None);
    agent.wait_gone(bystander);
}

#[test]
fn a_stopped_supervisor_still_stops_its_task() {
    let mut agent = Agent::start();
    let key = agent.run(shell("kill -STOP $PPID; echo up; exec sleep 1000"));
    assert_eq!(agent.line(key), "up");
    agent.stop(key, None);
    let task = agent.wait_gone(key);
    assert_eq!(
        exit(&task),
        Exit::Signal {
            signal: 15,
            core_dumped: false
        }
    );
}

#[test]
fn signals_that_can_be_blocked_do_not_reach_agent_and_supervisors() {
    let mut agent = Agent::start();
    let pid = agent.pid();
    let script = format!("for s in 1 2 3 10 12 14 15; do kill -$s $PPID {pid}; done; exit 6");
    let (task, ..) = agent.finish(shell(&script));
    assert_eq!(exit(&task), Exit::Code(6));
    next_task_runs(&mut agent);
}

#[test]
fn when_the_agent_is_killed_its_tasks_end() {
    let mut agent = Agent::start();
    let pid = agent.pid();
    let script = format!("(setsid sleep 1000 &); trap '' TERM; kill -9 {pid}; sleep 1000");
    let (_, mine) = marked_task(&mut agent, shell(&script));
    let other = agent.run(shell("exec sleep 1000"));
    eventually("the agent is dead", || agent.child.try_wait().unwrap());
    eventually("the tasks are dead", || {
        marked(&mine).is_empty().then_some(())
    });
    if let Some(TaskReport {
        state: TaskState::Running { pid, .. },
        ..
    }) = agent.tasks.get(&other)
    {
        let pid = *pid;
        eventually("the other is dead", || state(pid).is_none().then_some(()));
    }
}

#[test]
fn when_agent_and_supervisor_are_killed_at_once_the_task_ends() {
    let mut agent = Agent::start();
    let pid = agent.pid();
    let (_, mine) = marked_task(
        &mut agent,
        shell(&format!("kill -9 {pid} $PPID; exec sleep 1000")),
    );
    eventually("the agent is dead", || agent.child.try_wait().unwrap());
    eventually("the task is dead", || {
        marked(&mine).is_empty().then_some(())
    });
}

#[test]
fn sandbox_code_of_the_same_user_cannot_look_into_the_agent() {
    let mut agent = Agent::start();
    let pid = agent.pid();
    let status = std::fs::metadata(format!("/proc/{pid}/fd")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&status), 0);
    let order = agent.run(task(&["sleep", "1000"]));
    let running = agent.wait_running(order);
    // Of the agent and of the supervisor. Who is root and has all capabilities may; nobody else.
    for pid in [pid, state(running).unwrap().1] {
        let script = format!("setpriv --reuid 1000 --clear-groups ls /proc/{pid}/fd");
        let (_, stdout, stderr) = agent.finish(shell(&script));
        assert_eq!(stdout, "");
        assert!(stderr.contains("denied"), "{stderr}");
    }
}

#[test]
fn a_task_that_closes_its_output_is_watched_like_any() {
    let mut agent = Agent::start();
    let (task, stdout, _) = agent.finish(shell("echo last; exec >&- 2>&- <&-; sleep 0.1; exit 8"));
    assert_eq!((exit(&task), stdout.as_str()), (Exit::Code(8), "last\n"));
}
