//! Pods that are being made: each by a name chosen here, so that no doubt makes two of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::capacity::{self, Change};
use opensandbox_api::conditions::reason;

use super::backoff::{Backoff, after};
use super::facts::Rules;
use super::scale::LONGEST_BACKOFF;
use super::{Ledger, Output};
use crate::pod_security;
use crate::view::PodView;
use crate::write::WriteError;

/// Longest time until a creation without a clear answer is repeated.
const LONGEST_REPEAT: SignedDuration = SignedDuration::from_secs(30);
/// How long the watch may take to show what a write did, until it is asked what became of it.
pub(super) const SHOWN_WITHIN: SignedDuration = SignedDuration::from_mins(1);
/// How many names are tried at once for a pod.
const NAMES: usize = 8;

/// A pod that is being made.
#[derive(Debug)]
struct Birth {
    /// How many creations were asked for before it, and itself.
    number: u64,
    /// Tries that may have made a pod which has not been seen: those without a clear answer, and the one
    /// under way. More than one may have: the next if the first one's pod was gone by then.
    unseen: u32,
    /// Whether one was seen, so that it is not tried again.
    seen: bool,
    backoff: Backoff,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// An answer is waited for.
    Asked,
    /// It may exist; it is asked for again at this time.
    Again(Timestamp),
    /// It exists, most likely by an earlier try; the watch shows it before this time, or it is another's.
    Exists(Timestamp),
}

/// What is known about a pod that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sighting {
    /// Nobody here has asked for it, or its answer has come.
    Unasked,
    /// It is the one that was asked for.
    First,
    /// One of its name was seen before its creation was repeated.
    Again,
}

/// Why pods cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// In one word, for the condition.
    pub(super) reason: &'static str,
    /// In a sentence.
    pub(super) message: String,
}

/// Creations under way, and whether they work.
#[derive(Debug, Default)]
pub(super) struct Births {
    by_name: BTreeMap<String, Birth>,
    timers: BTreeSet<(Timestamp, String)>,
    asked: u64,
    failure: Option<Failure>,
    /// How many had been asked for when one was refused last.
    refused_at: u64,
    backoff: Backoff,
}

impl Births {
    /// How many pods are being made.
    pub(super) fn pending(&self) -> u32 {
        u32::try_from(self.by_name.len()).unwrap_or(u32::MAX)
    }

    /// Why pods cannot be made, if so.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The pods that were being made belong to a Pool that is gone.
    pub(super) fn clear(&mut self) {
        let asked = self.asked;
        *self = Self::default();
        self.asked = asked;
    }

    /// What was refused may be allowed now.
    pub(super) fn try_again(&mut self) {
        self.backoff.reset();
    }

    /// How many may be asked for now: while they fail, one at a time tries.
    pub(super) fn allowance(&self, now: Timestamp) -> u32 {
        if self.failure.is_none() {
            u32::MAX
        } else {
            u32::from(self.backoff.waits_until(now).is_none() && self.by_name.is_empty())
        }
    }

    fn remove(&mut self, name: &str) -> Option<Birth> {
        let birth = self.by_name.remove(name)?;
        if let Stage::Again(at) | Stage::Exists(at) = birth.stage {
            self.timers.remove(&(at, name.to_owned()));
        }
        Some(birth)
    }

    fn wait(&mut self, name: &str, stage: Stage) {
        let Some(birth) = self.by_name.get_mut(name) else {
            return;
        };
        if let Stage::Again(at) | Stage::Exists(at) = birth.stage {
            self.timers.remove(&(at, name.to_owned()));
        }
        if let Stage::Again(at) | Stage::Exists(at) = stage {
            self.timers.insert((at, name.to_owned()));
        }
        birth.stage = stage;
    }

    /// A pod of this name was seen; whether for the first time, and whether it is the Pool's.
    pub(super) fn seen(&mut self, name: &str, new: bool, ours: bool, now: Timestamp) -> Sighting {
        let Some(birth) = self.by_name.get_mut(name) else {
            return Sighting::Unasked;
        };
        let number = birth.number;
        let sighting = if birth.seen {
            Sighting::Again
        } else {
            Sighting::First
        };
        birth.seen = true;
        birth.unseen = birth.unseen.saturating_sub(u32::from(new));
        if birth.unseen == 0 {
            self.remove(name);
        } else if matches!(birth.stage, Stage::Again(_)) {
            self.wait(name, Stage::Exists(after(now, SHOWN_WITHIN)));
        }
        if ours {
            self.succeeded(number);
        }
        sighting
    }

    fn succeeded(&mut self, number: u64) {
        // A success that was asked for before the last refusal says nothing about now.
        if number > self.refused_at {
            self.failure = None;
            self.backoff.reset();
        }
    }

    /// Notes a refusal; returns whether creations worked before.
    fn refused(&mut self, number: u64, problem: Failure, now: Timestamp) -> bool {
        let worked = self.failure.is_none();
        // Those that were asked for together are one failure.
        if worked || number > self.refused_at {
            self.backoff.fail(now, LONGEST_BACKOFF);
            self.failure = Some(problem);
        }
        self.refused_at = self.asked;
        worked
    }

    pub(super) fn next_timer(&self, now: Timestamp) -> Option<Timestamp> {
        let first = self.timers.first().map(|(at, _)| *at);
        let retry = self.backoff.waits_until(now);
        [first, retry].into_iter().flatten().min()
    }

    fn due(&mut self, now: Timestamp) -> Vec<String> {
        let mut due = Vec::new();
        while let Some((at, name)) = self.timers.first().cloned()
            && at <= now
        {
            self.timers.pop_first();
            due.push(name);
        }
        due
    }
}

impl Ledger {
    /// Asks for one more pod.
    pub(super) fn create(&mut self, rules: &Rules) {
        let name = (0..NAMES).find_map(|_| {
            let name = self.names.next(&rules.name).ok()?;
            let free = self.pods.get(&name).is_none() && !self.births.by_name.contains_key(&name);
            free.then_some(name)
        });
        let (Some(name), Ok(mold)) = (name, &rules.mold) else {
            return;
        };
        self.surge = self.surge.saturating_sub(1);
        self.births.asked += 1;
        let birth = Birth {
            number: self.births.asked,
            unseen: 1,
            seen: false,
            backoff: Backoff::default(),
            stage: Stage::Asked,
        };
        self.births.by_name.insert(name.clone(), birth);
        let pod = mold.pod(&name);
        self.out.push(Output::CreatePod { name, pod });
    }

    /// Takes the answer to [`Output::CreatePod`].
    pub(super) fn created(
        &mut self,
        name: &str,
        result: Result<Arc<PodView>, WriteError>,
        now: Timestamp,
    ) {
        let birth = self.births.by_name.get_mut(name);
        let Some(birth) = birth.filter(|birth| birth.stage == Stage::Asked) else {
            // The watch was faster. A pod that is not known any more is gone meanwhile.
            if let Ok(view) = result
                && self.pods.get_exactly(name, &view.uid).is_some()
            {
                self.see_pod(&view, now);
            }
            return;
        };
        let number = birth.number;
        if matches!(&result, Err(error) if !matches!(error, WriteError::Unclear { .. })) {
            // This try made nothing; an earlier one may have.
            birth.unseen = birth.unseen.saturating_sub(1);
        }
        let (unseen, seen) = (birth.unseen > 0, birth.seen);
        match result {
            Ok(view) => {
                self.see_pod(&view, now);
                self.births.remove(name);
                self.births.succeeded(number);
            }
            Err(WriteError::Unclear { .. } | WriteError::Fenced | WriteError::Conflict)
                if !seen =>
            {
                let at = match self.births.by_name.get_mut(name) {
                    Some(birth) => birth.backoff.fail(now, LONGEST_REPEAT),
                    None => return,
                };
                self.births.wait(name, Stage::Again(at));
            }
            Err(error) => {
                if unseen {
                    self.births
                        .wait(name, Stage::Exists(after(now, SHOWN_WITHIN)));
                } else {
                    self.births.remove(name);
                }
                if matches!(error, WriteError::Refused { .. } | WriteError::NotFound) {
                    self.creation_refused(number, &error, now);
                }
            }
        }
    }

    fn creation_refused(&mut self, number: u64, error: &WriteError, now: Timestamp) {
        let problem = self.failure(error);
        if self.births.refused(number, problem.clone(), now) {
            let note = format!("a pod could not be made: {}", problem.message);
            self.event(true, "FailedCreate", "Create", note);
        }
    }

    /// A refusal, with what to do about it where that is known.
    fn failure(&self, error: &WriteError) -> Failure {
        let message = error.to_string();
        let rules = self.active();
        let mode = rules.and_then(|rules| rules.mold.as_ref().ok()?.mode);
        match pod_security::remedy(&message, mode) {
            Some(remedy) => Failure {
                reason: reason::POD_SECURITY_FORBIDS,
                // Of the two, the refusal is the longer one, and may lose its end.
                message: super::build::cut(format!("{remedy}; {message}")),
            },
            None => Failure {
                reason: reason::POD_REFUSED,
                message: super::build::cut(message),
            },
        }
    }

    /// Repeats creations without a clear answer, by the same name: at most one pod of that name exists at a
    /// time. One that is not wanted any more is not repeated; it still counts until the watch must have
    /// shown it.
    pub(super) fn births_are_due(&mut self, now: Timestamp) {
        for name in self.births.due(now) {
            let Some(birth) = self.births.by_name.get(&name) else {
                continue;
            };
            if let Stage::Exists(_) = birth.stage {
                self.births.by_name.remove(&name);
                continue;
            }
            let rules = self.active().filter(|rules| self.is_wanted(rules));
            match rules.and_then(|rules| Some(rules.mold.as_ref().ok()?.pod(&name))) {
                Some(pod) => {
                    if let Some(birth) = self.births.by_name.get_mut(&name) {
                        birth.unseen = birth.unseen.saturating_add(1);
                        birth.stage = Stage::Asked;
                    }
                    self.out.push(Output::CreatePod { name, pod });
                }
                None => self
                    .births
                    .wait(&name, Stage::Exists(after(now, SHOWN_WITHIN))),
            }
        }
    }

    /// Whether the pods that are being made are all wanted.
    fn is_wanted(&self, rules: &Rules) -> bool {
        let census = self.census();
        let all = census
            .allocated
            .saturating_add(census.idle)
            .saturating_add(census.terminating);
        let surplus = matches!(
            capacity::change(rules.capacity, census),
            Change::DeleteIdle(_)
        );
        all <= rules.pool_max && !surplus
    }
}
