//! Reviews of BatchSandboxes: what schema and CEL cannot see.

use opensandbox_api::validation;
use serde_json::Value;

use super::Policy;
use super::review::{Answer, Request};

/// Denies what is wrong; warns of what will hurt.
pub(super) fn validate(request: &Request<'_, Value>, policy: &Policy) -> Answer {
    let sandbox = request.object();
    let old = request.old();
    let mut problems = validation::batch_sandbox(sandbox, old);
    if let Some(old) = old
        && !problems.is_empty()
    {
        problems = validation::new_problems(problems, &validation::batch_sandbox(old, None));
    }
    problems.extend(validation::batch_sandbox_annotations(
        sandbox,
        old,
        request.username(),
        &policy.operators,
    ));
    if problems.is_empty() {
        Answer::warned(validation::batch_sandbox_warnings(sandbox))
    } else {
        Answer::denied("BatchSandbox", request.name(), &problems)
    }
}
