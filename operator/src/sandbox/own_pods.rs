//! Pods made from the sandbox's own template: made, replaced, deleted.
//!
//! Their names are fixed, so a creation without a clear answer is repeated without making a second pod.
//! A pod of that name that is somebody else's is left alone and told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::conditions::reason;

use super::Output;
use super::facts::may_have_tasks;
use super::machine::{Machine, Pod, event};
use super::source::Source;
use super::tasks::{Trouble, unknown};
use super::template::{self, Invalid};
use super::text::cut;
use super::unseen::SHOWN_WITHIN;
use crate::pod_security;
use crate::time::{back_off, later};
use crate::view::PodView;
use crate::write::WriteError;

/// How many creations may be under way at once.
const CREATIONS: usize = 64;

/// How long the watch may take to bring a pod that exists already.
const WATCH: SignedDuration = SignedDuration::from_secs(5);

/// How long after a failed deletion it is tried again.
const DELETE_AGAIN: SignedDuration = SignedDuration::from_secs(5);

/// Reasons of pods that ended because of their node, not by themselves: such a pod is lost.
const LOST: [&str; 9] = [
    "Evicted",
    "NodeLost",
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "Preempting",
    "DeletionByTaintManager",
    "NodeAffinity",
    "UnexpectedAdmissionError",
];

/// What is under way with pods made from the template.
#[derive(Debug, Default)]
pub(super) struct OwnPods {
    /// Names of pods that are being made, each with the UID of one of that name that the watch has shown to
    /// be gone since: the answer may be about that one.
    creating: BTreeMap<String, Option<String>>,
    /// Names that this process has asked to be created.
    pub(super) made_here: BTreeSet<String>,
    /// Pods, by UID, whose deletion was asked for; `Some` says when to ask again.
    deleting: BTreeMap<String, Option<Timestamp>>,
    /// Pods, by UID, whose deletion was accepted: name, and when to ask whether it is gone if the watch
    /// does not say so; `None` while that is asked.
    pub(super) ending: BTreeMap<String, (String, Option<Timestamp>)>,
    /// Pods, by name, that only the answer to their creation has told of, and when to ask whether they
    /// are there.
    pub(super) unseen: BTreeMap<String, Timestamp>,
    /// Names that exist already, though no pod of ours is seen: when to try again, and how often that was.
    taken: BTreeMap<String, (Timestamp, u32)>,
    failures: u32,
    not_before: Option<Timestamp>,
    /// Why the API server refused the last creation.
    pub(super) refused: Option<String>,
    /// Lost pods, and why, until they are replaced.
    pub(super) lost: BTreeMap<String, String>,
    /// Shards whose pod cannot be made, until spec or injection change.
    pub(super) invalid: BTreeMap<u32, Invalid>,
    /// Generation, facts, and what label and annotation say of the injection.
    invalid_of: Option<(i64, usize, [Option<String>; 2])>,
}

impl OwnPods {
    pub(super) fn is_creating(&self) -> bool {
        !self.creating.is_empty()
    }

    /// Names that somebody else's pods have.
    pub(super) fn foreign(&self) -> impl Iterator<Item = &String> {
        self.taken
            .iter()
            .filter(|(_, (_, times))| *times > 1)
            .map(|(name, _)| name)
    }

    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        self.taken
            .values()
            .map(|(at, _)| *at)
            .chain(self.not_before)
            .chain(self.deleting.values().copied().flatten())
            .chain(self.ending.values().filter_map(|(_, at)| *at))
            .chain(self.unseen.values().copied())
            .filter(|at| *at > now)
            .min()
    }
}

impl Machine {
    /// Makes the pods that are missing and deletes those that are too many.
    pub(super) fn settle_own_pods(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        self.ask_for_ends(now, out);
        let idle = self.view.deleting
            || self.quarantine().is_some()
            || self.is_paused()
            || self.has_expired(now);
        if self.source != Source::Template || idle {
            return;
        }
        let facts = Arc::as_ptr(&self.setting.injection) as usize;
        let said = [self.view.injection.clone(), self.view.executor_mode.clone()];
        let of = Some((self.view.generation, facts, said));
        if self.own.invalid_of != of {
            self.own.invalid.clear();
            self.own.invalid_of = of;
        }
        let shards = self.shards();
        self.delete_beyond(shards, now, out);
        for index in 0..shards {
            let name = template::name(&self.view.key.name, index);
            if self.pods.contains_key(&name) && !self.may_be_gone_unseen(&name, now) {
                self.settle_own_pod(index, &name, now, out);
            } else if !self.create(index, name, now, out) {
                break;
            }
        }
    }

    fn delete_beyond(&mut self, shards: u32, now: Timestamp, out: &mut Vec<Output>) {
        let mut beyond: Vec<(u32, String)> = self
            .members()
            .filter(|(index, _, _)| *index >= shards)
            .map(|(index, name, _)| (index, name.clone()))
            .collect();
        beyond.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, name) in beyond {
            if self.removal_is_durable(index) {
                self.delete(&name, "ScaleDown", now, out);
            }
        }
        let sandbox = &self.view.key.name;
        let is_within = |name: &String| {
            let index = name
                .strip_prefix(sandbox.as_str())
                .and_then(|rest| rest.strip_prefix('-'));
            index
                .and_then(|index| index.parse::<u32>().ok())
                .is_some_and(|index| index < shards)
        };
        self.own.taken.retain(|name, _| is_within(name));
        self.own.lost.retain(|name, _| is_within(name));
    }

    fn settle_own_pod(&mut self, index: u32, name: &str, now: Timestamp, out: &mut Vec<Output>) {
        let over = self.is_over(index);
        let Some(pod) = self.pods.get_mut(name) else {
            return;
        };
        let Some(view) = pod.view.clone() else { return };
        if view.is_usable() {
            self.own.lost.remove(name);
        }
        if over {
            self.delete(name, "TaskEnded", now, out);
            return;
        }
        if self.table.is_removed(index) {
            // It was scaled away, and wanted again before it was gone: its task was given up.
            if self.removal_is_durable(index) {
                self.delete(name, "ScaleDown", now, out);
            }
            return;
        }
        if view.deleting && !self.own.deleting.contains_key(&view.uid) {
            // Its containers are stopped in any order: what becomes of the task is not its own doing.
            if pod.lost.is_none() {
                let cause = "it is being deleted".to_owned();
                let touched = pod.touched;
                pod.lost = Some(cause.clone());
                self.own_pod_lost(index, name, &cause, touched, now, out);
            }
            return;
        }
        if !view.has_ended() {
            return;
        }
        let cause = view
            .trouble
            .as_ref()
            .filter(|trouble| LOST.contains(&trouble.reason.as_str()))
            .map(|trouble| cut(&format!("{}: {}", trouble.reason, trouble.message), 512));
        if let Some(cause) = cause {
            if pod.lost.is_none() {
                pod.lost = Some(cause.clone());
                let touched = pod.touched;
                self.own_pod_lost(index, name, &cause, touched, now, out);
            }
            self.delete(name, "Lost", now, out);
        } else if pod.touched && !self.table.is_fatal(index) {
            // What its executor said last may still be on its way.
            self.table.troubled(
                index,
                Trouble {
                    since: now,
                    reason: unknown::POD_ENDED,
                    message: format!("pod {name} ended, and its executor with it"),
                    fatal: true,
                },
            );
        }
    }

    pub(super) fn own_pod_lost(
        &mut self,
        index: u32,
        name: &str,
        cause: &str,
        touched: bool,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        self.own.lost.insert(name.to_owned(), cause.to_owned());
        out.push(event(
            true,
            reason::POD_LOST,
            "Replace",
            &format!("pod {name} of sandbox {index} is lost: {cause}"),
        ));
        if touched {
            self.task_lost_its_pod(index, name, cause, now, out);
        }
    }

    /// Creates a pod, if it is time for that. Returns whether others may be created too.
    fn create(&mut self, index: u32, name: String, now: Timestamp, out: &mut Vec<Output>) -> bool {
        if self.own.not_before.is_some_and(|at| at > now) || self.own.creating.len() >= CREATIONS {
            return false;
        }
        let taken = self.own.taken.get(&name).is_some_and(|(at, _)| *at > now);
        let known = self.own.invalid.contains_key(&index) || self.own.creating.contains_key(&name);
        if taken || known || self.is_over(index) {
            return true;
        }
        // A process that goes on from here must know that this pod may have been there, and with it
        // which run of the task may have been begun.
        let recorded = self.durable.get(index).is_some() && self.attempt_is_durable(index);
        if self.has_tasks() && !recorded {
            return true;
        }
        let Some(spec) = self.spec() else {
            return false;
        };
        match template::pod(&self.view, spec, index, &self.setting.injection) {
            Ok(pod) => {
                self.own.creating.insert(name.clone(), None);
                self.own.made_here.insert(name.clone());
                out.push(Output::CreatePod {
                    name,
                    pod: Arc::new(pod),
                });
            }
            Err(invalid) => {
                out.push(event(true, invalid.reason, "Create", &invalid.to_string()));
                self.own.invalid.insert(index, invalid);
            }
        }
        true
    }

    fn delete(&mut self, name: &str, reason: &'static str, now: Timestamp, out: &mut Vec<Output>) {
        let view = self.pods.get(name).and_then(|pod| pod.view.as_ref());
        let Some(view) = view.filter(|view| !view.deleting) else {
            return;
        };
        let asked = self.own.deleting.get(&view.uid);
        if asked.is_some_and(|again| again.is_none_or(|at| at > now)) {
            return;
        }
        out.push(Output::DeletePod {
            name: name.to_owned(),
            uid: view.uid.clone(),
            reason,
        });
        let uid = view.uid.clone();
        self.own.deleting.insert(uid, None);
    }

    /// A pod made from the template is there or has changed.
    pub(super) fn own_pod(&mut self, view: Arc<PodView>, now: Timestamp, out: &mut Vec<Output>) {
        let name = view.key.name.clone();
        let ours = view
            .owner
            .as_ref()
            .is_some_and(|owner| owner.uid == self.view.uid)
            && view
                .index
                .is_some_and(|index| template::name(&self.view.key.name, index) == name);
        if !ours || self.source.pool().is_some() {
            return;
        }
        self.own.taken.remove(&name);
        if let Some(before) = self.pods.get(&name).and_then(|pod| pod.view.clone()) {
            if before.version >= view.version {
                return;
            }
            if before.uid != view.uid {
                self.own_pod_gone(&name, &before.uid, now, out);
            }
        }
        if let Some(pod) = self.pods.get_mut(&name) {
            pod.view = Some(view);
            return;
        }
        let pod = if self.own.made_here.contains(&name) {
            Pod::fresh(view)
        } else {
            Pod::found(Some(view), may_have_tasks(&self.view))
        };
        self.pods.insert(name, pod);
    }

    /// Such a pod is gone.
    pub(super) fn own_pod_gone(
        &mut self,
        name: &str,
        uid: &str,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        if let Some(gone) = self.own.creating.get_mut(name) {
            *gone = Some(uid.to_owned());
        }
        let is_it = |pod: &Pod| pod.view.as_ref().is_some_and(|view| view.uid == uid);
        if self.source.pool().is_some() || !self.pods.get(name).is_some_and(is_it) {
            return;
        }
        let index = self.index_of(name);
        let Some(pod) = self.pods.remove(name) else {
            return;
        };
        self.own.made_here.remove(name);
        self.own.ending.remove(uid);
        self.own.unseen.remove(name);
        let wanted = self.own.deleting.remove(uid).is_some();
        if let Some(index) = index
            && index < self.shards()
            && !wanted
            && !self.view.deleting
            && !self.is_over(index)
            && pod.lost.is_none()
        {
            self.own_pod_lost(index, name, "it was deleted", pod.touched, now, out);
        }
    }

    /// Answer to [`Output::CreatePod`].
    pub(super) fn own_pod_created(
        &mut self,
        name: &str,
        result: Result<Arc<PodView>, WriteError>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        let gone = self.own.creating.remove(name).flatten();
        match result {
            Ok(view) => {
                self.own.failures = 0;
                self.own.not_before = None;
                self.own.refused = None;
                if gone.as_ref() != Some(&view.uid) {
                    self.own_pod_made(view, now, out);
                }
            }
            Err(WriteError::AlreadyExists) => {
                if self.pods.contains_key(name) {
                    self.is_there_unseen(name, now);
                    return;
                }
                let times = self.own.taken.get(name).map_or(1, |(_, times)| times + 1);
                let wait = back_off(times, WATCH, SignedDuration::from_mins(1));
                self.own
                    .taken
                    .insert(name.to_owned(), (later(now, wait), times));
                if times == 2 {
                    out.push(event(
                        true,
                        "FailedCreate",
                        "Create",
                        &format!("a pod named {name} exists and is not of this sandbox; delete or rename it"),
                    ));
                }
            }
            Err(error) => {
                self.own.failures = self.own.failures.saturating_add(1);
                let (first, most) = if matches!(error, WriteError::Refused { .. }) {
                    (SignedDuration::from_secs(1), SignedDuration::from_mins(5))
                } else {
                    (
                        SignedDuration::from_millis(100),
                        SignedDuration::from_secs(10),
                    )
                };
                self.own.not_before = Some(later(now, back_off(self.own.failures, first, most)));
                if let WriteError::Refused { message, .. } = error {
                    let message = cut(&self.with_remedy(message), 512);
                    if self.own.refused.is_none() {
                        out.push(event(
                            true,
                            "FailedCreate",
                            "Create",
                            &format!("the API server refused pod {name}: {message}"),
                        ));
                    }
                    self.own.refused = Some(message);
                }
            }
        }
    }

    /// A refusal, behind what to do about it where that is known.
    fn with_remedy(&self, message: String) -> String {
        let facts = &self.setting.injection;
        let mode = self
            .spec()
            .and_then(|spec| template::mode(&self.view, spec, facts).ok()?);
        match pod_security::remedy(&message, mode) {
            Some(remedy) => format!("{remedy}; {message}"),
            None => message,
        }
    }

    /// Answer to [`Output::DeletePod`].
    pub(super) fn own_pod_deleted(
        &mut self,
        name: &str,
        uid: &str,
        result: &Result<(), WriteError>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        if !self.own.deleting.contains_key(uid) {
            return;
        }
        match result {
            Ok(()) => {
                let ending = (name.to_owned(), Some(later(now, SHOWN_WITHIN)));
                self.own.ending.insert(uid.to_owned(), ending);
            }
            // Only the UID was a precondition: this pod is gone, and if the watch was interrupted for its
            // whole life, nothing else will say so.
            Err(WriteError::NotFound | WriteError::Conflict) => {
                self.own_pod_gone(name, uid, now, out);
            }
            Err(_) => {
                let again = Some(later(now, DELETE_AGAIN));
                if let Some((_, at)) = self.own.ending.get_mut(uid) {
                    *at = again;
                } else {
                    self.own.deleting.insert(uid.to_owned(), again);
                }
            }
        }
    }
}
