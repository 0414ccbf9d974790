//! Behaviour of the ledger: what it decides, by topic, and random sequences against a small cluster.

mod allocation;
mod model;
mod pods;
mod random;
mod recycling;
mod scaling;
mod start;
mod status;

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::labels;
use opensandbox_api::sidecar::{InjectionDefault, Settings};
use opensandbox_api::v1alpha1::PoolStatus;
use serde_json::{Value, json};

use super::*;
use crate::protocol::{Return, Standing, Statement, Waiting};
use crate::view::{ContainerView, ObjectKey, Owner, PodPhase, Trouble};

const POOL: &str = "fast";
const POOL_UID: &str = "pool-1";

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap()
}

fn injection(default: InjectionDefault) -> Arc<InjectionFacts> {
    Arc::new(InjectionFacts {
        namespace_label: None,
        default,
        settings: Settings::built_in(),
    })
}

/// A Pool's numbers: bufferMin, bufferMax, poolMin, poolMax.
type Numbers = (i32, i32, i32, i32);

fn spec((buffer_min, buffer_max, pool_min, pool_max): Numbers) -> Value {
    json!({
        "template": { "spec": { "containers": [{ "name": "main", "image": "i:1" }] } },
        "capacitySpec": {
            "bufferMin": buffer_min, "bufferMax": buffer_max, "poolMin": pool_min, "poolMax": pool_max,
        },
        // Not what the tests are about, save where they say so.
        "scaleStrategy": { "maxUnavailable": "100%" },
    })
}

fn pool_view(uid: &str, version: u64, spec: &Value, annotations: &Value) -> Arc<PoolView> {
    Arc::new(PoolView {
        key: ObjectKey::new("ns", POOL),
        uid: uid.to_owned(),
        version: Version(version),
        generation: i64::try_from(version).unwrap(),
        deleting: false,
        spec: serde_json::from_value(spec.clone())
            .map(Arc::new)
            .map_err(|error| error.to_string()),
        status: PoolStatus::default(),
        raw: Arc::new(json!({
            "metadata": { "name": POOL, "namespace": "ns", "uid": uid, "annotations": annotations },
            "spec": spec,
        })),
    })
}

/// A ledger with its answers made by hand.
struct Bench {
    ledger: Ledger,
    now: Timestamp,
    version: u64,
}

impl Bench {
    fn new(numbers: Numbers) -> Self {
        Self::with(&spec(numbers), &json!({}))
    }

    fn with(spec: &Value, annotations: &Value) -> Self {
        Self::start(
            Some(pool_view(POOL_UID, 1, spec, annotations)),
            Vec::new(),
            Vec::new(),
        )
    }

    fn start(
        pool: Option<Arc<PoolView>>,
        pods: Vec<Arc<PodView>>,
        statements: Vec<Statement>,
    ) -> Self {
        let ledger = Ledger::new(
            ObjectKey::new("ns", POOL),
            pool,
            injection(InjectionDefault::Disabled),
            pods,
            statements,
            7,
        );
        Self {
            ledger,
            now: at(0),
            version: 1_000,
        }
    }

    fn handle(&mut self, input: Input) -> Vec<Output> {
        self.ledger.handle(input, self.now)
    }

    fn wake(&mut self) -> Vec<Output> {
        self.handle(Input::Wake)
    }

    fn pass(&mut self, millis: i64) {
        self.now += SignedDuration::from_millis(millis);
    }

    fn version(&mut self) -> Version {
        self.version += 1;
        Version(self.version)
    }

    /// A pod as the API server returns it for a creation.
    fn made(&mut self, name: &str, pod: &Value) -> PodView {
        let label = |key: &str| pod["metadata"]["labels"][key].as_str().map(str::to_owned);
        let version = self.version();
        PodView {
            revision: label(labels::POOL_REVISION),
            pool: label(labels::POOL_NAME),
            created: self.now,
            version,
            uid: format!("uid-{name}-{version}"),
            ..pod_view(name)
        }
    }

    /// Makes every pod that is asked for, ready at once, until no more are; returns their names.
    fn fill(&mut self, mut outputs: Vec<Output>) -> Vec<String> {
        let mut made = Vec::new();
        loop {
            let mut next = Vec::new();
            for output in &outputs {
                let Output::CreatePod { name, pod } = output else {
                    continue;
                };
                let view = self.made(name, pod);
                next.extend(self.handle(Input::Created {
                    name: name.clone(),
                    result: Ok(Arc::new(view.clone())),
                }));
                let ready = self.ready(&view);
                next.extend(self.handle(Input::Pod(ready)));
                made.push(name.clone());
            }
            if next.is_empty() {
                return made;
            }
            outputs = next;
        }
    }

    fn ready(&mut self, view: &PodView) -> Arc<PodView> {
        Arc::new(PodView {
            version: self.version(),
            phase: PodPhase::Running,
            ready: true,
            ready_since: Some(self.now),
            scheduled: true,
            ip: Some("10.0.0.1".to_owned()),
            ..view.clone()
        })
    }

    /// The pod as the ledger knows it, changed.
    fn changed(&mut self, name: &str, change: impl FnOnce(&mut PodView)) -> Arc<PodView> {
        let mut view = (*self.ledger.pods.get(name).expect("a known pod").view).clone();
        view.version = self.version();
        change(&mut view);
        Arc::new(view)
    }

    fn see(&mut self, name: &str, change: impl FnOnce(&mut PodView)) -> Vec<Output> {
        let view = self.changed(name, change);
        self.handle(Input::Pod(view))
    }

    fn gone(&mut self, name: &str) -> Vec<Output> {
        let uid = self.uid(name);
        self.handle(Input::PodGone {
            name: name.to_owned(),
            uid,
        })
    }

    fn uid(&self, name: &str) -> String {
        self.ledger
            .pods
            .get(name)
            .expect("a known pod")
            .view
            .uid
            .clone()
    }

    fn say(&mut self, statement: Statement) -> Vec<Output> {
        self.handle(Input::Sandbox(ToPool::Statement(statement)))
    }

    fn answer(&mut self, uid: &str, grant: u64, taken: bool) -> Vec<Output> {
        self.handle(Input::Sandbox(ToPool::Answer {
            sandbox: sandbox(uid),
            grant,
            taken,
        }))
    }

    /// Lets a sandbox take so many pods; returns their names.
    fn claim(&mut self, uid: &str, pods: u32) -> Vec<String> {
        let queued = self.now.as_millisecond();
        let mut statement = wants(uid, queued - at(0).as_millisecond(), pods);
        let outputs = self.say(statement.clone());
        let (grant, names) = granted(&outputs, uid).expect("an offer");
        statement.holds.clone_from(&names);
        statement.wants = 0;
        self.say(statement);
        self.answer(uid, grant, true);
        names
    }
}

fn pod_view(name: &str) -> PodView {
    PodView {
        key: ObjectKey::new("ns", name),
        uid: format!("uid-{name}"),
        version: Version(10),
        created: at(0),
        deleting: false,
        owner: Some(Owner {
            kind: "Pool".to_owned(),
            name: POOL.to_owned(),
            uid: POOL_UID.to_owned(),
        }),
        pool: Some(POOL.to_owned()),
        revision: None,
        sandbox: None,
        index: None,
        evict: false,
        retiring: false,
        phase: PodPhase::Pending,
        ready: false,
        ready_since: None,
        scheduled: false,
        ip: None,
        trouble: None,
        containers: vec![ContainerView {
            name: "main".to_owned(),
            id: Some(format!("containerd://{name}-0")),
            running: true,
        }],
        restart_record: None,
    }
}

/// A pod of the current template that is ready.
fn ready_pod(name: &str, revision: &str) -> Arc<PodView> {
    Arc::new(PodView {
        phase: PodPhase::Running,
        ready: true,
        ready_since: Some(at(0)),
        ip: Some("10.0.0.2".to_owned()),
        revision: Some(revision.to_owned()),
        ..pod_view(name)
    })
}

fn revision() -> String {
    opensandbox_api::template_hash::template_hash(&spec((0, 0, 0, 0))["template"])
}

fn sandbox(uid: &str) -> SandboxRef {
    SandboxRef {
        key: ObjectKey::new("ns", format!("name-{uid}")),
        uid: uid.to_owned(),
    }
}

/// Of an object that can be read, and was created then.
fn standing(created: i64) -> Standing {
    Standing {
        made_out: false,
        created: at(created),
    }
}

fn wants(uid: &str, queued: i64, pods: u32) -> Statement {
    Statement {
        sandbox: sandbox(uid),
        standing: standing(queued),
        queued: at(queued),
        holds: Vec::new(),
        returns: Vec::new(),
        wants: pods,
        replicas: pods,
    }
}

fn holds(uid: &str, queued: i64, pods: &[&str]) -> Statement {
    Statement {
        holds: pods.iter().map(|pod| (*pod).to_owned()).collect(),
        replicas: u32::try_from(pods.len()).unwrap(),
        ..wants(uid, queued, 0)
    }
}

fn returns(uid: &str, pods: &[&str], clean: bool) -> Statement {
    Statement {
        returns: pods
            .iter()
            .map(|pod| Return {
                pod: (*pod).to_owned(),
                clean,
            })
            .collect(),
        ..wants(uid, 0, 0)
    }
}

/// The offer to a sandbox, if there is one.
fn granted(outputs: &[Output], uid: &str) -> Option<(u64, Vec<String>)> {
    outputs.iter().find_map(|output| match output {
        Output::ToSandbox {
            sandbox,
            message: FromPool::Grant { grant, pods },
        } if sandbox.uid == uid => {
            let names = pods.iter().map(|pod| pod.key.name.clone()).collect();
            Some((*grant, names))
        }
        _ => None,
    })
}

/// Pods that a sandbox is told to have lost.
fn lost(outputs: &[Output], uid: &str) -> Vec<String> {
    told(outputs, uid, |message| match message {
        FromPool::Lost { pod, .. } => Some(pod.clone()),
        _ => None,
    })
}

/// Pods that a sandbox is told to be recycled.
fn recycled(outputs: &[Output], uid: &str) -> Vec<String> {
    told(outputs, uid, |message| match message {
        FromPool::Recycled { pod } => Some(pod.clone()),
        _ => None,
    })
}

/// What a sandbox is told about waiting.
fn waiting(outputs: &[Output], uid: &str) -> Vec<Option<Waiting>> {
    told(outputs, uid, |message| match message {
        FromPool::Waiting(waiting) => Some(waiting.clone()),
        _ => None,
    })
}

/// Why a sandbox is told to wait.
fn waits(outputs: &[Output], uid: &str) -> Waiting {
    waiting(outputs, uid).pop().flatten().expect("told to wait")
}

fn told<T>(outputs: &[Output], uid: &str, pick: impl Fn(&FromPool) -> Option<T>) -> Vec<T> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::ToSandbox { sandbox, message } if sandbox.uid == uid => pick(message),
            _ => None,
        })
        .collect()
}

fn created(outputs: &[Output]) -> Vec<&str> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::CreatePod { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

fn deleted(outputs: &[Output]) -> Vec<(&str, Option<Version>)> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::DeletePod { name, version, .. } => Some((name.as_str(), *version)),
            _ => None,
        })
        .collect()
}

fn retired(outputs: &[Output]) -> Vec<&str> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Retire { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

fn events(outputs: &[Output]) -> Vec<&'static str> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Event(event) => Some(event.reason),
            _ => None,
        })
        .collect()
}

fn written(outputs: &[Output]) -> Option<PoolStatus> {
    outputs.iter().find_map(|output| match output {
        Output::WriteStatus { status, .. } => Some((**status).clone()),
        _ => None,
    })
}

fn wake_at(outputs: &[Output]) -> Option<Timestamp> {
    outputs.iter().find_map(|output| match output {
        Output::WakeAt(at) => Some(*at),
        _ => None,
    })
}
