//! Who may use how much: a bound on all, and half of it for any one source.
//!
//! The sandbox shares the pod's addresses and may connect as often as it likes; the operator comes
//! from elsewhere. Bounded by source, the one cannot take the other's place.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Source {
    /// This pod, by any of its addresses: all of `127.0.0.0/8` can be chosen freely.
    ThisHost,
    /// Another address.
    Peer(IpAddr),
}

impl Source {
    /// The source of a connection from `peer`.
    pub(super) fn of(peer: SocketAddr) -> Self {
        let address = peer.ip().to_canonical();
        let mut own = peer;
        own.set_port(0);
        // An address can be bound if and only if it is one of this host's.
        if address.is_loopback() || UdpSocket::bind(own).is_ok() {
            Self::ThisHost
        } else {
            Self::Peer(address)
        }
    }
}

/// Locks, whatever happened to the thread that held the lock: the state is never half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that there is only so much of.
#[derive(Clone, Debug)]
pub(super) struct Quota(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    by_source: HashMap<Source, usize>,
}

impl Quota {
    /// So much in all; half of it for each source.
    pub(super) fn new(total: usize) -> Self {
        Self(Arc::new(Shared {
            total,
            used: Mutex::default(),
        }))
    }

    /// A permit for `amount`, if there is so much left for `source`.
    pub(super) fn take(&self, source: Source, amount: usize) -> Option<Permit> {
        let mut permit = Permit {
            quota: self.clone(),
            source,
            amount: 0,
        };
        permit.grow(amount).then_some(permit)
    }
}

/// A part of a [`Quota`], given back on drop.
#[derive(Debug)]
pub(super) struct Permit {
    quota: Quota,
    source: Source,
    amount: usize,
}

impl Permit {
    /// Takes `more`, or nothing and returns false if there is not so much left.
    pub(super) fn grow(&mut self, more: usize) -> bool {
        let total = self.quota.0.total;
        let mut used = lock(&self.quota.0.used);
        let by_source = used.by_source.get(&self.source).copied().unwrap_or(0);
        if used.all + more > total || by_source + more > total.div_ceil(2) {
            return false;
        }
        used.all += more;
        used.by_source.insert(self.source, by_source + more);
        self.amount += more;
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = lock(&self.quota.0.used);
        used.all -= self.amount;
        if let Some(by_source) = used.by_source.get_mut(&self.source) {
            *by_source -= self.amount;
            if *by_source == 0 {
                used.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn own_addresses_are_one_source() {
        for own in [
            "127.0.0.1:1",
            "127.9.8.7:2",
            "[::1]:3",
            "[::ffff:127.0.0.1]:4",
        ] {
            assert_eq!(source(own), Source::ThisHost, "{own}");
        }
        let other = Source::Peer("192.0.2.1".parse().unwrap());
        assert_eq!(source("192.0.2.1:1"), other);
        assert_eq!(source("[::ffff:192.0.2.1]:9"), other);
    }

    #[test]
    fn one_source_gets_half() {
        let quota = Quota::new(4);
        let other = source("192.0.2.1:1");
        let first = quota.take(Source::ThisHost, 1).unwrap();
        let mut second = quota.take(Source::ThisHost, 1).unwrap();
        assert!(quota.take(Source::ThisHost, 1).is_none());
        assert!(!second.grow(1));
        let foreign = quota.take(other, 2).unwrap();
        assert!(
            quota.take(source("192.0.2.2:1"), 1).is_none(),
            "all is used"
        );
        drop(first);
        assert!(second.grow(1));
        drop((second, foreign));
        assert_eq!(lock(&quota.0.used).all, 0);
        assert!(lock(&quota.0.used).by_source.is_empty());
    }
}
