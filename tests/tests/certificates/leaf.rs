//! The leaf is renewed, again and again.

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::wait::{self, Probe};

use crate::site::{BOUND, Rounds, Site, YOUNG};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaf_is_renewed_without_a_failed_call_and_without_a_write() -> Result<()> {
    let often = ["--leaf-validity=60s", "--leaf-renew-before=57s", YOUNG];
    let Some(site) = Site::start(2, &often).await? else {
        return Ok(());
    };
    let load = site.load().await?;
    let before = site.kept().await?.context("the Secret exists")?;
    let authority = site.authority().await?;
    let mut rounds = Rounds::begin()?;
    while rounds.again(3) {
        let old = site.leaves().await?;
        wait::until("every replica to renew its leaf", BOUND, async || {
            let new = site.leaves().await?;
            let kept = old.iter().zip(&new).filter(|(old, new)| old == new).count();
            Ok(if kept == 0 {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("{kept} of {} as before", old.len()))
            })
        })
        .await
        .with_context(|| site.logs())?;
    }
    load.more(100).await?;
    ensure!(site.signs(&authority).await, "another authority signs");
    let after = site.kept().await?.context("the Secret exists")?;
    ensure!(after.version == before.version, "the Secret was written");
    load.end(
        &format!("leaf renewed {} times by 2 replicas", rounds.done()),
        &site.cluster,
    )
    .await
}
