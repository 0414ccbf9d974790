//! What has to hold: at every step, and in the end.

use std::collections::BTreeSet;

use super::{Action, CONFIGURATIONS, REPLICAS, World, timing};

impl World {
    /// Whatever an API server may still believe verifies whatever a ready replica serves.
    pub(crate) fn check(&self) {
        if self.unchecked {
            return;
        }
        let believed = self.mono.saturating_sub(timing().settle);
        for (index, replica) in self.replicas.iter().enumerate() {
            let Some(replica) = replica else { continue };
            let (Some(leaf), true) = (&replica.memory.leaf, replica.published) else {
                continue;
            };
            for configuration in &self.configurations {
                let versions = configuration.history.iter().rev();
                let still = versions
                    .take_while(|version| version.until.is_none_or(|until| until > believed));
                for version in still.filter(|version| !version.foreign) {
                    for entry in &version.entries {
                        assert!(
                            entry.contains(&leaf.ca),
                            "replica {index} serves {leaf:?}, an API server may trust {entry:?}; {:#?}",
                            self.secret
                        );
                    }
                }
            }
        }
    }

    /// Left alone, everything becomes well and then nothing is written any more.
    pub(crate) fn settle_down(&mut self) {
        for index in 0..CONFIGURATIONS.len() {
            self.act(&Action::CreateConfiguration(index));
        }
        for index in 0..REPLICAS {
            self.act(&Action::Start(index));
        }
        let end = self.mono + timing().overlap() * 3;
        while self.mono < end {
            self.all_look();
        }
        // An authority may just be due; its rotation is over within the overlap.
        let end = self.mono + timing().overlap() * 3;
        while self.mono < end {
            let stored = self.secret.as_ref().expect("the Secret exists");
            if stored.ledger.next.is_none() && stored.ledger.retired.is_empty() {
                break;
            }
            self.all_look();
        }
        let now = self.now();
        let stored = self.secret.as_ref().expect("the Secret exists");
        let current = stored.ledger.current.as_ref().expect("one authority signs");
        assert!(current.valid_at(now.wall), "{stored:#?} at {now:?}");
        assert!(stored.ledger.next.is_none(), "{stored:#?} at {now:?}");
        assert!(stored.ledger.retired.is_empty(), "{stored:#?} at {now:?}");
        for replica in self.replicas.iter().flatten() {
            let leaf = replica.memory.leaf.as_ref().expect("a leaf");
            assert_eq!(leaf.ca, current.id);
            assert!(leaf.valid_at(now.wall) && replica.published, "{replica:#?}");
        }
        for configuration in &self.configurations {
            let last = configuration.history.last().expect("one version");
            for entry in &last.entries {
                assert_eq!(*entry, BTreeSet::from([current.id]));
            }
        }
        // Unless the authority has become due this very moment.
        let due = current.not_before + (timing().skew + timing().authority) / 5 * 4;
        let versions = self.versions;
        if now.wall >= due {
            return;
        }
        for index in 0..REPLICAS {
            self.pass(index);
        }
        assert_eq!(self.versions, versions, "writes at idle");
    }

    /// Somewhat more often than the timers make them.
    fn all_look(&mut self) {
        for index in 0..REPLICAS {
            self.pass(index);
            self.check();
        }
        self.advance(3);
    }
}
