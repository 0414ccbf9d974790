//! The handler in process: parse, decide, patch, serialise, as one call from bytes to bytes.
//!
//! `cargo bench -p opensandbox-webhook --bench handler` prints a table. See docs/benchmarks.md.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use opensandbox_api::sidecar::{ImagesConfig, InjectionDefault, default_image};
use opensandbox_webhook::admission::{Admission, Policy};
use opensandbox_webhook::facts::Facts;
use opensandbox_webhook::metrics::Metrics;
use serde_json::{Value, json};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WARM_UP: usize = 2_000;
const CALLS: usize = 20_000;

/// A Pool as people write them for code sandboxes: some environment, volumes, probes.
fn pool(variables: usize) -> Value {
    let env: Vec<Value> = (0..variables)
        .map(|index| json!({ "name": format!("SETTING_{index:03}"), "value": format!("value of setting {index}") }))
        .collect();
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1",
        "kind": "Pool",
        "metadata": {
            "name": "code-interpreter", "namespace": "default",
            "uid": "7a1c2d3e-0000-4000-8000-000000000001", "resourceVersion": "123456", "generation": 3,
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": { "team": "evaluation", "app.kubernetes.io/part-of": "sandboxes" },
            "annotations": { "owner": "evaluation@example.com" },
        },
        "spec": {
            "capacitySpec": { "bufferMax": 10, "bufferMin": 2, "poolMax": 20, "poolMin": 5 },
            "template": {
                "metadata": { "labels": { "app": "code-interpreter" } },
                "spec": {
                    "containers": [{
                        "name": "sandbox-container", "image": "registry.example.com/code-interpreter:2026.11",
                        "command": ["sleep", "infinity"], "env": env,
                        "resources": {
                            "requests": { "cpu": "100m", "memory": "128Mi" },
                            "limits": { "cpu": "500m", "memory": "256Mi" },
                        },
                        "volumeMounts": [{ "name": "work", "mountPath": "/workspace" }],
                    }],
                    "volumes": [{ "name": "work", "emptyDir": { "sizeLimit": "1Gi" } }],
                    "tolerations": [{ "key": "sandbox", "operator": "Exists", "effect": "NoSchedule" }],
                },
            },
        },
        "status": { "total": 7, "allocated": 2, "available": 5, "updated": 7, "revision": "0123456789abcdef" },
    })
}

/// What the API server keeps about who set what: about as large as the object.
fn managed_fields(variables: usize) -> Value {
    let mut env = serde_json::Map::new();
    for index in 0..variables {
        env.insert(
            format!("k:{{\"name\":\"SETTING_{index:03}\"}}"),
            json!({ ".": {}, "f:name": {}, "f:value": {} }),
        );
    }
    json!([{
        "manager": "kubectl-client-side-apply", "operation": "Update", "time": "2026-01-02T03:04:05Z",
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "fieldsType": "FieldsV1",
        "fieldsV1": { "f:spec": { "f:template": { "f:spec": { "f:containers": env } } } },
    }])
}

fn review(operation: &str, object: &Value, old: Option<&Value>) -> Vec<u8> {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "sandbox.opensandbox.io", "version": "v1alpha1", "kind": "Pool" },
            "resource": { "group": "sandbox.opensandbox.io", "version": "v1alpha1", "resource": "pools" },
            "requestKind": { "group": "sandbox.opensandbox.io", "version": "v1alpha1", "kind": "Pool" },
            "requestResource": { "group": "sandbox.opensandbox.io", "version": "v1alpha1", "resource": "pools" },
            "name": "code-interpreter", "namespace": "default", "operation": operation,
            "userInfo": { "username": "admin", "groups": ["system:masters", "system:authenticated"] },
            "object": object, "oldObject": old, "dryRun": false,
            "options": { "kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
    .to_string()
    .into_bytes()
}

fn admission() -> Admission {
    let facts = Facts::default();
    facts.put_namespace("default", None);
    let (images, _) = ImagesConfig::read("default", |key| {
        (key == "taskExecutorImage").then_some("registry/executor:1")
    });
    facts.put_images(images);
    let policy = Policy {
        injection_default: InjectionDefault::Enabled,
        default_image: default_image(),
        namespace: "opensandbox-system".to_owned(),
        operators: Vec::new(),
    };
    Admission::new(policy, facts, Arc::new(Metrics::default()))
}

/// The Pool as it is stored after its creation.
fn stored(admission: &Admission, pool: &Value) -> Value {
    let reply = admission
        .mutate_pool(&review("CREATE", pool, None))
        .now_or_never()
        .expect("nothing to wait for");
    let answer: Value = serde_json::from_slice(&reply.body).expect("an answer is JSON");
    let patch = answer["response"]["patch"]
        .as_str()
        .expect("a new Pool is patched");
    let patch =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, patch).expect("base64");
    let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a JSON Patch");
    let mut pool = pool.clone();
    json_patch::patch(&mut pool, &patch).expect("the patch applies");
    pool
}

fn measure(name: &str, body: &[u8], call: impl Fn(&[u8])) {
    let mut times = Vec::with_capacity(CALLS);
    for index in 0..WARM_UP + CALLS {
        let start = Instant::now();
        call(black_box(body));
        let time = start.elapsed();
        if index >= WARM_UP {
            times.push(time);
        }
    }
    times.sort_unstable();
    let at = |share: f64| -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into the sample"
        )]
        let index = ((times.len() - 1) as f64 * share) as usize;
        micros(times[index])
    };
    #[expect(clippy::print_stdout, reason = "a benchmark prints its table")]
    {
        println!(
            "| {name:<44} | {:>6} | {:>7.1} | {:>7.1} | {:>7.1} |",
            body.len(),
            at(0.5),
            at(0.9),
            at(0.99)
        );
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its table")]
fn main() {
    let admission = admission();
    println!(
        "\n| call                                         |  bytes |  p50 µs |  p90 µs |  p99 µs |"
    );
    println!(
        "|----------------------------------------------|-------:|--------:|--------:|--------:|"
    );
    // Sized so that the UPDATE review of a stored Pool is 10 KB.
    for (size, variables) in [("", 21), ("large ", 200)] {
        let mut sent = pool(variables);
        sent["metadata"]["managedFields"] = managed_fields(variables);
        let stored = stored(&admission, &sent);
        let mutate = |body: &[u8]| drop(admission.mutate_pool(body).now_or_never());
        let validate = |body: &[u8]| drop(admission.validate_pool(body).now_or_never());
        measure(
            &format!("mutate, {size}CREATE, injected"),
            &review("CREATE", &sent, None),
            mutate,
        );
        // Client-side apply of the same file: the list is the file's again, the sidecar is restored.
        let mut applied = stored.clone();
        applied["spec"]["template"]["spec"]["containers"] =
            sent["spec"]["template"]["spec"]["containers"].clone();
        measure(
            &format!("mutate, {size}UPDATE, sidecar restored"),
            &review("UPDATE", &applied, Some(&stored)),
            mutate,
        );
        measure(
            &format!("mutate, {size}UPDATE, nothing to do"),
            &review("UPDATE", &stored, Some(&stored)),
            mutate,
        );
        measure(
            &format!("validate, {size}UPDATE"),
            &review("UPDATE", &stored, Some(&stored)),
            validate,
        );
    }
}
