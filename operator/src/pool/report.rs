//! When the Pool's status is written.
//!
//! At most one write is under way, at once after a quiet time and otherwise at most one in [`APART`], and
//! none that says what is stored already.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::conditions::reason;
use opensandbox_api::v1alpha1::PoolStatus;

use super::backoff::{Backoff, after, has_passed};
use super::births::Failure;
use super::facts::Facts;
use super::status::{Gist, status};
use super::{Ledger, Note, Output};
use crate::view::Version;
use crate::write::WriteError;

/// Least time between two writes.
const APART: SignedDuration = SignedDuration::from_millis(100);
/// When a status is written again that was written and is not what is stored: somebody else writes it too,
/// or the stored CRD is an older one that drops a field.
const CONTESTED: SignedDuration = SignedDuration::from_mins(5);
/// Longest time between two tries.
const LONGEST_RETRY: SignedDuration = SignedDuration::from_mins(1);

/// The status as it is stored, and the writes of it.
#[derive(Debug, Default)]
pub(super) struct Report {
    stored: PoolStatus,
    version: Version,
    uid: String,
    /// What is stored says this; nothing is to do while it is true.
    said: Option<Gist>,
    writing: Option<(Gist, PoolStatus, Version)>,
    /// Whether the write under way is of a Pool that is gone.
    orphan: bool,
    /// What was written last, if that is known to have happened.
    written: Option<Gist>,
    last_write: Option<Timestamp>,
    backoff: Backoff,
    /// The version that a write has met: a newer one must be seen first.
    outrun: Option<Version>,
    next: Option<Timestamp>,
    /// What was wrong with pods that were replaced, until one works.
    trouble: Option<String>,
    census: Option<Note>,
    asked: Option<Note>,
}

impl Report {
    /// Takes in what is stored.
    pub(super) fn adopt(&mut self, facts: Option<&Facts>) {
        let Some(view) = facts.map(|facts| &facts.view) else {
            *self = Self {
                census: self.census.take(),
                asked: self.asked.take(),
                orphan: self.orphan || self.writing.is_some(),
                ..Self::default()
            };
            return;
        };
        if self.uid != view.uid {
            self.adopt(None);
            self.uid.clone_from(&view.uid);
        }
        if self.stored != view.status {
            self.said = None;
            self.stored = view.status.clone();
        }
        self.version = self.version.max(view.version);
        if self.outrun.is_some_and(|outrun| view.version > outrun) {
            self.outrun = None;
        }
    }

    /// Whether an answer or a newer version must come before the next write.
    fn is_blocked(&self) -> bool {
        self.orphan || self.writing.is_some() || self.outrun.is_some()
    }

    /// The newest version of the Pool that is known.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Something changed that the counts do not show.
    pub(super) fn look_again(&mut self) {
        self.said = None;
    }

    pub(super) fn trouble_is(&mut self, words: &str) {
        self.trouble = Some(super::build::cut(words.to_owned()));
    }

    pub(super) fn trouble_is_over(&mut self) {
        self.trouble = None;
    }

    pub(super) fn next_timer(&self) -> Option<Timestamp> {
        self.next
    }
}

impl Ledger {
    /// Writes the status if it is not what is stored and the time has come.
    pub(super) fn report(&mut self, now: Timestamp) {
        self.count();
        self.report.next = None;
        let Some(facts) = &self.facts else { return };
        if facts.view.deleting || self.report.is_blocked() {
            return;
        }
        let gist = self.gist(facts);
        if self.report.said.as_ref() == Some(&gist) {
            return;
        }
        let paced = self
            .report
            .last_write
            .filter(|last| !has_passed(*last, APART, now))
            .map(|last| after(last, APART));
        if let Some(next) = paced.max(self.report.backoff.waits_until(now)) {
            self.report.next = Some(next);
            return;
        }
        let status = status(&self.report.stored, &gist, now);
        if status == self.report.stored {
            self.report.said = Some(gist);
            return;
        }
        if let Some(last) = self.report.last_write
            && self.report.written.as_ref() == Some(&gist)
            && !has_passed(last, CONTESTED, now)
        {
            self.report.next = Some(after(last, CONTESTED));
            return;
        }
        let version = self.report.version;
        self.report.writing = Some((gist, status.clone(), version));
        self.report.written = None;
        self.report.last_write = Some(now);
        self.out.push(Output::WriteStatus {
            version,
            status: Box::new(status),
        });
    }

    /// Takes the answer to [`Output::WriteStatus`].
    pub(super) fn status_written(&mut self, result: &Result<Version, WriteError>, now: Timestamp) {
        let report = &mut self.report;
        if std::mem::take(&mut report.orphan) {
            return;
        }
        let Some((gist, status, sent)) = report.writing.take() else {
            return;
        };
        let written = gist.clone();
        match result {
            Ok(version) => {
                if *version >= report.version {
                    report.stored = status;
                    report.version = *version;
                    report.said = Some(gist);
                }
                report.backoff.reset();
                report.written = Some(written);
            }
            Err(WriteError::Conflict | WriteError::NotFound) => {
                report.outrun = Some(sent).filter(|sent| report.version <= *sent);
            }
            Err(_) => {
                report.backoff.fail(now, LONGEST_RETRY);
            }
        }
    }

    /// Notes the counts, and what is asked for, if they changed.
    fn count(&mut self) {
        let counts = self.pods.counts();
        let census = Note::Census {
            total: counts.total(),
            allocated: counts.allocated,
            available: counts.usable,
            updated: counts.updated,
            terminating: counts.leaving,
            waiting: self.members.lacking(),
        };
        if self.report.census.as_ref() != Some(&census) {
            self.report.census = Some(census.clone());
            self.note(census);
        }
        let rules = self
            .facts
            .as_ref()
            .and_then(|facts| facts.rules.as_ref().ok());
        let asked = Note::Asked {
            capacity: rules.map(|rules| rules.capacity),
            injection: rules.map(|rules| rules.injection.word()),
        };
        if self.report.asked.as_ref() != Some(&asked) {
            self.report.asked = Some(asked.clone());
            self.note(asked);
        }
    }

    fn gist(&self, facts: &Facts) -> Gist {
        let rules = facts.rules.as_ref();
        let trouble = self.pods.worst_trouble().map(|(reason, trouble)| {
            format!("{} pods: {reason}: {}", trouble.pods, trouble.message)
        });
        let mold = rules.ok().and_then(|rules| rules.mold.as_ref().err());
        Gist {
            generation: facts.view.generation,
            revision: rules.ok().map(|rules| rules.revision.clone()),
            counts: self.pods.counts(),
            births: self.births.pending(),
            waiting: self.members.lacking(),
            broken: self.pods.broken().len(),
            trouble: trouble.or_else(|| self.report.trouble.clone()),
            failure: mold
                .map(|problem| Failure {
                    reason: reason::POD_REFUSED,
                    message: problem.clone(),
                })
                .or_else(|| self.births.failure().cloned()),
            quarantine: rules.err().cloned(),
            injection: rules.ok().map(|rules| rules.injection.clone()),
            bounds: rules.ok().map(|rules| {
                let buffer_min = u32::try_from(rules.capacity.buffer_min).unwrap_or(0);
                (buffer_min, rules.pool_max)
            }),
        }
    }
}
