//! Runs a command in containers of a pod, through the API server.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachParams;
use kube::{Api, Client};

use crate::view::ObjectKey;

/// For one container.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs `command` in each of the containers, all at once. Failures are logged, the command is not: it
/// comes from an annotation that users write.
pub(super) async fn run(
    client: &Client,
    pod: &ObjectKey,
    containers: &[String],
    command: &[String],
) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let runs = containers.iter().map(async |container| {
        let run = run_one(&pods, &pod.name, container, command);
        let failure = match tokio::time::timeout(DEADLINE, run).await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(_) => format!("not done within {} s", DEADLINE.as_secs()),
        };
        tracing::warn!(%pod, container, failure, "the command that restarts a container failed");
    });
    futures::future::join_all(runs).await;
}

async fn run_one(
    pods: &Api<Pod>,
    pod: &str,
    container: &str,
    command: &[String],
) -> Result<(), String> {
    let params = AttachParams::default()
        .container(container)
        .stdin(false)
        .stdout(false)
        .stderr(true);
    let mut process = pods
        .exec(pod, command, &params)
        .await
        .map_err(|error| error.to_string())?;
    let status = process.take_status();
    // What it prints is read to its end, so that it does not block, and thrown away.
    if let Some(mut errors) = process.stderr() {
        let _ = tokio::io::copy(&mut errors, &mut tokio::io::sink()).await;
    }
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    // The end of the container's first process ends the connection as well, often before a status comes:
    // that is what a restart looks like.
    match status {
        Some(status) if status.status.as_deref() == Some("Failure") => {
            Err(status.message.unwrap_or_default())
        }
        _ => Ok(()),
    }
}
