//! What happens to the cluster, and after what nobody could keep the promise.

use std::collections::BTreeSet;

use opensandbox_certs::bundle::Fingerprint;
use opensandbox_certs::ledger::MAX_RETIRED;
use proptest::prelude::*;

use super::{CONFIGURATIONS, Configuration, REPLICAS, World};

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Advance(u64),
    Step(usize, bool),
    Pass(usize),
    LocalLook(usize),
    Crash(usize),
    Start(usize),
    DeleteSecret,
    ReplaceSecret,
    SpoilSecret,
    WipeBundle(usize),
    RestoreBundle(usize),
    DeleteConfiguration(usize),
    CreateConfiguration(usize),
    Jump(i64),
    Rotate,
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    let replica = 0..REPLICAS;
    let configuration = 0..CONFIGURATIONS.len();
    prop_oneof![
        12 => (1_u64..20).prop_map(Action::Advance),
        2 => (20_u64..300).prop_map(Action::Advance),
        40 => (replica.clone(), prop::bool::weighted(0.05)).prop_map(|(r, f)| Action::Step(r, f)),
        10 => replica.clone().prop_map(Action::Pass),
        2 => replica.clone().prop_map(Action::LocalLook),
        2 => replica.clone().prop_map(Action::Crash),
        4 => replica.prop_map(Action::Start),
        1 => Just(Action::DeleteSecret),
        1 => Just(Action::ReplaceSecret),
        1 => Just(Action::SpoilSecret),
        1 => configuration.clone().prop_map(Action::WipeBundle),
        1 => configuration.clone().prop_map(Action::RestoreBundle),
        1 => configuration.clone().prop_map(Action::DeleteConfiguration),
        2 => configuration.prop_map(Action::CreateConfiguration),
        1 => (-2000_i64..2000).prop_map(Action::Jump),
        3 => Just(Action::Rotate),
    ]
}

impl Action {
    fn takes_secret(&self) -> bool {
        matches!(
            self,
            Self::DeleteSecret | Self::ReplaceSecret | Self::SpoilSecret
        )
    }
}

impl World {
    /// Whether the action would take both copies of what is trusted, the Secret and the bundles,
    /// before anybody could repair the first. Then nothing is left that could be kept up.
    pub(crate) fn loses_both(&self, action: &Action) -> bool {
        match action {
            Action::DeleteSecret | Action::ReplaceSecret | Action::SpoilSecret => {
                let last = |configuration: &Configuration| {
                    let last = configuration.history.last();
                    configuration.exists && last.is_some_and(|last| !last.foreign)
                };
                !self.configurations.iter().all(last)
            }
            Action::WipeBundle(_)
            | Action::RestoreBundle(_)
            | Action::DeleteConfiguration(_)
            | Action::CreateConfiguration(_) => self.secret.as_ref().is_none_or(|stored| {
                // One that was made anew repairs nothing as long as it lacks what is published.
                let lacks = |id: &Fingerprint| !stored.ledger.knows(*id);
                stored.foreign || stored.malformed || self.published().iter().any(lacks)
            }),
            _ => false,
        }
    }

    /// Whether the action would take the Secret while more is published, or about to be, than a new
    /// one can take in. What does not fit leaves the bundles, see `plan`.
    pub(crate) fn loses_too_many(&self, action: &Action) -> bool {
        if !action.takes_secret() {
            return false;
        }
        let stored = self.secret.iter();
        let mut all: BTreeSet<_> = stored.flat_map(|stored| stored.ledger.bundle()).collect();
        all.extend(self.published());
        all.len() > MAX_RETIRED
    }

    /// What the replicas published last.
    fn published(&self) -> BTreeSet<Fingerprint> {
        let existing = self.configurations.iter().filter(|one| one.exists);
        let last = existing.filter_map(|configuration| configuration.history.last());
        let own = last.filter(|version| !version.foreign);
        own.flat_map(|version| &version.entries)
            .flatten()
            .copied()
            .collect()
    }
}
