//! The invariants of tasks: what runs is what was asked for, once, and what is told of it is true.

use std::collections::BTreeMap;

use opensandbox_api::names::TaskIdentity;
use opensandbox_api::v1alpha1::TaskResultState;
use opensandbox_operator::write::SandboxStatusWrite;
use serde_json::Value;

use crate::check::Checker;
use crate::store::{self, Kind, is_deleting, pods_in, text};
use crate::world::World;

impl Checker {
    /// An operator has written which pods the shards of a sandbox have.
    pub(crate) fn note_places(&mut self, uid: &str, before: &[String], after: &[String]) {
        for (index, pod) in after.iter().enumerate() {
            self.placed.insert((uid.to_owned(), index, pod.clone()));
        }
        // Where it restored what a user had wiped out, nothing is forgotten.
        self.forgotten
            .retain(|(of, index, _)| of != uid || before.get(*index) != after.get(*index));
    }

    /// A user writes `alloc-status`: of which runs does the object not tell any more that they had a pod?
    /// It does if the pod is named, or, where none is, if the record has the task.
    pub(crate) fn note_forgery(&mut self, raw: &Value, alloc_status: Option<&str>) {
        let uid = store::uid(raw);
        let Some(claim) = self.claims.get(uid) else {
            return;
        };
        let recorded = attempts(text(raw, "/status/taskRecord").unwrap_or_default());
        let named = pods_in(alloc_status);
        for (index, pod) in claim.alloc.iter().enumerate() {
            let attempt = recorded.get(index).copied();
            let told = match named.get(index) {
                Some(named) => named == pod,
                None => attempt.is_some(),
            };
            if !told {
                let run = (uid.to_owned(), index, attempt.unwrap_or(0));
                self.forgotten.insert(run);
            }
        }
    }
}

/// The attempts that a record has, by shard: `S*3 F -1`.
fn attempts(record: &str) -> Vec<u32> {
    let mut attempts = Vec::new();
    for word in record.split(' ').filter(|word| !word.is_empty()) {
        let (mark, count) = word.split_once('*').unwrap_or((word, "1"));
        let attempt = mark.get(1..).and_then(|digits| digits.parse().ok());
        let count = count.parse().unwrap_or(1);
        attempts.extend(std::iter::repeat_n(attempt.unwrap_or(0), count));
    }
    attempts
}

impl World {
    /// A sandbox's status was written.
    pub(crate) fn check_status(&mut self, uid: &str, write: &SandboxStatusWrite) {
        if self.check.is_tainted(uid) {
            return;
        }
        let Some(claim) = self.check.claims.get_mut(uid) else {
            return;
        };
        let name = claim.name.clone();
        let mut terminal = BTreeMap::new();
        let mut wrong = None;
        for result in &write.status.task_results {
            let attempt = result.attempt.unwrap_or(0);
            let code = result.exit_code.unwrap_or(-1);
            if !matches!(
                result.state,
                TaskResultState::Succeeded | TaskResultState::Failed
            ) {
                continue;
            }
            let identity = format!("{uid}.{}.{attempt}", result.index);
            let truth = self.executors.truth.get(&identity);
            let outcome = truth.and_then(|truth| truth.outcome.as_ref());
            let right = outcome.is_some_and(|outcome| {
                outcome.exit_code() == code
                    && (code == 0) == (result.state == TaskResultState::Succeeded)
            });
            // Nobody can say any more how it ended: its executor is gone, and said nothing before.
            let place = truth.and_then(|truth| truth.starts.last()).cloned();
            let place = place.or_else(|| {
                let own = format!("{name}-{}", result.index);
                let pod = self
                    .store
                    .get(Kind::Pod, result.pod.as_ref().unwrap_or(&own))?;
                Some(store::uid(pod).to_owned())
            });
            let lost = result.state == TaskResultState::Failed
                && code != 0
                && place.is_none_or(|place| !self.executors.pods.contains_key(&place));
            let right = right || lost;
            if !right {
                wrong = Some(format!("{name} says {result:?}; the truth is {truth:?}"));
            }
            terminal.insert(result.index, (attempt, result.state, code));
        }
        for (index, before) in &claim.terminal {
            if terminal.get(index) != Some(before) {
                wrong = Some(format!(
                    "{name}: the result of task {index} was {before:?} and is {:?} now",
                    terminal.get(index)
                ));
            }
        }
        claim.terminal = terminal;
        if let Some(wrong) = wrong {
            self.check.fail(wrong);
        }
    }

    /// An executor started a task.
    pub(crate) fn check_started(&mut self, pod_uid: &str, task_uid: &str) {
        let truth = self.executors.truth.get(task_uid);
        let truth = truth.cloned().unwrap_or_default();
        let Ok(identity) = task_uid.parse::<TaskIdentity>() else {
            self.check
                .fail(format!("a task without identity was started: {task_uid}"));
            return;
        };
        let uid = identity.sandbox.as_str();
        let index = usize::try_from(identity.index).unwrap_or(usize::MAX);
        if truth.starts.len() > 1 {
            // Who wipes out that a task was placed has it run again: nothing else says that it was.
            let run = (uid.to_owned(), index, identity.attempt);
            if !self.check.forgotten.contains(&run) {
                self.check.fail(format!(
                    "task {task_uid} was started {} times: in {:?}",
                    truth.starts.len(),
                    truth.starts
                ));
            }
            return;
        }
        if self.check.is_tainted(uid) {
            return;
        }
        let pod = self.executors.pods.get(pod_uid);
        let pod = pod.map(|executor| executor.pod.clone()).unwrap_or_default();
        let raw = self.store.get(Kind::Pod, &pod);
        let raw = raw.filter(|raw| store::uid(raw) == pod_uid);
        let of_template =
            raw.is_some_and(|raw| store::controller(raw).is_some_and(|(_, owner)| owner == uid));
        // An order may reach a pod that is lost: nothing that starts there outlives the pod, and nobody is
        // given it any more.
        let place = (uid.to_owned(), index, pod.clone());
        let on_its_way_out = raw.is_some_and(|raw| is_deleting(raw))
            && (of_template || self.check.placed.contains(&place));
        let Some(claim) = self.check.claims.get(uid).cloned() else {
            if !on_its_way_out {
                self.check.fail(format!(
                    "task {task_uid} was started in {pod} after its sandbox was gone"
                ));
            }
            return;
        };
        let right = if of_template {
            pod == format!("{}-{index}", claim.name)
        } else {
            claim.alloc.get(index) == Some(&pod) && !claim.released.contains(&pod)
        };
        if !right && !on_its_way_out {
            self.check.fail(format!(
                "task {task_uid} was started in {pod}, which is not its shard: {claim:?}"
            ));
        }
        let raw = self.store.get(Kind::Sandbox, &claim.name);
        let wanted = raw.map(|raw| command(raw, index));
        if wanted
            .as_ref()
            .is_some_and(|wanted| *wanted != truth.command)
        {
            self.check.fail(format!(
                "task {task_uid} runs {:?} instead of {wanted:?}",
                truth.command
            ));
        }
    }
}

/// What task `index` is to run, by the few patches that users make here.
pub(crate) fn command(raw: &Value, index: usize) -> Vec<String> {
    let base = &raw["spec"]["taskTemplate"]["spec"]["process"];
    let patch = &raw["spec"]["shardTaskPatches"][index]["spec"]["process"];
    let args = if patch["args"].is_array() {
        &patch["args"]
    } else {
        &base["args"]
    };
    let mut command = store::strings(&base["command"]);
    command.extend(store::strings(args));
    command
}
