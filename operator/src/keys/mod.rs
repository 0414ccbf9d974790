//! The key that orders to executors are signed with.
//!
//! It is kept in one Secret of the installation's namespace and made there once, by compare-and-swap,
//! so that all replicas have the same. The public half is published in the ConfigMap
//! [`IMAGES_CONFIG_MAP`], from which the injection takes it into pods, by server-side apply of that one
//! entry: what Helm or kustomize own in the ConfigMap stays theirs, and if one of them takes the entry
//! away, it is written again. The ConfigMap itself is never created here, or Helm would find one that is
//! not its own.
//!
//! ```text
//! ring       the keys in memory, current one first
//! secret     their form in the Secret; how to change them
//! plan       what is to be done next                             pure
//! run        watches both objects, does it
//! ```
//!
//! **Rotation.** A new value of the Secret's annotation `sandbox.opensandbox.io/rotate` makes a new key.
//! The one before is kept beside it, and published too, because an executor knows only the keys that were
//! published when its pod was made, and a pool makes pods with those that it was stored with. The operator
//! signs with the new key and, where an executor does not know it, with an older one. So nothing has to be
//! restarted. When all pools have been upgraded and no pod knows the old key, or at once if it was stolen,
//! remove its entry from the Secret: then it is forgotten everywhere but in pods that still run.
//! Deleting the Secret, or what is in it, is no rotation: pods that run know no other key, so what was there
//! is written again by an operator that has seen it. Another key in its place is taken as it is.

mod plan;
mod ring;
mod secret;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use opensandbox_api::labels::{IMAGES_CONFIG_MAP, TASK_EXECUTOR_VERIFICATION_KEY_KEY};
use opensandbox_api::token::{KeyError, SigningKey, SystemRandom};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use self::plan::{ConfigView, Step, plan};
use self::secret::Keys;
use crate::text::chain;

pub use self::ring::KeyRing;

/// Name of the Secret where nothing else is said.
pub const SECRET: &str = "opensandbox-task-executor-key";
/// Field manager of the Secret and of the published entry. Its own, so that what the operator applies
/// elsewhere never takes the entry away.
const FIELD_MANAGER: &str = "opensandbox-operator-keys";
/// For one call to the API server.
const CALL: Duration = Duration::from_secs(10);
/// First and longest pause after a failed call.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Between two publications, in case somebody else keeps writing the entry; and between looks whether
/// this replica leads.
const PACE: Duration = Duration::from_secs(1);

/// Where the key is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the installation.
    pub namespace: String,
    /// Name of the Secret, [`SECRET`] where nothing else is said.
    pub secret: String,
    /// Labels for the Secret when it is created here.
    pub labels: BTreeMap<String, String>,
}

/// A step that could not be carried out. Holds nothing of a key.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("cannot make a key")]
    Key(#[source] KeyError),
    #[error("the call to the API server failed")]
    Call(#[source] Box<kube::Error>),
    #[error("the API server did not answer in time")]
    Timeout,
}

impl StepError {
    /// Somebody else was faster; the watch says what it is now.
    fn is_race(&self) -> bool {
        matches!(self, Self::Call(error) if matches!(&**error, kube::Error::Api(status)
            if status.is_conflict() || status.is_already_exists()))
    }
}

/// Keeps `ring` what the Secret says, for ever; while `leads` says so, also makes, rotates and publishes
/// keys. With the API server away the ring stays what it was.
///
/// Needs `get`, `list`, `watch`, `update` of the Secret and `create` of Secrets, and `get`, `list`, `watch`,
/// `patch` of the ConfigMap, all in the installation's namespace and by these names only.
pub async fn run(
    client: Client,
    settings: Settings,
    leads: impl Fn() -> bool + Send,
    ring: watch::Sender<Arc<KeyRing>>,
) {
    let mut keeper = Keeper {
        secrets: Api::namespaced(client.clone(), &settings.namespace),
        config_maps: Api::namespaced(client, &settings.namespace),
        settings,
        has_looked: false,
        secret: None,
        keys: None,
        last: None,
        config: None,
        published: None,
        problems: Complaint::default(),
        failure: Complaint::default(),
        ring,
    };
    let mut secrets = watched(keeper.secrets.clone(), &keeper.settings.secret).boxed();
    let mut config_maps = watched(keeper.config_maps.clone(), IMAGES_CONFIG_MAP).boxed();
    let mut backoff = BACKOFF.0;
    let mut again = None;
    loop {
        tokio::select! {
            Some(seen) = secrets.next() => keeper.see_secret(seen),
            Some(seen) = config_maps.next() => keeper.config = Some(config_view(seen.as_ref())),
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            // A watch goes on by itself and has no end.
            else => return,
        }
        again = match keeper.pass(&leads).await {
            Pass::Done => {
                backoff = BACKOFF.0;
                None
            }
            Pass::Later(pause) => Some(Instant::now() + pause),
            Pass::Failed => {
                let pause = backoff;
                backoff = BACKOFF.1.min(backoff * 2);
                Some(Instant::now() + pause)
            }
        };
    }
}

/// One object, each time that it may have changed: `None` if it is not there.
fn watched<K>(api: Api<K>, name: &str) -> impl futures::Stream<Item = Option<K>> + Send + use<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher::watch_object(api, name)
        .default_backoff()
        // Its error names no content, and the watch goes on by itself.
        .inspect_err(
            |error| tracing::warn!(error = %chain(error), "a watch of the signing key broke"),
        )
        .filter_map(|seen| std::future::ready(seen.ok()))
}

/// What came of a pass.
enum Pass {
    /// Nothing is left to be done.
    Done,
    /// Something is, and may be done then.
    Later(Duration),
    /// Something is, and did not succeed.
    Failed,
}

struct Keeper {
    settings: Settings,
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    /// Whether it is known if there is a Secret.
    has_looked: bool,
    secret: Option<Secret>,
    /// What is in it.
    keys: Option<Keys>,
    /// The Secret as it was last when there was a key in it, should somebody delete it.
    last: Option<Secret>,
    /// `None` until it was looked for.
    config: Option<ConfigView>,
    /// Time of the last publication.
    published: Option<Instant>,
    /// What people should look at.
    problems: Complaint,
    /// Why a step fails.
    failure: Complaint,
    ring: watch::Sender<Arc<KeyRing>>,
}

impl Keeper {
    fn see_secret(&mut self, seen: Option<Secret>) {
        let version = |secret: &Secret| -> Option<u64> {
            secret.metadata.resource_version.as_ref()?.parse().ok()
        };
        if let (Some(known), Some(seen)) = (&self.secret, &seen)
            && known.metadata.uid == seen.metadata.uid
            && version(seen) < version(known)
        {
            // From before a write of ours.
            return;
        }
        self.has_looked = true;
        self.keys = seen.as_ref().map(secret::read);
        self.secret = seen;
        let (Some(secret), Some(keys)) = (&self.secret, &self.keys) else {
            // What was signed with goes on being signed with, and is written again.
            return;
        };
        if let Some(ring) = keys.ring() {
            self.last = Some(secret.clone());
            let changed = self.ring.send_if_modified(|present| {
                let changed = present.verification_keys() != ring.verification_keys();
                if changed {
                    *present = Arc::new(ring);
                }
                changed
            });
            if changed {
                tracing::info!(
                    retired = keys.retired.len(),
                    "uses the signing key of the Secret"
                );
            }
        }
    }

    /// Does what is to be done.
    async fn pass(&mut self, leads: &impl Fn() -> bool) -> Pass {
        /// A rotation and its publication take two steps.
        const STEPS: usize = 4;
        for _ in 0..STEPS {
            let Some(config) = self.config.as_ref().filter(|_| self.has_looked) else {
                return Pass::Done;
            };
            let next = plan(self.keys.as_ref(), config);
            self.problems.now(next.problems.join("; "));
            let Some(step) = next.step else {
                return Pass::Done;
            };
            if !leads() {
                return Pass::Later(PACE);
            }
            if matches!(step, Step::Publish(_)) {
                let since = self.published.map_or(PACE, |at| at.elapsed());
                let left = PACE.saturating_sub(since);
                if !left.is_zero() {
                    return Pass::Later(left);
                }
                self.published = Some(Instant::now());
            }
            match self.carry_out(step).await {
                Ok(()) => self.failure.now(String::new()),
                Err(error) if error.is_race() => return Pass::Later(PACE),
                Err(error) => {
                    self.failure.now(chain(&error));
                    return Pass::Failed;
                }
            }
        }
        Pass::Later(PACE)
    }

    async fn carry_out(&mut self, step: Step) -> Result<(), StepError> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let restores = self.last.is_some();
        match (step, self.secret.clone()) {
            (Step::Publish(value), _) => return self.publish(&value).await,
            (Step::Make, None) => {
                let secret = match &self.last {
                    Some(last) => secret::restore(&self.settings, last),
                    None => secret::create(&self.settings, new_key()?),
                };
                let made = call(self.secrets.create(&params, &secret)).await?;
                self.tell_of_key(restores);
                self.see_secret(Some(made));
            }
            (Step::Make, Some(secret)) => {
                let secret = match &self.last {
                    Some(last) => secret::refill(secret, last),
                    None => secret::fill(secret, new_key()?),
                };
                self.replace(&params, &secret).await?;
                self.tell_of_key(restores);
            }
            (Step::Rotate(request), Some(secret)) => {
                let secret = secret::rotate(secret, new_key()?, request);
                self.replace(&params, &secret).await?;
                tracing::info!(secret = %self.settings.secret, "made a new signing key");
            }
            (Step::Rotate(_), None) => {}
        }
        Ok(())
    }

    /// Says that the Secret has a key again, or for the first time.
    fn tell_of_key(&self, restored: bool) {
        let secret = &self.settings.secret;
        let published = match &self.config {
            Some(ConfigView::Present { published, .. }) => published.as_deref(),
            _ => None,
        };
        if restored {
            tracing::info!(secret, "restored the signing key");
        } else if published.is_some_and(|keys| !keys.is_empty()) {
            tracing::warn!(
                secret,
                "made a signing key, although another was published before: executors of pods that \
                 know only that one refuse orders; put the Secret back, or replace these pods"
            );
        } else {
            tracing::info!(secret, "made a signing key");
        }
    }

    async fn replace(&mut self, params: &PostParams, secret: &Secret) -> Result<(), StepError> {
        let name = &self.settings.secret;
        let written = call(self.secrets.replace(name, params, secret)).await?;
        self.see_secret(Some(written));
        Ok(())
    }

    async fn publish(&mut self, value: &str) -> Result<(), StepError> {
        let Some(ConfigView::Present { uid, .. }) = &self.config else {
            return Ok(());
        };
        let entry = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            // With the UID nothing is created if it has just been deleted.
            "metadata": { "name": IMAGES_CONFIG_MAP, "uid": uid },
            "data": { TASK_EXECUTOR_VERIFICATION_KEY_KEY: value },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&entry);
        let written = call(self.config_maps.patch(IMAGES_CONFIG_MAP, &params, &patch)).await?;
        self.config = Some(config_view(Some(&written)));
        tracing::info!("published the verification key");
        Ok(())
    }
}

/// What was complained about last, so that nothing is said twice as long as it stays the same.
#[derive(Debug, Default)]
struct Complaint(String);

impl Complaint {
    /// Takes in what is wrong now, nothing where it is empty, and says it if that is news.
    fn now(&mut self, problem: String) {
        if self.is_news(&problem) {
            tracing::warn!(%problem, "the signing key needs attention");
        }
        self.0 = problem;
    }

    fn is_news(&self, problem: &str) -> bool {
        !problem.is_empty() && self.0 != problem
    }
}

fn new_key() -> Result<Vec<u8>, StepError> {
    SigningKey::generate(&SystemRandom::new()).map_err(StepError::Key)
}

fn config_view(config_map: Option<&ConfigMap>) -> ConfigView {
    let Some(config_map) = config_map else {
        return ConfigView::Absent;
    };
    let entry = config_map.data.as_ref();
    ConfigView::Present {
        uid: config_map.metadata.uid.clone().unwrap_or_default(),
        published: entry.and_then(|data| data.get(TASK_EXECUTOR_VERIFICATION_KEY_KEY).cloned()),
    }
}

async fn call<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, StepError> {
    timeout(CALL, call)
        .await
        .map_err(|_| StepError::Timeout)?
        .map_err(|error| StepError::Call(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_not_said_twice_until_it_was_over() {
        let mut complaint = Complaint::default();
        assert!(!complaint.is_news(""));
        for (problem, news) in [
            ("a", true),
            ("a", false),
            ("b", true),
            ("", false),
            ("b", true),
        ] {
            assert_eq!(complaint.is_news(problem), news, "{problem}");
            complaint.now(problem.to_owned());
        }
    }
}
