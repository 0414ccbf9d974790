//! What is to be written outside the status: one write with everything that differs from what is so.

use std::collections::HashMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::labels;

use super::allocation::{Allocation, ENTRY_OVERHEAD, MAX_WITH_ENDPOINTS};
use super::facts::has_finalizer;
use super::machine::Machine;
use super::record::Mark;
use super::source::Source;
use super::{endpoints, template};
use crate::time::later;
use crate::view::PodView;
use crate::write::{SandboxWrite, WriteError};

/// A write outside the status, and what is held once it is done.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) write: SandboxWrite,
    pub(super) next: Allocation,
    pub(super) grant: Option<u64>,
    /// Since when an earlier sending of it has no clear answer. Until that is resolved, no later answer
    /// proves that it was not written.
    pub(super) doubtful: Option<Timestamp>,
}

/// How long a request may still be on its way after it was given up: longer than the API server works
/// on one.
const IN_THE_AIR: SignedDuration = SignedDuration::from_mins(2);

impl Intent {
    /// Whether it may have been, or may yet be, applied.
    pub(super) fn is_in_doubt_after(&self, error: &WriteError, now: Timestamp) -> bool {
        match (error, self.doubtful) {
            // What it is in conflict with may be its own earlier sending.
            (WriteError::Unclear { .. }, _) | (WriteError::Conflict, Some(_)) => true,
            (_, None) => false,
            (_, Some(since)) => now < later(since, IN_THE_AIR),
        }
    }
}

impl Machine {
    /// Whether a write is in the object.
    pub(super) fn is_there(&self, intent: &Intent) -> bool {
        let Intent { write, next, .. } = intent;
        let allocation = !write.annotations.contains_key(labels::ALLOC_STATUS)
            && !write.annotations.contains_key(labels::ALLOC_RELEASE)
            && !write.annotations.contains_key(labels::ALLOC_RELEASED)
            || Allocation::read(&self.view).is_ok_and(|held| {
                // A pod that alloc-status names is held, whatever somebody did to the others since.
                held == *next || (intent.grant.is_some() && held.entries == next.entries)
            });
        let finalizers = write.finalizers.as_ref().is_none_or(|wanted| {
            [
                labels::POOL_ALLOCATION_FINALIZER,
                labels::TASK_CLEANUP_FINALIZER,
            ]
            .into_iter()
            .all(|own| wanted.iter().any(|one| one == own) == has_finalizer(&self.view, own))
        });
        // What was allocated counts, whatever somebody did to the finalizers since.
        allocation && (intent.grant.is_some() || finalizers)
    }

    /// Whether it is recorded how the tasks of newly placed pods stand. Were it not, a process that goes on
    /// from here could begin an attempt again that another pod has had.
    pub(super) fn attempts_are_durable(&self, intent: &Intent) -> bool {
        if !self.has_tasks() {
            return true;
        }
        (0_u32..).zip(&intent.next.entries).all(|(index, name)| {
            let placed = self.held.entry(index) == Some(name) && !self.held.released.contains(name);
            placed || intent.next.released.contains(name) || self.attempt_is_durable(index)
        })
    }

    /// Whether the run that task `index` is in is recorded, and its end if it has come.
    pub(super) fn attempt_is_durable(&self, index: u32) -> bool {
        let (mark, attempt) = self.durable.get(index).unwrap_or_default();
        mark == self.table.mark(index)
            && mark != Mark::Removed
            && attempt == self.table.attempt(index)
    }

    /// What is to be written outside the status.
    pub(super) fn intent(&self) -> Option<Intent> {
        let mut write = SandboxWrite {
            version: self.view.version,
            ..SandboxWrite::default()
        };
        if self.view.deleting {
            write.finalizers = Some(self.finalizers_at_the_end()?);
            return Some(Intent {
                write,
                next: self.held.clone(),
                grant: None,
                doubtful: None,
            });
        }
        if self.quarantine().is_some() {
            return None;
        }
        let mut next = self.held.clone();
        let mut grant = None;
        match &self.source {
            Source::Assign => write.pool_ref.clone_from(&self.claim.choice.chosen),
            Source::Pool(_) => {
                self.give_back(&mut next);
                grant = self.place_grant(&mut next);
                self.restore(&next, &mut write);
                write.finalizers = self.finalizers_while_used(&next);
                if self.claim.wants > 0 && self.lacks_fence() {
                    write
                        .annotations
                        .insert(labels::FENCE, self.setting.fence.clone());
                }
                self.publish_endpoints(&next, &mut write);
            }
            Source::Template => {
                write.finalizers = self.finalizers_while_used(&next);
                self.publish_endpoints(&next, &mut write);
            }
            Source::Nothing => {}
        }
        let empty = SandboxWrite {
            version: write.version,
            ..SandboxWrite::default()
        };
        (write != empty).then_some(Intent {
            write,
            next,
            grant,
            doubtful: None,
        })
    }

    /// Moves on what is given back.
    fn give_back(&self, next: &mut Allocation) {
        let shards = usize::try_from(self.shards()).unwrap_or(usize::MAX);
        let leaving = |name: &String| self.pods.get(name).and_then(|pod| pod.leaving.as_ref());
        while next.entries.len() > shards
            && next.entries.last().is_some_and(|last| {
                next.released.contains(last)
                    || leaving(last).is_some_and(|leaving| leaving.recycled)
            })
            && u32::try_from(next.entries.len() - 1).is_ok_and(|last| self.removal_is_durable(last))
        {
            next.trim();
        }
        let mut bytes = next.bytes();
        for name in &next.entries {
            let Some(leaving) = leaving(name) else {
                continue;
            };
            if leaving.proof.is_some() && !next.release.contains(name) {
                bytes += name.len() + ENTRY_OVERHEAD;
                if bytes > MAX_WITH_ENDPOINTS {
                    break;
                }
                next.release.insert(name.clone());
            }
            if leaving.recycled && next.release.contains(name) && !next.released.contains(name) {
                bytes += name.len() + ENTRY_OVERHEAD;
                if bytes > MAX_WITH_ENDPOINTS {
                    break;
                }
                next.released.insert(name.clone());
            }
        }
    }

    /// Puts the pods of the grant into the open places, lowest first.
    fn place_grant(&self, next: &mut Allocation) -> Option<u64> {
        let grant = self.claim.grant.as_ref()?;
        let places = self.open_places(next);
        if places.len() < grant.pods.len() {
            return None;
        }
        for (place, pod) in places.into_iter().zip(&grant.pods) {
            next.put(place, &pod.key.name);
        }
        Some(grant.id)
    }

    /// Makes the annotations say what is so, whoever changed them.
    fn restore(&self, next: &Allocation, write: &mut SandboxWrite) {
        let mut texts = next.annotations();
        texts.retain(|key, text| {
            let stored = match *key {
                labels::ALLOC_STATUS => &self.view.alloc_status,
                labels::ALLOC_RELEASE => &self.view.alloc_release,
                _ => &self.view.alloc_released,
            };
            *stored != *text
        });
        // Another text may say the same.
        if !texts.is_empty() && Allocation::read(&self.view).as_ref() != Ok(next) {
            write.annotations.extend(texts);
        }
    }

    /// The finalizers while pods are held, or tasks run in pods of a template, if one is missing.
    fn finalizers_while_used(&self, next: &Allocation) -> Option<Vec<String>> {
        let pooled = !next.entries.is_empty();
        let of_template = self.source == Source::Template && !self.is_paused();
        let mut finalizers = self.view.finalizers.clone();
        let mut wanted = Vec::new();
        if pooled {
            wanted.push(labels::POOL_ALLOCATION_FINALIZER);
        }
        if self.has_tasks() && (pooled || of_template) {
            wanted.push(labels::TASK_CLEANUP_FINALIZER);
        }
        wanted.retain(|own| !has_finalizer(&self.view, own));
        let missing = !wanted.is_empty();
        finalizers.extend(wanted.into_iter().map(str::to_owned));
        missing.then_some(finalizers)
    }

    /// The finalizers without ours, if it is time for that and there are any.
    fn finalizers_at_the_end(&self) -> Option<Vec<String>> {
        if self.writer.carries_grant() || !self.everything_is_back() {
            return None;
        }
        let others: Vec<String> = self
            .view
            .finalizers
            .iter()
            .filter(|finalizer| {
                *finalizer != labels::POOL_ALLOCATION_FINALIZER
                    && *finalizer != labels::TASK_CLEANUP_FINALIZER
            })
            .cloned()
            .collect();
        (others.len() != self.view.finalizers.len()).then_some(others)
    }

    fn publish_endpoints(&self, next: &Allocation, write: &mut SandboxWrite) {
        let published = endpoints::read(self.view.endpoints.as_deref());
        let Some(addresses) = self.addresses(next, published.as_deref()) else {
            return;
        };
        let text = endpoints::text(&addresses, MAX_WITH_ENDPOINTS.saturating_sub(next.bytes()));
        let stored = self.view.endpoints.as_deref();
        let same = stored == Some(text.as_str())
            || (published.is_some() && published == endpoints::read(Some(&text)));
        let nothing_to_clear = stored.is_none() && addresses.iter().all(String::is_empty);
        if !same && !nothing_to_clear {
            write.annotations.insert(labels::ENDPOINTS, Some(text));
        }
    }

    /// Addresses in the order of the shards; `None` while they cannot be told.
    fn addresses(&self, next: &Allocation, published: Option<&[String]>) -> Option<Vec<String>> {
        let names: Vec<String> = match &self.source {
            Source::Pool(_) => next
                .entries
                .iter()
                .filter(|name| !next.release.contains(*name) && !next.released.contains(*name))
                .cloned()
                .collect(),
            _ if self.pods.is_empty() => Vec::new(),
            _ => (0..self.shards())
                .map(|index| template::name(&self.view.key.name, index))
                .collect(),
        };
        let granted: HashMap<&str, &PodView> = self
            .claim
            .grant
            .iter()
            .flat_map(|grant| &grant.pods)
            .map(|pod| (pod.key.name.as_str(), &**pod))
            .collect();
        let mut addresses = Vec::with_capacity(names.len());
        for (position, name) in names.iter().enumerate() {
            let address = match self.pods.get(name) {
                Some(pod) if pod.lost.is_some() => String::new(),
                Some(pod) if pod.view.is_some() => pod.ip().unwrap_or_default().to_owned(),
                // After a start, what was published holds until the pool says how the pod is.
                Some(_) => match published {
                    Some(published) if published.len() == names.len() => {
                        published.get(position)?.clone()
                    }
                    _ => return None,
                },
                None => granted
                    .get(name.as_str())
                    .and_then(|pod| pod.ip.clone())
                    .unwrap_or_default(),
            };
            addresses.push(address);
        }
        Some(addresses)
    }
}
