//! A desk at which reports of executors arrive, as the operator's shell has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::task::{Process, Task};
use opensandbox_api::token::{SigningKey, SystemRandom};
use opensandbox_operator::keys::KeyRing;
use opensandbox_operator::session::{
    Credentials, Delivery, Order, Protocol, Report, Seen, Sessions, Settings, State, Work,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout;

/// Whatever is waited for comes within this, or not at all.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
/// UID of the pod of [`Desk::order`].
pub(crate) const POD: &str = "0f3c2d41-5a6b-4c7d-8e9f-001122334455";
/// UID of the sandbox that orders.
pub(crate) const SANDBOX: &str = "sandbox";

/// A desk with one sandbox.
pub(crate) struct Desk {
    pub(crate) sessions: Sessions,
    deliveries: UnboundedReceiver<Delivery>,
    lease: Arc<AtomicU64>,
    keys: watch::Sender<Arc<KeyRing>>,
}

pub(crate) fn new_key() -> Arc<SigningKey> {
    let der = SigningKey::generate(&SystemRandom::new()).unwrap();
    Arc::new(SigningKey::from_pkcs8(&der).unwrap())
}

#[expect(
    clippy::disallowed_methods,
    reason = "executors look at the real clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

impl Desk {
    /// For executors at this port, which know these keys.
    pub(crate) fn with(settings: Settings, keys: Vec<Arc<SigningKey>>) -> Self {
        let lease = Arc::new(AtomicU64::new(3600));
        let left = Arc::clone(&lease);
        let left = move || match left.load(Ordering::SeqCst) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        };
        let keys = watch::Sender::new(Arc::new(KeyRing::new(keys)));
        let signed = settings.protocol == Protocol::Signed;
        let credentials = Credentials::new(signed.then(|| keys.subscribe()), left, now);
        let (sender, deliveries) = unbounded_channel();
        Self {
            sessions: Sessions::new(settings, credentials, sender),
            deliveries,
            lease,
            keys,
        }
    }

    /// The same with bounds that tests need not wait for.
    pub(crate) fn quick(port: u16, keys: Vec<Arc<SigningKey>>) -> Self {
        Self::with(quick(port), keys)
    }

    /// From now on the lease holds for so many seconds; 0: it is lost.
    pub(crate) fn lease(&self, seconds: u64) {
        self.lease.store(seconds, Ordering::SeqCst);
    }

    /// From now on there is only the oldest key.
    pub(crate) fn forget_newer_keys(&self) {
        self.keys.send_modify(|ring| {
            let oldest = ring.get(ring.len() - 1).map(Arc::clone);
            *ring = Arc::new(KeyRing::new(oldest.into_iter().collect()));
        });
    }

    /// What is wanted of the one pod.
    pub(crate) fn order(&self, work: Work) {
        self.sessions.set(SANDBOX, vec![order(POD, work)]);
    }

    /// The next report that is not out of date.
    pub(crate) async fn next(&mut self) -> Report {
        loop {
            let delivery = timeout(BOUND, self.deliveries.recv()).await;
            let delivery = delivery.expect("a report in time").unwrap();
            if let Some(report) = delivery.open() {
                return report;
            }
        }
    }

    /// Waits for a report of this kind, and takes from it what is asked for.
    pub(crate) async fn until<T>(&mut self, mut found: impl FnMut(&State) -> Option<T>) -> T {
        let all = async {
            loop {
                if let Some(found) = found(&self.next().await.state) {
                    return found;
                }
            }
        };
        timeout(BOUND, all).await.expect("such a report in time")
    }

    /// Waits until the pod has this task in such a state.
    pub(crate) async fn until_task(&mut self, uid: &str, fits: impl Fn(&Seen) -> bool) -> Seen {
        self.until(|state| match state {
            State::Tasks(tasks) => tasks
                .iter()
                .find(|seen| seen.task.uid.as_deref() == Some(uid) && fits(seen))
                .cloned(),
            _ => None,
        })
        .await
    }

    /// Waits until the pod is said to have no task.
    pub(crate) async fn until_empty(&mut self) {
        self.until(|state| (*state == State::Tasks(Vec::new())).then_some(()))
            .await;
    }

    /// Waits until the pod is said to be unreachable; the words.
    pub(crate) async fn until_unreachable(&mut self) -> String {
        self.until(|state| match state {
            State::Unreachable { message, .. } => Some(message.clone()),
            _ => None,
        })
        .await
    }

    /// Waits until the executor is said to refuse; its words.
    pub(crate) async fn until_refused(&mut self) -> String {
        self.until(|state| match state {
            State::Refused { message } => Some(message.clone()),
            _ => None,
        })
        .await
    }
}

/// Bounds that tests need not wait for.
pub(crate) fn quick(port: u16) -> Settings {
    Settings {
        port,
        order: Duration::from_millis(500),
        bookmark: Duration::from_millis(200),
        backoff: (Duration::from_millis(20), Duration::from_millis(200)),
        poll: Duration::from_millis(20),
        ..Settings::default()
    }
}

/// An order for a pod of this machine.
pub(crate) fn order(pod_uid: &str, work: Work) -> Order {
    Order {
        pod: "pod".to_owned(),
        pod_uid: pod_uid.to_owned(),
        ip: "127.0.0.1".to_owned(),
        work,
    }
}

/// A task that runs this command.
pub(crate) fn task(uid: &str, argv: &[&str]) -> Task {
    Task {
        name: "task-0".to_owned(),
        uid: Some(uid.to_owned()),
        process: Some(Process {
            command: argv.iter().map(|&argument| argument.to_owned()).collect(),
            ..Process::default()
        }),
        ..Task::default()
    }
}

/// An order to run it.
pub(crate) fn run(uid: &str, argv: &[&str]) -> Work {
    Work::Run(Box::new(task(uid, argv)))
}
