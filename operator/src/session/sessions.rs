//! Which conversations there are.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opensandbox_api::labels::TASK_EXECUTOR_PORT;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::conversation::Conversation;
use super::credentials::Credentials;
use super::doubts::Doubts;
use super::lanes::Lanes;
use super::memory::Memory;
use super::{Order, Report, State};

/// Whose executors these are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Ours: signed orders, `uid`, a watch, output.
    #[default]
    Signed,
    /// Upstream's: no signature, tasks told apart by name, asked every second.
    Upstream,
}

/// How executors are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whose they are.
    pub protocol: Protocol,
    /// Port of all of them. Default 5758.
    pub port: u16,
    /// For a connection. Default 2 s.
    pub connect: Duration,
    /// For an order and its whole answer, and for the beginning of a watch. Default 5 s.
    pub order: Duration,
    /// Time after which a watch without events brings a bookmark; after three of them without a line it
    /// is opened anew. Default 15 s, which is what executors do.
    pub bookmark: Duration,
    /// How long the end of a failed task waits for its output. Default 50 ms.
    pub tail: Duration,
    /// First and longest delay after a failure. Default 100 ms and 5 s.
    pub backoff: (Duration, Duration),
    /// Connections in all. If more executors are to be watched, they take turns. Default 2048.
    pub connections: usize,
    /// A turn. Default 2 s.
    pub turn: Duration,
    /// How often upstream's executors are asked. Default 1 s.
    pub poll: Duration,
    /// Bytes for long lines and answers of all executors together. Default 64 MiB.
    pub memory: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protocol: Protocol::Signed,
            port: TASK_EXECUTOR_PORT,
            connect: Duration::from_secs(2),
            order: Duration::from_secs(5),
            bookmark: Duration::from_secs(15),
            tail: Duration::from_millis(50),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            connections: 2048,
            turn: Duration::from_secs(2),
            poll: Duration::from_secs(1),
            memory: 64 * 1024 * 1024,
        }
    }
}

/// What all conversations have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) credentials: Credentials,
    pub(super) lanes: Lanes,
    pub(super) memory: Memory,
    pub(super) doubts: Doubts,
    pub(super) reports: UnboundedSender<Delivery>,
}

/// A report on its way.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// UID of the BatchSandbox whose orders it answers.
    pub sandbox_uid: String,
    report: Report,
    order: u64,
    current: Arc<AtomicU64>,
}

impl Delivery {
    /// The report, if what it answers is still what is wanted. Ask when it is handed on, and not before: a
    /// report that waits while [`Sessions::set`] changes the order says nothing about the new one. There
    /// will be another for that.
    pub fn open(self) -> Option<Report> {
        (self.current.load(Ordering::Acquire) == self.order).then_some(self.report)
    }
}

/// A number for each order of a pod, by which old reports are told from new ones.
#[derive(Clone, Debug)]
pub(super) struct Mailbox {
    sandbox_uid: String,
    pod_uid: String,
    current: Arc<AtomicU64>,
    reports: UnboundedSender<Delivery>,
}

impl Mailbox {
    /// Sends what the executor says to order number `order`.
    pub(super) fn send(&self, state: State, order: u64) {
        let delivery = Delivery {
            sandbox_uid: self.sandbox_uid.clone(),
            report: Report {
                pod_uid: self.pod_uid.clone(),
                state,
            },
            order,
            current: Arc::clone(&self.current),
        };
        // Nobody listens when the program ends.
        let _ = self.reports.send(delivery);
    }
}

/// The conversations with executors. Dropping it ends them all.
pub struct Sessions {
    shared: Arc<Shared>,
    /// By UID of the BatchSandbox, then of the pod.
    running: Mutex<HashMap<String, HashMap<String, Running>>>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

/// An order and its number.
pub(super) type Numbered = (u64, Order);

struct Running {
    orders: watch::Sender<Numbered>,
    current: Arc<AtomicU64>,
    conversation: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // What it may still have sent says nothing any more.
        self.current.store(u64::MAX, Ordering::Release);
        self.conversation.abort();
    }
}

impl Sessions {
    /// No conversation yet. Must be called, like [`Self::set`], within a Tokio runtime.
    pub fn new(
        settings: Settings,
        credentials: Credentials,
        reports: UnboundedSender<Delivery>,
    ) -> Self {
        let shared = Shared {
            lanes: Lanes::new(settings.connections),
            memory: Memory::new(settings.memory),
            doubts: Doubts::default(),
            settings,
            credentials,
            reports,
        };
        Self {
            shared: Arc::new(shared),
            running: Mutex::default(),
        }
    }

    /// What is wanted for a BatchSandbox from now on: the whole list, one order for each pod. A pod that is
    /// not named is not spoken to any more, whatever runs in it. Every change of an order is answered by
    /// at least one report, and by none that was made before it.
    pub fn set(&self, sandbox_uid: &str, orders: Vec<Order>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = running.remove(sandbox_uid).unwrap_or_default();
        let mut now = HashMap::with_capacity(orders.len());
        for order in orders {
            let pod_uid = order.pod_uid.clone();
            let before = before.remove(&pod_uid).or_else(|| now.remove(&pod_uid));
            let conversation = match before {
                Some(conversation) if !conversation.conversation.is_finished() => {
                    conversation.change(order);
                    conversation
                }
                _ => self.start(sandbox_uid, order),
            };
            now.insert(pod_uid, conversation);
        }
        if !now.is_empty() {
            running.insert(sandbox_uid.to_owned(), now);
        }
    }

    /// How many conversations there are.
    pub fn len(&self) -> usize {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().map(HashMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn start(&self, sandbox_uid: &str, order: Order) -> Running {
        let current = Arc::new(AtomicU64::new(0));
        let mailbox = Mailbox {
            sandbox_uid: sandbox_uid.to_owned(),
            pod_uid: order.pod_uid.clone(),
            current: Arc::clone(&current),
            reports: self.shared.reports.clone(),
        };
        let mut seed = DefaultHasher::new();
        order.pod_uid.hash(&mut seed);
        let shared = Arc::clone(&self.shared);
        let conversation = Conversation::new(shared, mailbox, &order.pod_uid, seed.finish());
        let (orders, receiver) = watch::channel((0, order));
        Running {
            orders,
            current,
            conversation: tokio::spawn(conversation.run(receiver)),
        }
    }
}

impl Running {
    fn change(&self, order: Order) {
        self.orders.send_if_modified(|(number, present)| {
            if *present == order {
                return false;
            }
            if present.work != order.work {
                *number += 1;
                self.current.store(*number, Ordering::Release);
            }
            *present = order;
            true
        });
    }
}
