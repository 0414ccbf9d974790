//! Values that make no sense are refused before anything is sent, with their path and what is wrong.

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::cluster;
use opensandbox_tests::helm::Helm;

use crate::{NAMESPACE, RELEASE};

/// Values as JSON, and the words with which they are refused.
const REFUSED: [(&[&str], &str); 31] = [
    (
        &["replicas=2"],
        "additional properties 'replicas' not allowed",
    ),
    (
        &["controller.replicas=2"],
        "at '/controller': additional properties 'replicas' not allowed",
    ),
    (
        &["controller.replicaCount=-1"],
        "at '/controller/replicaCount': minimum: got -1, want 1",
    ),
    (
        &[r#"controller.replicaCount="2""#],
        "at '/controller/replicaCount': got string, want integer",
    ),
    (
        &[
            "controller.replicaCount=2",
            "controller.leaderElection.enabled=false",
        ],
        "controller.replicaCount: is 2, but without an election",
    ),
    (
        &[r#"controller.executorProtocol="grpc""#],
        "at '/controller/executorProtocol': value must be one of 'signed', 'upstream'",
    ),
    (
        &[r#"controller.extraArgs=["debug"]"#],
        "at '/controller/extraArgs/0': 'debug' does not match pattern",
    ),
    (
        &[r#"controller.resources.limits.cpu="much""#],
        "at '/controller/resources/limits/cpu': 'much' does not match pattern",
    ),
    (
        &["controller.kubeClient.qps=100"],
        "at '/controller': additional properties 'kubeClient' not allowed",
    ),
    (
        &["webhook.replicaCount=0"],
        "at '/webhook/replicaCount': minimum: got 0, want 1",
    ),
    (
        &["webhook.timeoutSeconds=31"],
        "at '/webhook/timeoutSeconds': maximum: got 31, want 30",
    ),
    (
        &[r#"webhook.failurePolicy.pools="fail""#],
        "at '/webhook/failurePolicy/pools': value must be one of 'Fail', 'Ignore'",
    ),
    (
        &["webhook.podDisruptionBudget.maxUnavailable=0"],
        "at '/webhook/podDisruptionBudget/maxUnavailable': minimum: got 0, want 1",
    ),
    (
        &["webhook.livenessProbe.periodSeconds=0"],
        "at '/webhook/livenessProbe/periodSeconds': minimum: got 0, want 1",
    ),
    (
        &["taskExecutor.image.tag=1.5"],
        "at '/taskExecutor/image/tag': got number, want string",
    ),
    (
        &[r#"taskExecutor.image.repository="ubuntu:22.04""#],
        "at '/taskExecutor/image/repository': 'ubuntu:22.04' does not match pattern",
    ),
    (
        &[r#"taskExecutor.image.digest="latest""#],
        "at '/taskExecutor/image/digest': 'latest' does not match pattern",
    ),
    (
        &[r#"taskExecutor.image.pullPolicy="Always""#],
        "at '/taskExecutor/image/pullPolicy': value must be 'IfNotPresent'",
    ),
    (
        &[r#"injection.default="on""#],
        "at '/injection/default': value must be one of 'enabled', 'disabled'",
    ),
    (
        &[r#"injection.point="sandbox""#],
        "at '/injection/point': value must be one of 'pool', 'pod'",
    ),
    (
        &[r#"watchNamespaces="team-a""#],
        "at '/watchNamespaces': got string, want array",
    ),
    (
        &[r#"watchNamespaces=["a","a"]"#],
        "at '/watchNamespaces': items at 0 and 1 are equal",
    ),
    (
        &[r#"namespaceOverride="Team_A""#],
        "at '/namespaceOverride': 'Team_A' does not match pattern",
    ),
    (
        &[r#"commonLabels={"team":"a b"}"#],
        "at '/commonLabels/team': 'a b' does not match pattern",
    ),
    (
        &[r#"certificates.mode="certmanager""#],
        "value must be one of 'self-managed', 'cert-manager', 'existing-secret'",
    ),
    (
        &[r#"certificates.mode="existing-secret""#],
        "certificates.existingSecret.name: is empty, but certificates.mode is existing-secret",
    ),
    (
        &[r#"certificates={"mode":"existing-secret","existingSecret":{"name":"tls"}}"#],
        "certificates.existingSecret.caBundle: is empty, so the API server would trust no certificate",
    ),
    (
        &[r#"certificates.existingSecret.name="tls""#],
        "certificates.existingSecret.name: is tls, but certificates.mode is self-managed",
    ),
    (
        &[r#"certificates.certManager.issuerRef={"kind":"Issuer"}"#],
        "at '/certificates/certManager/issuerRef': missing property 'name'",
    ),
    (
        &["serviceAccount.create=false"],
        "serviceAccount.name: is empty, but serviceAccount.create is false",
    ),
    (
        &[
            r#"serviceAccount.name="one""#,
            r#"webhook.serviceAccount.name="one""#,
        ],
        "webhook.serviceAccount.name: is that of the operator, one",
    ),
];

#[tokio::test]
async fn values_without_sense_are_refused_in_words() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let Some(helm) = Helm::on(&cluster).await? else {
        return Ok(());
    };
    for (values, words) in REFUSED {
        let settings = values.iter().flat_map(|value| ["--set-json", value]);
        let settings: Vec<_> = settings.collect();
        let said = match helm.template(RELEASE, NAMESPACE, &settings).await {
            Ok(_) => "nothing".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains(words), "{values:?}: not {words:?} but {said}");
    }
    let said = helm.template("1", NAMESPACE, &[]).await;
    let said = said
        .err()
        .context("a Service whose name is 1-opensandbox")?;
    ensure!(
        format!("{said:#}").contains("1, begins with a digit"),
        "{said:#}"
    );
    Ok(())
}
