//! One executor: what it is asked, from the first order to the last.
//!
//! ```text
//! order -> settled? wait for another order
//!       -> something to order? POST /setTasks, the answer lists all tasks
//!       -> watch (ours) or ask every second (upstream's), until settled or another order
//! ```
//!
//! An order and the watch that follows it use one connection one after the other, so that the watch
//! begins with a state that is not older than the answer. A request to run is never repeated once its task
//! was seen. An empty list is believed only if nothing that was sent before can still begin
//! ([`super::doubts`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use opensandbox_api::task::{Process, Task};
use opensandbox_api::token::Request;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::backoff::Backoff;
use super::connection::{self, Connection};
use super::fault::Fault;
use super::lanes::Permit;
use super::list::{self, Tasks};
use super::sessions::{Mailbox, Numbered, Protocol, Shared};
use super::tail::{Tails, Whom};
use super::voice::Voice;
use super::{Order, Seen, Work};

/// Most bytes of an answer that lists tasks, each with what was ordered: what an executor takes at once.
pub(super) const ANSWER: usize = 4 * 1024 * 1024;
/// Between attempts at an executor that has just started and refuses tokens for some seconds.
const TOO_EARLY: Duration = Duration::from_millis(300);
/// Between looks whether this replica leads.
const FENCED: Duration = Duration::from_millis(100);
/// After a watch that has gone well for so long, a failure is the first one.
const WELL: Duration = Duration::from_secs(10);

/// A conversation with one executor.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) shared: Arc<Shared>,
    mailbox: Mailbox,
    pod_uid: String,
    started: Instant,
    backoff: Backoff,
    voice: Voice,
    /// Number of the present order.
    number: u64,
    /// Place of the key that the executor knows, as far as that was found out.
    pub(super) key: usize,
    /// Whether the order has done its part. To run: the task was seen. To clear: it was answered, and nothing
    /// that was sent before it can still begin.
    fulfilled: bool,
    /// The order was given, and the executor not watched since.
    given: bool,
    /// The tasks, as far as they are known since the order.
    pub(super) tasks: Option<Tasks>,
    pub(super) tails: Tails,
    /// That there is no task was not reported, because it proves nothing yet.
    pub(super) withheld: bool,
    /// When the tasks are to be reported, if they have changed.
    pub(super) due: Option<Instant>,
    /// Since when the tasks are known from a watch that is open.
    pub(super) synced: Option<Instant>,
}

/// Waits for another order. Never ends when there will be none: whoever drops the sender ends the task.
pub(super) async fn another(orders: &mut watch::Receiver<Numbered>) {
    if orders.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Conversation {
    pub(super) fn new(shared: Arc<Shared>, mailbox: Mailbox, pod_uid: &str, seed: u64) -> Self {
        Self {
            backoff: Backoff::new(shared.settings.backoff, seed),
            shared,
            mailbox,
            pod_uid: pod_uid.to_owned(),
            started: Instant::now(),
            voice: Voice::default(),
            number: 0,
            key: 0,
            fulfilled: false,
            given: false,
            tasks: None,
            tails: Tails::default(),
            withheld: false,
            due: None,
            synced: None,
        }
    }

    /// Goes on until it is aborted.
    pub(super) async fn run(mut self, mut orders: watch::Receiver<Numbered>) {
        loop {
            let (number, order) = orders.borrow_and_update().clone();
            if number != self.number {
                self.begin(number);
            }
            if self.is_settled(&order.work) {
                another(&mut orders).await;
                continue;
            }
            if self.key >= self.shared.credentials.keys() {
                // Keys have been forgotten meanwhile.
                self.key = 0;
            }
            // What waits for its turn waits with little memory.
            let ordering = self.is_open(&order.work) && !self.given;
            let permit = tokio::select! {
                permit = self.permit(ordering) => permit,
                () = another(&mut orders) => continue,
            };
            let began = self.shared.credentials.now();
            let result = match (permit, self.shared.settings.protocol) {
                (None, _) => Err(Fault::Fenced),
                (Some(permit), Protocol::Signed) => {
                    Box::pin(self.converse(&order, &mut orders, permit, ordering)).await
                }
                (Some(permit), Protocol::Upstream) => {
                    Box::pin(self.poll(&order, &mut orders, permit)).await
                }
            };
            self.tell_now();
            let synced = self.synced.take();
            let Err(fault) = result else {
                self.backoff.reset();
                continue;
            };
            self.given = false;
            self.tails.give_up();
            let (began, well) = match synced {
                Some(since) => (self.shared.credentials.now(), since.elapsed() >= WELL),
                None => (began, false),
            };
            if well {
                self.backoff.reset();
            }
            let pause = self.complain(fault, began);
            tokio::select! {
                () = sleep(pause) => {}
                () = another(&mut orders) => self.backoff.reset(),
            }
        }
    }

    /// Something else is wanted.
    fn begin(&mut self, number: u64) {
        self.number = number;
        self.fulfilled = false;
        self.given = false;
        self.tasks = None;
        self.withheld = false;
        self.due = None;
        self.tails.renew();
        self.voice.forget();
        self.backoff.reset();
    }

    /// Whether nothing will happen any more that anybody wants to know.
    pub(super) fn is_settled(&self, work: &Work) -> bool {
        let Some(tasks) = &self.tasks else {
            return false;
        };
        match work {
            Work::Look => false,
            Work::Run(_) => {
                self.fulfilled
                    && !tasks.is_empty()
                    && self.due.is_none()
                    && self.tails.coming.is_empty()
                    && tasks.values().all(|task| task.state().is_terminal())
            }
            Work::Clear => self.fulfilled && tasks.is_empty(),
        }
    }

    /// Whether the order has yet to be given, or given again.
    pub(super) fn is_open(&self, work: &Work) -> bool {
        match work {
            Work::Look => false,
            Work::Run(_) => !self.fulfilled,
            Work::Clear => true,
        }
    }

    /// Leave for what comes next: an order or a question, or else a watch.
    async fn permit(&mut self, ordering: bool) -> Option<Permit> {
        let lanes = &self.shared.lanes;
        if ordering || self.shared.settings.protocol == Protocol::Upstream {
            lanes.attempt(self.backoff.has_failed()).await
        } else {
            lanes.watch().await
        }
    }

    /// Orders, if there is something to be ordered, and watches, if there is a place for that.
    async fn converse(
        &mut self,
        order: &Order,
        orders: &mut watch::Receiver<Numbered>,
        mut permit: Permit,
        ordering: bool,
    ) -> Result<(), Fault> {
        let mut connection = tokio::select! {
            opened = self.open(order) => opened?,
            () = another(orders) => return Ok(()),
        };
        if ordering {
            self.give(order, &mut connection).await?;
            self.given = true;
            if orders.has_changed().unwrap_or(false) || self.is_settled(&order.work) {
                return Ok(());
            }
            permit = match self.shared.lanes.try_watch() {
                Some(place) => place,
                None => return Ok(()),
            };
        }
        let result = self.watch(order, orders, connection, permit).await;
        self.given = false;
        result
    }

    /// A connection to the executor.
    pub(super) async fn open(&mut self, order: &Order) -> Result<Connection, Fault> {
        let settings = &self.shared.settings;
        Connection::open(&order.ip, settings.port, settings.connect).await
    }

    /// Gives the order and takes the tasks that the answer lists. Not interrupted by another order: what
    /// became of this one is worth the wait, which is bounded.
    pub(super) async fn give(
        &mut self,
        order: &Order,
        connection: &mut Connection,
    ) -> Result<(), Fault> {
        let upstream = self.shared.settings.protocol == Protocol::Upstream;
        let (body, runs) = match &order.work {
            Work::Run(task) => (body_of(task, upstream)?, true),
            Work::Look | Work::Clear => (Bytes::from_static(b"[]"), false),
        };
        let target = "/setTasks";
        let request = Request {
            pod_uid: &self.pod_uid,
            method: "POST",
            target,
        };
        let leave = self.shared.credentials.leave(self.key, &request, &body)?;
        let doubt = self.shared.doubts.until(&self.pod_uid);
        if runs {
            self.shared.doubts.raise(&self.pod_uid, leave.void);
        }
        let limit = self.shared.settings.order;
        let answer = async {
            let response = connection.ask("POST", target, body, &leave).await?;
            if runs {
                self.shared.doubts.settle(&self.pod_uid, doubt);
            }
            connection::read(response, ANSWER, &self.shared.memory).await
        };
        let answer = within(limit, answer).await?;
        let tasks = list::read(&answer)?;
        if matches!(order.work, Work::Clear) {
            self.fulfilled = doubt.is_none();
        }
        self.hear(tasks, order);
        Ok(())
    }

    /// Takes what the executor says about all its tasks.
    pub(super) fn hear(&mut self, tasks: Tasks, order: &Order) {
        if let Work::Run(task) = &order.work {
            let upstream = self.shared.settings.protocol == Protocol::Upstream;
            self.fulfilled |= if upstream || task.uid.is_none() {
                tasks.keys().any(|(name, _)| *name == task.name)
            } else {
                tasks.contains_key(&(task.name.clone(), task.uid.clone()))
            };
        }
        let has_logs = self.shared.settings.protocol == Protocol::Signed;
        let waits = has_logs && !matches!(order.work, Work::Clear) && {
            let whom = Whom {
                ip: order.ip.clone(),
                pod_uid: self.pod_uid.clone(),
                key: self.key,
            };
            self.tails.want(&tasks, &self.shared, &whom)
        };
        self.withheld = tasks.is_empty() && self.doubts_empty(&order.work).is_some();
        if self.withheld {
            self.due = None;
        } else if waits {
            let patience = self.shared.settings.tail;
            self.due.get_or_insert_with(|| Instant::now() + patience);
        } else {
            self.due = Some(Instant::now());
        }
        self.tasks = Some(tasks);
        if !waits {
            self.tell_now();
        }
    }

    /// Until when it is not believed that no task is there; `None` if it is.
    pub(super) fn doubts_empty(&self, work: &Work) -> Option<Instant> {
        let until = self.shared.doubts.until(&self.pod_uid);
        match work {
            // What may still begin is what was ordered.
            Work::Run(_) => None,
            // The order has to be given once more when there is no doubt any more.
            Work::Clear if !self.fulfilled => Some(until.unwrap_or_else(Instant::now)),
            Work::Clear | Work::Look => until,
        }
    }

    /// Reports the tasks, if they have changed and that was put off.
    pub(super) fn tell_now(&mut self) {
        if self.due.take().is_none() {
            return;
        }
        let Some(tasks) = &self.tasks else {
            return;
        };
        let seen = tasks.iter().map(|(id, task)| Seen {
            task: Task::clone(task),
            stderr_tail: self.tails.of(id),
        });
        if let Some(state) = self.voice.tasks(seen.collect()) {
            self.mailbox.send(state, self.number);
        }
    }

    /// Says what went wrong with an attempt that began then, if that is news; how long to wait.
    fn complain(&mut self, fault: Fault, began: Timestamp) -> Duration {
        let now = self.started.elapsed();
        let ended = self.shared.credentials.now();
        let (state, pause) = match fault {
            Fault::Fenced => return FENCED,
            Fault::OtherKey(_) if self.key + 1 < self.shared.credentials.keys() => {
                self.key += 1;
                return Duration::ZERO;
            }
            Fault::OtherKey(words) => {
                self.key = 0;
                (self.voice.refused(words, now), self.backoff.next())
            }
            Fault::Refused(words) => (self.voice.refused(words, now), self.backoff.next()),
            Fault::TooEarly(words) => (self.voice.unreachable(words, began, ended, now), TOO_EARLY),
            Fault::Unreachable(words) => (
                self.voice.unreachable(words, began, ended, now),
                self.backoff.next(),
            ),
        };
        if let Some(state) = state {
            self.mailbox.send(state, self.number);
        }
        pause
    }
}

/// The answer, if it comes in time.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let late = |_| Fault::Unreachable(format!("no answer within {} s", limit.as_secs_f64()));
    timeout(limit, answer).await.map_err(late)?
}

/// The list of this one task, for upstream's executors without what only ours know.
fn body_of(task: &Task, upstream: bool) -> Result<Bytes, Fault> {
    let mut task = Task {
        name: task.name.clone(),
        uid: task.uid.clone(),
        container_id: task.container_id.clone(),
        process: task.process.clone(),
        ..Task::default()
    };
    if upstream {
        task.uid = None;
        task.container_id = None;
        task.process = task.process.map(|process| Process {
            grace_period_seconds: None,
            ..process
        });
    }
    let body = serde_json::to_vec(&[task])
        .map_err(|_| Fault::Refused("not sent: the task has no JSON form".to_owned()))?;
    if body.len() > ANSWER {
        let why = format!("not sent: the task is longer than {ANSWER} bytes");
        return Err(Fault::Refused(why));
    }
    Ok(Bytes::from(body))
}
