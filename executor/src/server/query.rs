//! Query parameters. Unknown ones are ignored; a known one with a value that makes no sense is
//! refused, so that nobody gets a whole log for a misspelt number.

use super::route::unescape;
use super::tasks::{Start, Stream};

/// Parameters of `GET /tasks`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListQuery {
    pub(super) watch: bool,
    pub(super) cursor: Option<String>,
}

/// Parameters of `GET /tasks/{id}/logs`. `follow`, `tailLines` and `limitBytes` are named as in
/// Kubernetes' log API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogQuery {
    pub(super) stream: Stream,
    pub(super) start: Start,
    pub(super) follow: bool,
    pub(super) limit_bytes: Option<u64>,
}

/// What is wrong with a query, with the remedy.
pub(super) type Problem = String;

/// Reads the parameters of `GET /tasks`.
pub(super) fn list(query: Option<&str>) -> Result<ListQuery, Problem> {
    let mut parsed = ListQuery::default();
    for pair in pairs(query) {
        let (name, value) = pair?;
        match name.as_str() {
            "watch" => parsed.watch = truth("watch", &value)?,
            "cursor" if !value.is_empty() => parsed.cursor = Some(value),
            _ => {}
        }
    }
    Ok(parsed)
}

/// Reads the parameters of `GET /tasks/{id}/logs`.
pub(super) fn logs(query: Option<&str>) -> Result<LogQuery, Problem> {
    let mut parsed = LogQuery {
        stream: Stream::Stdout,
        start: Start::Offset(0),
        follow: false,
        limit_bytes: None,
    };
    let mut started_by = None;
    for pair in pairs(query) {
        let (name, value) = pair?;
        let start = match name.as_str() {
            "offset" => Start::Offset(number("offset", &value)?),
            "tail" => Start::Tail(number("tail", &value)?),
            "tailLines" => Start::TailLines(number("tailLines", &value)?),
            "follow" => {
                parsed.follow = truth("follow", &value)?;
                continue;
            }
            "limitBytes" => {
                parsed.limit_bytes = Some(number("limitBytes", &value)?);
                continue;
            }
            "stream" => {
                parsed.stream = match value.as_str() {
                    "stdout" => Stream::Stdout,
                    "stderr" => Stream::Stderr,
                    _ => return Err("stream must be stdout or stderr".to_owned()),
                };
                continue;
            }
            _ => continue,
        };
        if started_by.replace(name).is_some() {
            return Err("give only one of offset, tail and tailLines, once".to_owned());
        }
        parsed.start = start;
    }
    Ok(parsed)
}

/// Whether `verbose` is asked for; a value that makes no sense counts as a yes.
pub(super) fn verbose(query: Option<&str>) -> bool {
    pairs(query)
        .flatten()
        .any(|(name, value)| name == "verbose" && truth("verbose", &value).unwrap_or(true))
}

fn pairs(query: Option<&str>) -> impl Iterator<Item = Result<(String, String), Problem>> {
    query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| {
                unescape(&text.replace('+', " "))
                    .ok_or_else(|| "the query has a % without two hexadecimal digits".to_owned())
            };
            Ok((plain(name)?, plain(value)?))
        })
}

/// As Go's `strconv.ParseBool`; a parameter without value is true.
fn truth(name: &str, value: &str) -> Result<bool, Problem> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{name} must be true or false")),
    }
}

fn number(name: &str, value: &str) -> Result<u64, Problem> {
    value
        .parse()
        .map_err(|_| format!("{name} must be a whole number from 0 to {}", u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_parameters() {
        assert_eq!(list(None), Ok(ListQuery::default()));
        let watch = |cursor: Option<&str>| {
            Ok(ListQuery {
                watch: true,
                cursor: cursor.map(str::to_owned),
            })
        };
        assert_eq!(list(Some("watch=true&other=%41")), watch(None));
        assert_eq!(list(Some("watch=1&cursor=a%2Fb+c")), watch(Some("a/b c")));
        assert_eq!(list(Some("watch&cursor=")), watch(None));
        assert_eq!(list(Some("watch=0")), Ok(ListQuery::default()));
        assert!(list(Some("watch=maybe")).is_err());
        assert!(list(Some("cursor=%4")).is_err());
    }

    #[test]
    fn log_parameters() {
        let parsed = logs(Some("stream=stderr&tailLines=5&follow=true&limitBytes=9")).unwrap();
        let expected = LogQuery {
            stream: Stream::Stderr,
            start: Start::TailLines(5),
            follow: true,
            limit_bytes: Some(9),
        };
        assert_eq!(parsed, expected);
        assert_eq!(logs(Some("offset=7")).unwrap().start, Start::Offset(7));
        assert_eq!(logs(Some("tail=0")).unwrap().start, Start::Tail(0));
        for wrong in [
            "stream=both",
            "tail=-1",
            "tail=",
            "offset=1&tail=2",
            "tail=1&tail=2",
            "offset=99999999999999999999",
            "follow=2",
        ] {
            assert!(logs(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn verbose_in_its_spellings() {
        assert!(verbose(Some("verbose")));
        assert!(verbose(Some("verbose=x")));
        assert!(!verbose(Some("verbose=false")));
        assert!(!verbose(None));
    }
}
