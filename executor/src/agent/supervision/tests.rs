use proptest::prelude::*;

use super::*;
use crate::agent::protocol::Stage;

const FAULT: StartFault = StartFault {
    stage: Stage::Exec,
    errno: 2,
};
const KILLED: Exit = Exit::Signal {
    signal: SIGKILL,
    core_dumped: false,
};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Runs a task with a time limit and a grace period through events at given milliseconds; what was done.
fn course(timeout: Option<u64>, grace: u64, events: &[(u64, Event)]) -> Vec<(u64, Action)> {
    let mut supervision = Supervision::new(timeout.map(millis), millis(grace));
    let mut done = Vec::new();
    for (at, event) in events {
        let mut actions = Vec::new();
        supervision.step(millis(*at), *event, &mut actions);
        done.extend(actions.into_iter().map(|action| (*at, action)));
    }
    done
}

fn say(said: Said) -> Action {
    Action::Say(said)
}

fn ended(exit: Exit, killed: bool) -> Action {
    say(Said::Ended { exit, killed })
}

#[test]
fn a_task_that_ends_by_itself_is_left_alone() {
    let done = course(
        Some(100),
        10,
        &[
            (1, Event::Started),
            (2, Event::LeaderEnded(Exit::Code(3))),
            (500, Event::Tick),
            (600, Event::NoneLeft),
            (700, Event::Stop(StopCause::Request, None)),
        ],
    );
    let wanted = [
        (1, say(Said::Running)),
        (2, ended(Exit::Code(3), false)),
        (600, say(Said::Gone)),
    ];
    assert_eq!(done, wanted);
}

#[test]
fn a_start_that_failed_is_no_end() {
    let done = course(
        None,
        10,
        &[
            (1, Event::StartFailed(FAULT)),
            (2, Event::LeaderEnded(Exit::Code(127))),
            (2, Event::NoneLeft),
        ],
    );
    assert_eq!(
        done,
        [(1, say(Said::NotStarted(FAULT))), (2, say(Said::Gone))]
    );
}

#[test]
fn a_time_limit_asks_first_and_kills_then() {
    let done = course(
        Some(100),
        10,
        &[
            (1, Event::Started),
            (99, Event::Tick),
            (100, Event::Tick),
            (109, Event::Tick),
            (110, Event::Tick),
            (111, Event::LeaderEnded(KILLED)),
            (111, Event::NoneLeft),
        ],
    );
    let wanted = [
        (1, say(Said::Running)),
        (100, say(Said::Stopping(StopCause::Timeout))),
        (100, Action::TerminateGroup),
        (110, Action::KillAll),
        (111, ended(KILLED, true)),
        (111, say(Said::Gone)),
    ];
    assert_eq!(done, wanted);
}

#[test]
fn a_kill_by_others_during_the_grace_period_is_not_ours() {
    let stop = Event::Stop(StopCause::Request, None);
    let done = course(
        None,
        10,
        &[
            (1, Event::Started),
            (2, stop),
            (3, Event::LeaderEnded(KILLED)),
        ],
    );
    assert_eq!(done.last(), Some(&(3, ended(KILLED, false))));
}

#[test]
fn a_program_that_does_not_run_yet_is_asked_when_it_does() {
    let stop = Event::Stop(StopCause::Request, Some(millis(50)));
    let done = course(
        None,
        10,
        &[(1, stop), (5, Event::Started), (51, Event::Tick)],
    );
    let wanted = [
        (1, say(Said::Stopping(StopCause::Request))),
        (5, say(Said::Running)),
        (5, Action::TerminateGroup),
        (51, Action::KillAll),
    ];
    assert_eq!(done, wanted);
}

#[test]
fn who_was_not_in_the_group_is_asked_once_that_is_empty() {
    let stop = Event::Stop(StopCause::Replacement, None);
    let done = course(
        None,
        10,
        &[
            (1, Event::Started),
            (1, Event::GroupEmpty),
            (2, Event::LeaderEnded(Exit::Code(0))),
            (3, stop),
            (4, Event::GroupEmpty),
            (5, Event::GroupEmpty),
            (13, Event::Tick),
        ],
    );
    let wanted = [
        (3, say(Said::Stopping(StopCause::Replacement))),
        (3, Action::TerminateGroup),
        (4, Action::TerminateRest),
        (13, Action::KillAll),
    ];
    assert_eq!(&done[2..], wanted);
}

#[test]
fn without_an_agent_all_is_killed_at_once() {
    let done = course(None, 1000, &[(1, Event::Started), (2, Event::AgentLost)]);
    assert_eq!(done.last(), Some(&(2, Action::KillAll)));
    assert!(!done.contains(&(2, Action::TerminateGroup)));
}

fn exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        Just(KILLED),
        any::<u8>().prop_map(|code| Exit::Code(code.into())),
        (1..=64).prop_map(|signal| Exit::Signal {
            signal,
            core_dumped: false
        }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let cause = prop_oneof![
        Just(StopCause::Request),
        Just(StopCause::Replacement),
        Just(StopCause::Shutdown)
    ];
    let grace = prop_oneof![
        Just(None),
        (0..200_u64).prop_map(|grace| Some(millis(grace))),
        Just(Some(Duration::MAX))
    ];
    prop_oneof![
        3 => Just(Event::Started),
        1 => Just(Event::StartFailed(FAULT)),
        2 => exit().prop_map(Event::LeaderEnded),
        1 => Just(Event::GroupEmpty),
        1 => Just(Event::NoneLeft),
        2 => (cause, grace).prop_map(|(cause, grace)| Event::Stop(cause, grace)),
        1 => Just(Event::AgentLost),
        5 => Just(Event::Tick),
    ]
}

/// What a reader of the outcome believes, checked against each action.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that was seen"
)]
struct Observer {
    started: bool,
    failed: bool,
    leader_over: bool,
    first_stop: Option<StopCause>,
    /// The earliest time that any stop so far allows.
    kill_from: Option<Duration>,
    asked: bool,
    rest_asked: bool,
    killing: bool,
    gone: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_holds_holds_in_every_order(
        timeout in prop::option::of(0..300_u64),
        grace in 0..200_u64,
        events in prop::collection::vec((0..60_u64, event()), 0..40),
    ) {
        let own_grace = millis(grace);
        let timeout = timeout.map(millis);
        let mut supervision = Supervision::new(timeout, own_grace);
        let mut seen = Observer::default();
        let mut now = Duration::ZERO;
        for (later, event) in events {
            now += millis(later);
            let lived = supervision.leader_lives();
            let mut actions = Vec::new();
            supervision.step(now, event, &mut actions);
            prop_assert!(!seen.gone || actions.is_empty(), "nothing after gone: {actions:?}");
            if !seen.gone {
                let asked_for = match event {
                    Event::Stop(_, grace) => Some(now.saturating_add(grace.unwrap_or(own_grace))),
                    Event::AgentLost => Some(now),
                    _ => None,
                };
                if let Some(at) = asked_for {
                    seen.kill_from = Some(seen.kill_from.map_or(at, |kill| kill.min(at)));
                }
            }
            for action in actions {
                prop_assert!(!seen.gone, "nothing after gone: {action:?}");
                match action {
                    Action::Say(Said::Running) => {
                        prop_assert!(!seen.started && !seen.failed && !seen.leader_over);
                        prop_assert_eq!(event, Event::Started);
                        seen.started = true;
                    }
                    Action::Say(Said::NotStarted(_)) => {
                        prop_assert!(!seen.started && !seen.failed && !seen.leader_over);
                        seen.failed = true;
                    }
                    Action::Say(Said::Ended { exit, killed }) => {
                        prop_assert!(!seen.failed && !seen.leader_over);
                        prop_assert_eq!(event, Event::LeaderEnded(exit));
                        prop_assert_eq!(killed, exit == KILLED && seen.killing);
                        seen.leader_over = true;
                    }
                    Action::Say(Said::Stopping(cause)) => {
                        prop_assert_eq!(seen.first_stop, None);
                        seen.first_stop = Some(cause);
                        if cause == StopCause::Timeout {
                            prop_assert!(lived && !seen.leader_over && !seen.failed);
                            prop_assert!(timeout.is_some_and(|timeout| timeout <= now));
                            seen.kill_from = Some(now.saturating_add(own_grace));
                        } else {
                            let from_event = matches!(event, Event::Stop(it, _) if it == cause);
                            prop_assert!(from_event || event == Event::AgentLost);
                        }
                    }
                    Action::Say(Said::Gone) => {
                        prop_assert_eq!(event, Event::NoneLeft);
                        prop_assert!(seen.failed || seen.leader_over);
                        seen.gone = true;
                    }
                    Action::TerminateGroup => {
                        prop_assert!(!seen.asked && !seen.killing);
                        prop_assert!(seen.started || seen.leader_over);
                        prop_assert!(seen.first_stop.is_some());
                        seen.asked = true;
                    }
                    Action::TerminateRest => {
                        prop_assert!(seen.asked && !seen.rest_asked && !seen.killing);
                        prop_assert!(seen.leader_over);
                        prop_assert_eq!(event, Event::GroupEmpty);
                        seen.rest_asked = true;
                    }
                    Action::KillAll => {
                        prop_assert!(!seen.killing, "once");
                        prop_assert!(seen.kill_from.is_some_and(|from| from <= now), "not early");
                        seen.killing = true;
                    }
                }
            }
            // Nothing that is due waits, and what is to come has a time.
            let due = seen.kill_from.is_some_and(|from| from <= now);
            if !seen.gone {
                prop_assert_eq!(seen.killing, due && seen.first_stop.is_some());
                prop_assert_eq!(supervision.killing(), seen.killing);
                let deadline = supervision.deadline();
                prop_assert!(deadline.is_none_or(|deadline| deadline > now));
                if seen.first_stop.is_some() && !seen.killing {
                    prop_assert_eq!(deadline, seen.kill_from);
                }
            }
            prop_assert_eq!(supervision.gone(), seen.gone);
        }
    }

    /// From wherever it is: killed, its leader reaped and nothing left, it says that it is gone.
    #[test]
    fn every_task_can_be_ended(events in prop::collection::vec((0..60_u64, event()), 0..40)) {
        let mut supervision = Supervision::new(None, millis(100));
        let mut now = Duration::ZERO;
        let mut actions = Vec::new();
        for (later, event) in events {
            now += millis(later);
            supervision.step(now, event, &mut actions);
        }
        let stop = Event::Stop(StopCause::Request, Some(Duration::ZERO));
        for event in [stop, Event::LeaderEnded(KILLED), Event::NoneLeft] {
            supervision.step(now, event, &mut actions);
        }
        prop_assert!(supervision.gone());
        let gone = Action::Say(Said::Gone);
        prop_assert_eq!(actions.iter().filter(|action| **action == gone).count(), 1);
        prop_assert_eq!(actions.last(), Some(&gone));
    }

    /// A clock that goes backwards does no harm.
    #[test]
    fn time_only_goes_on(events in prop::collection::vec((0..500_u64, event()), 0..40)) {
        let mut supervision = Supervision::new(Some(millis(250)), millis(50));
        let mut actions = Vec::new();
        for (at, event) in events {
            supervision.step(millis(at), event, &mut actions);
        }
        let kills = actions.iter().filter(|action| **action == Action::KillAll).count();
        prop_assert!(kills <= 1);
    }
}
