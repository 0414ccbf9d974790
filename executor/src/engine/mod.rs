//! The list of tasks and what becomes of them.
//!
//! [`ledger`] decides, and knows neither time nor agents; here its effects are carried out and the API is
//! answered from it; `place` keeps an agent in each container that tasks run in, through `link`.

mod api;
pub mod journal;
pub mod ledger;
pub mod link;
pub mod note;
mod place;
pub mod start;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opensandbox_api::task::{End, Outcome, StartFailure, Task};
use tokio::sync::{Notify, mpsc, watch};

use self::ledger::{Effect, Ledger, Slot};
use self::link::Pipes;
use crate::agent::protocol::{Order, StopCause, TaskKey};
use crate::clock::unix_millis;
use crate::config::Config;
use crate::launch::Mode;
use crate::metrics::Metrics;
use crate::output::{AttachError, Attached, Echo, Intake, Outputs, Stream, TaskOutput};
use crate::pod::target::ContainerRef;

/// The container that tasks run in if they name no other.
const DEFAULT: Slot = Slot(0);

/// The engine; clones are the same one.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    metrics: Arc<Metrics>,
    echo: Echo,
    outputs: Outputs,
    intake: Intake,
    state: Mutex<State>,
    /// Changes whenever the list does.
    version: watch::Sender<u64>,
    /// A task waits for a place.
    wanted: Notify,
    /// One launch at a time, so that two places never take the same agent.
    launching: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    places: HashMap<Slot, Place>,
    next_slot: u32,
    outputs: HashMap<TaskKey, Held>,
    /// What this pod allows, as of the last launch.
    details: serde_json::Value,
}

/// A container that tasks run in, or are to run in.
#[derive(Debug, Default)]
struct Place {
    /// Named by a task; the default place finds its container itself.
    wanted: Option<ContainerRef>,
    /// To its agent, if there is one.
    orders: Option<mpsc::UnboundedSender<Order>>,
    agent: Option<i32>,
    mode: Option<Mode>,
    container_id: Option<String>,
    environment: Arc<Vec<Vec<u8>>>,
    /// A process was started in it and ended as it should.
    proved: bool,
    /// Why there is no agent, or what is not as it should be.
    remark: Option<String>,
}

/// Output of a task.
#[derive(Debug)]
struct Held {
    output: Arc<TaskOutput>,
    attached: Option<Attached>,
}

impl Held {
    /// Nothing comes any more, but what is in the pipes.
    fn close(&mut self) {
        match self.attached.take() {
            Some(attached) => attached.stop(),
            None => Stream::ALL
                .into_iter()
                .for_each(|stream| self.output.close(stream)),
        }
    }
}

impl Engine {
    /// An engine without a place yet; [`Self::run`] gives it one.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn new(config: Config, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let echo = Echo::stdout(config.log_output_rate)?;
        let outputs = Outputs::new(config.output_buffer_bytes, config.output_total_bytes);
        // In microseconds, so that it grows from one executor to the next, whatever either did.
        let epoch = unix_millis().saturating_mul(1000);
        let state = State {
            ledger: Ledger::new(usize::from(config.max_tasks), epoch),
            places: HashMap::from([(DEFAULT, Place::default())]),
            next_slot: 1,
            outputs: HashMap::new(),
            details: serde_json::Value::Null,
        };
        let shared = Shared {
            intake: Intake::new(echo.clone()),
            config,
            metrics,
            echo,
            outputs,
            state: Mutex::new(state),
            version: watch::Sender::new(0),
            wanted: Notify::new(),
            launching: tokio::sync::Mutex::new(()),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Keeps an agent in the sandbox container. Does not return.
    pub async fn run(&self) {
        self.keep(DEFAULT).await;
    }

    /// For a program that is about to end. Tasks that depend on this process are stopped, within
    /// `patience`; those of an injected agent go on, and the next executor finds them.
    pub async fn shut_down(&self, patience: Duration) {
        let depend = {
            let mut state = self.lock();
            let depend = (state.places.values())
                .any(|place| matches!(place.mode, Some(Mode::Chroot | Mode::InContainer)));
            if depend {
                state.ledger.stop_all(StopCause::Shutdown);
                self.settle(&mut state);
            }
            depend
        };
        if depend {
            let ended = self.until(|state| state.ledger.active() == 0);
            tokio::time::timeout(patience, ended).await.ok();
        }
        let echo = self.shared.echo.clone();
        tokio::task::spawn_blocking(move || echo.flush(Duration::from_secs(2)))
            .await
            .ok();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a condition holds.
    async fn until(&self, condition: impl Fn(&State) -> bool) {
        let mut version = self.shared.version.subscribe();
        loop {
            version.borrow_and_update();
            if condition(&self.lock()) {
                return;
            }
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Carries out what the ledger decided, until it has nothing more to say.
    fn settle(&self, state: &mut State) {
        loop {
            let effects = state.ledger.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.carry_out(state, effect);
            }
        }
        self.shared.version.send_modify(|version| *version += 1);
    }

    fn carry_out(&self, state: &mut State, effect: Effect) {
        let send = |state: &State, slot: Slot, order: Order| {
            // Without an agent there is nobody to tell; the next one is told everything.
            if let Some(orders) = state
                .places
                .get(&slot)
                .and_then(|place| place.orders.as_ref())
            {
                orders.send(order).ok();
            }
        };
        match effect {
            Effect::Start(slot, key, note) => {
                if let Some(other) = self.other_place(state, slot, &note.task) {
                    match other {
                        Ok(other) => state.ledger.reassign(key, other),
                        Err((failure, message)) => {
                            state.ledger.refused(key, failure, &message, unix_millis());
                        }
                    }
                    return;
                }
                let environment = state
                    .places
                    .get(&slot)
                    .map(|place| Arc::clone(&place.environment));
                let environment = environment.unwrap_or_default();
                match start::order(key, &note.task, &environment, note.encode()) {
                    Ok(order) => {
                        self.output(state, key);
                        send(state, slot, Order::Start(Box::new(order)));
                    }
                    Err(message) => {
                        let invalid = StartFailure::Invalid;
                        state.ledger.refused(key, invalid, &message, unix_millis());
                    }
                }
            }
            Effect::Stop(slot, key, cause) => {
                let order = Order::Stop {
                    key,
                    cause,
                    grace_millis: None,
                };
                send(state, slot, order);
            }
            Effect::Note(slot, key, note) => {
                let note = note.encode();
                send(state, slot, Order::Note { key, note });
            }
            Effect::Forget(slot, key) => send(state, slot, Order::Forget { key }),
            Effect::Removed(key) => forget_output(state, key),
            Effect::Started(name, pid) => {
                self.shared.metrics.task_started();
                self.shared
                    .echo
                    .say(&name, &format!("started, process {pid}"));
            }
            Effect::Finished(key, name, outcome) => self.finished(state, key, &name, &outcome),
        }
    }

    fn finished(&self, state: &mut State, key: TaskKey, name: &str, outcome: &Outcome) {
        let metrics = &self.shared.metrics;
        if let End::NotStarted { failure, .. } = outcome.end {
            metrics.start_failed(failure);
        } else {
            let duration = outcome.duration_millis.map(Duration::from_millis);
            metrics.task_ended(outcome.reason(), duration);
        }
        self.shared.echo.say(name, &describe(outcome));
        let nothing_comes = matches!(outcome.end, End::NotStarted { .. } | End::Lost { .. });
        let held = self.output(state, key);
        held.output.end();
        if nothing_comes {
            held.close();
        }
    }

    fn output<'a>(&self, state: &'a mut State, key: TaskKey) -> &'a mut Held {
        state.outputs.entry(key).or_insert_with(|| Held {
            output: self.shared.outputs.open(),
            attached: None,
        })
    }

    /// Reads the pipes of a task from now on. An error is what no agent would have sent.
    fn attach(
        &self,
        state: &mut State,
        key: TaskKey,
        name: &str,
        pipes: Pipes,
    ) -> Result<(), String> {
        let intake = self.shared.intake.clone();
        let held = self.output(state, key);
        if held.attached.is_some() {
            return Ok(());
        }
        match intake.attach(name, &held.output, pipes.stdout, pipes.stderr) {
            Ok(attached) => held.attached = Some(attached),
            Err(error @ (AttachError::NoPipe(_) | AttachError::NotReading(_))) => {
                return Err(error.to_string());
            }
            Err(error) => {
                tracing::warn!(error = %error, "the output of a task cannot be read");
                held.close();
            }
        }
        Ok(())
    }

    /// Where a task belongs if not in `slot`, because it names another container.
    fn other_place(
        &self,
        state: &mut State,
        slot: Slot,
        task: &Task,
    ) -> Option<Result<Slot, (StartFailure, String)>> {
        let named = task.container_id.as_deref()?;
        let wanted = match ContainerRef::parse(named) {
            Ok(wanted) => wanted,
            Err(error) => return Some(Err((StartFailure::Invalid, error.to_string()))),
        };
        let place = state.places.get(&slot)?;
        if place.wanted.as_ref() == Some(&wanted) {
            return None;
        }
        // A place without an ID is this very container, of which nobody told the ID.
        if place
            .container_id
            .as_deref()
            .is_none_or(|id| wanted.names(id))
        {
            return None;
        }
        Some(Ok(self.place_of(state, wanted)))
    }

    /// The place for a container that a task names.
    fn place_of(&self, state: &mut State, wanted: ContainerRef) -> Slot {
        let known = state.places.iter().find(|(_, place)| {
            place.wanted.as_ref() == Some(&wanted)
                || place
                    .container_id
                    .as_deref()
                    .is_some_and(|id| wanted.names(id))
        });
        if let Some((slot, _)) = known {
            return *slot;
        }
        let slot = Slot(state.next_slot);
        state.next_slot += 1;
        let place = Place {
            wanted: Some(wanted),
            ..Place::default()
        };
        state.places.insert(slot, place);
        let engine = self.clone();
        tokio::spawn(async move { engine.keep(slot).await });
        slot
    }
}

/// Nobody can ask for the output of a task any more; who follows it sees its end.
fn forget_output(state: &mut State, key: TaskKey) {
    if let Some(mut held) = state.outputs.remove(&key) {
        held.close();
    }
}

/// How a task ended, in a line. Nothing of what it was given.
fn describe(outcome: &Outcome) -> String {
    let code = outcome.exit_code();
    let after = outcome.duration_millis.map_or_else(String::new, |millis| {
        format!(" after {}.{:03} s", millis / 1000, millis % 1000)
    });
    match &outcome.end {
        End::Exited { code: 0 } if !outcome.timed_out => format!("succeeded{after}"),
        End::NotStarted { message, .. } => {
            format!("could not be started: {message}, exit code {code}")
        }
        End::Lost { message, .. } => format!("was lost: {message}"),
        End::Exited { .. } | End::Signaled { .. } | End::Unknown => {
            let signal = outcome
                .signal()
                .map_or_else(String::new, |signal| format!(", signal {signal}"));
            format!(
                "failed{after}: {}, exit code {code}{signal}",
                outcome.reason()
            )
        }
    }
}
