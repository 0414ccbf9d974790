//! Who leads, and what becomes of a replica that may not any more.

use std::time::Instant;

use anyhow::{Result, ensure};
use opensandbox_tests::installation::NAMESPACE;

use crate::site::{BOUND, LEASE, is_leader, site};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_ready_and_takes_over_from_one_that_ends_in_order() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let namespace = site.namespace("takeover").await?;
    let first = site.operator(&[]).await?;
    site.leads(&first).await?;
    let second = site.operator(&[]).await?;
    ensure!(!is_leader(&second.metrics().await?), "two lead");

    first.stop().await?;
    let began = Instant::now();
    site.leads(&second).await?;
    // The Lease was given up: nobody waits until it runs out.
    ensure!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    site.pool(&namespace, "p", 1).await?;
    site.pods(&namespace, "p", 1).await?;
    second.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_killed_is_followed_when_its_lease_has_run_out() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let short = [
        "--lease-duration=3s",
        "--renew-deadline=2s",
        "--retry-period=500ms",
    ];
    let first = site.operator(&short).await?;
    site.leads(&first).await?;
    first.program.kill().await?;
    let second = site.operator(&short).await?;
    site.leads(&second).await?;
    let log = second.program.log()?;
    ensure!(log.contains(r#""resigned":false"#), "{log}");
    second.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_loses_its_lease_ends_with_failure() -> Result<()> {
    let Some(site) = site().await? else {
        return Ok(());
    };
    let operator = site.operator(&[]).await?;
    site.leads(&operator).await?;
    let thief = r#"{"spec":{"holderIdentity":"thief"}}"#;
    site.kubectl(&[
        "patch",
        "lease",
        LEASE,
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        thief,
    ])
    .await?;
    let exit = operator.program.wait_for_exit(BOUND).await?;
    let log = operator.program.log()?;
    ensure!(exit.code == Some(1), "{exit}: {log}");
    ensure!(log.contains("held by thief"), "{log}");
    ensure!(site.lease_holder().await? == "thief");
    site.kubectl(&["delete", "lease", LEASE, "-n", NAMESPACE])
        .await?;
    Ok(())
}
