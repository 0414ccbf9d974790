//! Writing the object: what is to be written, one write at a time, and what an answer means.
//!
//! Each write carries the version that it was decided from. So after an answer that says nothing, the
//! version tells: an object that is newer than the precondition either has the write in it, or the
//! write will never happen; while it is not newer, the same write can be sent again without harm.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::labels;

use super::Output;
use super::allocation::Allocation;
use super::intent::Intent;
use super::machine::{Machine, event};
use crate::time::{back_off, later};
use crate::view::{SandboxView, Version};
use crate::write::{SandboxStatusWrite, SandboxWrite, WriteError};

/// How long an answer to [`Output::Read`] may take before it is asked for again.
const READ_AGAIN: SignedDuration = SignedDuration::from_secs(5);

/// How long after an accepted deletion the object may still look as if nothing had happened.
const DELETE_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// The one write that is under way, and what is known about the last ones.
#[derive(Debug, Default)]
pub(super) struct Writer {
    flight: Flight,
    /// Failures in a row, whatever was written.
    failures: u32,
    /// Refusals in a row of writes outside the status.
    refusals: u32,
    /// Before when nothing is written.
    pub(super) not_before: Option<Timestamp>,
    /// When to ask for the object again.
    read_again: Option<Timestamp>,
    /// Why the API server refused the last write outside the status.
    pub(super) refused: Option<String>,
    /// When the deletion of the object was accepted.
    deleted: Option<Timestamp>,
}

/// What is under way.
#[derive(Debug, Default)]
enum Flight {
    #[default]
    Idle,
    /// A write outside the status.
    Write(Box<Intent>),
    /// The same, without a clear answer: a newer object will tell.
    Doubt(Box<Intent>),
    /// The same, to be sent again.
    Again(Box<Intent>),
    /// The status, decided from this version.
    Status(Version),
    /// The deletion, decided from this version.
    Delete(Version),
    /// Nothing, but the object is known to have changed.
    Read { newer_than: Version },
}

impl Writer {
    /// Whether a grant is, or may be, on its way into the object.
    pub(super) fn carries_grant(&self) -> bool {
        match &self.flight {
            Flight::Write(intent) | Flight::Doubt(intent) | Flight::Again(intent) => {
                intent.grant.is_some()
            }
            _ => false,
        }
    }

    /// Whether a write outside the status is, or may be, under way.
    pub(super) fn is_writing(&self) -> bool {
        matches!(
            self.flight,
            Flight::Write(_) | Flight::Doubt(_) | Flight::Again(_)
        )
    }

    /// Whether the object is newer than a write under way expects, so that the write is in it or never
    /// will be, and the answer, which says which, is still to come.
    pub(super) fn is_overtaken_by(&self, version: Version) -> bool {
        matches!(&self.flight, Flight::Write(intent) if version > intent.write.version)
    }

    /// What is held has turned out to be this: a write under way does not change that.
    fn rebase(&mut self, held: &Allocation) {
        if let Flight::Write(intent) | Flight::Doubt(intent) | Flight::Again(intent) =
            &mut self.flight
        {
            intent.next.clone_from(held);
        }
    }

    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        let deleted = self.deleted.map(|at| later(at, DELETE_AGAIN));
        [self.not_before, self.read_again, deleted]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    fn failed(&mut self, now: Timestamp, first: SignedDuration, most: SignedDuration) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(later(now, back_off(self.failures, first, most)));
    }
}

impl Machine {
    /// The object as somebody saw it.
    pub(super) fn object(&mut self, view: Arc<SandboxView>) {
        let version = view.version;
        if version < self.view.version {
            return;
        }
        self.accept(view);
        let flight = std::mem::take(&mut self.writer.flight);
        self.writer.flight = match flight {
            Flight::Doubt(intent) if version == intent.write.version => Flight::Again(intent),
            Flight::Read { newer_than } if version <= newer_than => Flight::Read { newer_than },
            Flight::Read { .. } => Flight::Idle,
            other => other,
        };
        if !matches!(self.writer.flight, Flight::Doubt(_) | Flight::Read { .. }) {
            self.writer.read_again = None;
        }
        if self.view.deleting {
            self.writer.deleted = None;
        }
    }

    /// Takes a newer object as the present one.
    fn accept(&mut self, view: Arc<SandboxView>) {
        if view.version < self.view.version {
            return;
        }
        if view.status.task_record != self.view.status.task_record {
            self.durable = super::record::Record::read(view.status.task_record.as_deref());
        }
        self.view = view;
        if self.unreadable.is_some() {
            if Allocation::read(&self.view).is_ok() {
                self.read_annotations();
            }
        } else if self.follows_another() && Allocation::read(&self.view).as_ref() != Ok(&self.held)
        {
            self.read_annotations();
            self.reviewed = false;
            self.writer.rebase(&self.held);
        }
    }

    /// Whether the last word of the leader before may still come: it counts until the object is marked and
    /// the pool has been told what it holds.
    fn follows_another(&self) -> bool {
        self.source.pool().is_some() && self.claim.said.is_none() && self.lacks_fence()
    }

    /// Resolves a doubtful write, if the object has become newer than it.
    pub(super) fn resolve(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let flight = std::mem::take(&mut self.writer.flight);
        match flight {
            Flight::Doubt(intent) | Flight::Again(intent)
                if self.view.version > intent.write.version =>
            {
                self.writer.read_again = None;
                if self.is_there(&intent) {
                    self.committed(*intent, now, out);
                }
            }
            other => self.writer.flight = other,
        }
    }

    fn committed(&mut self, intent: Intent, now: Timestamp, out: &mut Vec<Output>) {
        self.writer.succeeded();
        self.writer.refusals = 0;
        self.writer.refused = None;
        let before = std::mem::replace(&mut self.held, intent.next);
        if before == self.held {
            tell_of_restored(&intent.write, out);
        }
        if let Some(id) = intent.grant {
            self.took(id, now, out);
        }
        if intent.write.pool_ref.is_some() {
            self.claim.choice = super::source::Choice::default();
        }
        if self.view.deleting && intent.write.finalizers.is_some() {
            self.held = Allocation::default();
        }
        let given_back: Vec<(u32, String)> = (0_u32..)
            .zip(&self.held.entries)
            .filter(|(_, name)| {
                self.held.released.contains(*name) && !before.released.contains(*name)
            })
            .map(|(index, name)| (index, name.clone()))
            .collect();
        for (index, name) in given_back {
            let touched = self.pods.get(&name).is_some_and(|pod| pod.touched);
            if touched && index < self.shards() && !self.table.is_removed(index) {
                self.task_lost_its_pod(index, &name, "it was given back", now, out);
            }
        }
        if self.source.pool().is_some() {
            let held = &self.held;
            let current: std::collections::BTreeSet<&String> =
                held.current().map(|(_, name)| name).collect();
            self.pods.retain(|name, _| current.contains(name));
        }
    }

    /// Answer to [`Output::Write`].
    pub(super) fn written(
        &mut self,
        result: Result<Arc<SandboxView>, WriteError>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        let intent = match std::mem::take(&mut self.writer.flight) {
            Flight::Write(intent) => intent,
            other => {
                self.writer.flight = other;
                return;
            }
        };
        match result {
            Ok(view) => {
                self.accept(view);
                self.committed(*intent, now, out);
            }
            Err(WriteError::NotFound) => self.gone(out),
            Err(error) if intent.is_in_doubt_after(&error, now) => {
                self.writer.failed(
                    now,
                    SignedDuration::from_millis(100),
                    SignedDuration::from_secs(10),
                );
                let mut intent = intent;
                intent.doubtful.get_or_insert(now);
                let version = intent.write.version;
                self.writer.flight = Flight::Doubt(intent);
                if self.view.version <= version {
                    self.read(now, out);
                }
            }
            Err(error) => {
                let version = intent.write.version;
                if let WriteError::Refused { message, .. } = &error {
                    self.refused(message, now, out);
                    if intent.grant.is_some()
                        && let Some(grant) = self.claim.grant.take()
                    {
                        self.claim.answers.push((grant.id, false));
                    }
                } else {
                    self.not_written(&error, version, now, out);
                }
            }
        }
    }

    /// Answer to [`Output::WriteStatus`].
    pub(super) fn status_written(
        &mut self,
        result: Result<Arc<SandboxView>, WriteError>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        let Flight::Status(version) = self.writer.flight else {
            return;
        };
        self.writer.flight = Flight::Idle;
        match result {
            Ok(view) => {
                self.accept(view);
                self.writer.succeeded();
            }
            Err(WriteError::NotFound) => self.gone(out),
            Err(error) => self.not_written(&error, version, now, out),
        }
    }

    /// Answer to [`Output::Delete`].
    pub(super) fn deleted(
        &mut self,
        result: Result<(), WriteError>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        let Flight::Delete(version) = self.writer.flight else {
            return;
        };
        self.writer.flight = Flight::Idle;
        match result {
            Ok(()) => {
                self.writer.succeeded();
                self.writer.deleted = Some(now);
            }
            Err(WriteError::NotFound) => self.gone(out),
            Err(error) => self.not_written(&error, version, now, out),
        }
    }

    /// A write that did not happen, or of which it does not matter whether it did.
    fn not_written(
        &mut self,
        error: &WriteError,
        version: Version,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        match error {
            WriteError::Conflict | WriteError::AlreadyExists => {
                if self.view.version <= version {
                    self.writer.flight = Flight::Read {
                        newer_than: version,
                    };
                    self.read(now, out);
                }
            }
            WriteError::Unclear { .. } => {
                self.writer.failed(
                    now,
                    SignedDuration::from_millis(100),
                    SignedDuration::from_secs(10),
                );
                // The same version will do: if the write happened, the next one meets a conflict.
                self.writer.flight = Flight::Read {
                    newer_than: Version(version.0.saturating_sub(1)),
                };
                self.read(now, out);
            }
            WriteError::Refused { .. } | WriteError::NotFound => self.writer.failed(
                now,
                SignedDuration::from_secs(1),
                SignedDuration::from_mins(5),
            ),
            // Either it leads again within moments, or the process ends.
            WriteError::Fenced => {
                self.writer.not_before = Some(later(now, SignedDuration::from_secs(1)));
            }
        }
    }

    fn refused(&mut self, message: &str, now: Timestamp, out: &mut Vec<Output>) {
        self.writer.refusals = self.writer.refusals.saturating_add(1);
        let wait = back_off(
            self.writer.refusals,
            SignedDuration::from_secs(1),
            SignedDuration::from_mins(5),
        );
        self.writer.not_before = Some(later(now, wait));
        let message = super::text::cut(message, 512);
        if self.writer.refused.is_none() {
            out.push(event(
                true,
                "WriteRefused",
                "Write",
                &format!("the API server refused to change the object: {message}"),
            ));
        }
        self.writer.refused = Some(message);
    }

    fn read(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        self.writer.read_again = Some(later(now, READ_AGAIN));
        out.push(Output::Read);
    }

    /// Begins the next write, if there is something to write and nothing under way.
    pub(super) fn settle_writes(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.writer.read_again.is_some_and(|at| at <= now) {
            if let Flight::Read { newer_than } = &mut self.writer.flight {
                // The object may be as it was after all.
                *newer_than = Version(newer_than.0.saturating_sub(1));
            }
            self.read(now, out);
        }
        if self.writer.not_before.is_some_and(|at| at > now) {
            return;
        }
        match std::mem::take(&mut self.writer.flight) {
            Flight::Idle => {}
            Flight::Again(intent) => {
                out.push(Output::Write(intent.write.clone()));
                self.writer.flight = Flight::Write(intent);
                return;
            }
            other => {
                self.writer.flight = other;
                return;
            }
        }
        if self.has_expired(now) && !self.view.deleting {
            let sent = self.writer.deleted;
            if sent.is_none_or(|at| later(at, DELETE_AGAIN) <= now) {
                out.push(Output::Delete {
                    version: self.view.version,
                });
                self.writer.flight = Flight::Delete(self.view.version);
                return;
            }
        }
        let intent = self.intent();
        let status_first = intent
            .as_ref()
            .is_some_and(|intent| !self.attempts_are_durable(intent));
        match intent {
            Some(intent) if !status_first => {
                out.push(Output::Write(intent.write.clone()));
                self.writer.flight = Flight::Write(Box::new(intent));
            }
            _ => self.settle_status(status_first, now, out),
        }
    }

    fn settle_status(&mut self, urgent: bool, now: Timestamp, out: &mut Vec<Output>) {
        if !urgent && self.status_waits_until(now).is_some() {
            return;
        }
        let status = self.status(now);
        if status != self.view.status {
            out.push(Output::WriteStatus(SandboxStatusWrite {
                version: self.view.version,
                status: Box::new(status),
            }));
            self.writer.flight = Flight::Status(self.view.version);
        }
    }
}

/// Says which annotations were put back: what was to be held has not changed, so somebody else had.
fn tell_of_restored(write: &SandboxWrite, out: &mut Vec<Output>) {
    let keys = [
        labels::ALLOC_STATUS,
        labels::ALLOC_RELEASE,
        labels::ALLOC_RELEASED,
    ];
    let restored: Vec<&str> = keys
        .into_iter()
        .filter(|key| write.annotations.contains_key(key))
        .collect();
    if !restored.is_empty() {
        let note = format!(
            "{} had been changed by somebody else; what is so was written again, leave it as it is",
            restored.join(", ")
        );
        out.push(event(true, "AnnotationRestored", "Write", &note));
    }
}
