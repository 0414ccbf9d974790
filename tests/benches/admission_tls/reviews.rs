//! What is sent: the two calls that an update of a Pool costs, as the API server would make them, of
//! 10 KB each. Goes in: a cluster with the webhook installed. The Pool in them is the one this very API
//! server stored, with the sidecar and with the fields it keeps about who set what.

use anyhow::{Context as _, Result, ensure};
use http_body_util::Full;
use hyper::body::Bytes;
use opensandbox_tests::LocalCluster;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// Sized so that a review has 10 KB.
const VARIABLES: usize = 27;
const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";

/// One call, and what its answer must hold.
#[derive(Clone)]
pub(crate) struct Review {
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    patched: bool,
}

/// Of an answer only what is checked.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    response: Response<'a>,
}

#[derive(Deserialize)]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    patch: Option<IgnoredAny>,
}

impl Review {
    /// The body of a request.
    pub(crate) fn request(&self) -> Full<Bytes> {
        Full::new(self.body.clone())
    }

    /// Checks what came back.
    ///
    /// # Errors
    /// It is no answer to this, or not the right one.
    pub(crate) fn check(&self, answer: &[u8]) -> Result<()> {
        let Answer { response } = serde_json::from_slice(answer)
            .with_context(|| String::from_utf8_lossy(answer).into_owned())?;
        ensure!(response.uid == UID, "answer to another review");
        ensure!(response.allowed, "denied");
        ensure!(
            response.patch.is_some() == self.patched,
            "patched: {}",
            !self.patched
        );
        Ok(())
    }
}

/// The two calls of an update: of the mutating webhook, to which the Pool comes without its sidecar, as
/// client-side apply sends it, and of the validating one.
///
/// # Errors
/// The API server refuses the Pool.
pub(crate) async fn of_an_update(cluster: &LocalCluster) -> Result<Vec<Review>> {
    let namespace = cluster.namespace("bench", &[]).await?.name;
    let sent = pool(&namespace);
    let apply = [
        "apply",
        "--server-side",
        "--show-managed-fields",
        "-o",
        "json",
        "-f",
        "-",
    ];
    let stored = cluster
        .kubectl_with_input(&apply, &sent.to_string())
        .await?;
    let stored: Value = serde_json::from_str(&stored)?;
    let containers = "/spec/template/spec/containers";
    let count = stored
        .pointer(containers)
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    ensure!(
        count == 2,
        "the stored Pool has {count} containers and not two: {stored}"
    );
    let mut applied = stored.clone();
    *applied
        .pointer_mut(containers)
        .context("a stored Pool has containers")? = sent
        .pointer(containers)
        .context("a Pool has containers")?
        .clone();
    let review = |path, object, patched| {
        let body = review(&namespace, object, &stored).to_string();
        Review {
            path,
            body: Bytes::from(body),
            patched,
        }
    };
    Ok(vec![
        review(
            "/mutate-sandbox-opensandbox-io-v1alpha1-pool",
            &applied,
            true,
        ),
        review(
            "/validate-sandbox-opensandbox-io-v1alpha1-pool",
            &stored,
            false,
        ),
    ])
}

/// A Pool as people write them for code sandboxes.
fn pool(namespace: &str) -> Value {
    let env: Vec<Value> = (0..VARIABLES)
        .map(|index| {
            json!({
                "name": format!("SETTING_{index:03}"),
                "value": format!("value of setting {index}"),
            })
        })
        .collect();
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1",
        "kind": "Pool",
        "metadata": {
            "name": "code-interpreter", "namespace": namespace,
            "labels": { "team": "evaluation", "app.kubernetes.io/part-of": "sandboxes" },
            "annotations": { "owner": "evaluation@example.com" },
        },
        "spec": {
            "capacitySpec": { "bufferMax": 10, "bufferMin": 2, "poolMax": 20, "poolMin": 5 },
            "template": {
                "metadata": { "labels": { "app": "code-interpreter" } },
                "spec": {
                    "containers": [{
                        "name": "sandbox-container",
                        "image": "registry.example.com/code-interpreter:2026.11",
                        "command": ["sleep", "infinity"], "env": env,
                        "resources": {
                            "requests": { "cpu": "100m", "memory": "128Mi" },
                            "limits": { "cpu": "500m", "memory": "256Mi" },
                        },
                        "volumeMounts": [{ "name": "work", "mountPath": "/workspace" }],
                    }],
                    "volumes": [{ "name": "work", "emptyDir": { "sizeLimit": "1Gi" } }],
                    "tolerations": [
                        { "key": "sandbox", "operator": "Exists", "effect": "NoSchedule" },
                    ],
                },
            },
        },
    })
}

fn review(namespace: &str, object: &Value, old: &Value) -> Value {
    let kind = json!({ "group": "sandbox.opensandbox.io", "version": "v1alpha1", "kind": "Pool" });
    let resource =
        json!({ "group": "sandbox.opensandbox.io", "version": "v1alpha1", "resource": "pools" });
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": UID,
            "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "name": "code-interpreter", "namespace": namespace, "operation": "UPDATE",
            "userInfo": {
                "username": "administrator",
                "groups": ["system:masters", "system:authenticated"],
            },
            "object": object, "oldObject": old, "dryRun": false,
            "options": {
                "kind": "PatchOptions", "apiVersion": "meta.k8s.io/v1",
                "fieldManager": "kubectl-client-side-apply", "fieldValidation": "Strict",
            },
        },
    })
}
