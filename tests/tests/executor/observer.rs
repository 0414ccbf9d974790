//! What an executor tells of its tasks over one watch, and whether it is consistent in itself: a task
//! waits, runs, ends and leaves, in this order, and what was said of its end is never taken back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use opensandbox_api::task::{State, Task, WatchEvent};
use opensandbox_tests::executor::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Between two events a watch sends bookmarks, so silence for so long is a failure.
const SILENCE: Duration = Duration::from_mins(1);

/// Follows the watch until it is dropped.
#[derive(Debug)]
pub(crate) struct Observer {
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    changed: watch::Receiver<u64>,
    follower: JoinHandle<()>,
}

/// What was told of a task.
#[derive(Clone, Debug)]
struct Seen {
    last: Task,
    ran: bool,
    gone: bool,
    /// What was wrong first.
    wrong: Option<String>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Observer {
    /// Begins to follow, and returns once everything that is there has been told.
    pub(crate) async fn start(client: &Client) -> Result<Self> {
        let mut events = client.watch(None).await?;
        let seen = Arc::<Mutex<HashMap<String, Seen>>>::default();
        let (sender, mut changed) = watch::channel(0);
        let follower = {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                // The sender is dropped with the stream, which those who wait notice.
                while let Ok(Some(event)) = events.next(SILENCE).await {
                    take(
                        &mut seen.lock().unwrap_or_else(PoisonError::into_inner),
                        event,
                    );
                    sender.send_modify(|version| *version += 1);
                }
            })
        };
        changed.changed().await.context("the watch ended")?;
        Ok(Self {
            seen,
            changed,
            follower,
        })
    }

    /// The task as it is reported once it has ended.
    pub(crate) async fn ended(&self, name: &str, bound: Duration) -> Result<Task> {
        let done = |seen: &Seen| seen.last.state().is_terminal();
        Ok(self.wait(name, "has ended", bound, done).await?.last)
    }

    /// The task as it was reported last, once the executor has forgotten it.
    pub(crate) async fn gone(&self, name: &str, bound: Duration) -> Result<Task> {
        let seen = self.wait(name, "is gone", bound, |seen| seen.gone).await?;
        if let Some(wrong) = seen.wrong {
            bail!("task {name}: {wrong}");
        }
        Ok(seen.last)
    }

    /// Whether a task was ever told to run.
    pub(crate) fn ran(&self, name: &str) -> bool {
        self.get(name).is_some_and(|seen| seen.ran)
    }

    fn get(&self, name: &str) -> Option<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(name).cloned()
    }

    async fn wait(
        &self,
        name: &str,
        what: &str,
        bound: Duration,
        done: impl Fn(&Seen) -> bool,
    ) -> Result<Seen> {
        let mut changed = self.changed.clone();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(seen) = self.get(name).filter(|seen| done(seen)) {
                    return Ok(seen);
                }
                changed.changed().await.context("the watch ended")?;
            }
        };
        match tokio::time::timeout(bound, wait).await {
            Ok(seen) => seen,
            Err(_) => bail!(
                "waited {} s until task {name} {what}; last seen: {:?}",
                bound.as_secs(),
                self.get(name)
                    .map(|seen| (seen.last.process_status, seen.last.outcome, seen.gone))
            ),
        }
    }
}

fn take(all: &mut HashMap<String, Seen>, event: WatchEvent) {
    match event {
        WatchEvent::Added { task, .. } => {
            let before = all.get(&task.name);
            let wrong = before
                .filter(|before| !before.gone)
                .map(|_| "added twice".to_owned());
            let seen = Seen {
                ran: task.state() == State::Running,
                last: *task,
                gone: false,
                wrong,
            };
            all.insert(seen.last.name.clone(), seen);
        }
        WatchEvent::Modified { task, .. } => modify(all, *task, false),
        WatchEvent::Deleted { task, .. } => modify(all, *task, true),
        WatchEvent::Reset { .. } | WatchEvent::Bookmark { .. } | WatchEvent::Unknown => {}
    }
}

fn modify(all: &mut HashMap<String, Seen>, task: Task, gone: bool) {
    let Some(seen) = all.get_mut(&task.name) else {
        return;
    };
    if let Err(error) = follows(seen, &task, gone) {
        seen.wrong.get_or_insert_with(|| error.to_string());
    }
    seen.ran |= task.state() == State::Running;
    seen.gone |= gone;
    seen.last = task;
}

/// Whether this can come after what was seen.
fn follows(seen: &Seen, task: &Task, gone: bool) -> Result<()> {
    ensure!(!seen.gone, "told of after it was gone");
    let rank = |state: State| match state {
        State::Waiting => 0,
        State::Running => 1,
        State::Succeeded | State::Failed => 2,
    };
    let (before, now) = (seen.last.state(), task.state());
    ensure!(rank(before) <= rank(now), "{now:?} after {before:?}");
    ensure!(!gone || now.is_terminal(), "gone while {now:?}");
    if before.is_terminal() {
        let end = |task: &Task| (task.process_status.clone(), task.outcome.clone());
        let (first, second) = (end(&seen.last), end(task));
        ensure!(first == second, "ended as {first:?}, then as {second:?}");
    }
    Ok(())
}
