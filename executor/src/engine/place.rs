//! Keeps an agent in a container: launch, converse, clean up, again.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opensandbox_api::task::{LossReason, StartFailure};
use tokio::sync::mpsc;

use super::ledger::Slot;
use super::link::{self, Closed, Pipes};
use super::{DEFAULT, Engine, Place, State};
use crate::agent::protocol::{Order, Report, StartFault, TaskKey, TaskReport, TaskState, VERSION};
use crate::clock::unix_millis;
use crate::launch::{self, Agent, LaunchError};
use crate::pod::target::ContainerRef;

/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So long tasks wait for a sandbox container to appear.
const NO_CONTAINER_PATIENCE: Duration = Duration::from_mins(1);
/// So many refusals in a row are final for the tasks that wait.
const REFUSALS: u32 = 3;
/// An agent that does not answer in that time is none.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Between a failed proof and the next.
const PROOF_PAUSE: Duration = Duration::from_secs(2);
/// When an agent is gone: how long its container has to be gone too, if that is why.
const CONTAINER_PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks at an agent that may have been stopped.
const CHECK_PAUSE: Duration = Duration::from_secs(2);
/// Tasks that an agent may report before it says that these are all: more than one keeps.
const MAX_REPORTED: usize = 4096;
/// Bytes of their notes: less than this program may use.
const MAX_NOTE_BYTES: usize = 64 * 1024 * 1024;
/// A conversation shorter than that was none, and the next attempt comes later.
const STEADY: Duration = Duration::from_secs(5);

impl Engine {
    /// Keeps an agent in the container of `slot`; returns when a container that a task named is gone.
    pub(super) async fn keep(&self, slot: Slot) {
        let mut pause = FIRST_PAUSE;
        let mut refusals = 0;
        let mut missing_since: Option<Instant> = None;
        let mut said = String::new();
        loop {
            let begun = Instant::now();
            match self.launch(slot).await {
                Ok(agent) => {
                    refusals = 0;
                    missing_since = None;
                    said.clear();
                    self.converse(slot, agent).await;
                    if begun.elapsed() > STEADY {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(error) => {
                    let missing = *missing_since.get_or_insert(begun);
                    refusals += 1;
                    let message = error.to_string();
                    // Once, however often it is tried.
                    if message != said {
                        tracing::warn!(error = %message, "tasks cannot be started");
                        said.clone_from(&message);
                    }
                    let failure = error.failure();
                    let is_final = match failure {
                        // IDs do not come back.
                        StartFailure::NoTarget if slot != DEFAULT => true,
                        StartFailure::NoTarget if error.is_transient() => {
                            missing.elapsed() > NO_CONTAINER_PATIENCE
                        }
                        _ if error.is_transient() => refusals >= REFUSALS,
                        _ => true,
                    };
                    self.without_agent(slot, failure, &message, is_final);
                    if slot != DEFAULT && failure == StartFailure::NoTarget {
                        self.lock().places.remove(&slot);
                        return;
                    }
                }
            }
            // A task that arrives meanwhile does not wait longer than it must.
            tokio::time::timeout(pause, self.shared.wanted.notified())
                .await
                .ok();
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn launch(&self, slot: Slot) -> Result<Agent, LaunchError> {
        let _one_at_a_time = self.shared.launching.lock().await;
        let wanted: Option<ContainerRef> = {
            let state = self.lock();
            state
                .places
                .get(&slot)
                .and_then(|place| place.wanted.clone())
        };
        let config = self.shared.config.clone();
        let launched = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let launched = launch::launch(&config, wanted.as_ref());
            let took = begun.elapsed();
            let details = serde_json::to_value(crate::doctor::report(&config));
            (launched, took, details.unwrap_or_default())
        });
        let (launched, took, details) = match launched.await {
            Ok(launched) => launched,
            Err(error) => (
                Err(LaunchError::failed(error.to_string())),
                Duration::ZERO,
                serde_json::Value::Null,
            ),
        };
        let mut state = self.lock();
        state.details = details;
        let agent = match launched {
            Ok(agent) => agent,
            Err(error) => {
                if let Some((mode, result)) = error.attempt() {
                    self.shared.metrics.injected(mode, Some(result), took);
                }
                return Err(error);
            }
        };
        let taken = state
            .places
            .values()
            .any(|place| place.agent == Some(agent.pid));
        if taken {
            return Err(LaunchError::failed(
                "the container is entered already, under its ID".to_owned(),
            ));
        }
        if !agent.found {
            self.shared.metrics.injected(agent.mode, None, took);
        }
        if let Some(place) = state.places.get_mut(&slot) {
            place.agent = Some(agent.pid);
        }
        Ok(agent)
    }

    fn without_agent(&self, slot: Slot, failure: StartFailure, message: &str, is_final: bool) {
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(&slot) {
            place.remark = Some(message.to_owned());
        }
        // Tasks that name their container do not depend on how this one is found.
        if slot == DEFAULT {
            for (key, named) in state.ledger.waiters(slot) {
                if let Some(wanted) = named.as_deref().and_then(|id| ContainerRef::parse(id).ok()) {
                    let other = self.place_of(&mut state, wanted);
                    state.ledger.reassign(key, other);
                }
            }
        }
        if is_final {
            state
                .ledger
                .unreachable(slot, failure, message, unix_millis());
        } else {
            state.ledger.waiting(slot, ("SandboxNotReady", message));
        }
        self.settle(&mut state);
    }

    /// Talks to an agent until it is gone, then clears up after it.
    async fn converse(&self, slot: Slot, agent: Agent) {
        let (orders, mut receiver) = mpsc::unbounded_channel();
        let kills = AtomicU64::new(agent.kills.count().unwrap_or(u64::MAX));
        let look = || kills.store(agent.kills.count().unwrap_or(u64::MAX), Ordering::Relaxed);
        let closed = match link::connect(agent.control.as_fd()) {
            Ok(stream) => {
                orders.send(Order::Hello { version: VERSION }).ok();
                let mut conversation = Conversation::new(self, slot, &agent, orders);
                let greeted = Arc::clone(&conversation.greeted);
                let talk = link::converse(&stream, &mut receiver, |report, pipes| {
                    let heard = conversation.hear(report, pipes);
                    // Not one that a task accounts for.
                    look();
                    heard
                });
                let silence = async {
                    if tokio::time::timeout(HELLO_PATIENCE, greeted.notified())
                        .await
                        .is_ok()
                    {
                        std::future::pending::<()>().await;
                    }
                };
                let watch = async {
                    loop {
                        tokio::time::sleep(CHECK_PAUSE).await;
                        look();
                        if launch::wake(&agent) {
                            tracing::warn!("the agent had been stopped by the sandbox; it goes on");
                        }
                    }
                };
                tokio::select! {
                    closed = talk => closed,
                    () = watch => Closed::ByExecutor,
                    () = silence => Closed::Protocol(format!(
                        "no answer in {} s", HELLO_PATIENCE.as_secs()
                    )),
                }
            }
            Err(error) => Closed::Io(error),
        };
        self.part(slot, agent, &closed, kills.into_inner()).await;
    }

    /// The conversation is over: finds out what that means for the tasks.
    /// `kills` is the count of a moment ago; the greatest number where it is not known.
    async fn part(&self, slot: Slot, agent: Agent, closed: &Closed, kills: u64) {
        // Read before the container, and with it its count, is gone.
        let oom_killed = agent.kills.count().is_some_and(|count| count > kills);
        {
            let mut state = self.lock();
            if let Some(place) = state.places.get_mut(&slot) {
                place.orders = None;
                place.proved = false;
                place.remark = Some(format!("the agent has to be replaced: {closed}"));
            }
            state.ledger.disconnected(slot);
            self.shared.metrics.set_ready(false);
        }
        // One that does not speak as it should is no agent, and must not go on unseen.
        launch::kill(&agent);
        let sessions = self.lock().ledger.sessions(slot);
        let cleared = tokio::task::spawn_blocking(move || {
            let restarted = launch::container_ended(&agent, CONTAINER_PATIENCE);
            (restarted, launch::clear(&agent, &sessions))
        });
        let (restarted, cleared) = match cleared.await {
            Ok(cleared) => cleared,
            Err(error) => (false, Err(std::io::Error::other(error))),
        };
        let why = if oom_killed {
            ": it ran out of memory"
        } else {
            ""
        };
        let (reason, mut message) = if restarted {
            (
                LossReason::SandboxRestarted,
                format!("the sandbox container ended{why}"),
            )
        } else {
            let message = "the agent, the parent of all tasks in the sandbox, was killed";
            (LossReason::AgentKilled, message.to_owned())
        };
        if let Err(error) = cleared {
            message = format!("{message}; {error}");
        }
        tracing::warn!(closed = %closed, reason = ?reason, "the agent is gone");
        self.shared.metrics.agent_restarted();
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(&slot) {
            place.agent = None;
            place.container_id = None;
        }
        state
            .ledger
            .lost(slot, reason, &message, oom_killed, unix_millis());
        self.settle(&mut state);
    }
}

/// What has been heard from one agent.
#[derive(Debug)]
struct Conversation<'a> {
    engine: &'a Engine,
    slot: Slot,
    agent: &'a Agent,
    orders: mpsc::UnboundedSender<Order>,
    greeted: Arc<tokio::sync::Notify>,
    /// Tasks that it knows, until it has said all.
    snapshot: Option<Vec<TaskKey>>,
    proofs: u64,
    /// When the last proof was asked for; none that is not asked for is taken.
    asked: Option<Instant>,
    /// Bytes of the notes of these.
    note_bytes: usize,
    /// That of the protocol, once it has said it.
    version: Option<u32>,
}

impl<'a> Conversation<'a> {
    fn new(
        engine: &'a Engine,
        slot: Slot,
        agent: &'a Agent,
        orders: mpsc::UnboundedSender<Order>,
    ) -> Self {
        Self {
            engine,
            slot,
            agent,
            orders,
            greeted: Arc::default(),
            snapshot: Some(Vec::new()),
            proofs: 0,
            asked: None,
            note_bytes: 0,
            version: None,
        }
    }

    /// Takes a report. What an agent would not say, or not twice, is an error: each of these costs a line
    /// in the log, an order or a timer, and a sandbox that forges its agent is to have no more of them
    /// than an agent would.
    fn hear(&mut self, report: Report, pipes: Option<Pipes>) -> Result<(), String> {
        let mut guard = self.engine.lock();
        let state = &mut *guard;
        match report {
            Report::Hello { version } => {
                if self.version.replace(version).is_some() {
                    return Err("a second greeting".to_owned());
                }
                if version != VERSION {
                    tracing::info!(version, "the agent speaks another version");
                }
            }
            Report::Task(report) => self.hear_of_task(state, &report, pipes)?,
            Report::SnapshotEnd => {
                self.greeted.notify_one();
                let known = self
                    .snapshot
                    .take()
                    .ok_or("a second end of the list of tasks")?;
                if let Some(place) = state.places.get_mut(&self.slot) {
                    let wanted = place.wanted.take();
                    *place = Place {
                        wanted,
                        orders: Some(self.orders.clone()),
                        agent: Some(self.agent.pid),
                        mode: Some(self.agent.mode),
                        container_id: self.agent.container_id.clone(),
                        environment: Arc::new(self.agent.environment.clone()),
                        proved: false,
                        remark: self.agent.remark.clone(),
                    };
                }
                tracing::info!(
                    mode = self.agent.mode.name(),
                    agent = self.agent.pid,
                    found = self.agent.found,
                    tasks = known.len(),
                    container = self.agent.container_id.as_deref(),
                    "tasks can be given to the agent"
                );
                self.engine.shared.metrics.set_mode(self.agent.mode);
                state.ledger.connected(self.slot, &known, unix_millis());
                self.prove();
            }
            Report::Probe { number, failure } => self.proved(state, number, failure)?,
        }
        self.engine.settle(state);
        Ok(())
    }

    fn hear_of_task(
        &mut self,
        state: &mut State,
        report: &TaskReport,
        pipes: Option<Pipes>,
    ) -> Result<(), String> {
        let key = report.key;
        if let Some(snapshot) = &mut self.snapshot {
            self.note_bytes += report.note.as_ref().map_or(0, Vec::len);
            if snapshot.len() > MAX_REPORTED || self.note_bytes > MAX_NOTE_BYTES {
                return Err("more tasks than an agent has".to_owned());
            }
            snapshot.push(key);
        } else if report.note.is_some() {
            return Err("a note after the list of tasks".to_owned());
        }
        let place = state.ledger.slot(key);
        if place.is_some_and(|slot| slot != self.slot) {
            return Err("a report of a task in another container".to_owned());
        }
        if let Some(pipes) = pipes {
            let noted = report.note.as_deref().and_then(super::note::Note::decode);
            let name = noted
                .map(|note| note.task.name)
                .or_else(|| state.ledger.name(key));
            let name = name.unwrap_or_default();
            self.engine.attach(state, key, &name, pipes)?;
        }
        let ends = !matches!(
            report.state,
            TaskState::Starting | TaskState::Running { .. }
        );
        if ends
            && let Some(attached) = state
                .outputs
                .get(&key)
                .and_then(|held| held.attached.as_ref())
        {
            // What it printed before it ended is there when its end is told.
            attached.drain_now();
        }
        state.ledger.report(self.slot, report, unix_millis());
        if place.is_none() && state.ledger.slot(key).is_none() {
            // Nobody asks for the output of what is not in the list.
            super::forget_output(state, key);
        } else if report.gone
            && let Some(held) = state.outputs.get_mut(&key)
        {
            held.close();
        }
        Ok(())
    }

    /// Has a process started in the sandbox that does nothing.
    fn prove(&mut self) {
        self.proofs += 1;
        self.asked = Some(Instant::now());
        self.orders
            .send(Order::Probe {
                number: self.proofs,
            })
            .ok();
    }

    fn proved(
        &mut self,
        state: &mut State,
        number: u64,
        failure: Option<StartFault>,
    ) -> Result<(), String> {
        let asked = self
            .asked
            .take()
            .is_some_and(|asked| asked <= Instant::now());
        if number != self.proofs || !asked {
            return Err("an answer to what was not asked".to_owned());
        }
        let Some(place) = state.places.get_mut(&self.slot) else {
            return Ok(());
        };
        if let Some(fault) = failure {
            let errno = nix::errno::Errno::from_raw(fault.errno);
            let remark = format!(
                "no process can be started in the sandbox container: {}",
                errno.desc()
            );
            tracing::warn!(error = %remark, "not ready");
            place.remark = Some(remark);
            place.proved = false;
            let orders = self.orders.downgrade();
            self.proofs = number + 1;
            self.asked = Some(Instant::now() + PROOF_PAUSE);
            tokio::spawn(async move {
                tokio::time::sleep(PROOF_PAUSE).await;
                if let Some(orders) = orders.upgrade() {
                    orders.send(Order::Probe { number: number + 1 }).ok();
                }
            });
        } else {
            place.proved = true;
            place.remark.clone_from(&self.agent.remark);
        }
        if self.slot == DEFAULT {
            self.engine.shared.metrics.set_ready(place.proved);
        }
        Ok(())
    }
}
