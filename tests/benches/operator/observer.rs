//! What a client sees: one watch on BatchSandboxes, and the moment at which each was ready, and gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use kube::api::{WatchEvent, WatchParams};
use kube::core::DynamicObject;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;

use super::site::Site;

/// A sandbox takes no longer, or counts as not reached.
pub(crate) const BOUND: Duration = Duration::from_mins(2);

#[derive(Debug, Default)]
struct Seen {
    ready: HashMap<String, Instant>,
    gone: HashMap<String, Instant>,
}

/// A watch that notes times. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
    task: JoinHandle<Result<()>>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    /// Begins with what happens from now on.
    pub(crate) async fn start(site: &Site) -> Result<Self> {
        let api = site.api("BatchSandbox");
        let version = api.list(&kube::api::ListParams::default()).await?.metadata;
        let mut version = version.resource_version.context("a list has a version")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let changed = Arc::new(Notify::new());
        let (noted, wake) = (Arc::clone(&seen), Arc::clone(&changed));
        let task = tokio::spawn(async move {
            loop {
                let watched = api.watch(&WatchParams::default(), &version).await?;
                let mut events = std::pin::pin!(watched);
                while let Some(event) = events.next().await {
                    let now = Instant::now();
                    let (object, gone) = match event? {
                        WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                        WatchEvent::Deleted(object) => (object, true),
                        WatchEvent::Bookmark(_) => continue,
                        WatchEvent::Error(status) => anyhow::bail!("{status:?}"),
                    };
                    if let Some(seen) = &object.metadata.resource_version {
                        version.clone_from(seen);
                    }
                    let name = object.metadata.name.clone().unwrap_or_default();
                    let mut noted = noted.lock().await;
                    if gone {
                        noted.gone.entry(name).or_insert(now);
                    } else if is_ready(&object) {
                        noted.ready.entry(name).or_insert(now);
                    } else {
                        continue;
                    }
                    wake.notify_waiters();
                }
            }
        });
        Ok(Self {
            seen,
            changed,
            task,
        })
    }

    /// When a sandbox was first seen ready: every replica, as the status says. `None` if it is not in time.
    pub(crate) async fn ready(&self, name: &str) -> Option<Instant> {
        self.first(|seen| seen.ready.get(name).copied()).await
    }

    /// When it was gone.
    pub(crate) async fn gone(&self, name: &str) -> Option<Instant> {
        self.first(|seen| seen.gone.get(name).copied()).await
    }

    async fn first(&self, look: impl Fn(&Seen) -> Option<Instant>) -> Option<Instant> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // From here on no change is missed.
                changed.as_mut().enable();
                if let Some(at) = look(&*self.seen.lock().await) {
                    return at;
                }
                changed.await;
            }
        };
        tokio::time::timeout(BOUND, waiting).await.ok()
    }
}

/// Every replica is ready, and its addresses are published.
fn is_ready(object: &DynamicObject) -> bool {
    let wanted = object.data["spec"]["replicas"].as_i64();
    let addresses = object
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key("sandbox.opensandbox.io/endpoints"));
    wanted.is_some() && object.data["status"]["ready"].as_i64() == wanted && addresses
}
