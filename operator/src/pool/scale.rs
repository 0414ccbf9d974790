//! How many pods there are: the four numbers, replacement of what is outdated or broken.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::capacity::{self, Census, Change};

use super::Ledger;
use super::facts::Rules;

/// Longest time between two tries after the API server refused a pod, or after pods did not work.
pub(super) const LONGEST_BACKOFF: SignedDuration = SignedDuration::from_mins(5);

impl Ledger {
    /// Creates and removes idle pods as the four numbers ask for. `remove` says whether idle pods may be
    /// removed.
    pub(super) fn scale(&mut self, rules: &Rules, remove: bool, now: Timestamp) {
        self.trim_surge(rules);
        let census = self.census();
        let asked = match capacity::change(rules.capacity, census) {
            Change::None => 0,
            Change::Create(pods) => pods,
            Change::DeleteIdle(pods) => {
                if remove {
                    self.shrink(pods);
                }
                return;
            }
        };
        let live = census.allocated.saturating_add(census.idle);
        let room = rules
            .pool_max
            .saturating_sub(live.saturating_add(census.terminating));
        let create = asked.max(self.surge.min(room));
        if create == 0 || rules.mold.is_err() {
            return;
        }
        let budget = rules
            .scale
            .resolve(live.saturating_add(create))
            .saturating_sub(self.coming());
        for _ in 0..create.min(budget).min(self.births.allowance(now)) {
            self.create(rules);
        }
    }

    /// Gives up replacements that the numbers leave no place for: a pod beyond `bufferMax` or `poolMax`.
    fn trim_surge(&mut self, rules: &Rules) {
        let census = self.census();
        let spare = census.idle.saturating_sub(census.waiting);
        let buffer_max = u32::try_from(rules.capacity.buffer_max).unwrap_or(0);
        let live = census.allocated.saturating_add(census.idle);
        self.surge = self
            .surge
            .min(buffer_max.saturating_sub(spare))
            .min(rules.pool_max.saturating_sub(live));
    }

    /// What the pool holds, as the arithmetic counts it.
    pub(super) fn census(&self) -> Census {
        let counts = self.pods.counts();
        Census {
            allocated: counts.taken(),
            idle: counts.usable.saturating_add(self.coming()),
            terminating: counts.leaving,
            waiting: self.members.lacking(),
        }
    }

    /// Idle pods that cannot be given yet, and pods that are being made.
    pub(super) fn coming(&self) -> u32 {
        self.pods
            .counts()
            .unready
            .saturating_add(self.births.pending())
    }

    /// Removes idle pods: those that are not ready first, then outdated ones, then the newest. Those that
    /// are being made go before any of them, as soon as they are there.
    fn shrink(&mut self, pods: u32) {
        for _ in 0..pods.saturating_sub(self.births.pending()) {
            let next = self
                .pods
                .newest_unready()
                .or_else(|| self.pods.last_usable().map(|(_, name)| name))
                .map(str::to_owned);
            let Some(name) = next else { return };
            self.dismiss(&name, "ScaleDown");
        }
    }

    /// Removes idle pods of an earlier template: those that are not ready at once, ready ones as far as
    /// the Pool's `updateStrategy` allows.
    pub(super) fn update(&mut self, rules: &Rules) {
        if self.pods.counts().outdated_idle == 0 || rules.mold.is_err() {
            return;
        }
        while let Some(name) = self.pods.first_outdated_unready().map(str::to_owned) {
            self.dismiss(&name, "Outdated");
            self.surge = self.surge.saturating_add(1);
        }
        self.trim_surge(rules);
        while let Some((true, name)) = self.pods.last_usable() {
            let name = name.to_owned();
            // If pods cannot be made, one is risked to see whether they can be now.
            let most = match self.births.failure() {
                Some(_) => 1,
                None => rules.update.resolve(self.pods.counts().total()),
            };
            if self.unavailable(rules) >= most {
                return;
            }
            self.dismiss(&name, "Outdated");
            self.surge = self.surge.saturating_add(1);
        }
    }

    /// Idle pods that are not ready, or are to be made.
    fn unavailable(&self, rules: &Rules) -> u32 {
        let unlimited = Census {
            terminating: 0,
            ..self.census()
        };
        let missing = match capacity::change(rules.capacity, unlimited) {
            Change::Create(pods) => pods,
            Change::None | Change::DeleteIdle(_) => 0,
        };
        self.coming().saturating_add(missing.max(self.surge))
    }

    /// Removes idle pods that do not work; scaling replaces them. Each time it waits longer for the next,
    /// so that a template that never works does not cost a pod a second.
    pub(super) fn replace_broken(&mut self, now: Timestamp) {
        if self.pods.broken().is_empty() || self.replacements.waits_until(now).is_some() {
            return;
        }
        let names: Vec<String> = self.pods.broken().iter().cloned().collect();
        let trouble = names
            .iter()
            .filter_map(|name| self.pods.get(name)?.view.trouble.clone())
            .next_back();
        let words = trouble.map_or_else(
            || "not ready in time".to_owned(),
            |trouble| format!("{}: {}", trouble.reason, trouble.message),
        );
        self.report.trouble_is(&words);
        if !self.replacements.is_failing() {
            let note = format!(
                "idle pods do not work and are replaced, {} now: {words}",
                names.len()
            );
            self.event(true, "PodsReplaced", "Replace", note);
        }
        for name in names {
            self.dismiss(&name, "NotWorking");
        }
        self.replacements.fail(now, LONGEST_BACKOFF);
    }
}
