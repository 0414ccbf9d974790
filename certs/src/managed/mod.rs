//! The self-managed mode: observes, asks `plan`, carries out one step, observes again.
//!
//! In: a client, names and durations; out: a certificate to serve, a published bundle, a status.
//! All decisions are in `plan`; this module reads, writes and waits. It ends when told to, never
//! because a call failed: with the API server away it serves what it has and renews its leaf.

mod observe;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch::{Sender, channel};

use self::observe::Observed;

use crate::authority::{self, Authority, Lifetime, is_name};
use crate::bundle::{self, Fingerprint};
use crate::clock::{Clock, Now};
use crate::complaints::{Complaints, chain};
use crate::ledger::{Change, Ledger};
use crate::plan::{Step, plan};
use crate::probe::{self, Endpoint, Goal};
use crate::publish::{self, Target, fingerprints};
use crate::resolver::ServingCertificate;
use crate::secret;
use crate::status::{Board, Status, Trigger, Writer};
use crate::view::{self, Held, Memory, Timing, View};

/// The local look (no call to the API server) that finds an expired leaf after a jump of the clock
/// or a suspended machine happens at least this often.
const LOCAL_LOOK: Duration = Duration::from_secs(5);
/// First and longest pause after a failed call.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A plan needs at most a handful of steps; more in a row means that somebody works against us.
const MAX_STEPS: u32 = 16;
/// At most so many publications within this time. A rotation takes three.
const PUBLICATIONS: (usize, Duration) = (10, Duration::from_secs(10));

/// What to manage.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Labels for the Secret when it is created here.
    pub labels: BTreeMap<String, String>,
    /// Prefix of the annotations, without the slash.
    pub annotation_prefix: String,
    /// Common name of the authorities.
    pub authority_name: String,
    /// What the leaf is valid for: DNS names and addresses, the service's own name first.
    pub names: Vec<String>,
    /// Where the bundle is published.
    pub configurations: Vec<Target>,
    /// Field manager of the published bundles and of the Secret.
    pub field_manager: String,
    /// The process's own listener, to prove that calls succeed.
    pub endpoint: Endpoint,
    /// All durations.
    pub timing: Timing,
    /// Makes this mode look at everything now.
    pub trigger: Trigger,
}

/// Why the mode cannot start. Nothing ends it later.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No name to be valid for.
    #[error("the certificate needs at least one name")]
    NoName,
    /// A name no certificate can hold.
    #[error("{0:?} is neither a DNS name nor an address")]
    Name(String),
}

/// Runs the mode until `shutdown` is done.
pub async fn run(
    client: kube::Client,
    settings: Settings,
    serving: ServingCertificate,
    status: Sender<Status>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    if settings.names.is_empty() {
        return Err(Error::NoName);
    }
    let names = settings
        .names
        .iter()
        .chain([&settings.endpoint.server_name]);
    if let Some(name) = names.clone().find(|name| !is_name(name)) {
        return Err(Error::Name(name.clone()));
    }
    let board = Board::new(status);
    let (goals, goal) = channel(Goal::default());
    let prove_interval = settings.timing.prove_interval;
    let proving = probe::keep_proving(&settings.endpoint, prove_interval, goal, &board);
    let watching = watch::all(&client, &settings);
    let replica = Replica::new(&client, &settings, serving, &board, goals);
    tokio::select! {
        () = shutdown => {}
        () = Box::pin(replica.keep_going()) => {}
        () = Box::pin(proving) => {}
        () = Box::pin(watching) => {}
    }
    Ok(())
}

/// A step that could not be carried out.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("cannot make a certificate")]
    Authority(#[source] authority::Error),
    #[error("cannot write down the authorities")]
    Render(#[source] secret::Error),
    #[error("the call to the API server failed")]
    Call(#[source] Box<kube::Error>),
    #[error("the API server did not answer in time")]
    Timeout,
}

impl StepError {
    /// Somebody else was faster: read again. For a creation, "not found" is about the namespace.
    fn is_race(&self, creation: bool) -> bool {
        matches!(self, Self::Call(error) if matches!(&**error, kube::Error::Api(status)
            if status.is_conflict()
                || status.is_already_exists()
                || status.is_not_found() && !creation))
    }
}

struct Replica<'a> {
    client: &'a kube::Client,
    secrets: Api<Secret>,
    settings: &'a Settings,
    serving: ServingCertificate,
    board: &'a Board,
    goals: Sender<Goal>,
    clock: Clock,
    memory: Memory,
    authorities: BTreeMap<Fingerprint, Authority>,
    certificates: BTreeMap<Fingerprint, CertificateDer<'static>>,
    complaints: Complaints,
    missing: Vec<String>,
    published: bool,
    publications: Vec<Duration>,
    replaced: u64,
}

impl<'a> Replica<'a> {
    fn new(
        client: &'a kube::Client,
        settings: &'a Settings,
        serving: ServingCertificate,
        board: &'a Board,
        goals: Sender<Goal>,
    ) -> Self {
        Self {
            client,
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            settings,
            serving,
            board,
            goals,
            clock: Clock::start(),
            memory: Memory::default(),
            authorities: BTreeMap::new(),
            certificates: BTreeMap::new(),
            complaints: Complaints::default(),
            missing: Vec::new(),
            published: false,
            publications: Vec::new(),
            replaced: 0,
        }
    }

    async fn keep_going(mut self) {
        let mut backoff = BACKOFF.0;
        loop {
            let (clean, wait) = self.pass().await;
            let wait = if clean {
                backoff = BACKOFF.0;
                wait
            } else {
                let pause = backoff;
                backoff = BACKOFF.1.min(backoff * 2);
                pause
            };
            let until = self.clock.now().mono + wait;
            loop {
                let left = until.saturating_sub(self.clock.now().mono);
                tokio::select! {
                    () = self.settings.trigger.fired() => break,
                    () = tokio::time::sleep(left.min(LOCAL_LOOK)) => {}
                }
                if left <= LOCAL_LOOK {
                    break;
                }
                self.local_look();
            }
        }
    }

    /// Renews the leaf from memory when that is due; no call to the API server.
    fn local_look(&mut self) {
        let view = View::default();
        let now = self.clock.now();
        let plan = plan(&view, &self.memory, &self.settings.timing, now);
        if let Some(Step::Sign(ca)) = plan.step {
            self.sign(ca, now);
        }
        self.tell(now, &[]);
    }

    /// Observes and acts until there is nothing to do. Returns whether all calls succeeded, and
    /// how long to wait.
    async fn pass(&mut self) -> (bool, Duration) {
        // First of all, because the calls below may hang.
        self.local_look();
        let mut steps = 0;
        loop {
            let observed = self.observe().await;
            let timing = &self.settings.timing;
            let mut now = self.clock.now();
            self.memory.observe(&observed.view, now);
            let mut next = plan(&observed.view, &self.memory, timing, now);
            while let Some(Step::Sign(ca)) = next.step {
                if !self.sign(ca, now) {
                    return (false, Duration::ZERO);
                }
                now = self.clock.now();
                self.memory.observe(&observed.view, now);
                next = plan(&observed.view, &self.memory, timing, now);
            }
            self.published = next.published.unwrap_or(self.published);
            self.aim(&observed);
            self.forget_material(&observed);
            self.tell(now, &next.waiting);
            let Some(step) = next.step else {
                self.complaints.clear("steps");
                return (observed.clean, next.look_again);
            };
            steps += 1;
            if steps > MAX_STEPS {
                let text = format!("{MAX_STEPS} steps in a row did not reach a stable state");
                self.complaints.raise("steps", text);
                self.tell(now, &next.waiting);
                return (false, Duration::ZERO);
            }
            let creation = matches!(step, Step::Create(..));
            let topic = match &step {
                Step::Publish => "publishing the bundle",
                _ => "writing the Secret",
            };
            if matches!(step, Step::Publish) && !self.may_publish(now) {
                let text = "somebody else keeps writing the bundles".to_owned();
                self.complaints.raise(topic, text);
                self.tell(now, &next.waiting);
                return (false, Duration::ZERO);
            }
            match self.carry_out(step, &observed, now).await {
                Ok(()) => self.complaints.clear(topic),
                Err(error) if error.is_race(creation) => {
                    tracing::debug!(topic, "lost a race, reads again");
                }
                Err(error) => {
                    self.complaints.raise(topic, chain(&error));
                    self.tell(now, &next.waiting);
                    return (false, Duration::ZERO);
                }
            }
        }
    }

    async fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, StepError> {
        tokio::time::timeout(self.settings.timing.api_timeout, call)
            .await
            .map_err(|_| StepError::Timeout)?
            .map_err(|error| StepError::Call(Box::new(error)))
    }

    /// Signs and serves. False when that failed, which has been logged.
    fn sign(&mut self, ca: Fingerprint, now: Now) -> bool {
        let timing = &self.settings.timing;
        let lifetime = Lifetime {
            valid: timing.leaf,
            skew: timing.skew,
        };
        let Some(authority) = self.authorities.get(&ca) else {
            return false;
        };
        match authority.sign(&self.settings.names, now.wall, lifetime) {
            Ok(leaf) => {
                tracing::info!(authority = %ca, not_after = %leaf.not_after, "serves a new leaf");
                self.memory.leaf = Some(Held::new(
                    ca,
                    leaf.not_before,
                    leaf.not_after,
                    now.wall,
                    timing.leaf_renew_before,
                ));
                self.replaced += u64::from(self.serving.serves().is_some());
                self.serving.replace(leaf.key);
                self.complaints.clear("signing a leaf");
                true
            }
            Err(error) => {
                self.complaints.raise("signing a leaf", chain(&error));
                false
            }
        }
    }

    async fn carry_out(
        &mut self,
        step: Step,
        observed: &Observed,
        now: Now,
    ) -> Result<(), StepError> {
        let params = PostParams {
            field_manager: Some(self.settings.field_manager.clone()),
            ..PostParams::default()
        };
        match step {
            Step::Sign(_) => {}
            Step::Create(ledger, changes) => {
                let base = Secret {
                    metadata: ObjectMeta {
                        name: Some(self.settings.secret.clone()),
                        namespace: Some(self.settings.namespace.clone()),
                        labels: Some(self.settings.labels.clone()),
                        ..ObjectMeta::default()
                    },
                    type_: Some("Opaque".to_owned()),
                    ..Secret::default()
                };
                let secret = self.written(base, ledger, &changes, now)?;
                self.call(self.secrets.create(&params, &secret)).await?;
                tracing::info!(?changes, "created the Secret");
            }
            Step::Update(ledger, changes) => {
                let base = observed.secret.clone().unwrap_or_default();
                let secret = self.written(base, ledger, &changes, now)?;
                let name = &self.settings.secret;
                self.call(self.secrets.replace(name, &params, &secret))
                    .await?;
                tracing::info!(?changes, "updated the Secret");
            }
            Step::Publish => self.publish(observed).await?,
        }
        Ok(())
    }

    /// The Secret to write: ledger and changes, with new authorities made as needed.
    fn written(
        &mut self,
        base: Secret,
        mut ledger: Ledger,
        changes: &[Change],
        now: Now,
    ) -> Result<Secret, StepError> {
        let timing = &self.settings.timing;
        let lifetime = Lifetime {
            valid: timing.authority,
            skew: timing.skew,
        };
        let mut made = Vec::new();
        for change in changes {
            ledger
                .apply(change, now.wall, &mut || {
                    let name = &self.settings.authority_name;
                    let authority = Authority::generate(name, now.wall, lifetime)?;
                    let ca = authority.ca().clone();
                    made.push(authority);
                    Ok(ca)
                })
                .map_err(StepError::Authority)?;
        }
        if !made.is_empty() {
            self.memory.made = Some(now.mono);
            self.remember(made, Vec::new());
        }
        let prefix = &self.settings.annotation_prefix;
        secret::render(base, prefix, &ledger, &self.authorities, &self.certificates)
            .map_err(StepError::Render)
    }

    /// Not without end: another program that wants the same field must not make this one busy.
    fn may_publish(&mut self, now: Now) -> bool {
        let window = now.mono.saturating_sub(PUBLICATIONS.1);
        self.publications.retain(|at| *at > window);
        if self.publications.len() >= PUBLICATIONS.0 {
            return false;
        }
        self.publications.push(now.mono);
        true
    }

    async fn publish(&self, observed: &Observed) -> Result<(), StepError> {
        let view::Secret::Present { ledger, .. } = &observed.view.secret else {
            return Ok(());
        };
        let bundle = ledger.bundle();
        let desired: BTreeSet<_> = bundle.iter().copied().collect();
        let certificates = bundle.iter().map(|id| {
            let certificate = self.certificates.get(id);
            certificate.ok_or(StepError::Render(secret::Error::Material(*id)))
        });
        let text = bundle::render(certificates.collect::<Result<Vec<_>, _>>()?);
        for (target, read) in &observed.configurations {
            let right = read.entries.iter().all(|entry| {
                let (certificates, unreadable) = entry.certificates();
                !unreadable && fingerprints(&certificates) == desired
            });
            if !right {
                let manager = &self.settings.field_manager;
                self.call(publish::apply(self.client, target, read, &text, manager))
                    .await?;
                tracing::info!(%target, authorities = ?bundle, "published the bundle");
            }
        }
        Ok(())
    }

    /// Tells the probe what to prove now.
    fn aim(&self, observed: &Observed) {
        // An unread configuration leaves the last goal: what was proved is still worth proving.
        if !observed.view.bundles.complete {
            return;
        }
        let bundles = observed.bundles.clone();
        let goal = if bundles.is_empty() {
            Goal::Unknown
        } else {
            Goal::Prove {
                leaf: self.serving.serves(),
                bundles,
            }
        };
        self.goals.send_if_modified(|old| {
            let new = *old != goal;
            *old = goal;
            new
        });
    }

    fn tell(&self, now: Now, waiting: &[String]) {
        let mut reasons = self.complaints.told();
        reasons.extend(
            self.missing
                .iter()
                .map(|name| format!("{name} does not exist")),
        );
        let leaf = self.memory.leaf.as_ref();
        if leaf.is_none() {
            reasons.push("there is no certificate to serve yet".to_owned());
        } else if !self.published && self.missing.is_empty() {
            reasons.push("the authority of the leaf is not published everywhere".to_owned());
        }
        if !self.published {
            reasons.extend_from_slice(waiting);
        }
        let ledger = self.memory.ledger.as_ref();
        let current = ledger.and_then(|ledger| ledger.current.as_ref());
        self.board
            .write(Writer::Source, reasons.join("; "), |status| {
                status.serving = leaf.is_some_and(|leaf| leaf.valid_at(now.wall));
                status.published = self.published;
                status.leaf_not_after = leaf.map(|leaf| leaf.not_after);
                status.ca_not_after = current.map(|ca| ca.not_after);
                status.replaced = self.replaced;
            });
    }
}
