//! The key that orders are signed with, while people and tools do to its Secret and to the published half
//! what they do. What an executor makes of it is tested with executors; here it is who knows which key.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use opensandbox_api::token::{SigningKey, SystemRandom};
use opensandbox_tests::installation::NAMESPACE;
use opensandbox_tests::operator::Operator;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use crate::site::{BOUND, Site, site};

const SECRET: &str = "opensandbox-task-executor-key";
const CONFIG_MAP: &str = "opensandbox-images";
const PUBLISHED: &str = "taskExecutorVerificationKey";
const CURRENT: &str = "ed25519.pkcs8";

type Data = BTreeMap<String, ByteString>;

/// The two objects, as an administrator sees and changes them.
struct Objects {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
}

impl Objects {
    async fn of(site: &Site) -> Result<Self> {
        let client = site.cluster.client().await?;
        Ok(Self {
            secrets: Api::namespaced(client.clone(), NAMESPACE),
            config_maps: Api::namespaced(client, NAMESPACE),
        })
    }

    async fn published(&self) -> Result<String> {
        let data = self.config_maps.get(CONFIG_MAP).await?.data;
        let value = data.and_then(|mut data| data.remove(PUBLISHED));
        Ok(value.unwrap_or_default())
    }

    /// What is published, as soon as it fits.
    async fn until_published(&self, what: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        wait::until(what, BOUND, async || {
            let value = self.published().await?;
            Ok(if fits(&value) {
                Probe::Done(value)
            } else {
                Probe::not_yet(value)
            })
        })
        .await
    }

    /// What the Secret holds, as soon as it fits; nothing while there is none.
    async fn until_kept(&self, what: &str, fits: impl Fn(&Data) -> bool) -> Result<Data> {
        wait::until(what, BOUND, async || {
            let secret = self.secrets.get_opt(SECRET).await?;
            let data = secret.and_then(|secret| secret.data).unwrap_or_default();
            Ok(if fits(&data) {
                Probe::Done(data)
            } else {
                Probe::not_yet(format!("entries {:?}", data.keys()))
            })
        })
        .await
    }

    async fn change(&self, change: Value) -> Result<()> {
        let params = PatchParams::default();
        let patch = Patch::Merge(change);
        self.secrets.patch(SECRET, &params, &patch).await?;
        Ok(())
    }

    async fn put(&self, name: &str, value: &ByteString) -> Result<()> {
        self.change(json!({"data": {name: value}})).await
    }

    async fn publish(&self, value: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"data": {PUBLISHED: value}}));
        let params = PatchParams::default();
        self.config_maps.patch(CONFIG_MAP, &params, &patch).await?;
        Ok(())
    }
}

fn new_key() -> Result<(ByteString, String)> {
    let der = SigningKey::generate(&SystemRandom::new())?;
    let public = SigningKey::from_pkcs8(&der)?.verification_key();
    Ok((ByteString(der), public))
}

/// Nothing of a private key is in the log, in whatever form it could get there.
fn keeps_secrets(operator: &Operator, keys: &Data) -> Result<()> {
    let log = operator.program.log()?;
    for der in keys.values() {
        let base64 = serde_json::to_value(der)?;
        let base64 = base64.as_str().context("base64 is a text")?;
        ensure!(!base64.is_empty() && !log.contains(base64), "{log}");
        ensure!(!log.contains(&format!("{:?}", der.0)), "{log}");
    }
    Ok(())
}

/// The operator, which leads, the two objects, and the key that it has published.
async fn with_a_key(site: &Site) -> Result<(Operator, Objects, String)> {
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    let objects = Objects::of(site).await?;
    let published = objects
        .until_published("a key", |value| !value.is_empty())
        .await?;
    Ok((operator, objects, published))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_comes_back_whoever_takes_it_away() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let (operator, objects, first) = with_a_key(&site).await?;
    let kept = objects
        .until_kept("a key", |data| data.contains_key(CURRENT))
        .await?;
    let same = |data: &Data| *data == kept;

    // The public half: overwritten, taken away.
    let (_, foreign) = new_key()?;
    for value in [json!(foreign), json!("garbage"), Value::Null] {
        objects.publish(value).await?;
        objects
            .until_published("the key once more", |value| value == first)
            .await?;
    }

    // The private half: deleted, emptied, cut down to nothing.
    objects
        .secrets
        .delete(SECRET, &DeleteParams::default())
        .await?;
    objects.until_kept("the deleted Secret", same).await?;
    objects.change(json!({"data": null})).await?;
    objects.until_kept("the emptied Secret", same).await?;
    objects.change(json!({"data": {CURRENT: ""}})).await?;
    objects.until_kept("the emptied entry", same).await?;
    ensure!(objects.published().await? == first);

    // Garbage is never replaced, nor signed with, and it is said what to do.
    let garbage = ByteString(b"garbage".to_vec());
    objects.put(CURRENT, &garbage).await?;
    let complaint = operator
        .program
        .wait_for_line("the complaint", BOUND, |line| {
            line.contains("needs attention")
        })
        .await?;
    for words in ["ed25519.pkcs8", "put the key back"] {
        ensure!(complaint.contains(words), "{complaint}");
    }
    objects.put("other", &garbage).await?;
    let present = objects
        .until_kept("both", |data| data.contains_key("other"))
        .await?;
    ensure!(present.get(CURRENT) == Some(&garbage), "it was replaced");
    ensure!(objects.published().await? == first);
    objects
        .change(json!({"data": {CURRENT: null, "other": null}}))
        .await?;
    objects
        .until_kept("the key instead of garbage", same)
        .await?;
    ensure!(objects.published().await? == first);
    keeps_secrets(&operator, &kept)?;
    operator.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_keeps_the_key_before_until_it_is_removed() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let (operator, objects, before) = with_a_key(&site).await?;
    let ask = json!({"metadata": {"annotations": {"sandbox.opensandbox.io/rotate": "one"}}});
    objects.change(ask.clone()).await?;
    let both = objects
        .until_published("the new key before the old", |value| {
            value.strip_suffix(&before).is_some_and(|new| new.len() > 1)
        })
        .await?;
    let kept = objects
        .until_kept("both keys", |data| data.len() == 2)
        .await?;
    ensure!(kept.contains_key("retired-1.pkcs8"));

    // Asked again with the same value, also after a restart: that has been done.
    operator.stop().await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    objects.change(ask).await?;
    objects.publish(json!("garbage")).await?;
    objects
        .until_published("both keys once more", |value| value == both)
        .await?;
    ensure!(objects.until_kept("both keys", |_| true).await? == kept);

    objects
        .change(json!({"data": {"retired-1.pkcs8": null}}))
        .await?;
    let new = both.split(',').next().unwrap_or_default();
    objects
        .until_published("the new key alone", |value| value == new)
        .await?;

    // Another key in its place is the installation's decision.
    let (der, public) = new_key()?;
    objects.put(CURRENT, &der).await?;
    objects
        .until_published("the other key", |value| value == public)
        .await?;
    keeps_secrets(&operator, &kept)?;
    operator.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lost_while_no_operator_ran_is_made_anew_with_a_warning() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let (operator, objects, before) = with_a_key(&site).await?;
    operator.stop().await?;

    // Garbage: nothing is signed with it, nothing replaced, and pools are looked after all the same.
    let kept = objects
        .until_kept("a key", |data| data.contains_key(CURRENT))
        .await?;
    let garbage = ByteString(b"garbage".to_vec());
    objects.put(CURRENT, &garbage).await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    let namespace = site.namespace("keyless").await?;
    site.pool(&namespace, "p", 1).await?;
    site.pods(&namespace, "p", 1).await?;
    ensure!(objects.published().await? == before);
    objects.put(CURRENT, &kept[CURRENT]).await?;
    operator
        .program
        .wait_for_line("the key", BOUND, |line| {
            line.contains("uses the signing key of the Secret")
        })
        .await?;
    operator.stop().await?;

    objects
        .secrets
        .delete(SECRET, &DeleteParams::default())
        .await?;
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    objects
        .until_published("a new key", |value| !value.is_empty() && value != before)
        .await?;
    let warning = operator
        .program
        .wait_for_line("the warning", BOUND, |line| {
            line.contains("another was published before")
        })
        .await?;
    ensure!(warning.contains("replace these pods"), "{warning}");
    operator.stop().await
}
