//! What is read of a Pool is enough: every rule says the same of it as of the whole.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

#[path = "../../api/tests/support/mod.rs"]
mod support;

use opensandbox_api::labels;
use opensandbox_api::sidecar::pool::{Context, mutate};
use opensandbox_api::sidecar::{InjectionDefault, Settings};
use opensandbox_api::validation::{self, NamespaceFacts};
use opensandbox_webhook::admission::projection::Pool;
use proptest::prelude::*;
use serde_json::Value;
use support::{cases, pools};

fn projected(pool: &Value) -> Value {
    serde_json::from_str::<Pool>(&pool.to_string())
        .expect("any JSON can be read")
        .0
}

/// Everything that the webhook says of a Pool.
fn said(pool: &Value, old: Option<&Value>) -> String {
    let settings = Settings::built_in();
    let context = Context {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings: &settings,
    };
    let namespace = NamespaceFacts {
        injection: None,
        pod_security: Some("restricted".to_owned()),
    };
    let problems = validation::pool(pool);
    let mutation = mutate(pool, old, &context);
    let warnings = mutation
        .as_ref()
        .map(|mutation| validation::pool_warnings(pool, &namespace, &mutation.decision));
    let problem_texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let patch = mutation
        .as_ref()
        .map(|mutation| serde_json::to_string(&mutation.operations).expect("plain data"));
    format!("{problem_texts:?}\n{patch:?}\n{warnings:?}")
}

/// The Pool as it is stored, if that has annotations.
fn injected(pool: &Value) -> Option<Value> {
    let settings = Settings::built_in();
    let context = Context {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings: &settings,
    };
    let mutation = mutate(pool, None, &context).ok()?;
    let mut pool = pool.clone();
    json_patch::patch(&mut pool, &mutation.operations).expect("it was made for this Pool");
    pool.pointer("/metadata/annotations")?.as_object()?;
    Some(pool)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn rules_say_the_same_of_what_is_read_as_of_the_whole(pool in pools(), old in pools()) {
        prop_assert_eq!(said(&projected(&pool), None), said(&pool, None));
        prop_assert_eq!(said(&projected(&pool), Some(&projected(&old))), said(&pool, Some(&old)));
        // An injected one, and its change to another mode, where something is taken away.
        let Some(stored) = injected(&old) else { return Ok(()) };
        for mode in ["in-container", "sidecar"] {
            let mut request = stored.clone();
            request["metadata"]["annotations"][labels::EXECUTOR_MODE] = mode.into();
            prop_assert_eq!(
                said(&projected(&request), Some(&projected(&stored))),
                said(&request, Some(&stored))
            );
        }
    }
}
