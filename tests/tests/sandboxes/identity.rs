//! Executors that are killed, pods that are made again under the same name, and addresses that another
//! pod gets: no run of a task begins twice, and none is taken for another's. What ran is counted by what
//! tasks leave behind.

#![cfg(test)]

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::api::DeleteParams;
use nix::sys::signal::Signal;
use opensandbox_api::labels;
use opensandbox_api::v1alpha1::{BatchSandbox, TaskResult};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::pods::{EXECUTOR, SANDBOX, processes_of};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use super::runs::script;
use super::site::{BOUND, Site};

/// How often another pod is made until one has the address: pods of other tests want one too.
const TRIES: usize = 8;

/// Waits until so many tasks ended, and returns the results by index.
async fn results(site: &Site, name: &str, ended: i32) -> Result<Vec<TaskResult>> {
    let sandbox = site
        .until::<BatchSandbox>("the end of its tasks", name, |sandbox| {
            let status = sandbox.status.as_ref();
            status.is_some_and(|status| status.task_succeed + status.task_failed == ended)
        })
        .await?;
    let mut results = sandbox.status.context("a status")?.task_results;
    results.sort_by_key(|result| result.index);
    Ok(results)
}

/// Waits until nothing runs in a container any more. A pod that is deleted by force is forgotten at once, and
/// the kubelet ends its containers after that: until then what runs in it goes on.
async fn ended(container_id: &str) -> Result<()> {
    wait::until("the end of a container", BOUND, async || {
        let left = processes_of(container_id);
        Ok(if left.is_empty() {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{left:?}"))
        })
    })
    .await
}

/// Kills the executor of a pod, and does not wait for the next one.
async fn kill_executor(pod: &ExecutorPod<'_>) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(pod.main_pid(EXECUTOR).await?);
    Ok(nix::sys::signal::kill(pid, Signal::SIGKILL)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_that_is_killed_runs_nothing_twice_and_forgets_nothing() -> Result<()> {
    let Some(site) = Site::start("killed").await? else {
        return Ok(());
    };
    tokio::try_join!(while_tasks_run(&site), while_tasks_begin(&site))?;
    site.end().await
}

/// Killed twice while tasks run, and once more while they end in three ways.
async fn while_tasks_run(site: &Site) -> Result<()> {
    site.pool("steady", [0, 3, 3, 3], json!({})).await?;
    site.counts("steady", 3, 0).await?;
    let mut spec = json!({"replicas": 3, "poolRef": "steady"});
    spec["taskTemplate"] = script("steady", "wait_for end; left end");
    spec["shardTaskPatches"] = json!([
        {},
        script(
            "steady",
            "wait_for end; left end; echo last words >&2; exit 7"
        ),
        script("steady", "wait_for end; left end; kill -9 $$"),
    ]);
    site.sandbox("steady", spec).await?;
    site.runs.until("steady", 3).await?;
    let mut pods = Vec::new();
    for pod in site.held("steady").await? {
        pods.push(site.executor(&pod).await?);
    }
    for pod in &pods {
        pod.crash_executor().await?;
    }
    let ends = async || {
        site.runs.open("end")?;
        site.runs.until("steady", 6).await.map(drop)
    };
    let first = pods.first().context("a pod")?;
    first.while_executor_is_away(ends).await?;
    let results = results(site, "steady", 3).await?;
    let codes: Vec<_> = results
        .iter()
        .map(|result| (result.exit_code, result.signal))
        .collect();
    ensure!(
        codes == [(Some(0), None), (Some(7), None), (Some(137), Some(9))],
        "{results:?}"
    );
    ensure!(
        results.iter().all(|result| result.attempt == Some(0)),
        "{results:?}"
    );
    let words = results
        .get(1)
        .and_then(|result| result.stderr_tail.as_deref());
    ensure!(words == Some("last words"), "{words:?}");
    site.runs
        .exactly("steady", &["start", "start", "start", "end", "end", "end"])
}

/// Killed right before, while, and right after a task is ordered.
async fn while_tasks_begin(site: &Site) -> Result<()> {
    let noop = json!({"recycleStrategy": {"type": "Noop"}});
    site.pool("hit", [0, 1, 1, 1], noop).await?;
    for round in ["before", "while", "after"] {
        site.counts("hit", 1, 0).await?;
        let idle = site.idle("hit").await?;
        let pod = site.executor(idle.first().context("a pod")?).await?;
        let name = format!("hit-{round}");
        let spec = json!({"replicas": 1, "poolRef": "hit",
                          "taskTemplate": script(&name, "left end; exit 3")});
        match round {
            "before" => {
                kill_executor(&pod).await?;
                site.sandbox(&name, spec).await?;
            }
            "while" => {
                let (made, killed) = tokio::join!(site.sandbox(&name, spec), kill_executor(&pod));
                made.and(killed)?;
            }
            _ => {
                site.sandbox(&name, spec).await?;
                site.runs.until(&name, 1).await?;
                kill_executor(&pod).await?;
            }
        }
        let results = results(site, &name, 1).await?;
        let result = results.first().context("a result")?;
        ensure!(
            (result.exit_code, result.attempt) == (Some(3), Some(0)),
            "{round}: {result:?}"
        );
        site.runs.exactly(&name, &["start", "end"])?;
        site.delete::<BatchSandbox>(&name).await?;
        site.gone::<BatchSandbox>(&name).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_the_same_name_is_another_pod() -> Result<()> {
    let Some(site) = Site::start("same-name").await? else {
        return Ok(());
    };
    tokio::try_join!(
        made_again(&site, "lost", DeleteParams::default().grace_period(0)),
        made_again(&site, "deleted", DeleteParams::default()),
        somebody_elses(&site),
    )?;
    site.end().await
}

/// The pod of a sandbox with a template of its own is deleted: the next one has its name. Without a grace
/// period nobody can tell how the task ended; with one it is known how, and that is no result of the task.
async fn made_again(site: &Site, name: &str, parameters: DeleteParams) -> Result<()> {
    let mut spec = json!({"replicas": 1, "template": site.template(&["sleep", "infinity"])});
    spec["taskTemplate"] = script(name, &format!("wait_for {name}-end; left end; exit 8"));
    site.sandbox(name, spec).await?;
    site.runs.until(name, 1).await?;
    let pod = format!("{name}-0");
    let first = site.pod(&pod).uid().await?;
    let container = site.pod(&pod).container_id(SANDBOX).await?;
    let pods = site.namespace.api::<PodObject>();
    pods.delete(&pod, &parameters).await?;
    let said = site.event(name, "TaskRestarted").await?;
    ensure!(said.contains(&pod) && said.contains("attempt 1"), "{said}");
    site.runs.until(name, 2).await?;
    let second = site.pod(&pod).uid().await?;
    ensure!(second != first);
    ended(&container).await?;
    site.runs.open(&format!("{name}-end"))?;
    let results = results(site, name, 1).await?;
    let result = results.first().context("a result")?;
    ensure!(
        (result.exit_code, result.attempt) == (Some(8), Some(1)),
        "{result:?}"
    );
    // Once in each pod, and the one in the pod that was deleted has not gone on.
    ensure!(site.runs.pods(name, "start")? == [first, second.clone()]);
    ensure!(site.runs.pods(name, "end")? == [second]);
    Ok(())
}

/// Somebody makes a pod by the name of one that a sandbox held, with its labels, and an executor that
/// takes orders of everybody.
async fn somebody_elses(site: &Site) -> Result<()> {
    site.pool("robbed", [0, 1, 1, 3], json!({})).await?;
    site.counts("robbed", 1, 0).await?;
    let mut spec = json!({"replicas": 1, "poolRef": "robbed"});
    spec["taskTemplate"] = script("robbed", "wait_for robbed-end; left end");
    site.sandbox("robbed", spec).await?;
    site.runs.until("robbed", 1).await?;
    let held = site.held("robbed").await?;
    let name = held.first().context("a pod")?;
    let container = site.pod(name).container_id(SANDBOX).await?;
    let original = site.pod(name).object().await?;
    let first = original.metadata.uid.clone().context("a UID")?;
    let mut other = copy(&original)?;
    open_to_everybody(&mut other)?;
    let pods = site.namespace.api::<PodObject>();
    pods.delete(name, &DeleteParams::default().grace_period(0))
        .await?;
    site.create::<PodObject>(other).await?;
    let impostor = site.pod(name).uid().await?;

    site.runs.until("robbed", 2).await?;
    let now = site.held("robbed").await?;
    ensure!(now.len() == 1 && now != held, "{now:?} after {held:?}");
    let second = site.pod(now.first().context("a pod")?).uid().await?;
    site.pod(name).wait_ready().await?;
    ended(&container).await?;
    site.runs.open("robbed-end")?;
    let results = results(site, "robbed", 1).await?;
    let result = results.first().context("a result")?;
    ensure!(
        (result.exit_code, result.attempt) == (Some(0), Some(1)),
        "{result:?}"
    );
    ensure!(result.pod.as_ref() == now.first(), "{result:?}");
    ensure!(site.runs.pods("robbed", "start")? == [first, second.clone()]);
    ensure!(site.runs.pods("robbed", "end")? == [second]);
    // Nobody has asked anything of it, and it stays who made it.
    let asked = site.executor(name).await?.client().tasks().await?;
    ensure!(asked.is_empty(), "{asked:?}");
    site.delete::<BatchSandbox>("robbed").await?;
    site.gone::<BatchSandbox>("robbed").await?;
    ensure!(site.pod(name).uid().await? == impostor);
    Ok(())
}

/// What is needed to make a pod like this again, by hand.
fn copy(pod: &PodObject) -> Result<Value> {
    let pod = serde_json::to_value(pod)?;
    let mut spec = pod["spec"].clone();
    json_patch::merge(
        &mut spec,
        &json!({"nodeName": null, "serviceAccountName": null}),
    );
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod["metadata"]["name"], "labels": pod["metadata"]["labels"]},
        "spec": spec,
    }))
}

/// Has the executor of a pod take orders without a signature.
fn open_to_everybody(pod: &mut Value) -> Result<()> {
    let containers = pod
        .pointer_mut("/spec/containers")
        .and_then(Value::as_array_mut);
    let executor = containers
        .into_iter()
        .flatten()
        .find(|container| container["name"] == EXECUTOR);
    let executor = executor.context("a pod with an executor")?;
    executor["args"] = json!(["serve", "--auth=none"]);
    let env = executor.get_mut("env").and_then(Value::as_array_mut);
    if let Some(env) = env {
        env.retain(|variable| variable["name"] != labels::VERIFICATION_KEY_ENV);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pod_with_the_same_address_is_not_believed() -> Result<()> {
    let Some(site) = Site::start("address").await? else {
        return Ok(());
    };
    site.pool("moved", [0, 1, 1, 3], json!({})).await?;
    site.counts("moved", 1, 0).await?;
    let mut spec = json!({"replicas": 1, "poolRef": "moved"});
    spec["taskTemplate"] = script("moved", "wait_for moved-end; left end; exit 9");
    site.sandbox("moved", spec).await?;
    site.runs.until("moved", 1).await?;
    let held = site.held("moved").await?;
    let name = held.first().context("a pod")?;
    let original = site.pod(name).object().await?;
    let address = site.pod(name).address().await?;
    let first = original.metadata.uid.clone().context("a UID")?;

    // While the operator sees nothing of it, the address goes to another pod, whose executor is as real.
    site.operator.program.signal(Signal::SIGSTOP)?;
    let pods = site.namespace.api::<PodObject>();
    pods.delete(name, &DeleteParams::default().grace_period(0))
        .await?;
    let heir = with_address(&site, &copy(&original)?, address).await?;
    let heir_uid = site.pod(&heir).uid().await?;
    let executor = site.executor(&heir).await?;
    executor.wait_executor().await?;
    site.operator.program.signal(Signal::SIGCONT)?;

    site.runs.until("moved", 2).await?;
    let now = site.held("moved").await?;
    let second = site.pod(now.first().context("a pod")?).uid().await?;
    ensure!(second != first && second != heir_uid);
    site.runs.open("moved-end")?;
    let results = results(&site, "moved", 1).await?;
    let result = results.first().context("a result")?;
    ensure!(
        (result.exit_code, result.attempt) == (Some(9), Some(1)),
        "{result:?}"
    );
    ensure!(site.runs.pods("moved", "start")? == [first, second.clone()]);
    ensure!(site.runs.pods("moved", "end")? == [second]);
    let log = executor.logs(EXECUTOR).await?;
    ensure!(!log.contains("started, process"), "{log}");
    site.end().await
}

/// Makes pods until one has this address, and returns its name.
async fn with_address(site: &Site, pod: &Value, address: IpAddr) -> Result<String> {
    let IpAddr::V4(wanted) = address else {
        bail!("{address} is no address of this node");
    };
    for number in 0..TRIES {
        let name = format!("heir-{number}");
        let mut pod = pod.clone();
        pod["metadata"] = json!({"name": name});
        // The pod that had it gives it up some time after its object is gone.
        wait::until("a free address", BOUND, async || {
            Ok(if site.node.give_next(wanted)? {
                Probe::Done(())
            } else {
                Probe::not_yet(wanted)
            })
        })
        .await?;
        site.create::<PodObject>(pod).await?;
        site.pod(&name).wait_ready().await?;
        if site.pod(&name).address().await? == address {
            return Ok(name);
        }
        site.delete::<PodObject>(&name).await?;
    }
    bail!("{TRIES} pods did not get the address {address}")
}
