//! One task prints more than anybody can keep: memory stays bounded, what is dropped is counted, what
//! another prints is whole, and the container's log stays readable and small.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use opensandbox_api::task::State;
use opensandbox_tests::executor::{ExecutorPod, task};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe};

use super::{BOUND, kept};
use crate::processes::status_bytes;
use crate::settings::number;

const MIB: u64 = 1024 * 1024;
/// What an executor may take for a flood, however long it lasts.
const GROWTH: u64 = 64 * MIB;
/// The default of `--output-buffer-bytes`.
const KEPT: u64 = MIB;
/// The default of `--log-output-rate`.
const RATE: f64 = 256.0 * 1024.0;
/// Longest line in the container's log: 8 KiB of text, of which each byte may have to be escaped.
const LONGEST_LINE: usize = 40 * 1024;

#[tokio::test]
async fn a_flood_is_bounded_and_harms_nobody() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("flood").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let began = Instant::now();
    let pod = ExecutorPod::start(&node, &namespace, "flood", &recipe).await?;
    let client = pod.client();
    let executor = pod.main_pid(EXECUTOR).await?;
    let idle = status_bytes(executor, "VmRSS")?;
    // From here on the high-water mark counts anew.
    std::fs::write(format!("/proc/{executor}/clear_refs"), "5")?;

    let mebibytes = number("OPENSANDBOX_FLOOD_MIB", 256) as u64;
    let total = mebibytes * MIB;
    let script = format!("yes 0123456789abcde | head -c {total}");
    client
        .create(&task("flood", &["sh", "-c", &script]))
        .await?;
    // As long as the flood lasts, and a bit longer.
    let script = "for i in $(seq 1 400); do echo quiet line $i; sleep 0.01; done";
    client.create(&task("quiet", &["sh", "-c", script])).await?;

    let peak = AtomicU64::new(idle);
    let watching = async {
        loop {
            let now = status_bytes(executor, "VmHWM").unwrap_or(0);
            peak.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let bound = BOUND + std::time::Duration::from_secs(mebibytes);
    tokio::select! {
        () = watching => {}
        ended = client.wait_ended("flood", bound) => {
            ensure!(ended?.state() == State::Succeeded, "the flood was cut off");
        }
    }
    let quiet = client.wait_ended("quiet", BOUND).await?;
    assert_eq!(quiet.state(), State::Succeeded, "{:?}", quiet.outcome);
    assert_eq!(pod.main_pid(EXECUTOR).await?, executor, "it was restarted");

    let (bytes, dropped) = kept(client, "flood").await?;
    assert_eq!(
        dropped + bytes.len() as u64,
        total,
        "every byte is kept or counted"
    );
    assert!(bytes.len() as u64 <= KEPT, "{} bytes kept", bytes.len());
    assert!(
        bytes.len() as u64 >= KEPT.min(total) / 2,
        "{} bytes kept",
        bytes.len()
    );
    let line = b"0123456789abcde\n";
    let phase = usize::try_from(dropped % 16)?;
    let expected = line.iter().cycle().skip(phase).take(bytes.len());
    assert!(bytes.iter().eq(expected), "what is kept is the end");
    let printed = client.metric("task_executor_output_bytes_total").await?;
    let left_out = client
        .metric("task_executor_output_dropped_bytes_total")
        .await?;
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 bytes")]
    let (total, dropped) = (total as f64, dropped as f64);
    assert!(
        printed >= total && left_out >= dropped,
        "{printed} printed, {left_out} dropped"
    );

    let (bytes, dropped) = kept(client, "quiet").await?;
    let expected: Vec<_> = (1..=400).map(|i| format!("quiet line {i}")).collect();
    let text = String::from_utf8(bytes)?;
    assert_eq!(
        (text.lines().collect::<Vec<_>>(), dropped),
        (expected.iter().map(String::as_str).collect(), 0)
    );

    peak.fetch_max(status_bytes(executor, "VmHWM")?, Ordering::Relaxed);
    let peak = peak.load(Ordering::Relaxed);
    assert!(
        peak <= idle + GROWTH,
        "{} MiB idle, {} MiB at most",
        idle / MIB,
        peak / MIB
    );

    log_is_readable(&pod, began).await?;
    client.set_tasks(&[]).await?;
    pod.delete().await
}

async fn log_is_readable(pod: &ExecutorPod<'_>, began: Instant) -> Result<()> {
    let log = pod.logs(EXECUTOR).await?;
    // A burst, and as much as time has passed; and what is said besides.
    let most = RATE * (4.0 + began.elapsed().as_secs_f64()) + 1024.0 * 1024.0;
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 bytes")]
    let length = log.len() as f64;
    assert!(
        length <= most,
        "{length} bytes of log, at most {most} expected"
    );
    for line in log.lines() {
        ensure!(line.len() <= LONGEST_LINE, "a line of {} bytes", line.len());
        let ours = line.starts_with('[') || line.starts_with('{');
        ensure!(
            ours && !line.contains('\r'),
            "a line that is of nobody: {line:?}"
        );
    }
    let count = |start: &str| log.lines().filter(|line| line.starts_with(start)).count();
    // The one that is quiet is there line by line, the other in part, with a word on the rest.
    let quiet = count("[quiet stdout] quiet line ");
    assert!(
        quiet >= 350,
        "{quiet} of 400 lines:\n{}",
        pod.executor_log_tail().await
    );
    assert!(count("[flood stdout] 0123456789abcde") > 10);
    let told = log
        .lines()
        .find(|line| line.starts_with("[flood] ") && line.contains("left out"));
    told.context("no word on what was left out")?;
    assert!(count("[flood] started") == 1 && count("[quiet] started") == 1);
    Ok(())
}
