//! A pod made from the sandbox's own template: patch, executor, identity. Pure, on raw JSON.

use opensandbox_api::labels;
use opensandbox_api::shard_patch::{self, Kind};
use opensandbox_api::sidecar::{self, Mode, Record};
use opensandbox_api::v1alpha1::BatchSandboxSpec;
use opensandbox_api::validation::Problem;
use serde_json::{Map, Value, json};

use crate::pool::InjectionFacts;
use crate::view::{SandboxView, controlled_by};

/// Why a shard has no pod, with the path of the field. Never holds what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {fault}")]
pub(super) struct Invalid {
    pub(super) reason: &'static str,
    path: String,
    fault: String,
}

/// A shard patch that cannot be applied.
pub(super) const INVALID_PATCH: &str = "InvalidShardPatch";

/// The pod of shard `index`.
///
/// # Errors
///
/// If the patch cannot be applied, or the pod cannot carry the executor that its task needs.
pub(super) fn pod(
    view: &SandboxView,
    spec: &BatchSandboxSpec,
    index: u32,
    facts: &InjectionFacts,
) -> Result<Value, Invalid> {
    let template = spec.template.as_ref().unwrap_or(&Value::Null);
    let part = |name: &str| template.get(name).cloned().unwrap_or_else(|| json!({}));
    let base = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": part("metadata"),
        "spec": part("spec"),
    });
    let patch = usize::try_from(index)
        .ok()
        .and_then(|index| spec.shard_patches.get(index));
    let mut pod = match patch {
        None => base,
        Some(patch) => shard_patch::apply(&base, patch, Kind::Pod).map_err(|error| Invalid {
            reason: INVALID_PATCH,
            path: format!("spec.shardPatches[{index}]"),
            fault: error.to_string(),
        })?,
    };
    if let Some(mode) = mode(view, spec, facts).map_err(impossible)? {
        pod = injected(pod, mode, facts).map_err(impossible)?;
    }
    identify(&mut pod, view, index);
    Ok(pod)
}

/// Where the pods get the executor, if they get it: not if they run no tasks or it is switched off.
///
/// # Errors
///
/// The annotation names no mode.
pub(super) fn mode(
    view: &SandboxView,
    spec: &BatchSandboxSpec,
    facts: &InjectionFacts,
) -> Result<Option<Mode>, Problem> {
    let (enabled, _) = sidecar::decide(
        view.injection.as_deref(),
        facts.namespace_label.as_deref(),
        facts.default,
    );
    if spec.task_template.is_none() || !enabled {
        return Ok(None);
    }
    let mode = view.executor_mode.as_deref().map(Mode::read).transpose()?;
    Ok(Some(mode.unwrap_or_default()))
}

/// With the executor, unless the pod runs one itself.
fn injected(pod: Value, mode: Mode, facts: &InjectionFacts) -> Result<Value, Problem> {
    if sidecar::in_container::evidence(&pod).is_some() {
        return Ok(pod);
    }
    let record = Record::default();
    let injection = sidecar::inject(&pod, mode, &record, None, &facts.settings, false);
    let mut pod = match injection {
        Ok(injection) => injection.template,
        Err(problems) => {
            let first = problems.into_iter().next();
            return Err(first.expect("an injection is refused for a reason"));
        }
    };
    if mode == Mode::InContainer {
        sidecar::wrap(&mut pod, &facts.settings)?;
    }
    Ok(pod)
}

/// A problem of the injection, without the value that was found.
fn impossible(problem: Problem) -> Invalid {
    Invalid {
        reason: opensandbox_api::conditions::reason::INJECTION_IMPOSSIBLE,
        path: problem.path,
        fault: problem.detail,
    }
}

/// Whose pod it is: last, so that neither template nor patch can say otherwise.
fn identify(pod: &mut Value, view: &SandboxView, index: u32) {
    let metadata = object(pod, "metadata");
    for server_set in [
        "generateName",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        metadata.remove(server_set);
    }
    metadata.insert("name".to_owned(), json!(name(&view.key.name, index)));
    metadata.insert("namespace".to_owned(), json!(view.key.namespace));
    metadata.insert(
        "ownerReferences".to_owned(),
        controlled_by("BatchSandbox", &view.key.name, &view.uid),
    );
    let own = object(&mut pod["metadata"], "labels");
    own.insert(labels::BATCH_SANDBOX_NAME.to_owned(), json!(view.key.name));
    own.insert(labels::POD_INDEX.to_owned(), json!(index.to_string()));
}

/// The object at a key, made if it is none.
fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    let map = value
        .as_object_mut()
        .expect("it was made an object just now");
    let member = map.entry(key).or_insert_with(|| json!({}));
    if !member.is_object() {
        *member = json!({});
    }
    member
        .as_object_mut()
        .expect("it was made an object just now")
}

/// Name of the pod of shard `index`, upstream's.
pub(super) fn name(sandbox: &str, index: u32) -> String {
    format!("{sandbox}-{index}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::tests::{facts, object, spec};

    fn built(value: Value, index: u32) -> Result<Value, Invalid> {
        let view = object("box", 1);
        pod(&view, &spec(value), index, &facts())
    }

    #[test]
    fn neither_template_nor_patch_decides_whose_pod_it_is() {
        let pod = built(
            json!({
                "template": {"metadata": {"name": "other", "labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "main", "image": "x"}]}},
                "shardPatches": [{"metadata": {"namespace": "kube-system", "ownerReferences": [],
                    "labels": {"batch-sandbox.sandbox.opensandbox.io/name": "another"}}}],
            }),
            0,
        )
        .unwrap();
        assert_eq!(pod["metadata"]["name"], "box-0");
        assert_eq!(pod["metadata"]["namespace"], "ns");
        assert_eq!(pod["metadata"]["labels"]["a"], "b");
        assert_eq!(pod["metadata"]["labels"][labels::BATCH_SANDBOX_NAME], "box");
        assert_eq!(pod["metadata"]["labels"][labels::POD_INDEX], "0");
        let owners = pod["metadata"]["ownerReferences"].as_array().unwrap();
        assert_eq!(owners.len(), 1);
        assert_eq!(owners[0]["controller"], true);
        assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_task_brings_the_executor_and_a_patch_changes_only_its_shard() {
        let value = json!({
            "template": {"spec": {"containers": [{"name": "main", "image": "x", "odd": {"kept": 1}}]}},
            "shardPatches": [{}, {"spec": {"containers": [{"name": "main", "image": "y"}]}}],
            "taskTemplate": {"spec": {"process": {"command": ["a"]}}},
        });
        let first = built(value.clone(), 0).unwrap();
        assert_eq!(first["spec"]["containers"][0]["image"], "x");
        assert_eq!(first["spec"]["containers"][0]["odd"]["kept"], 1);
        assert_eq!(first["spec"]["containers"][1]["name"], "task-executor");
        assert_eq!(first["spec"]["shareProcessNamespace"], true);
        let second = built(value, 1).unwrap();
        assert_eq!(second["spec"]["containers"][0]["image"], "y");
    }

    #[test]
    fn in_container_a_task_brings_the_executor_into_the_sandbox_container() {
        let value = json!({
            "template": {"spec": {"containers": [{"name": "main", "image": "x"}]}},
            "shardPatches": [{"spec": {"containers": [{"name": "main", "command": ["sleep", "1"]}]}}],
            "taskTemplate": {"spec": {"process": {"command": ["a"]}}},
        });
        let mut view = object("box", 2);
        let spec = spec(value);
        let pod = |view: &SandboxView, index| pod(view, &spec, index, &facts());
        view.executor_mode = Some("in-container".to_owned());
        let wrapped = pod(&view, 0).unwrap();
        let containers = wrapped["spec"]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1);
        assert!(
            containers[0]["command"]
                .to_string()
                .ends_with(r#""--","sleep","1"]"#)
        );
        assert_eq!(
            wrapped["spec"]["initContainers"][0]["name"],
            "task-executor-installer"
        );

        // The other shard has no command, and what its image starts is not known.
        let error = pod(&view, 1).unwrap_err().to_string();
        let path = "spec.template.spec.containers[0].command: ";
        assert!(error.starts_with(path), "{error}");
        view.executor_mode = Some("elsewhere".to_owned());
        let error = pod(&view, 0).unwrap_err().to_string();
        assert!(error.contains("task-executor-mode"), "{error}");
    }

    #[test]
    fn a_bad_patch_is_named_and_not_quoted() {
        let error = built(
            json!({
                "template": {"spec": {"containers": [{"name": "main"}]}},
                "shardPatches": [{"spec": {"containers": [{"image": "geheim"}]}}],
            }),
            0,
        )
        .unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("spec.shardPatches[0]: spec.containers[0]"),
            "{message}"
        );
        assert!(!message.contains("geheim"), "{message}");
    }

    #[test]
    fn odd_templates_do_not_panic() {
        for template in [
            json!(null),
            json!(3),
            json!([]),
            json!({"metadata": 1, "spec": "x"}),
        ] {
            let _ = built(json!({"template": template, "taskTemplate": {}}), 0);
        }
    }
}
