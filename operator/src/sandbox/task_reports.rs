//! What executors say about tasks, and what follows when they say nothing any more. Pure.
//!
//! Executors run where sandbox code runs: what they say is bounded, and believed only about tasks of
//! our identity.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use opensandbox_api::names::TaskIdentity;
use opensandbox_api::task::{self, Task};

use super::record::MAX_ATTEMPT;
use super::tasks::{EndNote, Ended, MAX_MESSAGE, State, Table, Trouble, UNKNOWN_AFTER, unknown};
use super::text::cut;
use crate::session::Seen;
use crate::time::{later, whole_seconds};

/// Longest tail of standard error, in bytes.
const MAX_TAIL: usize = 1024;
/// Longest reason, in bytes.
const MAX_REASON: usize = 64;

impl Table {
    /// What the executor of the pod that holds shard `index` lists, and whether another process gave it
    /// that pod. Returns what ended.
    pub(super) fn observe(
        &mut self,
        index: u32,
        (pod, found): (&str, bool),
        list: &[Seen],
        now: Timestamp,
    ) -> Option<EndNote> {
        let ours = list
            .iter()
            .filter_map(|seen| Some((self.attempt_of(index, found, &seen.task)?, seen)))
            .max_by_key(|(attempt, _)| *attempt)
            .filter(|(attempt, _)| *attempt >= self.attempt(index));
        let Some((attempt, seen)) = ours else {
            self.absent(index, now);
            return None;
        };
        let cell = self.cells.entry(index).or_default();
        if cell.removed {
            return None;
        }
        if let State::Ended(ended) = &mut cell.state {
            // Only the tail may still come: it is fetched after the end was told.
            if attempt == cell.attempt && !ended.succeeded && ended.stderr_tail.is_none() {
                ended.stderr_tail = tail(seen);
            }
            return None;
        }
        cell.attempt = attempt.min(MAX_ATTEMPT);
        cell.pod = Some(pod.to_owned());
        cell.seen = true;
        cell.trouble = None;
        match seen.task.state() {
            task::State::Waiting => {
                cell.state = State::Open;
                None
            }
            task::State::Running => {
                let running = seen.task.process_status.as_ref();
                let running = running.and_then(|status| status.running.as_ref());
                cell.state = State::Running {
                    started: running.and_then(|running| time(running.started_at.as_deref())),
                };
                None
            }
            task::State::Succeeded | task::State::Failed => {
                let (ended, note) = end(seen);
                cell.state = State::Ended(Box::new(ended));
                Some(note)
            }
        }
    }

    /// Which run of task `index` this is; `None` if it is another's.
    fn attempt_of(&self, index: u32, found: bool, task: &Task) -> Option<u32> {
        let is_named = || task.name == self.name(index);
        if self.by_name {
            return is_named().then(|| self.attempt(index));
        }
        let Some(uid) = task.uid.as_deref() else {
            // Upstream's operator begins tasks without identity, and knows one run only.
            let upstreams = found && self.attempt(index) == 0 && is_named();
            return upstreams.then_some(0);
        };
        let identity: TaskIdentity = uid.parse().ok()?;
        let ours = Some(&identity.sandbox) == self.uid.as_ref() && identity.index == index;
        ours.then_some(identity.attempt)
    }

    /// The executor answers, and does not list the task.
    fn absent(&mut self, index: u32, now: Timestamp) {
        let Some(cell) = self.cells.get_mut(&index) else {
            return;
        };
        if matches!(cell.state, State::Ended(_)) {
            return;
        }
        if !cell.seen {
            cell.trouble = None;
            return;
        }
        let vanished = |trouble: &Trouble| trouble.reason == unknown::TASK_VANISHED;
        if !cell.trouble.as_ref().is_some_and(vanished) {
            cell.trouble = Some(Trouble {
                since: now,
                reason: unknown::TASK_VANISHED,
                message: "the executor had the task and does not list it any more".to_owned(),
                fatal: true,
            });
        }
    }

    /// Nothing is known about the task since then.
    pub(super) fn troubled(&mut self, index: u32, trouble: Trouble) {
        let cell = self.cells.entry(index).or_default();
        if !matches!(cell.state, State::Ended(_)) && !cell.removed {
            cell.trouble = Some(trouble);
        }
    }

    /// Whether trouble that no executor will resolve has been noted, so that nothing more is ordered.
    pub(super) fn is_fatal(&self, index: u32) -> bool {
        self.get(index)
            .and_then(|cell| cell.trouble.as_ref())
            .is_some_and(|trouble| trouble.fatal)
    }

    /// Sets a task failed that cannot be ordered.
    pub(super) fn fail(
        &mut self,
        index: u32,
        reason: &'static str,
        message: &str,
        now: Timestamp,
    ) -> EndNote {
        let cell = self.cells.entry(index).or_default();
        cell.trouble = None;
        cell.state = State::Ended(Box::new(Ended {
            reason: Some(reason.to_owned()),
            message: Some(cut(message, MAX_MESSAGE)),
            finished: Some(Time(whole_seconds(now))),
            ..Ended::default()
        }));
        EndNote {
            reason,
            millis: None,
        }
    }

    /// Ends tasks whose fatal trouble has lasted.
    pub(super) fn settle(&mut self, now: Timestamp) -> Vec<EndNote> {
        let over: Vec<(u32, String)> = self
            .cells
            .iter()
            .filter_map(|(index, cell)| {
                let trouble = cell.trouble.as_ref().filter(|trouble| trouble.fatal)?;
                (later(trouble.since, UNKNOWN_AFTER) <= now)
                    .then(|| (*index, trouble.message.clone()))
            })
            .collect();
        over.into_iter()
            .map(|(index, message)| self.fail(index, task::reason::PROCESS_CRASHED, &message, now))
            .collect()
    }

    /// When something changes by the passing of time alone.
    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        self.cells
            .values()
            .filter_map(|cell| cell.trouble.as_ref())
            .map(|trouble| later(trouble.since, UNKNOWN_AFTER))
            .filter(|deadline| *deadline > now)
            .min()
    }
}

/// The end that an executor tells.
fn end(seen: &Seen) -> (Ended, EndNote) {
    let terminated = seen
        .task
        .process_status
        .as_ref()
        .and_then(|status| status.terminated.clone())
        .unwrap_or_default();
    let succeeded = seen.task.state() == task::State::Succeeded;
    let outcome = seen.task.outcome.as_ref();
    let reason = if terminated.reason.is_empty() {
        match outcome {
            Some(outcome) => outcome.reason(),
            None if succeeded => task::reason::SUCCEEDED,
            None => task::reason::FAILED,
        }
        .to_owned()
    } else {
        cut(&terminated.reason, MAX_REASON)
    };
    let started = time(terminated.started_at.as_deref());
    let finished = time(terminated.finished_at.as_deref());
    let measured = outcome.and_then(|outcome| outcome.duration_millis);
    let millis = measured.or_else(|| {
        let (Time(started), Time(finished)) = (started.clone()?, finished.clone()?);
        u64::try_from(finished.duration_since(started).as_millis()).ok()
    });
    let note = EndNote {
        reason: known_reason(&reason),
        millis,
    };
    let ended = Ended {
        succeeded,
        exit_code: Some(terminated.exit_code),
        signal: (terminated.signal > 0).then_some(terminated.signal),
        reason: Some(reason),
        message: (!terminated.message.is_empty()).then(|| cut(&terminated.message, MAX_MESSAGE)),
        started,
        finished,
        stderr_tail: if succeeded { None } else { tail(seen) },
    };
    (ended, note)
}

/// Executors run where sandbox code runs: what they say must not make metrics of any number.
fn known_reason(reason: &str) -> &'static str {
    use task::reason as known;
    [
        known::SUCCEEDED,
        known::FAILED,
        known::PROCESS_CRASHED,
        known::TASK_TIMEOUT,
        known::OOM_KILLED,
        known::STOPPED,
        known::START_FAILED,
    ]
    .into_iter()
    .find(|word| *word == reason)
    .unwrap_or(known::UNKNOWN)
}

fn tail(seen: &Seen) -> Option<String> {
    let tail = seen
        .stderr_tail
        .as_deref()
        .filter(|tail| !tail.is_empty())?;
    // The end is what matters.
    let from = tail.ceil_char_boundary(tail.len().saturating_sub(MAX_TAIL));
    Some(tail[from..].to_owned())
}

fn time(text: Option<&str>) -> Option<Time> {
    let time: Timestamp = text?.parse().ok()?;
    Some(Time(whole_seconds(time)))
}
