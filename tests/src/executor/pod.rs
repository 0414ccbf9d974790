//! A pod whose executor is asked to run tasks.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod as PodObject;
use opensandbox_api::task::{Outcome, State, Task, Terminated};
use opensandbox_api::token::SigningKey;

use super::{Client, Signer, Stream, host, task};
use crate::Node;
use crate::cluster::TestNamespace;
use crate::pods::{EXECUTOR, Pod, Recipe, SANDBOX};
use crate::wait::{self, Probe};

/// An executor is ready within this, on a busy machine too.
const READY_BOUND: Duration = Duration::from_mins(1);
/// A task that does little has ended within this.
const TASK_BOUND: Duration = Duration::from_mins(1);

/// A pod, and a client of its executor. It is a [`Pod`], too.
#[derive(Debug)]
pub struct ExecutorPod<'a> {
    pod: Pod<'a>,
    client: Client,
}

impl<'a> Deref for ExecutorPod<'a> {
    type Target = Pod<'a>;

    fn deref(&self) -> &Pod<'a> {
        &self.pod
    }
}

impl<'a> ExecutorPod<'a> {
    /// Starts a pod and waits until its executor can run tasks. Requests are not signed.
    ///
    /// # Errors
    /// It does not become ready; the error holds what the executor said.
    pub async fn start(
        node: &'a Node,
        namespace: &TestNamespace,
        name: &str,
        recipe: &Recipe,
    ) -> Result<Self> {
        let pod = Self::start_unready(node, namespace, name, recipe).await?;
        pod.wait_executor().await?;
        Ok(pod)
    }

    /// The same, and does not wait for the executor: it may have good reasons.
    ///
    /// # Errors
    /// The containers do not start.
    pub async fn start_unready(
        node: &'a Node,
        namespace: &TestNamespace,
        name: &str,
        recipe: &Recipe,
    ) -> Result<Self> {
        Self::of(Pod::start(node, namespace, name, recipe).await?).await
    }

    /// Of a pod that runs already.
    ///
    /// # Errors
    /// It has no address.
    pub async fn of(pod: Pod<'a>) -> Result<Self> {
        let client = Client::new(pod.address().await?);
        Ok(Self { pod, client })
    }

    /// The same, and requests are signed with this key for this pod.
    ///
    /// # Errors
    /// The pod is gone.
    pub async fn signed(mut self, key: Arc<SigningKey>) -> Result<Self> {
        let signer = Signer::new(key, self.pod.uid().await?);
        self.client = self.client.signed(signer);
        Ok(self)
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until the executor can run tasks.
    ///
    /// # Errors
    /// It cannot in time; the error holds the end of its log.
    pub async fn wait_executor(&self) -> Result<()> {
        let ready = self.client.wait_ready(READY_BOUND).await;
        match ready {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.executor_log_tail().await)),
        }
    }

    /// Kills the executor with SIGKILL, waits until the kubelet has started it again and until it can
    /// run tasks.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn crash_executor(&self) -> Result<()> {
        self.pod.crash(EXECUTOR).await?;
        self.wait_executor().await
    }

    /// Kills the executor with SIGKILL, does something while it is away, and waits as
    /// [`Self::crash_executor`] does.
    ///
    /// # Errors
    /// It does not come back, came back before it was all done, or what was done failed.
    pub async fn while_executor_is_away(
        &self,
        act: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = self.status(EXECUTOR).await?;
        let old = self.main_pid(EXECUTOR).await?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::SIGKILL)?;
        act().await?;
        let came_back = self.main_pid(EXECUTOR).await.is_ok_and(|pid| pid != old);
        anyhow::ensure!(!came_back, "the executor was back too early for this test");
        let restarted = |object: &PodObject| {
            let statuses = object
                .status
                .as_ref()
                .and_then(|status| status.container_statuses.as_ref());
            statuses.into_iter().flatten().any(|status| {
                status.name == EXECUTOR && status.restart_count > before.restart_count
            })
        };
        self.wait_for("the executor's restart", READY_BOUND, restarted)
            .await?;
        self.wait_executor().await
    }

    /// Runs a task to its end, and forgets it.
    ///
    /// # Errors
    /// The executor refused it, or it does not end. A task that fails is no error.
    pub async fn run(&self, name: &str, argv: &[&str]) -> Result<Finished> {
        self.run_task(&task(name, argv)).await
    }

    /// [`Self::run`] of any task.
    ///
    /// # Errors
    /// Likewise.
    pub async fn run_task(&self, task: &Task) -> Result<Finished> {
        let name = &task.name;
        let finished = async {
            self.client.create(task).await?;
            let task = self.client.wait_ended(name, TASK_BOUND).await?;
            let stdout = self.client.output(name, Stream::Stdout).await?;
            let stderr = self.client.output(name, Stream::Stderr).await?;
            self.client.delete_and_wait(name, TASK_BOUND).await?;
            Ok::<_, anyhow::Error>(Finished {
                task,
                stdout,
                stderr,
            })
        };
        match finished.await {
            Ok(finished) => Ok(finished),
            Err(error) => Err(error.context(self.executor_log_tail().await)),
        }
    }

    /// What a task printed.
    ///
    /// # Errors
    /// It did not end with 0, or left a word on standard error.
    pub async fn run_ok(&self, name: &str, argv: &[&str]) -> Result<String> {
        let finished = self.run(name, argv).await?;
        let (stdout, stderr) = (finished.stdout_text(), finished.stderr_text());
        let good = finished.task.state() == State::Succeeded && stderr.is_empty();
        anyhow::ensure!(
            good,
            "{name}: {:?}: {stdout}{stderr}",
            finished.task.outcome
        );
        Ok(stdout)
    }

    /// Deletes the pod and waits until it is gone.
    ///
    /// # Errors
    /// It stays.
    pub async fn delete(self) -> Result<()> {
        self.pod.delete().await
    }

    /// The agent in the sandbox container, which is the parent of what watches over tasks.
    ///
    /// # Errors
    /// There is none.
    pub async fn agent(&self) -> Result<i32> {
        let processes = self.host_pids(SANDBOX).await?;
        let agents: Vec<_> = processes
            .into_iter()
            .filter(|pid| host::is_agent(*pid))
            .collect();
        let is_first =
            |pid: &&i32| host::stat(**pid).is_some_and(|stat| !agents.contains(&stat.parent));
        let first = agents.iter().find(is_first).copied();
        first.context("there is no agent in the sandbox container")
    }

    /// Kills the agent from outside, and waits until there is another and tasks can run.
    ///
    /// # Errors
    /// There is none in time.
    pub async fn crash_agent(&self) -> Result<()> {
        let old = self.agent().await?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::SIGKILL)?;
        wait::until("another agent", READY_BOUND, async || {
            Ok(match self.agent().await {
                Ok(agent) if agent != old => Probe::Done(()),
                Ok(_) => Probe::not_yet("the old one is there"),
                Err(error) => Probe::not_yet(error),
            })
        })
        .await?;
        self.wait_executor().await
    }

    /// A file in the sandbox, as a path on this machine.
    ///
    /// # Errors
    /// The sandbox container does not run.
    pub async fn file(&self, path: &str) -> Result<PathBuf> {
        Ok(host::file_of(self.main_pid(SANDBOX).await?, path))
    }

    /// Processes of the pod that have ended and were not waited for.
    ///
    /// # Errors
    /// The sandbox container does not run.
    pub async fn zombies(&self) -> Result<Vec<i32>> {
        Ok(host::zombies_beside(self.main_pid(SANDBOX).await?))
    }

    /// Processes of the pod with an argument that contains this.
    ///
    /// # Errors
    /// The sandbox container does not run.
    pub async fn processes_with(&self, marker: &str) -> Result<Vec<i32>> {
        Ok(host::beside_with_argument(
            self.main_pid(SANDBOX).await?,
            marker,
        ))
    }

    /// The last lines the executor printed, for errors.
    pub async fn executor_log_tail(&self) -> String {
        let log = self.pod.logs_with(EXECUTOR, &["--tail=30"]).await;
        let log = log.unwrap_or_else(|error| format!("{error:#}"));
        format!("log of the executor ends with:\n{log}")
    }
}

/// A task that has ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The task as it was reported last.
    pub task: Task,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// How it ended.
    ///
    /// # Errors
    /// The executor did not say.
    pub fn outcome(&self) -> Result<&Outcome> {
        let outcome = self.task.outcome.as_ref();
        outcome.with_context(|| format!("task {} has no outcome", self.task.name))
    }

    /// How it ended, in upstream's fields.
    ///
    /// # Errors
    /// The executor did not say.
    pub fn terminated(&self) -> Result<&Terminated> {
        let status = self.task.process_status.as_ref();
        let terminated = status.and_then(|status| status.terminated.as_ref());
        terminated.with_context(|| format!("task {} has not ended", self.task.name))
    }
}
