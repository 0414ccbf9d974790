//! The two watches that keep [`Facts`] current.
//!
//! ConfigMaps are watched by name across all namespaces, which is all that the RBAC rule allows; of
//! Namespaces only the metadata is fetched. A malformed object is logged and counts as absent; a
//! broken watch is taken up again with back-off while the last facts stay in use.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource as _};
use opensandbox_api::labels;
use serde::de::DeserializeOwned;

use super::{Facts, images_config};
use crate::metrics::Metrics;
use crate::server::Check;

/// Watches the labels of all namespaces, for ever. `check` passes after the first complete list.
pub async fn namespaces(client: Client, facts: Facts, check: Check) {
    let mut listed: Option<HashSet<String>> = None;
    follow::<PartialObjectMeta<Namespace>>(
        "namespaces",
        Api::all(client),
        watcher::Config::default(),
        |event| match event {
            Event::Init => listed = Some(HashSet::new()),
            Event::InitApply(namespace) | Event::Apply(namespace) => {
                let Some(name) = namespace.meta().name.clone() else {
                    return;
                };
                facts.put_namespace(&name, namespace.meta().labels.as_ref());
                if let Some(listed) = &mut listed {
                    listed.insert(name);
                }
            }
            Event::Delete(namespace) => {
                facts.remove_namespace(namespace.meta().name.as_deref().unwrap_or_default());
            }
            Event::InitDone => {
                if let Some(listed) = listed.take() {
                    facts.retain_namespaces(|name| listed.contains(name));
                }
                check.pass();
            }
        },
    )
    .await;
}

/// Watches the ConfigMaps named [`labels::IMAGES_CONFIG_MAP`], for ever. `check` passes after the
/// first complete list.
pub async fn images(client: Client, facts: Facts, metrics: Arc<Metrics>, check: Check) {
    let mut listed: Option<HashSet<String>> = None;
    let mut malformed: HashMap<String, i64> = HashMap::new();
    let config =
        watcher::Config::default().fields(&format!("metadata.name={}", labels::IMAGES_CONFIG_MAP));
    follow::<ConfigMap>("configmaps", Api::all(client), config, |event| {
        match event {
            Event::Init => listed = Some(HashSet::new()),
            Event::InitApply(config_map) | Event::Apply(config_map) => {
                let Some(namespace) = config_map.metadata.namespace.clone() else {
                    return;
                };
                let bad = take(&facts, &namespace, &config_map);
                malformed.insert(namespace.clone(), bad);
                if let Some(listed) = &mut listed {
                    listed.insert(namespace);
                }
            }
            Event::Delete(config_map) => {
                let namespace = config_map.metadata.namespace.unwrap_or_default();
                tracing::info!(%namespace, "images ConfigMap removed");
                malformed.remove(&namespace);
                facts.remove_images(&namespace);
            }
            Event::InitDone => {
                if let Some(listed) = listed.take() {
                    malformed.retain(|namespace, _| listed.contains(namespace));
                    facts.retain_images(|namespace| listed.contains(namespace));
                }
                check.pass();
            }
        }
        metrics.config_errors.set(malformed.values().sum());
    })
    .await;
}

/// Takes over one ConfigMap; returns the number of entries that could not be taken.
fn take(facts: &Facts, namespace: &str, config_map: &ConfigMap) -> i64 {
    let (config, bad) = images_config(namespace, config_map);
    for entry in &bad {
        tracing::warn!(
            namespace,
            config_map = labels::IMAGES_CONFIG_MAP,
            key = entry.key,
            reason = %entry.reason,
            "malformed entry counts as absent"
        );
    }
    tracing::info!(
        namespace,
        task_executor_image = config.task_executor_image.as_deref(),
        "images ConfigMap taken over"
    );
    facts.put_images(config);
    i64::try_from(bad.len()).unwrap_or(i64::MAX)
}

/// Follows one watch, whatever happens to it; the same complaint is logged once.
async fn follow<K>(
    what: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut on_event: impl FnMut(Event<K>),
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut complained = None;
    let mut events = pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if complained.take().is_some()
                    && matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_))
                {
                    tracing::info!(what, "watch works again");
                }
                on_event(event);
            }
            Err(error) => {
                let text = error.to_string();
                if complained.as_ref() != Some(&text) {
                    tracing::warn!(what, %error, "watch broken; the last facts stay in use");
                    complained = Some(text);
                }
            }
        }
    }
}
