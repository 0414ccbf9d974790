//! Pods of the seed's recipe on a [`Node`], and what tests ask of them: what they print, what runs in
//! them, and what happens when something is killed.
//!
//! A recipe is a sandbox container and, beside it, the task executor with `SYS_PTRACE`, in one process
//! namespace. It is made into JSON, so a test can change whatever it likes before it is applied.

mod processes;
mod recipe;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod as PodObject};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

pub use self::processes::{processes_of, threads_of};
pub use self::recipe::Recipe;

use crate::cluster::TestNamespace;
use crate::wait::{self, Probe};
use crate::{Node, images};

/// Name of the container that users bring.
pub const SANDBOX: &str = "sandbox-container";
/// Name of the sidecar.
pub const EXECUTOR: &str = "task-executor";
/// The executor finds the sandbox by this variable in its environment.
pub const MARKER: &str = "SANDBOX_MAIN_CONTAINER";
/// Annotation that [`Pod::crash`] counts in.
const TOUCHES: &str = "opensandbox.local/touches";
/// An image is there, so a pod starts within this, or something is wrong.
const START_BOUND: Duration = Duration::from_mins(1);
/// A pod that is deleted is gone within this.
const END_BOUND: Duration = Duration::from_mins(1);

/// What a command in a container did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error; kubectl adds a line when the code is not 0.
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
}

/// A pod that a test made. It is deleted by [`Pod::delete`], else it ends with the node.
#[derive(Clone, Debug)]
pub struct Pod<'a> {
    node: &'a Node,
    namespace: TestNamespace,
    name: String,
}

impl<'a> Pod<'a> {
    /// Makes a pod of a recipe, imports the images it needs, and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready; the error holds its status and events.
    pub async fn start(
        node: &'a Node,
        namespace: &TestNamespace,
        name: &str,
        recipe: &Recipe,
    ) -> Result<Self> {
        node.import_known(&recipe.image).await?;
        if recipe.executor_args.is_some() {
            node.import_known(images::EXECUTOR).await?;
        }
        let pod = Self::create(node, namespace, recipe.manifest(name)).await?;
        pod.wait_ready().await?;
        Ok(pod)
    }

    /// Makes a pod of a manifest, whose images the node has, and does not wait for it.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn create(
        node: &'a Node,
        namespace: &TestNamespace,
        manifest: Value,
    ) -> Result<Self> {
        let object: PodObject = serde_json::from_value(manifest).context("a manifest of a pod")?;
        let api = namespace.api::<PodObject>();
        let created = api.create(&PostParams::default(), &object).await;
        let name = created.context("create a pod")?.metadata.name;
        Ok(Self {
            node,
            namespace: namespace.clone(),
            name: name.context("a created pod has a name")?,
        })
    }

    /// A pod that somebody else made, such as the operator.
    pub fn existing(node: &'a Node, namespace: &TestNamespace, name: impl Into<String>) -> Self {
        Self {
            node,
            namespace: namespace.clone(),
            name: name.into(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It, as it is now.
    ///
    /// # Errors
    /// It is gone.
    pub async fn object(&self) -> Result<PodObject> {
        Ok(self.api().get(&self.name).await?)
    }

    /// Waits until all its containers are ready.
    ///
    /// # Errors
    /// They are not in time, or the pod ended; the error holds its status and events.
    pub async fn wait_ready(&self) -> Result<()> {
        let what = format!("pod {} to be ready", self.name);
        let ready = wait::until(&what, START_BOUND, async || {
            readiness(&self.object().await?)
        });
        match ready.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// Waits until a state is reached.
    ///
    /// # Errors
    /// It is not in time; the error holds status and events.
    pub async fn wait_for(
        &self,
        what: &str,
        bound: Duration,
        reached: impl Fn(&PodObject) -> bool,
    ) -> Result<PodObject> {
        let what = format!("{what} of pod {}", self.name);
        let object = wait::until(&what, bound, async || {
            let object = self.object().await?;
            Ok(if reached(&object) {
                Probe::Done(object)
            } else {
                Probe::not_yet("not yet")
            })
        });
        match object.await {
            Ok(object) => Ok(object),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// Its address, which is reached from the test too.
    ///
    /// # Errors
    /// It has none yet.
    pub async fn address(&self) -> Result<std::net::IpAddr> {
        let object = self.object().await?;
        let address = object.status.and_then(|status| status.pod_ip);
        let address = address.with_context(|| format!("pod {} has no address", self.name))?;
        Ok(address.parse()?)
    }

    /// The UID the API server gave it.
    ///
    /// # Errors
    /// It is gone.
    pub async fn uid(&self) -> Result<String> {
        let uid = self.object().await?.metadata.uid;
        uid.context("a pod has a UID")
    }

    /// What the kubelet reports of a container.
    ///
    /// # Errors
    /// There is no such container, or nothing is reported yet.
    pub async fn status(&self, container: &str) -> Result<ContainerStatus> {
        let object = self.object().await?;
        let statuses = object.status.and_then(|status| status.container_statuses);
        statuses
            .unwrap_or_default()
            .into_iter()
            .find(|status| status.name == container)
            .with_context(|| format!("pod {} has no container {container}", self.name))
    }

    /// A container's ID as in `status.containerStatuses[].containerID`, without `containerd://`.
    ///
    /// # Errors
    /// It has none yet.
    pub async fn container_id(&self, container: &str) -> Result<String> {
        let id = self.status(container).await?.container_id;
        let id = id.with_context(|| format!("{container} has no ID yet"))?;
        let (_, id) = id.split_once("://").context("an ID names its runtime")?;
        Ok(id.to_owned())
    }

    /// Runs a command in a container, as `kubectl exec`.
    ///
    /// # Errors
    /// kubectl cannot be started. A command that fails is no error.
    pub async fn exec(&self, container: &str, argv: &[&str]) -> Result<Output> {
        let mut command = self.kubectl();
        command.args(["exec", &self.name, "-c", container, "--"]);
        let output = command.args(argv).output().await?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }

    /// What a command in a container printed.
    ///
    /// # Errors
    /// It did not end with 0.
    pub async fn exec_ok(&self, container: &str, argv: &[&str]) -> Result<String> {
        let output = self.exec(container, argv).await?;
        if output.code == 0 {
            return Ok(output.stdout);
        }
        let (program, Output { code, stderr, .. }) = (argv.first().unwrap_or(&""), output);
        bail!("{program} in {container} ended with {code}: {stderr}")
    }

    /// What a container printed, as `kubectl logs`.
    ///
    /// # Errors
    /// The kubelet has no log of it.
    pub async fn logs(&self, container: &str) -> Result<String> {
        self.logs_with(container, &[]).await
    }

    /// [`Self::logs`] with further arguments, such as `--previous`.
    ///
    /// # Errors
    /// The kubelet has no such log.
    pub async fn logs_with(&self, container: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.kubectl();
        command.args(["logs", &self.name, "-c", container]);
        let output = command.args(arguments).output().await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("kubectl logs {} {container}: {stderr}", self.name)
    }

    /// Process ids, as this machine sees them, of all that runs in a container, by its control group.
    ///
    /// # Errors
    /// The container has no ID yet.
    pub async fn host_pids(&self, container: &str) -> Result<Vec<i32>> {
        Ok(processes_of(&self.container_id(container).await?))
    }

    /// Process id, as this machine sees it, of a container's first process.
    ///
    /// # Errors
    /// It does not run.
    pub async fn main_pid(&self, container: &str) -> Result<i32> {
        let id = self.container_id(container).await?;
        processes::first_of(&id).with_context(|| format!("{container} does not run"))
    }

    /// Kills a container's first process from outside, as a crash would, and waits until the kubelet
    /// has started the container again and all of the pod is ready.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn crash(&self, container: &str) -> Result<()> {
        let before = self.status(container).await?;
        let pid = self.main_pid(container).await?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        )?;
        let what = format!("the restart of {container} in pod {}", self.name);
        let mut poked = Instant::now();
        let restarted = wait::until(&what, START_BOUND, async || {
            let status = self.status(container).await?;
            if status.restart_count > before.restart_count
                && status.container_id != before.container_id
            {
                return Ok(Probe::Done(()));
            }
            // The time it backs off for is a second, but it looks again after ten, or when the pod
            // changes.
            if poked.elapsed() > Duration::from_secs(1) {
                poked = Instant::now();
                self.touch().await?;
            }
            Ok(Probe::not_yet(format!(
                "restarts: {}",
                status.restart_count
            )))
        });
        if let Err(error) = restarted.await {
            return Err(error.context(self.describe().await));
        }
        self.wait_ready().await
    }

    /// Changes something about it that means nothing.
    async fn touch(&self) -> Result<()> {
        let object = self.object().await?;
        let annotations = object.metadata.annotations.unwrap_or_default();
        let touches = annotations
            .get(TOUCHES)
            .and_then(|count| count.parse::<u32>().ok());
        let count = (touches.unwrap_or_default() + 1).to_string();
        let patch = Patch::Merge(json!({"metadata": {"annotations": {TOUCHES: count}}}));
        self.api()
            .patch(&self.name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Deletes it and waits until it is gone.
    ///
    /// # Errors
    /// It stays.
    pub async fn delete(self) -> Result<()> {
        self.api()
            .delete(&self.name, &DeleteParams::default())
            .await?;
        let what = format!("pod {} to be gone", self.name);
        wait::until(&what, END_BOUND, async || {
            Ok(match self.api().get_opt(&self.name).await? {
                Some(object) => Probe::not_yet(format!("{:?}", phase(&object))),
                None => Probe::Done(()),
            })
        })
        .await
    }

    /// Status and events, for errors. Environments are not in it.
    pub async fn describe(&self) -> String {
        let statuses = match self.object().await {
            Ok(object) => object
                .status
                .map(|status| json!({"phase": status.phase, "containers": status.container_statuses}))
                .unwrap_or_default(),
            Err(error) => json!(error.to_string()),
        };
        let events = self.namespace.api::<Event>();
        let parameters =
            ListParams::default().fields(&format!("involvedObject.name={}", self.name));
        let events = match events.list(&parameters).await {
            Ok(events) => {
                let events = events.into_iter().map(|event| {
                    let reason = event.reason.unwrap_or_default();
                    format!("  {reason}: {}", event.message.unwrap_or_default())
                });
                events.collect::<Vec<_>>().join("\n")
            }
            Err(error) => error.to_string(),
        };
        format!("pod {}: {statuses:#}\nevents:\n{events}", self.name)
    }

    fn api(&self) -> Api<PodObject> {
        self.namespace.api()
    }

    fn kubectl(&self) -> tokio::process::Command {
        let cluster = self.node.cluster();
        let mut command = cluster.kubectl_command(cluster.kubeconfig());
        command.args(["--namespace", &self.namespace.name]);
        command
    }
}

fn phase(object: &PodObject) -> Option<&str> {
    object.status.as_ref()?.phase.as_deref()
}

fn readiness(object: &PodObject) -> Result<Probe<()>> {
    let phase = phase(object).unwrap_or("Pending");
    if phase == "Failed" || phase == "Succeeded" {
        bail!("the pod ended: {phase}");
    }
    if let Some((container, reason)) = hopeless(object) {
        bail!("container {container} does not start: {reason}");
    }
    let conditions = object
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let ready = conditions
        .unwrap_or_default()
        .iter()
        .find(|condition| condition.type_ == "Ready");
    Ok(match ready {
        Some(ready) if ready.status == "True" => Probe::Done(()),
        Some(ready) => Probe::not_yet(format!(
            "{phase}: {}",
            ready.message.as_deref().unwrap_or_default()
        )),
        None => Probe::not_yet(phase),
    })
}

/// A container that nothing but a change of the pod makes ready, and why.
fn hopeless(object: &PodObject) -> Option<(&str, &str)> {
    let final_reasons = [
        "CreateContainerConfigError",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    ];
    let never = object.spec.as_ref()?.restart_policy.as_deref() == Some("Never");
    let statuses = object.status.as_ref()?.container_statuses.as_deref()?;
    statuses.iter().find_map(|status| {
        let state = status.state.as_ref()?;
        let waiting = state
            .waiting
            .as_ref()
            .and_then(|state| state.reason.as_deref());
        let ended = state.terminated.as_ref().filter(|_| never);
        let ended = ended.map(|state| state.reason.as_deref().unwrap_or("it ended"));
        let reason = waiting
            .filter(|reason| final_reasons.contains(reason))
            .or(ended)?;
        Some((status.name.as_str(), reason))
    })
}
