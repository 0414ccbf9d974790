//! The webhook and the API server end and come back, in every order, and the installation recovers by
//! itself.

use anyhow::{Result, ensure};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use crate::pools::{labelled, lacks, pool};
use crate::site::{BOUND, Failures, Place, Site, own};

/// Waits until a Pool of this name is stored, and then it must be injected: nothing slips through.
async fn served(place: &Place<'_>, name: &str) -> Result<()> {
    let stored = wait::until("a Pool to be admitted", BOUND, async || {
        Ok(match place.create(&pool(name), "").await {
            Ok(Ok(stored)) => Probe::Done(stored),
            Ok(Err(message)) => Probe::not_yet(message),
            Err(error) => Probe::not_yet(format!("{error:#}")),
        })
    })
    .await?;
    ensure!(lacks(&stored).is_empty(), "{name}: {:?}", lacks(&stored));
    Ok(())
}

fn sandbox(name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1", "kind": "BatchSandbox",
        "metadata": { "name": name }, "spec": spec,
    });
    object["spec"]["poolRef"] = json!("p");
    object
}

#[tokio::test]
async fn while_the_webhook_is_away_only_pools_that_need_it_wait() -> Result<()> {
    let Some(mut site) = own().await? else {
        return Ok(());
    };
    {
        let place = site.place(&[]).await?;
        served(&place, "before").await?;
        site.webhook.replicas()[0].program.kill().await?;
        let mut failures = Failures::default();
        let said = place.apply(&pool("refused")).await?;
        let names_webhook = said
            .stderr
            .contains("failed calling webhook \"inject.pools.sandbox.opensandbox.io\"");
        failures.check(said.code == Some(1) && names_webhook, || {
            format!("{said:?}")
        });
        let missing = place.kubectl(&["get", "pool", "refused"]).await?;
        failures.check(missing.code == Some(1), || {
            format!("stored without the executor: {missing:?}")
        });
        let status = r#"{"status":{"total":1,"allocated":0,"available":1,"revision":"x"}}"#;
        let task = json!({ "taskTemplate": { "spec": { "process": { "command": ["a"] } } } });
        for (args, object) in [
            (
                ["apply", "-f", "-"].as_slice(),
                Some(labelled("out", "disabled")),
            ),
            (&["apply", "-f", "-"], Some(sandbox("plain", &json!({})))),
            // The webhook may be absent for these: the operator looks again.
            (&["apply", "-f", "-"], Some(sandbox("tasks", &task))),
            (&["annotate", "pool", "before", "a=b"], None),
            (
                &[
                    "patch",
                    "pool",
                    "before",
                    "--subresource=status",
                    "--type=merge",
                    "--patch",
                    status,
                ],
                None,
            ),
            (&["delete", "pool", "before"], None),
            (&["create", "deployment", "unrelated", "--image=x"], None),
        ] {
            let said = match &object {
                Some(object) => place.feed(args, object).await?,
                None => place.kubectl(args).await?,
            };
            failures.check(said.code == Some(0), || format!("{said:?}"));
        }
        failures.told()?;
    }
    let Site { webhook, cluster } = &mut site;
    webhook.restart(cluster, 0).await?;
    served(&site.place(&[]).await?, "after").await
}

#[tokio::test]
async fn the_api_server_restarts_and_changes_are_followed_again() -> Result<()> {
    let Some(site) = own().await? else {
        return Ok(());
    };
    let place = site.place(&[]).await?;
    place.set_image(Some("before:v1"), "before:v1").await?;
    site.cluster.stop_api_server().await?;
    site.cluster.start_api_server().await?;
    site.cluster.wait_ready(BOUND).await?;
    served(&place, "after").await?;
    place.set_image(Some("after:v2"), "after:v2").await?;
    let quiet = site
        .place(&[(opensandbox_api::labels::INJECTION, "disabled")])
        .await?;
    let stored = quiet
        .create(&pool("quiet"), "")
        .await?
        .map_err(anyhow::Error::msg)?;
    ensure!(
        !lacks(&stored).is_empty(),
        "the label of a new namespace was not seen: {stored}"
    );
    ensure!(
        site.webhook.replicas()[0].program.exit().is_none(),
        "the webhook ended"
    );
    Ok(())
}

#[tokio::test]
async fn both_end_and_come_back_the_webhook_first() -> Result<()> {
    let Some(mut site) = own().await? else {
        return Ok(());
    };
    {
        let place = site.place(&[]).await?;
        place.set_image(Some("kept:v1"), "kept:v1").await?;
    }
    site.webhook.replicas()[0].program.kill().await?;
    site.cluster
        .kill(opensandbox_tests::component::KUBE_API_SERVER)
        .await?;
    site.webhook.restart(&site.cluster, 0).await?;
    // It waits for the API server, alive and not ready.
    let replica = &site.webhook.replicas()[0];
    wait::until("the webhook to be alive", BOUND, async || {
        Ok(match replica.get("/healthz").await {
            Ok((200, _)) => Probe::Done(()),
            other => Probe::not_yet(format!("{other:?}")),
        })
    })
    .await?;
    let (status, body) = replica.get("/readyz").await?;
    ensure!(status == 503, "ready without an API server: {body}");
    site.cluster.start_api_server().await?;
    site.cluster.wait_ready(BOUND).await?;
    replica.ready().await?;
    let place = site.place(&[]).await?;
    served(&place, "after").await?;
    place.set_image(Some("changed:v2"), "changed:v2").await
}

/// Killed and stopped in turn, and never a Pool without the executor.
#[tokio::test]
async fn no_pool_slips_through_restarts() -> Result<()> {
    let Some(mut site) = own().await? else {
        return Ok(());
    };
    for round in 0..5 {
        let Site { webhook, cluster } = &mut site;
        if round % 2 == 0 {
            webhook.replicas()[0].program.kill().await?;
        } else {
            webhook.replicas()[0].program.stop().await?;
        }
        webhook.restart(cluster, 0).await?;
        let place = site.place(&[]).await?;
        served(&place, "pool").await?;
    }
    Ok(())
}
