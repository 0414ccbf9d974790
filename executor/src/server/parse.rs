//! From a request's body to tasks. Pure.
//!
//! The bytes are bounded, what they become has to be as well: `[{},{},...` takes 3 bytes for an
//! element and hundreds in memory. So the values are counted before anything is made of them, and
//! errors name a place, never a value.

use std::collections::HashMap;
use std::fmt;

use opensandbox_api::task::Task;
use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};
use serde_json::error::Category;

/// Most JSON values in a body: 64 tasks with a thousand variables each.
const MAX_VALUES: usize = 256 * 1024;
/// Most tasks in a list: four times what may be set to run at once.
const MAX_TASKS: usize = 4096;

/// What is wrong with a body, without any value in it.
pub(super) type Problem = String;

/// Reads the body of `POST /tasks`. `null` is a task without a name.
pub(super) fn task(body: &[u8]) -> Result<Task, Problem> {
    bounded(body)?;
    let task: Option<Task> = serde_json::from_slice(body).map_err(|error| problem(&error))?;
    Ok(task.unwrap_or_default())
}

/// Reads the body of `POST /setTasks`: a list, or `null`. Entries without a name are left out; of
/// several with one name the last counts, in the place of the first.
pub(super) fn tasks(body: &[u8]) -> Result<Vec<Task>, Problem> {
    bounded(body)?;
    let mut reader = serde_json::Deserializer::from_slice(body);
    reader
        .deserialize_option(List)
        .and_then(|tasks| reader.end().map(|()| tasks))
        .map_err(|error| problem(&error))
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = Vec<Task>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_TASKS} tasks")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        inner.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut tasks: Vec<Task> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        while let Some(task) = list.next_element::<Option<Task>>()? {
            let Some(task) = task.filter(|task| !task.name.is_empty()) else {
                continue;
            };
            if let Some(place) = places
                .get(&task.name)
                .and_then(|&place| tasks.get_mut(place))
            {
                *place = task;
                continue;
            }
            if tasks.len() == MAX_TASKS {
                return Err(serde::de::Error::invalid_length(MAX_TASKS + 1, &self));
            }
            places.insert(task.name.clone(), tasks.len());
            tasks.push(task);
        }
        Ok(tasks)
    }
}

/// Refuses a body with too many values, counted by what has to stand between or around them.
fn bounded(body: &[u8]) -> Result<(), Problem> {
    let mut count = 0;
    let mut in_string = false;
    let mut escaped = false;
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    if count > MAX_VALUES {
        return Err(format!(
            "has {count} JSON values, at most {MAX_VALUES} are taken; send less at once"
        ));
    }
    Ok(())
}

/// The error without the value that it was found in, which may be secret.
fn problem(error: &serde_json::Error) -> Problem {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Eof => "ends before its JSON does".to_owned(),
        Category::Io | Category::Syntax => {
            format!("is not JSON, at line {line}, column {column}")
        }
        Category::Data => {
            let text = error.to_string();
            // "invalid type: string \"VALUE\", expected i64 at line 1 column 2": only what comes after
            // the last "expected" is certain to be ours.
            let expected = text
                .rsplit_once(", expected ")
                .and_then(|(_, expected)| expected.rsplit_once(" at line "))
                .map_or_else(
                    || "another field".to_owned(),
                    |(expected, _)| expected.to_owned(),
                );
            format!("needs {expected} at line {line}, column {column}")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(body: &str) -> Vec<String> {
        tasks(body.as_bytes())
            .unwrap()
            .into_iter()
            .map(|task| task.name)
            .collect()
    }

    #[test]
    fn lists_as_upstream_reads_them() {
        assert!(names("null").is_empty());
        assert!(names(" [] \n").is_empty());
        assert_eq!(
            names(r#"[{"name":"a","x":[{}]},null,{},{"name":""},{"name":"b"}]"#),
            ["a", "b"]
        );
        let list = br#"[{"name":"a","uid":"1"},{"name":"b"},{"name":"a","uid":"2"}]"#;
        let list = tasks(list).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(
            list[0].uid.as_deref(),
            Some("2"),
            "the last of a name counts"
        );
        assert_eq!(task(b"null").unwrap(), Task::default());
    }

    #[test]
    fn errors_name_the_place_and_no_value() {
        for (body, expected) in [
            ("", "ends before its JSON does"),
            ("[{", "ends before its JSON does"),
            ("nonsense", "is not JSON, at line 1, column 2"),
            ("[] x", "is not JSON, at line 1, column 4"),
            (
                "{}",
                "needs a list of at most 4096 tasks at line 1, column 0",
            ),
            (
                r#"[{"name":"a","process":{"timeoutSeconds":"hunter2, expected x"}}]"#,
                "needs i64 at line 1, column 62",
            ),
            (
                r#"[{"name":"a","name":"b"}]"#,
                "needs another field at line 1, column 19",
            ),
        ] {
            assert_eq!(tasks(body.as_bytes()).unwrap_err(), expected, "{body}");
        }
        assert!(task(b"\xff\xfe").is_err());
        assert!(task(&b"[".repeat(200_000)).unwrap_err().contains("line 1"));
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        let commas = format!(r#"[{{"name":"a\",{}"}}]"#, ",".repeat(MAX_VALUES));
        assert_eq!(names(&commas).len(), 1);
        let values = format!("[{}{{}}]", "{},".repeat(MAX_VALUES / 2));
        assert!(tasks(values.as_bytes()).unwrap_err().contains("send less"));
        let many: Vec<_> = (0..=MAX_TASKS)
            .map(|number| format!(r#"{{"name":"{number}"}}"#))
            .collect();
        let error = tasks(format!("[{}]", many.join(",")).as_bytes()).unwrap_err();
        assert!(error.contains("at most 4096 tasks"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (task(&bytes), tasks(&bytes));
        }

        #[test]
        fn no_secret_is_in_an_error(secret in "[a-z]{12}", field in "name|process|uid|command|timeoutSeconds") {
            for body in [
                format!(r#"{{"{field}":["{secret}"]}}"#),
                format!(r#"{{"process":{{"{field}":"{secret}"}}}}"#),
                format!(r#"{{"process":{{"env":[{{"name":"x","value":"{secret}"}},"{secret}"]}}}}"#),
            ] {
                if let Err(error) = task(body.as_bytes()) {
                    prop_assert!(!error.contains(&secret), "{}", error);
                }
            }
        }
    }
}
