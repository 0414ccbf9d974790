//! One task per Pool and per BatchSandbox: takes messages, lets the state machine decide, has its outputs
//! done, and gives it the answers.
//!
//! Nothing waits here but for messages and time: writes run beside the actor and their answers come back
//! through its mailbox. A machine that panics (a bug) is taken down alone: its actor goes on taking
//! messages, waits until nothing that the old machine began is open, and makes a new machine from what
//! it knows, with back-off.

mod pool;
mod sandbox;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::pool::{Known, PoolActor};
pub use self::sandbox::{Letter, SandboxActor, Sealed, Start};
use super::clock;
use super::events::Events;
use super::metrics::Metrics;
use super::router::Message;
use super::writer::Writer;
use crate::session::Order;
use crate::write::WriteError;

/// Messages taken at once.
const BATCH: usize = 128;
/// First and longest wait before a machine is made anew.
const MEND: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// What was not sent because this replica does not lead is answered after this, so that nobody tries
/// again and again while the process ends.
const FENCED: Duration = Duration::from_secs(1);

/// Whoever talks to executors.
pub trait Executors: Send + Sync {
    /// What is wanted for a BatchSandbox: the whole list, which replaces the one before.
    fn set(&self, sandbox_uid: &str, orders: Vec<Order>);
}

/// What all actors share.
pub struct Context {
    /// Writes.
    pub writer: Writer,
    /// Events.
    pub events: Events,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Executors.
    pub executors: Box<dyn Executors>,
    /// Whoever knows all actors.
    pub router: mpsc::UnboundedSender<Message>,
    /// Whether executors are upstream's.
    pub upstream_executors: bool,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    fn tell_router(&self, message: Message) {
        self.metrics.mailbox.inc();
        // Without a router this process is ending.
        let _ = self.router.send(message);
    }
}

/// What comes into an actor's mailbox.
#[derive(Debug)]
pub enum Mail<I> {
    /// From the router.
    Routed(I),
    /// The answer to something that this actor began.
    Answer(I),
    /// The actor is not needed any more.
    End,
}

/// The router's end of a mailbox.
#[derive(Debug)]
pub struct Address<I> {
    mailbox: mpsc::UnboundedSender<Mail<I>>,
    metrics: Arc<Metrics>,
    /// Messages sent, to be compared with those an actor has handled when it says that it is idle.
    sent: u64,
}

impl<I> Address<I> {
    /// Sends something; to an actor that has ended, nothing.
    pub fn send(&mut self, input: I) {
        self.sent += 1;
        self.metrics.mailbox.inc();
        if self.mailbox.send(Mail::Routed(input)).is_err() {
            self.metrics.mailbox.dec();
        }
    }

    /// Ends the actor, after what was sent before.
    pub fn end(self) {
        let _ = self.mailbox.send(Mail::End);
    }

    /// Messages sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

/// An actor's own end of its mailbox.
struct Mailbox<I> {
    mail: mpsc::UnboundedReceiver<Mail<I>>,
    own: mpsc::UnboundedSender<Mail<I>>,
    batch: Vec<Mail<I>>,
    handled: u64,
    underway: usize,
}

/// What an actor is to do next.
enum Next<I> {
    Mail(Vec<Mail<I>>),
    Wake,
}

impl<I: Send + 'static> Mailbox<I> {
    fn new(metrics: &Arc<Metrics>) -> (Address<I>, Self) {
        let (own, mail) = mpsc::unbounded_channel();
        let address = Address {
            mailbox: own.clone(),
            metrics: Arc::clone(metrics),
            sent: 0,
        };
        let mailbox = Self {
            mail,
            own,
            batch: Vec::new(),
            handled: 0,
            underway: 0,
        };
        (address, mailbox)
    }

    async fn next(&mut self, wake: Option<Instant>) -> Next<I> {
        let mut batch = std::mem::take(&mut self.batch);
        let timer = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // Never none: this mailbox holds a sender itself.
            _ = self.mail.recv_many(&mut batch, BATCH) => Next::Mail(batch),
            () = timer => {
                self.batch = batch;
                Next::Wake
            }
        }
    }

    /// Counts a message as handled; its input, or `None` at the end.
    fn open(&mut self, mail: Mail<I>, metrics: &Metrics) -> Option<I> {
        match mail {
            Mail::Routed(input) => {
                self.handled += 1;
                metrics.mailbox.dec();
                Some(input)
            }
            Mail::Answer(input) => {
                self.underway = self.underway.saturating_sub(1);
                Some(input)
            }
            Mail::End => None,
        }
    }

    /// Keeps the buffer of a batch that was handled.
    fn reuse(&mut self, batch: Vec<Mail<I>>) {
        if batch.is_empty() {
            self.batch = batch;
        }
    }

    /// Has something done beside the actor; the answer comes as mail.
    fn begin<A: Into<I>>(&mut self, work: impl Future<Output = A> + Send + 'static) {
        self.underway += 1;
        let own = self.own.clone();
        tokio::spawn(async move {
            // The actor may have ended meanwhile; then nobody waits for this.
            let _ = own.send(Mail::Answer(work.await.into()));
        });
    }
}

/// Takes the answer of a write; one that was not sent, later.
async fn answered<T>(write: impl Future<Output = Result<T, WriteError>>) -> Result<T, WriteError> {
    let result = write.await;
    if matches!(result, Err(WriteError::Fenced)) {
        tokio::time::sleep(FENCED).await;
    }
    result
}

/// When something is to happen, on the clock of timers.
fn instant(then: Timestamp, now: Timestamp) -> Instant {
    Instant::now() + clock::until(now, then)
}

/// Lets a machine decide; `None` if it panicked, which the panic hook has logged with its place.
fn guarded<T>(kind: &'static str, metrics: &Metrics, decide: impl FnOnce() -> T) -> Option<T> {
    let decided = catch_unwind(AssertUnwindSafe(decide)).ok();
    if decided.is_none() {
        metrics.panicked(kind);
        metrics.failed("panic");
    }
    decided
}

/// When a broken machine is to be made anew.
#[derive(Debug, Default)]
struct Mending {
    failures: u32,
    at: Option<Instant>,
}

impl Mending {
    fn broken(&mut self) -> Duration {
        let wait = MEND
            .0
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(MEND.1);
        self.failures = self.failures.saturating_add(1);
        self.at = Some(Instant::now() + wait);
        wait
    }

    fn is_due(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }
}

#[cfg(test)]
mod tests;
