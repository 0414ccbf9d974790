//! The annotations by which a BatchSandbox holds pods of a pool, upstream's: `alloc-status`,
//! `alloc-release`, `alloc-released`, each `{"pods":["a","b"]}`.
//!
//! Read leniently and bounded, written as upstream writes them. Entry i of `alloc-status` is the pod of
//! shard i, for good: a pod that was given back stays listed, and is named in the two others besides.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use opensandbox_api::labels;
use opensandbox_api::names::MAX_SUBDOMAIN;
use serde::{Deserialize, Serialize};

use crate::view::SandboxView;

/// Most bytes that the names of pods may take in all three annotations together. The API server bounds
/// the annotations of an object at 256 KiB in all; the rest is for the endpoints and for others.
pub(super) const MAX_BYTES: usize = 192 * 1024;

/// Most bytes of our annotations, the endpoints included.
pub(super) const MAX_WITH_ENDPOINTS: usize = 240 * 1024;

/// Bytes that an entry takes besides its name: two quotes and a comma.
pub(super) const ENTRY_OVERHEAD: usize = 3;

/// Which pods a sandbox holds, gives back and has given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Allocation {
    /// Pod of shard i.
    pub(super) entries: Vec<String>,
    /// Pods that are given back; all of them are entries.
    pub(super) release: BTreeSet<String>,
    /// Pods whose recycling is over; all of them are entries.
    pub(super) released: BTreeSet<String>,
}

/// Why an annotation cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {fault}; restore it, or remove it if the sandbox holds no pods")]
pub(super) struct Unreadable {
    /// The annotation.
    pub(super) key: &'static str,
    /// What is wrong with it; bounded.
    pub(super) fault: String,
}

#[derive(Serialize)]
struct Written<'a> {
    pods: Vec<&'a str>,
}

#[derive(Deserialize)]
struct Stored {
    // Go writes `null` for an empty list.
    #[serde(default)]
    pods: Option<Vec<String>>,
}

impl Allocation {
    /// From the annotations of an object.
    ///
    /// # Errors
    ///
    /// The first annotation that is not what it should be. Nothing is believed in part.
    pub(super) fn read(view: &SandboxView) -> Result<Self, Unreadable> {
        let entries = list(labels::ALLOC_STATUS, view.alloc_status.as_deref())?;
        let known: BTreeSet<&String> = entries.iter().collect();
        // What the sandbox does not hold it cannot give back, whoever wrote so.
        let within = |pods: Vec<String>| -> BTreeSet<String> {
            pods.into_iter().filter(|pod| known.contains(pod)).collect()
        };
        let release = within(list(labels::ALLOC_RELEASE, view.alloc_release.as_deref())?);
        let released = within(list(
            labels::ALLOC_RELEASED,
            view.alloc_released.as_deref(),
        )?);
        Ok(Self {
            entries,
            release,
            released,
        })
    }

    /// What can be made out where not all annotations can be read: better to keep a pod that is nobody's
    /// than to give away one that is somebody's. What is known to have been given back is not kept: by now
    /// it may well be somebody's.
    pub(super) fn made_out(view: &SandboxView) -> Self {
        let status = view.alloc_status.as_deref();
        let entries = list(labels::ALLOC_STATUS, status)
            .unwrap_or_else(|_| words(status.unwrap_or_default()));
        let known: BTreeSet<&String> = entries.iter().collect();
        let released = list(labels::ALLOC_RELEASED, view.alloc_released.as_deref());
        let released = released.unwrap_or_default().into_iter();
        let released = released.filter(|pod| known.contains(pod)).collect();
        Self {
            entries,
            release: BTreeSet::new(),
            released,
        }
    }

    /// Pod of shard `index`, given back or not.
    pub(super) fn entry(&self, index: u32) -> Option<&String> {
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Entries that have not been given back for good, with their indices.
    pub(super) fn current(&self) -> impl Iterator<Item = (usize, &String)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, pod)| !self.released.contains(*pod))
    }

    /// Whether nothing is held any more.
    pub(super) fn holds_nothing(&self) -> bool {
        self.current().next().is_none()
    }

    /// Puts a pod into the place of shard `index`, which is at most one behind the last.
    ///
    /// A pod that the sandbox gave back earlier may come to it again for another shard. The place where
    /// it was then keeps a name that no pod can have: no name stands twice.
    pub(super) fn put(&mut self, index: usize, pod: &str) {
        let came_back = self.released.contains(pod);
        let earlier = || self.entries.iter().position(|entry| entry == pod);
        if came_back
            && let Some(earlier) = earlier().filter(|earlier| *earlier != index)
            && let Some(entry) = self.entries.get_mut(earlier)
        {
            let stand_in = format!("{pod}~{earlier}");
            entry.clone_from(&stand_in);
            for names in [&mut self.release, &mut self.released] {
                names.remove(pod);
                names.insert(stand_in.clone());
            }
        }
        match self.entries.get_mut(index) {
            Some(entry) => {
                let before = std::mem::replace(entry, pod.to_owned());
                self.release.remove(&before);
                self.released.remove(&before);
            }
            None => self.entries.push(pod.to_owned()),
        }
    }

    /// Takes away the last entry, whose pod is gone for this sandbox.
    pub(super) fn trim(&mut self) {
        if let Some(pod) = self.entries.pop() {
            self.release.remove(&pod);
            self.released.remove(&pod);
        }
    }

    /// Bytes of the three annotations.
    pub(super) fn bytes(&self) -> usize {
        let all = self
            .entries
            .iter()
            .chain(&self.release)
            .chain(&self.released);
        all.map(|pod| pod.len() + ENTRY_OVERHEAD).sum()
    }

    /// The annotations as they are written; `None` where there is nothing to say.
    pub(super) fn annotations(&self) -> BTreeMap<&'static str, Option<String>> {
        [
            (labels::ALLOC_STATUS, text(self.entries.iter())),
            (labels::ALLOC_RELEASE, text(self.release.iter())),
            (labels::ALLOC_RELEASED, text(self.released.iter())),
        ]
        .into()
    }
}

/// Whatever looks like the name of a pod, each once. A `~` is part of it, see [`Allocation::put`].
fn words(text: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    text.split(|c: char| {
        !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '~'))
    })
    .filter(|word| !word.is_empty() && *word != "pods" && word.len() <= MAX_SUBDOMAIN)
    .take(MAX_BYTES / ENTRY_OVERHEAD)
    .filter(|word| seen.insert(*word))
    .map(str::to_owned)
    .collect()
}

fn text<'a>(pods: impl Iterator<Item = &'a String>) -> Option<String> {
    let pods: Vec<&str> = pods.map(String::as_str).collect();
    if pods.is_empty() {
        return None;
    }
    Some(serde_json::to_string(&Written { pods }).expect("a list of names is plain data"))
}

fn list(key: &'static str, text: Option<&str>) -> Result<Vec<String>, Unreadable> {
    let unreadable = |fault: String| Err(Unreadable { key, fault });
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    if text.len() > MAX_WITH_ENDPOINTS {
        return unreadable(format!(
            "has {} bytes, more than {MAX_WITH_ENDPOINTS}",
            text.len()
        ));
    }
    // The derived reader would take a list for an object.
    let parsed = serde_json::from_str(text).and_then(|object: serde_json::Map<_, _>| {
        Stored::deserialize(serde_json::Value::Object(object))
    });
    let stored = match parsed {
        Ok(stored) => stored,
        // The position says enough; the words of the parser could be as long as the annotation.
        Err(error) => {
            return unreadable(format!(
                "is not of the form {{\"pods\":[\"NAME\"]}} (line {}, column {})",
                error.line(),
                error.column()
            ));
        }
    };
    let pods = stored.pods.unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (index, pod) in pods.iter().enumerate() {
        if pod.is_empty() || pod.len() > MAX_SUBDOMAIN {
            return unreadable(format!(
                "pods[{index}] has {} characters, and a name has 1 to {MAX_SUBDOMAIN}",
                pod.len()
            ));
        }
        if !seen.insert(pod) {
            return unreadable(format!("pods[{index}] repeats the name {pod:?}"));
        }
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::tests::object;
    use proptest::prelude::*;

    fn read(status: &str, release: &str, released: &str) -> Result<Allocation, Unreadable> {
        let mut view = object("box", 1);
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        view.alloc_status = some(status);
        view.alloc_release = some(release);
        view.alloc_released = some(released);
        Allocation::read(&view)
    }

    #[test]
    fn reads_what_upstream_writes() {
        let read = read(
            r#"{"pods":["b","a"]}"#,
            r#"{"pods":["a"]}"#,
            r#"{"pods":null}"#,
        )
        .unwrap();
        assert_eq!(read.entries, ["b", "a"]);
        assert!(read.release.contains("a"));
        assert!(read.released.is_empty());
        assert_eq!(
            read.annotations()[labels::ALLOC_STATUS].as_deref(),
            Some(r#"{"pods":["b","a"]}"#)
        );
        assert_eq!(read.annotations()[labels::ALLOC_RELEASED], None);
    }

    #[test]
    fn gives_back_only_what_it_holds() {
        let read = read(
            r#"{"pods":["mine"]}"#,
            r#"{"pods":["another's"]}"#,
            r#"{"pods":["another's","mine"]}"#,
        )
        .unwrap();
        assert!(read.release.is_empty());
        assert_eq!(read.released.len(), 1);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for status in [
            "x",
            "[]",
            r#"{"pods":"a"}"#,
            r#"{"pods":[1]}"#,
            r#"{"pods":[""]}"#,
            r#"{"pods":["a","a"]}"#,
        ] {
            let error = read(status, "", "").unwrap_err();
            assert_eq!(error.key, labels::ALLOC_STATUS, "{status}");
        }
        let long = format!(r#"{{"pods":["{}"]}}"#, "a".repeat(300_000));
        assert!(read(&long, "", "").unwrap_err().fault.len() < 200);
    }

    #[test]
    fn makes_out_names_in_a_broken_annotation() {
        let mut view = object("box", 1);
        view.alloc_status = Some(r#"{"pods":["pool-a1","pool-b2","po"#.to_owned());
        assert_eq!(
            Allocation::made_out(&view).entries,
            ["pool-a1", "pool-b2", "po"]
        );
    }

    #[test]
    fn what_was_given_back_is_not_made_out() {
        let mut view = object("box", 1);
        view.alloc_released = Some(r#"{"pods":["gone","gone~0"]}"#.to_owned());
        for (status, release) in [
            (r#"{"pods":["gone~0","held","gone"]}"#, r#"{"pods":[7]}"#),
            (r#"{"pods":["gone~0","held","gone","#, ""),
        ] {
            view.alloc_status = Some(status.to_owned());
            view.alloc_release = Some(release.to_owned());
            let made_out = Allocation::made_out(&view);
            assert_eq!(made_out.entries, ["gone~0", "held", "gone"], "{status}");
            let held: Vec<&String> = made_out.current().map(|(_, pod)| pod).collect();
            assert_eq!(held, ["held"], "{status}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(status in ".{0,80}", other in ".{0,80}") {
            let _ = read(&status, &other, "");
            let mut view = object("box", 1);
            view.alloc_status = Some(status);
            view.alloc_released = Some(other);
            let _ = Allocation::made_out(&view);
        }
    }
}
