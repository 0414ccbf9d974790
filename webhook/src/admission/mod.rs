//! What the webhook says to a review.
//!
//! In: the bytes of an `AdmissionReview`, the [`Facts`] of namespaces and ConfigMaps, the policy of the
//! installation. Out: the bytes of the answer. The rules themselves are pure functions of
//! `opensandbox-api`; the command line calls the same ones.
//!
//! ```text
//! review         bytes -> request, answer -> bytes
//! projection     of a Pool only what the rules look at, so that a large one costs little
//! pool           mutate and validate Pools
//! batch_sandbox  validate BatchSandboxes
//! ```
//!
//! A body that is no review is answered with HTTP 400. Everything else is a review with HTTP 200, also
//! when the object in it makes no sense: then it is denied, with every reason at once.

mod batch_sandbox;
mod pool;
pub mod projection;
mod review;

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use opensandbox_api::sidecar::{InjectionDefault, Sourced};
use serde_json::Value;

use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::server::{Reply, Routes};

pub use review::{Answer, Request, Reviewed};

/// Path of the mutating webhook of Pools.
pub const MUTATE_POOL: &str = "/mutate-sandbox-opensandbox-io-v1alpha1-pool";
/// Path of the validating webhook of Pools.
pub const VALIDATE_POOL: &str = "/validate-sandbox-opensandbox-io-v1alpha1-pool";
/// Path of the validating webhook of BatchSandboxes.
pub const VALIDATE_BATCH_SANDBOX: &str = "/validate-sandbox-opensandbox-io-v1alpha1-batchsandbox";

/// What the installation decides.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether Pools get the executor where no label says.
    pub injection_default: InjectionDefault,
    /// Image where no ConfigMap names one.
    pub default_image: Sourced<String>,
    /// Namespace of the installation: its ConfigMap is the second choice.
    pub namespace: String,
    /// Users that may write the allocation annotations of BatchSandboxes.
    pub operators: Vec<String>,
}

/// Decides reviews. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    policy: Policy,
    facts: Facts,
    metrics: Arc<Metrics>,
}

impl Admission {
    /// A decider with these settings.
    pub fn new(policy: Policy, facts: Facts, metrics: Arc<Metrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                policy,
                facts,
                metrics,
            }),
        }
    }

    /// The three webhooks by path.
    pub fn routes(&self) -> Routes {
        let (mutate, validate, sandbox) = (self.clone(), self.clone(), self.clone());
        Routes::default()
            .route(MUTATE_POOL, move |body: Bytes| {
                let admission = mutate.clone();
                async move { admission.mutate_pool(&body).await }
            })
            .route(VALIDATE_POOL, move |body: Bytes| {
                let admission = validate.clone();
                async move { admission.validate_pool(&body).await }
            })
            .route(VALIDATE_BATCH_SANDBOX, move |body: Bytes| {
                let admission = sandbox.clone();
                async move { admission.validate_batch_sandbox(&body) }
            })
    }

    /// Injects the executor, or says why the Pool is refused.
    pub async fn mutate_pool(&self, body: &[u8]) -> Reply {
        let request = match review::read::<projection::Pool>(body) {
            Ok(request) => request,
            Err(error) => return not_a_review(&error),
        };
        if let Some(answer) = request.out_of_scope("pools") {
            return self.reply(&request, answer);
        }
        let facts = &self.shared.facts;
        let installation = self.shared.policy.namespace.as_str();
        let (namespace, ()) = tokio::join!(
            facts.namespace(request.namespace()),
            facts.refresh_images([request.namespace(), installation])
        );
        let answer = pool::mutate(
            &request,
            &namespace,
            &self.shared.facts,
            &self.shared.policy,
            &self.shared.metrics,
        );
        self.reply(&request, answer)
    }

    /// Checks a Pool and warns of what will hurt later.
    pub async fn validate_pool(&self, body: &[u8]) -> Reply {
        let request = match review::read::<projection::Pool>(body) {
            Ok(request) => request,
            Err(error) => return not_a_review(&error),
        };
        if let Some(answer) = request.out_of_scope("pools") {
            return self.reply(&request, answer);
        }
        let namespace = self.shared.facts.namespace(request.namespace()).await;
        let answer = pool::validate(&request, &namespace, &self.shared.policy);
        self.reply(&request, answer)
    }

    /// Checks a BatchSandbox.
    pub fn validate_batch_sandbox(&self, body: &[u8]) -> Reply {
        let request = match review::read::<Value>(body) {
            Ok(request) => request,
            Err(error) => return not_a_review(&error),
        };
        let answer = request
            .out_of_scope("batchsandboxes")
            .unwrap_or_else(|| batch_sandbox::validate(&request, &self.shared.policy));
        self.reply(&request, answer)
    }

    fn reply<O: Reviewed>(&self, request: &Request<'_, O>, answer: Answer) -> Reply {
        let warnings = answer.warnings.len();
        self.shared
            .metrics
            .warnings
            .inc_by(u64::try_from(warnings).unwrap_or(u64::MAX));
        let verdict = answer.verdict();
        tracing::debug!(
            uid = %request.uid,
            resource = %request.resource.resource,
            namespace = request.namespace(),
            name = request.name(),
            operation = %request.operation,
            dry_run = request.dry_run,
            verdict,
            warnings,
            "reviewed"
        );
        Reply::ok(answer.into_review(&request.uid), verdict)
    }
}

/// The answer to a body that is no review: nothing in it can be answered by uid.
fn not_a_review(error: &review::Error) -> Reply {
    let body = serde_json::json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": "BadRequest",
        "code": 400,
        "message": format!("not an admission.k8s.io/v1 AdmissionReview: {error}"),
    });
    Reply {
        status: StatusCode::BAD_REQUEST,
        body: Bytes::from(body.to_string()),
        verdict: "bad_request",
    }
}
