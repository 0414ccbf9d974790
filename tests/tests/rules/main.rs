//! The rules in Rust and those in the CRDs never disagree.
//!
//! Random Pools and BatchSandboxes go through both: through `opensandbox_api::validation` and through
//! the schema with its CEL rules, once as evaluated by an independent library, once by the real API
//! server with no webhook in the way. `OPENSANDBOX_CASES` sets the number of cases; `just soak-rules`
//! uses 10^5.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod api_server;
mod schema;
mod specs;

use std::cell::Cell;

use opensandbox_api::v1alpha1::crds;
use opensandbox_api::validation::{self, Problem, Stage};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;

/// Number of cases, from `OPENSANDBOX_CASES`.
fn cases(default: u32) -> u32 {
    std::env::var("OPENSANDBOX_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// What the API server alone can see of the problems.
fn seen_by_schema(problems: Vec<Problem>) -> Vec<String> {
    problems
        .into_iter()
        .filter(|problem| problem.stage == Stage::Schema)
        .map(|problem| problem.to_string())
        .collect()
}

/// The verdict of the rules in Rust.
fn by_rust(object: &Value, old: Option<&Value>) -> Vec<String> {
    seen_by_schema(if object["kind"] == "Pool" {
        validation::pool(object)
    } else {
        validation::batch_sandbox(object, old)
    })
}

/// The schema of a kind, as it is in the CRD.
fn schema_of(kind: &str) -> Value {
    let crd = crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == kind)
        .expect("a CRD of this kind");
    let crd = serde_json::to_value(crd).expect("a CRD is plain data");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[test]
fn pools_get_the_same_verdict_from_rust_and_cel() {
    let judge = schema::Judge::new(&schema_of("Pool"));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: cases(2000),
        ..ProptestConfig::default()
    });
    let (allowed, refused) = (Cell::new(0), Cell::new(0));
    runner
        .run(&specs::pools(), |pool| {
            let rust = by_rust(&pool, None);
            let count = if rust.is_empty() { &allowed } else { &refused };
            count.set(count.get() + 1);
            let cel = judge.problems(&pool, None);
            prop_assert_eq!(
                rust.is_empty(),
                cel.is_empty(),
                "rust: {:?}\ncel: {:?}\n{}",
                rust,
                cel,
                pool
            );
            Ok(())
        })
        .unwrap();
    let (allowed, refused) = (allowed.get(), refused.get());
    assert!(
        allowed * 20 > refused && refused * 20 > allowed,
        "one-sided cases: {allowed} allowed, {refused} refused"
    );
}

#[test]
fn batch_sandboxes_get_the_same_verdict_from_rust_and_cel() {
    let judge = schema::Judge::new(&schema_of("BatchSandbox"));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: cases(2000),
        ..ProptestConfig::default()
    });
    runner
        .run(
            &(specs::batch_sandboxes(), specs::batch_sandboxes()),
            |(new, old)| {
                // An old object that could not have been stored is no old object.
                let old = Some(&old).filter(|old| {
                    by_rust(old, None).is_empty() && judge.problems(old, None).is_empty()
                });
                let rust = by_rust(&new, old);
                let cel = judge.problems(&new, old);
                prop_assert_eq!(
                    rust.is_empty(),
                    cel.is_empty(),
                    "rust: {:?}\ncel: {:?}\n{}\n{:?}",
                    rust,
                    cel,
                    new,
                    old
                );
                Ok(())
            },
        )
        .unwrap();
}
