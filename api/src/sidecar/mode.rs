//! Where the executor runs, and what of a template belongs to which mode.

use serde_json::Value;

use super::Path;
use crate::labels;
use crate::validation::{Fault, Problem, Stage};

/// Where the executor runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In a container beside the sandbox's, which may trace its processes.
    #[default]
    Sidecar,
    /// In the sandbox's container, whose command it starts: no capability, no shared process namespace.
    InContainer,
}

impl Mode {
    /// Reads the annotation [`labels::EXECUTOR_MODE`] of an object.
    ///
    /// # Errors
    ///
    /// It has a value that is no mode.
    pub fn of(object: &Value) -> Result<Self, Problem> {
        let annotation = object
            .pointer("/metadata/annotations")
            .and_then(|annotations| annotations.get(labels::EXECUTOR_MODE));
        match annotation {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::String(text)) => Self::read(text),
            Some(odd) => Err(unknown(odd.to_string())),
        }
    }

    /// Reads the text of the annotation.
    ///
    /// # Errors
    ///
    /// It is no mode.
    pub fn read(text: &str) -> Result<Self, Problem> {
        match text {
            "sidecar" => Ok(Self::Sidecar),
            "in-container" => Ok(Self::InContainer),
            other => Err(unknown(crate::validation::shown(&Value::from(other)))),
        }
    }

    /// The mode that is not this one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Sidecar => Self::InContainer,
            Self::InContainer => Self::Sidecar,
        }
    }

    /// Whether this mode adds the value at this path of a template, and the other one does not.
    pub(super) fn adds(self, path: &str) -> bool {
        let inside = |outer: &Path| {
            path.strip_prefix(outer.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let spec = Path::root().field("spec");
        match self {
            Self::Sidecar => {
                let annotations = Path::root().field("metadata").field("annotations");
                sidecars().iter().any(inside)
                    || inside(&spec.field("shareProcessNamespace"))
                    || inside(&annotations.key(labels::DEFAULT_CONTAINER))
            }
            Self::InContainer => inside(&installer()) || inside(&volume()),
        }
    }
}

fn unknown(value: String) -> Problem {
    Problem {
        path: format!("metadata.annotations[{}]", labels::EXECUTOR_MODE),
        fault: Fault::NotSupported(value),
        detail: "must be \"sidecar\" or \"in-container\"; remove the annotation for the sidecar"
            .to_owned(),
        stage: Stage::Webhook,
    }
}

/// The places of the sidecar: beside the sandbox, or before it as Kubernetes' own kind of sidecar.
pub(super) fn sidecars() -> [Path; 2] {
    let spec = Path::root().field("spec");
    ["containers", "initContainers"].map(|list| spec.field(list).key(labels::TASK_EXECUTOR))
}

/// The place of the init container that copies the executor.
pub(super) fn installer() -> Path {
    let init = Path::root().field("spec").field("initContainers");
    init.key(labels::TASK_EXECUTOR_INSTALLER)
}

/// The place of the volume that it copies into.
pub(super) fn volume() -> Path {
    let volumes = Path::root().field("spec").field("volumes");
    volumes.key(labels::TASK_EXECUTOR_VOLUME)
}

/// Every container that the injection may add.
pub(super) fn containers() -> impl Iterator<Item = Path> {
    sidecars().into_iter().chain([installer()])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_annotation_is_read_and_nothing_else_is_taken_for_it() {
        let of = |value: Value| {
            Mode::of(&json!({"metadata": {"annotations": {labels::EXECUTOR_MODE: value}}}))
        };
        assert_eq!(Mode::of(&json!({})), Ok(Mode::Sidecar));
        assert_eq!(of(json!("sidecar")), Ok(Mode::Sidecar));
        assert_eq!(of(json!("in-container")), Ok(Mode::InContainer));
        for odd in [json!(""), json!("InContainer"), json!(true), json!({})] {
            let problem = of(odd.clone()).unwrap_err().to_string();
            assert!(problem.contains("Unsupported value"), "{odd}: {problem}");
            assert!(problem.contains("in-container"), "{odd}: {problem}");
        }
    }

    #[test]
    fn no_value_belongs_to_both_modes() {
        for (path, sidecar, in_container) in [
            ("spec.containers[task-executor]", true, false),
            ("spec.initContainers[task-executor].env[A]", true, false),
            ("spec.shareProcessNamespace", true, false),
            (
                "metadata.annotations[kubectl.kubernetes.io/default-container]",
                true,
                false,
            ),
            (
                "spec.initContainers[task-executor-installer].image",
                false,
                true,
            ),
            ("spec.volumes[task-executor]", false, true),
            ("spec.containers[task-executor-2]", false, false),
            ("spec.volumes[data]", false, false),
        ] {
            assert_eq!(Mode::Sidecar.adds(path), sidecar, "{path}");
            assert_eq!(Mode::InContainer.adds(path), in_container, "{path}");
        }
    }
}
