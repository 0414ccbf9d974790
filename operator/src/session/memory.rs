//! Memory for what executors send, bounded for all conversations together.
//!
//! A line or an answer may be long, since it holds a whole task; if every one of ten thousand hostile
//! executors sent a long one at once, the operator would have no memory left. So whatever goes beyond
//! [`FREE`] is counted.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that each conversation has without asking: all that an ordinary event needs.
pub(super) const FREE: usize = 16 * 1024;
/// What is counted in.
const UNIT: usize = 16 * 1024;

/// What there is for all.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    /// So many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT)))
    }

    /// A share of it, so far without anything.
    pub(super) fn share(&self) -> Share {
        Share {
            memory: self.clone(),
            permit: None,
        }
    }
}

/// What one buffer holds of it; given back on drop.
#[derive(Debug)]
pub(super) struct Share {
    memory: Memory,
    permit: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Makes this the share of a buffer of so many bytes. `false`: there is no room, and nothing changed.
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        let units = bytes.saturating_sub(FREE).div_ceil(UNIT);
        let held = self
            .permit
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        if units > held {
            let Ok(more) = u32::try_from(units - held) else {
                return false;
            };
            let Ok(more) = Arc::clone(&self.memory.0).try_acquire_many_owned(more) else {
                return false;
            };
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                None => self.permit = Some(more),
            }
        } else if let Some(permit) = &mut self.permit {
            drop(permit.split(held - units));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_holds_another_cannot_have_until_it_is_given_back() {
        let memory = Memory::new(4 * UNIT);
        let (mut one, mut two) = (memory.share(), memory.share());
        assert!(one.resize(FREE + 3 * UNIT));
        assert!(two.resize(FREE), "that much is free");
        assert!(!two.resize(FREE + 2 * UNIT));
        assert!(two.resize(FREE + UNIT));
        assert!(one.resize(FREE + 1), "shrinks");
        assert!(two.resize(FREE + 3 * UNIT));
        drop(two);
        assert!(one.resize(FREE + 4 * UNIT));
        assert!(!one.resize(usize::MAX));
    }
}
