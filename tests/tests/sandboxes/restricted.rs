//! A namespace that enforces the Pod Security level `restricted`: the user is told what to do, does it, and the
//! same tasks run.

#![cfg(test)]

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::conditions::{self, pool, reason};
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{BatchSandbox, Pool};
use opensandbox_tests::images;
use opensandbox_tests::pods::SANDBOX;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use super::site::{BOUND, Site};

const POOL: &str = "restricted";

/// A pod as the level asks for it.
fn template() -> Value {
    json!({"spec": {
        "terminationGracePeriodSeconds": 2,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true,
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": SANDBOX, "image": images::SANDBOX, "command": ["sleep"], "args": ["infinity"],
            // It would be the executor's, were this not the sandbox's environment.
            "env": [{"name": "LISTEN_ADDR", "value": "127.0.0.1:80"}],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}},
        }],
    }})
}

fn failed(pool: &Pool) -> Option<(&str, &str, &str)> {
    let status = pool.status.as_ref()?;
    let failed = conditions::find(&status.conditions, pool::POD_CREATION_FAILED)?;
    Some((&failed.status, &failed.reason, &failed.message))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pod_security_forbids_is_told_and_in_container_the_same_tasks_run() -> Result<()> {
    let Some(site) = Site::start("restricted").await? else {
        return Ok(());
    };
    let enforce = format!("{}=restricted", labels::POD_SECURITY_ENFORCE);
    let cluster = site.node.cluster();
    let namespace = &site.namespace.name;
    cluster
        .kubectl(&["label", "namespace", namespace, &enforce])
        .await?;
    let pool = json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": POOL},
        "spec": {
            "template": template(),
            "capacitySpec": {"bufferMin": 0, "bufferMax": 3, "poolMin": 3, "poolMax": 3},
            "scaleStrategy": {"maxUnavailable": "100%"},
        },
    });
    site.create::<Pool>(pool).await?;

    let told = site
        .until::<Pool>("the refusal", POOL, |pool| {
            failed(pool).is_some_and(|(status, ..)| status == "True")
        })
        .await?;
    let (_, reason, message) = failed(&told).context("a condition")?;
    let annotation = format!("{}=in-container", labels::EXECUTOR_MODE);
    ensure!(
        reason == reason::POD_SECURITY_FORBIDS,
        "{reason}: {message}"
    );
    for text in [annotation.as_str(), "violates PodSecurity"] {
        ensure!(message.contains(text), "no {text:?} in {message}");
    }

    let annotate = [
        "--namespace",
        namespace,
        "annotate",
        "pool",
        POOL,
        &annotation,
    ];
    cluster.kubectl(&annotate).await?;
    let works = site.counts(POOL, 3, 0).await?;
    let status = failed(&works).map(|(status, ..)| status);
    ensure!(status == Some("False"), "{works:?}");
    tasks(&site).await?;
    site.end().await
}

/// The tasks of the documents: three languages, all of them in the sandbox's own container and as its user.
async fn tasks(site: &Site) -> Result<()> {
    let commands = [
        json!([
            "python3",
            "-c",
            "import os; print(f'task of user {os.getuid()}')"
        ]),
        json!(["bash", "-c", "echo \"task of user $(id -u), $LISTEN_ADDR\""]),
        json!([
            "node",
            "-e",
            "console.log(`task of user ${process.getuid()}`)"
        ]),
    ];
    let patches = commands.map(|command| json!({"spec": {"process": {"command": command}}}));
    let task = json!({"spec": {"process": {"command": ["echo", "the default"]}}});
    let spec =
        json!({"replicas": 3, "poolRef": POOL, "taskTemplate": task, "shardTaskPatches": patches});
    site.sandbox("tasks", spec).await?;
    site.until::<BatchSandbox>("every task", "tasks", |sandbox| {
        let status = sandbox.status.as_ref();
        status.is_some_and(|status| (status.task_succeed, status.task_failed) == (3, 0))
    })
    .await?;
    let pods = site.held("tasks").await?;
    ensure!(pods.len() == 3, "{pods:?}");
    for (index, pod) in pods.iter().enumerate() {
        let log = site.pod(pod).logs(SANDBOX).await?;
        let line = format!("[tasks-{index} stdout] task of user 1000");
        ensure!(log.contains(&line), "no {line:?} in {log}");
    }
    ends_as_its_command(site, &pods[1]).await
}

/// SIGTERM reaches the command, which ends by it, and with it the container; the kubelet starts it again.
async fn ends_as_its_command(site: &Site, pod: &str) -> Result<()> {
    let pod = site.pod(pod);
    let processes = pod
        .exec_ok(SANDBOX, &["ps", "-eo", "pid,ppid,args"])
        .await?;
    let is_child = |line: &str| {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        words == ["1", "sleep", "infinity"]
    };
    ensure!(processes.lines().any(is_child), "{processes}");
    pod.exec_ok(SANDBOX, &["bash", "-c", "kill -TERM 1"])
        .await?;
    let restarted = wait::until("a restart", BOUND, async || {
        let status = pod.status(SANDBOX).await?;
        Ok(match status.last_state.and_then(|state| state.terminated) {
            Some(terminated) => Probe::Done(terminated),
            None => Probe::not_yet(format!("{:?}", status.state)),
        })
    });
    let code = restarted.await?.exit_code;
    ensure!(code == 128 + 15, "exit code {code}");
    Ok(())
}
