//! The Secret is deleted, spoilt, emptied, and replaced by somebody else's authority.

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use opensandbox_tests::wait::{self, Probe};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::load::Load;
use crate::peer::{Certificate, certificates};
use crate::site::{BOUND, QUICK, Rounds, SECRET, Site};

/// Waits until the Secret holds this authority and nothing else, in another object or version than
/// `before`.
async fn restored(site: &Site, authority: &Certificate, before: &str) -> Result<()> {
    wait::until("the Secret to be restored", BOUND, async || {
        let Some(kept) = site.kept().await? else {
            return Ok(Probe::not_yet("it does not exist"));
        };
        let right = kept.version != before
            && kept.current.as_ref() == Some(authority)
            && kept.next.is_none();
        Ok(if right {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("version {}", kept.version))
        })
    })
    .await
    .with_context(|| site.logs())
}

async fn deletions(site: &Site, load: &Load) -> Result<()> {
    let authority = site.authority().await?;
    for _ in 0..3 {
        let before = site.kept().await?.context("the Secret exists")?;
        site.secrets()
            .delete(SECRET, &DeleteParams::default())
            .await?;
        restored(site, &authority, &before.version).await?;
        let after = site.kept().await?.context("the Secret exists")?;
        ensure!(after.uid != before.uid, "it was not deleted");
        load.more(50).await?;
    }
    ensure!(site.signs(&authority).await, "another authority signs");
    site.published(&[&authority]).await
}

/// Things that people and programs do to Secrets.
fn garbage() -> Vec<(&'static str, Value)> {
    // "garbage" and "[{}]" in base 64.
    vec![
        (
            "a certificate",
            json!({ "data": { "ca.crt": "Z2FyYmFnZQ==" } }),
        ),
        ("a key", json!({ "data": { "ca.key": "Z2FyYmFnZQ==" } })),
        (
            "a next authority",
            json!({ "data": { "next.crt": "Z2FyYmFnZQ==", "next.key": "Z2FyYmFnZQ==" } }),
        ),
        (
            "the retired ones",
            json!({ "data": { "previous.json": "W3t9XQ==" } }),
        ),
        ("no key", json!({ "data": { "ca.key": null } })),
        ("nothing", json!({ "data": null })),
    ]
}

async fn spoils(site: &Site, load: &Load) -> Result<()> {
    let authority = site.authority().await?;
    for (what, patch) in garbage() {
        let patched = site
            .secrets()
            .patch(SECRET, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        let version = patched
            .metadata
            .resource_version
            .context("a stored object has a version")?;
        restored(site, &authority, &version)
            .await
            .with_context(|| what.to_owned())?;
        load.more(20).await?;
    }
    ensure!(site.signs(&authority).await, "another authority signs");
    site.published(&[&authority]).await
}

/// An authority that is valid, and that no API server has ever heard of.
async fn replacement(site: &Site, load: &Load) -> Result<()> {
    let authority = site.authority().await?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let foreign = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let patch = json!({ "data": null, "stringData": { "ca.crt": foreign.pem(), "ca.key": foreign.key().serialize_pem() } });
    site.secrets()
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    let foreign = certificates(foreign.pem().as_bytes())?
        .into_iter()
        .next()
        .context("a certificate")?;
    wait::until("the authority in the Secret to sign", BOUND, async || {
        site.leaves().await?;
        Ok(if site.signs(&foreign).await {
            Probe::Done(())
        } else {
            Probe::not_yet("it does not sign everywhere")
        })
    })
    .await
    .with_context(|| site.logs())?;
    load.more(50).await?;
    site.published(&[&foreign]).await?;
    ensure!(authority != foreign && site.signs(&foreign).await);
    Ok(())
}

async fn endure(replicas: usize) -> Result<()> {
    let Some(site) = Site::start(replicas, &QUICK).await? else {
        return Ok(());
    };
    let load = site.load().await?;
    let mut rounds = Rounds::begin()?;
    while rounds.again(1) {
        deletions(&site, &load).await?;
        spoils(&site, &load).await?;
        replacement(&site, &load).await?;
    }
    let rounds = rounds.done();
    let what = format!(
        "{replicas} replicas: Secret deleted {} times, spoilt {}, replaced {rounds}",
        rounds * 3,
        rounds * 6
    );
    load.end(&what, &site.cluster).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_endures_what_happens_to_the_secret() -> Result<()> {
    endure(1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_endure_what_happens_to_the_secret() -> Result<()> {
    endure(2).await
}
