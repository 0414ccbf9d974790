//! Whatever the values, the API server takes all objects: applied server-side as a dry run, unknown fields
//! refused. The kinds of cert-manager and the Prometheus operator are the real ones.

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use opensandbox_tests::cluster::{self, LocalCluster};
use opensandbox_tests::helm::Helm;
use opensandbox_tests::installation::list;
use opensandbox_tests::kinds::{CERT_MANAGER, PROMETHEUS};
use serde_json::{Value, json};

use crate::{NAMESPACE, RELEASE};

/// Renderings at the same time.
const AT_ONCE: usize = 2;
/// Namespaces that rendered objects are in.
const NAMESPACES: [&str; 6] = [NAMESPACE, "team", "team-a", "team-b", "123", "override"];

/// A combination: release, namespace, values as JSON.
struct Combination(&'static str, &'static str, &'static [&'static str]);

const COMBINATIONS: [Combination; 30] = [
    Combination(RELEASE, NAMESPACE, &[]),
    Combination("acme", "team", &[]),
    Combination("a.dotted.name", "team", &[]),
    Combination("1", "123", &[r#"fullnameOverride="one""#]),
    Combination(
        "a-release-with-a-name-that-is-as-long-as-helm-permits",
        "team",
        &[],
    ),
    Combination(RELEASE, NAMESPACE, &[r#"nameOverride="sandboxes""#]),
    Combination(RELEASE, "team", &[r#"fullnameOverride="acme""#]),
    Combination(RELEASE, "team", &[r#"namespaceOverride="override""#]),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"commonLabels={"team":"a","cost":"7"}"#,
            r#"imagePullSecrets=[{"name":"registry"}]"#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[r#"watchNamespaces=["team-a","team-b"]"#],
    ),
    Combination(
        RELEASE,
        "team",
        &[
            r#"watchNamespaces=["123"]"#,
            "crds.install=false",
            r#"injection.default="disabled""#,
        ],
    ),
    // The release's own namespace among those it looks after.
    Combination(
        RELEASE,
        NAMESPACE,
        &[r#"watchNamespaces=["opensandbox-system"]"#],
    ),
    Combination(RELEASE, NAMESPACE, &[r#"injection.default="disabled""#]),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"injection.point="pod""#,
            r#"injection.default="disabled""#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"taskExecutor.image.repository="registry.example:5000/a/task-executor""#,
            r#"taskExecutor.image.tag="v1.0.0""#,
            r#"controller.image.digest="sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa""#,
            r#"webhook.image.pullPolicy="Always""#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            "controller.replicaCount=1",
            "controller.leaderElection.enabled=false",
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"controller.logLevel="debug""#,
            r#"controller.executorProtocol="upstream""#,
            r#"controller.extraArgs=["--drain-timeout=5s"]"#,
            r#"webhook.logLevel="info,opensandbox_webhook=trace""#,
            r#"webhook.extraArgs=["--connection-age=1m"]"#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"controller.affinity={"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"pool","operator":"In","values":["control"]}]}]}}}"#,
            r#"webhook.tolerations=[{"key":"control","operator":"Exists"}]"#,
            "controller.nodeSelector={}",
            r#"webhook.podLabels={"tier":"control"}"#,
            r#"controller.podAnnotations={"example.com/a":"b"}"#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            "controller.podSecurityContext={}",
            "controller.containerSecurityContext={}",
            "webhook.resources={}",
            "webhook.livenessProbe.enabled=false",
            "controller.readinessProbe.initialDelaySeconds=5",
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"extraEnv=[{"name":"A","value":"b"}]"#,
            r#"extraVolumes=[{"name":"extra","emptyDir":{}}]"#,
            r#"extraVolumeMounts=[{"name":"extra","mountPath":"/extra"}]"#,
            r#"extraInitContainers=[{"name":"first","image":"busybox"}]"#,
            r#"extraContainers=[{"name":"second","image":"busybox"}]"#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            "serviceAccount.create=false",
            r#"serviceAccount.name="operator""#,
            r#"webhook.serviceAccount={"create":true,"name":"hook","annotations":{"a":"b"}}"#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &["rbac.create=false", "priorityClass.create=false"],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            "priorityClass.value=5",
            r#"controller.priorityClassName="mine""#,
            "controller.podDisruptionBudget.enabled=false",
            r#"webhook.podDisruptionBudget.maxUnavailable="50%""#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            "crds.keep=false",
            r#"crds.annotations={"example.com/a":"b"}"#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"webhook.failurePolicy={"injection":"Ignore","pools":"Ignore","batchSandboxes":"Fail"}"#,
            "webhook.timeoutSeconds=30",
            r#"webhook.configurationAnnotations={"example.com/a":"b"}"#,
        ],
    ),
    Combination("acme", "team", &[r#"certificates.mode="cert-manager""#]),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"certificates.mode="cert-manager""#,
            r#"certificates.certManager.issuerRef={"name":"corporate","kind":"ClusterIssuer"}"#,
            r#"certificates.certManager.duration="24h""#,
            r#"certificates.certManager.renewBefore="8h""#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            r#"certificates.mode="existing-secret""#,
            r#"certificates.existingSecret.name="webhook-tls""#,
            r#"webhook.configurationAnnotations={"service.beta.openshift.io/inject-cabundle":"true"}"#,
        ],
    ),
    Combination(
        RELEASE,
        "team",
        &[
            "metrics.service.enabled=true",
            "metrics.serviceMonitor.enabled=true",
            r#"metrics.serviceMonitor.interval="15s""#,
            r#"metrics.serviceMonitor.labels={"release":"prometheus"}"#,
            "metrics.prometheusRule.enabled=true",
            "metrics.dashboard.enabled=true",
            "networkPolicy.enabled=true",
            r#"networkPolicy.egress=[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}]"#,
        ],
    ),
    Combination(
        RELEASE,
        NAMESPACE,
        &[
            "metrics.podMonitor.enabled=true",
            r#"watchNamespaces=["team-a"]"#,
            "networkPolicy.enabled=true",
            "networkPolicy.apiServerPorts=[16443]",
            r#"networkPolicy.metricsFrom=[{"namespaceSelector":{"matchLabels":{"name":"monitoring"}}}]"#,
        ],
    ),
];

#[tokio::test]
async fn the_api_server_takes_every_combination() -> Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    let Some(helm) = Helm::on(&cluster).await? else {
        return Ok(());
    };
    prepare(&cluster, &helm).await?;
    let client = cluster.client().await?;
    let tried = futures::stream::iter(&COMBINATIONS).map(async |combination| {
        let Combination(release, namespace, values) = combination;
        let place = || format!("release {release} in {namespace} with {values:?}");
        let settings = values.iter().flat_map(|value| ["--set-json", value]);
        let settings: Vec<_> = settings.collect();
        let rendered = helm
            .template(release, namespace, &settings)
            .await
            .with_context(place)?;
        ensure!(!rendered.objects.is_empty(), "{} makes nothing", place());
        for object in rendered.objects.iter().chain(&rendered.hooks) {
            dry_run(&client, object).await.with_context(|| {
                let name = &object["metadata"]["name"];
                format!("{} {name} of {}", object["kind"], place())
            })?;
        }
        Ok(())
    });
    tried.buffer_unordered(AT_ONCE).try_collect().await
}

/// Namespaces and kinds of what is rendered; ours too, since `helm test` makes a Pool.
async fn prepare(cluster: &LocalCluster, helm: &Helm<'_>) -> Result<()> {
    CERT_MANAGER.install(cluster).await?;
    PROMETHEUS.install(cluster).await?;
    let rendered = helm.template(RELEASE, NAMESPACE, &[]).await?;
    let mut objects = rendered.objects;
    objects.retain(|object| object["kind"] == "CustomResourceDefinition");
    let namespaces = NAMESPACES
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    objects.extend(namespaces);
    let apply = ["apply", "--server-side", "-f", "-"];
    cluster.kubectl_with_input(&apply, &list(&objects)).await?;
    let kinds = "crd/pools.sandbox.opensandbox.io";
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            kinds,
        ])
        .await?;
    Ok(())
}

/// Applies an object without making it.
async fn dry_run(client: &kube::Client, object: &Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    let types = object.types.clone().context("an object has a kind")?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let metadata = &object.metadata;
    let name = metadata.name.as_deref().context("an object has a name")?;
    let api: Api<DynamicObject> = match &metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    // Forced, since others own fields of the kinds.
    let mut params = PatchParams::apply("chart-test").force().validation_strict();
    params.dry_run = true;
    api.patch(name, &params, &Patch::Apply(&object)).await?;
    Ok(())
}
