//! The webhook over TLS: latencies, throughput, memory, with a rotation of its certificates under load.
//!
//! `cargo bench -p opensandbox-tests --bench admission_tls` prints tables. It starts a local API server,
//! installs the webhook from config/ as a process in the release profile, and calls it directly with
//! reviews of 10 KB, as that API server would. What is measured, and what not: docs/benchmarks.md.

#![forbid(unsafe_code)]

mod client;
mod load;
mod process;
mod reviews;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use opensandbox_tests::cluster::start_or_skip;
use opensandbox_tests::installation::{self, Installation, NAMESPACE};
use opensandbox_tests::{LocalCluster, Program, programs};
use serde_json::json;
use tokio::sync::watch;

use self::client::{Endpoint, Lane, Published};
use self::load::Outcome;
use self::reviews::Review;

/// Connections or streams of all loads but the one with new connections.
const LANES: usize = 16;
/// New connections at once: more than are ever needed, so that none waits for its turn.
const FRESH_LANES: usize = 64;
const RATE: u32 = 1000;
const FRESH_RATE: u32 = 200;
/// Shorter loads have no room for a rotation.
const SHORTEST: u32 = 10;
const SETTLE: &str = "--ca-settle=3s";
const RESTARTS: usize = 5;
const READY: Duration = Duration::from_secs(30);
const CA_SECRET: &str = "opensandbox-webhook-ca";
const P99_TARGET: Duration = Duration::from_millis(8);
const RSS_TARGET: u64 = 25 * MIB;
const MIB: u64 = 1024 * 1024;

/// Measures the webhook over TLS.
#[derive(Debug, Parser)]
struct Arguments {
    /// Length of each load.
    #[arg(long, env = "OPENSANDBOX_BENCH_SECONDS", default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(i64::from(SHORTEST)..=3600))]
    seconds: u32,
    /// Given by Cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { seconds, bench: _ } = Arguments::parse();
    print("");
    machine()?;
    let Some(cluster) = start_or_skip(opensandbox_tests::Settings::default()).await? else {
        return Ok(());
    };
    let settings = installation::Settings {
        args: vec![SETTLE.to_owned()],
        ..installation::Settings::default()
    };
    let mut installation = Installation::install(&cluster, settings).await?;
    start_to_ready(&cluster, &mut installation).await?;
    let reviews: Arc<[Review]> = reviews::of_an_update(&cluster).await?.into();
    let sizes: Vec<_> = reviews
        .iter()
        .map(|review| review.body.len().to_string())
        .collect();
    print(&format!("| bytes of a review | {} |\n", sizes.join(", ")));

    let endpoint = Arc::new(Endpoint::of(&cluster, &installation).await?);
    let bench = Bench {
        program: &installation.replicas()[0].program,
        endpoint,
        reviews,
        seconds,
    };
    let failures = bench.run(&cluster).await?;
    ensure!(failures == 0, "{failures} calls failed");
    Ok(())
}

/// Tells what it runs on.
fn machine() -> Result<()> {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        Ok::<_, anyhow::Error>(text.trim_end().to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let processors = std::thread::available_parallelism()?;
    let load = read("/proc/loadavg")?;
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    print("| machine | |\n|---|---|");
    print(&format!(
        "| processors | {processors}, {} |",
        model.unwrap_or("unknown").trim()
    ));
    print(&format!(
        "| kernel | {} |",
        read("/proc/sys/kernel/osrelease")?
    ));
    print(&format!("| load average before | {} |", load.join(", ")));
    Ok(())
}

/// Starts the webhook again and again, each time after SIGKILL, on a cluster that knows it.
async fn start_to_ready(cluster: &LocalCluster, installation: &mut Installation) -> Result<()> {
    let size = std::fs::metadata(programs::webhook()?)?.len();
    print(&format!(
        "| size of the program | {} MiB |",
        mebibytes(size)
    ));
    let mut times = Vec::new();
    for _ in 0..RESTARTS {
        installation.replicas()[0].program.kill().await?;
        let start = Instant::now();
        installation.restart(cluster, 0).await?;
        let replica = &installation.replicas()[0];
        // Not Replica::ready, which looks every 20 ms.
        while !matches!(replica.get("/readyz").await, Ok((200, _))) {
            ensure!(
                start.elapsed() < READY,
                "not ready: {}",
                replica.program.log()?
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (median, longest) = (times[RESTARTS / 2], times[RESTARTS - 1]);
    let times = format!(
        "median {} ms, longest {} ms",
        millis(median),
        millis(longest)
    );
    print(&format!("| start to ready, {RESTARTS} times | {times} |"));
    Ok(())
}

struct Bench<'a> {
    program: &'a Program,
    endpoint: Arc<Endpoint>,
    reviews: Arc<[Review]>,
    seconds: u32,
}

impl Bench<'_> {
    /// All loads, one after the other; how many calls failed.
    async fn run(&self, cluster: &LocalCluster) -> Result<usize> {
        let Self {
            program,
            endpoint,
            reviews,
            seconds,
        } = self;
        let idle = program.rss_bytes()?;
        print(&format!(
            "RSS before the first call: {} MiB.\n",
            mebibytes(idle)
        ));
        print(
            "| load | calls | per second | failed | p50 ms | p90 ms | p99 ms | p99.9 ms | max ms \
             | taken up p99 ms | handshakes | CPU µs per call | RSS after MiB | peak MiB |",
        );
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
        let kept = || Lane::kept(endpoint, LANES);
        let open = |lanes, rate| load::open_loop(lanes, reviews, rate, *seconds);
        let mut failures = 0;

        let outcome = self
            .row("kept, 1,000/s", kept(), |lanes| open(lanes, RATE))
            .await?;
        failures += outcome.failures.len();
        let (p99, rss) = (outcome.latency(990), program.rss_bytes()?);

        let published = endpoint.published();
        let rotation = rotate(cluster, published, Duration::from_secs(1) * *seconds / 4);
        let rotated = self.row(
            "kept, 1,000/s, CA and leaf rotated",
            kept(),
            async |lanes| {
                let (outcome, rotated) = tokio::join!(open(lanes, RATE), rotation);
                rotated.context("rotate")?;
                outcome
            },
        );
        failures += rotated.await?.failures.len();

        let fresh = Lane::fresh(endpoint, FRESH_LANES);
        let outcome = self.row("new connections, 200/s", fresh, |lanes| {
            open(lanes, FRESH_RATE)
        });
        failures += outcome.await?.failures.len();

        let closed = |lanes| load::closed_loop(lanes, reviews, *seconds);
        failures += self
            .row("kept, closed loop, 16", kept(), closed)
            .await?
            .failures
            .len();
        let streams = endpoint.streams(LANES).await?;
        let outcome = self
            .row("HTTP/2, closed loop, 16 streams", streams, closed)
            .await?;
        failures += outcome.failures.len();

        print(&format!(
            "\nTargets: p99 at 1,000/s {} ms of {} ms; RSS after it {} MiB of {} MiB; \
             {failures} failed calls of 0.",
            millis(p99),
            millis(P99_TARGET),
            mebibytes(rss),
            mebibytes(RSS_TARGET),
        ));
        Ok(failures)
    }

    /// One load, and its line of the table.
    async fn row(
        &self,
        name: &str,
        mut lanes: Vec<Lane>,
        load: impl AsyncFnOnce(Vec<Lane>) -> Result<Outcome>,
    ) -> Result<Outcome> {
        let program = self.program;
        load::warm_up(&mut lanes, &self.reviews).await?;
        self.endpoint.take_seen();
        process::forget_peak(program)?;
        let cpu = process::cpu_nanoseconds(program)?;
        let outcome = load(lanes).await?;
        let cpu = process::cpu_nanoseconds(program)?.saturating_sub(cpu);
        let seen = self.endpoint.take_seen();
        let calls = u32::try_from(outcome.answered())?;
        let cpu = Duration::from_nanos(cpu)
            .checked_div(calls)
            .unwrap_or_default();
        let handshakes = match seen.certificates.len() {
            0 | 1 => seen.handshakes.to_string(),
            leaves => format!("{} ({leaves} certificates)", seen.handshakes),
        };
        print(&format!(
            "| {name} | {calls} | {:.0} | {} | {} | {} | {} | {} | {} | {} | {handshakes} | {:.0} | {} | {} |",
            f64::from(calls) / outcome.elapsed.as_secs_f64(),
            outcome.failures.len(),
            millis(outcome.latency(500)),
            millis(outcome.latency(900)),
            millis(outcome.latency(990)),
            millis(outcome.latency(999)),
            millis(outcome.latency(1000)),
            outcome.wait(990).map_or_else(|| "-".to_owned(), millis),
            cpu.as_secs_f64() * 1e6,
            mebibytes(program.rss_bytes()?),
            mebibytes(process::peak_bytes(program)?),
        ));
        for (reason, count) in counted(&outcome.failures) {
            tell(&format!("{name}: {count} calls failed: {reason}"));
        }
        Ok(outcome)
    }
}

/// Asks for a new authority after `delay`, and waits until the webhook shows a certificate of it.
async fn rotate(
    cluster: &LocalCluster,
    mut published: watch::Receiver<Published>,
    delay: Duration,
) -> Result<()> {
    tokio::time::sleep(delay).await;
    let before = published.borrow_and_update().clone();
    let secrets: Api<Secret> = Api::namespaced(cluster.client().await?, NAMESPACE);
    let patch = json!({ "metadata": { "annotations": {
        "sandbox.opensandbox.io/rotate": "in the benchmark",
    } } });
    secrets
        .patch(CA_SECRET, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    let rotated = published.wait_for(|now| {
        now.authorities > before.authorities && now.leaf_expiry != before.leaf_expiry
    });
    tokio::time::timeout(READY, rotated)
        .await
        .context("the rotation takes too long")??;
    Ok(())
}

fn counted(reasons: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason.as_str()).or_default() += 1;
    }
    counts
}

fn millis(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

/// With one digit after the point.
fn mebibytes(bytes: u64) -> String {
    let tenths = (bytes * 10 + MIB / 2) / MIB;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its tables")]
fn print(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "failures are no part of the tables")]
fn tell(line: &str) {
    eprintln!("{line}");
}
