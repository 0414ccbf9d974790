//! Everything that was stored, in the order in which it was: the versions of all objects of one API server
//! are taken from one counter. And the judge of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use opensandbox_tests::allocation::held;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{NAMESPACE, Site};

/// On a pod that a user deletes.
pub(crate) const BY_HAND: &str = "opensandbox.local/by-hand";
/// A pool's bounds count so long after they were changed: the operator has to hear of it first.
const HEARD: Duration = Duration::from_secs(10);
/// What was stored last has been seen after this.
const LAST_EVENTS: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    kind: &'static str,
    gone: bool,
    object: DynamicObject,
}

/// A watch of all kinds. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct History {
    seen: Arc<Mutex<BTreeMap<u64, Seen>>>,
    watches: JoinSet<Result<()>>,
}

impl History {
    pub(crate) async fn start(site: &Site) -> Result<Self> {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let mut watches = JoinSet::new();
        let pods = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
        let pods: Api<DynamicObject> =
            Api::namespaced_with(site.cluster.client().await?, NAMESPACE, &pods);
        for (kind, api) in [
            ("Pod", pods),
            ("Pool", site.api("Pool").await?),
            ("BatchSandbox", site.api("BatchSandbox").await?),
        ] {
            let list = api.list(&ListParams::default()).await?;
            let version = list
                .metadata
                .resource_version
                .context("a list has a version")?;
            for object in list.items {
                note(&seen, kind, false, object)?;
            }
            watches.spawn(watch(kind, api, version, Arc::clone(&seen)));
        }
        Ok(Self { seen, watches })
    }

    /// Everything seen so far.
    pub(crate) async fn stop(mut self) -> Result<Judged> {
        sleep(LAST_EVENTS).await;
        if let Some(ended) = self.watches.try_join_next() {
            ended??;
            bail!("a watch ended");
        }
        self.watches.shutdown().await;
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Judged(seen.values().cloned().collect()))
    }
}

fn note(
    seen: &Mutex<BTreeMap<u64, Seen>>,
    kind: &'static str,
    gone: bool,
    object: DynamicObject,
) -> Result<()> {
    let version = object
        .resource_version()
        .context("an object has a version")?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let at = Instant::now();
    seen.insert(
        version.parse()?,
        Seen {
            at,
            kind,
            gone,
            object,
        },
    );
    Ok(())
}

async fn watch(
    kind: &'static str,
    api: Api<DynamicObject>,
    mut version: String,
    seen: Arc<Mutex<BTreeMap<u64, Seen>>>,
) -> Result<()> {
    loop {
        let events = api.watch(&WatchParams::default(), &version).await?;
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let (object, gone) = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    version.clone_from(&bookmark.metadata.resource_version);
                    continue;
                }
                WatchEvent::Error(status) => bail!("{status:?}"),
            };
            if let Some(now) = object.resource_version() {
                version = now;
            }
            note(&seen, kind, gone, object)?;
        }
    }
}

/// What was seen, in order.
#[derive(Debug)]
pub(crate) struct Judged(Vec<Seen>);

/// The state of the world at one version.
#[derive(Debug, Default)]
struct World {
    /// Pod to the sandbox that holds it, by name and UID.
    holders: BTreeMap<String, (String, String)>,
    /// Pods that exist, with their pool.
    pods: BTreeMap<String, String>,
    deleting: BTreeSet<String>,
    /// By pool: the bound, when it was last changed, and the bound before.
    most: BTreeMap<String, (u64, Instant, u64)>,
    violations: Vec<String>,
}

impl Judged {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Each violation in a sentence, with the version at which it happened.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut world = World::default();
        for seen in &self.0 {
            match seen.kind {
                "Pod" => world.pod(seen),
                "Pool" => world.pool(seen),
                _ => world.sandbox(seen),
            }
        }
        world.violations
    }
}

impl World {
    fn violated(&mut self, seen: &Seen, what: &str) {
        let version = seen.object.resource_version().unwrap_or_default();
        self.violations.push(format!("version {version}: {what}"));
    }

    fn pod(&mut self, seen: &Seen) {
        let name = seen.object.name_any();
        let pool = seen
            .object
            .labels()
            .get("pool")
            .cloned()
            .unwrap_or_default();
        if seen.gone {
            self.pods.remove(&name);
            self.deleting.remove(&name);
            return;
        }
        if self.pods.insert(name.clone(), pool.clone()).is_none() {
            let count = self.pods.values().filter(|other| **other == pool).count();
            if let Some((most, changed, before)) = self.most.get(&pool) {
                let bound = if seen.at.duration_since(*changed) < HEARD {
                    (*most).max(*before)
                } else {
                    *most
                };
                if u64::try_from(count).is_ok_and(|count| count > bound) {
                    self.violated(
                        seen,
                        &format!("pool {pool} has {count} pods, poolMax {bound}"),
                    );
                }
            }
        }
        let going = seen.object.metadata.deletion_timestamp.is_some();
        if going && self.deleting.insert(name.clone()) {
            let by_hand = seen.object.annotations().contains_key(BY_HAND);
            if let Some((holder, _)) = self.holders.get(&name)
                && !by_hand
            {
                let what = format!("pod {name} is deleted while {holder} holds it");
                self.violated(seen, &what);
            }
        }
    }

    fn pool(&mut self, seen: &Seen) {
        let name = seen.object.name_any();
        let capacity = &seen.object.data["spec"]["capacitySpec"];
        let most = capacity["poolMax"].as_u64().unwrap_or_default();
        match self.most.get(&name) {
            Some((before, _, _)) if *before == most => {}
            Some((before, changed, earlier)) => {
                // Two changes in a row: the larger of what it may still believe.
                let before = if seen.at.duration_since(*changed) < HEARD {
                    (*before).max(*earlier)
                } else {
                    *before
                };
                self.most.insert(name, (most, seen.at, before));
            }
            None => {
                self.most.insert(name, (most, seen.at, most));
            }
        }
    }

    fn sandbox(&mut self, seen: &Seen) {
        let name = seen.object.name_any();
        let uid = seen.object.uid().unwrap_or_default();
        self.holders.retain(|_, (_, holder)| *holder != uid);
        // One that is being deleted gives everything back; its pods are still its own until they are
        // recycled, and only then somebody else's.
        if seen.gone {
            return;
        }
        let deleting = seen.object.metadata.deletion_timestamp.is_some();
        for pod in held(&seen.object) {
            if let Some((other, _)) = self.holders.get(&pod) {
                let what = format!("{name} and {other} hold {pod}");
                self.violated(seen, &what);
                continue;
            }
            if !deleting {
                self.holders.insert(pod, (name.clone(), uid.clone()));
            }
        }
    }
}
