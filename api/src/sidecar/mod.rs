//! The injection: turns a pod template into one whose pods hold the task executor.
//!
//! The webhook calls [`pool::mutate`] on admission, the operator [`inject`] when it builds a pod, the
//! command line both: one function, so they cannot disagree. Pure, on raw JSON: a field that our
//! types do not know is never touched. What is decided where:
//!
//! - [`decide`]: who gets it (label on the Pool, else on its Namespace, else the default);
//! - [`Mode`]: as a sidecar, or in the sandbox's own container (annotation on the Pool);
//! - [`in_container`]: a template that already runs the executor in its own way is left alone;
//! - [`inject`]: what is added, where each value comes from, what cannot be injected and why;
//! - [`record`]: the annotation that says so, from which [`uninject`] gives the input back;
//! - [`wrap`]: what is left to do when a pod is made.
//!
//! Invariants, each with a property test: nothing is removed but what was added for the mode that a Pool
//! leaves; every value of the input is in the output unless it was `null`, empty or ours; injected again,
//! nothing changes; the result depends on the object, the stored object, the namespace's label and the
//! settings, and on nothing else.

mod container;
mod edit;
pub mod in_container;
mod inject;
mod installer;
mod mode;
mod obstacles;
mod path;
pub mod pool;
pub mod record;
mod uninject;
mod wrap;

pub use inject::{Injection, Previous, inject};
pub use mode::Mode;
pub use path::{Path, Segment};
pub use record::Record;
pub use uninject::uninject;
pub use wrap::wrap;

use serde_json::{Value, json};

use crate::labels;

/// A value and where it came from, in words that `explain` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Its origin, such as `ConfigMap default/opensandbox-images, key taskExecutorImage`.
    pub origin: String,
}

/// Origin of values that are built in.
pub const DEFAULT_ORIGIN: &str = "default";

/// What one ConfigMap named [`labels::IMAGES_CONFIG_MAP`] says. Absent, empty and blank entries are
/// `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagesConfig {
    /// Namespace of the ConfigMap.
    pub namespace: String,
    /// Entry [`labels::TASK_EXECUTOR_IMAGE_KEY`].
    pub task_executor_image: Option<String>,
    /// Entry [`labels::TASK_EXECUTOR_VERIFICATION_KEY_KEY`]; read from the installation's only.
    pub verification_key: Option<String>,
}

/// Entries of a ConfigMap that were not taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEntry {
    /// The key.
    pub key: &'static str,
    /// What is wrong and what to do.
    pub reason: String,
}

impl ImagesConfig {
    /// Reads the `data` of a ConfigMap. A malformed entry counts as absent and is reported; it never
    /// spoils the others.
    pub fn read<'a>(
        namespace: &str,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> (Self, Vec<BadEntry>) {
        let mut bad = Vec::new();
        let entry = |key: &str| {
            get(key)
                .map(str::trim)
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
        };
        let mut image = entry(labels::TASK_EXECUTOR_IMAGE_KEY);
        if let Some(reason) = image.as_deref().and_then(image_problem) {
            bad.push(BadEntry {
                key: labels::TASK_EXECUTOR_IMAGE_KEY,
                reason,
            });
            image = None;
        }
        let mut key = entry(labels::TASK_EXECUTOR_VERIFICATION_KEY_KEY);
        if key
            .as_deref()
            .is_some_and(|key| key.len() > 1024 || key.chars().any(char::is_whitespace))
        {
            bad.push(BadEntry {
                key: labels::TASK_EXECUTOR_VERIFICATION_KEY_KEY,
                reason: "must be one word of base64".to_owned(),
            });
            key = None;
        }
        (
            Self {
                namespace: namespace.to_owned(),
                task_executor_image: image,
                verification_key: key,
            },
            bad,
        )
    }
}

/// Why a text cannot be an image reference, if so. Only what no registry could mean is refused; the
/// kubelet judges the rest.
pub fn image_problem(image: &str) -> Option<String> {
    if image.len() > 1024 {
        return Some(
            "is longer than 1024 characters; give an image reference such as registry/name:tag"
                .to_owned(),
        );
    }
    if let Some(odd) = image
        .chars()
        .find(|character| character.is_whitespace() || character.is_control())
    {
        return Some(format!(
            "contains {odd:?}; give an image reference such as registry/name:tag"
        ));
    }
    None
}

/// What the injection takes from outside the Pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the executor.
    pub image: Sourced<String>,
    /// Public key of the operator, if the installation has one.
    pub verification_key: Option<Sourced<String>>,
}

impl Settings {
    /// First match wins: the ConfigMap in the Pool's namespace, that in the installation's, the
    /// default. (The Pool's own container comes before all of them, in [`inject`].)
    pub fn resolve(
        namespace: Option<&ImagesConfig>,
        installation: Option<&ImagesConfig>,
        default_image: &Sourced<String>,
    ) -> Self {
        let from = |config: &ImagesConfig, key: &str, value: &String| Sourced {
            value: value.clone(),
            origin: format!(
                "ConfigMap {}/{}, key {key}",
                config.namespace,
                labels::IMAGES_CONFIG_MAP
            ),
        };
        let image_of = |config: &ImagesConfig| {
            config
                .task_executor_image
                .as_ref()
                .map(|image| from(config, labels::TASK_EXECUTOR_IMAGE_KEY, image))
        };
        let image = namespace
            .and_then(image_of)
            .or_else(|| installation.and_then(image_of))
            .unwrap_or_else(|| default_image.clone());
        let verification_key = installation.and_then(|config| {
            let key = config.verification_key.as_ref()?;
            Some(from(
                config,
                labels::TASK_EXECUTOR_VERIFICATION_KEY_KEY,
                key,
            ))
        });
        Self {
            image,
            verification_key,
        }
    }

    /// The built-in default: no ConfigMap, no key.
    pub fn built_in() -> Self {
        Self::resolve(None, None, &default_image())
    }
}

/// The image used where nothing names one.
pub fn default_image() -> Sourced<String> {
    Sourced {
        value: labels::DEFAULT_TASK_EXECUTOR_IMAGE.to_owned(),
        origin: DEFAULT_ORIGIN.to_owned(),
    }
}

/// The image used where no ConfigMap names one, as an installation was told it, with its origin in the
/// words of `explain`.
pub fn installation_image(image: &str) -> Sourced<String> {
    let origin = if image == labels::DEFAULT_TASK_EXECUTOR_IMAGE {
        DEFAULT_ORIGIN
    } else {
        "default of the installation"
    };
    Sourced {
        value: image.to_owned(),
        origin: origin.to_owned(),
    }
}

/// Whether Pools get the executor where neither they nor their namespace say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InjectionDefault {
    /// They do.
    #[default]
    Enabled,
    /// Only where a label asks for it.
    Disabled,
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// Label on the Pool.
    PoolLabel,
    /// Label on its Namespace.
    NamespaceLabel,
    /// The installation's default.
    Default,
}

impl DecidedBy {
    /// In words, for `explain`.
    pub fn words(self) -> &'static str {
        match self {
            Self::PoolLabel => "label on the Pool",
            Self::NamespaceLabel => "label on the Namespace",
            Self::Default => "default of the installation",
        }
    }
}

/// What is to be done with a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is switched off.
    Disabled(DecidedBy),
    /// Nothing: the template runs the executor in its own way; the sentence says how that shows.
    HandWritten(String),
    /// The sidecar is added, or completed where the user wrote it.
    Sidecar(DecidedBy),
    /// The executor is put into the sandbox's container.
    InContainer(DecidedBy),
}

/// As a sentence, for the audit log and for `explain`.
impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disabled(by) => write!(f, "not injected: disabled by the {}", by.words()),
            Self::HandWritten(evidence) => write!(f, "not injected: {evidence}"),
            Self::Sidecar(by) => write!(f, "injected: enabled by the {}", by.words()),
            Self::InContainer(by) => write!(
                f,
                "injected in-container: enabled by the {}; the sandbox's command is wrapped when a pod is made",
                by.words()
            ),
        }
    }
}

impl Decision {
    /// Whether pods of the template hold the executor because of us.
    pub fn has_executor(&self) -> bool {
        self.mode().is_some()
    }

    /// Where pods of the template hold the executor, if they do because of us.
    pub fn mode(&self) -> Option<Mode> {
        match self {
            Self::Disabled(_) | Self::HandWritten(_) => None,
            Self::Sidecar(_) => Some(Mode::Sidecar),
            Self::InContainer(_) => Some(Mode::InContainer),
        }
    }
}

/// Who gets the executor. An unknown label value counts as absent here; validation refuses it on a
/// Pool.
pub fn decide(
    pool_label: Option<&str>,
    namespace_label: Option<&str>,
    default: InjectionDefault,
) -> (bool, DecidedBy) {
    let read = |label: Option<&str>| match label {
        Some("enabled") => Some(true),
        Some("disabled") => Some(false),
        _ => None,
    };
    if let Some(enabled) = read(pool_label) {
        return (enabled, DecidedBy::PoolLabel);
    }
    if let Some(enabled) = read(namespace_label) {
        return (enabled, DecidedBy::NamespaceLabel);
    }
    (default == InjectionDefault::Enabled, DecidedBy::Default)
}

/// Name of the container that tasks run in, in the mode `in-container`: the one that the
/// default-container annotation of the template names, else the first.
pub fn main_container(template: &Value) -> Option<&str> {
    obstacles::main_container(template)?.1.get("name")?.as_str()
}

/// Resources of an injected executor.
fn default_resources() -> Value {
    json!({
        "requests": { "cpu": "100m", "memory": "128Mi" },
        "limits": { "cpu": "500m", "memory": "256Mi" },
    })
}

/// The one capability it needs.
const SYS_PTRACE: &str = "SYS_PTRACE";

/// Ready only after a task ran in the sandbox, which the executor answers at this path.
fn readiness_probe() -> Value {
    json!({
        "httpGet": { "path": "/readyz", "port": labels::TASK_EXECUTOR_PORT },
        "periodSeconds": 5,
        "failureThreshold": 3,
    })
}
