//! `status.taskResults`: what users read about their tasks, bounded in number and size. Pure.

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::v1alpha1::{TaskResult, TaskResultState};

use super::tasks::{Ended, State, Table};
use super::text::cut;

/// Most results.
const MAX_RESULTS: usize = 100;
/// Most bytes of all results as JSON.
const MAX_BYTES: usize = 64 * 1024;
/// Longest message, in bytes.
const MAX_MESSAGE: usize = 512;

/// The results of tasks below `replicas`: failed ones first, then those not known, then running ones,
/// then the others, each by index; as many as there is room for.
pub(super) fn list(table: &Table, replicas: u32, now: Timestamp) -> Vec<TaskResult> {
    let mut classes: [Vec<u32>; 4] = Default::default();
    // Beyond the bound, indices that nobody touched are not worth walking through.
    let walked = table.recorded(0).max(MAX_RESULTS);
    for index in (0..replicas).take(walked) {
        let class = match table.shown(index, now) {
            TaskResultState::Failed => 0,
            TaskResultState::Unknown => 1,
            TaskResultState::Running => 2,
            TaskResultState::Pending | TaskResultState::Succeeded => 3,
        };
        if let Some(class) = classes
            .get_mut(class)
            .filter(|class| class.len() < MAX_RESULTS)
        {
            class.push(index);
        }
    }
    let mut bytes = 0;
    classes
        .into_iter()
        .flatten()
        .take(MAX_RESULTS)
        .map(|index| result(table, index, now))
        .take_while(|result| {
            let json = serde_json::to_vec(result).map_or(MAX_BYTES, |json| json.len());
            bytes += json + 1;
            bytes <= MAX_BYTES
        })
        .collect()
}

fn result(table: &Table, index: u32, now: Timestamp) -> TaskResult {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let mut result = TaskResult {
        name: table.name(index),
        index: number(index),
        attempt: Some(number(table.attempt(index))),
        pod: None,
        state: table.shown(index, now),
        exit_code: None,
        signal: None,
        reason: None,
        message: None,
        started_at: None,
        finished_at: None,
        stderr_tail: None,
    };
    let Some(cell) = table.get(index).filter(|cell| !cell.removed) else {
        return result;
    };
    result.pod.clone_from(&cell.pod);
    if let Some(trouble) = cell.unknown(now) {
        result.reason = Some(trouble.reason.to_owned());
        result.message = Some(cut(&trouble.message, MAX_MESSAGE));
    }
    match &cell.state {
        State::Open => {}
        State::Running { started } => result.started_at.clone_from(started),
        State::Ended(ended) => {
            let Ended {
                succeeded: _,
                exit_code,
                signal,
                reason,
                message,
                started,
                finished,
                stderr_tail,
            } = &**ended;
            result.exit_code = *exit_code;
            result.signal = *signal;
            result.reason.clone_from(reason);
            result.message.clone_from(message);
            result.started_at.clone_from(started);
            result.finished_at.clone_from(finished);
            result.stderr_tail.clone_from(stderr_tail);
        }
    }
    result
}
