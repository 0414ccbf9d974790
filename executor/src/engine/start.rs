//! From a task as it is ordered to a process as the agent starts it, and from what failed there to what
//! is reported. Pure.

use nix::errno::Errno;
use opensandbox_api::task::{End, LossReason, Outcome, Process, StartFailure, StoppedBy, Task};

use crate::agent::protocol::{Exit, Stage, StartFault, StartOrder, StopCause, TaskKey, TaskState};

/// The order that starts `task` in a container whose main process has `environment`.
///
/// # Errors
///
/// The task has no process, or no command: what is wrong, in a sentence.
pub fn order(
    key: TaskKey,
    task: &Task,
    environment: &[Vec<u8>],
    note: Vec<u8>,
) -> Result<StartOrder, String> {
    let Some(process) = &task.process else {
        return Err("process is missing: give process.command".to_owned());
    };
    let argv: Vec<_> = process
        .argv()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    if argv.first().is_none_or(Vec::is_empty) {
        return Err("process.command is empty: name a program".to_owned());
    }
    let directory = process.working_dir.as_bytes();
    Ok(StartOrder {
        key,
        note,
        argv,
        env: merged(environment, process),
        working_directory: (!directory.is_empty()).then(|| directory.to_vec()),
        timeout_millis: process.timeout().map(millis),
        grace_millis: millis(process.grace_period()),
    })
}

/// The main process's environment with the task's over it: a name appears once, where it first stood,
/// with the value given last.
fn merged(environment: &[Vec<u8>], process: &Process) -> Vec<Vec<u8>> {
    let mut merged: Vec<Vec<u8>> = Vec::with_capacity(environment.len() + process.env.len());
    let mut places = std::collections::HashMap::<Vec<u8>, usize>::new();
    let task = process.env.iter().map(|variable| {
        let mut entry = variable.name.clone().into_bytes();
        entry.push(b'=');
        entry.extend_from_slice(variable.value.expose().as_bytes());
        entry
    });
    for entry in environment.iter().cloned().chain(task) {
        let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
        if let Some(place) = places.get(name).and_then(|place| merged.get_mut(*place)) {
            *place = entry;
        } else {
            places.insert(name.to_vec(), merged.len());
            merged.push(entry);
        }
    }
    merged
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How a task ended, if its state is final. `stop` is why it was being stopped by then.
pub fn outcome(state: &TaskState, stop: Option<StopCause>, task: &Task) -> Option<Outcome> {
    let mut outcome = match state {
        TaskState::Starting | TaskState::Running { .. } => return None,
        TaskState::NotStarted { fault, .. } => Outcome::of(not_started(*fault, task)),
        TaskState::Ended {
            exit,
            oom_killed,
            duration_micros,
            ..
        } => Outcome {
            oom_killed: *oom_killed,
            duration_millis: Some(duration_micros / 1000),
            ..Outcome::of(match *exit {
                Exit::Code(code) => End::Exited { code },
                Exit::Signal {
                    signal,
                    core_dumped,
                } => End::Signaled {
                    signal,
                    core_dumped,
                },
            })
        },
        TaskState::Lost { .. } => Outcome::of(End::Lost {
            reason: LossReason::AgentKilled,
            message: "the process that watches over the task was killed, so nobody saw how the \
                      task ended"
                .to_owned(),
        }),
    };
    outcome.timed_out = stop == Some(StopCause::Timeout);
    outcome.stopped_by = stop.map(|cause| match cause {
        StopCause::Request => StoppedBy::Request,
        StopCause::Replacement => StoppedBy::Replacement,
        StopCause::Timeout => StoppedBy::Timeout,
        StopCause::Shutdown => StoppedBy::Shutdown,
    });
    Some(outcome)
}

fn not_started(fault: StartFault, task: &Task) -> End {
    let errno = Errno::from_raw(fault.errno);
    let process = task.process.as_ref();
    let program = process
        .and_then(|process| process.command.first())
        .map_or("", String::as_str);
    let exhausted = matches!(
        errno,
        Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC
    );
    let (failure, what) = match fault.stage {
        _ if exhausted => (
            StartFailure::ResourcesExhausted,
            "the sandbox container has no room for another task".to_owned(),
        ),
        Stage::Pipes | Stage::Fork | Stage::Setup => (
            StartFailure::Other,
            "the task's process cannot be set up".to_owned(),
        ),
        Stage::WorkingDirectory => (
            StartFailure::BadWorkingDirectory,
            format!(
                "working directory {:?} cannot be entered",
                process.map_or("", |process| process.working_dir.as_str())
            ),
        ),
        Stage::Exec => match errno {
            Errno::ENOENT | Errno::ENOTDIR if program.contains('/') => (
                StartFailure::NotFound,
                format!("{program:?} or its interpreter is not there"),
            ),
            Errno::ENOENT | Errno::ENOTDIR => (
                StartFailure::NotFound,
                format!("{program:?} is not found in PATH"),
            ),
            _ => (
                StartFailure::NotExecutable,
                format!("{program:?} cannot be executed"),
            ),
        },
        Stage::Invalid => (StartFailure::Invalid, "the task makes no sense".to_owned()),
    };
    End::NotStarted {
        failure,
        message: format!("{what}: {}", errno.desc()),
    }
}

#[cfg(test)]
mod tests {
    use opensandbox_api::task::tasks_from_json;

    use super::*;

    fn task(json: &str) -> Task {
        tasks_from_json(format!("[{json}]").as_bytes())
            .unwrap()
            .remove(0)
    }

    #[test]
    fn the_environment_is_merged_by_name_in_place() {
        let task = task(
            r#"{"name":"t","process":{"command":["a"],"args":["b"],"env":[
                {"name":"B","value":"2"},{"name":"C","value":"3"},{"name":"C","value":"4=5"},{"name":"E"}]}}"#,
        );
        let main = [
            b"A=1".to_vec(),
            b"B=\xff".to_vec(),
            b"A=0".to_vec(),
            b"odd".to_vec(),
        ];
        let order = order(TaskKey(1), &task, &main, Vec::new()).unwrap();
        let env: Vec<_> = order
            .env
            .iter()
            .map(|entry| String::from_utf8_lossy(entry))
            .collect();
        assert_eq!(env, ["A=0", "B=2", "odd", "C=4=5", "E="]);
        assert_eq!(order.argv, [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(order.timeout_millis, None);
        assert_eq!(order.grace_millis, 10_000);
    }

    #[test]
    fn without_a_program_there_is_no_order() {
        for json in [
            r#"{"name":"t"}"#,
            r#"{"name":"t","process":{}}"#,
            r#"{"name":"t","process":{"command":[""]}}"#,
        ] {
            assert!(
                order(TaskKey(1), &task(json), &[], Vec::new()).is_err(),
                "{json}"
            );
        }
    }

    #[test]
    fn failures_to_start_have_the_codes_of_shells() {
        let task = task(r#"{"name":"t","process":{"command":["nope"],"workingDir":"/x"}}"#);
        let code = |stage, errno: Errno| {
            let fault = StartFault {
                stage,
                errno: errno as i32,
            };
            let state = TaskState::NotStarted { fault, at: 0 };
            let outcome = outcome(&state, None, &task).unwrap();
            let End::NotStarted { message, .. } = &outcome.end else {
                panic!("{outcome:?}")
            };
            (outcome.exit_code(), message.clone())
        };
        let (exit, message) = code(Stage::Exec, Errno::ENOENT);
        assert_eq!(exit, 127);
        assert_eq!(
            message,
            "\"nope\" is not found in PATH: No such file or directory"
        );
        assert_eq!(code(Stage::Exec, Errno::EACCES).0, 126);
        assert_eq!(code(Stage::Exec, Errno::ENOEXEC).0, 126);
        assert_eq!(code(Stage::Exec, Errno::E2BIG).0, 126);
        let (exit, message) = code(Stage::WorkingDirectory, Errno::ENOENT);
        assert_eq!(exit, 125);
        assert!(message.contains("\"/x\""), "{message}");
        assert_eq!(code(Stage::Fork, Errno::EAGAIN).0, 125);
    }

    #[test]
    fn an_outcome_says_who_stopped_it() {
        let state = TaskState::Ended {
            pid: 1,
            exit: Exit::Signal {
                signal: 15,
                core_dumped: false,
            },
            oom_killed: false,
            started_at: 0,
            finished_at: 0,
            duration_micros: 1_500_999,
        };
        let task = Task::default();
        let timed_out = outcome(&state, Some(StopCause::Timeout), &task).unwrap();
        assert_eq!(
            (timed_out.exit_code(), timed_out.reason()),
            (137, "TaskTimeout")
        );
        let stopped = outcome(&state, Some(StopCause::Request), &task).unwrap();
        assert_eq!((stopped.exit_code(), stopped.reason()), (143, "Stopped"));
        assert_eq!(stopped.duration_millis, Some(1500));
        assert!(outcome(&TaskState::Starting, None, &task).is_none());
    }
}
