//! What is measured. Every task is `true`, and every end is checked.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hyper::body::Bytes;
use opensandbox_api::task::State;
use opensandbox_tests::executor::{Client, ExecutorPod, task};
use opensandbox_tests::pods::{SANDBOX, processes_of};

use crate::connection::{Connection, Events};

/// Tasks that are not counted.
const WARM_UP: usize = 50;
/// Processes that are started without an executor.
const BASELINE: usize = 200;
/// What an executor runs at once by default.
pub(crate) const PARALLEL: usize = 64;
/// How often so many are started at once.
const ROUNDS: usize = 10;
/// How often an agent is brought in anew.
const INJECTIONS: usize = 15;
/// Between two looks whether it is there: who looks more often takes the processors away from it.
const GLANCE: Duration = Duration::from_millis(20);
/// Between two looks of a client without a watch.
const LOOK: Duration = Duration::from_millis(1);
const BOUND: Duration = Duration::from_secs(30);

/// Times, sorted.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// What so many of a thousand do not exceed.
    pub(crate) fn at(&self, per_mille: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0
            .get(last * per_mille / 1000)
            .copied()
            .unwrap_or_default()
    }
}

/// What the machine itself takes for a process, in the state that it is in: no executor can be faster.
pub(crate) fn of_the_machine() -> Result<Times> {
    let mut times = Vec::new();
    for _ in 0..BASELINE {
        let start = Instant::now();
        let status = std::process::Command::new("true").status()?;
        times.push(start.elapsed());
        anyhow::ensure!(status.success(), "true ended with {status}");
    }
    Ok(Times::of(times))
}

/// One task after the other.
pub(crate) struct InARow {
    /// From the order to the event that tells its end.
    pub(crate) order_to_end: Times,
    /// For all of them, each deleted and gone before the next.
    pub(crate) whole: Duration,
    /// Of the processes alone, by the agent's clock: from start to exit.
    pub(crate) process: Durations,
}

/// Runs so many tasks one after the other.
pub(crate) async fn in_a_row(client: &Client, count: usize) -> Result<InARow> {
    let mut connection = Connection::open(client.address()).await?;
    let mut events = Events::follow(client).await?;
    let mut times = Vec::with_capacity(count);
    let mut whole = Instant::now();
    let mut before = Durations::told(client).await?;
    for index in 0..WARM_UP + count {
        if index == WARM_UP {
            whole = Instant::now();
            before = Durations::told(client).await?;
        }
        let name = format!("task-{index}");
        let body = Bytes::from(serde_json::to_vec(&task(&name, &["true"]))?);
        let start = Instant::now();
        // The end may be told before the order is answered.
        let (created, ended) = tokio::join!(connection.create(body), async {
            events.succeeded(1).await?;
            anyhow::Ok(start.elapsed())
        });
        created?;
        let time = ended?;
        if index >= WARM_UP {
            times.push(time);
        }
        connection.delete(&name).await?;
        events.gone(1).await?;
    }
    let whole = whole.elapsed();
    let after = Durations::told(client).await?;
    Ok(InARow {
        order_to_end: Times::of(times),
        whole,
        process: after.since(&before),
    })
}

/// What the executor's histogram of durations says, which are the agent's.
pub(crate) struct Durations {
    /// In seconds.
    sum: f64,
    count: f64,
    /// How many took no longer than these bounds of buckets: a millisecond, and four.
    within: [f64; 2],
}

impl Durations {
    async fn told(client: &Client) -> Result<Self> {
        let of = async |what: &str| {
            let name = format!("task_executor_task_duration_seconds_{what}");
            client.metric(&name).await
        };
        Ok(Self {
            sum: of("sum").await?,
            count: of("count").await?,
            within: [
                of(r#"bucket{le="0.001"}"#).await?,
                of(r#"bucket{le="0.004"}"#).await?,
            ],
        })
    }

    fn since(&self, before: &Self) -> Self {
        let [millisecond, four] = self.within;
        Self {
            sum: self.sum - before.sum,
            count: self.count - before.count,
            within: [millisecond - before.within[0], four - before.within[1]],
        }
    }

    pub(crate) fn mean(&self) -> Duration {
        Duration::from_secs_f64((self.sum / self.count.max(1.0)).max(0.0))
    }

    /// Of a hundred, how many took at most a millisecond, and at most four.
    pub(crate) fn percent_within(&self) -> [f64; 2] {
        self.within
            .map(|within| within * 100.0 / self.count.max(1.0))
    }
}

/// All at once in one order: the time until the last has ended.
pub(crate) async fn parallel(client: &Client) -> Result<Times> {
    let mut connection = Connection::open(client.address()).await?;
    let mut events = Events::follow(client).await?;
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let tasks: Vec<_> = (0..PARALLEL)
            .map(|index| task(&format!("parallel-{round}-{index}"), &["true"]))
            .collect();
        let body = Bytes::from(serde_json::to_vec(&tasks)?);
        let start = Instant::now();
        let (set, ended) = tokio::join!(connection.set(body), async {
            events.succeeded(PARALLEL).await?;
            anyhow::Ok(start.elapsed())
        });
        set?;
        let time = ended?;
        // The first round is not counted.
        if round > 0 {
            times.push(time);
        }
        connection.set(Bytes::from_static(b"[]")).await?;
        events.gone(PARALLEL).await?;
    }
    Ok(Times::of(times))
}

/// Kills the agent again and again: the time that bringing in each new one took.
pub(crate) async fn injections(pod: &ExecutorPod<'_>) -> Result<Times> {
    let client = pod.client();
    let name = "task_executor_injection_duration_seconds";
    let told = async || {
        let sum = client.metric(&format!("{name}_sum")).await?;
        anyhow::Ok((sum, client.metric(&format!("{name}_count")).await?))
    };
    let first = told().await?;
    let mut times = vec![Duration::from_secs_f64(first.0 / first.1.max(1.0))];
    for _ in 0..INJECTIONS {
        let before = told().await?;
        let agent = agent(&pod.container_id(SANDBOX).await?).context("no agent")?;
        let agent = nix::unistd::Pid::from_raw(agent);
        nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGKILL)?;
        let deadline = Instant::now() + BOUND;
        let after = loop {
            let now = told().await?;
            if now.1 > before.1 {
                break now;
            }
            anyhow::ensure!(Instant::now() < deadline, "no new agent");
            tokio::time::sleep(GLANCE).await;
        };
        times.push(Duration::from_secs_f64(
            (after.0 - before.0) / (after.1 - before.1),
        ));
        client.wait_ready(BOUND).await?;
    }
    Ok(Times::of(times))
}

/// The agent in this container: its program is a file in memory.
pub(crate) fn agent(container: &str) -> Option<i32> {
    processes_of(container).into_iter().find(|process| {
        let program = std::fs::read_link(format!("/proc/{process}/exe"));
        program.is_ok_and(|program| program.to_string_lossy().starts_with("/memfd:"))
    })
}

/// As upstream's client does it, which knows no watch: from the order to the list that tells the end.
/// Each task is deleted, and gone before the next.
pub(crate) async fn looked_at(client: &Client, count: usize) -> Result<Times> {
    let mut connection = Connection::open(client.address()).await?;
    let mut times = Vec::with_capacity(count);
    for index in 0..count {
        let name = format!("looked-{index}");
        let body = Bytes::from(serde_json::to_vec(&task(&name, &["true"]))?);
        let start = Instant::now();
        connection.create(body).await?;
        look(&mut connection, |states| states == [State::Succeeded]).await?;
        times.push(start.elapsed());
        connection.set(Bytes::from_static(b"[]")).await?;
        look(&mut connection, <[State]>::is_empty).await?;
    }
    Ok(Times::of(times))
}

async fn look(connection: &mut Connection, done: impl Fn(&[State]) -> bool) -> Result<()> {
    let deadline = Instant::now() + BOUND;
    loop {
        let tasks = connection.list().await?;
        let states: Vec<_> = tasks
            .iter()
            .map(opensandbox_api::task::Task::state)
            .collect();
        if done(&states) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "still {states:?}");
        tokio::time::sleep(LOOK).await;
    }
}
