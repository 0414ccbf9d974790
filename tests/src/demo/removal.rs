//! What a run adds to a cluster of the user's, and how it goes away again. What was there before the
//! run stays.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::administrator::Administrator;
use crate::installation::list;

/// Marks the demo's namespace, so that nobody else's is ever deleted.
pub(super) const NAMESPACE_LABEL: (&str, &str) =
    ("app.kubernetes.io/managed-by", "opensandbox-demo");
/// The Secret that the webhook makes itself.
const AUTHORITY: &str = "opensandbox-webhook-ca";

/// What there is to remove.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// The demo's namespace, once it may exist.
    namespace: Option<String>,
    /// Documents of the installation that were not there before.
    installed: Vec<Value>,
}

impl Removal {
    /// Creates the namespace of the demo, or empties the one that a killed run left.
    ///
    /// # Errors
    /// The API server refuses.
    pub(super) async fn namespace(&mut self, user: Administrator<'_>, name: &str) -> Result<()> {
        self.namespace = Some(name.to_owned());
        let (key, value) = NAMESPACE_LABEL;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {key: value}},
        });
        user.kubectl_with_input(
            &["apply", "--server-side", "-f", "-"],
            &namespace.to_string(),
        )
        .await?;
        delete_objects(user, name).await
    }

    /// Notes which documents are about to be new.
    ///
    /// # Errors
    /// The API server does not answer.
    pub(super) async fn before_install(
        &mut self,
        user: Administrator<'_>,
        documents: &[Value],
    ) -> Result<()> {
        let get = ["get", "--ignore-not-found", "-o", "json", "-f", "-"];
        let found = user.kubectl_with_input(&get, &list(documents)).await?;
        let found: Value = if found.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&found).context("kubectl printed objects")?
        };
        // One object is printed as it is, several as a List.
        let items = found.get("items").and_then(Value::as_array);
        let found: BTreeSet<_> = match items {
            Some(items) => items.iter().map(identity).collect(),
            None => [identity(&found)].into(),
        };
        let is_new = |document: &&Value| !found.contains(&identity(document));
        self.installed = documents.iter().filter(is_new).cloned().collect();
        Ok(())
    }

    /// Notes that all documents are of a run that was killed, and may go.
    pub(super) fn adopt(&mut self, documents: Vec<Value>) {
        self.installed = documents;
    }

    /// Whether there is anything to remove.
    pub(super) fn is_empty(&self) -> bool {
        self.namespace.is_none() && self.installed.is_empty()
    }

    /// Whether this run installed something.
    pub(super) fn has_installed(&self) -> bool {
        !self.installed.is_empty()
    }

    /// Removes it. Returns what stays, and why. Where no controllers run nobody else finishes the
    /// deletion of a namespace, so this does.
    ///
    /// # Errors
    /// The API server refuses; what was not yet removed is still there.
    pub(super) async fn remove(
        &mut self,
        user: Administrator<'_>,
        has_controllers: bool,
    ) -> Result<Option<String>> {
        let mut namespaces = Vec::new();
        if let Some(name) = self.namespace.take() {
            // Before the CRDs, and not if these never came to be.
            if user.kubectl(&["get", "namespace", &name]).await.is_ok() {
                delete_objects(user, &name).await?;
                namespaces.push(name);
            }
        }
        let mut documents = std::mem::take(&mut self.installed);
        let in_use = if documents.iter().any(is_crd) {
            others(user).await
        } else {
            Vec::new()
        };
        let stays = (!in_use.is_empty()).then(|| {
            documents.retain(|document| !is_crd(document));
            format!(
                "the CRDs stay, since there are {} that the demo did not make",
                in_use.join(", ")
            )
        });
        let is_namespace = |document: &Value| document["kind"] == "Namespace";
        for namespace in documents.iter().filter(|document| is_namespace(document)) {
            let name = namespace["metadata"]["name"]
                .as_str()
                .context("a namespace has a name")?;
            let delete = [
                "delete",
                "secret",
                AUTHORITY,
                "-n",
                name,
                "--ignore-not-found",
            ];
            user.kubectl(&delete).await?;
            namespaces.push(name.to_owned());
        }
        documents.retain(|document| !is_namespace(document));
        // What calls the webhook goes first.
        documents.sort_by_key(|document| {
            !document["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("WebhookConfiguration"))
        });
        if !documents.is_empty() {
            let delete = ["delete", "--ignore-not-found", "--timeout=60s", "-f", "-"];
            user.kubectl_with_input(&delete, &list(&documents)).await?;
        }
        for name in namespaces {
            delete_namespace(user, &name, has_controllers).await?;
        }
        Ok(stays)
    }
}

fn is_crd(document: &Value) -> bool {
    document["kind"] == "CustomResourceDefinition"
}

fn identity(document: &Value) -> String {
    let text = |pointer| {
        document
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let [kind, namespace, name] = ["/kind", "/metadata/namespace", "/metadata/name"].map(text);
    format!("{kind} {namespace}/{name}")
}

/// Deletes what the steps make. No error where our kinds are unknown.
async fn delete_objects(user: Administrator<'_>, namespace: &str) -> Result<()> {
    let delete = [
        "delete",
        "configmap",
        "opensandbox-images",
        "-n",
        namespace,
        "--ignore-not-found",
    ];
    user.kubectl(&delete).await?;
    for kind in ["batchsandboxes", "pools"] {
        let known = user
            .kubectl(&["get", "crd", &format!("{kind}.sandbox.opensandbox.io")])
            .await;
        if known.is_ok() {
            user.kubectl(&["delete", kind, "--all", "-n", namespace, "--timeout=60s"])
                .await?;
        }
    }
    Ok(())
}

/// Objects of our kinds that are left.
async fn others(user: Administrator<'_>) -> Vec<String> {
    let mut others = Vec::new();
    for kind in ["pools", "batchsandboxes"] {
        let found = user
            .kubectl(&["get", kind, "--all-namespaces", "-o", "name"])
            .await;
        others.extend(
            found
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned),
        );
    }
    others
}

async fn delete_namespace(
    user: Administrator<'_>,
    name: &str,
    has_controllers: bool,
) -> Result<()> {
    let wait = if has_controllers {
        "--timeout=120s"
    } else {
        "--wait=false"
    };
    user.kubectl(&["delete", "namespace", name, "--ignore-not-found", wait])
        .await?;
    if has_controllers {
        return Ok(());
    }
    let get = ["get", "namespace", name, "--ignore-not-found", "-o", "json"];
    let text = user.kubectl(&get).await?;
    if !text.trim().is_empty() {
        let mut namespace: Value = serde_json::from_str(&text)?;
        namespace["spec"]["finalizers"] = json!([]);
        let path = format!("/api/v1/namespaces/{name}/finalize");
        let replace = ["replace", "--raw", &path, "-f", "-"];
        user.kubectl_with_input(&replace, &namespace.to_string())
            .await?;
    }
    Ok(())
}
