//! What is true of a sandbox now: questions that several decisions ask. Nothing here changes anything.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::conditions::reason;
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{BatchSandboxPhase, BatchSandboxSpec, TaskResourcePolicy};

use super::machine::{Machine, Pod};
use super::record::{MAX_TASKS, Mark};
use super::source::Source;
use super::template;
use super::text::cut;
use crate::protocol::{SandboxRef, ToPool};
use crate::time::later;
use crate::view::SandboxView;

/// How long the first status of a sandbox that has just asked for pods waits for them: a warm pool
/// answers within milliseconds, and then one status says all.
const FIRST_STATUS: SignedDuration = SignedDuration::from_secs(1);

/// How long the status waits, after a start, for the pool to say how the pods are.
const PODS_KNOWN: SignedDuration = SignedDuration::from_secs(10);

impl Machine {
    /// The spec, if it can be read.
    pub(super) fn spec(&self) -> Option<&BatchSandboxSpec> {
        self.view.spec.as_deref().ok()
    }

    /// `spec.replicas`, as far as it makes sense.
    pub(super) fn replicas(&self) -> u32 {
        self.spec()
            .and_then(|spec| u32::try_from(spec.replicas).ok())
            .unwrap_or(0)
    }

    /// How many shards there are to be: `spec.replicas`, or what there is room for.
    pub(super) fn shards(&self) -> u32 {
        let replicas = self.replicas();
        let held = self.held.entries.len();
        let bound = match &self.source {
            // For what is held there is room.
            Source::Pool(pool) if usize::try_from(replicas).unwrap_or(usize::MAX) > held => {
                held + self.room(pool)
            }
            _ => MAX_TASKS,
        };
        replicas.min(u32::try_from(bound.min(MAX_TASKS)).unwrap_or(u32::MAX))
    }

    /// Whether the sandbox has tasks.
    pub(super) fn has_tasks(&self) -> bool {
        self.spec().is_some_and(|spec| spec.task_template.is_some())
    }

    /// Whether a sandbox whose task ended gives its pod back.
    pub(super) fn releases(&self) -> bool {
        self.spec().is_some_and(releases)
    }

    /// Whether shard `index` is over: its task ended, that is durable, and its pod is not kept.
    pub(super) fn is_over(&self, index: u32) -> bool {
        self.releases() && self.table.has_ended(index) && self.durable.has_ended(index)
    }

    /// Why the object is left alone, as reason and sentence.
    pub(super) fn quarantine(&self) -> Option<(&'static str, String)> {
        if let Some(unreadable) = &self.unreadable {
            return Some((reason::MALFORMED_ANNOTATION, unreadable.clone()));
        }
        match &self.view.spec {
            Err(error) => Some((
                reason::INVALID_SPEC,
                format!("spec: cannot be read: {}", cut(error, 512)),
            )),
            Ok(spec) if spec.replicas < 0 => Some((
                reason::INVALID_SPEC,
                format!(
                    "spec.replicas: {} is negative; give 0 or more",
                    spec.replicas
                ),
            )),
            Ok(_) if self.source == Source::Nothing => Some((
                reason::INVALID_SPEC,
                "spec: one of poolRef and template is required; name a Pool or give a pod"
                    .to_owned(),
            )),
            Ok(_) => None,
        }
    }

    /// Whether the object was paused by upstream's operator and is to stay so.
    pub(super) fn is_paused(&self) -> bool {
        self.view.status.phase == Some(BatchSandboxPhase::Paused)
            && self.spec().and_then(|spec| spec.pause) == Some(true)
    }

    /// Who this is, for the pool.
    pub(super) fn reference(&self) -> SandboxRef {
        SandboxRef {
            key: self.view.key.clone(),
            uid: self.view.uid.clone(),
        }
    }

    pub(super) fn answer(&self, grant: u64, taken: bool) -> ToPool {
        ToPool::Answer {
            sandbox: self.reference(),
            grant,
            taken,
        }
    }

    /// Whether the pod of a shard that was scaled away may go: not before it is recorded which attempts
    /// of its task were used.
    pub(super) fn removal_is_durable(&self, index: u32) -> bool {
        !self.table.is_removed(index) || matches!(self.durable.get(index), Some((Mark::Removed, _)))
    }

    /// Whether a pod still stands in the place of shard `index`.
    pub(super) fn has_place(&self, index: u32) -> bool {
        match &self.source {
            Source::Pool(_) => self
                .held
                .entry(index)
                .is_some_and(|pod| !self.held.released.contains(pod)),
            _ => self
                .pods
                .contains_key(&template::name(&self.view.key.name, index)),
        }
    }

    /// Pods by shard: index, name, pod. Those that were given back for good are left out.
    pub(super) fn members(&self) -> Box<dyn Iterator<Item = (u32, &String, &Pod)> + '_> {
        match &self.source {
            Source::Pool(_) => Box::new((0_u32..).zip(&self.held.entries).filter_map(
                |(index, name)| {
                    let pod = self.pods.get(name)?;
                    (!self.held.released.contains(name)).then_some((index, name, pod))
                },
            )),
            _ => Box::new(self.pods.iter().filter_map(|(name, pod)| {
                let index = pod.view.as_ref()?.index?;
                Some((index, name, pod))
            })),
        }
    }

    /// The shard that a pod stands for.
    pub(super) fn index_of(&self, name: &str) -> Option<u32> {
        match &self.source {
            Source::Pool(_) => {
                let index = self.held.entries.iter().position(|entry| entry == name)?;
                u32::try_from(index).ok()
            }
            _ => self.pods.get(name)?.view.as_ref()?.index,
        }
    }

    /// Whether the status may be written now, or waits for something that comes within moments.
    pub(super) fn status_waits_until(&self, now: Timestamp) -> Option<Timestamp> {
        let begun = self.begun.unwrap_or(now);
        let never_written = self.view.status.observed_generation.is_none()
            && self.view.status.conditions.is_empty();
        let asking = matches!(self.source, Source::Assign)
            || (self.source.pool().is_some() && self.claim.wants > 0);
        let heard = self.claim.waiting.is_some()
            || self.claim.no_pool.is_some()
            || self.writer.refused.is_some()
            || self.quarantine().is_some()
            || self.view.deleting;
        if never_written && asking && !heard {
            let until = later(begun, FIRST_STATUS);
            return (until > now).then_some(until);
        }
        let unknown = self.source.pool().is_some()
            && self
                .members()
                .any(|(_, _, pod)| pod.view.is_none() && pod.lost.is_none());
        if unknown && self.quarantine().is_none() {
            let until = later(begun, PODS_KNOWN);
            return (until > now).then_some(until);
        }
        None
    }
}

/// Whether a sandbox of this spec gives its pod back when its task ends.
pub(super) fn releases(spec: &BatchSandboxSpec) -> bool {
    spec.task_template.is_some()
        && spec.task_resource_policy_when_completed == Some(TaskResourcePolicy::Release)
}

/// Whether tasks may ever have been begun for this object.
pub(super) fn may_have_tasks(view: &SandboxView) -> bool {
    // A spec that cannot be read may ask for them.
    let asked = view
        .spec
        .as_ref()
        .map_or(true, |spec| spec.task_template.is_some());
    asked || has_finalizer(view, labels::TASK_CLEANUP_FINALIZER)
}

pub(super) fn has_pool_finalizer(view: &SandboxView) -> bool {
    has_finalizer(view, labels::POOL_ALLOCATION_FINALIZER)
}

pub(super) fn has_finalizer(view: &SandboxView, finalizer: &str) -> bool {
    view.finalizers.iter().any(|own| own == finalizer)
}
