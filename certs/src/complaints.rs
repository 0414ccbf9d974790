//! Logs a failure that lasts once, and its end once.
//!
//! In: per topic the text of the failure, or that there is none; out: log lines. Needs no client.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

/// What is wrong now, by topic.
#[derive(Debug, Default)]
pub(crate) struct Complaints(BTreeMap<String, String>);

impl Complaints {
    /// Logs `text` unless it is what was said last on this topic.
    pub(crate) fn raise(&mut self, topic: &str, text: String) {
        if self.0.get(topic) != Some(&text) {
            tracing::warn!(topic, error = %text, "certificates");
            self.0.insert(topic.to_owned(), text);
        }
    }

    /// The topic is fine.
    pub(crate) fn clear(&mut self, topic: &str) {
        if self.0.remove(topic).is_some() {
            tracing::info!(topic, "certificates: works again");
        }
    }

    /// All that is wrong, for a status.
    pub(crate) fn told(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(topic, text)| format!("{topic}: {text}"))
            .collect()
    }
}

/// An error with all its sources. A source whose text the one before already ends with (some
/// libraries print their sources) is left out.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            let _ = write!(text, ": {next}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_each_source_once() {
        let io = std::io::Error::other("disk");
        let error = crate::files::Error::Read {
            path: "a".into(),
            source: io,
        };
        assert_eq!(chain(&error), "cannot read a: disk");
    }

    #[test]
    fn a_topic_is_told_until_it_is_cleared() {
        let mut complaints = Complaints::default();
        complaints.raise("Secret x", "forbidden".to_owned());
        complaints.raise("Secret x", "forbidden".to_owned());
        assert_eq!(complaints.told(), ["Secret x: forbidden"]);
        complaints.clear("Secret x");
        assert!(complaints.told().is_empty());
    }
}
