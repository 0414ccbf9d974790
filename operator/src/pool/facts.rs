//! What a Pool asks for, read once per change.

use std::sync::Arc;

use opensandbox_api::capacity::MaxUnavailable;
use opensandbox_api::names::PoolName;
use opensandbox_api::v1alpha1::{CapacitySpec, PoolSpec, RecycleType};
use opensandbox_api::{labels, validation};
use serde_json::{Value, json};

use super::InjectionFacts;
use super::build::{self, InjectionState, Mold};
use super::restart;
use crate::view::PoolView;

/// A Pool and what follows from it.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) view: Arc<PoolView>,
    /// What it asks for, or why that cannot be followed.
    pub(super) rules: Result<Arc<Rules>, String>,
}

/// What a readable Pool asks for.
pub(super) struct Rules {
    pub(super) name: PoolName,
    pub(super) capacity: CapacitySpec,
    /// `poolMax`, in pods.
    pub(super) pool_max: u32,
    pub(super) scale: MaxUnavailable,
    pub(super) update: MaxUnavailable,
    pub(super) recycle: RecycleType,
    pub(super) restart: restart::Config,
    /// What is wrong with the annotation that configures restarts.
    pub(super) restart_problem: Option<String>,
    pub(super) revision: String,
    pub(super) mold: Result<Mold, String>,
    pub(super) injection: InjectionState,
}

impl Facts {
    pub(super) fn new(view: Arc<PoolView>, injection: &InjectionFacts) -> Self {
        let rules = rules(&view, injection).map(Arc::new);
        Self { view, rules }
    }

    /// The Pool in a newer version, or one that came after it. Of the same Pool what did not change is not
    /// computed again: a write of the status is an event too, and a template may be large.
    pub(super) fn newer(&self, view: Arc<PoolView>, injection: &InjectionFacts) -> Self {
        let (before, now) = (&self.view.raw["metadata"], &view.raw["metadata"]);
        let same = |member: &str| before[member] == now[member];
        if self.view.uid == view.uid
            && self.view.spec == view.spec
            && same("labels")
            && same("annotations")
        {
            let rules = self.rules.clone();
            return Self { view, rules };
        }
        Self::new(view, injection)
    }

    /// `poolMax`, if it can be read.
    pub(super) fn pool_max(&self) -> Option<u32> {
        self.rules.as_ref().ok().map(|rules| rules.pool_max)
    }

    /// What the Pool asks for, if pods may be made and given now.
    pub(super) fn active(&self) -> Option<&Arc<Rules>> {
        self.rules.as_ref().ok().filter(|_| !self.view.deleting)
    }
}

fn rules(view: &PoolView, injection: &InjectionFacts) -> Result<Rules, String> {
    let spec = view
        .spec
        .as_ref()
        .map_err(|problem| build::cut(problem.clone()))?;
    let name: PoolName = view
        .key
        .name
        .parse()
        .map_err(|error: opensandbox_api::names::Error| format!("metadata.name: {error}"))?;
    check_capacity(spec.capacity_spec)?;
    let template = spec.template.as_ref().unwrap_or(&Value::Null);
    let revision = build::revision(view, template, injection);
    let (mold, injection) = build::mold(view, &revision, injection);
    let (restart, restart_problem) = restart_config(view);
    Ok(Rules {
        name,
        capacity: spec.capacity_spec,
        pool_max: u32::try_from(spec.capacity_spec.pool_max).unwrap_or(0),
        scale: unavailable(spec, |spec| {
            spec.scale_strategy.as_ref()?.max_unavailable.as_ref()
        }),
        update: unavailable(spec, |spec| {
            spec.update_strategy.as_ref()?.max_unavailable.as_ref()
        }),
        recycle: spec
            .recycle_strategy
            .as_ref()
            .map(|strategy| strategy.kind)
            .unwrap_or_default(),
        restart,
        restart_problem,
        revision,
        mold,
        injection,
    })
}

/// The rules of the four numbers, in the words of the webhook, which may have been down.
fn check_capacity(capacity: CapacitySpec) -> Result<(), String> {
    let pool = json!({ "spec": { "capacitySpec": capacity } });
    let problems: Vec<String> = validation::pool(&pool)
        .iter()
        .filter(|problem| problem.path.starts_with("spec.capacitySpec"))
        .map(ToString::to_string)
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; "))
    }
}

fn unavailable(
    spec: &PoolSpec,
    of: impl Fn(&PoolSpec) -> Option<&k8s_openapi::apimachinery::pkg::util::intstr::IntOrString>,
) -> MaxUnavailable {
    of(spec).and_then(MaxUnavailable::parse).unwrap_or_default()
}

fn restart_config(view: &PoolView) -> (restart::Config, Option<String>) {
    let annotation = view.raw["metadata"]["annotations"]
        .get(labels::RESTART_CONFIG)
        .and_then(Value::as_str);
    match annotation.map(restart::Config::read) {
        None => (restart::Config::default(), None),
        Some(Ok(config)) => (config, None),
        Some(Err(problem)) => (restart::Config::default(), Some(problem)),
    }
}
