//! The gauges of pools. The only series with names of objects in them: removed with their pool.

use std::hash::Hash;

use opensandbox_api::v1alpha1::CapacitySpec;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Register;
use crate::view::ObjectKey;

const STATES: [&str; 6] = [
    "total",
    "allocated",
    "available",
    "updated",
    "terminating",
    "waiting",
];
const BOUNDS: [&str; 4] = ["bufferMin", "bufferMax", "poolMin", "poolMax"];
const INJECTIONS: [&str; 4] = ["current", "outdated", "impossible", "off"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    namespace: String,
    pool: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBound {
    namespace: String,
    pool: String,
    bound: &'static str,
}

pub(super) struct Pools {
    pods: Family<OfState, Gauge>,
    capacity: Family<OfBound, Gauge>,
    injection: Family<OfState, Gauge>,
}

impl Pools {
    pub(super) fn new(register: &mut Register<'_>) -> Self {
        Self {
            pods: register.add(
                "pool_pods",
                "Pods of a pool by state; state=\"waiting\" counts pods that sandboxes wait for",
            ),
            capacity: register.add(
                "pool_capacity_pods",
                "The four numbers of a pool's capacitySpec",
            ),
            injection: register.add(
                "pool_injection",
                "1 for how a pool stands to the injection, as its condition InjectionUpToDate says",
            ),
        }
    }

    /// Counts in the order of the states.
    pub(super) fn count(&self, key: &ObjectKey, counts: [u32; 6]) {
        for (state, count) in STATES.into_iter().zip(counts) {
            self.pods
                .get_or_create(&of_state(key, state))
                .set(count.into());
        }
    }

    /// What the Pool asks for, as far as it can be followed.
    pub(super) fn asked(
        &self,
        key: &ObjectKey,
        capacity: Option<CapacitySpec>,
        injection: Option<&'static str>,
    ) {
        let numbers = capacity.map(|capacity| {
            [
                capacity.buffer_min,
                capacity.buffer_max,
                capacity.pool_min,
                capacity.pool_max,
            ]
        });
        for (index, bound) in BOUNDS.into_iter().enumerate() {
            let number = numbers.and_then(|numbers| numbers.get(index).copied());
            set(&self.capacity, &of_bound(key, bound), number.map(i64::from));
        }
        for state in INJECTIONS {
            let holds = injection.map(|now| i64::from(now == state));
            set(&self.injection, &of_state(key, state), holds);
        }
    }

    /// There is no such pool any more.
    pub(super) fn forget(&self, key: &ObjectKey) {
        for state in STATES {
            self.pods.remove(&of_state(key, state));
        }
        self.asked(key, None, None);
    }
}

/// Sets a series, or removes it where there is nothing to say. It is not removed first, so that no scrape
/// misses it.
fn set<L>(family: &Family<L, Gauge>, labels: &L, value: Option<i64>)
where
    L: Clone + Eq + Hash,
{
    match value {
        Some(value) => {
            family.get_or_create(labels).set(value);
        }
        None => {
            family.remove(labels);
        }
    }
}

fn of_state(key: &ObjectKey, state: &'static str) -> OfState {
    OfState {
        namespace: key.namespace.clone(),
        pool: key.name.clone(),
        state,
    }
}

fn of_bound(key: &ObjectKey, bound: &'static str) -> OfBound {
    OfBound {
        namespace: key.namespace.clone(),
        pool: key.name.clone(),
        bound,
    }
}
