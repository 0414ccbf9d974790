//! The keys that this operator can sign with, in memory.

use std::sync::Arc;

use opensandbox_api::token::SigningKey;

/// Signing keys, the current one first, then those that older pods still know, newest first.
///
/// An executor knows the keys that were published when its pod was made. Which those are is not written
/// down anywhere: the conversation with it tries one after the other, once.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Vec<Arc<SigningKey>>,
}

impl KeyRing {
    /// With these keys, the current one first.
    pub fn new(keys: Vec<Arc<SigningKey>>) -> Self {
        Self { keys }
    }

    /// The key at this place: 0 is the current one.
    pub fn get(&self, place: usize) -> Option<&Arc<SigningKey>> {
        self.keys.get(place)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none, so that nothing can be signed yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The public halves in the same order, separated by commas, as executors read them.
    pub fn verification_keys(&self) -> String {
        let keys = self.keys.iter().map(|key| key.verification_key());
        keys.collect::<Vec<_>>().join(",")
    }
}
