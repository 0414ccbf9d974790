//! What is counted of pods, and the orders in which they are looked for.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::pod::{Owner, Pod, State};

/// Numbers of pods. Those of other owners count only where a sandbox has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::pool) struct Counts {
    /// Held by sandboxes, or given back and not idle yet.
    pub(in crate::pool) allocated: u32,
    /// Offered to sandboxes.
    pub(in crate::pool) reserved: u32,
    /// Idle and ready to be given.
    pub(in crate::pool) usable: u32,
    /// Idle, but not usable.
    pub(in crate::pool) unready: u32,
    /// On their way out: they still take room.
    pub(in crate::pool) leaving: u32,
    /// Of the above but those that are leaving, made from the current template.
    pub(in crate::pool) updated: u32,
    /// Idle and made from another template.
    pub(in crate::pool) outdated_idle: u32,
}

impl Counts {
    /// Pods that are not being deleted.
    pub(in crate::pool) fn total(&self) -> u32 {
        self.taken() + self.usable + self.unready
    }

    /// Pods that sandboxes have or are being offered.
    pub(in crate::pool) fn taken(&self) -> u32 {
        self.allocated.saturating_add(self.reserved)
    }
}

/// Pods of one kind of trouble.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::pool) struct TroubleCount {
    pub(in crate::pool) pods: u32,
    pub(in crate::pool) message: String,
}

/// The order in which idle pods are given: those of the current template first, then those that have
/// been ready the longest.
type Place = (bool, Timestamp, String);

/// The counts and orders, kept as pods come and go.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) revision: Option<String>,
    pub(super) usable: BTreeSet<Place>,
    /// Idle pods that cannot be given, oldest first.
    pub(super) unready: BTreeSet<(Timestamp, String)>,
    /// Those of them that were made from another template.
    pub(super) outdated_unready: BTreeSet<String>,
    /// Idle pods that must go whatever the numbers say.
    pub(super) due: BTreeSet<String>,
    /// Idle pods that will not do.
    pub(super) broken: BTreeSet<String>,
    pub(super) timers: BTreeSet<(Timestamp, String)>,
    pub(super) troubles: BTreeMap<String, TroubleCount>,
    pub(super) counts: Counts,
}

impl Index {
    pub(super) fn is_outdated(&self, pod: &Pod) -> bool {
        self.revision.is_some() && pod.view.revision != self.revision
    }

    fn place(&self, pod: &Pod) -> Place {
        let since = pod.view.ready_since.unwrap_or(pod.view.created);
        (self.is_outdated(pod), since, pod.view.key.name.clone())
    }

    pub(super) fn insert(&mut self, pod: &Pod) {
        if let Some(deadline) = pod.deadline() {
            self.timers.insert((deadline, pod.view.key.name.clone()));
        }
        self.count(pod, |number| *number = number.saturating_add(1));
        if pod.state != State::Idle || pod.owner != Owner::This {
            return;
        }
        let name = pod.view.key.name.clone();
        if pod.outrun {
            return;
        }
        if pod.view.retiring || pod.view.evict {
            self.due.insert(name.clone());
        }
        if pod.is_broken() {
            self.broken.insert(name.clone());
        }
        if pod.is_usable() {
            self.usable.insert(self.place(pod));
        } else {
            if self.is_outdated(pod) {
                self.outdated_unready.insert(name.clone());
            }
            self.unready.insert((pod.view.created, name));
        }
        if let Some(trouble) = &pod.view.trouble {
            let count = self.troubles.entry(trouble.reason.clone()).or_default();
            count.pods += 1;
            count.message.clone_from(&trouble.message);
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        let name = &pod.view.key.name;
        if let Some(deadline) = pod.deadline() {
            self.timers.remove(&(deadline, name.clone()));
        }
        self.count(pod, |number| *number = number.saturating_sub(1));
        if pod.state != State::Idle || pod.owner != Owner::This || pod.outrun {
            return;
        }
        self.due.remove(name);
        self.broken.remove(name);
        self.outdated_unready.remove(name);
        self.usable.remove(&self.place(pod));
        self.unready.remove(&(pod.view.created, name.clone()));
        if let Some(trouble) = &pod.view.trouble
            && let Some(count) = self.troubles.get_mut(&trouble.reason)
        {
            count.pods -= 1;
            if count.pods == 0 {
                self.troubles.remove(&trouble.reason);
            }
        }
    }

    fn count(&mut self, pod: &Pod, step: impl Fn(&mut u32)) {
        let outdated = self.is_outdated(pod);
        let counts = &mut self.counts;
        let number = match &pod.state {
            State::Idle if pod.owner != Owner::This => return,
            State::Idle if pod.is_usable() => &mut counts.usable,
            State::Idle => &mut counts.unready,
            State::Reserved(_) => &mut counts.reserved,
            State::Held(_) | State::Restarting(_) | State::Recycled(_) => &mut counts.allocated,
            State::Leaving(_) => {
                if pod.owner == Owner::This {
                    step(&mut counts.leaving);
                }
                return;
            }
        };
        step(number);
        if !outdated {
            step(&mut counts.updated);
        } else if pod.state == State::Idle {
            step(&mut counts.outdated_idle);
        }
    }
}
