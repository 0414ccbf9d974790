//! Reviews of Pools.

use opensandbox_api::sidecar::Settings;
use opensandbox_api::sidecar::pool::{Context, Mutation, decision, mutate as inject};
use opensandbox_api::validation::{self, NamespaceFacts, Problem};
use serde_json::Value;

use super::review::{Answer, Request};
use super::{Policy, projection};
use crate::facts::Facts;
use crate::metrics::{Metrics, Origin};

/// Injects, or denies with every reason that shows: those of the rules and those of the template.
pub(super) fn mutate(
    request: &Request<'_, projection::Pool>,
    namespace: &NamespaceFacts,
    facts: &Facts,
    policy: &Policy,
    metrics: &Metrics,
) -> Answer {
    let pool = request.object();
    let mut problems = problems(pool, request.old());
    let settings = facts.settings(request.namespace(), policy);
    let context = Context {
        namespace_label: namespace.injection.as_deref(),
        default: policy.injection_default,
        settings: &settings,
    };
    match inject(pool, request.old(), &context) {
        Ok(mutation) if problems.is_empty() => {
            if mutation.decision.has_executor() && !mutation.operations.is_empty() {
                metrics.injected(origin(&mutation, request.namespace(), policy));
            }
            Answer::patched(mutation.operations, mutation.decision.to_string())
        }
        Ok(_) => Answer::denied("Pool", request.name(), &problems),
        Err(obstacles) => {
            for obstacle in obstacles {
                // The same place may be reported by a rule already.
                if !problems.iter().any(|problem| problem.path == obstacle.path) {
                    problems.push(obstacle);
                }
            }
            Answer::denied("Pool", request.name(), &problems)
        }
    }
}

/// Denies what is wrong; warns of what will hurt.
pub(super) fn validate(
    request: &Request<'_, projection::Pool>,
    namespace: &NamespaceFacts,
    policy: &Policy,
) -> Answer {
    let pool = request.object();
    let problems = problems(pool, request.old());
    if !problems.is_empty() {
        return Answer::denied("Pool", request.name(), &problems);
    }
    let settings = Settings::built_in();
    let context = Context {
        namespace_label: namespace.injection.as_deref(),
        default: policy.injection_default,
        settings: &settings,
    };
    Answer::warned(validation::pool_warnings(
        pool,
        namespace,
        &decision(pool, &context),
    ))
}

/// The problems of a Pool that an update does not already find stored.
fn problems(pool: &Value, old: Option<&Value>) -> Vec<Problem> {
    let problems = validation::pool(pool);
    match old {
        Some(old) if !problems.is_empty() => {
            validation::new_problems(problems, &validation::pool(old))
        }
        _ => problems,
    }
}

/// Where the image of an injected sidecar came from, as a metric label.
fn origin(mutation: &Mutation, namespace: &str, policy: &Policy) -> Origin {
    let Some(origin) = mutation.record.image_origin() else {
        return Origin::Own;
    };
    let from = |namespace: &str| origin.starts_with(&format!("ConfigMap {namespace}/"));
    if from(&policy.namespace) {
        Origin::ConfigMapInstallation
    } else if from(namespace) {
        Origin::ConfigMapNamespace
    } else {
        Origin::Default
    }
}
