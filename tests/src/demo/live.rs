//! What pools, sandboxes and tasks do, as a table that gets a line whenever a number changes.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::stage::Stage;
use crate::wait::{self, Probe};

/// Name, width, and where the number is in the status of each object of a kind.
const COLUMNS: [(&str, usize, &str, &str); 8] = [
    ("PODS", 4, "Pool", "total"),
    ("AVAILABLE", 9, "Pool", "available"),
    ("ALLOCATED", 9, "Pool", "allocated"),
    ("SANDBOXES", 11, "BatchSandbox", "replicas"),
    ("READY", 5, "BatchSandbox", "ready"),
    ("TASK_RUNNING", 14, "BatchSandbox", "taskRunning"),
    ("TASK_SUCCEED", 12, "BatchSandbox", "taskSucceed"),
    ("TASK_FAILED", 11, "BatchSandbox", "taskFailed"),
];

/// All Pools and BatchSandboxes of a namespace at one moment.
#[derive(Debug)]
pub(super) struct Seen(Vec<Value>);

impl Seen {
    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// One object; null if there is none.
    pub(super) fn object(&self, kind: &str, name: &str) -> &Value {
        self.of(kind)
            .find(|object| object["metadata"]["name"] == name)
            .unwrap_or(&Value::Null)
    }

    /// The numbers of all of them, added up.
    fn numbers(&self) -> [i64; COLUMNS.len()] {
        COLUMNS.map(|(_, _, kind, field)| {
            let values = self.of(kind).map(|object| &object["status"][field]);
            values.filter_map(Value::as_i64).sum()
        })
    }
}

/// A table that is being printed.
pub(super) struct Live<'a> {
    stage: &'a Stage<'a>,
    begin: Instant,
    printed: Option<[i64; COLUMNS.len()]>,
}

impl<'a> Live<'a> {
    pub(super) fn new(stage: &'a Stage<'a>) -> Self {
        Self {
            stage,
            begin: Instant::now(),
            printed: None,
        }
    }

    /// Looks, and prints, until it is as expected.
    ///
    /// # Errors
    /// It is not in time.
    pub(super) async fn until(
        &mut self,
        what: &str,
        bound: Duration,
        expected: impl Fn(&Seen) -> bool,
    ) -> Result<Seen> {
        wait::until(what, bound, async || {
            let get = ["get", "pools,batchsandboxes", "-o", "json"];
            let mut list: Value = serde_json::from_str(&self.stage.quietly(&get, None).await?)?;
            let seen = Seen(serde_json::from_value(list["items"].take())?);
            let numbers = seen.numbers();
            self.print(numbers)?;
            Ok(if expected(&seen) {
                Probe::Done(seen)
            } else {
                let states = seen.0.iter().map(|object| object["status"].to_string());
                Probe::not_yet(states.collect::<Vec<_>>().join("\n"))
            })
        })
        .await
    }

    fn print(&mut self, numbers: [i64; COLUMNS.len()]) -> Result<()> {
        if self.printed == Some(numbers) {
            return Ok(());
        }
        let terminal = self.stage.terminal;
        if self.printed.is_none() {
            let heads = COLUMNS.map(|(head, ..)| head.to_owned());
            terminal.note("")?;
            terminal.note(&line("TIME", &heads))?;
        }
        self.printed = Some(numbers);
        let time = format!("{:.1}s", self.begin.elapsed().as_secs_f32());
        terminal.note(&line(&time, &numbers.map(|number| number.to_string())))
    }
}

fn line(time: &str, cells: &[String; COLUMNS.len()]) -> String {
    let cells = COLUMNS.iter().zip(cells);
    let cells = cells.map(|((_, width, ..), cell)| format!("{cell:>width$}"));
    format!("{time:>6}  {}", cells.collect::<Vec<_>>().join("  "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_of_all_objects_are_added_up() {
        let seen = Seen(vec![
            json!({"kind": "Pool", "metadata": {"name": "a"}, "status": {"total": 5, "available": 3}}),
            json!({"kind": "Pool", "metadata": {"name": "b"}, "status": {"total": 2}}),
            json!({"kind": "BatchSandbox", "metadata": {"name": "c"}, "status": {"taskFailed": 1}}),
            json!({"kind": "BatchSandbox", "metadata": {"name": "d"}}),
        ]);
        assert_eq!(seen.numbers(), [7, 3, 0, 0, 0, 0, 0, 1]);
        assert_eq!(seen.object("Pool", "b")["status"]["total"], 2);
        assert_eq!(*seen.object("Pool", "c"), Value::Null);
    }

    #[test]
    fn cells_are_below_their_heads() {
        let heads = line("TIME", &COLUMNS.map(|(head, ..)| head.to_owned()));
        let cells = line("1.0s", &COLUMNS.map(|_| "12".to_owned()));
        assert_eq!(heads.len(), cells.len());
        for (at, _) in cells.match_indices("12") {
            assert_ne!(heads.as_bytes()[at + 1], b' ', "{heads}\n{cells}");
        }
    }
}
