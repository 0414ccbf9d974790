//! The program's arguments.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use opensandbox_api::labels;
use opensandbox_api::sidecar::{InjectionDefault, image_problem};
use opensandbox_program::duration;

use super::watch::Scope;
use crate::{keys, lease};

/// Arguments of the operator. Durations are written `15s`, `1m`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Namespace of the installation: its Lease, its key, its ConfigMaps.
    #[arg(long, env = "POD_NAMESPACE", default_value = "opensandbox-system")]
    pub namespace: String,
    /// Namespaces whose Pools and BatchSandboxes are looked after, separated by commas; absent means all.
    #[arg(
        long,
        env = "WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMES"
    )]
    pub namespaces: Vec<String>,
    /// Address of the plain port with /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub metrics_bind_address: SocketAddr,
    /// Whether replicas elect a leader. Without an election there must be one replica only.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: bool,
    /// Lease of the election. The default is upstream's, so that its operator and this one never lead at
    /// once.
    #[arg(long, default_value = lease::DEFAULT_NAME)]
    pub lease_name: String,
    /// How long the Lease is valid after each renewal.
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub lease_duration: Duration,
    /// How long after its last renewal a leader writes.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub renew_deadline: Duration,
    /// Between two renewals, and between two tries to take the Lease.
    #[arg(long, value_parser = duration, default_value = "2s")]
    pub retry_period: Duration,
    /// Whose executors run in the sandboxes: ours, which ask for signed orders, or upstream's.
    #[arg(long, value_enum, default_value_t = ExecutorProtocol::Signed)]
    pub executor_protocol: ExecutorProtocol,
    /// Secret with the key that orders to executors are signed with; made if there is none.
    #[arg(long, env = "KEY_SECRET_NAME", default_value = keys::SECRET)]
    pub key_secret_name: String,
    /// Whether pods get the executor where neither their Pool nor its namespace says. As the webhook has
    /// it.
    #[arg(long, value_enum, env = "INJECTION_DEFAULT", default_value_t = Switch::Enabled)]
    pub injection_default: Switch,
    /// Image of the executor where no ConfigMap names one. As the webhook has it.
    #[arg(long, env = "TASK_EXECUTOR_IMAGE", default_value = labels::DEFAULT_TASK_EXECUTOR_IMAGE)]
    pub task_executor_image: String,
    /// Name of this replica in the Lease and in events; absent means the machine's name.
    #[arg(long, env = "POD_NAME")]
    pub name: Option<String>,
    /// How long writes that were sent may take after SIGTERM.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub drain_timeout: Duration,
    /// Kubeconfig file; absent means KUBECONFIG, then the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long)]
    pub context: Option<String>,
}

/// Whose executors run in the sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExecutorProtocol {
    /// Ours: signed orders, a watch.
    Signed,
    /// Upstream's: no signatures, asked every second.
    Upstream,
}

/// On or off, in the words of the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    Enabled,
    /// Off.
    Disabled,
}

impl From<Switch> for InjectionDefault {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::Enabled => Self::Enabled,
            Switch::Disabled => Self::Disabled,
        }
    }
}

impl Arguments {
    /// What is wrong with them, in a sentence, if anything.
    pub fn problem(&self) -> Option<String> {
        if let Some(problem) = image_problem(&self.task_executor_image) {
            return Some(format!("--task-executor-image {problem}"));
        }
        if self.leader_elect
            && let Some(problem) = self.timing().problem()
        {
            return Some(problem);
        }
        None
    }

    /// The times of the election.
    pub fn timing(&self) -> lease::Timing {
        lease::Timing {
            duration: self.lease_duration,
            renew_deadline: self.renew_deadline,
            retry: self.retry_period,
        }
    }

    /// The namespaces that are looked after.
    pub fn scope(&self) -> Scope {
        let mut namespaces: Vec<String> = self
            .namespaces
            .iter()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        if namespaces.is_empty() {
            Scope::Cluster
        } else {
            Scope::Namespaces(namespaces)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(arguments: &[&str]) -> Result<Arguments, String> {
        let program = Program::try_parse_from([&["operator"], arguments].concat());
        program
            .map(|program| program.arguments)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn namespaces_are_a_set() {
        let scope = |arguments: &[&str]| parse(arguments).unwrap().scope();
        assert_eq!(scope(&[]), Scope::Cluster);
        assert_eq!(scope(&["--namespaces="]), Scope::Cluster);
        let both = Scope::Namespaces(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(scope(&["--namespaces=b,a, a"]), both);
    }

    #[test]
    fn an_election_can_be_switched_off_and_its_times_must_make_sense() {
        assert!(parse(&[]).unwrap().leader_elect);
        assert!(parse(&["--leader-elect"]).unwrap().leader_elect);
        assert!(!parse(&["--leader-elect=false"]).unwrap().leader_elect);
        assert_eq!(parse(&[]).unwrap().problem(), None);
        for (arguments, word) in [
            (["--renew-deadline=15s"], "--renew-deadline"),
            (["--retry-period=6s"], "--retry-period"),
            (["--lease-duration=1500ms"], "--lease-duration"),
            (["--task-executor-image=a b"], "--task-executor-image"),
        ] {
            let problem = parse(&arguments).unwrap().problem().unwrap();
            assert!(problem.starts_with(word), "{problem}");
        }
        assert!(parse(&["--retry-period=-1s"]).is_err());
        let off = ["--leader-elect=false", "--renew-deadline=1h"];
        assert_eq!(parse(&off).unwrap().problem(), None);
    }
}
