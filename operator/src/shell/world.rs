//! What the watches have told: the caches, and who is to hear of a change.
//!
//! In: [`Change`]s, each a whole view or a disappearance. Out: [`Delivery`]s. Pure. Kept by a replica that
//! does not lead as well, so that it can take over.

use std::collections::{BTreeMap, HashMap};
use std::panic::catch_unwind;
use std::sync::Arc;

use opensandbox_api::sidecar::{ImagesConfig, InjectionDefault, Settings, Sourced};

use crate::assign::Profiles;
use crate::pool::{self, InjectionFacts};
use crate::protocol::Statement;
use crate::sandbox;
use crate::view::{ObjectKey, PodView, PoolView, SandboxView};

/// Something that a watch tells.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Pool is there or has changed.
    Pool(Arc<PoolView>),
    /// A Pool is gone.
    PoolGone(ObjectKey),
    /// A BatchSandbox is there or has changed.
    Sandbox(Arc<SandboxView>),
    /// A BatchSandbox is gone.
    SandboxGone(ObjectKey),
    /// A pod with a pool's label is there or has changed.
    PoolPod(Arc<PodView>),
    /// Such a pod is gone, or has the label no more.
    PoolPodGone(ObjectKey),
    /// A pod with a BatchSandbox's label is there or has changed.
    TemplatePod(Arc<PodView>),
    /// Such a pod is gone, or has the label no more.
    TemplatePodGone(ObjectKey),
    /// The images ConfigMap of a namespace.
    Images(ImagesConfig),
    /// It is gone.
    ImagesGone(ObjectKey),
    /// A namespace, with its label that decides on the injection.
    Namespace(String, Option<String>),
    /// It is gone.
    NamespaceGone(String),
    /// The profiles of pool assignment.
    Profiles(Profiles),
    /// It is gone.
    ProfilesGone,
    /// The public keys by which executors know this operator: what pods are made with, whether or not the
    /// ConfigMap has them already.
    Keys(String),
}

/// Who is to hear what.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// A pool, whether or not there is a Pool object.
    Pool(ObjectKey, pool::Input),
    /// An object that was not known.
    NewSandbox(Arc<SandboxView>),
    /// A known object, by its UID.
    Sandbox(String, sandbox::Input),
    /// An object is gone, by its UID, and said so.
    SandboxGone(String),
    /// All pools and sandboxes of a namespace.
    Injection(String, Arc<InjectionFacts>),
}

/// What the injection takes from the program's arguments.
#[derive(Clone, Debug)]
pub struct InjectionDefaults {
    /// Namespace of the installation.
    pub namespace: String,
    /// Where neither label says.
    pub default: InjectionDefault,
    /// Where no ConfigMap names an image.
    pub image: Sourced<String>,
}

/// The caches.
#[derive(Debug)]
pub struct World {
    defaults: InjectionDefaults,
    pools: BTreeMap<ObjectKey, Arc<PoolView>>,
    sandboxes: HashMap<ObjectKey, Arc<SandboxView>>,
    pool_pods: HashMap<ObjectKey, Arc<PodView>>,
    template_pods: HashMap<ObjectKey, Arc<PodView>>,
    images: HashMap<String, ImagesConfig>,
    namespaces: HashMap<String, Option<String>>,
    profiles: Profiles,
    keys: Option<String>,
    /// Made when first asked for, so that only namespaces with objects of ours have any.
    facts: HashMap<String, Arc<InjectionFacts>>,
}

impl World {
    /// Nothing is known yet.
    pub fn new(defaults: InjectionDefaults) -> Self {
        Self {
            defaults,
            pools: BTreeMap::new(),
            sandboxes: HashMap::new(),
            pool_pods: HashMap::new(),
            template_pods: HashMap::new(),
            images: HashMap::new(),
            namespaces: HashMap::new(),
            profiles: Profiles::default(),
            keys: None,
            facts: HashMap::new(),
        }
    }

    /// Takes a change over and says who is to hear of it, in this order.
    pub fn apply(&mut self, change: Change) -> Vec<Delivery> {
        let mut out = Vec::new();
        match change {
            Change::Pool(view) => {
                let key = view.key.clone();
                self.pools.insert(key.clone(), Arc::clone(&view));
                out.push(Delivery::Pool(key, pool::Input::Pool(view)));
            }
            Change::PoolGone(key) => {
                self.pools.remove(&key);
                out.push(Delivery::Pool(key, pool::Input::PoolAbsent));
            }
            Change::Sandbox(view) => {
                let before = self
                    .sandboxes
                    .insert(view.key.clone(), Arc::clone(&view))
                    .filter(|before| before.uid != view.uid);
                if let Some(before) = before {
                    out.push(Delivery::SandboxGone(before.uid.clone()));
                }
                out.push(Delivery::NewSandbox(view));
            }
            Change::SandboxGone(key) => {
                if let Some(before) = self.sandboxes.remove(&key) {
                    out.push(Delivery::SandboxGone(before.uid.clone()));
                }
            }
            Change::PoolPod(view) => {
                let before = self
                    .pool_pods
                    .insert(view.key.clone(), Arc::clone(&view))
                    .filter(|before| before.uid != view.uid || before.pool != view.pool);
                out.extend(before.and_then(|before| pool_pod_gone(&before)));
                out.extend(pool_of(&view).map(|pool| Delivery::Pool(pool, pool::Input::Pod(view))));
            }
            Change::PoolPodGone(key) => {
                let before = self.pool_pods.remove(&key);
                out.extend(before.and_then(|before| pool_pod_gone(&before)));
            }
            Change::TemplatePod(view) => {
                let before = self
                    .template_pods
                    .insert(view.key.clone(), Arc::clone(&view));
                let moved =
                    before.filter(|before| before.uid != view.uid || maker(before) != maker(&view));
                out.extend(moved.and_then(|before| template_pod_gone(&before)));
                if let Some(maker) = maker(&view).map(str::to_owned) {
                    out.push(Delivery::Sandbox(maker, sandbox::Input::Pod(view)));
                }
            }
            Change::TemplatePodGone(key) => {
                let before = self.template_pods.remove(&key);
                out.extend(before.and_then(|before| template_pod_gone(&before)));
            }
            Change::Images(config) => {
                let namespace = config.namespace.clone();
                self.images.insert(namespace.clone(), config);
                self.refresh(&namespace, &mut out);
            }
            Change::ImagesGone(key) => {
                self.images.remove(&key.namespace);
                self.refresh(&key.namespace, &mut out);
            }
            Change::Namespace(name, label) => {
                self.namespaces.insert(name.clone(), label);
                self.refresh(&name, &mut out);
            }
            Change::NamespaceGone(name) => {
                self.namespaces.remove(&name);
                self.refresh(&name, &mut out);
            }
            Change::Profiles(profiles) => self.profiles = profiles,
            Change::ProfilesGone => self.profiles = Profiles::default(),
            Change::Keys(keys) => {
                self.keys = Some(keys);
                let installation = self.defaults.namespace.clone();
                self.refresh(&installation, &mut out);
            }
        }
        out
    }

    /// What pods of a namespace are injected with.
    pub fn injection(&mut self, namespace: &str) -> Arc<InjectionFacts> {
        if let Some(facts) = self.facts.get(namespace) {
            return Arc::clone(facts);
        }
        let facts = Arc::new(self.facts_of(namespace));
        self.facts.insert(namespace.to_owned(), Arc::clone(&facts));
        facts
    }

    fn facts_of(&self, namespace: &str) -> InjectionFacts {
        let mut settings = Settings::resolve(
            self.images.get(namespace),
            self.images.get(&self.defaults.namespace),
            &self.defaults.image,
        );
        if let Some(keys) = &self.keys {
            settings.verification_key = Some(Sourced {
                value: keys.clone(),
                origin: "the operator's signing key".to_owned(),
            });
        }
        InjectionFacts {
            namespace_label: self.namespaces.get(namespace).cloned().flatten(),
            default: self.defaults.default,
            settings,
        }
    }

    /// Makes the facts anew that depend on what this namespace says; tells of those that differ.
    fn refresh(&mut self, namespace: &str, out: &mut Vec<Delivery>) {
        let affected: Vec<String> = if namespace == self.defaults.namespace {
            self.facts.keys().cloned().collect()
        } else {
            self.facts
                .contains_key(namespace)
                .then(|| namespace.to_owned())
                .into_iter()
                .collect()
        };
        for name in affected {
            let facts = Arc::new(self.facts_of(&name));
            let before = self.facts.insert(name.clone(), Arc::clone(&facts));
            if before.as_ref() != Some(&facts) {
                out.push(Delivery::Injection(name, facts));
            }
        }
    }

    /// A Pool as it is known.
    pub fn pool(&self, key: &ObjectKey) -> Option<Arc<PoolView>> {
        self.pools.get(key).cloned()
    }

    /// All Pools of a namespace, by name.
    pub fn pools_of(&self, namespace: &str) -> Vec<Arc<PoolView>> {
        let from = ObjectKey::new(namespace, "");
        self.pools
            .range(from..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, pool)| Arc::clone(pool))
            .collect()
    }

    /// All BatchSandboxes.
    pub fn sandboxes(&self) -> impl Iterator<Item = &Arc<SandboxView>> {
        self.sandboxes.values()
    }

    /// A BatchSandbox as it is known.
    pub fn sandbox(&self, key: &ObjectKey) -> Option<&Arc<SandboxView>> {
        self.sandboxes.get(key)
    }

    /// The profiles of pool assignment.
    pub fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// Pods with this pool's label. Looks at all pods: for a pool that was not known before.
    pub fn pods_of_pool(&self, key: &ObjectKey) -> Vec<Arc<PodView>> {
        self.pool_pods
            .values()
            .filter(|pod| {
                pod.pool.as_ref() == Some(&key.name) && pod.key.namespace == key.namespace
            })
            .cloned()
            .collect()
    }

    /// Pods that this BatchSandbox made from its template. Looks at all such pods: for an object that was
    /// not known before.
    pub fn pods_of_sandbox(&self, view: &SandboxView) -> Vec<Arc<PodView>> {
        self.template_pods
            .values()
            .filter(|pod| maker(pod) == Some(view.uid.as_str()))
            .cloned()
            .collect()
    }

    /// All pods that BatchSandboxes made from their templates, by the UID of the BatchSandbox.
    pub fn template_pods(&self) -> HashMap<String, Vec<Arc<PodView>>> {
        let mut pods: HashMap<String, Vec<Arc<PodView>>> = HashMap::new();
        for pod in self.template_pods.values() {
            if let Some(maker) = maker(pod) {
                let of = pods.entry(maker.to_owned()).or_default();
                of.push(Arc::clone(pod));
            }
        }
        pods
    }

    /// Everything that pools start from: those with an object, with pods or with sandboxes.
    pub fn pools_at_start(&self) -> BTreeMap<ObjectKey, PoolStart> {
        let mut starts: BTreeMap<ObjectKey, PoolStart> = self
            .pools
            .keys()
            .map(|key| (key.clone(), PoolStart::default()))
            .collect();
        for pod in self.pool_pods.values() {
            if let Some(pool) = pool_of(pod) {
                starts.entry(pool).or_default().pods.push(Arc::clone(pod));
            }
        }
        for view in self.sandboxes.values() {
            let of = |pool| ObjectKey::new(view.key.namespace.clone(), pool);
            match catch_unwind(|| sandbox::statement(view)) {
                Ok(Some((pool, statement))) => {
                    let start = starts.entry(of(pool)).or_default();
                    start.statements.push(statement);
                }
                Ok(None) => {}
                Err(_) => {
                    tracing::error!(batch_sandbox = %view.key, "a bug keeps this BatchSandbox from being understood; its Pool stands still");
                    let pool = view
                        .spec
                        .as_ref()
                        .ok()
                        .and_then(|spec| spec.pool_ref.clone());
                    if let Some(pool) = pool {
                        starts.entry(of(pool)).or_default().unknown = true;
                    }
                }
            }
        }
        starts
    }
}

/// What a pool starts from, besides its object.
#[derive(Clone, Debug, Default)]
pub struct PoolStart {
    /// Pods with its label.
    pub pods: Vec<Arc<PodView>>,
    /// What sandboxes say, by their annotations.
    pub statements: Vec<Statement>,
    /// Whether a sandbox holds pods that are not in its statement: nothing must be given away then.
    pub unknown: bool,
}

fn pool_of(pod: &PodView) -> Option<ObjectKey> {
    let pool = pod.pool.clone()?;
    Some(ObjectKey::new(pod.key.namespace.clone(), pool))
}

fn pool_pod_gone(pod: &PodView) -> Option<Delivery> {
    let gone = pool::Input::PodGone {
        name: pod.key.name.clone(),
        uid: pod.uid.clone(),
    };
    Some(Delivery::Pool(pool_of(pod)?, gone))
}

/// The UID of the BatchSandbox that made this pod from its template: the one it is labelled with
/// and controlled by. Only the label, which any user can set, is not enough.
fn maker(pod: &PodView) -> Option<&str> {
    let owner = pod.owner.as_ref()?;
    let name = pod.sandbox.as_ref()?;
    let ours = owner.kind == "BatchSandbox" && owner.name == *name;
    ours.then_some(owner.uid.as_str())
}

fn template_pod_gone(pod: &PodView) -> Option<Delivery> {
    let gone = sandbox::Input::PodGone {
        name: pod.key.name.clone(),
        uid: pod.uid.clone(),
    };
    Some(Delivery::Sandbox(maker(pod)?.to_owned(), gone))
}

#[cfg(test)]
mod tests;
