//! Tasks as an executor lists them, cut to what is reported, and the events that change the list. Pure.
//!
//! What was ordered is left out: the operator knows it, and an executor that is not believed needs no
//! memory here for what it says about it.

use std::collections::BTreeMap;

use opensandbox_api::task::{End, Task, WatchEvent, tasks_from_json};

use super::fault::Fault;

/// More tasks than an executor runs at once (64), and than one of the operator's ever has (1, and those
/// that are being stopped).
const MOST: usize = 256;
/// Most bytes of a message.
const MESSAGE: usize = 1024;
/// Most bytes of a name, a UID, a container ID, a reason or a time.
const WORD: usize = 256;

/// Tasks by name and UID, so that one that is being replaced and the next are two. Boxed, because a map
/// has room for eleven as soon as it has one, and most executors have one.
pub(super) type Tasks = BTreeMap<(String, Option<String>), Box<Task>>;

/// Reads an answer that lists all tasks.
pub(super) fn read(body: &[u8]) -> Result<Tasks, Fault> {
    let tasks = tasks_from_json(body)
        .map_err(|error| nonsense(&format!("no list of tasks ({:?})", error.classify())))?;
    let mut list = Tasks::new();
    for task in tasks {
        insert(&mut list, task)?;
    }
    Ok(list)
}

/// The list that a stream of events tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The list, once it is complete.
    known: Option<Tasks>,
    /// The list that is being told after a reset.
    coming: Tasks,
    complete: bool,
}

impl Told {
    /// The list, if it is complete.
    pub(super) fn tasks(&self) -> Option<&Tasks> {
        self.known.as_ref()
    }

    /// Takes a line. Whether the list may be another one now.
    pub(super) fn take(&mut self, line: &[u8]) -> Result<bool, Fault> {
        let event: WatchEvent = serde_json::from_slice(line).map_err(|error| {
            nonsense(&format!("a line that is no event ({:?})", error.classify()))
        })?;
        match event {
            WatchEvent::Reset { .. } => {
                self.complete = false;
                self.coming.clear();
                Ok(false)
            }
            WatchEvent::Bookmark { .. } if !self.complete => {
                self.complete = true;
                self.known = Some(std::mem::take(&mut self.coming));
                Ok(true)
            }
            WatchEvent::Added { task, .. } | WatchEvent::Modified { task, .. } => {
                insert(self.list(), *task)?;
                Ok(self.complete)
            }
            WatchEvent::Deleted { task, .. } => {
                let task = shortened(*task);
                self.list().remove(&(task.name, task.uid));
                Ok(self.complete)
            }
            WatchEvent::Bookmark { .. } | WatchEvent::Unknown => Ok(false),
        }
    }

    fn list(&mut self) -> &mut Tasks {
        match &mut self.known {
            Some(known) if self.complete => known,
            _ => &mut self.coming,
        }
    }
}

fn nonsense(what: &str) -> Fault {
    Fault::Unreachable(format!("does not answer sensibly: {what}"))
}

fn insert(list: &mut Tasks, task: Task) -> Result<(), Fault> {
    let task = shortened(task);
    list.insert((task.name.clone(), task.uid.clone()), Box::new(task));
    if list.len() > MOST {
        return Err(nonsense(&format!("more than {MOST} tasks")));
    }
    Ok(())
}

/// The task without what was ordered, and with texts of bounded length.
fn shortened(mut task: Task) -> Task {
    task.process = None;
    task.pod_template_spec = None;
    task.pod_status = None;
    let words = [
        Some(&mut task.name),
        task.uid.as_mut(),
        task.container_id.as_mut(),
        task.deletion_timestamp.as_mut(),
    ];
    words.into_iter().flatten().for_each(|text| cut(text, WORD));
    if let Some(status) = &mut task.process_status {
        if let Some(waiting) = &mut status.waiting {
            cut(&mut waiting.reason, WORD);
            cut(&mut waiting.message, MESSAGE);
        }
        if let Some(terminated) = &mut status.terminated {
            cut(&mut terminated.reason, WORD);
            cut(&mut terminated.message, MESSAGE);
        }
        let times = [
            status
                .running
                .as_mut()
                .and_then(|running| running.started_at.as_mut()),
            status
                .terminated
                .as_mut()
                .and_then(|ended| ended.started_at.as_mut()),
        ];
        times.into_iter().flatten().for_each(|text| cut(text, WORD));
        let finished = status
            .terminated
            .as_mut()
            .and_then(|ended| ended.finished_at.as_mut());
        if let Some(finished) = finished {
            cut(finished, WORD);
        }
    }
    if let Some(outcome) = &mut task.outcome
        && let End::NotStarted { message, .. } | End::Lost { message, .. } = &mut outcome.end
    {
        cut(message, MESSAGE);
    }
    task
}

/// Cuts at the last whole character within so many bytes.
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use opensandbox_api::task::State;

    use super::*;

    fn told(lines: &[&str]) -> Told {
        let mut told = Told::default();
        for line in lines {
            told.take(line.as_bytes()).unwrap();
        }
        told
    }

    fn names(told: &Told) -> Option<Vec<&str>> {
        let tasks = told.tasks()?;
        Some(tasks.keys().map(|(name, _)| name.as_str()).collect())
    }

    const RESET: &str = r#"{"type":"reset","cursor":"0"}"#;
    const A: &str = r#"{"type":"added","cursor":"1","task":{"name":"a","uid":"1"}}"#;
    const MARK: &str = r#"{"type":"bookmark","cursor":"1"}"#;

    #[test]
    fn list_is_known_when_it_is_complete_and_not_before() {
        assert_eq!(names(&told(&[])), None);
        assert_eq!(names(&told(&[RESET])), None);
        assert_eq!(names(&told(&[RESET, A])), None);
        assert_eq!(names(&told(&[RESET, A, MARK])), Some(vec!["a"]));
        assert_eq!(names(&told(&[RESET, MARK])), Some(vec![]));
        let deleted = r#"{"type":"deleted","cursor":"2","task":{"name":"a","uid":"1"}}"#;
        assert_eq!(names(&told(&[RESET, A, MARK, deleted])), Some(vec![]));
        let other = r#"{"type":"deleted","cursor":"2","task":{"name":"a","uid":"2"}}"#;
        assert_eq!(names(&told(&[RESET, A, MARK, other])), Some(vec!["a"]));
    }

    #[test]
    fn a_reset_keeps_what_is_known_until_the_new_list_is_complete() {
        let mut told = told(&[RESET, A, MARK, RESET]);
        assert_eq!(names(&told), Some(vec!["a"]));
        let b = A.replace("\"a\"", "\"b\"");
        assert_eq!(told.take(b.as_bytes()), Ok(false));
        assert_eq!(names(&told), Some(vec!["a"]));
        assert_eq!(told.take(MARK.as_bytes()), Ok(true));
        assert_eq!(names(&told), Some(vec!["b"]));
    }

    #[test]
    fn what_is_said_is_cut_to_what_is_reported() {
        let long = "é".repeat(100_000);
        let text = format!(
            r#"[{{"name":"{long}","uid":"{long}","containerId":"{long}","deletionTimestamp":"{long}",
            "process":{{"command":["{long}"]}},"podTemplateSpec":"{long}","podStatus":"{long}",
            "processStatus":{{"waiting":{{"reason":"{long}","message":"{long}"}},"running":{{"startedAt":"{long}"}},
            "terminated":{{"exitCode":1,"reason":"{long}","message":"{long}","startedAt":"{long}","finishedAt":"{long}"}}}},
            "outcome":{{"end":{{"kind":"lost","reason":"AgentKilled","message":"{long}"}}}}}}]"#
        );
        let tasks = read(text.as_bytes()).unwrap();
        let task = tasks.values().next().unwrap();
        assert!(task.process.is_none());
        assert_eq!(task.state(), State::Failed);
        let size = serde_json::to_string(task).unwrap().len();
        assert!(size < 8 * 1024, "{size}");
    }

    #[test]
    fn nonsense_is_a_fault_that_repeats_nothing() {
        for body in ["", "{}", "[1]", "s3cret", r#"[{"name":3,"s3cret":1}]"#] {
            let fault = read(body.as_bytes()).unwrap_err();
            assert!(matches!(&fault, Fault::Unreachable(text) if !text.contains("s3cret")));
            assert!(Told::default().take(body.as_bytes()).is_err());
        }
        let many: Vec<_> = (0..=MOST)
            .map(|number| format!(r#"{{"name":"{number}"}}"#))
            .collect();
        assert!(read(format!("[{}]", many.join(",")).as_bytes()).is_err());
        assert!(read(format!("[{}]", many[1..].join(",")).as_bytes()).is_ok());
    }
}
