//! The pods of a pool, by name, with everything that is counted or looked for kept beside them.
//!
//! Every change of a pod goes through [`Pods::change`], which takes the pod out of the counts and orders
//! before and puts it back after, so that no event costs a walk over all pods.

mod index;
mod pod;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use self::index::Index;
pub(super) use self::index::{Counts, TroubleCount};
pub(super) use self::pod::{Leaving, Owner, Pod, Restarting, State, Step};
use crate::view::{PodView, Version};

/// How many UIDs of pods that are gone are remembered, so that a late event does not bring them back.
const REMEMBERED: usize = 8_192;

/// What an event about a pod changed.
pub(super) enum Seen {
    /// It is older than what is known.
    Stale,
    /// The pod was not known.
    New,
    /// The pod was known in an earlier version.
    Changed,
    /// The name was another pod's, which therefore is gone.
    Replaced(Box<Pod>),
}

/// The pods of a pool.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_name: BTreeMap<String, Pod>,
    index: Index,
    gone: HashSet<String>,
    gone_in_order: VecDeque<String>,
}

impl Pods {
    pub(super) fn get(&self, name: &str) -> Option<&Pod> {
        self.by_name.get(name)
    }

    /// The pod of this name and UID.
    pub(super) fn get_exactly(&self, name: &str, uid: &str) -> Option<&Pod> {
        self.get(name).filter(|pod| pod.view.uid == uid)
    }

    pub(super) fn counts(&self) -> Counts {
        self.index.counts
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    /// Changes a pod; `None` if there is none of this name.
    pub(super) fn change<R>(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Pod) -> R,
    ) -> Option<R> {
        let pod = self.by_name.get_mut(name)?;
        self.index.remove(pod);
        let result = change(pod);
        self.index.insert(pod);
        Some(result)
    }

    /// Sets the state of a pod.
    pub(super) fn set(&mut self, name: &str, state: State) {
        self.change(name, |pod| pod.state = state);
    }

    /// Takes in what was seen of a pod.
    pub(super) fn observe(&mut self, view: &Arc<PodView>, owner: Owner) -> Seen {
        let name = &view.key.name;
        if self.gone.contains(&view.uid) {
            return Seen::Stale;
        }
        let mut seen = Seen::New;
        if let Some(known) = self.by_name.get(name) {
            if view.version < known.view.version {
                return Seen::Stale;
            }
            if known.view.uid == view.uid {
                self.change(name, |pod| {
                    let runs_on = pod.view.containers == view.containers;
                    pod.was_ready = view.ready || (pod.was_ready && runs_on);
                    pod.view = Arc::clone(view);
                    pod.owner = owner;
                    pod.outrun = false;
                    pod.broken &= !view.ready;
                });
                return Seen::Changed;
            }
            if let Some(pod) = self.take(name) {
                seen = Seen::Replaced(Box::new(pod));
            }
        }
        let pod = Pod {
            view: Arc::clone(view),
            state: State::Idle,
            owner,
            broken: false,
            was_ready: view.ready,
            outrun: false,
        };
        self.index.insert(&pod);
        self.by_name.insert(name.clone(), pod);
        seen
    }

    /// Takes out a pod that is gone for good.
    pub(super) fn gone(&mut self, name: &str, uid: &str) -> Option<Pod> {
        self.remember(uid);
        self.get_exactly(name, uid)?;
        self.take(name)
    }

    fn take(&mut self, name: &str) -> Option<Pod> {
        let pod = self.by_name.remove(name)?;
        self.index.remove(&pod);
        self.remember(&pod.view.uid);
        Some(pod)
    }

    fn remember(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_in_order.push_back(uid.to_owned());
            if self.gone_in_order.len() > REMEMBERED
                && let Some(oldest) = self.gone_in_order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
    }

    /// Looks at all pods anew, because the Pool is another one or has another template.
    pub(super) fn review(&mut self, revision: Option<&str>, owner: impl Fn(&PodView) -> Owner) {
        self.index = Index {
            revision: revision.map(str::to_owned),
            ..Index::default()
        };
        for pod in self.by_name.values_mut() {
            pod.owner = owner(&pod.view);
            self.index.insert(pod);
        }
    }

    pub(super) fn revision(&self) -> Option<&str> {
        self.index.revision.as_deref()
    }

    pub(super) fn is_outdated(&self, pod: &Pod) -> bool {
        self.index.is_outdated(pod)
    }

    /// The idle pod to be given next.
    pub(super) fn first_usable(&self) -> Option<&str> {
        self.index.usable.first().map(|(_, _, name)| name.as_str())
    }

    /// The idle pod to be given last, and whether it is of another template.
    pub(super) fn last_usable(&self) -> Option<(bool, &str)> {
        let (outdated, _, name) = self.index.usable.last()?;
        Some((*outdated, name))
    }

    /// The newest idle pod that cannot be given.
    pub(super) fn newest_unready(&self) -> Option<&str> {
        self.index.unready.last().map(|(_, name)| name.as_str())
    }

    pub(super) fn first_outdated_unready(&self) -> Option<&str> {
        self.index.outdated_unready.first().map(String::as_str)
    }

    /// An idle pod that must go whatever the numbers say.
    pub(super) fn first_due(&self) -> Option<&str> {
        self.index.due.first().map(String::as_str)
    }

    /// Idle pods that will not do.
    pub(super) fn broken(&self) -> &BTreeSet<String> {
        &self.index.broken
    }

    /// The most frequent trouble of idle pods.
    pub(super) fn worst_trouble(&self) -> Option<(&str, &TroubleCount)> {
        self.index
            .troubles
            .iter()
            .max_by_key(|(_, trouble)| trouble.pods)
            .map(|(reason, trouble)| (reason.as_str(), trouble))
    }

    /// The next time that a pod is to be looked at.
    pub(super) fn next_timer(&self) -> Option<Timestamp> {
        self.index.timers.first().map(|(at, _)| *at)
    }

    /// The pods whose time has come.
    pub(super) fn due_timers(&self, now: Timestamp) -> Vec<String> {
        self.index
            .timers
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// Notes that a write found the pod changed: what is known of it is out of date.
    pub(super) fn outrun(&mut self, name: &str, decided_from: Version) {
        self.change(name, |pod| {
            pod.outrun = pod.view.version <= decided_from;
        });
    }
}
