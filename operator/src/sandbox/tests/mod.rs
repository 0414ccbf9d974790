//! Tests of the machine by behaviour. Here: the objects and answers that they are made of.

mod attempts;
mod claim;
mod give_back;
mod own_template;
mod random;
mod tasks;
mod trouble;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::sidecar::{InjectionDefault, Settings};
use opensandbox_api::v1alpha1::{BatchSandboxSpec, BatchSandboxStatus};
use serde_json::Value;

use crate::pool::InjectionFacts;
use crate::view::{ObjectKey, SandboxView, Version};

/// A time, in seconds after a fixed one.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_780_000_000 + seconds).unwrap()
}

/// Settings of an injection that is on.
pub(super) fn facts() -> InjectionFacts {
    InjectionFacts {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings: Settings::built_in(),
    }
}

/// A spec; `replicas` is 1 unless given.
pub(super) fn spec(value: Value) -> BatchSandboxSpec {
    serde_json::from_value(value).unwrap()
}

/// An object that names the pool `warm`.
pub(super) fn object(name: &str, replicas: i32) -> SandboxView {
    SandboxView {
        key: ObjectKey::new("ns", name),
        uid: format!("uid-of-{name}"),
        version: Version(100),
        generation: 1,
        created: at(0),
        deleting: false,
        finalizers: Vec::new(),
        injection: None,
        executor_mode: None,
        labels: BTreeMap::new(),
        alloc_status: None,
        alloc_release: None,
        alloc_released: None,
        endpoints: None,
        fence: None,
        spec: Ok(Arc::new(spec(
            serde_json::json!({"replicas": replicas, "poolRef": "warm"}),
        ))),
        unread_pool_ref: None,
        status: BatchSandboxStatus::default(),
    }
}
