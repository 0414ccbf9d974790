//! `serve`: arguments, and the wiring of the parts that know nothing of each other.
//!
//! ```text
//! facts::watch    namespaces, images ConfigMaps -> Facts
//! certs           Secret or files -> serving certificate, status
//! admission       reviews, from Facts and Policy
//! server          sockets, limits, drain
//! ```
//!
//! Needs a client. Ends when SIGTERM or SIGINT has been drained, or when it cannot start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use opensandbox_api::labels;
use opensandbox_api::sidecar::{InjectionDefault, image_problem, installation_image};
use opensandbox_certs::probe::Endpoint;
use opensandbox_certs::publish::Target;
use opensandbox_certs::{ServingCertificate, Status, Trigger, files, managed, view};
use opensandbox_program::{cluster, duration};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admission::{Admission, Policy};
use crate::facts::{Facts, watch as facts_watch};
use crate::metrics::{CertificateKind, Metrics};
use crate::server::{Check, Drained, Limits, Readiness, Server, TlsSource, terminated};

/// Arguments of `serve`. Durations are written `90s`, `10m`, `24h`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Address of the HTTPS port.
    #[arg(long, default_value = "0.0.0.0:9443")]
    bind_address: SocketAddr,
    /// Address of the plain port with /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    metrics_bind_address: SocketAddr,
    /// Namespace of the installation: its Secret, its ConfigMap.
    #[arg(long, env = "POD_NAMESPACE", default_value = "opensandbox-system")]
    namespace: String,
    /// Service through which the API server calls; the certificate is valid for its DNS names.
    #[arg(long, env = "SERVICE_NAME", default_value = "opensandbox-webhook")]
    service_name: String,
    /// Further DNS name or address that the certificate is valid for. May be repeated.
    #[arg(long = "tls-san", value_name = "NAME")]
    tls_sans: Vec<String>,
    /// Where certificates come from.
    #[arg(long, value_enum, default_value_t = TlsMode::SelfManaged)]
    tls_mode: TlsMode,
    /// Directory with tls.crt, tls.key and maybe ca.crt, for `--tls-mode=files`.
    #[arg(
        long,
        value_name = "DIRECTORY",
        default_value = "/etc/opensandbox-webhook/tls"
    )]
    tls_cert_dir: PathBuf,
    /// Secret that holds the authority of `--tls-mode=self-managed`.
    #[arg(long, env = "CA_SECRET_NAME", default_value = "opensandbox-webhook-ca")]
    ca_secret_name: String,
    /// MutatingWebhookConfiguration whose caBundle is kept; empty for none.
    #[arg(
        long,
        env = "MUTATING_WEBHOOK_CONFIGURATION",
        default_value = "opensandbox-webhook"
    )]
    mutating_webhook_configuration: String,
    /// ValidatingWebhookConfiguration whose caBundle is kept; empty for none.
    #[arg(
        long,
        env = "VALIDATING_WEBHOOK_CONFIGURATION",
        default_value = "opensandbox-webhook"
    )]
    validating_webhook_configuration: String,
    /// Life of the self-managed authority.
    #[arg(long, value_parser = duration, default_value = "8760h")]
    ca_validity: Duration,
    /// The authority is rotated when this much of its life is left [default: a fifth of it].
    #[arg(long, value_parser = duration)]
    ca_renew_before: Option<Duration>,
    /// Life of the certificate served.
    #[arg(long, value_parser = duration, default_value = "24h")]
    leaf_validity: Duration,
    /// The certificate served is renewed when this much of its life is left [default: a third of it].
    #[arg(long, value_parser = duration)]
    leaf_renew_before: Option<Duration>,
    /// From the publication of a new authority to its first signature.
    #[arg(long, value_parser = duration, default_value = "10s")]
    ca_settle: Duration,
    /// How long, beyond the life of the last certificate, a retired authority stays trusted.
    #[arg(long, value_parser = duration, default_value = "1h")]
    ca_slack: Duration,
    /// Whether Pools get the executor where neither they nor their namespace say.
    #[arg(long, value_enum, env = "INJECTION_DEFAULT", default_value_t = Switch::Enabled)]
    injection_default: Switch,
    /// Image of the executor where no ConfigMap names one.
    #[arg(long, env = "TASK_EXECUTOR_IMAGE", default_value = labels::DEFAULT_TASK_EXECUTOR_IMAGE)]
    task_executor_image: String,
    /// User that may write the allocation annotations of BatchSandboxes. May be repeated.
    #[arg(long = "operator-user", value_name = "USER")]
    operator_users: Vec<String>,
    /// Age at which the client of a connection is asked to reconnect, so that connections spread over
    /// new replicas; up to a quarter is added.
    #[arg(long, value_parser = duration, default_value = "5m")]
    connection_age: Duration,
    /// How long to go on serving, not ready, after SIGTERM.
    #[arg(long, value_parser = duration, default_value = "3s")]
    drain_delay: Duration,
    /// How long requests in flight may take after that.
    #[arg(long, value_parser = duration, default_value = "20s")]
    drain_timeout: Duration,
    /// Kubeconfig file; absent means KUBECONFIG, then the pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long)]
    context: Option<String>,
}

/// Where certificates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TlsMode {
    /// An authority of its own in a Secret, published in the webhook configurations.
    SelfManaged,
    /// Files, as cert-manager provides them.
    Files,
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

/// Serves until a signal has been drained.
///
/// # Errors
///
/// When it cannot start: no configuration of a cluster, a port in use, a name no certificate can hold.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(problem) = image_problem(&arguments.task_executor_image) {
        anyhow::bail!("--task-executor-image {problem}");
    }
    let client = client(&arguments).await?;
    let https = bind(arguments.bind_address).await?;
    let probes = bind(arguments.metrics_bind_address).await?;
    let address = https
        .local_addr()
        .context("the HTTPS port has no address")?;
    tracing::info!(https = %address, metrics = %arguments.metrics_bind_address, namespace = arguments.namespace, "listening");

    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::default();
    let facts = Facts::with_client(client.clone());
    let serving = ServingCertificate::new();
    let (status, statuses) = watch::channel(Status::default());

    let mut tasks = JoinSet::new();
    tasks.spawn(facts_watch::namespaces(
        client.clone(),
        facts.clone(),
        readiness.register("namespaces"),
    ));
    tasks.spawn(facts_watch::images(
        client.clone(),
        facts.clone(),
        Arc::clone(&metrics),
        readiness.register("images"),
    ));
    tasks.spawn(report_certificates(
        statuses,
        readiness.register("certificates"),
        Arc::clone(&metrics),
    ));
    spawn_certificates(
        &mut tasks,
        &arguments,
        client,
        address,
        serving.clone(),
        status,
    )?;

    let limits = Limits {
        connection_age: arguments.connection_age,
        drain_delay: arguments.drain_delay,
        drain_timeout: arguments.drain_timeout,
        ..Limits::default()
    };
    let admission = Admission::new(policy(&arguments), facts, Arc::clone(&metrics));
    let server = Server {
        limits,
        tls: TlsSource::new(&serving.rustls_config(&[])),
        routes: admission.routes(),
        readiness,
        metrics,
    };
    let drained = Box::pin(server.serve(https, probes, shutdown())).await;
    tasks.shutdown().await;
    match drained {
        Drained::Completely => tracing::info!("drained"),
        Drained::TimedOut => tracing::warn!("stopped with requests in flight"),
    }
    Ok(())
}

/// Resolves on the first SIGTERM or SIGINT.
async fn shutdown() {
    if let Err(error) = terminated().await {
        tracing::error!(%error, "signals cannot be received; only SIGKILL ends this process");
        std::future::pending::<()>().await;
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

async fn client(arguments: &Arguments) -> anyhow::Result<kube::Client> {
    let config = cluster::config(
        arguments.kubeconfig.as_deref(),
        arguments.context.as_deref(),
    );
    kube::Client::try_from(config.await?).context("cannot make a client")
}

fn policy(arguments: &Arguments) -> Policy {
    let mut operators = arguments.operator_users.clone();
    if operators.is_empty() {
        // Ours, and upstream's while a cluster switches over.
        let account = |name: &str| format!("system:serviceaccount:{}:{name}", arguments.namespace);
        operators = vec![
            account("opensandbox-operator"),
            account("opensandbox-controller-manager"),
        ];
    }
    Policy {
        injection_default: arguments.injection_default.into(),
        default_image: installation_image(&arguments.task_executor_image),
        namespace: arguments.namespace.clone(),
        operators,
    }
}

fn spawn_certificates(
    tasks: &mut JoinSet<()>,
    arguments: &Arguments,
    client: kube::Client,
    address: SocketAddr,
    serving: ServingCertificate,
    status: watch::Sender<Status>,
) -> anyhow::Result<()> {
    let Arguments {
        namespace,
        service_name,
        ..
    } = arguments;
    let service = format!("{service_name}.{namespace}.svc");
    let mut names = vec![
        service.clone(),
        format!("{service}.cluster.local"),
        format!("{service_name}.{namespace}"),
    ];
    names.extend(arguments.tls_sans.iter().cloned());
    let configurations: Vec<Target> = [
        (
            &arguments.mutating_webhook_configuration,
            Target::Mutating as fn(String) -> Target,
        ),
        (
            &arguments.validating_webhook_configuration,
            Target::Validating,
        ),
    ]
    .into_iter()
    .filter(|(name, _)| !name.is_empty())
    .map(|(name, target)| target(name.clone()))
    .collect();
    let endpoint = Endpoint {
        address,
        server_name: service,
        path: "/healthz".to_owned(),
    };
    let timing = timing(arguments);
    anyhow::ensure!(
        timing.leaf < timing.authority,
        "--leaf-validity must be less than --ca-validity"
    );
    for (flag, before, life) in [
        ("ca", timing.authority_renew_before, timing.authority),
        ("leaf", timing.leaf_renew_before, timing.leaf),
    ] {
        anyhow::ensure!(
            before.is_none_or(|before| before < life),
            "--{flag}-renew-before must be less than --{flag}-validity"
        );
    }
    match arguments.tls_mode {
        TlsMode::Files => {
            let settings = files::Settings {
                directory: arguments.tls_cert_dir.clone(),
                poll: Duration::from_secs(1),
                configurations,
                read_back: timing.check_interval,
                endpoint,
                prove_interval: timing.prove_interval,
                trigger: Trigger::default(),
            };
            tasks.spawn(async move {
                files::run(
                    Some(client),
                    settings,
                    serving,
                    status,
                    std::future::pending(),
                )
                .await;
            });
        }
        TlsMode::SelfManaged => {
            let settings = managed::Settings {
                namespace: namespace.clone(),
                secret: arguments.ca_secret_name.clone(),
                labels: BTreeMap::from([(
                    "app.kubernetes.io/part-of".to_owned(),
                    "opensandbox".to_owned(),
                )]),
                annotation_prefix: labels::GROUP.to_owned(),
                authority_name: format!("{service_name}-ca"),
                names,
                configurations,
                field_manager: "opensandbox-webhook-certificates".to_owned(),
                endpoint,
                timing,
                trigger: Trigger::default(),
            };
            tasks.spawn(async move {
                if let Err(error) =
                    managed::run(client, settings, serving, status, std::future::pending()).await
                {
                    tracing::error!(%error, "certificates cannot be managed");
                }
            });
        }
    }
    Ok(())
}

/// The durations of the self-managed mode: those given, and the others such that they fit them.
fn timing(arguments: &Arguments) -> view::Timing {
    let default = view::Timing::default();
    let authority = arguments.ca_validity;
    view::Timing {
        authority,
        authority_renew_before: arguments.ca_renew_before,
        leaf: arguments.leaf_validity,
        leaf_renew_before: arguments.leaf_renew_before,
        settle: arguments.ca_settle,
        slack: arguments.ca_slack,
        // A rotation is due after four fifths of a life that begins in the past: with too much past, a
        // short-lived authority would be due as soon as it is made.
        skew: default.skew.min(authority / 10),
        // Should a watch be silent, the Secret is still read once per slack, and several times between
        // the day a rotation is due and the end of the authority.
        check_interval: default
            .check_interval
            .min(arguments.ca_slack / 2)
            .min(authority / 20),
        ..default
    }
}

/// Passes the state of the certificates on to readiness and metrics.
async fn report_certificates(
    mut statuses: watch::Receiver<Status>,
    check: Check,
    metrics: Arc<Metrics>,
) {
    loop {
        {
            let status = statuses.borrow_and_update();
            check.set(status.ready(), status.reason.as_str());
            for (kind, end) in [
                (CertificateKind::Leaf, status.leaf_not_after),
                (CertificateKind::Ca, status.ca_not_after),
            ] {
                if let Some(end) = end {
                    metrics.certificate_expires(kind, end.as_second());
                }
            }
        }
        if statuses.changed().await.is_err() {
            return;
        }
    }
}
