//! A cluster with the webhook installed, and what the tests look at: the Secret, the published
//! bundles, the leaves served, the writes of the webhook's account.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use opensandbox_tests::LocalCluster;
use opensandbox_tests::cluster::{Settings, start_or_skip};
use opensandbox_tests::installation::{self, Installation, NAME, NAMESPACE};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::load::{self, Load};
use crate::peer::{self, Certificate, certificates};

/// Until a state is reached. The longest that is waited for takes some 30 s on an idle machine.
pub(crate) const BOUND: Duration = Duration::from_mins(3);
/// The Secret with the authority.
pub(crate) const SECRET: &str = "opensandbox-webhook-ca";
/// Connections end young, so that the API server makes new ones all the time and sees every leaf.
pub(crate) const YOUNG: &str = "--connection-age=250ms";
/// Durations with which a rotation is over in seconds. Renewed often, but long before the end: a machine
/// that stands still for seconds is not what these tests are about.
pub(crate) const QUICK: [&str; 5] = [
    "--leaf-validity=20s",
    "--leaf-renew-before=15s",
    "--ca-settle=3s",
    "--ca-slack=2s",
    YOUNG,
];

/// A cluster and the webhook in it.
pub(crate) struct Site {
    // Before the cluster that it talks to.
    pub(crate) webhook: Installation,
    pub(crate) cluster: LocalCluster,
    client: Client,
    namespace: String,
}

/// The Secret as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) uid: String,
    pub(crate) version: String,
    pub(crate) current: Option<Certificate>,
    pub(crate) next: Option<Certificate>,
    pub(crate) retired: bool,
}

/// A cluster, or nothing where none can be had.
pub(crate) async fn cluster(audit: bool) -> Result<Option<LocalCluster>> {
    start_or_skip(Settings {
        audit,
        ..Settings::default()
    })
    .await
}

/// The configurations as users apply them, without bundles. To a loopback address the API server speaks
/// HTTP/2, to all others and to Services HTTP/1.1. The unspecified address, which leads to this machine too,
/// is none to it. So here each Pool meets both: HTTP/1.1 to be injected, HTTP/2 to be validated.
pub(crate) async fn configurations(cluster: &LocalCluster, address: &str) -> Result<Vec<Value>> {
    let mut documents = installation::rendered(cluster, address).await?;
    documents.retain(|document| {
        document["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("WebhookConfiguration"))
    });
    ensure!(documents.len() == 2, "config/ has two configurations");
    for document in documents
        .iter_mut()
        .filter(|document| document["kind"] == "MutatingWebhookConfiguration")
    {
        for webhook in document["webhooks"].as_array_mut().into_iter().flatten() {
            let url = webhook
                .pointer_mut("/clientConfig/url")
                .context("a webhook has a URL")?;
            *url = json!(
                url.as_str()
                    .unwrap_or_default()
                    .replace("//127.0.0.1:", "//0.0.0.0:")
            );
        }
    }
    Ok(documents)
}

/// Settings of the installation.
pub(crate) fn settings(replicas: usize, args: &[&str]) -> installation::Settings {
    let args = args
        .iter()
        .chain(&["--tls-san=0.0.0.0"])
        .map(|&arg| arg.to_owned())
        .collect();
    installation::Settings {
        replicas,
        args,
        ..installation::Settings::default()
    }
}

impl Site {
    /// A cluster with so many replicas of the webhook.
    pub(crate) async fn start(replicas: usize, args: &[&str]) -> Result<Option<Self>> {
        let Some(cluster) = cluster(false).await? else {
            return Ok(None);
        };
        let webhook = Installation::install(&cluster, settings(replicas, args)).await?;
        Self::new(cluster, webhook).await.map(Some)
    }

    /// What was installed otherwise.
    pub(crate) async fn new(cluster: LocalCluster, webhook: Installation) -> Result<Self> {
        let client = cluster.client().await?;
        let namespace = cluster.namespace("certificates", &[]).await?.name;
        let documents = configurations(&cluster, webhook.address()).await?;
        let apply = ["apply", "--server-side", "-f", "-"];
        cluster
            .kubectl_with_input(&apply, &installation::list(&documents))
            .await?;
        Ok(Self {
            webhook,
            cluster,
            client,
            namespace,
        })
    }

    /// Starts the load.
    pub(crate) async fn load(&self) -> Result<Load> {
        Load::start(&self.cluster, &self.namespace).await
    }

    /// Waits until a Pool is admitted, see [`load::served`].
    pub(crate) async fn served(&self) -> Result<(u64, Duration)> {
        load::served(&self.cluster, &self.namespace).await
    }

    /// The Secrets of the installation.
    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The Secret, as far as it makes sense; nothing if there is none.
    pub(crate) async fn kept(&self) -> Result<Option<Kept>> {
        let Some(secret) = self.secrets().get_opt(SECRET).await? else {
            return Ok(None);
        };
        let data = secret.data.unwrap_or_default();
        let one = |key: &str| {
            let text = data.get(key)?;
            certificates(&text.0).ok()?.into_iter().next()
        };
        Ok(Some(Kept {
            uid: secret.metadata.uid.context("a stored object has a uid")?,
            version: secret
                .metadata
                .resource_version
                .context("a stored object has a version")?,
            current: one("ca.crt").filter(|_| {
                data.get("ca.key")
                    .is_some_and(|key| key.0.starts_with(b"-----BEGIN"))
            }),
            next: one("next.crt"),
            retired: data.contains_key("previous.json"),
        }))
    }

    /// The authority that signs, when nothing is under way.
    pub(crate) async fn authority(&self) -> Result<Certificate> {
        let kept = self.kept().await?.context("the Secret exists")?;
        kept.current.context("the Secret holds an authority")
    }

    /// The published bundles, one for each webhook of each configuration.
    pub(crate) async fn bundles(&self) -> Result<Vec<BTreeSet<Certificate>>> {
        let mutating = Api::<MutatingWebhookConfiguration>::all(self.client.clone())
            .get_opt(NAME)
            .await?;
        let validating = Api::<ValidatingWebhookConfiguration>::all(self.client.clone())
            .get_opt(NAME)
            .await?;
        let mutating = mutating
            .into_iter()
            .flat_map(|found| found.webhooks.unwrap_or_default());
        let validating = validating
            .into_iter()
            .flat_map(|found| found.webhooks.unwrap_or_default());
        let configs = mutating
            .map(|webhook| webhook.client_config)
            .chain(validating.map(|webhook| webhook.client_config));
        Ok(configs
            .map(|config| certificates(&config.ca_bundle.unwrap_or_default().0).unwrap_or_default())
            .collect())
    }

    /// The leaf of each replica. It must be trusted by every bundle that is published afterwards: what
    /// is served now is what a call of the next moment meets.
    pub(crate) async fn leaves(&self) -> Result<Vec<Certificate>> {
        let mut leaves = Vec::new();
        for replica in self.webhook.replicas() {
            let bundles = self.bundles().await?;
            let mut leaf = None;
            for bundle in &bundles {
                leaf = Some(
                    peer::served(replica.https, bundle)
                        .await
                        .context("a call that trusts the published bundle")?,
                );
            }
            leaves.push(leaf.context("a bundle is published")?);
        }
        Ok(leaves)
    }

    /// Whether the leaves of all replicas are signed by this authority.
    pub(crate) async fn signs(&self, authority: &Certificate) -> bool {
        for replica in self.webhook.replicas() {
            if peer::served(replica.https, [authority]).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Waits until every bundle is exactly this.
    pub(crate) async fn published(&self, authorities: &[&Certificate]) -> Result<()> {
        let wanted: BTreeSet<_> = authorities.iter().map(|&one| one.clone()).collect();
        wait::until("the bundles to be right", BOUND, async || {
            let bundles = self.bundles().await?;
            let right = !bundles.is_empty() && bundles.iter().all(|bundle| *bundle == wanted);
            let sizes: Vec<_> = bundles.iter().map(BTreeSet::len).collect();
            Ok(if right {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("bundles of {sizes:?}"))
            })
        })
        .await
        .with_context(|| self.logs())
    }

    /// Waits until all replicas are ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        for replica in self.webhook.replicas() {
            replica.ready().await?;
        }
        Ok(())
    }

    /// Writes of the webhook's account so far, in words; the cluster has an audit log.
    pub(crate) fn writes(&self) -> Result<Vec<String>> {
        let log = self
            .cluster
            .audit_log()
            .context("the cluster has an audit log")?;
        let account = format!("system:serviceaccount:{NAMESPACE}:{NAME}");
        let text = std::fs::read_to_string(log)?;
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let mut writes = Vec::new();
        for line in complete.lines() {
            let event: Value = serde_json::from_str(line)?;
            let verb = event["verb"].as_str().unwrap_or_default();
            let writes_something = !matches!(verb, "get" | "list" | "watch");
            if event["user"]["username"] == account.as_str()
                && writes_something
                && event["stage"] == "ResponseComplete"
            {
                let at = |path: &str| {
                    event
                        .pointer(path)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                let (resource, name) = (at("/objectRef/resource"), at("/objectRef/name"));
                writes.push(format!(
                    "{} {verb} {resource} {name}",
                    at("/requestReceivedTimestamp")
                ));
            }
        }
        Ok(writes)
    }

    /// No write of the webhook's account within this time.
    pub(crate) async fn idle(&self, what: &str, time: Duration) -> Result<()> {
        let before = self.writes()?.len();
        // Not to wait for something: that nothing happens takes time to see.
        tokio::time::sleep(time).await;
        let writes = self.writes()?;
        ensure!(
            writes.len() == before,
            "{what}: written while idle: {:?}",
            &writes[before..]
        );
        Ok(())
    }

    /// What the replicas wrote, for errors.
    pub(crate) fn logs(&self) -> String {
        let replicas = self.webhook.replicas().iter();
        replicas
            .map(|replica| replica.program.log().unwrap_or_default())
            .collect::<Vec<_>>()
            .join("\n---\n")
    }
}

/// How often a test repeats what it does.
#[derive(Debug)]
pub(crate) struct Rounds {
    end: Option<Instant>,
    done: u32,
}

impl Rounds {
    /// Begins now.
    pub(crate) fn begin() -> Result<Self> {
        let end = match std::env::var("OPENSANDBOX_SOAK_SECONDS") {
            Ok(seconds) => Some(
                Instant::now()
                    + Duration::from_secs(seconds.parse().context("OPENSANDBOX_SOAK_SECONDS")?),
            ),
            Err(_) => None,
        };
        Ok(Self { end, done: 0 })
    }

    /// Whether there is another round: there are `least`, and more until the soak is over.
    pub(crate) fn again(&mut self, least: u32) -> bool {
        let again = self.done < least || self.end.is_some_and(|end| Instant::now() < end);
        self.done += u32::from(again);
        again
    }

    /// How long to watch that nothing happens: in a soak for longer than the minute between two looks
    /// that no event causes.
    pub(crate) fn quiet(&self) -> Duration {
        Duration::from_secs(if self.end.is_some() { 70 } else { 10 })
    }

    /// How many there were.
    pub(crate) fn done(&self) -> u32 {
        self.done
    }
}
