//! The annotation that says what was added to a Pool, and where each value came from.
//!
//! Invariant: what is listed as added is ours to replace or take away again; everything else is the
//! user's. A value that a user changes leaves the list.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Path;

/// What was added. Paths are relative to the pod template, save in `replaced`, where
/// `metadata.annotations` of the Pool itself is written as `pool.metadata.annotations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Origin of each added value, by path.
    #[serde(default)]
    pub added: BTreeMap<String, String>,
    /// Objects and lists that were made only to hold added values.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub parents: BTreeSet<String>,
    /// What stood in the place of an added value or parent: `null`, or an empty object or list.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replaced: BTreeMap<String, Value>,
}

/// Path under which `replaced` keeps what stood in the place of the Pool's own annotations.
pub(super) const POOL_ANNOTATIONS: &str = "pool.metadata.annotations";

impl Record {
    /// Reads the annotation. A malformed one counts as absent: it is rewritten, never fatal.
    pub fn parse(annotation: Option<&Value>) -> Self {
        annotation
            .and_then(Value::as_str)
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }

    /// The annotation's text: compact JSON with sorted keys, so that equal records are equal bytes.
    pub fn to_annotation(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data with string keys")
    }

    /// Whether the value at this path is ours.
    pub fn has(&self, path: &Path) -> bool {
        self.added.contains_key(path.as_str())
    }

    /// Origin of the executor's image, if it is ours.
    pub fn image_origin(&self) -> Option<&str> {
        super::mode::containers().find_map(|container| self.origin(&container.field("image")))
    }

    /// Origin of the value at this path, if it is ours.
    pub fn origin(&self, path: &Path) -> Option<&str> {
        self.added.get(path.as_str()).map(String::as_str)
    }
}
