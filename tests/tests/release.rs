//! A release of the chart on a real node, its programs in pods: what an upgrade, and the end of the release,
//! mean to sandboxes that are in use.
#![expect(clippy::tests_outside_test_module, reason = "integration test")]

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use opensandbox_tests::helm::{self, Helm};
use opensandbox_tests::installation::repository;
use opensandbox_tests::node::{self, Node};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Settings, images};
use serde_json::{Value, json};

/// Pods start, or programs agree on something, within this.
const BOUND: Duration = Duration::from_mins(3);
const NAMESPACE: &str = "opensandbox-system";
/// What all pods of the release have.
const RELEASE: &str = "app.kubernetes.io/part-of=opensandbox";
/// What the chart has when nothing is said.
const OLD: &str = "opensandbox.io/task-executor:v0.0.1";
/// The same program under another name.
const NEW: &str = "opensandbox.io/task-executor:v9";
const CONFIGURATIONS: &str = "mutatingwebhookconfigurations,validatingwebhookconfigurations";
/// What takes the finalizers of an object away.
const FINALIZERS: &str = r#"{"metadata":{"finalizers":null}}"#;
const UPGRADE: &str = "sandbox.opensandbox.io/task-executor-upgrade";

struct Site {
    node: Node,
    helm: std::path::PathBuf,
}

impl Site {
    async fn start() -> Result<Option<Self>> {
        let Some(node) = node::start_or_skip(Settings::default()).await? else {
            return Ok(None);
        };
        for image in tokio::task::spawn_blocking(images::control_plane).await?? {
            node.import(&image).await?;
        }
        node.import_known(images::SANDBOX).await?;
        node.import_known(images::EXECUTOR).await?;
        node.alias(images::EXECUTOR, NEW).await?;
        let helm = tokio::task::spawn_blocking(helm::program).await??;
        Ok(Some(Self { node, helm }))
    }

    /// A command line of Helm; CHART stands for ours.
    async fn helm(&self, line: &str) -> Result<String> {
        Helm::with(self.helm.clone(), self.node.cluster())
            .line(line)
            .await
    }

    async fn kubectl(&self, line: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        self.node.cluster().kubectl(&words).await
    }

    async fn object(&self, line: &str) -> Result<Value> {
        let text = self.kubectl(&format!("get {line} -o json")).await?;
        Ok(serde_json::from_str(&text)?)
    }

    async fn create(&self, object: &Value) -> Result<()> {
        let create = ["create", "-f", "-"];
        let cluster = self.node.cluster();
        cluster
            .kubectl_with_input(&create, &object.to_string())
            .await?;
        Ok(())
    }

    /// Waits until an object is as it should be.
    async fn until(
        &self,
        what: &str,
        object: &str,
        mut reached: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let waited = wait::until(what, BOUND, async || {
            let seen = self.object(object).await?;
            Ok(if reached(&seen) {
                Probe::Done(seen)
            } else {
                Probe::not_yet(&seen["status"])
            })
        });
        self.told(waited.await).await
    }

    /// Waits until none of these objects is left.
    async fn gone(&self, objects: &str) -> Result<()> {
        let waited = self.node.cluster().gone(objects, BOUND);
        self.told(waited.await).await
    }

    /// With what an error needs beside it, and itself first, since what is long may be cut.
    async fn told<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) => bail!("{error:#}\n{}", self.state().await),
            fine => fine,
        }
    }

    /// What an error needs beside it.
    async fn state(&self) -> String {
        let pods = self.kubectl("get pods -A -o wide").await;
        let log = format!("logs -n {NAMESPACE} -l {RELEASE} --prefix --tail=40");
        let log = self.kubectl(&log).await;
        format!(
            "{}\n{}",
            pods.unwrap_or_default(),
            log.unwrap_or_else(|error| format!("{error:#}"))
        )
    }
}

/// A pool of this name that is small enough for any node.
fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "Pool",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "template": {"spec": {"containers": [{
                "name": "sandbox", "image": images::SANDBOX, "command": ["sleep", "infinity"],
                "resources": {"limits": {"cpu": "500m", "memory": "128Mi"}, "requests": {"cpu": "10m"}},
            }]}},
            "capacitySpec": {"bufferMin": 1, "bufferMax": 1, "poolMin": 1, "poolMax": 3},
        },
    })
}

/// A sandbox from a pool, with a task that runs this.
fn sandbox(name: &str, pool: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": 1, "poolRef": pool,
            "taskTemplate": {"spec": {"process": {"command": command}}},
        },
    })
}

fn image(object: &Value, spec: &str) -> Option<String> {
    let containers = object.pointer(spec)?.get("containers")?.as_array()?;
    let executor = containers
        .iter()
        .find(|container| container["name"] == "task-executor")?;
    Some(executor["image"].as_str()?.to_owned())
}

fn pool_image(pool: &Value) -> Option<String> {
    image(pool, "/spec/template/spec")
}

/// A pod that a sandbox holds, as it must stay.
#[derive(Debug, PartialEq)]
struct Held {
    pod: String,
    uid: Value,
    image: Option<String>,
    restarts: Vec<Value>,
}

impl Held {
    async fn by(site: &Site, sandbox: &str) -> Result<Self> {
        let path = "jsonpath={.metadata.annotations.sandbox\\.opensandbox\\.io/alloc-status}";
        let line = format!("get batchsandbox {sandbox} -o {path}");
        let allocation: Value = serde_json::from_str(&site.kubectl(&line).await?)?;
        let pod = allocation["pods"][0].as_str().context("it holds a pod")?;
        let object = site.object(&format!("pod {pod}")).await?;
        let statuses = object["status"]["containerStatuses"].as_array();
        ensure!(
            object["metadata"]["deletionTimestamp"].is_null(),
            "{pod} is going away"
        );
        Ok(Self {
            pod: pod.to_owned(),
            uid: object["metadata"]["uid"].clone(),
            image: image(&object, "/spec"),
            restarts: statuses
                .into_iter()
                .flatten()
                .map(|status| status["restartCount"].clone())
                .collect(),
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_outlive_upgrades_and_the_release() -> Result<()> {
    let Some(site) = Site::start().await? else {
        return Ok(());
    };
    site.helm("install opensandbox CHART -n opensandbox-system --create-namespace --wait")
        .await?;
    site.create(&pool("first")).await?;
    site.until("a warm pod", "pool first", |pool| {
        pool["status"]["available"] == 1
    })
    .await?;
    site.create(&sandbox("long", "first", &["sleep", "infinity"]))
        .await?;
    site.until("the task to run", "batchsandbox long", |sandbox| {
        sandbox["status"]["taskRunning"] == 1
    })
    .await?;
    let held = Held::by(&site, "long").await?;
    ensure!(held.image.as_deref() == Some(OLD), "{held:?}");

    for name in ["opensandbox-webhook", "opensandbox-operator"] {
        let log = format!("-n {NAMESPACE} logs deployment/{name}");
        ensure!(site.kubectl(&log).await?.contains("INFO"), "{name}");
    }
    new_image(&site, &held).await?;
    end_of_the_release(&site, &held).await?;
    next_release(&site, &held).await?;
    by_kustomize(&site).await
}

/// Pools that exist keep their image until they are asked; what a sandbox holds keeps it for good.
async fn new_image(site: &Site, held: &Held) -> Result<()> {
    site.helm(
        "upgrade opensandbox CHART -n opensandbox-system --wait --set taskExecutor.image.tag=v9",
    )
    .await?;
    site.create(&pool("second")).await?;
    let second = site
        .until("a warm pod of the new pool", "pool second", |pool| {
            pool["status"]["available"] == 1
        })
        .await?;
    ensure!(pool_image(&second).as_deref() == Some(NEW), "{second}");
    let first = site.object("pool first").await?;
    ensure!(pool_image(&first).as_deref() == Some(OLD), "{first}");

    site.kubectl(&format!("annotate pool first {UPGRADE}=v9"))
        .await?;
    let first = site.object("pool first").await?;
    ensure!(pool_image(&first).as_deref() == Some(NEW), "{first}");
    let rolled = wait::until("the idle pods to be rolled", BOUND, async || {
        let pods = site.object("pods -l pool=first").await?;
        let pods = pods["items"].as_array().context("a list has items")?;
        let of = |wanted: &str| {
            pods.iter()
                .filter(|pod| image(pod, "/spec").as_deref() == Some(wanted))
                .count()
        };
        Ok(match (of(OLD), of(NEW)) {
            (1, 1) => Probe::Done(()),
            (old, new) => Probe::not_yet(format!("{old} pods have the old image, {new} the new")),
        })
    });
    site.told(rolled.await).await?;
    ensure!(&Held::by(site, "long").await? == held, "not {held:?}");
    site.until("the new pod to be warm", "pool first", |pool| {
        pool["status"]["available"] == 1 && pool["status"]["allocated"] == 1
    })
    .await?;
    site.kubectl("delete pool second").await?;
    Ok(())
}

/// The webhook's pods go first, and the API server is away for a while.
async fn end_of_the_release(site: &Site, held: &Held) -> Result<()> {
    let webhook = "app.kubernetes.io/name=opensandbox-webhook";
    site.kubectl(&format!(
        "delete pods -n {NAMESPACE} -l {webhook} --force --grace-period=0"
    ))
    .await?;
    let uninstall = "uninstall opensandbox -n opensandbox-system";
    let cluster = site.node.cluster();
    let (first, restarted) = tokio::join!(site.helm(uninstall), async {
        cluster.stop_api_server().await?;
        cluster.start_api_server().await
    });
    restarted?;
    cluster.wait_ready(BOUND).await?;
    // Helm does not wait for an API server. Asked again it goes on; whoever was faster has done it already.
    if first.is_err() {
        site.helm(&format!("{uninstall} --ignore-not-found"))
            .await?;
    }
    let left = site
        .kubectl(&format!("get {CONFIGURATIONS} -o name"))
        .await?;
    ensure!(left.trim().is_empty(), "{left}");
    // Whoever makes Deployments of the same name before the garbage collector watches again has the pods of
    // the old ones for good: it takes the new ones for them.
    site.gone(&format!("pods -n {NAMESPACE} -l {RELEASE}"))
        .await?;
    // Nobody is asked about it any more.
    site.kubectl("label pool first touched=yes").await?;
    ensure!(&Held::by(site, "long").await? == held, "not {held:?}");
    Ok(())
}

/// It takes over what it finds, and ends it when it is told to.
async fn next_release(site: &Site, held: &Held) -> Result<()> {
    site.helm("install opensandbox CHART -n opensandbox-system --wait")
        .await?;
    site.until("the sandbox as before", "batchsandbox long", |sandbox| {
        let status = &sandbox["status"];
        status["taskRunning"] == 1 && status["ready"] == 1
    })
    .await?;
    ensure!(&Held::by(site, "long").await? == held, "not {held:?}");
    site.create(&sandbox("short", "first", &["true"])).await?;
    site.until(
        "a task of the new release",
        "batchsandbox short",
        |sandbox| sandbox["status"]["taskSucceed"] == 1,
    )
    .await?;
    site.kubectl("delete batchsandbox long short --timeout=120s")
        .await?;
    site.until("a pool without sandboxes", "pool first", |pool| {
        pool["status"]["allocated"] == 0 && pool["status"]["available"] == 1
    })
    .await?;
    site.gone(&format!("pod {}", held.pod)).await
}

/// The other way to install, where Helm left its kinds and a Pool; and the documented ways to remove it,
/// with an operator and without.
async fn by_kustomize(site: &Site) -> Result<()> {
    site.helm("uninstall opensandbox -n opensandbox-system --wait")
        .await?;
    site.gone(&format!("pods -n {NAMESPACE} -l {RELEASE}"))
        .await?;
    let directory = repository("config/default");
    let directory = directory.to_str().context("a path that is text")?;
    site.kubectl(&format!("apply --server-side -k {directory}"))
        .await?;
    let deployments = "deployment/opensandbox-webhook deployment/opensandbox-operator";
    let rollout = format!("-n {NAMESPACE} rollout status --timeout=180s {deployments}");
    site.told(site.kubectl(&rollout).await).await?;
    site.create(&pool("third")).await?;
    site.create(&sandbox("last", "third", &["true"])).await?;
    site.until("a task", "batchsandbox last", |sandbox| {
        sandbox["status"]["taskSucceed"] == 1
    })
    .await?;
    deleted_without_operator(site).await?;

    site.create(&sandbox("held", "third", &["sleep", "infinity"]))
        .await?;
    site.until("a task that runs on", "batchsandbox held", |sandbox| {
        sandbox["status"]["taskRunning"] == 1
    })
    .await?;
    for line in [
        "delete batchsandboxes,pools --all --all-namespaces --timeout=120s",
        &format!("delete {CONFIGURATIONS} opensandbox-webhook"),
        &format!("delete -k {directory} --ignore-not-found --timeout=120s"),
    ] {
        site.told(site.kubectl(line).await).await?;
    }
    site.gone("pods -A -l pool=third").await
}

/// A sandbox that is deleted while there is no operator stays until somebody helps it on, as documented; the
/// next operator gives the Pool another pod for the one that it held.
async fn deleted_without_operator(site: &Site) -> Result<()> {
    let held = Held::by(site, "last").await?;
    let operator = format!("-n {NAMESPACE} scale deployment opensandbox-operator");
    site.kubectl(&format!("{operator} --replicas=0")).await?;
    site.gone(&format!(
        "pods -n {NAMESPACE} -l app.kubernetes.io/name=opensandbox-operator"
    ))
    .await?;
    site.kubectl("delete batchsandbox last --wait=false")
        .await?;
    let left = site.object("batchsandbox last").await?;
    ensure!(!left["metadata"]["finalizers"].is_null(), "{left}");
    site.kubectl(&format!("delete pod {}", held.pod)).await?;
    site.kubectl(&format!(
        "patch batchsandbox last --type=merge -p {FINALIZERS}"
    ))
    .await?;
    site.gone("batchsandbox last").await?;
    site.kubectl(&format!("{operator} --replicas=2")).await?;
    site.until("a pool without sandboxes", "pool third", |pool| {
        pool["status"]["allocated"] == 0 && pool["status"]["available"] == 1
    })
    .await?;
    Ok(())
}
