//! The invariants, checked at each write and message against what really is.
//!
//! What a sandbox holds is taken from what operators have written, not from what stands in the object:
//! what users forge is set apart ([`Checker::taint`]).

use std::collections::{BTreeMap, BTreeSet};

use opensandbox_api::labels;
use opensandbox_api::v1alpha1::TaskResultState;
use opensandbox_operator::protocol::{SandboxRef, ToPool};
use opensandbox_operator::view::{PodView, Version};
use serde_json::Value;

use crate::replica::Actor;
use crate::store::{self, Entry, Kind, annotation, is_deleting, pods_in, text};
use crate::world::World;
use crate::writes::{Op, Write};

/// Longest that a change of a Pool may take to reach its ledger, with what else is late, in milliseconds.
const SLACK: i64 = 30_000;

/// What one BatchSandbox holds, as operators wrote it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) alloc: Vec<String>,
    pub(crate) release: BTreeSet<String>,
    pub(crate) released: BTreeSet<String>,
    pub(crate) deleting: bool,
    pub(crate) terminal: BTreeMap<i32, (i32, TaskResultState, i32)>,
    /// Pods that were in it, and the version of the object from which on they are not any more.
    former: Vec<(Version, String)>,
}

impl Claim {
    /// Pods that nobody else may have.
    pub(crate) fn owned(&self) -> impl Iterator<Item = &String> {
        let pods = self.alloc.iter();
        pods.filter(|pod| !pod.is_empty() && !self.released.contains(*pod))
    }

    /// Whether one who has heard of no newer version may take this pod for its own: it learns of a write
    /// by the answer.
    fn owned_until(&self, heard: Version, pod: &str) -> bool {
        let mut former = self.former.iter();
        former.any(|(until, former)| former == pod && heard < *until)
    }

    /// Whether it uses this pod, and has not begun to give it back.
    fn uses(&self, pod: &str) -> bool {
        !self.deleting && !self.release.contains(pod) && self.owned().any(|owned| owned == pod)
    }
}

/// How a pod was given back.
#[derive(Clone, Debug)]
struct GivenBack {
    by: String,
    at: i64,
    containers: Vec<String>,
}

/// What is remembered, and what was found.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) violation: Option<String>,
    /// By UID, of objects that exist.
    pub(crate) claims: BTreeMap<String, Claim>,
    pub(crate) tainted: BTreeSet<String>,
    pub(crate) tainted_pods: BTreeSet<String>,
    /// UIDs of sandboxes, and pods that a start may have taken from them.
    pub(crate) taken: BTreeSet<(String, String)>,
    /// By UID of the pod.
    given_back: BTreeMap<String, GivenBack>,
    strategies: BTreeMap<String, Vec<(i64, String)>>,
    maxima: BTreeMap<String, i32>,
    /// Pods that a leader made who did not lead any more.
    zombie_pods: BTreeSet<String>,
    /// UIDs of sandboxes, shards, and pods that were given to them.
    pub(crate) placed: BTreeSet<(String, usize, String)>,
    /// Runs of tasks of which a user wiped out that they had a pod: UID of the sandbox, shard, attempt.
    pub(crate) forgotten: BTreeSet<(String, usize, u32)>,
    pub(crate) writes: u64,
}

impl Checker {
    pub(crate) fn fail(&mut self, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(what.into());
        }
    }

    pub(crate) fn saw_maximum(&mut self, pool: &str, maximum: i32) {
        self.maxima.insert(pool.to_owned(), maximum);
    }

    /// Something changed at the API server, whoever did it.
    pub(crate) fn observe(&mut self, kind: Kind, entry: &Entry, now: i64) {
        let uid = store::uid(&entry.object);
        match kind {
            Kind::Pod => {}
            Kind::Pool => {
                let strategy = text(&entry.object, "/spec/recycleStrategy/type");
                let strategy = strategy.unwrap_or("Delete").to_owned();
                self.strategies
                    .entry(entry.name.clone())
                    .or_default()
                    .push((now, strategy));
            }
            Kind::Sandbox if entry.gone => {
                self.claims.remove(uid);
            }
            Kind::Sandbox => {
                let claim = self.claims.entry(uid.to_owned()).or_default();
                claim.name.clone_from(&entry.name);
                claim.deleting = is_deleting(&entry.object);
                let replicas = replicas(&entry.object);
                claim.terminal.retain(|index, _| *index < replicas);
            }
        }
    }

    fn users_of<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = (&'a String, &'a Claim)> {
        let claims = self.claims.iter();
        claims.filter(move |(uid, claim)| {
            !self.tainted.contains(*uid) && claim.owned().any(|owned| owned == pod)
        })
    }
}

impl World {
    /// A ledger is about to create a pod.
    pub(crate) fn check_creation(&mut self, id: u32, pool: &str, name: &str, pod: &Value) {
        let Some((_, owner)) = store::controller(pod) else {
            self.check
                .fail(format!("{pool} creates {name} without an owner"));
            return;
        };
        if text(pod, "/metadata/name") != Some(name)
            || store::label(pod, labels::POOL_NAME) != Some(pool)
            || store::label(pod, labels::POOL) != Some(pool)
        {
            self.check.fail(format!(
                "{pool} creates {name} with another name or without labels"
            ));
        }
        let mut names: BTreeSet<&str> = self
            .store
            .all(Kind::Pod)
            .filter(|(name, pod)| {
                store::controller(pod).is_some_and(|(_, uid)| uid == owner)
                    && !self.check.zombie_pods.contains(*name)
            })
            .map(|(name, _)| name)
            .collect();
        for write in self.writes.values() {
            if let Op::CreatePod { name, pod } = &write.op
                && write.replica == id
                && store::controller(pod).is_some_and(|(_, uid)| uid == owner)
            {
                names.insert(name);
            }
        }
        names.insert(name);
        let maximum = self.check.maxima.get(pool).copied().unwrap_or(0);
        let count = names.len();
        if i64::try_from(count).unwrap_or(i64::MAX) > i64::from(maximum) {
            let names = format!("{names:?}");
            self.check.fail(format!(
                "{pool} creates {name}: {count} pods exist or are being made, poolMax is {maximum}: {names}"
            ));
        }
    }

    /// A ledger proposes pods to a sandbox.
    pub(crate) fn check_grant(
        &mut self,
        pool: &str,
        sandbox: &SandboxRef,
        pods: &[std::sync::Arc<PodView>],
    ) {
        for pod in pods {
            if !pod.is_usable() || pod.ip.is_none() || pod.evict {
                self.check.fail(format!(
                    "{pool} grants {} to {}, which cannot be used: {pod:?}",
                    pod.key, sandbox.key
                ));
            }
        }
        if pods.is_empty() {
            self.check
                .fail(format!("{pool} grants nothing to {}", sandbox.key));
        }
    }

    /// A machine says something to its pool.
    pub(crate) fn check_message(&mut self, pool: &str, message: &ToPool, heard: Version) {
        let ToPool::Statement(statement) = message else {
            return;
        };
        let uid = &statement.sandbox.uid;
        if self.check.is_tainted(uid) {
            return;
        }
        let claim = self.check.claims.get(uid).cloned().unwrap_or_default();
        let held = statement.holds.iter();
        let durable =
            |pod: &String| claim.owned().any(|owned| owned == pod) || claim.owned_until(heard, pod);
        let not_durable = held.filter(|pod| !durable(pod));
        let not_durable: Vec<&String> = not_durable.collect();
        if !not_durable.is_empty() && !claim.name.is_empty() {
            self.check.fail(format!(
                "{} says to {pool} that it holds {not_durable:?}, which is not written: {claim:?}",
                statement.sandbox.key
            ));
        }
    }

    pub(crate) fn check_before(&mut self, write: &Write) {
        self.check.writes += u64::from(!matches!(write.op, Op::Read { .. }));
        let (name, uid, version, what) = match &write.op {
            Op::Retire {
                name,
                uid,
                version,
                reason,
            } => (name, uid, Some(*version), *reason),
            Op::DeletePod {
                name,
                uid,
                version,
                reason,
            } => (name, uid, *version, *reason),
            _ => return,
        };
        let Some(pod) = self.store.get(Kind::Pod, name) else {
            return;
        };
        let same_version = version.is_none_or(|version| {
            text(pod, "/metadata/resourceVersion") == Some(version.to_string().as_str())
        });
        if store::uid(pod) != uid || !same_version {
            return;
        }
        let over = is_deleting(pod) || store::has_ended(pod);
        if write.zombie || over || self.check.tainted_pods.contains(name) {
            return;
        }
        match &write.actor {
            Actor::Pool(pool) => {
                let user = self
                    .check
                    .users_of(name)
                    .find(|(_, claim)| claim.uses(name))
                    .map(|(_, claim)| claim.clone());
                if let Some(claim) = user {
                    self.check.fail(format!(
                        "{pool} takes {name} away ({what}) from {}: {claim:?}",
                        claim.name
                    ));
                }
            }
            Actor::Sandbox(of) => {
                let own = store::controller(pod).is_some_and(|(_, owner)| owner == of);
                if !own {
                    self.check
                        .fail(format!("{of} deletes {name}, which is not its own"));
                }
            }
        }
    }

    pub(crate) fn check_after(&mut self, write: &Write) {
        match (&write.op, &write.actor) {
            (Op::CreatePod { name, .. }, _) if write.zombie => {
                self.check.zombie_pods.insert(name.clone());
            }
            (Op::Sandbox { name, write }, Actor::Sandbox(uid)) => {
                let keys: Vec<&str> = write.annotations.keys().copied().collect();
                self.check_claim(name, uid, &keys);
            }
            (Op::SandboxStatus { write, .. }, Actor::Sandbox(uid)) => {
                self.check_status(uid, write);
            }
            _ => {}
        }
    }

    /// A sandbox's annotations were written.
    fn check_claim(&mut self, name: &str, uid: &str, keys: &[&str]) {
        let Some(raw) = self
            .store
            .get(Kind::Sandbox, name)
            .filter(|raw| store::uid(raw) == uid)
            .cloned()
        else {
            return;
        };
        let before = self.check.claims.get(uid).cloned().unwrap_or_default();
        let mut after = before.clone();
        name.clone_into(&mut after.name);
        let read = |key| pods_in(annotation(&raw, key));
        if keys.contains(&labels::ALLOC_STATUS) {
            after.alloc = read(labels::ALLOC_STATUS);
            self.check.note_places(uid, &before.alloc, &after.alloc);
        }
        if keys.contains(&labels::ALLOC_RELEASE) {
            after.release = read(labels::ALLOC_RELEASE).into_iter().collect();
        }
        if keys.contains(&labels::ALLOC_RELEASED) {
            after.released = read(labels::ALLOC_RELEASED).into_iter().collect();
        }
        let version = text(&raw, "/metadata/resourceVersion").and_then(|text| text.parse().ok());
        let version = Version(version.unwrap_or_default());
        let kept: BTreeSet<String> = after.owned().cloned().collect();
        let gone = before.owned().filter(|pod| !kept.contains(*pod));
        after.former.extend(gone.map(|pod| (version, pod.clone())));
        self.check.claims.insert(uid.to_owned(), after.clone());
        let mut distinct: Vec<&String> = after.owned().collect();
        distinct.sort();
        distinct.dedup();
        if distinct.len() != after.owned().count() {
            self.check
                .fail(format!("{name} has one pod for two shards: {after:?}"));
        }
        for pod in before.owned() {
            if (after.release.contains(pod) && !before.release.contains(pod))
                || !after.owned().any(|owned| owned == pod)
            {
                self.given_back(uid, pod);
            }
        }
        let new: Vec<String> = after
            .owned()
            .filter(|pod| !before.owned().any(|owned| owned == *pod))
            .cloned()
            .collect();
        for pod in new {
            self.check_new_holder(uid, name, &pod);
        }
    }

    /// A sandbox begins to be deleted or to release a pod: from then on it is being recycled.
    pub(crate) fn given_back(&mut self, sandbox: &str, pod: &str) {
        let Some(raw) = self.store.get(Kind::Pod, pod) else {
            return;
        };
        let given = GivenBack {
            by: sandbox.to_owned(),
            at: self.now(),
            containers: container_ids(raw),
        };
        self.check
            .given_back
            .entry(store::uid(raw).to_owned())
            .and_modify(|known| {
                if known.by != given.by {
                    *known = given.clone();
                }
            })
            .or_insert(given);
    }

    fn check_new_holder(&mut self, uid: &str, name: &str, pod: &str) {
        if self.check.is_tainted(uid) || self.check.tainted_pods.contains(pod) {
            return;
        }
        let other = self
            .check
            .users_of(pod)
            .find(|(of, _)| *of != uid)
            .map(|(_, claim)| claim.clone());
        if let Some(other) = other {
            self.check.fail(format!(
                "{pod} belongs to {name} now, and still to {}: {other:?}",
                other.name
            ));
            return;
        }
        let Some(raw) = self.store.get(Kind::Pod, pod).cloned() else {
            return;
        };
        let pod_uid = store::uid(&raw);
        let foreign = self.executors.pods.get(pod_uid).and_then(|executor| {
            let runs = executor.runs.iter();
            runs.map(|run| crate::executor::uid_of(&run.task))
                .find(|task| !task.starts_with(&format!("{uid}.")))
        });
        if let Some(task) = foreign {
            self.check.fail(format!(
                "{pod} was given to {name} with a task of another in it: {task}"
            ));
        }
        let Some(given) = self.check.given_back.remove(pod_uid) else {
            return;
        };
        let pool = store::label(&raw, labels::POOL_NAME).unwrap_or_default();
        let strategies = self.check.strategies.get(pool);
        let strategies = strategies.map(Vec::as_slice).unwrap_or_default();
        let restarted = container_ids(&raw)
            .iter()
            .all(|id| !given.containers.contains(id));
        let recycled = strategies.iter().enumerate().any(|(place, (_, strategy))| {
            let until = strategies
                .get(place + 1)
                .map_or(i64::MAX, |(until, _)| *until);
            until >= given.at - SLACK
                && match strategy.as_str() {
                    "Noop" => true,
                    "Restart" => restarted,
                    _ => false,
                }
        });
        if !recycled {
            self.check.fail(format!(
                "{pod} was given to {name} without being recycled since {} gave it back at {}: {strategies:?}, restarted: {restarted}",
                given.by, given.at
            ));
        }
    }
}

pub(crate) fn replicas(raw: &Value) -> i32 {
    let replicas = raw["spec"]["replicas"].as_i64().unwrap_or(1);
    replicas.try_into().unwrap_or(i32::MAX)
}

fn container_ids(raw: &Value) -> Vec<String> {
    let statuses = raw["status"]["containerStatuses"].as_array();
    statuses
        .into_iter()
        .flatten()
        // The executor serves every tenant in turn; what a tenant could leave behind is in the others.
        .filter(|status| status["name"] != "task-executor")
        .filter_map(|status| status["containerID"].as_str().map(str::to_owned))
        .collect()
}
