//! What is done with each contender, in order, and what is measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::controller::{Contender, Controller};
use super::observer::Observer;
use super::site::{Site, sandbox};
use super::times::{Times, millis};
use super::{Arguments, print};

/// Pods of the pool from which sandboxes are taken.
const IDLE: usize = 200;
/// At once, for the third scenario.
const AT_ONCE: usize = 16;
/// Sandboxes created per second of churn.
const CHURN_PER_SECOND: u64 = 20;
/// Churned sandboxes live so long.
const CHURN_LIFE: Duration = Duration::from_secs(2);

/// One measure.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// `None`: the state was not reached in time.
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, value: Option<f64>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
        }
    }

    pub(crate) fn shown(&self, value: f64) -> String {
        let text = if value >= 100.0 || value.fract() == 0.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.1}")
        };
        if self.unit.is_empty() {
            text
        } else {
            format!("{text} {}", self.unit)
        }
    }
}

/// All scenarios with one contender; `None` where there is no Kubernetes.
pub(crate) async fn all(contender: &Contender, arguments: &Arguments) -> Result<Option<Vec<Row>>> {
    let Some(site) = Site::start().await? else {
        return Ok(None);
    };
    print(&format!(
        "{}: {}",
        contender.name,
        contender.program.display()
    ));
    let controller = Controller::start(&site.cluster, contender).await?;
    let observer = Observer::start(&site).await?;
    site.pool("warm", IDLE).await?;
    let mut run = Run {
        site,
        observer,
        controller,
        rows: Vec::new(),
        number: 0,
    };
    run.batches(arguments.batches, 100).await?;
    run.singles(arguments.singles).await?;
    run.parallel(arguments.parallel).await?;
    run.churn(arguments.churn).await?;
    run.quiet(arguments.idle).await?;
    let memory = run.controller.memory()?;
    run.row("memory after that", Some(memory), "MiB");
    run.site.delete("Pool", "warm").await?;
    run.thousand().await?;
    if arguments.pods > 0 {
        run.many(arguments.pods).await?;
    }
    Ok(Some(run.rows))
}

struct Run {
    site: Site,
    observer: Observer,
    controller: Controller,
    rows: Vec<Row>,
    number: usize,
}

impl Run {
    fn row(&mut self, name: &str, value: Option<f64>, unit: &'static str) {
        let row = Row::new(name, value, unit);
        let shown = row
            .value
            .map_or_else(|| "not reached".to_owned(), |value| row.shown(value));
        print(&format!("  {name}: {shown}"));
        self.rows.push(row);
    }

    fn name(&mut self) -> String {
        self.number += 1;
        format!("s{}", self.number)
    }

    /// From the creation of one BatchSandbox to all of its replicas ready; deleted again.
    async fn one(&mut self, pool: &str, replicas: usize) -> Result<Option<Duration>> {
        let name = self.name();
        let begin = Instant::now();
        self.site
            .create("BatchSandbox", sandbox(&name, pool, replicas))
            .await?;
        let ready = self.observer.ready(&name).await;
        self.site.delete("BatchSandbox", &name).await?;
        self.observer.gone(&name).await;
        Ok(ready.map(|at| at - begin))
    }

    async fn batches(&mut self, count: usize, replicas: usize) -> Result<()> {
        let mut times = Vec::new();
        let mut written = 0.0;
        for _ in 0..count {
            let before = self.site.writes().await?;
            let processor = self.controller.processor_time()?;
            times.extend(self.one("warm", replicas).await?);
            let after = self.site.writes().await?;
            written = difference(&before, &after, "batchsandboxes");
            let used = self.controller.processor_time()?.saturating_sub(processor);
            print(&format!(
                "  (batch: {:.0} ms of processor time)",
                millis(used)
            ));
            self.site.warm("warm", IDLE).await?;
        }
        let complete = times.len() == count;
        let times = Times::of(times);
        let median = times.at(500).filter(|_| complete);
        self.row(
            &format!("batch of {replicas}, all ready, median"),
            median,
            "ms",
        );
        // Our own creation and deletion are two of them.
        self.row(
            "writes on the BatchSandbox, created to gone",
            Some(written - 2.0),
            "",
        );
        Ok(())
    }

    async fn singles(&mut self, count: usize) -> Result<()> {
        let mut times = Vec::new();
        let before = self.site.write_times().await?;
        for _ in 0..count {
            times.extend(self.one("warm", 1).await?);
            self.site.warm("warm", IDLE).await?;
        }
        self.print_writes(&before).await?;
        let times = Times::of(times);
        self.row("one by one, p50", times.at(500), "ms");
        self.row("one by one, p99", times.at(990), "ms");
        Ok(())
    }

    /// Prints what each kind of write took the API server on average since then.
    async fn print_writes(&self, before: &BTreeMap<String, (f64, f64)>) -> Result<()> {
        for (key, (seconds, count)) in self.site.write_times().await? {
            let (seconds_before, count_before) = before.get(&key).copied().unwrap_or_default();
            let count = count - count_before;
            if count > 0.0 {
                let mean = (seconds - seconds_before) / count * 1000.0;
                print(&format!("  ({key}: {count} times, {mean:.1} ms each)"));
            }
        }
        Ok(())
    }

    async fn parallel(&mut self, count: usize) -> Result<()> {
        let names: Vec<_> = (0..count).map(|_| self.name()).collect();
        let before = self.site.write_times().await?;
        let begin = Instant::now();
        let (site, observer) = (&self.site, &self.observer);
        let times: Vec<_> = stream::iter(&names)
            .map(|name| async move {
                let begin = Instant::now();
                site.create("BatchSandbox", sandbox(name, "warm", 1))
                    .await?;
                anyhow::Ok(observer.ready(name).await.map(|at| at - begin))
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let all = begin.elapsed();
        self.print_writes(&before).await?;
        let times = times.into_iter().collect::<Result<Vec<_>>>()?;
        let complete = times.iter().all(Option::is_some);
        let times = Times::of(times.into_iter().flatten().collect());
        for name in &names {
            self.site.delete("BatchSandbox", name).await?;
        }
        for name in &names {
            self.observer.gone(name).await;
        }
        self.site.warm("warm", IDLE).await?;
        let all = complete.then(|| millis(all));
        self.row(&format!("{count}, {AT_ONCE} at once, all of it"), all, "ms");
        self.row(
            &format!("{count}, {AT_ONCE} at once, p50"),
            times.at(500),
            "ms",
        );
        Ok(())
    }

    /// Sandboxes come and go at a steady rate.
    async fn churn(&mut self, seconds: u64) -> Result<()> {
        if seconds == 0 {
            return Ok(());
        }
        let names: Vec<_> = (0..seconds * CHURN_PER_SECOND)
            .map(|_| self.name())
            .collect();
        let processor = self.controller.processor_time()?;
        let mut ticks = interval(Duration::from_millis(1000 / CHURN_PER_SECOND));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut lives = stream::FuturesUnordered::new();
        let mut times = Vec::new();
        for name in &names {
            ticks.tick().await;
            let (site, observer) = (&self.site, &self.observer);
            lives.push(async move {
                let begin = Instant::now();
                site.create("BatchSandbox", sandbox(name, "warm", 1))
                    .await?;
                let ready = observer.ready(name).await.map(|at| at - begin);
                sleep(CHURN_LIFE).await;
                site.delete("BatchSandbox", name).await?;
                anyhow::Ok(ready)
            });
            // Those that run go on while the next one is waited for.
            while let Some(Some(done)) = lives.next().now_or_never() {
                times.extend(done?);
            }
        }
        while let Some(done) = lives.next().await {
            times.extend(done?);
        }
        drop(lives);
        let times = Times::of(times);
        let used = self.controller.processor_time()?.saturating_sub(processor);
        self.row(
            &format!("{CHURN_PER_SECOND} a second come and go, p50"),
            times.at(500),
            "ms",
        );
        self.row(
            &format!("{CHURN_PER_SECOND} a second come and go, p99"),
            times.at(990),
            "ms",
        );
        self.row("processor time of that", Some(millis(used)), "ms");
        self.site.warm("warm", IDLE).await
    }

    async fn quiet(&mut self, seconds: u64) -> Result<()> {
        // What the last scenario left to be written.
        sleep(Duration::from_secs(5)).await;
        let before = self.site.writes().await?;
        sleep(Duration::from_secs(seconds)).await;
        let after = self.site.writes().await?;
        let written: f64 = ["pools", "batchsandboxes", "pods"]
            .iter()
            .map(|resource| difference(&before, &after, resource))
            .sum();
        self.row(
            &format!("writes in {seconds} s with nothing to do"),
            Some(written),
            "",
        );
        Ok(())
    }

    async fn thousand(&mut self) -> Result<()> {
        self.site.pool("thousand", 1000).await?;
        let time = self.one("thousand", 1000).await?;
        self.row("batch of 1000, all ready", time.map(millis), "ms");
        self.site.delete("Pool", "thousand").await
    }

    /// Many idle pods: memory, and from a crash to the first sandbox.
    async fn many(&mut self, pods: usize) -> Result<()> {
        let begin = Instant::now();
        self.site.pool("many", pods).await?;
        self.row(
            &format!("{pods} pods made and ready"),
            Some(millis(begin.elapsed())),
            "ms",
        );
        let memory = self.controller.memory()?;
        self.row(
            &format!("memory with {pods} idle pods"),
            Some(memory),
            "MiB",
        );
        let begin = Instant::now();
        self.controller.crash(&self.site.cluster).await?;
        let name = self.name();
        self.site
            .create("BatchSandbox", sandbox(&name, "many", 1))
            .await?;
        let ready = self.observer.ready(&name).await.map(|at| at - begin);
        self.row(
            &format!("killed with {pods} pods, until the first sandbox"),
            ready.map(millis),
            "ms",
        );
        let memory = self.controller.memory()?;
        self.row("memory after that start", Some(memory), "MiB");
        self.site.delete("BatchSandbox", &name).await
    }
}

fn difference(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
    resource: &str,
) -> f64 {
    let prefix = format!("{resource}/");
    let count = |writes: &BTreeMap<String, u64>| -> u64 {
        writes
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .map(|(_, count)| *count)
            .sum()
    };
    f64::from(u32::try_from(count(after) - count(before)).unwrap_or(u32::MAX))
}
