//! Tables for single transitions, and random histories against a model of an agent.

use std::collections::{BTreeMap, HashMap};

use opensandbox_api::task::{End, LossReason, Process, State, WatchEvent};
use proptest::prelude::*;

use super::*;
use crate::agent::protocol::{Exit, Stage, StartFault, TaskReport, TaskState};

const HERE: Slot = Slot(0);

fn task(name: &str, uid: Option<u32>) -> Task {
    Task {
        name: name.to_owned(),
        uid: uid.map(|uid| format!("uid-{uid}")),
        process: Some(Process {
            command: vec!["true".to_owned()],
            ..Process::default()
        }),
        ..Task::default()
    }
}

fn running(key: TaskKey) -> TaskReport {
    TaskReport {
        key,
        note: None,
        state: TaskState::Running {
            pid: 7,
            started_at: 5,
        },
        stop: None,
        gone: false,
        output: true,
    }
}

fn ended(key: TaskKey, code: i32, gone: bool) -> TaskReport {
    TaskReport {
        state: TaskState::Ended {
            pid: 7,
            exit: Exit::Code(code),
            oom_killed: false,
            started_at: 5,
            finished_at: 9,
            duration_micros: 4000,
        },
        gone,
        output: false,
        ..running(key)
    }
}

fn started(ledger: &mut Ledger) -> Vec<(TaskKey, Note)> {
    let effects = ledger.take_effects().into_iter();
    let starts = effects.filter_map(|effect| match effect {
        Effect::Start(_, key, note) => Some((key, *note)),
        _ => None,
    });
    starts.collect()
}

fn connected(limit: usize) -> Ledger {
    let mut ledger = Ledger::new(limit, 100);
    ledger.connected(HERE, &[], 0);
    ledger
}

#[test]
fn a_task_waits_runs_ends_and_leaves() {
    let mut ledger = Ledger::new(1, 100);
    ledger.set(vec![(HERE, task("a", None))], 0);
    assert!(started(&mut ledger).is_empty());
    ledger.connected(HERE, &[], 0);
    let [(key, _)] = started(&mut ledger)[..] else {
        panic!()
    };
    ledger.report(HERE, &running(key), 1);
    assert_eq!(ledger.get("a").unwrap().state(), State::Running);
    ledger.report(HERE, &ended(key, 3, false), 2);
    let report = ledger.get("a").unwrap();
    assert_eq!(report.outcome.unwrap().exit_code(), 3);
    // What it left behind still runs: it stays in the list until that is gone.
    ledger.set(Vec::new(), 3);
    assert!(
        ledger
            .take_effects()
            .contains(&Effect::Stop(HERE, key, StopCause::Request))
    );
    assert_eq!(ledger.list().len(), 1);
    ledger.report(HERE, &ended(key, 3, true), 4);
    assert!(ledger.list().is_empty());
    assert!(ledger.take_effects().contains(&Effect::Forget(HERE, key)));
}

#[test]
fn another_uid_replaces_only_when_nothing_is_left() {
    let mut ledger = connected(64);
    ledger.set(vec![(HERE, task("a", Some(1)))], 0);
    let [(first, _)] = started(&mut ledger)[..] else {
        panic!()
    };
    ledger.report(HERE, &running(first), 1);
    ledger.set(vec![(HERE, task("a", Some(2)))], 2);
    assert!(started(&mut ledger).is_empty());
    ledger.report(HERE, &ended(first, 143, false), 3);
    assert!(started(&mut ledger).is_empty());
    assert_eq!(ledger.get("a").unwrap().uid.as_deref(), Some("uid-1"));
    ledger.report(HERE, &ended(first, 143, true), 4);
    assert_eq!(started(&mut ledger).len(), 1);
    assert_eq!(ledger.get("a").unwrap().uid.as_deref(), Some("uid-2"));
    // The first comes back, as a delayed request would have it: it has run, and is not run again.
    ledger.set(vec![(HERE, task("a", Some(1)))], 5);
    let second = ledger.key("a").unwrap();
    ledger.report(HERE, &ended(second, 0, true), 6);
    assert!(started(&mut ledger).is_empty());
    assert_eq!(ledger.get("a").unwrap().outcome.unwrap().exit_code(), 143);
}

#[test]
fn an_executor_that_comes_back_learns_everything_from_the_agent() {
    let mut before = connected(64);
    before.set(
        vec![(HERE, task("a", Some(1))), (HERE, task("b", Some(2)))],
        0,
    );
    let notes = started(&mut before);
    let mut after = Ledger::new(64, 10_000);
    // The operator is faster than the agent's snapshot: it repeats its order, with one run newer.
    after.set(
        vec![(HERE, task("a", Some(1))), (HERE, task("b", Some(3)))],
        1,
    );
    for ((key, note), code) in notes.iter().zip([0, 9]) {
        let report = TaskReport {
            note: Some(note.encode()),
            ..ended(*key, code, true)
        };
        after.report(HERE, &report, 2);
    }
    let known: Vec<_> = notes.iter().map(|(key, _)| *key).collect();
    after.connected(HERE, &known, 3);
    assert_eq!(after.get("a").unwrap().outcome.unwrap().exit_code(), 0);
    let starts = started(&mut after);
    assert_eq!(starts.len(), 1, "only the newer run of b: {starts:?}");
    assert_eq!(after.get("b").unwrap().uid.as_deref(), Some("uid-3"));
}

#[test]
fn a_start_that_did_not_arrive_is_given_again_and_one_that_did_is_not() {
    let mut ledger = connected(64);
    ledger.set(vec![(HERE, task("a", None)), (HERE, task("b", None))], 0);
    let starts = started(&mut ledger);
    let [(a, _), (b, _)] = &starts[..] else {
        panic!()
    };
    ledger.report(HERE, &running(*a), 1);
    ledger.connected(HERE, &[*a], 2);
    assert_eq!(
        started(&mut ledger)
            .iter()
            .map(|(key, _)| *key)
            .collect::<Vec<_>>(),
        [*b]
    );
}

#[test]
fn where_no_agent_can_be_had_tasks_fail_with_the_reason() {
    let mut ledger = Ledger::new(64, 1);
    ledger.set(vec![(HERE, task("a", None))], 0);
    ledger.waiting(HERE, ("SandboxNotReady", "no container"));
    let status = ledger.get("a").unwrap().process_status.unwrap();
    assert_eq!(status.waiting.unwrap().message, "no container");
    ledger.unreachable(HERE, StartFailure::InjectionRefused, "no SYS_PTRACE", 1);
    let outcome = ledger.get("a").unwrap().outcome.unwrap();
    assert_eq!(outcome.exit_code(), 125);
    assert!(started(&mut ledger).is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Set(Vec<(u8, Option<u32>)>),
    Create(u8, Option<u32>),
    Delete(u8),
    Progress(u8),
    AgentDies,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let uid = prop_oneof![Just(None), (0..6_u32).prop_map(Some)];
    prop_oneof![
        3 => proptest::collection::vec((0..4_u8, uid.clone()), 0..4).prop_map(Step::Set),
        2 => (0..4_u8, uid).prop_map(|(name, uid)| Step::Create(name, uid)),
        2 => (0..4_u8).prop_map(Step::Delete),
        8 => any::<u8>().prop_map(Step::Progress),
        1 => Just(Step::AgentDies),
        1 => Just(Step::Reconnect),
    ]
}

/// What an agent does with orders, one step at a time.
#[derive(Default)]
struct Agent {
    tasks: BTreeMap<TaskKey, (TaskReport, bool)>,
    /// Tasks whose program was said to run and not to have ended.
    programs: HashSet<String>,
}

impl Agent {
    fn obey(&mut self, effects: Vec<Effect>, starts: &mut Vec<(String, Option<String>)>) {
        for effect in effects {
            match effect {
                Effect::Start(_, key, note) => {
                    starts.push((note.task.name.clone(), note.task.uid.clone()));
                    let report = TaskReport {
                        state: TaskState::Starting,
                        note: Some(note.encode()),
                        ..running(key)
                    };
                    assert!(
                        self.tasks.insert(key, (report, false)).is_none(),
                        "started twice"
                    );
                }
                Effect::Stop(_, key, cause) => {
                    if let Some((report, stopping)) = self.tasks.get_mut(&key) {
                        report.stop.get_or_insert(cause);
                        *stopping = true;
                    }
                }
                Effect::Note(_, key, note) => {
                    let bare = TaskReport {
                        state: TaskState::NotStarted {
                            fault: StartFault {
                                stage: Stage::Invalid,
                                errno: 0,
                            },
                            at: 0,
                        },
                        gone: true,
                        output: false,
                        ..running(key)
                    };
                    let (report, _) = self.tasks.entry(key).or_insert((bare, false));
                    report.note = Some(note.encode());
                }
                Effect::Forget(_, key) => {
                    let forgotten = self.tasks.remove(&key);
                    assert!(forgotten.is_none_or(|(report, _)| report.gone));
                }
                Effect::Started(name, _) => assert!(self.programs.insert(name), "told twice"),
                Effect::Finished(_, name, outcome) => {
                    let ran = matches!(outcome.end, End::Exited { .. });
                    assert!(self.programs.remove(&name) || !ran, "{name} ended untold");
                }
                Effect::Removed(_) => {}
            }
        }
    }

    /// Lets one of its tasks go one step further.
    fn progress(&mut self, choice: u8) -> Option<TaskReport> {
        let open: Vec<_> = self
            .tasks
            .values_mut()
            .filter(|(report, _)| !report.gone)
            .collect();
        let count = open.len().max(1);
        let (report, stopping) = open.into_iter().nth(usize::from(choice) % count)?;
        let next = match report.state {
            TaskState::Starting if !*stopping && !choice.is_multiple_of(3) => running(report.key),
            TaskState::Ended { .. } => ended(report.key, 1, true),
            _ => ended(report.key, i32::from(choice), choice.is_multiple_of(2)),
        };
        report.state = next.state;
        report.gone = next.gone;
        Some(TaskReport {
            note: None,
            ..report.clone()
        })
    }
}

#[test]
fn what_comes_while_the_agent_is_gone_waits_for_the_next() {
    let mut ledger = Ledger::new(2, 1);
    ledger.connected(HERE, &[], 0);
    ledger.create(HERE, task("before", None)).unwrap();
    assert_eq!(ledger.take_effects().len(), 1);
    ledger.disconnected(HERE);
    ledger.create(HERE, task("meanwhile", None)).unwrap();
    assert_eq!(ledger.take_effects(), []);
    ledger.lost(HERE, LossReason::AgentKilled, "died", false, 1);
    let states: Vec<_> = ledger.list().iter().map(Task::state).collect();
    assert_eq!(states, [State::Failed, State::Waiting]);
    ledger.connected(HERE, &[], 2);
    let starts = |effect: &Effect| matches!(effect, Effect::Start(..));
    assert_eq!(
        ledger
            .take_effects()
            .iter()
            .filter(|effect| starts(effect))
            .count(),
        1
    );
}

proptest! {
    #[test]
    fn no_history_breaks_the_invariants(steps in proptest::collection::vec(step(), 1..80)) {
        let limit = 2;
        let mut ledger = Ledger::new(limit, 1);
        let mut agent = Agent::default();
        ledger.connected(HERE, &[], 0);
        let mut starts = Vec::new();
        let mut outcomes: HashMap<TaskKey, Outcome> = HashMap::new();
        let mut seen = BTreeMap::new();
        let mut position = 0;
        for (now, step) in (0_u64..).zip(steps) {
            match step {
                Step::Set(wanted) => {
                    let mut names = HashSet::new();
                    let wanted = wanted.into_iter()
                        .filter(|(name, _)| names.insert(*name))
                        .map(|(name, uid)| (HERE, task(&name.to_string(), uid)));
                    ledger.set(wanted.collect(), now);
                }
                Step::Create(name, uid) => {
                    ledger.create(HERE, task(&name.to_string(), uid)).ok();
                }
                Step::Delete(name) => ledger.delete(&name.to_string(), now),
                Step::Progress(choice) => {
                    if let Some(report) = agent.progress(choice) {
                        ledger.report(HERE, &report, now);
                    }
                }
                Step::AgentDies => {
                    agent = Agent::default();
                    ledger.lost(HERE, LossReason::AgentKilled, "died", false, now);
                    ledger.take_effects().into_iter().for_each(|effect| {
                        assert!(!matches!(effect, Effect::Start(..)), "started without an agent");
                    });
                    ledger.connected(HERE, &[], now);
                }
                Step::Reconnect => {
                    let known: Vec<_> = agent.tasks.keys().copied().collect();
                    for (report, _) in agent.tasks.values() {
                        ledger.report(HERE, report, now);
                    }
                    ledger.connected(HERE, &known, now);
                }
            }
            let effects = ledger.take_effects();
            for effect in &effects {
                if let Effect::Finished(key, _, outcome) = effect {
                    let before = outcomes.insert(*key, Outcome::clone(outcome));
                    prop_assert!(before.is_none() || before.as_ref() == Some(outcome.as_ref()));
                }
            }
            agent.obey(effects, &mut starts);
            // 1: names once. 3: the limit.
            let list = ledger.list();
            let names: HashSet<_> = list.iter().map(|task| task.name.clone()).collect();
            prop_assert_eq!(names.len(), list.len());
            prop_assert!(ledger.active() <= limit);
            let alive = agent.tasks.values().filter(|(report, _)| {
                matches!(report.state, TaskState::Starting | TaskState::Running { .. })
            });
            prop_assert!(alive.count() <= limit);
            // 2: no run twice.
            let uids: Vec<_> = starts.iter().filter(|(_, uid)| uid.is_some()).collect();
            prop_assert_eq!(uids.iter().collect::<HashSet<_>>().len(), uids.len());
            // 4: whatever the agent still has processes of is in the list.
            for (key, (report, _)) in &agent.tasks {
                let listed = ledger.entries.iter().any(|entry| entry.key == *key);
                prop_assert!(report.gone || listed, "{key:?} left the list while it lived");
            }
            // A client of the journal sees what the list is.
            while let Some(event) = ledger.journal().after(position) {
                position += 1;
                match event {
                    WatchEvent::Added { task, .. } => {
                        prop_assert!(seen.insert(task.name.clone(), task).is_none());
                    }
                    WatchEvent::Modified { task, .. } => {
                        prop_assert!(seen.insert(task.name.clone(), task).is_some());
                    }
                    WatchEvent::Deleted { task, .. } => {
                        prop_assert!(seen.remove(&task.name).is_some());
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let mut visible: BTreeMap<_, _> = BTreeMap::new();
            for task in list {
                visible.insert(task.name.clone(), (task.state(), task.uid));
            }
            let told: BTreeMap<_, _> = seen.iter()
                .map(|(name, task)| (name.clone(), (task.state(), task.uid.clone())))
                .collect();
            prop_assert_eq!(told, visible);
        }
    }
}
