//! Where the pods of a sandbox come from, and what happens when that is changed.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Output;
use super::machine::Machine;
use crate::time::{back_off, later};
use crate::view::SandboxView;

/// What `poolRef` says when the operator is to choose.
const ANY: &str = "*";

/// Where the pods come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The pool of this name.
    Pool(String),
    /// A pool that is yet to be chosen.
    Assign,
    /// The sandbox's own template.
    Template,
    /// Neither is given, or the spec cannot be read so far.
    Nothing,
}

impl Source {
    /// What the spec asks for. With a `poolRef`, a template only helps to choose the pool.
    pub(super) fn of(view: &SandboxView) -> Self {
        let Ok(spec) = &view.spec else {
            // What it holds stays held, whatever the rest of the spec is. Nothing is chosen for it.
            return match view.unread_pool_ref.as_deref() {
                None | Some("" | ANY) => Self::Nothing,
                Some(pool) => Self::Pool(pool.to_owned()),
            };
        };
        match spec.pool_ref.as_deref().unwrap_or_default() {
            ANY => Self::Assign,
            "" if spec.template.is_some() => Self::Template,
            "" => Self::Nothing,
            pool => Self::Pool(pool.to_owned()),
        }
    }

    /// Name of the pool, if there is one.
    pub(super) fn pool(&self) -> Option<&str> {
        match self {
            Self::Pool(pool) => Some(pool),
            _ => None,
        }
    }
}

/// The choice of a pool for `poolRef: "*"`.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// Whether it has been asked for.
    pub(super) asked: bool,
    /// The pool chosen, until it is written.
    pub(super) chosen: Option<String>,
    failures: u32,
    pub(super) not_before: Option<Timestamp>,
    generation: i64,
}

impl Machine {
    /// Follows a change of `poolRef`, which the CRD allows only from `*` to a name. Without that rule, a
    /// sandbox keeps its pool for as long as it holds a pod of it: nothing is killed by an edit.
    pub(super) fn settle_source(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let wanted = Source::of(&self.view);
        self.claim.rejected_source = None;
        if wanted != self.source && self.view.spec.is_ok() {
            let busy = match &self.source {
                Source::Pool(_) => {
                    !self.held.holds_nothing()
                        || self.writer.carries_grant()
                        || self.unreadable.is_some()
                }
                Source::Template => !self.pods.is_empty() || self.own.is_creating(),
                Source::Assign => self.writer.is_writing(),
                Source::Nothing => false,
            };
            if busy {
                self.claim.rejected_source = Some(wanted);
            } else {
                self.change_source(wanted, out);
            }
        }
        if self.source == Source::Assign && !self.view.deleting {
            self.ask_for_a_pool(now, out);
        }
    }

    fn change_source(&mut self, wanted: Source, out: &mut Vec<Output>) {
        self.leave_pool(out);
        let begins = self.source == Source::Nothing;
        self.source = wanted;
        self.claim.said = None;
        self.claim.waiting = None;
        self.claim.no_pool = None;
        self.claim.choice = Choice::default();
        if begins {
            // The spec can be read for the first time, and so can what is held.
            self.read_annotations();
        }
    }

    fn ask_for_a_pool(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let changed = self.claim.choice.generation != self.view.generation;
        let choice = &mut self.claim.choice;
        if choice.asked || choice.chosen.is_some() {
            return;
        }
        if !changed && choice.not_before.is_some_and(|at| at > now) {
            return;
        }
        choice.asked = true;
        choice.generation = self.view.generation;
        out.push(Output::Assign);
    }

    /// The pool that was chosen, or why there is none.
    pub(super) fn assigned(&mut self, result: Result<String, String>, now: Timestamp) {
        let choice = &mut self.claim.choice;
        choice.asked = false;
        if self.source != Source::Assign {
            return;
        }
        match result {
            Ok(pool) if !pool.is_empty() && pool != ANY => {
                choice.chosen = Some(pool);
                choice.failures = 0;
                self.claim.no_pool = None;
            }
            Ok(_) => {}
            Err(why) => {
                choice.failures = choice.failures.saturating_add(1);
                let wait = back_off(
                    choice.failures,
                    SignedDuration::from_secs(1),
                    SignedDuration::from_secs(30),
                );
                choice.not_before = Some(later(now, wait));
                self.claim.no_pool = Some(super::text::cut(&why, 4096));
            }
        }
    }
}
