//! The webhook configurations are applied again, and lose their bundles.
//!
//! Between a bundle's loss and its repair calls fail, whoever repairs it; how long that lasts is told.
//! What must not happen is that a usual way to apply them again loses the bundle at all, that a repair
//! does not come, or that the webhook goes on writing after it.

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::LocalCluster;
use opensandbox_tests::installation::{self, Installation, NAME};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use crate::peer::Certificate;
use crate::site::{BOUND, Rounds, Site, YOUNG, cluster, configurations, settings};

const KINDS: [&str; 2] = [
    "mutatingwebhookconfiguration",
    "validatingwebhookconfiguration",
];

/// `kubectl replace`, which takes away what is not in the file.
pub(crate) async fn replace(cluster: &LocalCluster, address: &str) -> Result<()> {
    let list = installation::list(&configurations(cluster, address).await?);
    cluster
        .kubectl_with_input(&["replace", "-f", "-"], &list)
        .await?;
    Ok(())
}

/// The configurations with this in place of each bundle.
fn with_bundle(mut documents: Vec<Value>, bundle: &str) -> String {
    for document in &mut documents {
        for webhook in document["webhooks"].as_array_mut().into_iter().flatten() {
            webhook["clientConfig"]["caBundle"] = json!(bundle);
        }
    }
    installation::list(&documents)
}

/// Ways to apply the configurations again that leave the bundles alone.
async fn reapplied(site: &Site) -> Result<()> {
    let documents = configurations(&site.cluster, site.webhook.address()).await?;
    let list = installation::list(&documents);
    let ways: [&[&str]; 3] = [
        &[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=gitops",
            "-f",
            "-",
        ],
        &["apply", "--server-side", "-f", "-"],
        &["apply", "-f", "-"],
    ];
    for way in ways {
        site.cluster.kubectl_with_input(way, &list).await?;
    }
    Ok(())
}

/// Ways to lose the bundles. Each is repaired.
async fn lost(site: &Site, way: &str) -> Result<()> {
    let documents = configurations(&site.cluster, site.webhook.address()).await?;
    let remove =
        json!([{ "op": "remove", "path": "/webhooks/0/clientConfig/caBundle" }]).to_string();
    let overwrite = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=gitops",
        "-f",
        "-",
    ];
    match way {
        "removed from one entry" => {
            for kind in KINDS {
                site.cluster
                    .kubectl(&["patch", kind, NAME, "--type=json", "--patch", &remove])
                    .await?;
            }
        }
        "replaced" => replace(&site.cluster, site.webhook.address()).await?,
        // What charts put there for an injector to fill.
        "overwritten by a placeholder" => {
            site.cluster
                .kubectl_with_input(&overwrite, &with_bundle(documents, "Cg=="))
                .await?;
        }
        "overwritten by another authority" => {
            // The API server's own: a good certificate that signed none of the leaves.
            let other = k8s_openapi::ByteString(site.cluster.authority_pem().as_bytes().to_vec());
            let other = serde_json::to_value(other)?;
            let other = other.as_str().context("bytes are written as text")?;
            site.cluster
                .kubectl_with_input(&overwrite, &with_bundle(documents, other))
                .await?;
        }
        _ => {
            for kind in KINDS {
                site.cluster.kubectl(&["delete", kind, NAME]).await?;
            }
            site.cluster
                .kubectl_with_input(&["create", "-f", "-"], &installation::list(&documents))
                .await?;
        }
    }
    Ok(())
}

const WAYS: [&str; 5] = [
    "removed from one entry",
    "replaced",
    "overwritten by a placeholder",
    "overwritten by another authority",
    "deleted and created",
];

#[expect(
    clippy::print_stdout,
    reason = "the numbers are what a soak is run for"
)]
async fn repaired(site: &Site, way: &str) -> Result<()> {
    let authority = site.authority().await?;
    lost(site, way).await?;
    let outage = site.served().await?;
    println!(
        "bundles {way}: {} failed attempts, {} ms until the next Pool",
        outage.0,
        outage.1.as_millis()
    );
    published_again(site, &authority).await?;
    site.ready().await?;
    ensure!(
        site.authority().await? == authority,
        "{way}: another authority"
    );
    Ok(())
}

/// The authority is published everywhere; another one may be beside it, until it is known to be of no use.
async fn published_again(site: &Site, authority: &Certificate) -> Result<()> {
    wait::until("the bundles to be repaired", BOUND, async || {
        let bundles = site.bundles().await?;
        let without = bundles
            .iter()
            .filter(|bundle| !bundle.contains(authority))
            .count();
        Ok(if without == 0 {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("missing in {without}"))
        })
    })
    .await
    .with_context(|| site.logs())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_repaired_and_nothing_is_written_when_all_is_well() -> Result<()> {
    let Some(cluster) = cluster(true).await? else {
        return Ok(());
    };
    let webhook = Installation::install(&cluster, settings(2, &[YOUNG])).await?;
    let site = Site::new(cluster, webhook).await?;
    let mut rounds = Rounds::begin()?;
    while rounds.again(1) {
        let authority = site.authority().await?;
        let load = site.load().await?;
        site.idle("under load", rounds.quiet() / 2).await?;
        let before = site.writes()?.len();
        reapplied(&site).await?;
        load.more(100).await?;
        ensure!(
            site.writes()?.len() == before,
            "{:?}",
            &site.writes()?[before..]
        );
        published_again(&site, &authority).await?;
        load.end("configurations applied again in 3 ways", &site.cluster)
            .await?;
        for way in WAYS {
            repaired(&site, way).await.with_context(|| way.to_owned())?;
        }
        let load = site.load().await?;
        load.more(50).await?;
        site.idle("after all repairs", rounds.quiet()).await?;
        load.end("after the repairs", &site.cluster).await?;
        site.idle("at rest", rounds.quiet() / 2).await?;
    }
    Ok(())
}
