//! Edits of a JSON document, as the JSON Patch operations that make them.
//!
//! Only adds and replaces. An edit inside something that was itself added is folded into that
//! addition, so that the patch has as few operations as possible and never one that needs an earlier
//! one to have made its parent half.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, ReplaceOperation};
use serde_json::{Map, Value};

use super::path::{Path, push_token};
use super::record::Record;

/// A document under edit.
#[derive(Debug)]
pub(super) struct Editor {
    document: Value,
    /// Pointer and kind of each operation; values are read from the document in the end.
    operations: Vec<(String, bool)>,
    /// What the edits made on the way, for the record.
    pub(super) record: Record,
}

/// A parent of an edit is neither an object nor a list as it must be, nor absent nor `null`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Odd {
    /// Where it stands.
    pub(super) path: Path,
    /// What it must be.
    pub(super) wanted: &'static str,
}

impl Editor {
    pub(super) fn new(document: Value) -> Self {
        Self {
            document,
            operations: Vec::new(),
            record: Record::default(),
        }
    }

    pub(super) fn document(&self) -> &Value {
        &self.document
    }

    /// Makes sure that an object stands at `path`.
    pub(super) fn object(&mut self, path: &Path) -> Result<(), Odd> {
        self.parent_of(
            path,
            Value::Object(Map::new()),
            Value::is_object,
            "an object",
        )
    }

    /// Makes sure that a list stands at `path`.
    pub(super) fn list(&mut self, path: &Path) -> Result<(), Odd> {
        self.parent_of(path, Value::Array(Vec::new()), Value::is_array, "a list")
    }

    fn parent_of(
        &mut self,
        path: &Path,
        empty: Value,
        fits: fn(&Value) -> bool,
        wanted: &'static str,
    ) -> Result<(), Odd> {
        match path.get(&self.document) {
            Some(value) if fits(value) => Ok(()),
            None | Some(Value::Null) => {
                self.set(path, empty);
                self.record.parents.insert(path.to_string());
                Ok(())
            }
            Some(_) => Err(Odd {
                path: path.clone(),
                wanted,
            }),
        }
    }

    /// Puts a value at `path`, whose parent must stand. Lists get it at the end. What stood there
    /// before, if it was `null` or empty, is noted in the record.
    pub(super) fn set(&mut self, path: &Path, value: Value) {
        let at_end = usize::MAX;
        self.set_at(path, value, at_end);
    }

    /// As [`Self::set`]; a new item of a list goes to `index`, or to the end if that is nearer.
    pub(super) fn set_at(&mut self, path: &Path, value: Value, index: usize) {
        if let Some(pointer) = path.pointer(&self.document) {
            let place = self
                .document
                .pointer_mut(&pointer)
                .expect("a pointer just computed leads somewhere");
            let before = std::mem::replace(place, value);
            if hollow(&before) {
                self.record.replaced.insert(path.to_string(), before);
            }
            self.operation(pointer, false);
            return;
        }
        let parent = path.parent().expect("the document itself always stands");
        let mut pointer = parent
            .pointer(&self.document)
            .expect("the parent was made to stand");
        let Some(name) = path.last().map(super::Segment::text) else {
            return;
        };
        match self.document.pointer_mut(&pointer) {
            Some(Value::Object(map)) => {
                map.insert(name.to_owned(), value);
                push_token(&mut pointer, name);
            }
            Some(Value::Array(items)) => {
                let index = index.min(items.len());
                items.insert(index, value);
                push_token(&mut pointer, &index.to_string());
            }
            _ => return,
        }
        self.operation(pointer, true);
    }

    fn operation(&mut self, pointer: String, add: bool) {
        let inside = |outer: &str| {
            pointer == outer
                || pointer
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        if !self.operations.iter().any(|(outer, _)| inside(outer)) {
            self.operations.push((pointer, add));
        }
    }

    /// The document and the operations that lead to it, `prefix` (a JSON pointer) before each.
    pub(super) fn finish(self, prefix: &str) -> (Value, Vec<PatchOperation>, Record) {
        let Self {
            document,
            operations,
            record,
        } = self;
        let operations = operations
            .into_iter()
            .map(|(pointer, add)| {
                let value = document.pointer(&pointer).cloned().unwrap_or(Value::Null);
                operation(&format!("{prefix}{pointer}"), value, add)
            })
            .collect();
        (document, operations, record)
    }
}

/// One operation of a patch.
pub(super) fn operation(pointer: &str, value: Value, add: bool) -> PatchOperation {
    let path = PointerBuf::parse(pointer.to_owned()).expect("built from escaped tokens");
    if add {
        PatchOperation::Add(AddOperation { path, value })
    } else {
        PatchOperation::Replace(ReplaceOperation { path, value })
    }
}

/// Whether a value says nothing: `null`, or an object, list or text without content.
pub(super) fn hollow(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
