//! Strategic merge patch: what `spec.shardPatches` and `spec.shardTaskPatches` do to a pod and to a
//! task.
//!
//! In: the original document, the patch, and which Kubernetes type they are. Out: the patched
//! document, or the path of what is wrong with the patch. Works on raw JSON, so that fields newer
//! than this program survive; pure; never panics, whatever the JSON (which, as everything parsed by
//! `serde_json`, nests at most 128 levels deep).
//!
//! The rules are those of `k8s.io/apimachinery/pkg/util/strategicpatch`, which is what
//! `kubectl patch --type=strategic` and upstream's controller run:
//!
//! - Objects merge member by member; `null` removes a member.
//! - A list with a merge key (such as `name` of containers) merges element by element, a list of scalars with the
//!   strategy `merge` becomes a set, every other list is replaced as a whole.
//! - `$patch: delete` in a list element removes the element with that key, in an object it empties
//!   the object; `$patch: replace` takes the patch instead of merging. `$patch: merge` is refused, as
//!   it is by Kubernetes: merging is what happens anyway.
//! - `$retainKeys: [..]` removes the members of the original that it does not name;
//!   `$deleteFromPrimitiveList/NAME` removes scalars; `$setElementOrder/NAME` orders the list NAME.
//! - **New elements of a merged list come first.** Patched elements keep the patch's order, and each
//!   element that only the original has is put before a patched one only if the original says so. So
//!   a patch with one new container puts that container before the existing ones; name an existing
//!   element in front of it, or use `$setElementOrder/containers`, where this matters.
//! - Ports merge by `containerPort` alone: of two ports with the same number, such as 53/TCP and
//!   53/UDP, only the first can be patched.
//!
//! Where Kubernetes' code depends on the random order of a map, panics, or leaves something that the
//! API server then misreads, this differs on purpose:
//!
//! - No directive and no `null` of the patch is left in the result, also inside new list elements.
//! - `$patch: replace` in an object that the original does not have sets that object. Kubernetes
//!   drops it, and with it what the patch asked for.
//! - `$patch: delete` in a list that is replaced as a whole is an error. Kubernetes would add the
//!   element that was to be deleted.
//! - An object or list that the type does not know merges like a plain object, or is replaced, instead
//!   of failing: it may belong to a newer Kubernetes.
//! - An element that the same patch adds to a list of scalars and deletes from it is deleted.
//! - A `null` original, or a `null` list in it, counts as absent; an empty `$setElementOrder` list
//!   orders nothing.

mod directives;
mod list;
mod merge_keys;
mod object;
mod order;
mod path;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use merge_keys::Type;
use path::Path;

/// Which type the documents are; it decides the merge keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `core/v1` Pod: metadata, spec and status.
    Pod,
    /// `core/v1` PodTemplateSpec: metadata and spec.
    PodTemplate,
    /// OpenSandbox's TaskTemplateSpec: `{"spec": {"process": ..}}`, environment merged by name.
    TaskTemplate,
}

/// What is wrong with a patch, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct Error {
    /// Path in the patch, with indices, such as `spec.containers[0].env`; `.` for its root.
    pub path: String,
    /// What is wrong there.
    pub fault: Fault,
}

/// What can be wrong with a patch, or with the list that it is applied to.
///
/// Messages carry types, names and merge keys, never other values: those may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The document is not an object.
    #[error("the {document} must be an object, not {found}")]
    NotAnObject {
        /// `original` or `patch`.
        document: &'static str,
        /// JSON type found.
        found: &'static str,
    },
    /// A directive's value is not a list.
    #[error("must be a list, not {found}")]
    NotAList {
        /// JSON type found.
        found: &'static str,
    },
    /// `$patch` has a value that means nothing.
    #[error("$patch must be \"replace\" or \"delete\", not {found}")]
    UnknownDirective {
        /// The value, if it is text, else its JSON type.
        found: String,
    },
    /// A key starts like a directive and names no field.
    #[error("{directive} must name a list as {directive}/FIELD")]
    DirectiveWithoutField {
        /// The directive.
        directive: &'static str,
    },
    /// The patch sets a field that its own `$retainKeys` does not name.
    #[error("$retainKeys does not name {field}, which the patch sets; add it to the list")]
    NotRetained {
        /// The field.
        field: String,
    },
    /// An element of the patch lacks the key by which the list merges.
    #[error("has no {key}, by which this list is merged; add it")]
    NoMergeKey {
        /// The merge key.
        key: &'static str,
    },
    /// An element of the original lacks the key by which the list merges.
    #[error("element {index} of the original list has no {key}, by which this list is merged")]
    OriginalHasNoMergeKey {
        /// Index in the original list.
        index: usize,
        /// The merge key.
        key: &'static str,
    },
    /// An element of a merged list has the wrong type.
    #[error("element {index} of the {document} list must be {wanted}, not {found}")]
    WrongElement {
        /// `original` or `patch`.
        document: &'static str,
        /// Index in that list.
        index: usize,
        /// JSON type wanted.
        wanted: &'static str,
        /// JSON type found.
        found: &'static str,
    },
    /// `$patch: delete` where nothing is merged.
    #[error(
        "$patch: delete works only in lists with a merge key; this list is replaced as a whole, give all of its elements"
    )]
    DeleteInReplacedList,
    /// `$setElementOrder` on a list of objects without a merge key.
    #[error("this list has no merge key, so its elements cannot be ordered; give the whole list")]
    NotOrderable,
    /// `$setElementOrder` contradicts the list in the same patch.
    #[error("the order contradicts the patch: {element} is missing from it or stands elsewhere")]
    OrderMismatch {
        /// Merge key or value of the first element that is out of order.
        element: String,
    },
}

/// Applies a strategic merge patch to a document of the given type.
///
/// `null` documents count as empty. The original is not checked beyond the lists that are merged.
///
/// # Errors
///
/// The first thing found wrong with the patch, with its path; nothing is applied in part.
pub fn apply(original: &Value, patch: &Value, kind: Kind) -> Result<Value, Error> {
    let root = Path::root();
    let mut result = document(original, "original", &root)?
        .cloned()
        .unwrap_or_default();
    if let Some(patch) = document(patch, "patch", &root)? {
        object::merge(&mut result, patch, Type::of(kind), &root)?;
    }
    Ok(Value::Object(result))
}

fn document<'a>(
    value: &'a Value,
    document: &'static str,
    at: &Path<'_>,
) -> Result<Option<&'a Map<String, Value>>, Error> {
    match value {
        Value::Null => Ok(None),
        Value::Object(members) => Ok(Some(members)),
        other => Err(at.error(Fault::NotAnObject {
            document,
            found: type_name(other),
        })),
    }
}

/// What JSON calls the type of a value.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
