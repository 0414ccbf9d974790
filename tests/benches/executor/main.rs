//! The task executor on a real node: from order to end, in a row and in parallel, in each mode; how
//! long an agent takes to come in; memory and sizes; and upstream's executor beside it.
//!
//! `cargo bench -p opensandbox-tests --bench executor` prints tables, and writes nothing. The executor
//! is the static program in the release profile, in pods of a kubelet. What is measured, and what not:
//! docs/benchmarks.md.

#![forbid(unsafe_code)]

mod connection;
mod measure;
mod place;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::node::start_or_skip;
use opensandbox_tests::pods::{EXECUTOR, SANDBOX};
use opensandbox_tests::{Node, Settings, TestNamespace, images, programs};

use self::measure::{Durations, InARow, Times};

const MIB: u64 = 1024 * 1024;
const READY: Duration = Duration::from_secs(30);
/// Tasks that a client without watch runs; each may take upstream half a second.
const LOOKED_AT: usize = 30;

/// Measures the task executor.
#[derive(Debug, Parser)]
struct Arguments {
    /// Tasks one after the other, in each mode.
    #[arg(long, env = "OPENSANDBOX_BENCH_TASKS", default_value_t = 2000)]
    tasks: usize,
    /// Upstream's executor, a static program, to measure beside ours.
    #[arg(long, env = "OPENSANDBOX_UPSTREAM_EXECUTOR")]
    upstream_executor: Option<PathBuf>,
    /// Given by Cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    print("");
    machine()?;
    let (program, image) = tokio::task::spawn_blocking(|| {
        anyhow::Ok((programs::static_executor()?, images::executor()?))
    })
    .await??;
    let size = std::fs::metadata(&program)?.len();
    print(&format!("| program | {} MiB |", mebibytes(size)));
    print(&format!(
        "| image | {} MiB, of 10 MiB |\n",
        mebibytes(image.size_bytes()?)
    ));
    let Some(node) = start_or_skip(Settings::default()).await? else {
        return Ok(());
    };
    let namespace = node.namespace("bench").await?;
    let bench = Bench {
        node: &node,
        namespace,
        program: &program,
        arguments: &arguments,
    };
    let injected = bench.modes().await?;
    if let Some(upstream) = &arguments.upstream_executor {
        bench.upstream(upstream).await?;
    }
    let [_, four] = injected.process.percent_within();
    print(&format!(
        "\nTargets, injected: from start to exit mean {} ms, of p50 1.5 ms; {four:.1} % within 4 ms, of \
         99 %; agent in {} ms of 5 ms; {} MiB idle of 8 MiB.",
        millis(injected.process.mean()),
        millis(injected.agent.at(500)),
        mebibytes(injected.idle),
    ));
    Ok(())
}

/// What the targets are about.
struct Injected {
    process: Durations,
    agent: Times,
    idle: u64,
}

struct Bench<'a> {
    node: &'a Node,
    namespace: TestNamespace,
    program: &'a Path,
    arguments: &'a Arguments,
}

impl Bench<'_> {
    /// A table with a line for each mode.
    async fn modes(&self) -> Result<Injected> {
        print(&format!(
            "`true`, {} times one after the other, then {} at once; RSS of the executor, and of the agent beside it.\n",
            self.arguments.tasks,
            measure::PARALLEL
        ));
        print(
            "| mode | order to end p50 ms | p90 ms | p99 ms | max ms | start to exit mean ms | within 1 ms % \
             | within 4 ms % | tasks per second, each deleted | at once p50 ms | max ms | RSS idle MiB | after MiB | peak MiB | agent idle MiB |",
        );
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
        let pod = self.sidecar("inject").await?;
        let (row, idle) = self.row("injected", &pod, EXECUTOR).await?;
        let agent = measure::injections(&pod).await?;
        pod.delete().await?;

        let pod = self.sidecar("chroot").await?;
        self.row("chroot", &pod, EXECUTOR).await?;
        pod.delete().await?;

        let arguments = ["serve", "--auth=none", "--mode=in-container"];
        let pod = place::alone(
            self.node,
            &self.namespace,
            "alone",
            self.program,
            &arguments,
        )
        .await?;
        pod.client().wait_ready(READY).await?;
        self.row("in-container", &pod, SANDBOX).await?;
        pod.delete().await?;
        print(&format!(
            "\nAn agent is brought in within p50 {} ms, at most {} ms.",
            millis(agent.at(500)),
            millis(agent.at(1000))
        ));
        Ok(Injected {
            process: row.process,
            agent,
            idle,
        })
    }

    async fn sidecar(&self, mode: &str) -> Result<ExecutorPod<'_>> {
        ExecutorPod::start(self.node, &self.namespace, mode, &place::sidecar(mode)).await
    }

    /// Measures in a pod. `container` is that of the executor.
    async fn row(
        &self,
        mode: &str,
        pod: &ExecutorPod<'_>,
        container: &str,
    ) -> Result<(InARow, u64)> {
        let executor = pod.main_pid(container).await?;
        let idle = memory(executor, "VmRSS")?;
        let agent = measure::agent(&pod.container_id(SANDBOX).await?);
        let agent = agent.map(|agent| memory(agent, "VmRSS")).transpose()?;
        let row = measure::in_a_row(pod.client(), self.arguments.tasks).await?;
        let parallel = measure::parallel(pod.client()).await?;
        let times = &row.order_to_end;
        let [one, four] = row.process.percent_within();
        #[expect(clippy::cast_precision_loss, reason = "a count of tasks")]
        let rate = self.arguments.tasks as f64 / row.whole.as_secs_f64();
        print(&format!(
            "| {mode} | {} | {} | {} | {} | {} | {one:.1} | {four:.1} | {rate:.0} | {} | {} | {} | {} | {} | {} |",
            millis(times.at(500)),
            millis(times.at(900)),
            millis(times.at(990)),
            millis(times.at(1000)),
            millis(row.process.mean()),
            millis(parallel.at(500)),
            millis(parallel.at(1000)),
            mebibytes(idle),
            mebibytes(memory(executor, "VmRSS")?),
            mebibytes(memory(executor, "VmHWM")?),
            agent.map_or_else(|| "-".to_owned(), mebibytes),
        ));
        Ok((row, idle))
    }

    /// Upstream's program and ours, in the way upstream's server runs it: as the first process of the
    /// sandbox. The same requests to both.
    async fn upstream(&self, upstream: &Path) -> Result<()> {
        print(
            "\nUpstream's executor and ours, both in-container, asked in upstream's way every ms.\n",
        );
        print(
            "| | order to end seen p50 ms | p90 ms | max ms | RSS idle MiB | after MiB | program MiB |",
        );
        print("|---|--:|--:|--:|--:|--:|--:|");
        let theirs = ["-data-dir=/tmp/tasks", "-log-dir=/tmp/logs"];
        let theirs = self.looked_at("upstream", upstream, &theirs).await?;
        let ours = ["serve", "--auth=none", "--mode=in-container"];
        let ours = self.looked_at("ours", self.program, &ours).await?;
        print(&format!(
            "\nUpstream takes {:.0} times as long (p50).",
            theirs.as_secs_f64() / ours.as_secs_f64()
        ));
        Ok(())
    }

    async fn looked_at(&self, name: &str, program: &Path, arguments: &[&str]) -> Result<Duration> {
        let pod = place::alone(self.node, &self.namespace, name, program, arguments).await?;
        let client = pod.client();
        healthy(&pod).await?;
        let executor = pod.main_pid(SANDBOX).await?;
        let idle = memory(executor, "VmRSS")?;
        let times = measure::looked_at(client, LOOKED_AT).await?;
        print(&format!(
            "| {name} | {} | {} | {} | {} | {} | {} |",
            millis(times.at(500)),
            millis(times.at(900)),
            millis(times.at(1000)),
            mebibytes(idle),
            mebibytes(memory(executor, "VmRSS")?),
            mebibytes(std::fs::metadata(program)?.len()),
        ));
        pod.delete().await?;
        Ok(times.at(500))
    }
}

/// Waits until an executor answers; upstream's knows no more.
async fn healthy(pod: &ExecutorPod<'_>) -> Result<()> {
    use opensandbox_tests::wait::{self, Probe};
    wait::until("an executor", READY, async || {
        Ok(match pod.client().send("GET", "/health", b"").await {
            Ok(reply) if reply.status == 200 => Probe::Done(()),
            Ok(reply) => Probe::not_yet(reply.status),
            Err(error) => Probe::not_yet(format!("{error:#}")),
        })
    })
    .await
}

/// Tells what it runs on.
fn machine() -> Result<()> {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        anyhow::Ok(text.trim_end().to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let processors = std::thread::available_parallelism()?;
    let load = read("/proc/loadavg")?;
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    print("| machine | |\n|---|---|");
    let model = model.unwrap_or("unknown").trim();
    print(&format!("| processors | {processors}, {model} |"));
    print(&format!(
        "| kernel | {} |",
        read("/proc/sys/kernel/osrelease")?
    ));
    print(&format!("| load average before | {} |", load.join(", ")));
    let times = measure::of_the_machine()?;
    print(&format!(
        "| `true` started and waited for here, without an executor | p50 {} ms, p90 {} ms, p99 {} ms |",
        millis(times.at(500)),
        millis(times.at(900)),
        millis(times.at(990))
    ));
    Ok(())
}

/// A field of `/proc/PID/status` in kB, as bytes.
fn memory(process: i32, field: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = status
        .lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .strip_prefix(':')?
                .strip_suffix("kB")
        })
        .with_context(|| format!("no {field} in {path}"))?;
    Ok(value.trim().parse::<u64>()? * 1024)
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
