//! What a pod is made of. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{EXECUTOR, MARKER, SANDBOX};
use crate::images;

/// What a pod is made of. [`Recipe::new`] is the seed's; fields replace parts of it.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Image of the sandbox container, one of [`images`] or another that was imported.
    pub image: String,
    /// Its `command`; the image's own if absent.
    pub command: Option<Vec<String>>,
    /// Its environment, by literal values.
    pub env: BTreeMap<String, String>,
    /// Its `securityContext`.
    pub security_context: Value,
    /// Its `resources`.
    pub resources: Value,
    /// Adds [`MARKER`] to its environment.
    pub marked: bool,
    /// Arguments of the executor; `None`: a pod without that sidecar.
    pub executor_args: Option<Vec<String>>,
    /// Environment of the executor, by literal values.
    pub executor_env: BTreeMap<String, String>,
    /// Merged into the executor's container, such as probes or ports.
    pub executor_extra: Value,
    /// Merged into the pod's `spec`.
    pub pod_extra: Value,
}

impl Recipe {
    /// The seed's: `sleep infinity` in the sandbox image with the seed's resources, no
    /// `securityContext`, and an executor with these arguments.
    pub fn new<S: Into<String>>(executor_args: impl IntoIterator<Item = S>) -> Self {
        Self {
            image: images::SANDBOX.to_owned(),
            command: Some(vec!["sleep".to_owned(), "infinity".to_owned()]),
            env: BTreeMap::new(),
            security_context: json!({}),
            resources: json!({
                "requests": {"cpu": "100m", "memory": "128Mi"},
                "limits": {"cpu": "500m", "memory": "256Mi"},
            }),
            marked: false,
            executor_args: Some(executor_args.into_iter().map(Into::into).collect()),
            executor_env: BTreeMap::new(),
            executor_extra: json!({}),
            pod_extra: json!({}),
        }
    }

    /// The same with [`images::TOOL`], which has no shell, doing this: `["threads", "8"]`.
    #[must_use]
    pub fn tool(mut self, arguments: &[&str]) -> Self {
        images::TOOL.clone_into(&mut self.image);
        let program = std::iter::once(images::TOOL_PROGRAM);
        let command = program.chain(arguments.iter().copied()).map(str::to_owned);
        self.command = Some(command.collect());
        self
    }

    /// The same with a sandbox as restricted as Kubernetes can: this user, no capability, no new
    /// privileges, the runtime's seccomp filter.
    #[must_use]
    pub fn restricted(mut self, user: u32) -> Self {
        self.security_context = json!({
            "runAsUser": user,
            "runAsGroup": user,
            "runAsNonRoot": user != 0,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        self
    }

    /// The pod's manifest.
    pub fn manifest(&self, name: &str) -> Value {
        let mut env = variables(&self.env);
        if self.marked {
            env.push(json!({"name": MARKER, "value": "true"}));
        }
        let mut sandbox = json!({
            "name": SANDBOX,
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "env": env,
            "securityContext": self.security_context,
            "resources": self.resources,
        });
        if let Some(command) = &self.command {
            merge(&mut sandbox, &json!({"command": command}));
        }
        let mut containers = vec![sandbox];
        if let Some(args) = &self.executor_args {
            let mut executor = json!({
                "name": EXECUTOR,
                "image": images::EXECUTOR,
                "imagePullPolicy": "IfNotPresent",
                "args": args,
                "env": variables(&self.executor_env),
                "securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}},
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {"cpu": "500m", "memory": "256Mi"},
                },
            });
            merge(&mut executor, &self.executor_extra);
            containers.push(executor);
        }
        let mut spec = json!({
            "shareProcessNamespace": true,
            // Tests delete many pods; what does not end by SIGTERM ends soon after.
            "terminationGracePeriodSeconds": 1,
            "containers": containers,
        });
        merge(&mut spec, &self.pod_extra);
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    }
}

fn variables(env: &BTreeMap<String, String>) -> Vec<Value> {
    env.iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect()
}

/// Objects are merged, everything else replaces.
fn merge(target: &mut Value, source: &Value) {
    match (target, source) {
        (Value::Object(target), Value::Object(source)) => {
            for (key, value) in source {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (target, source) => source.clone_into(target),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod as PodObject;

    use super::*;

    #[test]
    fn a_recipe_is_the_seeds() {
        let manifest = Recipe::new(["serve"]).manifest("pod");
        let at = |pointer: &str| manifest.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/spec/shareProcessNamespace"), json!(true));
        assert_eq!(
            at("/spec/containers/1/securityContext"),
            json!({"capabilities": {"add": ["SYS_PTRACE"]}})
        );
        assert_eq!(at("/spec/containers/1/args"), json!(["serve"]));
        assert_eq!(at("/spec/containers/0/env"), json!([]));
        serde_json::from_value::<PodObject>(manifest).unwrap();
    }

    #[test]
    fn parts_of_a_recipe_replace_the_seeds() {
        let mut recipe = Recipe::new(Vec::<String>::new()).tool(&["threads", "8"]);
        recipe.marked = true;
        recipe.executor_extra = json!({"securityContext": {"privileged": false}});
        recipe.pod_extra = json!({"hostNetwork": true});
        let manifest = recipe.manifest("pod");
        let at = |pointer: &str| manifest.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(
            at("/spec/containers/0/command"),
            json!(["/sandbox-tool", "threads", "8"])
        );
        assert_eq!(at("/spec/containers/0/env/0/name"), json!(MARKER));
        assert_eq!(
            at("/spec/containers/1/securityContext"),
            json!({"capabilities": {"add": ["SYS_PTRACE"]}, "privileged": false})
        );
        assert_eq!(at("/spec/hostNetwork"), json!(true));
    }
}
