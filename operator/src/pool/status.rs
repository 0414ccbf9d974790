//! The words and numbers of a Pool's status. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use opensandbox_api::conditions::{self, NewCondition, pool, reason};
use opensandbox_api::v1alpha1::PoolStatus;

use super::births::Failure;
use super::build::InjectionState;
use super::pods::Counts;

/// Everything that the status is made of, but the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gist {
    pub(super) generation: i64,
    pub(super) revision: Option<String>,
    pub(super) counts: Counts,
    pub(super) births: u32,
    pub(super) waiting: u32,
    pub(super) broken: usize,
    pub(super) trouble: Option<String>,
    pub(super) failure: Option<Failure>,
    pub(super) quarantine: Option<String>,
    pub(super) injection: Option<InjectionState>,
    pub(super) bounds: Option<(u32, u32)>,
}

/// The status that says this, its conditions changed from those that are stored.
pub(super) fn status(stored: &PoolStatus, gist: &Gist, now: Timestamp) -> PoolStatus {
    let number = |pods: u32| i32::try_from(pods).unwrap_or(i32::MAX);
    let mut conditions = stored.conditions.clone();
    set_conditions(&mut conditions, gist, now);
    PoolStatus {
        observed_generation: Some(gist.generation),
        revision: gist
            .revision
            .clone()
            .unwrap_or_else(|| stored.revision.clone()),
        total: number(gist.counts.total()),
        allocated: number(gist.counts.allocated),
        available: number(gist.counts.usable),
        updated: Some(number(gist.counts.updated)),
        conditions,
    }
}

fn set_conditions(list: &mut Vec<Condition>, gist: &Gist, now: Timestamp) {
    let mut set = |type_, holds: bool, reason: &str, message: String| {
        let new = NewCondition {
            type_,
            status: holds.into(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(gist.generation),
        };
        conditions::set(list, new, now);
    };
    let (holds, reason, message) = ready(gist);
    set(pool::READY, holds, reason, message);
    let (holds, reason, message) = progressing(gist);
    set(pool::PROGRESSING, holds, reason, message);
    let (holds, reason, message) = match &gist.failure {
        Some(failure) => (true, failure.reason, failure.message.clone()),
        None => (false, reason::POD_CREATED, String::new()),
    };
    set(pool::POD_CREATION_FAILED, holds, reason, message);
    if let Some(injection) = &gist.injection {
        let message = injection.message.clone();
        set(
            pool::INJECTION_UP_TO_DATE,
            injection.current,
            injection.reason,
            message,
        );
    }
    let (holds, reason, message) = match &gist.quarantine {
        Some(problem) => (true, reason::INVALID_SPEC, problem.clone()),
        None => (false, reason::READABLE, String::new()),
    };
    set(pool::QUARANTINED, holds, reason, message);
}

fn ready(gist: &Gist) -> (bool, &'static str, String) {
    let counts = &gist.counts;
    let trouble = gist
        .trouble
        .as_ref()
        .map(|trouble| format!("; {trouble}"))
        .unwrap_or_default();
    let Some((buffer_min, pool_max)) = gist.bounds else {
        return (
            false,
            reason::INVALID_SPEC,
            "the spec breaks a rule, see condition Quarantined".to_owned(),
        );
    };
    let working = counts.taken() + counts.usable;
    let enough = counts.usable >= buffer_min || working >= pool_max;
    let message = format!(
        "{} idle pods are ready, bufferMin is {buffer_min}{trouble}",
        counts.usable
    );
    if enough {
        (true, reason::PODS_READY, message)
    } else {
        (false, reason::PODS_NOT_READY, message)
    }
}

fn progressing(gist: &Gist) -> (bool, &'static str, String) {
    let counts = &gist.counts;
    let starting = counts.unready.saturating_add(gist.births);
    if counts.outdated_idle > 0 {
        let message = format!("{} idle pods of an earlier template", counts.outdated_idle);
        (true, reason::ROLLING_UPDATE, message)
    } else if starting > 0 {
        (
            true,
            reason::SCALING_UP,
            format!("{starting} pods are being started"),
        )
    } else if counts.leaving > 0 {
        (
            true,
            reason::SCALING_DOWN,
            format!("{} pods are being removed", counts.leaving),
        )
    } else {
        (false, reason::STABLE, String::new())
    }
}
