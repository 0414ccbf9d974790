//! `just rights`: compares what config/rbac allows to webhook and operator with what they asked for during a
//! whole run of the tests, so that no right stays that nobody uses.
//!
//! With the variable [`DIRECTORY`] every cluster of ours keeps an audit log in that directory. This reads
//! them all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde_json::Value;

use crate::installation::repository;

/// Names the directory for audit logs.
pub const DIRECTORY: &str = "OPENSANDBOX_AUDIT_DIRECTORY";
/// Logs what the two programs ask for, and nobody else.
pub(crate) const POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
"omitStages": ["RequestReceived"], "rules": [{"level": "Metadata", "users": [
"system:serviceaccount:opensandbox-system:opensandbox-operator",
"system:serviceaccount:opensandbox-system:opensandbox-webhook"]}, {"level": "None"}]}
"#;
const ACCOUNTS: &str = "system:serviceaccount:opensandbox-system:";
const FILES: [&str; 2] = ["config/rbac/operator.yaml", "config/rbac/webhook.yaml"];

/// Rights that leave no request in an audit log, and why they are given.
const NOT_ASKED_FOR: [(&str, &str, &str); 4] = [
    (
        "/namespaces",
        "get",
        "asked by the webhook about a namespace that its watch has not told of yet",
    ),
    (
        "sandbox.opensandbox.io/pools/finalizers",
        "update",
        "checked by OwnerReferencesPermissionEnforcement when a pod is made",
    ),
    (
        "sandbox.opensandbox.io/batchsandboxes/finalizers",
        "update",
        "checked by OwnerReferencesPermissionEnforcement when a pod is made",
    ),
    (
        "/pods/exec",
        "create",
        "checked by newer API servers when a command is started by WebSocket",
    ),
];

/// Account, `group/resource`, verb.
type Right = (String, String, String);

/// Compares the rights of webhook and operator with the audit logs of a run of the tests.
#[derive(Debug, Parser)]
#[command(name = "rights", version)]
struct Arguments {
    /// The directory that OPENSANDBOX_AUDIT_DIRECTORY named.
    directory: PathBuf,
}

/// The program.
#[expect(clippy::print_stdout, reason = "it is a report")]
pub fn main() -> ExitCode {
    match report(&Arguments::parse().directory) {
        Ok((text, held)) => {
            println!("{text}");
            ExitCode::from(u8::from(!held))
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::from(2)
        }
    }
}

/// A table, and whether every right is used.
fn report(directory: &Path) -> Result<(String, bool)> {
    let mut given = BTreeSet::new();
    for file in FILES {
        let text = std::fs::read_to_string(repository(file))?;
        given.extend(rights(&serde_saphyr::from_multiple::<Value>(&text)?));
    }
    let mut used = BTreeMap::new();
    let mut logs = 0;
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        logs += 1;
        for line in std::fs::read_to_string(entry?.path())?.lines() {
            // The last line of a server that was killed may end anywhere.
            if let Some(right) = serde_json::from_str(line).ok().as_ref().and_then(request) {
                *used.entry(right).or_insert(0_u64) += 1;
            }
        }
    }
    ensure!(logs > 0, "no logs in {}", directory.display());
    let mut lines = vec![format!("{logs} audit logs")];
    let mut held = true;
    for right in &given {
        let (account, resource, verb) = right;
        let reason = NOT_ASKED_FOR
            .iter()
            .find(|(of, what, _)| of == resource && what == verb)
            .map(|(.., reason)| *reason);
        let note = match (used.get(right), reason) {
            (Some(count), _) => format!("{count} requests"),
            (None, Some(reason)) => reason.to_owned(),
            (None, None) => {
                held = false;
                "NOT USED".to_owned()
            }
        };
        lines.push(format!("{account:<21} {verb:<7} {resource:<70} {note}"));
    }
    for (account, resource, verb) in used.keys().filter(|right| !given.contains(*right)) {
        lines.push(format!(
            "{account:<21} {verb:<7} {resource:<70} not by these files"
        ));
    }
    Ok((lines.join("\n"), held))
}

/// Every right of the roles among these documents; a role is named as its account.
fn rights(documents: &[Value]) -> BTreeSet<Right> {
    let texts = |value: &Value| {
        let texts = value.as_array().into_iter().flatten();
        texts
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut rights = BTreeSet::new();
    for role in documents {
        let account = role["metadata"]["name"].as_str().unwrap_or_default();
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        let resource = format!("{group}/{resource}");
                        rights.insert((account.to_owned(), resource, verb));
                    }
                }
            }
        }
    }
    rights
}

/// The right that a request took, if it was allowed to one of the two programs.
fn request(event: &Value) -> Option<Right> {
    let account = event["user"]["username"].as_str()?.strip_prefix(ACCOUNTS)?;
    if event["annotations"]["authorization.k8s.io/decision"] != "allow" {
        return None;
    }
    let object = event.get("objectRef")?;
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let mut resource = format!("{}/{}", text("apiGroup"), text("resource"));
    if !text("subresource").is_empty() {
        resource = format!("{resource}/{}", text("subresource"));
    }
    Some((
        account.to_owned(),
        resource,
        event["verb"].as_str()?.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn right(resource: &str, verb: &str) -> Right {
        ("opensandbox-operator".into(), resource.into(), verb.into())
    }

    #[test]
    fn a_role_gives_every_verb_on_every_resource() {
        let role = json!({"kind": "Role", "metadata": {"name": "opensandbox-operator"}, "rules": [
            {"apiGroups": ["", "a"], "resources": ["pods"], "verbs": ["get", "list"]}]});
        let expected = [
            right("/pods", "get"),
            right("/pods", "list"),
            right("a/pods", "get"),
            right("a/pods", "list"),
        ];
        assert_eq!(rights(&[role]), expected.into());
    }

    #[test]
    fn a_request_takes_a_right_when_it_was_allowed() {
        let mut event = json!({
            "user": {"username": "system:serviceaccount:opensandbox-system:opensandbox-operator"},
            "verb": "patch", "annotations": {"authorization.k8s.io/decision": "allow"},
            "objectRef": {"apiGroup": "a", "resource": "pools", "subresource": "status", "name": "x"},
        });
        assert_eq!(request(&event), Some(right("a/pools/status", "patch")));
        event["annotations"] = json!({"authorization.k8s.io/decision": "forbid"});
        assert_eq!(request(&event), None);
        event["user"]["username"] = json!("administrator");
        assert_eq!(request(&event), None);
    }
}
