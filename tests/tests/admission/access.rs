//! What the webhook's service account may do: what it needs and no more.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams};
use opensandbox_tests::cluster::client_of;
use opensandbox_tests::installation::{NAME, NAMESPACE};

use crate::site::{Failures, shared};

#[tokio::test]
async fn the_webhook_reads_its_own_settings_and_nothing_else() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    let mut failures = Failures::default();
    let system = NAMESPACE;
    let elsewhere = place.namespace.clone();
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:{NAME}");
    for (verb, resource, namespace, allowed) in [
        (
            "get",
            "configmaps/opensandbox-images",
            elsewhere.as_str(),
            true,
        ),
        ("get", "configmaps/opensandbox-images", system, true),
        ("get", "configmaps", &elsewhere, false),
        ("list", "configmaps", &elsewhere, false),
        ("get", "configmaps/kube-root-ca.crt", &elsewhere, false),
        ("update", "configmaps/opensandbox-images", &elsewhere, false),
        ("get", "secrets", &elsewhere, false),
        ("list", "secrets", &elsewhere, false),
        ("get", "secrets/opensandbox-webhook-ca", &elsewhere, false),
        ("create", "secrets", &elsewhere, false),
        ("get", "secrets/opensandbox-webhook-ca", system, true),
        ("get", "secrets/another", system, false),
        ("list", "secrets", system, false),
        ("delete", "secrets/opensandbox-webhook-ca", system, false),
        ("get", "namespaces", &elsewhere, true),
        ("patch", "namespaces", &elsewhere, false),
        ("get", "pools.sandbox.opensandbox.io", &elsewhere, false),
        ("update", "pools.sandbox.opensandbox.io", &elsewhere, false),
        ("create", "pods", &elsewhere, false),
        ("get", "nodes", &elsewhere, false),
        ("create", "mutatingwebhookconfigurations", &elsewhere, false),
        (
            "patch",
            "mutatingwebhookconfigurations/opensandbox-webhook",
            &elsewhere,
            true,
        ),
        (
            "patch",
            "mutatingwebhookconfigurations/another",
            &elsewhere,
            false,
        ),
        (
            "delete",
            "validatingwebhookconfigurations/opensandbox-webhook",
            &elsewhere,
            false,
        ),
        ("escalate", "clusterroles", &elsewhere, false),
        ("*", "*", &elsewhere, false),
    ] {
        let said = place
            .kubectl(&[
                "auth",
                "can-i",
                verb,
                resource,
                &account,
                "--namespace",
                namespace,
            ])
            .await?;
        let found = said.stdout.trim() == "yes";
        failures.check(found == allowed, || {
            format!("{verb} {resource} in {namespace}: {said:?}")
        });
    }
    failures.told()
}

#[tokio::test]
async fn the_webhooks_own_token_lists_config_maps_by_that_name_alone() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let kubeconfig = site
        .cluster
        .service_account_kubeconfig(NAMESPACE, NAME)
        .await?;
    let client = client_of(&kubeconfig).await?;
    let config_maps: Api<ConfigMap> = Api::all(client.clone());
    let by_name = config_maps
        .list(&ListParams::default().fields("metadata.name=opensandbox-images"))
        .await?;
    ensure!(
        by_name
            .items
            .iter()
            .any(|found| found.metadata.namespace.as_deref() == Some(NAMESPACE)),
        "{by_name:?}"
    );
    let forbidden =
        |error: kube::Error| matches!(error, kube::Error::Api(status) if status.code == 403);
    let all = config_maps.list(&ListParams::default()).await.err();
    ensure!(all.is_some_and(forbidden), "all ConfigMaps could be listed");
    let secrets: Api<Secret> = Api::all(client);
    let secrets = secrets.list(&ListParams::default()).await.err();
    ensure!(secrets.is_some_and(forbidden), "Secrets could be listed");
    Ok(())
}
