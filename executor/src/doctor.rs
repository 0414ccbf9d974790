//! What this pod allows, and why: `task-executor doctor`, and the same for `/readyz` and metrics.

mod text;
mod ways;

use std::io::Write as _;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use serde::Serialize;

use crate::config::{AuthSetting, Config};
use crate::inject::{self, Precondition, Verdict};
use crate::launch::{Place, mode};
use crate::pod::proc::Proc;
use crate::pod::status::{Status, capability};
use crate::pod::target::{Choice, choose};
use crate::pod::{Container, Pod};

/// How `doctor` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object: [`Report`].
    Json,
}

/// What this pod allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether a way into the sandbox container that the settings allow is open.
    pub works: bool,
    /// What keeps all ways closed.
    pub problem: Option<String>,
    /// UID of the pod.
    pub pod_uid: Option<String>,
    /// The UID that mounts or cgroups tell, where it is another: orders will be refused.
    pub other_pod_uid_seen: Option<String>,
    /// This process.
    pub executor: Executor,
    /// Whether processes of other containers can be seen.
    pub pid_namespace_shared: bool,
    /// The other containers.
    pub containers: Vec<Seen>,
    /// Where tasks belong, and why.
    pub place: Option<String>,
    /// The container that tasks run in, and why.
    pub target: Option<String>,
    /// The kernel's settings.
    pub kernel: Kernel,
    /// Ways into the sandbox container.
    pub modes: Vec<Way>,
    /// Who may give orders.
    pub authentication: String,
}

/// The executor's own rights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Executor {
    /// Process.
    pub pid: i32,
    /// Name of its container.
    pub container_name: Option<String>,
    /// ID of its container.
    pub container_id: Option<String>,
    /// Effective user.
    pub uid: Option<u32>,
    /// Names of the effective capabilities.
    pub effective_capabilities: Vec<String>,
    /// Names of those in the bounding set.
    pub bounding_capabilities: Vec<String>,
    /// `disabled`, `strict` or `filter`.
    pub seccomp: Option<String>,
    /// `no_new_privs`.
    pub no_new_privs: bool,
}

/// Another container of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// ID.
    pub id: String,
    /// Name, if it can be read.
    pub name: Option<String>,
    /// Main process, if it runs.
    pub pid: Option<i32>,
    /// Its effective user.
    pub uid: Option<u32>,
    /// Number of processes.
    pub processes: usize,
    /// Whether tasks run in it.
    pub chosen: bool,
}

/// The kernel's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// `kernel.yama.ptrace_scope`; absent without Yama.
    pub yama_ptrace_scope: Option<String>,
    /// `vm.memfd_noexec`; absent before 6.3.
    pub memfd_noexec: Option<String>,
    /// `v1`, `v2` or `hybrid`.
    pub cgroup: Option<String>,
}

/// A way into the sandbox container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// As `--mode` has it.
    pub mode: &'static str,
    /// The settings allow it.
    pub allowed: bool,
    /// Everything it needs is there, as far as can be said without trying.
    pub possible: bool,
    /// What is missing, each with its remedy.
    pub needs: Vec<String>,
}

impl Way {
    fn require(&mut self, needs: Vec<String>) {
        self.possible &= needs.is_empty();
        self.needs.extend(needs);
    }
}

/// Prints the report. The exit code is 0 where some way works.
pub fn main(config: &Config, output: Output) -> ExitCode {
    let report = report(config);
    let text = match output {
        Output::Text => report.to_string(),
        Output::Json => {
            serde_json::to_string_pretty(&report).unwrap_or_else(|error| error.to_string())
        }
    };
    // Whoever closed standard output does not want the text, but perhaps the code.
    let _printed = writeln!(std::io::stdout(), "{}", text.trim_end());
    if report.works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Looks around, and touches nothing.
pub fn report(config: &Config) -> Report {
    examine(&Proc::default(), config, unfit)
}

/// What else, of the process itself, makes an injection fail.
fn unfit(pid: i32) -> Vec<String> {
    inject::check(pid)
        .into_iter()
        .filter(|finding| {
            let only_seen_there = matches!(
                finding.precondition,
                Precondition::Architecture | Precondition::Seccomp
            );
            only_seen_there && finding.verdict == Verdict::Fails
        })
        .map(|finding| format!("{}: use --mode=chroot", finding.detail))
        .collect()
}

fn examine(proc: &Proc, config: &Config, unfit: fn(i32) -> Vec<String>) -> Report {
    let mut report = Report {
        authentication: authentication(config),
        ..Report::default()
    };
    let pod = match Pod::read(proc, config.pod_uid.as_deref()) {
        Ok(pod) => pod,
        Err(error) => {
            report.problem = Some(format!(
                "{error}; the executor's container needs its own /proc"
            ));
            return report;
        }
    };
    let own = proc.status(pod.own.pid);
    report.pod_uid.clone_from(&pod.uid);
    report.other_pod_uid_seen = pod
        .seen_uid
        .clone()
        .filter(|seen| Some(seen) != pod.uid.as_ref());
    report.executor = executor(&pod, own.as_ref());
    report.pid_namespace_shared = pod.shared_pid_namespace;
    report.kernel = kernel(proc, pod.own.pid);

    let decision = mode(config, &pod);
    let choice = choose(&pod, config.main_container_name.as_deref(), None);
    report.place = decision.as_ref().ok().map(|decision| {
        let place = match decision.place {
            Place::Sidecar => "another container",
            Place::InContainer => "this container",
        };
        format!("{place}: {}", decision.reason)
    });
    let here = decision
        .as_ref()
        .is_ok_and(|decision| decision.place == Place::InContainer);
    let target = choice.as_ref().ok().filter(|_| !here);
    report.containers = pod.containers.iter().map(|c| seen(c, target)).collect();
    report.target = target.map(|choice| {
        let name = choice.container.name.as_deref().unwrap_or("(name unknown)");
        format!("{name} {}: {}", choice.container.id, choice.reason)
    });
    let main = target.map(|choice| choice.main);
    let no_target = match (&decision, &choice) {
        (Err(error), _) => Some(error.to_string()),
        (Ok(_), Err(error)) => Some(error.to_string()),
        _ => None,
    };
    report.modes = ways::ways(
        proc,
        config.mode,
        own.as_ref(),
        here,
        main,
        no_target.as_ref(),
        &report.kernel,
    );
    if let (Some(main), Some(injection)) = (main, report.modes.first_mut()) {
        injection.require(unfit(main.pid));
    }
    report.works = decision.is_ok() && report.modes.iter().any(|way| way.allowed && way.possible);
    if !report.works {
        report.problem = no_target
            .filter(|_| !here)
            .or_else(|| Some("no way that the settings allow is open".to_owned()));
    }
    report
}

fn executor(pod: &Pod, own: Option<&Status>) -> Executor {
    Executor {
        pid: pod.own.pid,
        container_name: pod.own.name.clone(),
        container_id: pod.own.container_id.clone(),
        uid: own.map(|status| status.uids.effective),
        effective_capabilities: own
            .map_or_else(Vec::new, |s| capability::names(s.capabilities.effective)),
        bounding_capabilities: own
            .map_or_else(Vec::new, |s| capability::names(s.capabilities.bounding)),
        seccomp: own.map(|status| match status.seccomp {
            0 => "disabled".to_owned(),
            1 => "strict".to_owned(),
            2 => "filter".to_owned(),
            other => other.to_string(),
        }),
        no_new_privs: own.is_some_and(|status| status.no_new_privs),
    }
}

fn seen(container: &Container, target: Option<&Choice<'_>>) -> Seen {
    Seen {
        id: container.id.clone(),
        name: container.name.clone(),
        pid: container.main.as_ref().map(|main| main.pid),
        uid: container.main.as_ref().and_then(|main| main.uid),
        processes: container.processes.len(),
        chosen: target.is_some_and(|choice| choice.container.id == container.id),
    }
}

fn kernel(proc: &Proc, own_pid: i32) -> Kernel {
    let cgroup = proc.cgroup(own_pid).map(|text| {
        let unified = text.lines().any(|line| line.starts_with("0::"));
        let others = text.lines().any(|line| !line.starts_with("0::"));
        match (unified, others) {
            (true, true) => "hybrid",
            (true, false) => "v2",
            (false, _) => "v1",
        }
        .to_owned()
    });
    Kernel {
        yama_ptrace_scope: proc.tunable("sys/kernel/yama/ptrace_scope"),
        memfd_noexec: proc.tunable("sys/vm/memfd_noexec"),
        cgroup,
    }
}

fn authentication(config: &Config) -> String {
    let key = config
        .verification_key
        .as_deref()
        .map(str::trim)
        .filter(|key| !key.is_empty());
    match (config.auth, key) {
        (AuthSetting::None, _) => {
            "none: whoever reaches the port gives orders, the sandbox included".to_owned()
        }
        (AuthSetting::Signed, None) => {
            "signed, but no key is configured, so every order is refused: set TASK_EXECUTOR_VERIFICATION_KEY"
                .to_owned()
        }
        (AuthSetting::Signed, Some(key)) => match STANDARD.decode(key) {
            Ok(bytes) if bytes.len() == 32 => "signed by the operator".to_owned(),
            _ => "signed, but the configured key is not 32 bytes in base64, so every order is refused: correct TASK_EXECUTOR_VERIFICATION_KEY"
                .to_owned(),
        },
    }
}

#[cfg(test)]
mod tests;
