//! Pods of a template about which the watch says nothing.
//!
//! While it is interrupted a watch misses what comes and goes. Afterwards it tells what there is, and what
//! is gone of what it had shown; a pod that it never showed it cannot miss. So after a while the API server
//! itself is asked, by a request that does no harm where all is well: what was created is created once
//! more, and what was deleted is deleted once more.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Output;
use super::machine::Machine;
use crate::time::later;
use crate::view::PodView;

/// How long the watch may take to show what a write did, until that is asked.
pub(super) const SHOWN_WITHIN: SignedDuration = SignedDuration::from_mins(1);

impl Machine {
    /// The answer to its creation tells of a pod.
    pub(super) fn own_pod_made(
        &mut self,
        view: Arc<PodView>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        let name = view.key.name.clone();
        let uid = view.uid.clone();
        match self.pods.get(&name).and_then(|pod| pod.view.clone()) {
            // The watch was faster.
            Some(before) if before.uid == uid => return,
            Some(before) => {
                // It could be made only because that one is gone.
                self.own_pod_gone(&name, &before.uid, now, out);
                self.own.made_here.insert(name.clone());
            }
            None => {}
        }
        self.own_pod(view, now, out);
        self.is_there_unseen(&name, now);
    }

    /// A pod is there, or was a moment ago, and the watch has not shown it yet.
    pub(super) fn is_there_unseen(&mut self, name: &str, now: Timestamp) {
        self.own
            .unseen
            .insert(name.to_owned(), later(now, SHOWN_WITHIN));
    }

    /// Whether it is time to ask for a pod that the watch has never shown, by creating it once more.
    pub(super) fn may_be_gone_unseen(&self, name: &str, now: Timestamp) -> bool {
        self.own.unseen.get(name).is_some_and(|at| *at <= now)
    }

    /// Deletes again what the watch does not show to be deleted, to hear whether it is gone.
    pub(super) fn ask_for_ends(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let pods = &self.pods;
        self.own.ending.retain(|uid, (name, at)| {
            if at.is_none_or(|at| at > now) {
                return true;
            }
            let view = pods.get(name).and_then(|pod| pod.view.as_ref());
            if view.is_none_or(|view| view.uid != *uid || view.deleting) {
                return false;
            }
            *at = None;
            out.push(Output::DeletePod {
                name: name.clone(),
                uid: uid.clone(),
                reason: "Unseen",
            });
            true
        });
    }
}
