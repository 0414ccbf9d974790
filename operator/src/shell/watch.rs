//! The watches: raw objects in, [`Change`]s out, for ever.
//!
//! Lists in pages of 500, then watches with bookmarks; a broken watch is taken up again with back-off
//! while the last picture stays in use, and a list that had to be made anew is told as its difference:
//! what vanished meanwhile is told as gone. Objects are reduced to views as they come.
//!
//! When leadership is won, every list is made once more ([`Watches::restart`]): what a standby knows may
//! be behind what the leader before it wrote last, and a pod must not be given away because its owner's
//! annotation is still on the way. A list without a version is consistent by Kubernetes' promise.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use opensandbox_api::labels;
use opensandbox_api::sidecar::ImagesConfig;
use opensandbox_api::v1alpha1::{BatchSandbox, Pool};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::health::Readiness;
use super::metrics::Metrics;
use super::router::Message;
use super::world::Change;
use crate::assign::{self, Profiles};
use crate::view::parse::{self, RawPod};
use crate::view::{ObjectKey, PodView, PoolView, SandboxView};

/// Which namespaces are looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Cluster,
    /// These.
    Namespaces(Vec<String>),
}

/// What the watches need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespaces.
    pub scope: Scope,
    /// Namespace of the installation.
    pub installation: String,
}

/// Running watches. Dropping this ends them.
#[derive(Debug)]
pub struct Watches {
    names: Vec<String>,
    round: watch::Sender<u64>,
    // Kept for its tasks.
    _tasks: JoinSet<()>,
}

impl Watches {
    /// Starts all. Each reports [`Message::Listed`] after every complete list.
    pub fn start(
        client: &Client,
        settings: &Settings,
        messages: &mpsc::UnboundedSender<Message>,
        readiness: &Readiness,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (round, rounds) = watch::channel(0);
        let mut starter = Starter {
            client: client.clone(),
            rounds,
            messages: messages.clone(),
            readiness: readiness.clone(),
            metrics: Arc::clone(metrics),
            names: Vec::new(),
            tasks: JoinSet::new(),
        };
        match &settings.scope {
            Scope::Cluster => {
                starter.objects(None);
                starter.images(None);
                starter.namespaces();
            }
            Scope::Namespaces(namespaces) => {
                for namespace in namespaces {
                    starter.objects(Some(namespace));
                    starter.images(Some(namespace));
                }
                if !namespaces.contains(&settings.installation) {
                    starter.images(Some(&settings.installation));
                }
            }
        }
        starter.profiles(&settings.installation);
        let Starter { names, tasks, .. } = starter;
        Self {
            names,
            round,
            _tasks: tasks,
        }
    }

    /// The name of each watch.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Makes every list anew; [`Message::Listed`] with this number tells that it is done.
    pub fn restart(&self) -> u64 {
        let mut number = 0;
        self.round.send_modify(|round| {
            *round += 1;
            number = *round;
        });
        number
    }
}

struct Starter {
    client: Client,
    rounds: watch::Receiver<u64>,
    messages: mpsc::UnboundedSender<Message>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    names: Vec<String>,
    tasks: JoinSet<()>,
}

impl Starter {
    fn spawn<K>(
        &mut self,
        name: String,
        api: Api<K>,
        config: watcher::Config,
        present: impl Fn(K) -> Change + Send + 'static,
        gone: impl Fn(ObjectKey) -> Change + Send + 'static,
    ) where
        K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        self.readiness.expect(&name);
        self.names.push(name.clone());
        let follow = Follow {
            name,
            rounds: self.rounds.clone(),
            messages: self.messages.clone(),
            readiness: self.readiness.clone(),
            metrics: Arc::clone(&self.metrics),
            known: HashSet::new(),
            listed: None,
            complained: None,
        };
        self.tasks.spawn(follow.run(api, config, present, gone));
    }

    /// Pools, BatchSandboxes and their pods.
    fn objects(&mut self, namespace: Option<&str>) {
        let any = watcher::Config::default();
        self.spawn(
            name("pools", namespace),
            dynamic::<Pool>(&self.client, namespace),
            any.clone(),
            |object| Change::Pool(Arc::new(PoolView::from(object))),
            Change::PoolGone,
        );
        self.spawn(
            name("batchsandboxes", namespace),
            dynamic::<BatchSandbox>(&self.client, namespace),
            any.clone(),
            |object| Change::Sandbox(Arc::new(SandboxView::from(object))),
            Change::SandboxGone,
        );
        self.spawn(
            name("pool-pods", namespace),
            scoped::<RawPod>(&self.client, namespace),
            any.clone().labels(labels::POOL_NAME),
            |pod| Change::PoolPod(Arc::new(PodView::from(pod))),
            Change::PoolPodGone,
        );
        self.spawn(
            name("template-pods", namespace),
            scoped::<RawPod>(&self.client, namespace),
            any.labels(labels::BATCH_SANDBOX_NAME),
            |pod| Change::TemplatePod(Arc::new(PodView::from(pod))),
            Change::TemplatePodGone,
        );
    }

    fn images(&mut self, namespace: Option<&str>) {
        self.spawn(
            name("images", namespace),
            scoped::<ConfigMap>(&self.client, namespace),
            named(labels::IMAGES_CONFIG_MAP),
            |config_map| Change::Images(images(&config_map)),
            Change::ImagesGone,
        );
    }

    fn namespaces(&mut self) {
        self.spawn(
            "namespaces".to_owned(),
            Api::<PartialObjectMeta<Namespace>>::all(self.client.clone()),
            watcher::Config::default(),
            |namespace| {
                let label = namespace
                    .metadata
                    .labels
                    .and_then(|mut labels| labels.remove(labels::INJECTION));
                Change::Namespace(namespace.metadata.name.unwrap_or_default(), label)
            },
            |key| Change::NamespaceGone(key.name),
        );
    }

    fn profiles(&mut self, installation: &str) {
        self.spawn(
            "profiles".to_owned(),
            scoped::<ConfigMap>(&self.client, Some(installation)),
            named(assign::CONFIG_MAP),
            |config_map| Change::Profiles(profiles(&config_map)),
            |_| Change::ProfilesGone,
        );
    }
}

fn name(what: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{what}/{namespace}"),
        None => what.to_owned(),
    }
}

fn named(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Raw objects of one of our kinds: one that does not fit our types must not stop the watch.
fn dynamic<K: kube::Resource<DynamicType = ()>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<K>(&());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

fn images(config_map: &ConfigMap) -> ImagesConfig {
    let namespace = config_map.metadata.namespace.as_deref().unwrap_or_default();
    let data = config_map.data.as_ref();
    let (config, bad) = ImagesConfig::read(namespace, |key| data?.get(key).map(String::as_str));
    for entry in bad {
        tracing::warn!(
            namespace,
            config_map = labels::IMAGES_CONFIG_MAP,
            key = entry.key,
            reason = %entry.reason,
            "malformed entry counts as absent"
        );
    }
    config
}

fn profiles(config_map: &ConfigMap) -> Profiles {
    let text = config_map
        .data
        .as_ref()
        .and_then(|data| data.get(assign::KEY));
    let (profiles, problems) = Profiles::read(text.map(String::as_str));
    for problem in problems {
        tracing::warn!(
            config_map = assign::CONFIG_MAP,
            problem,
            "not taken as it is"
        );
    }
    profiles
}

struct Follow {
    name: String,
    rounds: watch::Receiver<u64>,
    messages: mpsc::UnboundedSender<Message>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    known: HashSet<ObjectKey>,
    listed: Option<HashSet<ObjectKey>>,
    complained: Option<String>,
}

impl Follow {
    async fn run<K>(
        mut self,
        api: Api<K>,
        config: watcher::Config,
        present: impl Fn(K) -> Change,
        gone: impl Fn(ObjectKey) -> Change,
    ) where
        K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        loop {
            let round = *self.rounds.borrow_and_update();
            let mut events = pin!(watcher(api.clone(), config.clone()).default_backoff());
            loop {
                let event = tokio::select! {
                    biased;
                    changed = self.rounds.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(event)) => self.take(event, round, &present, &gone),
                    Some(Err(error)) => self.complain(&error),
                    None => break,
                }
            }
        }
    }

    fn take<K: kube::Resource>(
        &mut self,
        event: Event<K>,
        round: u64,
        present: impl Fn(K) -> Change,
        gone: impl Fn(ObjectKey) -> Change,
    ) {
        if !matches!(event, Event::Init | Event::InitApply(_)) && self.complained.take().is_some() {
            tracing::info!(watch = self.name, "watch works again");
        }
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(object) | Event::Apply(object) => {
                let key = parse::key(object.meta());
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                self.known.insert(key);
                self.tell(Message::Change(present(object)));
            }
            Event::Delete(object) => {
                let key = parse::key(object.meta());
                self.known.remove(&key);
                self.tell(Message::Change(gone(key)));
            }
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    let vanished: Vec<ObjectKey> =
                        self.known.difference(&listed).cloned().collect();
                    for key in vanished {
                        self.tell(Message::Change(gone(key)));
                    }
                    self.known = listed;
                }
                self.readiness.pass(&self.name);
                self.tell(Message::Listed {
                    watch: self.name.clone(),
                    round,
                });
            }
        }
    }

    fn tell(&self, message: Message) {
        // Without a router this process is ending.
        let _ = self.messages.send(message);
    }

    /// Says what is wrong, once as long as it stays the same.
    fn complain(&mut self, error: &watcher::Error) {
        self.metrics.failed("watch");
        let text = error.to_string();
        if self.complained.as_ref() != Some(&text) {
            tracing::warn!(
                watch = self.name,
                error = text,
                "watch broken; the last picture stays in use"
            );
            self.complained = Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    fn pod(name: &str) -> RawPod {
        RawPod::deserialize(json!({"metadata": {"namespace": "ns", "name": name}})).unwrap()
    }

    #[test]
    fn what_vanished_while_a_list_was_made_is_told_as_gone() {
        let (messages, mut told) = mpsc::unbounded_channel();
        let (_round, rounds) = watch::channel(0);
        let readiness = Readiness::default();
        readiness.expect("pods");
        let mut follow = Follow {
            name: "pods".to_owned(),
            rounds,
            messages,
            readiness: readiness.clone(),
            metrics: Arc::default(),
            known: HashSet::new(),
            listed: None,
            complained: Some("before".to_owned()),
        };
        let mut take = |event| {
            follow.take(
                event,
                4,
                |pod| Change::PoolPod(Arc::new(PodView::from(pod))),
                Change::PoolPodGone,
            );
            let mut texts = Vec::new();
            while let Ok(message) = told.try_recv() {
                texts.push(match message {
                    Message::Change(Change::PoolPod(pod)) => format!("+{}", pod.key.name),
                    Message::Change(Change::PoolPodGone(key)) => format!("-{}", key.name),
                    Message::Listed { watch, round } => format!("{watch} {round}"),
                    other => format!("{other:?}"),
                });
            }
            texts
        };
        assert!(take(Event::Init).is_empty());
        assert_eq!(take(Event::InitApply(pod("a"))), ["+a"]);
        assert_eq!(take(Event::InitApply(pod("b"))), ["+b"]);
        assert!(!readiness.report().0);
        assert_eq!(take(Event::InitDone), ["pods 4"]);
        assert!(readiness.report().0);
        assert_eq!(take(Event::Apply(pod("c"))), ["+c"]);
        assert_eq!(take(Event::Delete(pod("a"))), ["-a"]);
        // The watch was too old; meanwhile b went and d came.
        assert!(take(Event::Init).is_empty());
        assert_eq!(take(Event::InitApply(pod("c"))), ["+c"]);
        assert_eq!(take(Event::InitApply(pod("d"))), ["+d"]);
        assert_eq!(take(Event::InitDone), ["-b", "pods 4"]);
    }
}
