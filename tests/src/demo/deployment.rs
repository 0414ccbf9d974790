//! The webhook as a Deployment in a cluster of the user's: config/default as it is, the wait for its
//! pods, and their numbers.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::numbers::Numbers;
use crate::administrator::Administrator;
use crate::installation::{NAME, NAMESPACE};
use crate::wait::{self, Probe};

/// Until its pods are ready: images are pulled meanwhile.
const ROLLOUT: Duration = Duration::from_mins(3);
/// Reasons of a waiting container after which more waiting is of no use.
const HOPELESS: [&str; 6] = [
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
];

/// Puts another image into the Deployment.
pub(super) fn set_image(documents: &mut [Value], image: &str) {
    for document in documents
        .iter_mut()
        .filter(|document| document["kind"] == "Deployment")
    {
        if let Some(of) = document.pointer_mut("/spec/template/spec/containers/0/image") {
            *of = json!(image);
        }
    }
}

/// Waits until all its replicas are ready.
///
/// # Errors
/// They are not in time, or cannot be; the reason is told.
pub(super) async fn rolled_out(user: Administrator<'_>) -> Result<()> {
    wait::until("the webhook to be rolled out", ROLLOUT, async || {
        let get = ["get", "deployment", NAME, "-n", NAMESPACE, "-o", "json"];
        let deployment: Value = serde_json::from_str(&user.kubectl(&get).await?)?;
        let number = |pointer| {
            deployment
                .pointer(pointer)
                .and_then(Value::as_i64)
                .unwrap_or(0)
        };
        let (wanted, ready) = (number("/spec/replicas"), number("/status/readyReplicas"));
        if ready >= wanted {
            return Ok(Probe::Done(()));
        }
        for (container, reason, message) in waiting(&pods(user).await?) {
            if HOPELESS.contains(&reason.as_str()) {
                bail!(
                    "{container} cannot start: {reason}: {message}\nAn image of yours can be given \
                     with --webhook-image"
                );
            }
        }
        Ok(Probe::not_yet(format!(
            "{ready} of {wanted} replicas are ready"
        )))
    })
    .await
}

async fn pods(user: Administrator<'_>) -> Result<Vec<Value>> {
    let selector = format!("app.kubernetes.io/name={NAME}");
    let get = [
        "get", "pods", "-n", NAMESPACE, "-l", &selector, "-o", "json",
    ];
    let mut pods: Value = serde_json::from_str(&user.kubectl(&get).await?)?;
    Ok(serde_json::from_value(pods["items"].take())?)
}

/// Pod and container, reason, message of each container that waits.
fn waiting(pods: &[Value]) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let containers = pods.iter().flat_map(|pod| {
        let statuses = pod
            .pointer("/status/containerStatuses")
            .and_then(Value::as_array);
        statuses
            .into_iter()
            .flatten()
            .map(move |status| (pod, status))
    });
    containers
        .filter_map(|(pod, status)| {
            let waiting = status.pointer("/state/waiting")?;
            let name = format!(
                "{}/{}",
                text(&pod["metadata"]["name"]),
                text(&status["name"])
            );
            Some((name, text(&waiting["reason"]), text(&waiting["message"])))
        })
        .collect()
}

/// What all its replicas tell, through the API server.
///
/// # Errors
/// None of them can be asked.
pub(super) async fn numbers(user: Administrator<'_>) -> Result<Numbers> {
    let mut numbers = Numbers::default();
    for pod in pods(user).await? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:8080/proxy/metrics");
        numbers.add(&user.kubectl(&["get", "--raw", &path]).await?);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_waiting_container_is_found() {
        let pod = json!({"metadata": {"name": "a"}, "status": {"containerStatuses": [
            {"name": "ok", "state": {"running": {}}},
            {"name": "b", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]}});
        let expected = ("a/b".to_owned(), "ErrImagePull".to_owned(), "no".to_owned());
        assert_eq!(waiting(&[pod]), [expected]);
    }

    #[test]
    fn the_image_of_the_deployment_is_replaced() {
        let containers = json!([{"name": "webhook", "image": "old"}]);
        let deployment = json!({"kind": "Deployment",
            "spec": {"template": {"spec": {"containers": containers}}}});
        let mut documents = [json!({"kind": "Service"}), deployment];
        set_image(&mut documents, "new");
        let image = documents[1].pointer("/spec/template/spec/containers/0/image");
        assert_eq!(image, Some(&json!("new")));
    }
}
