//! The authority is rotated: when somebody asks for it, and by its age.

use anyhow::{Context as _, Result, ensure};
use kube::api::{Patch, PatchParams};
use opensandbox_api::labels;
use opensandbox_tests::wait::{self, Probe};
use serde_json::json;

use crate::peer::Certificate;
use crate::site::{BOUND, QUICK, Rounds, SECRET, Site};

/// Follows one rotation from `old`: the new one is published beside it, then signs, then stays alone.
async fn rotation(site: &Site, old: &Certificate) -> Result<Certificate> {
    let new = wait::until(
        "a new authority beside the old one in every bundle",
        BOUND,
        async || {
            let bundles = site.bundles().await?;
            let first = bundles.first().context("a bundle")?;
            let overlap = bundles.iter().all(|bundle| bundle == first) && first.contains(old);
            let mut new = first.iter().filter(|one| *one != old);
            // A rotation by age may follow closely, so that a third one is on its way out.
            let kept = site.kept().await?.context("the Secret exists")?;
            let coming = kept.next.or(kept.current).filter(|one| one != old);
            Ok(match (overlap, coming) {
                (true, Some(coming)) if new.any(|one| *one == coming) => Probe::Done(coming),
                _ => Probe::not_yet(format!("{} in the first bundle", first.len())),
            })
        },
    )
    .await?;
    wait::until("the new authority to sign", BOUND, async || {
        // Each look proves that what is served is trusted by every bundle.
        site.leaves().await?;
        Ok(if site.signs(&new).await {
            Probe::Done(())
        } else {
            Probe::not_yet("it does not sign everywhere")
        })
    })
    .await?;
    Ok(new)
}

async fn dropped(site: &Site, old: &Certificate) -> Result<()> {
    wait::until(
        "the old authority to leave the bundles",
        BOUND,
        async || {
            site.leaves().await?;
            let with = site
                .bundles()
                .await?
                .iter()
                .filter(|bundle| bundle.contains(old))
                .count();
            Ok(if with == 0 {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("in {with} bundles"))
            })
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authority_is_rotated_on_request_and_by_age_without_a_failed_call() -> Result<()> {
    // Due 40 s after its birth, when what the rotation on request leaves behind is gone.
    let aging = ["--ca-validity=600s", "--ca-renew-before=560s"];
    let args = [QUICK.as_slice(), &aging].concat();
    let Some(site) = Site::start(2, &args).await? else {
        return Ok(());
    };
    let load = site.load().await?;
    let mut authority = site.authority().await?;
    let mut rounds = Rounds::begin()?;
    while rounds.again(1) {
        // A value of its own each time: the same one again asks for nothing.
        let request = json!({ "metadata": { "annotations": {
            (format!("{}/rotate", labels::GROUP)): format!("round {}", rounds.done())
        } } });
        site.secrets()
            .patch(SECRET, &PatchParams::default(), &Patch::Merge(&request))
            .await?;
        let requested = rotation(&site, &authority)
            .await
            .with_context(|| site.logs())?;
        dropped(&site, &authority)
            .await
            .with_context(|| site.logs())?;
        let aged = rotation(&site, &requested)
            .await
            .with_context(|| site.logs())?;
        load.more(100).await?;
        ensure!(aged != requested && requested != authority);
        authority = aged;
    }
    let what = format!(
        "authority rotated {} times on request and as often by age, 2 replicas",
        rounds.done()
    );
    load.end(&what, &site.cluster).await
}
