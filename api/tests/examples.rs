//! The files that users apply: each is right, and becomes what the documents say.

#![cfg(feature = "crd")]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "an integration test; it fails by unwrapping"
)]

use std::path::{Path, PathBuf};

use json_patch::{Patch, patch};
use opensandbox_api::sidecar::pool::{Context, Mutation, mutate};
use opensandbox_api::sidecar::{Decision, InjectionDefault, Settings};
use opensandbox_api::validation::{self, NamespaceFacts};
use serde_json::{Value, json};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn documents(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(directory().join(file)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn injected(pool: &Value) -> (Value, Mutation) {
    let settings = Settings::built_in();
    let context = Context {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings: &settings,
    };
    let mutation = mutate(pool, None, &context).unwrap();
    let mut result = pool.clone();
    patch(&mut result, &Patch(mutation.operations.clone())).unwrap();
    (result, mutation)
}

fn names(pool: &Value) -> Vec<&str> {
    let containers = pool["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    containers
        .iter()
        .map(|container| container["name"].as_str().unwrap())
        .collect()
}

#[test]
fn every_example_is_right_and_warns_of_nothing() {
    let mut seen = 0;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for document in documents(path.file_name().unwrap().to_str().unwrap()) {
            seen += 1;
            let (problems, warnings) = match document["kind"].as_str() {
                Some("Pool") => {
                    let (result, mutation) = injected(&document);
                    let facts = NamespaceFacts::default();
                    let warnings = validation::pool_warnings(&result, &facts, &mutation.decision);
                    (validation::pool(&result), warnings)
                }
                Some("BatchSandbox") => (
                    validation::batch_sandbox(&document, None),
                    validation::batch_sandbox_warnings(&document),
                ),
                Some("ConfigMap") => (Vec::new(), Vec::new()),
                other => unreachable!("{}: kind {other:?}", path.display()),
            };
            assert!(problems.is_empty(), "{}: {problems:?}", path.display());
            assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
        }
    }
    assert!(seen >= 5, "only {seen} examples");
}

#[test]
fn a_minimal_pool_gets_exactly_what_the_documents_say() {
    let (result, _) = injected(&documents("minimal-pool.yaml")[0]);
    let spec = &result["spec"]["template"]["spec"];
    assert_eq!(names(&result)[1..], ["task-executor"]);
    assert_eq!(spec["shareProcessNamespace"], json!(true));
    assert_eq!(
        spec["containers"][1],
        json!({
            "name": "task-executor",
            "image": "opensandbox.io/task-executor:v0.0.1",
            "imagePullPolicy": "IfNotPresent",
            "resources": {
                "requests": { "cpu": "100m", "memory": "128Mi" },
                "limits": { "cpu": "500m", "memory": "256Mi" },
            },
            "securityContext": { "capabilities": { "add": ["SYS_PTRACE"] } },
            "ports": [{ "name": "task-executor", "containerPort": 5758, "protocol": "TCP" }],
            "readinessProbe": {
                "httpGet": { "path": "/readyz", "port": 5758 }, "periodSeconds": 5, "failureThreshold": 3,
            },
            "env": [{ "name": "MAIN_CONTAINER_NAME", "value": names(&result)[0] }],
        })
    );
}

#[test]
fn a_sidecar_written_by_hand_keeps_what_it_has() {
    let pool = &documents("task-enabled-pool.yaml")[0];
    let (result, mutation) = injected(pool);
    assert_eq!(names(&result), ["sandbox-container", "task-executor"]);
    let (before, after) = (
        &pool["spec"]["template"]["spec"]["containers"][1],
        &result["spec"]["template"]["spec"]["containers"][1],
    );
    for (field, value) in before.as_object().unwrap() {
        assert_eq!(&after[field], value, "{field}");
    }
    assert!(
        !mutation
            .record
            .added
            .contains_key("spec.containers[task-executor].image")
    );
}

#[test]
fn an_opted_out_pool_is_left_alone() {
    let (_, mutation) = injected(&documents("basic-pool.yaml")[0]);
    assert!(matches!(mutation.decision, Decision::Disabled(_)));
    assert_eq!(mutation.operations, vec![]);
}

/// Templates of every odd kind, and what becomes of them.
#[test]
fn odd_templates_are_injected_or_refused_with_path_and_remedy() {
    let pool = |spec: Value| {
        json!({
            "metadata": { "name": "p" },
            "spec": { "template": { "spec": spec } },
        })
    };
    let main = json!({ "name": "main", "image": "x" });
    let settings = Settings::built_in();
    let context = Context {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings: &settings,
    };
    let refused = |spec: Value, path: &str| {
        let problems = mutate(&pool(spec), None, &context).unwrap_err();
        assert!(
            problems
                .iter()
                .any(|problem| problem.path == path && !problem.detail.is_empty()),
            "{path}: {problems:?}"
        );
    };
    refused(json!({}), "spec.template.spec.containers");
    refused(json!({ "containers": [] }), "spec.template.spec.containers");
    refused(
        json!({ "containers": [{ "name": "task-executor" }] }),
        "spec.template.spec.containers",
    );
    refused(
        json!({ "containers": [main], "shareProcessNamespace": false }),
        "spec.template.spec.shareProcessNamespace",
    );
    refused(
        json!({ "containers": [main], "hostPID": true }),
        "spec.template.spec.hostPID",
    );
    refused(
        json!({ "containers": [main], "os": { "name": "windows" } }),
        "spec.template.spec.os.name",
    );
    refused(
        json!({ "containers": [main], "initContainers": [{ "name": "task-executor", "image": "x" }] }),
        "spec.template.spec.initContainers[0].name",
    );
    refused(
        json!({ "containers": [main, {
            "name": "task-executor", "securityContext": { "capabilities": { "drop": ["CAP_SYS_PTRACE"] } },
        }] }),
        "spec.template.spec.containers[1].securityContext.capabilities.drop[0]",
    );

    // A native sidecar is completed where it is.
    let (native, _) = injected(&pool(json!({
        "containers": [main], "initContainers": [{ "name": "task-executor", "restartPolicy": "Always" }],
    })));
    assert_eq!(names(&native), ["main"]);
    assert_eq!(
        native["spec"]["template"]["spec"]["initContainers"][0]["image"],
        "opensandbox.io/task-executor:v0.0.1"
    );
    // A pod that sets another user for all its containers must except the executor.
    let (user, _) = injected(&pool(json!({
        "containers": [main], "securityContext": { "runAsNonRoot": true, "runAsUser": 1000 },
    })));
    let context = &user["spec"]["template"]["spec"]["containers"][1]["securityContext"];
    assert_eq!(
        (&context["runAsUser"], &context["runAsNonRoot"]),
        (&json!(0), &json!(false))
    );
    // Upstream's in-container form is left alone.
    let (_, in_container) = injected(&pool(json!({
        "containers": [{ "name": "main", "image": "x", "command": ["/opt/opensandbox/task-executor"] }],
    })));
    assert!(matches!(in_container.decision, Decision::HandWritten(_)));
    assert_eq!(in_container.operations, vec![]);
}
