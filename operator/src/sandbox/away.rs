//! What was lost while no operator ran, or one that knew better wrote it last.
//!
//! A task that is recorded, and whose shard has no pod, had one: it is begun anew, as another attempt.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;

use super::machine::Machine;
use super::source::Source;
use super::{Output, template};

impl Machine {
    /// Looks for what was lost before this process began, once the object can be read.
    pub(super) fn review(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if !self.reviewed && self.quarantine().is_none() {
            self.reviewed = true;
            self.lost_while_away(now, out);
        }
    }

    /// What was lost while nobody looked.
    fn lost_while_away(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        const CAUSE: &str = "it disappeared while no operator was running";
        if !self.has_tasks() || self.view.deleting {
            return;
        }
        let recorded = |index: u32| self.durable.get(index).is_some();
        let gone: Vec<(u32, String)> = match &self.source {
            Source::Template => (0..self.shards())
                .map(|index| (index, template::name(&self.view.key.name, index)))
                .filter(|(index, name)| recorded(*index) && !self.pods.contains_key(name))
                .collect(),
            Source::Pool(_) => (0..self.shards())
                .filter_map(|index| match self.held.entry(index) {
                    Some(pod) => self
                        .held
                        .released
                        .contains(pod)
                        .then(|| (index, pod.clone())),
                    // Somebody has shortened alloc-status meanwhile.
                    None => recorded(index).then(|| (index, "of no known name".to_owned())),
                })
                .collect(),
            _ => Vec::new(),
        };
        if self.source == Source::Template {
            // Their pods may have been deleted by anybody meanwhile, after their tasks were begun.
            let recorded = u32::try_from(self.durable.0.len()).unwrap_or(u32::MAX);
            let beyond: BTreeSet<u32> = (self.replicas()..recorded).collect();
            self.table.scaled_to(self.replicas(), &beyond);
        }
        for (index, name) in gone {
            if self.table.has_ended(index) || self.table.is_removed(index) {
                continue;
            }
            if self.source == Source::Template {
                self.own_pod_lost(index, &name, CAUSE, true, now, out);
            } else {
                self.task_lost_its_pod(index, &name, CAUSE, now, out);
            }
        }
    }
}
