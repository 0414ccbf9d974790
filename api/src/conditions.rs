//! Conditions of Pools and BatchSandboxes: their types, their reasons, and how one is set.
//!
//! In: the list in a status, what is true now, and the time. Out: the list, changed only where it
//! must be. Pure; the time is a parameter.
//!
//! Stored as upstream stores them: `type`, `status`, `reason`, `message`, `lastTransitionTime`, with
//! `True` and `False` as the only statuses (its schema refuses `Unknown`). Upstream removes a
//! condition that is false; here it stays as `False`, so that `kubectl wait --for=condition=X=false`
//! works and its last change stays readable. Upstream's server only looks for conditions that are
//! true, so it reads both alike.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Deserializer};

/// Longest message that is stored, in characters: the bound of Kubernetes' own condition schema.
pub const MAX_MESSAGE: usize = 32_768;

/// Condition types of a BatchSandbox.
pub mod batch_sandbox {
    /// The sandboxes are ready. Upstream's.
    pub const READY: &str = "Ready";
    /// The sandboxes are on their way to another state. Upstream's.
    pub const PROGRESSING: &str = "Progressing";
    /// The sandbox is paused. Upstream's.
    pub const PAUSED: &str = "Paused";
    /// The last pause failed. Upstream's.
    pub const PAUSE_FAILED: &str = "PauseFailed";
    /// The last resume failed. Upstream's.
    pub const RESUME_FAILED: &str = "ResumeFailed";
    /// A pod failed or was lost. Upstream's; its reason is the pod's own, such as `ErrImagePull`.
    pub const POD_FAILED: &str = "PodFailed";
    /// The pool cannot give the pods now. Later upstream's, whose server answers 429 while it is true.
    pub const POOL_ALLOCATION_PENDING: &str = "PoolAllocationPending";
    /// Every task has ended.
    pub const TASKS_FINISHED: &str = "TasksFinished";
    /// Something on the object cannot be read, and the operator leaves the object alone.
    pub const QUARANTINED: &str = "Quarantined";
}

/// Condition types of a Pool.
pub mod pool {
    /// The pool has at least `bufferMin` idle pods that are ready, or is as large as `poolMax` allows.
    pub const READY: &str = "Ready";
    /// Pods are being made, replaced or removed.
    pub const PROGRESSING: &str = "Progressing";
    /// What was injected is what would be injected now.
    pub const INJECTION_UP_TO_DATE: &str = "InjectionUpToDate";
    /// Pods cannot be made: a quota, an admission, a template that the API server refuses.
    pub const POD_CREATION_FAILED: &str = "PodCreationFailed";
    /// Something on the object cannot be read, and the operator leaves the object alone.
    pub const QUARANTINED: &str = "Quarantined";
}

/// Reasons, one word each.
pub mod reason {
    /// Pods are ready.
    pub const PODS_READY: &str = "PodsReady";
    /// Pods are not ready yet.
    pub const PODS_NOT_READY: &str = "PodsNotReady";
    /// A pod that a sandbox held disappeared.
    pub const POD_LOST: &str = "PodLost";
    /// Every pod is as it should be.
    pub const PODS_HEALTHY: &str = "PodsHealthy";
    /// A pause is under way. Upstream's.
    pub const PAUSE_IN_PROGRESS: &str = "PauseInProgress";
    /// A resume is under way. Upstream's.
    pub const RESUME_IN_PROGRESS: &str = "ResumeInProgress";
    /// Only a single sandbox can be paused. Upstream's.
    pub const UNSUPPORTED_REPLICAS: &str = "UnsupportedReplicas";
    /// The snapshot failed. Upstream's.
    pub const SNAPSHOT_FAILED: &str = "SnapshotFailed";
    /// The snapshot to resume from is gone. Upstream's.
    pub const SNAPSHOT_NOT_FOUND: &str = "SnapshotNotFound";
    /// The pod to snapshot is gone. Upstream's.
    pub const POD_NOT_FOUND: &str = "PodNotFound";
    /// The pool is at `poolMax` and has no idle pod. Later upstream's word.
    pub const POOL_CAPACITY_EXHAUSTED: &str = "PoolCapacityExhausted";
    /// Pods for the waiting sandboxes are being started.
    pub const PODS_STARTING: &str = "PodsStarting";
    /// Sandboxes that came earlier wait for the same pool.
    pub const WAITING_FOR_EARLIER: &str = "WaitingForEarlier";
    /// The pool does not exist.
    pub const POOL_NOT_FOUND: &str = "PoolNotFound";
    /// The pool is being deleted.
    pub const POOL_DELETED: &str = "PoolDeleted";
    /// No pool fits a sandbox with `poolRef: "*"`.
    pub const NO_ELIGIBLE_POOL: &str = "NoEligiblePool";
    /// The pods have been given.
    pub const ALLOCATED: &str = "Allocated";
    /// An annotation of the object cannot be read.
    pub const MALFORMED_ANNOTATION: &str = "MalformedAnnotation";
    /// The spec of the object cannot be read or breaks a rule.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The object can be read again.
    pub const READABLE: &str = "Readable";
    /// The injected values are those of the current settings.
    pub const CURRENT: &str = "Current";
    /// The injected values are those of earlier settings.
    pub const OUTDATED: &str = "Outdated";
    /// Injection is switched off.
    pub const INJECTION_DISABLED: &str = "InjectionDisabled";
    /// The template already runs the executor by itself.
    pub const HAND_WRITTEN: &str = "HandWritten";
    /// The injection is not possible with this template.
    pub const INJECTION_IMPOSSIBLE: &str = "InjectionImpossible";
    /// The size is between the pool's bounds.
    pub const WITHIN_BOUNDS: &str = "WithinBounds";
    /// Pods are being made.
    pub const SCALING_UP: &str = "ScalingUp";
    /// Pods are being removed.
    pub const SCALING_DOWN: &str = "ScalingDown";
    /// Pods of an earlier template are being replaced.
    pub const ROLLING_UPDATE: &str = "RollingUpdate";
    /// Nothing is under way.
    pub const STABLE: &str = "Stable";
    /// The API server refused a pod.
    pub const POD_REFUSED: &str = "PodRefused";
    /// Pod Security Admission refused a pod: the level of the namespace forbids what is in it.
    pub const POD_SECURITY_FORBIDS: &str = "PodSecurityForbids";
    /// The last pod was made.
    pub const POD_CREATED: &str = "PodCreated";
    /// Tasks have not ended yet.
    pub const TASKS_UNFINISHED: &str = "TasksUnfinished";
    /// Every task ended with exit code 0.
    pub const TASKS_SUCCEEDED: &str = "TasksSucceeded";
    /// Every task ended, not all with exit code 0.
    pub const TASKS_FAILED: &str = "TasksFailed";
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
}

impl Status {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What is true now, to be put into a list of conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCondition {
    /// One of [`batch_sandbox`] or [`pool`].
    pub type_: &'static str,
    /// Whether it holds.
    pub status: Status,
    /// Why, in one word: one of [`reason`], or a pod's own. Must not be empty.
    pub reason: String,
    /// Why, in a sentence. Cut at [`MAX_MESSAGE`] characters.
    pub message: String,
    /// The generation of the object that this was seen of.
    pub observed_generation: Option<i64>,
}

/// Puts a condition into a list. Returns whether the list changed, which is when it must be written.
///
/// The place in the list is kept; a new type goes to the end. `lastTransitionTime` becomes `now`, in
/// whole seconds as Kubernetes stores times, only if the status flips.
pub fn set(conditions: &mut Vec<Condition>, new: NewCondition, now: Timestamp) -> bool {
    let NewCondition {
        type_,
        status,
        reason,
        message,
        observed_generation,
    } = new;
    let existing = conditions
        .iter_mut()
        .find(|condition| condition.type_ == type_);
    let last_transition_time = match &existing {
        Some(existing) if existing.status == status.as_str() => {
            existing.last_transition_time.clone()
        }
        _ => Time(whole_seconds(now)),
    };
    let new = Condition {
        last_transition_time,
        message: cut(message),
        observed_generation,
        reason,
        status: status.as_str().to_owned(),
        type_: type_.to_owned(),
    };
    match existing {
        Some(existing) if *existing == new => return false,
        Some(existing) => *existing = new,
        None => conditions.push(new),
    }
    true
}

/// The condition of a type, if the list has it.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is there and true.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == Status::True.as_str())
}

/// Reads a list of conditions as upstream may have written it: `null` for an empty list, and without
/// `lastTransitionTime`, which its schema does not require and the Kubernetes type does. An absent
/// time is read as the beginning of 1970. For `#[serde(deserialize_with = "...")]`.
///
/// # Errors
///
/// If the list, or a condition in it, is of another shape.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Condition>, D::Error> {
    let stored = Option::<Vec<Stored>>::deserialize(deserializer)?;
    Ok(stored
        .unwrap_or_default()
        .into_iter()
        .map(Condition::from)
        .collect())
}

/// A condition as it may be stored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
    last_transition_time: Option<Time>,
    observed_generation: Option<i64>,
}

impl From<Stored> for Condition {
    fn from(stored: Stored) -> Self {
        let Stored {
            type_,
            status,
            reason,
            message,
            last_transition_time,
            observed_generation,
        } = stored;
        Self {
            last_transition_time: last_transition_time.unwrap_or(Time(Timestamp::UNIX_EPOCH)),
            message: message.unwrap_or_default(),
            observed_generation,
            reason: reason.unwrap_or_default(),
            status,
            type_,
        }
    }
}

/// The time in whole seconds, as Kubernetes stores times.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    // Dropping the fraction moves towards 1970 and so stays in range.
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
        message.truncate(end);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(status: Status, reason: &str) -> NewCondition {
        NewCondition {
            type_: batch_sandbox::READY,
            status,
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: Some(1),
        }
    }

    #[test]
    fn transition_time_moves_only_when_the_status_flips() {
        let mut conditions = Vec::new();
        assert!(set(
            &mut conditions,
            ready(Status::False, reason::PODS_NOT_READY),
            at(10)
        ));
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));

        assert!(set(
            &mut conditions,
            ready(Status::False, reason::PODS_STARTING),
            at(20)
        ));
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));
        assert_eq!(conditions[0].reason, reason::PODS_STARTING);

        assert!(set(
            &mut conditions,
            ready(Status::True, reason::PODS_READY),
            at(30)
        ));
        assert_eq!(conditions[0].last_transition_time, Time(at(30)));

        assert!(!set(
            &mut conditions,
            ready(Status::True, reason::PODS_READY),
            at(40)
        ));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn false_conditions_stay_and_the_order_is_kept() {
        let mut conditions = Vec::new();
        for type_ in [pool::READY, pool::PROGRESSING, pool::INJECTION_UP_TO_DATE] {
            let new = NewCondition {
                type_,
                ..ready(Status::True, reason::STABLE)
            };
            set(&mut conditions, new, at(1));
        }
        let new = NewCondition {
            type_: pool::PROGRESSING,
            ..ready(Status::False, reason::STABLE)
        };
        set(&mut conditions, new, at(2));
        let types: Vec<&str> = conditions
            .iter()
            .map(|condition| condition.type_.as_str())
            .collect();
        assert_eq!(
            types,
            [pool::READY, pool::PROGRESSING, pool::INJECTION_UP_TO_DATE]
        );
        assert!(is_true(&conditions, pool::READY));
        assert!(!is_true(&conditions, pool::PROGRESSING));
        assert_eq!(
            find(&conditions, pool::PROGRESSING).map(|c| c.status.as_str()),
            Some("False")
        );
        assert_eq!(find(&conditions, pool::QUARANTINED), None);
        assert!(!is_true(&conditions, pool::QUARANTINED));
    }

    #[test]
    fn stored_as_upstream_stores_them() {
        let mut conditions = Vec::new();
        let now = Timestamp::from_millisecond(1_781_514_000_999).unwrap();
        set(
            &mut conditions,
            ready(Status::True, reason::PODS_READY),
            now,
        );
        let stored = serde_json::to_value(&conditions).unwrap();
        assert_eq!(
            stored,
            json!([{
                "type": "Ready", "status": "True", "reason": "PodsReady", "message": "",
                "lastTransitionTime": "2026-06-15T09:00:00Z", "observedGeneration": 1,
            }])
        );
        assert_eq!(deserialize(&stored).unwrap(), conditions);
    }

    #[test]
    fn reads_what_upstream_may_have_written() {
        assert_eq!(deserialize(&json!(null)).unwrap(), []);
        let read = deserialize(
            &json!([{"type": "PodFailed", "status": "True", "reason": "ErrImagePull", "x": 1}]),
        );
        let read = read.unwrap();
        assert_eq!(read[0].last_transition_time, Time(Timestamp::UNIX_EPOCH));
        assert!(is_true(&read, batch_sandbox::POD_FAILED));
        assert!(deserialize(&json!([{"status": "True"}])).is_err());
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let mut conditions = Vec::new();
        let new = NewCondition {
            message: "ä".repeat(MAX_MESSAGE + 5),
            ..ready(Status::True, "R")
        };
        set(&mut conditions, new, at(1));
        assert_eq!(conditions[0].message.chars().count(), MAX_MESSAGE);
    }

    proptest! {
        #[test]
        fn time_of_the_last_flip_whatever_happens(steps in prop::collection::vec((any::<bool>(), 0..3_u8), 1..20)) {
            let mut conditions = Vec::new();
            let mut flipped = 0;
            let mut last = None;
            for (second, (holds, why)) in (0_i64..).zip(steps) {
                if last != Some(holds) {
                    flipped = second;
                    last = Some(holds);
                }
                set(&mut conditions, ready(holds.into(), &why.to_string()), at(second));
                prop_assert_eq!(conditions.len(), 1);
                prop_assert_eq!(&conditions[0].last_transition_time, &Time(at(flipped)));
                prop_assert_eq!(is_true(&conditions, batch_sandbox::READY), holds);
            }
        }
    }
}
