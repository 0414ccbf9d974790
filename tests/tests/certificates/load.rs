//! A steady load of requests to the API server that make it call the webhook, and the count of those
//! that failed. Nothing is tried again: one refused connection, one certificate that is not trusted,
//! and the test fails.
//!
//! Nearly all requests are dry runs, so that hours of load leave a small store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use opensandbox_api::labels;
use opensandbox_tests::LocalCluster;
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::site::BOUND;

/// Each has its own connections.
const CLIENTS: u64 = 4;
/// Between two requests of one client: 100 per second in all.
const PERIOD: Duration = Duration::from_millis(40);
/// Requests of one client in flight. Enough for a slow machine to keep up, and a bound when it does not.
const IN_FLIGHT: usize = 16;
/// Every so many requests one is for good.
const STORED: u64 = 100;
/// Failures are told up to this many; all are counted.
const TOLD: usize = 10;

/// A running load.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    server: ServerCounts,
}

#[derive(Debug)]
struct Shared {
    pools: String,
    done: AtomicU64,
    failed: AtomicU64,
    told: Mutex<Vec<String>>,
    begin: Instant,
}

/// What the API server itself counted about its webhooks.
#[derive(Clone, Copy, Debug)]
struct ServerCounts {
    called: u64,
    failed: u64,
}

/// A client that tries nothing twice.
pub(crate) async fn impatient(cluster: &LocalCluster) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "sandbox.opensandbox.io/v1alpha1",
        "kind": "Pool",
        "metadata": { "name": name },
        "spec": {
            "template": { "spec": { "containers": [{
                "name": "sandbox",
                "image": "ubuntu:22.04",
                "command": ["sleep", "infinity"],
                "resources": { "limits": { "cpu": "500m", "memory": "256Mi" } },
            }] } },
            "capacitySpec": { "bufferMin": 1, "bufferMax": 3, "poolMin": 2, "poolMax": 10 },
        },
    })
}

/// Sends one request; an answer that was not injected is a failure too.
async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<()> {
    let answer: Value = client.request(request).await?;
    let containers = answer
        .pointer("/spec/template/spec/containers")
        .and_then(Value::as_array);
    let injected =
        containers.is_some_and(|all| all.iter().any(|one| one["name"] == labels::TASK_EXECUTOR));
    ensure!(injected, "not injected: {answer}");
    Ok(())
}

fn create(pools: &str, query: &str, object: &Value) -> Result<Request<Vec<u8>>> {
    let request =
        Request::post(format!("{pools}{query}")).header("content-type", "application/json");
    Ok(request.body(serde_json::to_vec(object)?)?)
}

/// Number `number` of the load: both webhooks for creations and for updates of a template.
fn request(pools: &str, number: u64) -> Result<Request<Vec<u8>>> {
    let mut object = pool("load");
    if number.is_multiple_of(STORED) {
        object["metadata"]["name"] = json!(format!("stored-{number}"));
        return create(pools, "", &object);
    }
    match number % 3 {
        0 => create(pools, "?dryRun=All", &object),
        1 => {
            object["metadata"]["labels"] = json!({ (labels::INJECTION): "enabled" });
            create(pools, "?dryRun=All", &object)
        }
        _ => {
            let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { "n": number.to_string() } } } } });
            let request = Request::patch(format!("{pools}/kept?dryRun=All"));
            let request = request.header("content-type", "application/merge-patch+json");
            Ok(request.body(serde_json::to_vec(&patch)?)?)
        }
    }
}

/// Waits until a Pool can be created, which is when the API server has seen a bundle and the webhook
/// is there. Tells how many attempts failed before and how long that took.
pub(crate) async fn served(cluster: &LocalCluster, namespace: &str) -> Result<(u64, Duration)> {
    let client = impatient(cluster).await?;
    let pools = pools(namespace);
    let begin = Instant::now();
    let mut failed = 0;
    wait::until("a Pool to be admitted", BOUND, async || {
        Ok(
            match send(&client, create(&pools, "?dryRun=All", &pool("probe"))?).await {
                Ok(()) => Probe::Done(()),
                Err(error) => {
                    failed += 1;
                    Probe::not_yet(format!("{error:#}"))
                }
            },
        )
    })
    .await?;
    Ok((failed, begin.elapsed()))
}

fn pools(namespace: &str) -> String {
    format!(
        "/apis/{}/{}/namespaces/{namespace}/pools",
        labels::GROUP,
        labels::VERSION
    )
}

impl Load {
    /// Starts when the first Pool is admitted.
    pub(crate) async fn start(cluster: &LocalCluster, namespace: &str) -> Result<Self> {
        served(cluster, namespace).await?;
        let pools = pools(namespace);
        let server = ServerCounts::read(cluster).await?;
        let client = impatient(cluster).await?;
        match send(&client, create(&pools, "", &pool("kept"))?).await {
            // A load of the same test before this one made it.
            Err(error) if format!("{error:#}").contains("already exists") => {}
            created => created.context("the first Pool of the load")?,
        }
        let shared = Arc::new(Shared {
            pools,
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            told: Mutex::default(),
            begin: Instant::now(),
        });
        let (stop, stopped) = watch::channel(false);
        // Stored names of one load must not meet those of another.
        let first = u64::from(std::process::id()) << 32 | server.called << 12;
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = impatient(cluster).await?;
            clients.spawn(keep_asking(
                client,
                first + number,
                Arc::clone(&shared),
                stopped.clone(),
            ));
        }
        Ok(Self {
            shared,
            stop,
            clients,
            server,
        })
    }

    /// Waits until `count` further requests were answered: the state that was just reached has been
    /// under load.
    pub(crate) async fn more(&self, count: u64) -> Result<()> {
        let goal = self.shared.done.load(Ordering::Relaxed) + count;
        wait::until("the load to go on", BOUND, async || {
            let done = self.shared.done.load(Ordering::Relaxed);
            Ok(if done >= goal {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("{done} of {goal} requests"))
            })
        })
        .await
    }

    /// Ends it, tells the numbers, and fails if a single call did.
    #[expect(
        clippy::print_stdout,
        reason = "the numbers are what a soak is run for"
    )]
    pub(crate) async fn end(mut self, what: &str, cluster: &LocalCluster) -> Result<()> {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client of the load")?;
        }
        let seconds = self.shared.begin.elapsed().as_secs_f64();
        let server = ServerCounts::read(cluster).await?;
        let called = server.called - self.server.called;
        let done = self.shared.done.load(Ordering::Relaxed);
        let failed = self.shared.failed.load(Ordering::Relaxed);
        println!(
            "{what}: {done} requests, {called} calls of the webhook, {failed} failures in {seconds:.1} s"
        );
        let told = self
            .shared
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("\n");
        ensure!(
            failed == 0,
            "{what}: {failed} of {done} requests failed:\n{told}"
        );
        let unnoticed = server.failed - self.server.failed;
        ensure!(
            unnoticed == 0,
            "{what}: the API server counts {unnoticed} failed calls"
        );
        ensure!(called >= done, "{what}: {called} calls for {done} requests");
        Ok(())
    }
}

/// Sends at a steady rate, whatever the answers, until told to stop; then waits for the last ones.
async fn keep_asking(
    client: Client,
    first: u64,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut requests = JoinSet::new();
    let mut number = first;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            _ = ticks.tick() => {}
        }
        while requests.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let (client, shared) = (client.clone(), Arc::clone(&shared));
        requests.spawn(async move {
            let result = match request(&shared.pools, number) {
                Ok(request) => send(&client, request).await,
                Err(error) => Err(error),
            };
            shared.count(number, result);
            drop(place);
        });
        number += CLIENTS;
    }
    while requests.join_next().await.is_some() {}
}

impl Shared {
    fn count(&self, number: u64, result: Result<()>) {
        if let Err(error) = result {
            self.failed.fetch_add(1, Ordering::Relaxed);
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() < TOLD {
                let seconds = self.begin.elapsed().as_secs_f64();
                told.push(format!("{seconds:.3} s, request {number}: {error:#}"));
            }
        }
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl ServerCounts {
    async fn read(cluster: &LocalCluster) -> Result<Self> {
        let text = cluster.kubectl(&["get", "--raw", "/metrics"]).await?;
        let mut counts = Self {
            called: 0,
            failed: 0,
        };
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let count = || value.parse::<u64>().with_context(|| line.to_owned());
            if series.starts_with("apiserver_admission_webhook_request_total{") {
                counts.called += count()?;
            } else if series.starts_with("apiserver_admission_webhook_fail_open_count{")
                || series.starts_with("apiserver_admission_webhook_rejection_count{")
                    && series.contains("calling_webhook_error")
            {
                counts.failed += count()?;
            }
        }
        Ok(counts)
    }
}
