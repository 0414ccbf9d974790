//! What the Pool gets in the mode `in-container`: a volume, and an init container that copies the executor
//! into it. Both merge with whatever the user's manager applies. What would replace fields of the user's,
//! above all the command, is done when a pod is made, see [`wrap`](super::wrap).

use serde_json::{Value, json};

use super::edit::Odd;
use super::inject::{Follows, Run, built_in};
use super::{Path, Sourced, mode};
use crate::labels;

/// User of the init container, as of our other programs. Anybody may write to a fresh volume.
const USER: u32 = 65532;

impl Run<'_> {
    /// The volume and the init container.
    pub(super) fn installer(&mut self) -> Result<(), Odd> {
        let volumes = Path::root().field("spec").field("volumes");
        // Both programs take a sixth of it.
        let volume =
            json!({ "name": labels::TASK_EXECUTOR_VOLUME, "emptyDir": { "sizeLimit": "64Mi" } });
        self.fill_item(
            &volumes,
            labels::TASK_EXECUTOR_VOLUME,
            built_in(volume),
            Follows::Settings,
        )?;

        let installer = mode::installer();
        self.own_container(&installer)?;
        let image = Sourced {
            value: json!(self.settings.image.value),
            origin: self.settings.image.origin.clone(),
        };
        self.fill(&installer.field("image"), image, Follows::Settings);
        for (field, value) in [
            ("imagePullPolicy", json!("IfNotPresent")),
            ("args", json!(["install", labels::TASK_EXECUTOR_DIRECTORY])),
            ("resources", resources()),
            ("securityContext", security_context()),
        ] {
            self.fill(&installer.field(field), built_in(value), Follows::Settings);
        }
        let mount = json!({
            "name": labels::TASK_EXECUTOR_VOLUME,
            "mountPath": labels::TASK_EXECUTOR_DIRECTORY,
        });
        self.fill_item(
            &installer.field("volumeMounts"),
            labels::TASK_EXECUTOR_VOLUME,
            built_in(mount),
            Follows::Settings,
        )
    }
}

/// For the copy of two files; no more than the smallest sandbox requests, so that the pod asks for no more
/// because of it.
fn resources() -> Value {
    json!({
        "requests": { "cpu": "10m", "memory": "16Mi" },
        "limits": { "cpu": "500m", "memory": "64Mi" },
    })
}

/// What the level `restricted` asks for.
fn security_context() -> Value {
    json!({
        "runAsUser": USER,
        "runAsNonRoot": true,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}
