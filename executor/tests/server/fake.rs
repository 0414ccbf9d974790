//! A list of tasks that runs nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use opensandbox_api::task::{ProcessStatus, Task, WatchEvent};
use serde_json::json;
use task_executor::metrics::Measured;
use task_executor::server::tasks::{
    Chunk, CreateError, CreateErrorKind, Log, Readiness, SetError, Start, Stream, Tasks, Wanted,
    Watch,
};
use tokio::sync::watch;

/// Output of one stream.
#[derive(Debug, Default)]
struct Output {
    dropped: u64,
    kept: Vec<u8>,
    ended: bool,
}

#[derive(Debug, Default)]
struct State {
    tasks: Vec<Task>,
    /// Events since the beginning; a cursor is a number of them.
    events: Vec<WatchEvent>,
    outputs: HashMap<(String, &'static str), Output>,
    /// Names of tasks created, in order.
    created: Vec<String>,
    unready: bool,
}

/// The fake; a clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changes: watch::Sender::new(0),
        }
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let result = act(&mut self.state.lock().unwrap());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Names of the tasks that were created so far.
    pub(crate) fn created(&self) -> Vec<String> {
        self.state.lock().unwrap().created.clone()
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.with(|state| state.unready = !ready);
    }

    /// A task that is there without having been ordered.
    pub(crate) fn add(&self, name: &str) {
        let task = Task {
            name: name.to_owned(),
            ..Task::default()
        };
        self.with(|state| state.add(task));
    }

    /// The task prints.
    pub(crate) fn print(&self, name: &str, stream: Stream, bytes: &[u8]) {
        self.with(|state| state.output(name, stream).kept.extend_from_slice(bytes));
    }

    /// Output up to this offset is not kept any more.
    pub(crate) fn drop_output(&self, name: &str, stream: Stream, to: u64) {
        self.with(|state| {
            let output = state.output(name, stream);
            let count = usize::try_from(to - output.dropped).unwrap();
            output.kept.drain(..count);
            output.dropped = to;
        });
    }

    /// Nothing will be printed any more.
    pub(crate) fn end_output(&self, name: &str, stream: Stream) {
        self.with(|state| state.output(name, stream).ended = true);
    }

    /// Somebody is waiting for changes.
    pub(crate) fn listeners(&self) -> usize {
        self.changes.receiver_count()
    }
}

impl State {
    fn output(&mut self, name: &str, stream: Stream) -> &mut Output {
        self.outputs
            .entry((name.to_owned(), stream.name()))
            .or_default()
    }

    fn cursor(&self) -> String {
        (self.events.len() + 1).to_string()
    }

    fn add(&mut self, task: Task) {
        let cursor = self.cursor();
        let event = WatchEvent::Added {
            cursor,
            task: Box::new(task.clone()),
        };
        self.events.push(event);
        self.tasks.push(task);
    }

    fn create(&mut self, mut task: Task) -> Task {
        task.process_status = Some(ProcessStatus::waiting("Pending", ""));
        self.created.push(task.name.clone());
        self.add(task.clone());
        task
    }

    fn delete(&mut self, name: &str) {
        if let Some(index) = self.tasks.iter().position(|task| task.name == name) {
            let task = Box::new(self.tasks.remove(index));
            let cursor = self.cursor();
            self.events.push(WatchEvent::Deleted { cursor, task });
        }
    }
}

impl Tasks for Fake {
    type Watch = Events;
    type Log = FakeLog;

    async fn set(&self, wanted: Vec<Wanted>) -> Result<Vec<Task>, SetError> {
        self.with(|state| {
            let mut messages = Vec::new();
            let is_wanted = |name: &str| wanted.iter().any(|wanted| wanted.task.name == name);
            let gone: Vec<_> = state
                .tasks
                .iter()
                .map(|task| task.name.clone())
                .filter(|name| !is_wanted(name))
                .collect();
            for name in gone {
                state.delete(&name);
            }
            for Wanted { task, refusal } in wanted {
                if state
                    .tasks
                    .iter()
                    .any(|existing| existing.name == task.name)
                {
                    continue;
                }
                match refusal {
                    Some(refusal) => {
                        messages.push(format!("failed to create task {}: {refusal}", task.name));
                    }
                    None => drop(state.create(task)),
                }
            }
            if messages.is_empty() {
                Ok(state.tasks.clone())
            } else {
                Err(SetError { messages })
            }
        })
    }

    async fn create(&self, task: Task) -> Result<Task, CreateError> {
        self.with(|state| {
            let name = task.name.clone();
            let error = |message: String, kind| Err(CreateError { message, kind });
            if state.tasks.iter().any(|existing| existing.name == name) {
                error(
                    format!("task {name} already exists"),
                    CreateErrorKind::Exists,
                )
            } else if name == "unlucky" {
                error("no such sandbox".to_owned(), CreateErrorKind::Other)
            } else {
                Ok(state.create(task))
            }
        })
    }

    fn list(&self) -> Vec<Task> {
        self.state.lock().unwrap().tasks.clone()
    }

    fn get(&self, name: &str) -> Option<Task> {
        self.list().into_iter().find(|task| task.name == name)
    }

    fn delete(&self, name: &str) {
        self.with(|state| state.delete(name));
    }

    fn watch(&self, cursor: Option<&str>) -> Events {
        let state = self.state.lock().unwrap();
        let at = cursor
            .and_then(|cursor| cursor.parse().ok())
            .filter(|at| *at <= state.events.len());
        let mut waiting = Vec::new();
        if at.is_none() {
            let cursor = state.events.len().to_string();
            waiting.push(WatchEvent::Bookmark {
                cursor: cursor.clone(),
            });
            waiting.extend(state.tasks.iter().rev().map(|task| WatchEvent::Added {
                cursor: cursor.clone(),
                task: Box::new(task.clone()),
            }));
            waiting.push(WatchEvent::Reset { cursor });
        }
        Events {
            at: at.unwrap_or(state.events.len()),
            waiting,
            state: Arc::clone(&self.state),
            changes: self.changes.subscribe(),
        }
    }

    fn logs(&self, name: &str, stream: Stream) -> Option<FakeLog> {
        self.get(name)?;
        Some(FakeLog {
            key: (name.to_owned(), stream.name()),
            state: Arc::clone(&self.state),
            changes: self.changes.subscribe(),
        })
    }

    fn measured(&self) -> Measured {
        Measured::default()
    }

    fn readiness(&self) -> Readiness {
        let unready = self.state.lock().unwrap().unready;
        Readiness {
            ready: !unready,
            mode: Some("inject"),
            reason: if unready {
                "ptrace is refused"
            } else {
                "ready"
            }
            .to_owned(),
            details: json!({"ptrace": !unready}),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Events {
    at: usize,
    /// To be sent first, the last one first.
    waiting: Vec<WatchEvent>,
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
}

impl Watch for Events {
    async fn next(&mut self) -> WatchEvent {
        loop {
            if let Some(event) = self.waiting.pop() {
                return event;
            }
            let event = self.state.lock().unwrap().events.get(self.at).cloned();
            if let Some(event) = event {
                self.at += 1;
                return event;
            }
            self.changes.changed().await.unwrap();
        }
    }
}

#[derive(Debug)]
pub(crate) struct FakeLog {
    key: (String, &'static str),
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
}

impl Log for FakeLog {
    fn read(&self, start: Start, max: usize) -> Chunk {
        let mut state = self.state.lock().unwrap();
        let output = state.outputs.entry(self.key.clone()).or_default();
        let printed = output.dropped + output.kept.len() as u64;
        let (wanted, lost) = match start {
            Start::Offset(at) => (at, output.dropped.saturating_sub(at)),
            Start::Tail(bytes) => (printed.saturating_sub(bytes), 0),
            Start::TailLines(lines) => {
                let body = output.kept.strip_suffix(b"\n").unwrap_or(&output.kept);
                let feeds: Vec<_> = (0..body.len()).filter(|at| body[*at] == b'\n').collect();
                let lines = usize::try_from(lines).unwrap();
                let at = feeds
                    .len()
                    .checked_sub(lines)
                    .map_or(0, |index| feeds[index] + 1);
                (output.dropped + at as u64, 0)
            }
        };
        let offset = wanted.clamp(output.dropped, printed);
        let from = usize::try_from(offset - output.dropped).unwrap();
        let to = (from + max).min(output.kept.len());
        Chunk {
            offset,
            bytes: output.kept[from..to].to_vec(),
            dropped_before: lost,
            printed,
            end: output.ended && to == output.kept.len(),
        }
    }

    async fn changed(&self, beyond: u64) {
        let mut changes = self.changes.clone();
        loop {
            let chunk = self.read(Start::Offset(beyond), 1);
            if chunk.printed > beyond || chunk.end {
                return;
            }
            changes.changed().await.unwrap();
        }
    }
}
