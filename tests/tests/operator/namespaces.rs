//! An operator for single namespaces, with rights in those only.

use anyhow::{Result, ensure};
use opensandbox_tests::installation::NAMESPACE;
use opensandbox_tests::operator::NAME;
use serde_json::json;

use crate::site::site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_of_one_namespace_needs_no_rights_elsewhere() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let mine = site.namespace("mine").await?;
    let other = site.namespace("other").await?;
    let binding = |kind: &str, metadata: serde_json::Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        })
    };
    let role_binding = json!({"name": NAME, "namespace": mine});
    site.apply(&binding("RoleBinding", role_binding)).await?;
    site.kubectl(&["delete", "clusterrolebinding", NAME])
        .await?;

    let operator = site.operator(&[&format!("--namespaces={mine}")]).await?;
    site.leads(&operator).await?;
    site.pool(&other, "p", 1).await?;
    site.pool(&mine, "p", 1).await?;
    site.pods(&mine, "p", 1).await?;
    site.pods(&other, "p", 0).await?;
    operator.stop().await?;
    let log = operator.program.log()?;
    ensure!(!log.to_lowercase().contains("forbidden"), "{log}");

    let everywhere = json!({"name": NAME});
    site.apply(&binding("ClusterRoleBinding", everywhere)).await
}
