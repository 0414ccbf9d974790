//! A model of scheduler, kubelet and garbage collector: what becomes of pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::executor::Executor;
use crate::store::{self, Entry, Kind, text};
use crate::world::{Event, World};

/// What it remembers.
#[derive(Debug, Default)]
pub(crate) struct Kubelet {
    /// Names of the pods that it knows, by UID.
    pods: BTreeMap<String, String>,
    /// Addresses to be used again, the last one freed first.
    free: Vec<String>,
    addresses: u32,
    containers: u32,
}

/// Something that happens to a pod.
#[derive(Clone, Debug)]
pub(crate) enum PodStep {
    Schedule,
    Run,
    Ready,
    /// Its image cannot be pulled.
    Stuck,
    Unready,
    Fail(&'static str),
    /// These containers restart.
    Restart(Vec<String>),
    /// It is gone.
    End,
    Unreachable,
    Reachable,
}

impl World {
    /// A pod was created, changed or is gone.
    pub(crate) fn pod_changed(&mut self, entry: &Entry) {
        let uid = store::uid(&entry.object).to_owned();
        if entry.gone {
            self.kubelet.pods.remove(&uid);
            if let Some(executor) = self.executors.pods.remove(&uid) {
                self.kubelet.free.push(executor.ip);
                self.executor_changed(&uid);
            }
            return;
        }
        if self.kubelet.pods.contains_key(&uid) {
            if store::is_deleting(&entry.object) {
                let wait = if self.rng.chance(50) {
                    self.rng.between(0, 30_000)
                } else {
                    self.rng.between(0, 1_500)
                };
                self.after(wait, Event::Pod(uid, PodStep::End));
            }
            return;
        }
        self.kubelet.pods.insert(uid.clone(), entry.name.clone());
        if let Some((kind, owner)) = store::controller(&entry.object) {
            let kind = if kind == "Pool" {
                Kind::Pool
            } else {
                Kind::Sandbox
            };
            if self
                .store
                .all(kind)
                .all(|(_, raw)| store::uid(raw) != owner)
            {
                // Made too late: its owner is gone already.
                let wait = self.rng.between(1, 300);
                self.after(wait, Event::Collect(owner.to_owned()));
            }
        }
        if !self.calm && self.profile.losses && self.rng.chance(30) {
            // Nowhere to put it.
            return;
        }
        let wait = self.rng.between(1, 200);
        self.after(wait, Event::Pod(uid, PodStep::Schedule));
    }

    pub(crate) fn pod_step(&mut self, uid: &str, step: PodStep) {
        let Some(name) = self.kubelet.pods.get(uid).cloned() else {
            return;
        };
        let Some(pod) = self.store.get(Kind::Pod, &name).cloned() else {
            return;
        };
        if store::uid(&pod) != uid {
            return;
        }
        let deleting = store::is_deleting(&pod);
        let ended = store::has_ended(&pod);
        if (deleting || ended) && !matches!(step, PodStep::End) {
            return;
        }
        // What was to go wrong before everything calmed down does not any more.
        let step = match step {
            PodStep::Stuck | PodStep::Fail(_) if self.calm => PodStep::Run,
            other => other,
        };
        match step {
            PodStep::Schedule => {
                let node = json!({"spec": {"nodeName": "node"}});
                self.store.patch(Kind::Pod, &name, &node).ok();
                let lossy = !self.calm && self.profile.losses;
                let next = match self.rng.below(1000) {
                    0..=30 if lossy => PodStep::Fail("Evicted"),
                    31..=60 if lossy => PodStep::Stuck,
                    _ if self.broken(&pod) => PodStep::Stuck,
                    _ => PodStep::Run,
                };
                let wait = self.rng.between(10, 2_000);
                self.after(wait, Event::Pod(uid.to_owned(), next));
            }
            PodStep::Run => {
                if text(&pod, "/status/podIP").is_some() {
                    return;
                }
                let ip = self.address();
                let containers: Vec<Value> = containers(&pod)
                    .map(|container| self.running(container, 0))
                    .collect();
                let status = json!({
                    "phase": "Running", "podIP": ip.clone(), "containerStatuses": containers,
                    "conditions": [self.readiness(false)],
                });
                self.set_status(&name, &status);
                let executor = Executor {
                    pod: name,
                    ip,
                    reachable: true,
                    runs: Vec::new(),
                };
                self.executors.pods.insert(uid.to_owned(), executor);
                let wait = self.rng.between(1, 500);
                self.after(wait, Event::Pod(uid.to_owned(), PodStep::Ready));
            }
            PodStep::Ready | PodStep::Unready => {
                if text(&pod, "/status/phase") == Some("Running") {
                    let ready = matches!(step, PodStep::Ready);
                    let mut status = pod["status"].clone();
                    if (status["conditions"][0]["status"] == "True") != ready {
                        status["conditions"] = json!([self.readiness(ready)]);
                        self.set_status(&name, &status);
                    }
                }
            }
            PodStep::Stuck => {
                let waiting: Vec<Value> = containers(&pod)
                    .map(|name| json!({"name": name, "state": {"waiting": {"reason": "ErrImagePull"}}}))
                    .collect();
                let status = json!({
                    "phase": "Pending", "containerStatuses": waiting,
                    "conditions": [self.readiness(false)],
                });
                self.set_status(&name, &status);
            }
            PodStep::Fail(reason) => {
                let mut status = pod["status"].clone();
                status["phase"] = json!("Failed");
                status["reason"] = json!(reason);
                status["conditions"] = json!([self.readiness(false)]);
                if let Some(executor) = self.executors.pods.remove(uid) {
                    self.kubelet.free.push(executor.ip);
                }
                self.set_status(&name, &status);
                self.executor_changed(uid);
            }
            PodStep::Restart(restarted) => self.restart(uid, &name, &pod, &restarted),
            PodStep::End => {
                if deleting {
                    self.store.finish(&name);
                }
            }
            PodStep::Unreachable | PodStep::Reachable => {
                if let Some(executor) = self.executors.pods.get_mut(uid) {
                    executor.reachable = matches!(step, PodStep::Reachable);
                }
                self.executor_changed(uid);
            }
        }
    }

    fn restart(&mut self, uid: &str, name: &str, pod: &Arc<Value>, restarted: &[String]) {
        if text(pod, "/status/phase") != Some("Running") {
            return;
        }
        let mut status = pod["status"].clone();
        let statuses = status["containerStatuses"].as_array().cloned();
        let statuses: Vec<Value> = statuses
            .unwrap_or_default()
            .into_iter()
            .map(|old| {
                let of = old["name"].as_str().unwrap_or_default().to_owned();
                if restarted.contains(&of) {
                    self.running(&of, old["restartCount"].as_i64().unwrap_or(0) + 1)
                } else {
                    old
                }
            })
            .collect();
        status["containerStatuses"] = json!(statuses);
        self.set_status(name, &status);
        let now = self.time();
        self.executors.restart(uid, now);
        self.executor_changed(uid);
        let uid = uid.to_owned();
        if self.rng.chance(500) {
            self.after(0, Event::Pod(uid.clone(), PodStep::Unready));
            let wait = self.rng.between(10, 1_000);
            self.after(wait, Event::Pod(uid, PodStep::Ready));
        }
    }

    fn set_status(&mut self, name: &str, status: &Value) {
        self.store
            .put_status(Kind::Pod, name, &json!({"status": status}))
            .ok();
    }

    fn running(&mut self, name: &str, restarts: i64) -> Value {
        self.kubelet.containers += 1;
        json!({
            "name": name, "containerID": format!("containerd://{}", self.kubelet.containers),
            "restartCount": restarts, "state": {"running": {}},
        })
    }

    fn readiness(&self, ready: bool) -> Value {
        json!({
            "type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": self.stamp(),
        })
    }

    fn address(&mut self) -> String {
        self.kubelet.free.pop().unwrap_or_else(|| {
            self.kubelet.addresses += 1;
            format!("10.0.0.{}", self.kubelet.addresses)
        })
    }

    fn broken(&self, pod: &Value) -> bool {
        !self.calm && text(pod, "/spec/containers/0/image") == Some("broken")
    }

    /// The garbage collector: what a vanished object owned is deleted.
    pub(crate) fn collect(&mut self, owner: &str) {
        let stamp = self.stamp();
        for name in self.store.names(Kind::Pod) {
            let Some(pod) = self.store.get(Kind::Pod, &name).cloned() else {
                continue;
            };
            if store::controller(&pod).is_some_and(|(_, uid)| uid == owner) {
                self.store.delete(Kind::Pod, &name, None, None, &stamp).ok();
            }
        }
    }

    /// Nodes recover: everything that could not start, or was cut off, comes back.
    pub(crate) fn heal(&mut self) {
        for (uid, name) in self.kubelet.pods.clone() {
            let Some(pod) = self.store.get(Kind::Pod, &name).cloned() else {
                continue;
            };
            let wait = self.rng.between(1, 2_000);
            let owned_by_sandbox =
                store::controller(&pod).is_some_and(|(kind, _)| kind == "BatchSandbox");
            let started = text(&pod, "/status/podIP").is_some();
            if started {
                self.after(wait, Event::Pod(uid.clone(), PodStep::Reachable));
                self.after(wait + 1, Event::Pod(uid, PodStep::Ready));
            } else if owned_by_sandbox {
                // A pool replaces what never starts; for a template it is the user's to see.
                self.after(wait, Event::Pod(uid.clone(), PodStep::Schedule));
            }
        }
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &str> {
    let containers = pod["spec"]["containers"].as_array();
    containers
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
}
