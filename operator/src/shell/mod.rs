//! What connects the state machines with the cluster.
//!
//! ```text
//! watch      API server -> Change                            client
//! world      Change -> caches, Delivery                      pure
//! router     Message -> mail to actors                       one task
//! actor      mail -> machine -> outputs                      one task per object
//! writer     outputs -> API server -> mail                   client
//! events     Events for users                                client
//! health     probes and metrics                              network
//! ```
//!
//! [`run`] wires them, elects, and ends in order.

pub mod actor;
pub mod arguments;
pub mod clock;
mod connect;
pub mod events;
pub mod health;
pub mod metrics;
pub mod router;
pub mod watch;
pub mod world;
pub mod writer;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Api;
use opensandbox_api::sidecar::installation_image;
use opensandbox_program::{Terminated, cluster};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub use self::arguments::{Arguments, ExecutorProtocol, Switch};
use self::events::Events;
use self::health::Readiness;
use self::metrics::Metrics;
use self::router::{Lead, Message, Router};
use self::watch::Watches;
use self::world::{InjectionDefaults, World};
use self::writer::Writer;
use crate::lease::{Candidate, Leadership, Won};

/// How the program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By a signal, in order.
    Signal,
    /// Another replica may lead: this one must not go on.
    LeadershipLost(String),
}

/// Runs until a signal comes or leadership is lost.
///
/// # Errors
/// When it cannot start: arguments that make no sense, no configuration of a cluster, a port in use.
pub async fn run(arguments: Arguments) -> anyhow::Result<End> {
    if let Some(problem) = arguments.problem() {
        anyhow::bail!(problem);
    }
    let mut terminated = Terminated::listen().context("signals cannot be received")?;
    let client = client(&arguments).await?;
    let probes = TcpListener::bind(arguments.metrics_bind_address)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.metrics_bind_address))?;
    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::default();
    let scope = arguments.scope();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        metrics = %arguments.metrics_bind_address,
        namespace = arguments.namespace,
        ?scope,
        "starting"
    );
    let instance = instance(&arguments);
    let mut election = Election::new(&arguments, &client, &instance);
    let leadership = election.leadership();

    let (messages, inbox) = mpsc::unbounded_channel();
    let (events, waiting) = Events::new(Arc::clone(&metrics));
    tokio::spawn(events::publish(
        client.clone(),
        instance,
        leadership.clone(),
        waiting,
        Arc::clone(&metrics),
    ));
    let executors = connect::executors(&arguments, &client, &leadership, &messages);
    let context = Arc::new(actor::Context {
        writer: Writer::new(client.clone(), leadership, Arc::clone(&metrics)),
        events,
        metrics: Arc::clone(&metrics),
        executors,
        router: messages.clone(),
        upstream_executors: arguments.executor_protocol == ExecutorProtocol::Upstream,
    });

    // Who can lead at once need not list everything twice.
    let first = election.attempt().await;
    let settings = watch::Settings {
        scope,
        installation: arguments.namespace.clone(),
    };
    let watches = Watches::start(&client, &settings, &messages, &readiness, &metrics);
    tokio::spawn(health::serve(probes, readiness, Arc::clone(&metrics)));
    let world = World::new(InjectionDefaults {
        namespace: arguments.namespace.clone(),
        default: arguments.injection_default.into(),
        image: installation_image(&arguments.task_executor_image),
    });
    let names = watches
        .names()
        .iter()
        .cloned()
        .chain([connect::KEYS.to_owned()]);
    let router = Router::new(world, names, connect::choose(), Arc::clone(&context));
    let mut router = tokio::spawn(router.run(inbox));

    let end = tokio::select! {
        biased;
        () = terminated.wait() => End::Signal,
        ended = &mut router => {
            // Without a router nothing is done any more: better begin anew, or let another replica.
            election.resign().await;
            anyhow::bail!("a bug ended the router: {ended:?}");
        }
        why = lead(&mut election, first, &watches, &messages, &metrics) => End::LeadershipLost(why),
    };
    if end == End::Signal {
        tracing::info!("ending: nothing new is begun");
        let closing = context.writer.close(arguments.drain_timeout);
        let answered = election.while_leading(closing).await;
        if !answered {
            tracing::warn!("writes without an answer are left behind");
        }
        election.resign().await;
    }
    Ok(end)
}

/// Leads, as soon and as long as it can; says why no longer.
async fn lead(
    election: &mut Election,
    first: Option<Won>,
    watches: &Watches,
    messages: &mpsc::UnboundedSender<Message>,
    metrics: &Metrics,
) -> String {
    let (won, round) = if let Some(won) = first {
        (won, 0)
    } else {
        tracing::info!("another replica leads; standing by");
        let won = election.campaign().await;
        (won, watches.restart())
    };
    metrics.leader.set(1);
    let fence = (!won.resigned).then(|| format!("{} {}", election.identity(), won.transitions));
    tracing::info!(
        transitions = won.transitions,
        resigned = won.resigned,
        "leading"
    );
    // Without a router this process is ending.
    let _ = messages.send(Message::Lead(Lead {
        round,
        fence,
        since: clock::now(),
    }));
    election.keep().await
}

/// The election, or that there is none.
enum Election {
    Of(Box<Candidate>),
    Nobody,
}

impl Election {
    fn new(arguments: &Arguments, client: &kube::Client, instance: &str) -> Self {
        if !arguments.leader_elect {
            return Self::Nobody;
        }
        let identity = format!("{instance}_{}", random());
        let leases = Api::namespaced(client.clone(), &arguments.namespace);
        let candidate = Candidate::new(
            leases,
            arguments.lease_name.clone(),
            identity,
            arguments.timing(),
        );
        Self::Of(Box::new(candidate))
    }

    fn leadership(&self) -> Leadership {
        match self {
            Self::Of(candidate) => candidate.leadership(),
            Self::Nobody => Leadership::unbounded(),
        }
    }

    fn identity(&self) -> &str {
        match self {
            Self::Of(candidate) => candidate.identity(),
            Self::Nobody => "",
        }
    }

    async fn attempt(&mut self) -> Option<Won> {
        match self {
            Self::Of(candidate) => candidate.attempt().await,
            Self::Nobody => Some(Won {
                resigned: true,
                transitions: 0,
            }),
        }
    }

    async fn campaign(&mut self) -> Won {
        match self {
            Self::Of(candidate) => candidate.campaign().await,
            Self::Nobody => std::future::pending().await,
        }
    }

    async fn keep(&mut self) -> String {
        match self {
            Self::Of(candidate) => candidate.keep().await,
            Self::Nobody => std::future::pending().await,
        }
    }

    /// Goes on renewing while something is finished; gives up with it.
    async fn while_leading(&mut self, work: impl Future<Output = bool>) -> bool {
        if self.leadership().check().is_err() {
            return true;
        }
        tokio::select! {
            done = work => done,
            _ = self.keep() => false,
        }
    }

    async fn resign(&mut self) {
        if let Self::Of(candidate) = self
            && candidate.leadership().check().is_ok()
        {
            candidate.resign().await;
        }
    }
}

/// The name of this replica for people.
fn instance(arguments: &Arguments) -> String {
    let machine = || {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_owned())
            .ok()
    };
    arguments
        .name
        .clone()
        .filter(|name| !name.is_empty())
        .or_else(machine)
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "opensandbox-operator".to_owned())
}

/// What tells this process from every other of the same name.
fn random() -> String {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

async fn client(arguments: &Arguments) -> anyhow::Result<kube::Client> {
    let mut config = cluster::config(
        arguments.kubeconfig.as_deref(),
        arguments.context.as_deref(),
    )
    .await?;
    // A write is asked about right before it is sent: none may be sent again later without that.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    kube::Client::try_from(config).context("cannot make a client")
}
