//! What is wrong with the pods of a sandbox, for the condition `PodFailed` and the phase.

use std::collections::BTreeMap;

use opensandbox_api::conditions::reason;

use super::machine::Machine;
use super::source::Source;
use crate::view::PodPhase;

/// The pods of the sandbox ended, by themselves.
const POD_ENDED: &str = "PodEnded";
/// A pod of somebody else has the name.
const NAME_TAKEN: &str = "NameTaken";

/// What is wrong with pods: reason, sentence, and whether the phase follows.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// One word.
    pub(super) reason: String,
    /// A sentence.
    pub(super) message: String,
    /// Whether the phase is `Failed`.
    pub(super) fails: bool,
}

impl Machine {
    /// What is wrong with pods, the worst first.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.broken_pods()
            .or_else(|| self.ended_pods())
            .or_else(|| self.pods_not_made())
            .or_else(|| self.lost_pods())
    }

    /// Pods with containers that cannot run.
    fn broken_pods(&self) -> Option<Fault> {
        let mut by_reason: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        let mut broken = 0;
        for (_, view) in self.counted() {
            if let Some(trouble) = view.trouble.as_ref().filter(|trouble| trouble.error) {
                broken += 1;
                by_reason
                    .entry(&trouble.reason)
                    .or_insert((0, &trouble.message))
                    .0 += 1;
            }
        }
        // Of equally many, the first by name: the condition must not flicker.
        let (most, (count, message)) = by_reason
            .iter()
            .max_by_key(|(reason, (count, _))| (*count, std::cmp::Reverse(**reason)))?;
        Some(Fault {
            reason: word(most),
            message: format!("{broken} pods cannot run, {count} of them: {message}"),
            fails: true,
        })
    }

    /// Pods that ended by themselves.
    fn ended_pods(&self) -> Option<Fault> {
        let ended = || self.counted().filter(|(_, view)| view.has_ended());
        let failed = ended().any(|(_, view)| view.phase == PodPhase::Failed);
        let message = names("pods ended", ended().map(|(name, _)| name))?;
        Some(Fault {
            reason: POD_ENDED.to_owned(),
            message,
            fails: failed,
        })
    }

    /// Pods that cannot be made.
    fn pods_not_made(&self) -> Option<Fault> {
        if self.source != Source::Template {
            return None;
        }
        let fault = |reason: &str, message: String| {
            Some(Fault {
                reason: reason.to_owned(),
                message,
                fails: false,
            })
        };
        if let Some(invalid) = self.own.invalid.values().next() {
            let others = self.own.invalid.len() - 1;
            let others = if others > 0 {
                format!("; {others} more shards likewise")
            } else {
                String::new()
            };
            return fault(invalid.reason, format!("{invalid}{others}"));
        }
        if let Some(message) = &self.own.refused {
            return fault(
                reason::POD_REFUSED,
                format!("the API server refused a pod: {message}"),
            );
        }
        let taken = names("pods of others have the names", self.own.foreign())?;
        fault(NAME_TAKEN, format!("{taken}; delete or rename them"))
    }

    /// Pods that are lost and not replaced yet.
    fn lost_pods(&self) -> Option<Fault> {
        let shards = self.shards();
        let held = self
            .members()
            .filter(|(index, _, pod)| {
                pod.lost.is_some() && pod.leaving.is_none() && *index < shards
            })
            .map(|(_, name, _)| name);
        let made = self
            .own
            .lost
            .keys()
            .filter(|name| self.pods.get(*name).is_none_or(|pod| pod.lost.is_none()));
        Some(Fault {
            reason: reason::POD_LOST.to_owned(),
            message: names("lost and being replaced", held.chain(made))?,
            fails: false,
        })
    }
}

/// A reason as conditions take it: one word, not empty.
fn word(reason: &str) -> String {
    let word: String = reason
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect();
    if word.is_empty() {
        "Unknown".to_owned()
    } else {
        word
    }
}

/// A sentence about some things with names, of which it lists the first.
fn names<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Option<String> {
    const LISTED: usize = 10;
    let mut names = names.peekable();
    names.peek()?;
    let listed: Vec<&str> = names.by_ref().take(LISTED).map(String::as_str).collect();
    let others = names.count();
    let others = if others > 0 {
        format!(" and {others} more")
    } else {
        String::new()
    };
    Some(format!("{what}: {}{others}", listed.join(", ")))
}
