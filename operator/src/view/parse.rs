//! Objects as a watch or a write returned them -> views.
//!
//! Never fails: what cannot be read is kept as an error text (`spec`), left at its default (`status`) or
//! absent (everything optional). Texts that others can make as long as they like are cut.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use opensandbox_api::labels;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ContainerView, ObjectKey, Owner, PodPhase, PodView, PoolView, SandboxView, Trouble, Version,
};
use crate::text::cut;

/// Bytes kept of a message of a pod's status.
const MESSAGE: usize = 512;
/// Bytes kept of a reason of a pod's status.
const REASON: usize = 128;
/// Bytes kept of `restart-record`; a real one has some hundred.
const RECORD: usize = 16 * 1024;
/// Bytes kept of an address, a container's name and its ID.
const NAME: usize = 512;
/// Bytes kept of the reason why a spec cannot be read.
const PROBLEM: usize = 512;

/// Reasons of a waiting container that are errors; the others are steps on the way.
const WAITING_ERRORS: [&str; 9] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
];

/// A pod, decoded no further than views need: of the spec only the node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RawPod {
    /// Metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<RawSpec>,
    #[serde(default)]
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    #[serde(default)]
    node_name: Option<String>,
}

impl kube::Resource for RawPod {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> std::borrow::Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> std::borrow::Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> std::borrow::Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> std::borrow::Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl From<RawPod> for PodView {
    fn from(pod: RawPod) -> Self {
        let RawPod {
            metadata,
            spec,
            status,
        } = pod;
        let status = status.unwrap_or_default();
        let key = key(&metadata);
        let version = version(&metadata);
        let created = created(&metadata);
        let deleting = metadata.deletion_timestamp.is_some();
        let owner = owner(&metadata);
        let mut labels = metadata.labels.unwrap_or_default();
        let mut annotations = metadata.annotations.unwrap_or_default();
        let ready = condition(&status, "Ready");
        Self {
            key,
            uid: metadata.uid.unwrap_or_default(),
            version,
            created,
            deleting,
            owner,
            pool: labels.remove(labels::POOL_NAME),
            revision: labels.remove(labels::POOL_REVISION),
            sandbox: labels.remove(labels::BATCH_SANDBOX_NAME),
            index: labels
                .get(labels::POD_INDEX)
                .and_then(|index| index.parse().ok()),
            evict: labels.contains_key(labels::EVICT),
            retiring: labels.contains_key(labels::RETIRING),
            phase: phase(status.phase.as_deref()),
            ready: ready.is_some_and(|ready| ready.status == "True"),
            ready_since: ready
                .and_then(|ready| ready.last_transition_time.as_ref())
                .map(|time| time.0),
            scheduled: spec.is_some_and(|spec| spec.node_name.is_some_and(|node| !node.is_empty())),
            trouble: trouble(&status),
            ip: status
                .pod_ip
                .filter(|ip| !ip.is_empty())
                .map(|ip| cut(ip, NAME)),
            containers: status
                .container_statuses
                .unwrap_or_default()
                .into_iter()
                .map(container)
                .collect(),
            restart_record: annotations
                .remove(labels::RESTART_RECORD)
                .map(|record| cut(record, RECORD)),
        }
    }
}

impl From<DynamicObject> for PoolView {
    fn from(object: DynamicObject) -> Self {
        let DynamicObject {
            types: _,
            mut metadata,
            data,
        } = object;
        metadata.managed_fields = None;
        let mut raw = match data {
            Value::Object(members) => members,
            _ => serde_json::Map::new(),
        };
        let spec = spec(raw.get("spec"));
        let status = raw.get("status").map(read).unwrap_or_default();
        raw.insert("apiVersion".to_owned(), api_version());
        raw.insert("kind".to_owned(), json!("Pool"));
        raw.insert(
            "metadata".to_owned(),
            serde_json::to_value(&metadata).unwrap_or_default(),
        );
        Self {
            key: key(&metadata),
            version: version(&metadata),
            generation: metadata.generation.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            spec,
            status,
            raw: Arc::new(Value::Object(raw)),
            uid: metadata.uid.unwrap_or_default(),
        }
    }
}

impl From<DynamicObject> for SandboxView {
    fn from(object: DynamicObject) -> Self {
        let DynamicObject {
            types: _,
            metadata,
            data,
        } = object;
        let key = key(&metadata);
        let version = version(&metadata);
        let created = created(&metadata);
        let labels = metadata.labels.unwrap_or_default();
        let mut annotations = metadata.annotations.unwrap_or_default();
        let spec = spec(data.get("spec"));
        let unread_pool_ref = match &spec {
            Ok(_) => None,
            Err(_) => data.pointer("/spec/poolRef").and_then(Value::as_str),
        };
        Self {
            key,
            uid: metadata.uid.unwrap_or_default(),
            version,
            generation: metadata.generation.unwrap_or_default(),
            created,
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            injection: labels.get(labels::INJECTION).cloned(),
            executor_mode: annotations.remove(labels::EXECUTOR_MODE),
            labels,
            alloc_status: annotations.remove(labels::ALLOC_STATUS),
            alloc_release: annotations.remove(labels::ALLOC_RELEASE),
            alloc_released: annotations.remove(labels::ALLOC_RELEASED),
            endpoints: annotations.remove(labels::ENDPOINTS),
            fence: annotations.remove(labels::FENCE),
            unread_pool_ref: unread_pool_ref.map(str::to_owned),
            spec,
            status: data.get("status").map(read).unwrap_or_default(),
        }
    }
}

/// A whole object as JSON -> view. For what has no client: tests, simulations.
///
/// # Errors
/// It has no metadata that Kubernetes could have sent.
pub fn pod(object: &Value) -> Result<PodView, String> {
    RawPod::deserialize(object)
        .map(PodView::from)
        .map_err(|error| error.to_string())
}

/// [`pod`] for a Pool.
///
/// # Errors
/// It has no metadata that Kubernetes could have sent.
pub fn pool(object: &Value) -> Result<PoolView, String> {
    DynamicObject::deserialize(object)
        .map(PoolView::from)
        .map_err(|error| error.to_string())
}

/// [`pod`] for a BatchSandbox.
///
/// # Errors
/// It has no metadata that Kubernetes could have sent.
pub fn sandbox(object: &Value) -> Result<SandboxView, String> {
    DynamicObject::deserialize(object)
        .map(SandboxView::from)
        .map_err(|error| error.to_string())
}

/// Namespace and name, empty where absent.
pub fn key(metadata: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

pub(super) fn api_version() -> Value {
    Value::String(format!("{}/{}", labels::GROUP, labels::VERSION))
}

/// `resourceVersion`, the oldest where it is absent or no number.
pub(crate) fn version(metadata: &ObjectMeta) -> Version {
    Version(
        metadata
            .resource_version
            .as_deref()
            .and_then(|version| version.parse().ok())
            .unwrap_or_default(),
    )
}

fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn owner(metadata: &ObjectMeta) -> Option<Owner> {
    metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
        .map(|owner| Owner {
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        })
}

fn spec<T: DeserializeOwned>(spec: Option<&Value>) -> Result<Arc<T>, String> {
    let spec = spec.ok_or_else(|| "spec is missing".to_owned())?;
    T::deserialize(spec).map(Arc::new).map_err(|error| {
        let problem = without_value(&error.to_string());
        cut(format!("spec cannot be read: {problem}"), PROBLEM)
    })
}

/// What serde says about a value that does not fit, without the value: a spec can hold secrets.
fn without_value(text: &str) -> String {
    let expected = text
        .rsplit_once(", expected ")
        .map(|(_, expected)| expected);
    match expected {
        Some(expected) if text.starts_with("invalid type: ") => {
            format!("invalid type, expected {expected}")
        }
        Some(expected) if text.starts_with("invalid ") || text.starts_with("unknown variant ") => {
            format!("invalid value, expected {expected}")
        }
        _ => text.to_owned(),
    }
}

/// A status; what in it cannot be read, such as a phase of a later version, is as if it were not there.
fn read<T: DeserializeOwned + Serialize + Default>(status: &Value) -> T {
    T::deserialize(status).unwrap_or_else(|_| readable_members(status))
}

fn readable_members<T: DeserializeOwned + Serialize + Default>(status: &Value) -> T {
    let mut read = T::default();
    let Ok(mut members) = serde_json::to_value(&read) else {
        return read;
    };
    for (name, value) in status.as_object().into_iter().flatten() {
        let mut with = members.clone();
        with[name] = value.clone();
        if let Ok(more) = T::deserialize(&with) {
            (members, read) = (with, more);
        }
    }
    read
}

fn phase(phase: Option<&str>) -> PodPhase {
    match phase {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        Some("Unknown") => PodPhase::Unknown,
        _ => PodPhase::Pending,
    }
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

fn container(status: ContainerStatus) -> ContainerView {
    ContainerView {
        name: cut(status.name, NAME),
        id: status
            .container_id
            .filter(|id| !id.is_empty())
            .map(|id| cut(id, NAME)),
        running: status.state.is_some_and(|state| state.running.is_some()),
    }
}

/// The worst that the status says: of the pod itself, then of a container, of its scheduling, of its readiness.
fn trouble(status: &PodStatus) -> Option<Trouble> {
    if let Some(reason) = status.reason.as_deref().filter(|reason| !reason.is_empty()) {
        return Some(said(reason, status.message.as_deref(), None, true));
    }
    let containers = || {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    };
    for container in containers() {
        let waiting = container
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref());
        if let Some(waiting) = waiting
            && let Some(reason) = waiting.reason.as_deref()
            && WAITING_ERRORS.contains(&reason)
        {
            let name = Some(container.name.as_str());
            return Some(said(reason, waiting.message.as_deref(), name, true));
        }
    }
    if phase(status.phase.as_deref()) == PodPhase::Failed {
        let failed = containers().find_map(|container| {
            let ended = container.state.as_ref()?.terminated.as_ref()?;
            (ended.exit_code != 0).then_some((container, ended))
        });
        return Some(match failed {
            Some((container, ended)) => {
                let reason = ended.reason.as_deref().unwrap_or("Error");
                let code = format!("ended with exit code {}", ended.exit_code);
                said(reason, Some(&code), Some(&container.name), true)
            }
            None => said("Failed", status.message.as_deref(), None, true),
        });
    }
    let scheduled = condition(status, "PodScheduled");
    if let Some(scheduled) = scheduled.filter(|scheduled| scheduled.status == "False") {
        let reason = scheduled.reason.as_deref().unwrap_or("Unschedulable");
        return Some(said(reason, scheduled.message.as_deref(), None, false));
    }
    // Of one that is still on its way that is no news.
    let ready = condition(status, "Ready").filter(|ready| ready.status == "False");
    let ready = ready.filter(|_| phase(status.phase.as_deref()) == PodPhase::Running)?;
    let reason = ready.reason.as_deref().unwrap_or("NotReady");
    Some(said(reason, ready.message.as_deref(), None, false))
}

fn said(reason: &str, message: Option<&str>, container: Option<&str>, error: bool) -> Trouble {
    let message = message.unwrap_or_default();
    let message = match container {
        Some(container) if message.is_empty() => format!("container {container}"),
        Some(container) => format!("container {container}: {message}"),
        None => message.to_owned(),
    };
    Trouble {
        reason: cut(reason.to_owned(), REASON),
        message: cut(message, MESSAGE),
        error,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
