//! The list of tasks as the HTTP API asks for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use opensandbox_api::task::{Task, WatchEvent};
use tokio::sync::watch;

use super::ledger::NotTaken;
use super::{DEFAULT, Engine};
use crate::agent::protocol::TaskKey;
use crate::clock::unix_millis;
use crate::metrics::Measured;
use crate::output::{From, TaskOutput};
use crate::server::tasks::{
    Chunk, CreateError, CreateErrorKind, Log, Readiness, SetError, Start, Stream, Tasks, Wanted,
    Watch,
};

/// How long a reply waits for the tasks it created to have started, so that it can say so.
const START_PATIENCE: Duration = Duration::from_secs(1);

impl Engine {
    async fn settled(&self, keys: &[TaskKey]) {
        let started = self.until(|state| {
            let waits = |key: &&TaskKey| !state.ledger.is_settled(**key);
            // Without an agent there is nothing to wait for.
            let ready = state
                .places
                .get(&DEFAULT)
                .is_some_and(|place| place.orders.is_some());
            !ready || !keys.iter().any(|key| waits(&key))
        });
        tokio::time::timeout(START_PATIENCE, started).await.ok();
    }
}

impl Tasks for Engine {
    type Watch = Events;
    type Log = Output;

    async fn set(&self, wanted: Vec<Wanted>) -> Result<Vec<Task>, SetError> {
        let (created, messages) = {
            let mut state = self.lock();
            let mut messages = Vec::new();
            let mut tasks = Vec::new();
            for Wanted { task, refusal } in wanted {
                let exists = state.ledger.key(&task.name).is_some();
                match refusal {
                    // It keeps what has its name from being deleted, and is no order to replace it.
                    Some(_) if exists => tasks.push((
                        DEFAULT,
                        Task {
                            name: task.name,
                            ..Task::default()
                        },
                    )),
                    Some(refusal) => {
                        messages.push(format!("failed to create task {}: {refusal}", task.name));
                    }
                    None => tasks.push((DEFAULT, task)),
                }
            }
            let (created, not_taken) = state.ledger.set(tasks, unix_millis());
            messages.extend(
                not_taken
                    .iter()
                    .map(|error| format!("failed to create task: {error}")),
            );
            self.settle(&mut state);
            (created, messages)
        };
        self.shared.wanted.notify_waiters();
        self.settled(&created).await;
        if messages.is_empty() {
            Ok(self.list())
        } else {
            Err(SetError { messages })
        }
    }

    async fn create(&self, task: Task) -> Result<Task, CreateError> {
        let name = task.name.clone();
        let key = {
            let mut state = self.lock();
            let key = state
                .ledger
                .create(DEFAULT, task)
                .map_err(|error| CreateError {
                    message: error.to_string(),
                    kind: match error {
                        NotTaken::Exists(_) => CreateErrorKind::Exists,
                        NotTaken::Busy(_) | NotTaken::Full => CreateErrorKind::Full,
                    },
                })?;
            self.settle(&mut state);
            key
        };
        self.shared.wanted.notify_waiters();
        self.settled(&[key]).await;
        self.get(&name).ok_or_else(|| CreateError {
            message: format!("task {name} was deleted meanwhile"),
            kind: CreateErrorKind::Other,
        })
    }

    fn list(&self) -> Vec<Task> {
        self.lock().ledger.list()
    }

    fn get(&self, name: &str) -> Option<Task> {
        self.lock().ledger.get(name)
    }

    fn delete(&self, name: &str) {
        let mut state = self.lock();
        state.ledger.delete(name, unix_millis());
        self.settle(&mut state);
    }

    fn watch(&self, cursor: Option<&str>) -> Events {
        let position = {
            let state = self.lock();
            cursor.and_then(|cursor| state.ledger.journal().position(cursor))
        };
        Events {
            engine: self.clone(),
            version: self.shared.version.subscribe(),
            snapshot: VecDeque::new(),
            position,
        }
    }

    fn logs(&self, name: &str, stream: Stream) -> Option<Output> {
        let mut state = self.lock();
        let key = state.ledger.key(name)?;
        let output = Arc::clone(&self.output(&mut state, key).output);
        Some(Output { output, stream })
    }

    fn measured(&self) -> Measured {
        let stored = self.shared.outputs.counts();
        let log = self.shared.echo.counts();
        Measured {
            output_bytes: stored.written,
            output_dropped_bytes: stored.dropped,
            log_dropped_bytes: log.left_out + log.lost,
            tasks_running: self.lock().ledger.active(),
        }
    }

    fn readiness(&self) -> Readiness {
        let state = self.lock();
        let place = state.places.get(&DEFAULT);
        let ready = place.is_some_and(|place| place.proved);
        let remark = place.and_then(|place| place.remark.clone());
        let reason = match (ready, remark) {
            (true, None) => "tasks can be started".to_owned(),
            (true, Some(remark)) => format!("tasks can be started; {remark}"),
            (false, Some(remark)) => remark,
            (false, None) => "the sandbox container is being entered".to_owned(),
        };
        Readiness {
            ready,
            mode: place
                .and_then(|place| place.mode)
                .map(crate::launch::Mode::name),
            reason,
            details: state.details.clone(),
        }
    }
}

/// Events for one client.
#[derive(Debug)]
pub struct Events {
    engine: Engine,
    version: watch::Receiver<u64>,
    /// What is left of a state that is being told from the beginning.
    snapshot: VecDeque<WatchEvent>,
    /// What comes after it; `None` if the client has to be told everything anew.
    position: Option<u64>,
}

impl Watch for Events {
    async fn next(&mut self) -> WatchEvent {
        loop {
            if let Some(event) = self.snapshot.pop_front() {
                return event;
            }
            self.version.borrow_and_update();
            {
                let state = self.engine.lock();
                let journal = state.ledger.journal();
                match self.position {
                    Some(position) if journal.knows(position) => {
                        if let Some(event) = journal.after(position) {
                            self.position = Some(position + 1);
                            return event;
                        }
                    }
                    Some(_) | None => {
                        // Who is cut off in between must be told everything again: a cursor that
                        // no executor knows.
                        let cursor = journal.cursor(u64::MAX);
                        let added = state
                            .ledger
                            .list()
                            .into_iter()
                            .map(|task| WatchEvent::Added {
                                cursor: cursor.clone(),
                                task: Box::new(task),
                            });
                        self.snapshot.push_back(WatchEvent::Reset {
                            cursor: cursor.clone(),
                        });
                        self.snapshot.extend(added);
                        self.snapshot.push_back(WatchEvent::Bookmark {
                            cursor: journal.cursor(journal.last()),
                        });
                        self.position = Some(journal.last());
                        continue;
                    }
                }
            }
            if self.version.changed().await.is_err() {
                // The engine lives as long as its clients do.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// One stream of one task.
#[derive(Debug)]
pub struct Output {
    output: Arc<TaskOutput>,
    stream: Stream,
}

impl Log for Output {
    fn read(&self, start: Start, max: usize) -> Chunk {
        let from = match start {
            Start::Offset(offset) => From::Offset(offset),
            Start::Tail(bytes) => From::TailBytes(bytes),
            Start::TailLines(lines) => From::TailLines(lines),
        };
        let chunk = self.output.read(self.stream, from, max);
        Chunk {
            printed: self.output.written(self.stream).0,
            offset: chunk.offset,
            bytes: chunk.bytes.to_vec(),
            dropped_before: chunk.dropped_before,
            end: chunk.end,
        }
    }

    async fn changed(&self, beyond: u64) {
        self.output.changed(self.stream, beyond).await;
    }
}
