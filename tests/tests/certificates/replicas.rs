//! Two replicas start at once where nothing is yet, and are restarted one after the other.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;
use nix::sys::signal::Signal;
use opensandbox_tests::wait::{self, Probe};

use crate::bundles;
use crate::site::{BOUND, Kept, Rounds, SECRET, Site, YOUNG};

/// A replica drains for some seconds and has nothing to finish then.
const END: Duration = Duration::from_mins(1);

/// Everything as on a cluster that the webhook was never on: no process, no Secret, no bundle.
async fn forget(site: &Site) -> Result<()> {
    for replica in site.webhook.replicas() {
        replica.program.stop().await?;
    }
    site.secrets()
        .delete(SECRET, &DeleteParams::default())
        .await?;
    bundles::replace(&site.cluster, site.webhook.address()).await?;
    let published = site.bundles().await?;
    ensure!(published.iter().all(BTreeSet::is_empty), "bundles are left");
    ensure!(site.kept().await?.is_none(), "the Secret is left");
    Ok(())
}

async fn first_secret(site: &Site) -> Result<Kept> {
    wait::until("a Secret", BOUND, async || {
        Ok(site
            .kept()
            .await?
            .map_or_else(|| Probe::not_yet("it does not exist"), Probe::Done))
    })
    .await
}

/// The replicas made one authority, publish it and sign with it.
async fn agreed(site: &Site, first: &Kept) -> Result<()> {
    let kept = site.kept().await?.context("the Secret exists")?;
    ensure!(kept.uid == first.uid, "there was a second Secret");
    ensure!(kept.current == first.current, "the authority was replaced");
    ensure!(
        kept.next.is_none() && !kept.retired,
        "another authority was made: {kept:?}"
    );
    let authority = kept.current.context("the Secret holds an authority")?;
    site.published(&[&authority]).await?;
    ensure!(
        site.signs(&authority).await,
        "a replica serves another authority's leaf"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_agree_and_are_restarted_without_a_failed_call() -> Result<()>
{
    let Some(mut site) = Site::start(2, &[YOUNG]).await? else {
        return Ok(());
    };
    let mut rounds = Rounds::begin()?;
    while rounds.again(2) {
        forget(&site).await?;
        for index in 0..2 {
            site.webhook.restart(&site.cluster, index).await?;
        }
        // From the first Pool that is admitted on, whichever replica it was.
        let (first, load) = tokio::try_join!(first_secret(&site), site.load())?;
        site.ready().await?;
        agreed(&site, &first).await.with_context(|| site.logs())?;
        load.more(50).await?;
        for index in 0..2 {
            let replica = &site.webhook.replicas()[index].program;
            replica.signal(Signal::SIGTERM)?;
            let exit = replica.wait_for_exit(END).await?;
            ensure!(exit.code == Some(0), "{exit}");
            load.more(50).await?;
            site.webhook.restart(&site.cluster, index).await?;
            site.webhook.replicas()[index].ready().await?;
            load.more(50).await?;
        }
        agreed(&site, &first).await.with_context(|| site.logs())?;
        let what = format!(
            "start {} of 2 replicas at once, and a rolling restart",
            rounds.done()
        );
        load.end(&what, &site.cluster)
            .await
            .with_context(|| site.logs())?;
    }
    Ok(())
}
