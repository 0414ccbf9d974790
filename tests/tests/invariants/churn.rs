//! What users do: sandboxes come, grow, shrink and go; pools change; pods are evicted and deleted by hand.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Site;

/// Sandboxes at most, so that the pools are short of pods at times, and not always.
const MOST: usize = 14;
/// Between two actions.
const PAUSE: Duration = Duration::from_millis(60);

/// Numbers that can be repeated: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    pub(crate) fn from_environment() -> Result<Self> {
        let seed = match std::env::var("OPENSANDBOX_SEED") {
            Ok(text) => text.parse().context("OPENSANDBOX_SEED")?,
            Err(_) => 1,
        };
        Ok(Self { seed, state: seed })
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn fork(&mut self) -> Self {
        let seed = self.next();
        Self { seed, state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, not including, `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let index = self.below(u64::try_from(all.len()).ok()?);
        all.get(usize::try_from(index).ok()?)
    }
}

/// Users at work.
#[derive(Debug)]
pub(crate) struct Churn {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<u64>>,
}

impl Churn {
    pub(crate) async fn start(site: &Site, random: Random) -> Result<Self> {
        let users = Users {
            pools: site.api("Pool").await?,
            sandboxes: site.api("BatchSandbox").await?,
            pods: site.pods().await?,
            random,
            number: 0,
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(users.work(stopped));
        Ok(Self { stop, task })
    }

    /// How many actions there were.
    pub(crate) async fn stop(self) -> Result<u64> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

struct Users {
    pools: Api<DynamicObject>,
    sandboxes: Api<DynamicObject>,
    pods: Api<Pod>,
    random: Random,
    number: u64,
}

impl Users {
    async fn work(mut self, stop: watch::Receiver<bool>) -> Result<u64> {
        let mut done = 0;
        while !*stop.borrow() {
            self.act().await?;
            done += 1;
            sleep(PAUSE).await;
        }
        Ok(done)
    }

    async fn act(&mut self) -> Result<()> {
        let pool = *self
            .random
            .pick(&["deleting", "reusing"])
            .unwrap_or(&"deleting");
        let all = ListParams::default();
        match self.random.below(100) {
            0..40 => {
                let there = self.sandboxes.list(&all).await?.items.len();
                if there < MOST {
                    self.create(pool).await?;
                }
            }
            40..70 => {
                let sandboxes = self.sandboxes.list(&all).await?.items;
                if let Some(sandbox) = self.random.pick(&sandboxes) {
                    let name = sandbox.metadata.name.as_deref().unwrap_or_default();
                    gone_is_fine(self.sandboxes.delete(name, &DeleteParams::default()).await)?;
                }
            }
            70..85 => {
                let sandboxes = self.sandboxes.list(&all).await?.items;
                if let Some(sandbox) = self.random.pick(&sandboxes) {
                    let name = sandbox.metadata.name.as_deref().unwrap_or_default();
                    let replicas = self.random.below(5);
                    self.patch(
                        &self.sandboxes,
                        name,
                        &json!({"spec": {"replicas": replicas}}),
                    )
                    .await?;
                }
            }
            85..90 => {
                let most = 6 + self.random.below(8);
                let capacity = json!({"spec": {"capacitySpec": {
                    "poolMax": most, "bufferMin": self.random.below(3), "bufferMax": 4, "poolMin": self.random.below(5),
                }}});
                self.patch(&self.pools, pool, &capacity).await?;
            }
            90..93 => {
                let label = self.random.below(1000).to_string();
                let template =
                    json!({"spec": {"template": {"metadata": {"labels": {"edit": label}}}}});
                self.patch(&self.pools, pool, &template).await?;
            }
            93..97 => {
                let label =
                    json!({"metadata": {"labels": {"pool.opensandbox.io/evict": "please"}}});
                if let Some(pod) = self.some_pod().await? {
                    self.patch(&self.pods, &pod, &label).await?;
                }
            }
            _ => {
                if let Some(pod) = self.some_pod().await? {
                    // Marked, so that the judge knows who did it.
                    let mark =
                        json!({"metadata": {"annotations": {super::history::BY_HAND: "deleted"}}});
                    self.patch(&self.pods, &pod, &mark).await?;
                    gone_is_fine(self.pods.delete(&pod, &DeleteParams::default()).await)?;
                }
            }
        }
        Ok(())
    }

    async fn some_pod(&mut self) -> Result<Option<String>> {
        let pods = self.pods.list(&ListParams::default()).await?.items;
        let pod = self.random.pick(&pods);
        Ok(pod.and_then(|pod| pod.metadata.name.clone()))
    }

    async fn create(&mut self, pool: &str) -> Result<()> {
        self.number += 1;
        let sandbox = json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
            "metadata": {"name": format!("s{}", self.number)},
            "spec": {"replicas": 1 + self.random.below(4), "poolRef": pool},
        });
        let sandbox = serde_json::from_value(sandbox)?;
        self.sandboxes
            .create(&PostParams::default(), &sandbox)
            .await?;
        Ok(())
    }

    async fn patch<K>(&self, api: &Api<K>, name: &str, patch: &Value) -> Result<()>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        gone_is_fine(
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await,
        )
    }
}

fn gone_is_fine<T>(result: kube::Result<T>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
