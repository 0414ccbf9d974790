//! A model of the executors, one per pod UID, and the truth about every task that ever ran.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::task::{End, LossReason, Outcome, Process, ProcessStatus, Task};
use opensandbox_operator::session::Seen;

/// All executors.
#[derive(Debug, Default)]
pub(crate) struct Executors {
    /// By UID of the pod.
    pub(crate) pods: BTreeMap<String, Executor>,
    /// By identity of the task.
    pub(crate) truth: BTreeMap<String, Truth>,
}

/// One executor.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) pod: String,
    pub(crate) ip: String,
    pub(crate) reachable: bool,
    pub(crate) runs: Vec<Run>,
}

/// A task on an executor.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) task: Task,
    pub(crate) state: RunState,
    pub(crate) started: Option<Timestamp>,
    pub(crate) stopping: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum RunState {
    Waiting,
    Running,
    Ended(Outcome, Timestamp),
}

/// What really happened to a task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    /// UIDs of the pods in which it was started, one entry per start.
    pub(crate) starts: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) outcome: Option<Outcome>,
}

/// What an executor is told.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Run(Box<Task>),
    Clear,
}

/// What has to happen later: to which task, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Start,
    End,
    Stopped,
}

impl Executors {
    pub(crate) fn at(&self, ip: &str) -> Option<(&String, &Executor)> {
        self.pods.iter().find(|(_, executor)| executor.ip == ip)
    }

    /// Carries a request out. Says which steps follow, of which tasks.
    pub(crate) fn accept(&mut self, pod_uid: &str, request: &Request) -> Vec<(String, Step)> {
        let Some(executor) = self.pods.get_mut(pod_uid) else {
            return Vec::new();
        };
        let wanted = match request {
            Request::Run(task) => task.uid.clone(),
            Request::Clear => None,
        };
        let mut steps = Vec::new();
        executor.runs.retain_mut(|run| {
            if run.task.uid == wanted && wanted.is_some() {
                return true;
            }
            if !matches!(run.state, RunState::Running) {
                return false;
            }
            if !run.stopping {
                run.stopping = true;
                steps.push((uid_of(&run.task), Step::Stopped));
            }
            true
        });
        if let Request::Run(task) = request
            && executor.runs.iter().all(|run| run.task.uid != task.uid)
        {
            steps.push((uid_of(task), Step::Start));
            executor.runs.push(Run {
                task: (**task).clone(),
                state: RunState::Waiting,
                started: None,
                stopping: false,
            });
        }
        steps
    }

    /// Something happens to a task. Says after how many milliseconds it ends, if it just started.
    pub(crate) fn step(
        &mut self,
        pod_uid: &str,
        task_uid: &str,
        step: Step,
        now: Timestamp,
    ) -> Option<i64> {
        let executor = self.pods.get_mut(pod_uid)?;
        let index = executor
            .runs
            .iter()
            .position(|run| uid_of(&run.task) == task_uid)?;
        match step {
            Step::Start => {
                let run = &mut executor.runs[index];
                if !matches!(run.state, RunState::Waiting) {
                    return None;
                }
                run.state = RunState::Running;
                run.started = Some(now);
                let command: Vec<String> = argv(&run.task);
                let (millis, _) = plan(&command);
                let truth = self.truth.entry(task_uid.to_owned()).or_default();
                truth.starts.push(pod_uid.to_owned());
                truth.command = command;
                Some(millis)
            }
            Step::End => {
                let run = &mut executor.runs[index];
                if matches!(run.state, RunState::Running) && !run.stopping {
                    let (_, code) = plan(&argv(&run.task));
                    end(run, &mut self.truth, End::Exited { code }, now);
                }
                None
            }
            Step::Stopped => {
                if executor.runs[index].stopping {
                    executor.runs.remove(index);
                }
                None
            }
        }
    }

    /// The containers of a pod restarted: what ran is lost.
    pub(crate) fn restart(&mut self, pod_uid: &str, now: Timestamp) {
        let Some(executor) = self.pods.get_mut(pod_uid) else {
            return;
        };
        executor.runs.retain(|run| !run.stopping);
        for run in &mut executor.runs {
            if !matches!(run.state, RunState::Ended(..)) {
                let lost = End::Lost {
                    reason: LossReason::SandboxRestarted,
                    message: "the sandbox container restarted".to_owned(),
                };
                end(run, &mut self.truth, lost, now);
            }
        }
    }

    /// Its list, as its API shows it.
    pub(crate) fn seen(&self, pod_uid: &str) -> Vec<Seen> {
        let runs = self
            .pods
            .get(pod_uid)
            .map(|executor| executor.runs.as_slice());
        runs.unwrap_or_default().iter().map(seen).collect()
    }
}

fn end(run: &mut Run, truth: &mut BTreeMap<String, Truth>, end: End, now: Timestamp) {
    let outcome = Outcome::of(end);
    truth.entry(uid_of(&run.task)).or_default().outcome = Some(outcome.clone());
    run.state = RunState::Ended(outcome, now);
}

fn seen(run: &Run) -> Seen {
    let mut task = run.task.clone();
    // Sessions cut it off: it may hold secrets, and nobody asks for it.
    task.process = None;
    let started = run.started.map(|time| time.to_string());
    match &run.state {
        RunState::Waiting => task.process_status = Some(ProcessStatus::waiting("Pending", "")),
        RunState::Running => {
            task.process_status = Some(ProcessStatus::running(started.unwrap_or_default()));
        }
        RunState::Ended(outcome, at) => {
            let terminated = outcome.terminated(started, Some(at.to_string()));
            task.process_status = Some(ProcessStatus::terminated(terminated));
            task.outcome = Some(outcome.clone());
        }
    }
    if run.stopping {
        task.deletion_timestamp = run.started.map(|time| time.to_string());
    }
    Seen {
        task,
        stderr_tail: None,
    }
}

/// The identity that a task was ordered with; its name where it has none.
pub(crate) fn uid_of(task: &Task) -> String {
    task.uid.clone().unwrap_or_else(|| task.name.clone())
}

fn argv(task: &Task) -> Vec<String> {
    let process = task.process.as_ref();
    process
        .into_iter()
        .flat_map(Process::argv)
        .map(str::to_owned)
        .collect()
}

/// Commands here are `run MILLISECONDS CODE`.
fn plan(argv: &[String]) -> (i64, i32) {
    let millis = argv.get(1).and_then(|text| text.parse().ok());
    let code = argv.get(2).and_then(|text| text.parse().ok());
    (millis.unwrap_or(0), code.unwrap_or(127))
}
