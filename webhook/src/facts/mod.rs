//! What the webhook knows of the cluster: labels of namespaces and the images ConfigMaps.
//!
//! Kept current by two watches ([`watch`]); a review reads it in memory. Watches are milliseconds late,
//! and one `kubectl apply` may create a Namespace, its ConfigMap and its Pool within that time. So a
//! namespace that the watch has not told of is asked for, and so are the ConfigMaps that a Pool may
//! take its image from, at most once a second each; in between the watch is believed.

pub mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::core::PartialObjectMeta;
use opensandbox_api::labels;
use opensandbox_api::sidecar::{BadEntry, ImagesConfig, Settings};
use opensandbox_api::validation::NamespaceFacts;

use crate::admission::Policy;

/// How long a review waits for a namespace that is not known yet.
const NAMESPACE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a review waits for a ConfigMap that the watch may be late with.
const IMAGES_PATIENCE: Duration = Duration::from_millis(500);
/// How long the watch is believed after a ConfigMap was asked for.
const IMAGES_FRESH: Duration = Duration::from_secs(1);

/// Shared, current facts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Facts {
    known: Arc<RwLock<Known>>,
    client: Option<kube::Client>,
}

#[derive(Debug, Default)]
struct Known {
    namespaces: HashMap<String, NamespaceFacts>,
    images: HashMap<String, ImagesConfig>,
    /// When the ConfigMap of a namespace was last asked for.
    asked: HashMap<String, Instant>,
    /// How often the watch told of ConfigMaps: an answer to a question that was asked before it told
    /// something is older than that, and is dropped.
    told: u64,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.read(|known| {
            f.debug_struct("Facts")
                .field("known", known)
                .finish_non_exhaustive()
        })
    }
}

impl Facts {
    /// Facts that can ask the API server for a namespace that the watch has not told of.
    pub fn with_client(client: kube::Client) -> Self {
        Self {
            known: Arc::default(),
            client: Some(client),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        // A panic while writing leaves whole entries: each write is one insertion or removal.
        look(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Labels of a namespace; nothing of one that cannot be had, so that the defaults apply.
    pub async fn namespace(&self, name: &str) -> NamespaceFacts {
        if let Some(facts) = self.read(|known| known.namespaces.get(name).cloned()) {
            return facts;
        }
        let Some(client) = self.client.clone().filter(|_| !name.is_empty()) else {
            return NamespaceFacts::default();
        };
        let namespaces: kube::Api<PartialObjectMeta<Namespace>> = kube::Api::all(client);
        match tokio::time::timeout(NAMESPACE_PATIENCE, namespaces.get_metadata_opt(name)).await {
            Ok(Ok(Some(namespace))) => namespace_facts(namespace.metadata.labels.as_ref()),
            Ok(Ok(None)) => NamespaceFacts::default(),
            Ok(Err(error)) => {
                tracing::warn!(namespace = name, %error, "namespace cannot be read; its labels count as absent");
                NamespaceFacts::default()
            }
            Err(_) => {
                tracing::warn!(
                    namespace = name,
                    "namespace was not answered in time; its labels count as absent"
                );
                NamespaceFacts::default()
            }
        }
    }

    /// Asks for the images ConfigMaps of these namespaces, unless that was done within the last second.
    /// What cannot be had in time is left as the watch told it.
    pub async fn refresh_images(&self, namespaces: [&str; 2]) {
        let Some(client) = &self.client else { return };
        let now = Instant::now();
        let due: Vec<&str> = self.write(|known| {
            let due = namespaces
                .into_iter()
                .filter(|namespace| !namespace.is_empty());
            due.filter(|namespace| {
                let asked = known.asked.get(*namespace);
                let due = asked.is_none_or(|asked| now.duration_since(*asked) >= IMAGES_FRESH);
                if due {
                    known.asked.insert((*namespace).to_owned(), now);
                }
                due
            })
            .collect()
        });
        futures::future::join_all(
            due.into_iter()
                .map(|namespace| self.ask_for_images(client, namespace)),
        )
        .await;
    }

    async fn ask_for_images(&self, client: &kube::Client, namespace: &str) {
        let config_maps: kube::Api<ConfigMap> = kube::Api::namespaced(client.clone(), namespace);
        let told = self.read(|known| known.told);
        match tokio::time::timeout(
            IMAGES_PATIENCE,
            config_maps.get_opt(labels::IMAGES_CONFIG_MAP),
        )
        .await
        {
            Ok(Ok(Some(config_map))) => {
                let (config, _) = images_config(namespace, &config_map);
                self.answered(told, |images| {
                    images.insert(namespace.to_owned(), config);
                });
            }
            Ok(Ok(None)) => self.answered(told, |images| {
                images.remove(namespace);
            }),
            Ok(Err(error)) => {
                tracing::warn!(namespace, %error, "images ConfigMap cannot be read; what the watch told is used");
            }
            Err(_) => tracing::warn!(
                namespace,
                "images ConfigMap was not answered in time; what the watch told is used"
            ),
        }
    }

    fn answered(&self, told: u64, change: impl FnOnce(&mut HashMap<String, ImagesConfig>)) {
        self.write(|known| {
            if known.told == told {
                change(&mut known.images);
            }
        });
    }

    /// Image and key for a Pool in `namespace`.
    pub fn settings(&self, namespace: &str, policy: &Policy) -> Settings {
        self.read(|known| {
            Settings::resolve(
                known.images.get(namespace),
                known.images.get(&policy.namespace),
                &policy.default_image,
            )
        })
    }

    /// A namespace as the watch tells of it.
    pub fn put_namespace(&self, name: &str, labels: Option<&BTreeMap<String, String>>) {
        let facts = namespace_facts(labels);
        self.write(|known| known.namespaces.insert(name.to_owned(), facts));
    }

    /// A namespace is gone.
    pub fn remove_namespace(&self, name: &str) {
        self.write(|known| {
            known.namespaces.remove(name);
            known.asked.remove(name);
        });
    }

    /// Keeps only the named namespaces: what a complete list says.
    pub fn retain_namespaces(&self, keep: impl Fn(&str) -> bool) {
        self.write(|known| known.namespaces.retain(|name, _| keep(name)));
    }

    /// The images ConfigMap of a namespace.
    pub fn put_images(&self, config: ImagesConfig) {
        self.write(|known| {
            known.told += 1;
            known.images.insert(config.namespace.clone(), config);
        });
    }

    /// The images ConfigMap of a namespace is gone.
    pub fn remove_images(&self, namespace: &str) {
        self.write(|known| {
            known.told += 1;
            known.images.remove(namespace);
        });
    }

    /// Keeps only the named namespaces' ConfigMaps: what a complete list says.
    pub fn retain_images(&self, keep: impl Fn(&str) -> bool) {
        self.write(|known| {
            known.told += 1;
            known.images.retain(|namespace, _| keep(namespace));
        });
    }
}

/// What a ConfigMap says, and its entries that could not be taken.
fn images_config(namespace: &str, config_map: &ConfigMap) -> (ImagesConfig, Vec<BadEntry>) {
    let data = config_map.data.as_ref();
    ImagesConfig::read(namespace, |key| data?.get(key).map(String::as_str))
}

/// The labels that matter.
pub fn namespace_facts(labels: Option<&BTreeMap<String, String>>) -> NamespaceFacts {
    let get = |key: &str| labels.and_then(|labels| labels.get(key)).cloned();
    NamespaceFacts {
        injection: get(labels::INJECTION),
        pod_security: get(labels::POD_SECURITY_ENFORCE),
    }
}
