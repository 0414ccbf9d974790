//! What the server would say to each object of the input, applied in this order to a fresh cluster.
//!
//! Namespaces and images ConfigMaps take effect for the Pools after them, as they do when the files
//! are applied. The rules are the server's own: `opensandbox-api` decides, [`Facts`] resolves the
//! settings. Pure but for that: no client.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use futures::FutureExt as _;
use opensandbox_api::labels;
use opensandbox_api::sidecar::pool::{self, Context, Mutation};
use opensandbox_api::sidecar::{ImagesConfig, image_problem, installation_image};
use opensandbox_api::validation::{self, NamespaceFacts, Problem};
use serde_json::Value;

use super::document::Place;
use crate::admission::Policy;
use crate::facts::Facts;
use crate::serve::Switch;

/// What the server has as settings.
#[derive(Debug, Args)]
pub struct Installation {
    /// Image of the executor where no ConfigMap opensandbox-images in the input names one.
    #[arg(long, value_name = "IMAGE", value_parser = image, default_value = labels::DEFAULT_TASK_EXECUTOR_IMAGE)]
    task_executor_image: String,
    /// Whether Pools get the executor where neither they nor their namespace say.
    #[arg(long, value_enum, default_value_t = Switch::Enabled)]
    injection_default: Switch,
    /// Namespace of the installation, whose ConfigMap opensandbox-images is the second choice.
    #[arg(
        long = "installation-namespace",
        value_name = "NAMESPACE",
        default_value = "opensandbox-system"
    )]
    home: String,
}

fn image(text: &str) -> Result<String, String> {
    match image_problem(text) {
        Some(problem) => Err(problem),
        None if text.is_empty() => {
            Err("is empty; give an image reference such as registry/name:tag".to_owned())
        }
        None => Ok(text.to_owned()),
    }
}

/// The kinds that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pool,
    BatchSandbox,
    Namespace,
    ImagesConfigMap,
    /// Passed through.
    Other,
}

impl Kind {
    pub(super) fn of(object: &Value) -> Self {
        let text = |field: &str| {
            object
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let ours = text("apiVersion") == format!("{}/{}", labels::GROUP, labels::VERSION);
        match (text("apiVersion"), text("kind")) {
            (_, "Pool") if ours => Self::Pool,
            (_, "BatchSandbox") if ours => Self::BatchSandbox,
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "ConfigMap") if metadata(object, "name") == Some(labels::IMAGES_CONFIG_MAP) => {
                Self::ImagesConfigMap
            }
            _ => Self::Other,
        }
    }
}

fn metadata<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object
        .get("metadata")?
        .get(field)?
        .as_str()
        .filter(|text| !text.is_empty())
}

/// Name of an object, or the beginning of the name that it will get.
pub(super) fn name(object: &Value) -> String {
    match (metadata(object, "name"), metadata(object, "generateName")) {
        (Some(name), _) => name.to_owned(),
        (None, Some(prefix)) => format!("{prefix}*"),
        (None, None) => "(no name)".to_owned(),
    }
}

/// Place, kind and name of an object, as every message begins.
pub(super) fn title(place: &Place, object: &Value, namespace: &str) -> String {
    let kind = object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let name = name(object);
    match Kind::of(object) {
        _ if kind.is_empty() => place.to_string(),
        Kind::Namespace => format!("{place} ({kind} {name})"),
        _ => format!("{place} ({kind} {namespace}/{name})"),
    }
}

/// The verdict on one object.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
    /// For a Pool without problems: what is to be done with it.
    pub(super) mutation: Option<Mutation>,
}

/// The cluster as far as the input has made it.
#[derive(Debug)]
pub(super) struct Cluster {
    facts: Facts,
    policy: Policy,
    namespaces: BTreeSet<String>,
    default_namespace: String,
}

impl Cluster {
    pub(super) fn new(installation: &Installation, default_namespace: &str) -> Self {
        let Installation {
            task_executor_image,
            injection_default,
            home,
        } = installation;
        let policy = Policy {
            injection_default: (*injection_default).into(),
            default_image: installation_image(task_executor_image),
            namespace: home.clone(),
            operators: Vec::new(),
        };
        Self {
            facts: Facts::default(),
            policy,
            namespaces: BTreeSet::new(),
            default_namespace: default_namespace.to_owned(),
        }
    }

    /// Namespace of an object.
    pub(super) fn namespace<'a>(&'a self, object: &'a Value) -> &'a str {
        metadata(object, "namespace").unwrap_or(&self.default_namespace)
    }

    /// Whether the input has the Namespace itself, so that its labels are known.
    pub(super) fn knows(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// Reviews one object and lets it take effect for those after it.
    pub(super) fn review(&mut self, object: &Value) -> Verdict {
        match Kind::of(object) {
            Kind::Pool => self.pool(object),
            Kind::BatchSandbox => batch_sandbox(object),
            Kind::Namespace => {
                self.put_namespace(object);
                Verdict::default()
            }
            Kind::ImagesConfigMap => self.put_images(object),
            Kind::Other => Verdict {
                warnings: unknown(object).into_iter().collect(),
                ..Verdict::default()
            },
        }
    }

    fn put_namespace(&mut self, object: &Value) {
        let Some(name) = metadata(object, "name") else {
            return;
        };
        let labels: BTreeMap<String, String> = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        self.facts.put_namespace(name, Some(&labels));
        self.namespaces.insert(name.to_owned());
    }

    fn put_images(&self, object: &Value) -> Verdict {
        let data = object.get("data");
        let read = |key: &str| data?.get(key)?.as_str();
        let (config, bad) = ImagesConfig::read(self.namespace(object), read);
        self.facts.put_images(config);
        let warnings = bad
            .iter()
            .map(|entry| format!("data.{}: {}; it counts as absent", entry.key, entry.reason));
        Verdict {
            warnings: warnings.collect(),
            ..Verdict::default()
        }
    }

    fn pool(&self, object: &Value) -> Verdict {
        let namespace = self.namespace(object);
        let facts: NamespaceFacts = self
            .facts
            .namespace(namespace)
            .now_or_never()
            .expect("without a client there is nothing to wait for");
        let settings = self.facts.settings(namespace, &self.policy);
        let context = Context {
            namespace_label: facts.injection.as_deref(),
            default: self.policy.injection_default,
            settings: &settings,
        };
        let mut problems = validation::pool(object);
        match pool::mutate(object, None, &context) {
            Ok(mutation) if problems.is_empty() => Verdict {
                problems,
                warnings: validation::pool_warnings(object, &facts, &mutation.decision),
                mutation: Some(mutation),
            },
            Ok(_) => Verdict {
                problems,
                ..Verdict::default()
            },
            Err(obstacles) => {
                for obstacle in obstacles {
                    // The same place may be reported by a rule already.
                    if !problems.iter().any(|problem| problem.path == obstacle.path) {
                        problems.push(obstacle);
                    }
                }
                Verdict {
                    problems,
                    ..Verdict::default()
                }
            }
        }
    }
}

fn batch_sandbox(object: &Value) -> Verdict {
    let problems = validation::batch_sandbox(object, None);
    if !problems.is_empty() {
        return Verdict {
            problems,
            ..Verdict::default()
        };
    }
    let mut warnings = validation::batch_sandbox_warnings(object);
    if metadata(object, "uid").is_none() {
        // An object read from a cluster may carry them; one that is to be created may not.
        let nobody = "";
        let annotations = validation::batch_sandbox_annotations(object, None, nobody, &[]);
        warnings.extend(
            annotations
                .iter()
                .map(|problem| format!("{problem}; the server refuses to create this")),
        );
    }
    Verdict {
        problems,
        warnings,
        mutation: None,
    }
}

/// Why an object of another kind may be one of ours by mistake.
fn unknown(object: &Value) -> Option<String> {
    let text = |field: &str| {
        object
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (version, kind) = (text("apiVersion"), text("kind"));
    if version.is_empty() && kind.is_empty() {
        return Some("has neither apiVersion nor kind and is not looked at".to_owned());
    }
    let ours = version.split('/').next() == Some(labels::GROUP) && kind != "SandboxSnapshot";
    ours.then(|| {
        format!(
            "{kind} of {version} is not known and not looked at; known are Pool and BatchSandbox of {}/{}",
            labels::GROUP,
            labels::VERSION
        )
    })
}

#[cfg(test)]
mod tests {
    use opensandbox_api::sidecar::{DecidedBy, Decision};
    use serde_json::json;

    use super::*;

    fn cluster() -> Cluster {
        let installation = Installation {
            task_executor_image: labels::DEFAULT_TASK_EXECUTOR_IMAGE.to_owned(),
            injection_default: Switch::Enabled,
            home: "opensandbox-system".to_owned(),
        };
        Cluster::new(&installation, "default")
    }

    fn pool(namespace: &str) -> Value {
        json!({
            "apiVersion": "sandbox.opensandbox.io/v1alpha1",
            "kind": "Pool",
            "metadata": {"name": "p", "namespace": namespace},
            "spec": {
                "template": {"spec": {"containers": [{"name": "main", "image": "ubuntu", "command": ["sleep", "1"]}]}},
                "capacitySpec": {"bufferMax": 1, "bufferMin": 1, "poolMax": 1, "poolMin": 1},
            },
        })
    }

    fn images(namespace: &str, image: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "opensandbox-images", "namespace": namespace},
            "data": {"taskExecutorImage": image},
        })
    }

    fn origin(cluster: &mut Cluster, namespace: &str) -> String {
        let mutation = cluster.review(&pool(namespace)).mutation.unwrap();
        mutation.record.image_origin().unwrap().to_owned()
    }

    #[test]
    fn a_config_map_takes_effect_for_the_pools_after_it() {
        let mut cluster = cluster();
        assert_eq!(origin(&mut cluster, ""), "default");
        cluster.review(&images("opensandbox-system", "a:1"));
        assert_eq!(
            origin(&mut cluster, ""),
            "ConfigMap opensandbox-system/opensandbox-images, key taskExecutorImage"
        );
        cluster.review(&images("", "b:1"));
        assert_eq!(
            origin(&mut cluster, ""),
            "ConfigMap default/opensandbox-images, key taskExecutorImage"
        );
        assert_eq!(
            origin(&mut cluster, "other"),
            "ConfigMap opensandbox-system/opensandbox-images, key taskExecutorImage"
        );
        let verdict = cluster.review(&images("", "a b"));
        assert!(
            verdict.warnings[0].contains("counts as absent"),
            "{verdict:?}"
        );
        assert_eq!(
            origin(&mut cluster, ""),
            "ConfigMap opensandbox-system/opensandbox-images, key taskExecutorImage"
        );
    }

    #[test]
    fn a_namespace_takes_effect_for_the_pools_after_it() {
        let mut cluster = cluster();
        assert!(!cluster.knows("ns"));
        cluster.review(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "ns", "labels": {labels::INJECTION: "disabled"}},
        }));
        assert!(cluster.knows("ns"));
        let decision = cluster.review(&pool("ns")).mutation.unwrap().decision;
        assert_eq!(decision, Decision::Disabled(DecidedBy::NamespaceLabel));
    }

    #[test]
    fn what_may_be_one_of_ours_by_mistake_is_warned_about() {
        let warnings = |object: &Value| cluster().review(object).warnings;
        assert!(warnings(&json!({"apiVersion": "apps/v1", "kind": "Deployment"})).is_empty());
        assert!(warnings(&json!({"a": 1}))[0].contains("neither"));
        assert!(
            warnings(&json!({"apiVersion": "sandbox.opensandbox.io/v1", "kind": "Pool"}))[0]
                .contains("not known")
        );
    }
}
