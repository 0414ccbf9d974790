//! What the webhook knows of the cluster: labels of namespaces and the images ConfigMaps.
//!
//! Kept current by two watches ([`watch`]); a review reads it in memory. A namespace that the watch has
//! not told of yet (it may be milliseconds old) is asked for once; a ConfigMap is not, since the watch
//! tells of it before a person can apply the next file.

pub mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use opensandbox_api::labels;
use opensandbox_api::sidecar::{ImagesConfig, Settings};
use opensandbox_api::validation::NamespaceFacts;

use crate::admission::Policy;

/// How long a review waits for a namespace that is not known yet.
const NAMESPACE_PATIENCE: Duration = Duration::from_secs(1);

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
        self.write(|known| known.namespaces.remove(name));
    }

    /// Keeps only the named namespaces: what a complete list says.
    pub fn retain_namespaces(&self, keep: impl Fn(&str) -> bool) {
        self.write(|known| known.namespaces.retain(|name, _| keep(name)));
    }

    /// The images ConfigMap of a namespace.
    pub fn put_images(&self, config: ImagesConfig) {
        self.write(|known| known.images.insert(config.namespace.clone(), config));
    }

    /// The images ConfigMap of a namespace is gone.
    pub fn remove_images(&self, namespace: &str) {
        self.write(|known| known.images.remove(namespace));
    }

    /// Keeps only the named namespaces' ConfigMaps: what a complete list says.
    pub fn retain_images(&self, keep: impl Fn(&str) -> bool) {
        self.write(|known| known.images.retain(|namespace, _| keep(namespace)));
    }
}

/// The labels that matter.
pub fn namespace_facts(labels: Option<&BTreeMap<String, String>>) -> NamespaceFacts {
    let get = |key: &str| labels.and_then(|labels| labels.get(key)).cloned();
    NamespaceFacts {
        injection: get(labels::INJECTION),
        pod_security: get(labels::POD_SECURITY_ENFORCE),
    }
}
