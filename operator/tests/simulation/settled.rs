//! How everything has to stand some time after it calmed down.

use std::collections::BTreeSet;

use opensandbox_api::capacity::{self, Census, Change};
use opensandbox_api::template_hash::template_hash;
use opensandbox_api::v1alpha1::{
    BatchSandboxSpec, BatchSandboxStatus, PoolSpec, PoolStatus, TaskResourcePolicy, TaskResultState,
};
use opensandbox_api::{conditions, labels};
use serde::Deserialize as _;
use serde_json::Value;

use crate::check::{Claim, replicas};
use crate::executor::Truth;
use crate::store::{self, Kind, annotation, has_ended, is_deleting, pods_in, text};
use crate::world::World;

impl World {
    /// Checks everything; the first thing that is wrong is kept.
    pub(crate) fn check_settled(&mut self) {
        if let Err(wrong) = self.settled() {
            self.check.fail(format!("after all has settled: {wrong}"));
        }
    }

    fn settled(&self) -> Result<(), String> {
        if self.replica.as_ref().is_none_or(|replica| !replica.leads) {
            return Err("nobody leads".to_owned());
        }
        for kind in Kind::ALL {
            if let Some((name, _)) = self.store.all(kind).find(|(_, raw)| is_deleting(raw)) {
                return Err(format!("{kind:?} {name} is still being deleted"));
            }
        }
        for (name, raw) in self.store.all(Kind::Sandbox) {
            if self.check.is_tainted(store::uid(raw)) {
                continue;
            }
            self.settled_sandbox(raw)
                .map_err(|wrong| format!("{name}: {wrong}; it is {raw}"))?;
        }
        for (name, raw) in self.store.all(Kind::Pool) {
            self.settled_pool(name, raw)
                .map_err(|wrong| format!("{name}: {wrong}; it is {}", raw["spec"]))?;
        }
        let owners: BTreeSet<&str> = [Kind::Pool, Kind::Sandbox]
            .into_iter()
            .flat_map(|kind| self.store.all(kind))
            .map(|(_, raw)| store::uid(raw))
            .collect();
        for (name, pod) in self.store.all(Kind::Pod) {
            let owner = store::controller(pod).map(|(_, uid)| uid);
            if owner.is_none_or(|owner| !owners.contains(owner)) {
                return Err(format!("pod {name} is nobody's: owner {owner:?}"));
            }
        }
        Ok(())
    }

    fn settled_sandbox(&self, raw: &Value) -> Result<(), String> {
        let uid = store::uid(raw);
        let spec = BatchSandboxSpec::deserialize(&raw["spec"]).map_err(|e| e.to_string())?;
        let status = BatchSandboxStatus::deserialize(&raw["status"]).map_err(|e| e.to_string())?;
        let replicas = replicas(raw);
        let expired = spec
            .expire_time
            .as_ref()
            .is_some_and(|time| time.0 < self.time());
        if expired {
            return Err("it has expired and is still there".to_owned());
        }
        if status.observed_generation != raw["metadata"]["generation"].as_i64() {
            return Err("the status describes another generation".to_owned());
        }
        let read = |key| pods_in(annotation(raw, key));
        let released: BTreeSet<String> = read(labels::ALLOC_RELEASED).into_iter().collect();
        let alloc = read(labels::ALLOC_STATUS);
        let claim = self.check.claims.get(uid).cloned().unwrap_or_default();
        if claim.alloc != alloc {
            return Err(format!(
                "alloc-status is not what was written last: {claim:?}"
            ));
        }
        let pods: Vec<&str> = if spec.pool_ref.is_some() {
            let held = alloc.iter().filter(|pod| !released.contains(*pod));
            held.map(String::as_str).collect()
        } else {
            let mut own: Vec<(u32, &str)> = self
                .store
                .all(Kind::Pod)
                .filter(|(_, pod)| store::controller(pod).is_some_and(|(_, owner)| owner == uid))
                .filter_map(|(name, pod)| {
                    Some((store::label(pod, labels::POD_INDEX)?.parse().ok()?, name))
                })
                .collect();
            own.sort_unstable();
            own.into_iter().map(|(_, name)| name).collect()
        };
        if pods.iter().any(|pod| self.check.may_be_taken(uid, pod)) {
            // It is not this sandbox's any more, and waits to be replaced.
            return Ok(());
        }
        let (there, ready) = self.count(&pods);
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        if (status.replicas, status.ready) != (number(there), number(ready)) {
            return Err(format!(
                "{there} pods are there and {ready} ready, the status says {} and {}",
                status.replicas, status.ready
            ));
        }
        if alloc.iter().filter(|pod| !released.contains(*pod)).count()
            > usize::try_from(replicas).unwrap_or(0)
        {
            return Err(format!("it holds more than {replicas}"));
        }
        if spec.pool_ref.is_some() {
            let pending = conditions::find(
                &status.conditions,
                conditions::batch_sandbox::POOL_ALLOCATION_PENDING,
            );
            let waits = pending.is_some_and(|condition| condition.status == "True");
            let unassigned = spec.pool_ref.as_deref() == Some("*");
            let lacks = unassigned || self.lacking(raw) > 0;
            if lacks != waits {
                return Err(format!(
                    "lacks pods: {lacks}; its condition PoolAllocationPending: {pending:?}"
                ));
            }
            let addresses: Vec<String> = pods.iter().map(|pod| self.address_of(pod)).collect();
            let endpoints: Option<Vec<String>> =
                annotation(raw, labels::ENDPOINTS).and_then(|text| serde_json::from_str(text).ok());
            if endpoints.unwrap_or_default() != addresses {
                return Err(format!("its endpoints are {addresses:?}"));
            }
        }
        self.settled_tasks(raw, &spec, &status, &alloc, &released)
    }

    fn settled_tasks(
        &self,
        raw: &Value,
        spec: &BatchSandboxSpec,
        status: &BatchSandboxStatus,
        alloc: &[String],
        released: &BTreeSet<String>,
    ) -> Result<(), String> {
        let counted = [
            status.task_running,
            status.task_succeed,
            status.task_failed,
            status.task_pending,
            status.task_unknown,
        ];
        if spec.task_template.is_none() {
            return if counted == [0; 5] {
                Ok(())
            } else {
                Err(format!("it has no tasks and counts {counted:?}"))
            };
        }
        let uid = store::uid(raw);
        let mut wanted = [0; 5];
        let release = spec.task_resource_policy_when_completed == Some(TaskResourcePolicy::Release);
        for index in 0..replicas(raw) {
            let place = usize::try_from(index).unwrap_or_default();
            let own = format!(
                "{}-{index}",
                text(raw, "/metadata/name").unwrap_or_default()
            );
            let pod = if spec.pool_ref.is_some() {
                alloc.get(place).filter(|pod| !released.contains(*pod))
            } else {
                Some(&own)
            };
            let usable = pod.is_some_and(|pod| self.count(&[pod.as_str()]).1 == 1);
            let mut results = status.task_results.iter();
            // That it is the truth was checked when it was written.
            let result = results.rfind(|result| result.index == index);
            match result.map(|result| result.state) {
                Some(TaskResultState::Succeeded) => wanted[1] += 1,
                Some(TaskResultState::Failed) => wanted[2] += 1,
                _ if usable => {
                    let truth = self.attempts(uid, index);
                    return Err(format!(
                        "task {index} has a ready pod and no result; the truth is {truth:?}"
                    ));
                }
                _ if spec.pool_ref.is_none() => {
                    // A pod that failed by itself stays for its user to see, and its task with it.
                    return Ok(());
                }
                _ => {
                    wanted[3] += 1;
                    continue;
                }
            }
            if release && spec.pool_ref.is_some() && pod.is_some() {
                return Err(format!("task {index} ended and its pod was not released"));
            }
        }
        if counted != wanted {
            return Err(format!(
                "tasks running, succeeded, failed, pending, unknown are {wanted:?}, counted {counted:?}"
            ));
        }
        let finished = replicas(raw) > 0 && wanted[3] == 0;
        if finished && spec.ttl_seconds_after_finished.is_some() {
            return Err("its tasks have ended and its time to live is over".to_owned());
        }
        Ok(())
    }

    /// What really became of the attempts of a task.
    fn attempts(&self, uid: &str, index: i32) -> Vec<(&String, &Truth)> {
        let prefix = format!("{uid}.{index}.");
        let truth = self.executors.truth.iter();
        truth
            .filter(|(identity, _)| identity.starts_with(&prefix))
            .collect()
    }

    fn settled_pool(&self, name: &str, raw: &Value) -> Result<(), String> {
        let spec = PoolSpec::deserialize(&raw["spec"]).map_err(|error| error.to_string())?;
        let status = PoolStatus::deserialize(&raw["status"]).map_err(|error| error.to_string())?;
        let uid = store::uid(raw);
        let revision = template_hash(&raw["spec"]["template"]);
        let held: BTreeSet<&String> = self.check.claims.values().flat_map(Claim::owned).collect();
        let mut census = Census::default();
        let (mut total, mut updated, mut available) = (0, 0, 0);
        for (pod_name, pod) in self.store.all(Kind::Pod) {
            if store::controller(pod).is_none_or(|(_, owner)| owner != uid) {
                continue;
            }
            total += 1;
            let current = store::label(pod, labels::POOL_REVISION) == Some(&revision);
            updated += i32::from(current);
            if held.contains(&pod_name.to_owned()) {
                census.allocated += 1;
                continue;
            }
            census.idle += 1;
            if self.is_named_by_a_forgery(pod_name) {
                // It is kept for whoever may have had it.
                available += i32::from(is_ready(pod));
                continue;
            }
            if !is_ready(pod) {
                return Err(format!(
                    "idle pod {pod_name} is not ready: {}",
                    pod["status"]
                ));
            }
            if !current {
                return Err(format!("idle pod {pod_name} is of another revision"));
            }
            if store::label(pod, labels::EVICT).is_some() {
                return Err(format!("idle pod {pod_name} was to be evicted"));
            }
            available += 1;
        }
        let mut tainted = false;
        for (_, sandbox) in self.store.all(Kind::Sandbox) {
            if text(sandbox, "/spec/poolRef") == Some(name) {
                tainted |= self.check.is_tainted(store::uid(sandbox));
                census.waiting += self.lacking(sandbox);
            }
        }
        if tainted {
            return Ok(());
        }
        if census.waiting > 0 && census.idle > 0 {
            return Err(format!("sandboxes wait while pods are idle: {census:?}"));
        }
        let change = capacity::change(spec.capacity_spec, census);
        if change != Change::None {
            return Err(format!("it needs {change:?}: {census:?}"));
        }
        let says = (
            status.total,
            status.allocated,
            status.available,
            status.updated,
            status.revision.as_str(),
        );
        let allocated = i32::try_from(census.allocated).unwrap_or(i32::MAX);
        let truth = (
            total,
            allocated,
            available,
            Some(updated),
            revision.as_str(),
        );
        if says != truth {
            return Err(format!(
                "total, allocated, available, updated, revision are {truth:?}, its status says {says:?}"
            ));
        }
        if status.observed_generation != raw["metadata"]["generation"].as_i64() {
            return Err("the status describes another generation".to_owned());
        }
        Ok(())
    }

    /// Whether a forged object names this pod.
    fn is_named_by_a_forgery(&self, pod: &str) -> bool {
        let mut sandboxes = self.store.all(Kind::Sandbox).map(|(_, raw)| raw);
        sandboxes.any(|raw| {
            let named = annotation(raw, labels::ALLOC_STATUS);
            self.check.is_tainted(store::uid(raw)) && named.is_some_and(|text| text.contains(pod))
        })
    }

    /// How many pods a sandbox has to wait for.
    fn lacking(&self, raw: &Value) -> u32 {
        let read = |key| pods_in(annotation(raw, key));
        let alloc = read(labels::ALLOC_STATUS);
        let released = read(labels::ALLOC_RELEASED);
        let results = raw["status"]["taskResults"].as_array();
        let has_result = |index: i32| {
            let mut results = results.into_iter().flatten();
            results.any(|result| {
                result["index"] == index
                    && matches!(result["state"].as_str(), Some("Succeeded" | "Failed"))
            })
        };
        let gives_back = text(raw, "/spec/taskResourcePolicyWhenCompleted") == Some("Release");
        let mut lacking = 0;
        for index in 0..replicas(raw) {
            let pod = alloc.get(usize::try_from(index).unwrap_or_default());
            let pod = pod.filter(|pod| !released.contains(*pod));
            let raw = pod.and_then(|pod| self.store.get(Kind::Pod, pod));
            let has = raw.is_some_and(|raw| !has_ended(raw)) || (gives_back && has_result(index));
            lacking += u32::from(!has);
        }
        lacking
    }

    /// How many of these pods exist, and how many are ready.
    fn count(&self, pods: &[&str]) -> (usize, usize) {
        let there = pods.iter().filter_map(|pod| self.store.get(Kind::Pod, pod));
        // One of a pool that has ended is lost and will be replaced; one of a template stays to be seen.
        let there = there.filter(|pod| {
            let of_pool = store::controller(pod).is_some_and(|(kind, _)| kind == "Pool");
            !(of_pool && has_ended(pod))
        });
        let there: Vec<_> = there.collect();
        let ready = there.iter().filter(|pod| is_ready(pod)).count();
        (there.len(), ready)
    }

    fn address_of(&self, pod: &str) -> String {
        let raw = self.store.get(Kind::Pod, pod);
        // Another pod may have the address of one that has ended.
        let raw = raw.filter(|raw| !has_ended(raw));
        let ip = raw.and_then(|raw| text(raw, "/status/podIP"));
        ip.unwrap_or_default().to_owned()
    }
}

fn is_ready(pod: &Value) -> bool {
    text(pod, "/status/phase") == Some("Running")
        && text(pod, "/status/conditions/0/status") == Some("True")
}
