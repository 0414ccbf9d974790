//! The sidecar: a container of its own, which may trace the sandbox's processes.

use serde_json::{Value, json};

use super::edit::Odd;
use super::inject::{Follows, Run, built_in};
use super::{
    Path, SYS_PTRACE, Settings, Sourced, default_resources, mode, obstacles, readiness_probe,
};
use crate::labels;

impl Run<'_> {
    /// The container, the shared process namespace, and the annotation by which `kubectl` finds the sandbox.
    pub(super) fn sidecar(&mut self) -> Result<(), Odd> {
        let spec = Path::root().field("spec");
        self.fill(
            &spec.field("shareProcessNamespace"),
            built_in(json!(true)),
            Follows::Settings,
        );
        let executor = self.container()?;
        let main = self.main_container(&spec);
        self.executor_fields(&executor, &main)?;
        let metadata = Path::root().field("metadata");
        self.editor.object(&metadata)?;
        let annotations = metadata.field("annotations");
        self.editor.object(&annotations)?;
        self.fill(
            &annotations.key(labels::DEFAULT_CONTAINER),
            built_in(json!(main)),
            Follows::Template,
        );
        Ok(())
    }

    /// The executor's container: where the user put it, where it was, or a new one at the end.
    fn container(&mut self) -> Result<Path, Odd> {
        let [sidecar, native] = mode::sidecars();
        let document = self.editor.document();
        let is_native = sidecar.get(document).is_none() && native.get(document).is_some();
        let container = if is_native { native } else { sidecar };
        self.own_container(&container)?;
        Ok(container)
    }

    /// Name of the container that tasks are injected into: the one that the user's
    /// default-container annotation names, else the first.
    fn main_container(&self, spec: &Path) -> String {
        let document = self.editor.document();
        let containers = spec.field("containers");
        let annotation = Path::root()
            .field("metadata")
            .field("annotations")
            .key(labels::DEFAULT_CONTAINER);
        let named = annotation
            .get(document)
            .and_then(Value::as_str)
            .filter(|name| *name != labels::TASK_EXECUTOR && !self.is_ours(&annotation))
            .filter(|name| containers.key(name).get(document).is_some());
        named
            .or_else(|| obstacles::first_container(document))
            .unwrap_or_default()
            .to_owned()
    }

    fn executor_fields(&mut self, executor: &Path, main: &str) -> Result<(), Odd> {
        let Settings {
            image,
            verification_key,
        } = self.settings;
        let image_path = executor.field("image");
        let image = Sourced {
            value: json!(image.value),
            origin: image.origin.clone(),
        };
        self.fill(&image_path, image, Follows::Settings);
        self.fill(
            &executor.field("imagePullPolicy"),
            built_in(json!("IfNotPresent")),
            Follows::Settings,
        );
        self.fill(
            &executor.field("resources"),
            built_in(default_resources()),
            Follows::Settings,
        );
        self.capability(executor)?;
        self.root_user(executor)?;

        let port = labels::TASK_EXECUTOR_PORT;
        let ports = executor.field("ports");
        let entry =
            json!({ "name": labels::TASK_EXECUTOR, "containerPort": port, "protocol": "TCP" });
        self.fill_item(
            &ports,
            &port.to_string(),
            built_in(entry),
            Follows::Settings,
        )?;
        let probe = executor.field("readinessProbe");
        if self.was_ours(&probe) || self.answers_readyz(&image_path) {
            self.fill(&probe, built_in(readiness_probe()), Follows::Settings);
        }

        let env = executor.field("env");
        let name = json!({ "name": labels::MAIN_CONTAINER_NAME_ENV, "value": main });
        self.fill_item(
            &env,
            labels::MAIN_CONTAINER_NAME_ENV,
            built_in(name),
            Follows::Template,
        )?;
        if let Some(key) = verification_key {
            let entry = json!({ "name": labels::VERIFICATION_KEY_ENV, "value": key.value });
            let entry = Sourced {
                value: entry,
                origin: key.origin.clone(),
            };
            self.fill_item(&env, labels::VERIFICATION_KEY_ENV, entry, Follows::Settings)?;
        } else {
            self.keep_item(&env, labels::VERIFICATION_KEY_ENV)?;
        }
        Ok(())
    }

    /// SYS_PTRACE, unless something that includes it is there.
    fn capability(&mut self, executor: &Path) -> Result<(), Odd> {
        let context = executor.field("securityContext");
        let document = self.editor.document();
        if context.field("privileged").get(document) == Some(&Value::Bool(true)) {
            return Ok(());
        }
        let add = context.field("capabilities").field("add");
        let item = add.key(SYS_PTRACE);
        let others = add
            .get(document)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let included = others
            .clone()
            .any(|name| name != SYS_PTRACE && grants_ptrace(name));
        if included {
            return Ok(());
        }
        for parent in [&context, &context.field("capabilities")] {
            self.editor.object(parent)?;
        }
        self.editor.list(&add)?;
        self.fill(&item, built_in(json!(SYS_PTRACE)), Follows::Settings);
        Ok(())
    }

    /// A capability has no effect for a user other than root, so a pod that sets one for all its
    /// containers must except the executor.
    fn root_user(&mut self, executor: &Path) -> Result<(), Odd> {
        let pod = Path::root().field("spec").field("securityContext");
        let document = self.editor.document();
        let user = pod
            .field("runAsUser")
            .get(document)
            .and_then(Value::as_u64)
            .is_some_and(|user| user != 0);
        let not_root = pod.field("runAsNonRoot").get(document) == Some(&Value::Bool(true));
        let context = executor.field("securityContext");
        if user || not_root {
            self.editor.object(&context)?;
            self.fill(
                &context.field("runAsUser"),
                built_in(json!(0)),
                Follows::Settings,
            );
            self.fill(
                &context.field("runAsNonRoot"),
                built_in(json!(false)),
                Follows::Settings,
            );
        } else {
            self.keep(&context.field("runAsUser"));
            self.keep(&context.field("runAsNonRoot"));
        }
        Ok(())
    }

    /// Whether the image is known to answer `/readyz`: ours does, upstream's executor does not, and a
    /// pod with a probe that never succeeds is never ready.
    fn answers_readyz(&self, image_path: &Path) -> bool {
        if self.is_ours(image_path) || self.editor.record.has(image_path) {
            return true;
        }
        let Some(image) = image_path
            .get(self.editor.document())
            .and_then(Value::as_str)
        else {
            return false;
        };
        let known = [
            self.settings.image.value.as_str(),
            labels::DEFAULT_TASK_EXECUTOR_IMAGE,
        ];
        known
            .iter()
            .any(|known| repository(known) == repository(image))
    }
}

/// Whether a capability, as written in a container's `add`, includes SYS_PTRACE.
fn grants_ptrace(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare == "ALL" || bare == SYS_PTRACE
}

/// An image reference without tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        // A colon before the last slash is a registry's port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}
