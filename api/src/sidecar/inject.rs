//! What is added to a pod template, and what cannot be injected.

use json_patch::PatchOperation;
use serde_json::{Value, json};

use super::edit::{Editor, Odd, hollow};
use super::record::Record;
use super::{DEFAULT_ORIGIN, Mode, Path, Settings, Sourced, mode, obstacles, path, uninject};
use crate::validation::Problem;

/// The stored template and its record, on an update.
#[derive(Clone, Copy, Debug)]
pub struct Previous<'a> {
    /// The stored template.
    pub template: &'a Value,
    /// The stored record.
    pub record: &'a Record,
}

/// A template with the executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// The template after the injection.
    pub template: Value,
    /// What leads to it; paths are relative to the template. Empty when nothing is to do.
    pub operations: Vec<PatchOperation>,
    /// What is ours in it.
    pub record: Record,
}

/// When a value of ours is taken anew.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// When an upgrade is asked for: a changed setting never rolls a pool by itself.
    Settings,
    /// Whenever the template changes: it repeats something that stands there.
    Template,
}

/// Adds the executor to `template`, or completes the one that the user wrote. What was added for the
/// other mode is taken away first.
///
/// Fields that are set stay; fields that are missing are filled from what the stored object had, else
/// from `settings`. `own` is the record that the object itself carries. With `take_new`, values of
/// ours are taken from `settings` again.
///
/// # Errors
///
/// Every reason why this template cannot carry the executor, with path and remedy.
pub fn inject(
    template: &Value,
    mode: Mode,
    own: &Record,
    previous: Option<Previous<'_>>,
    settings: &Settings,
    take_new: bool,
) -> Result<Injection, Vec<Problem>> {
    let mut template = template.clone();
    let mut operations = uninject::leave(&mut template, mode.other(), own, previous);
    let problems = obstacles::find(&template, mode);
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut run = Run {
        editor: Editor::new(template),
        own,
        previous,
        settings,
        take_new,
    };
    let added = match mode {
        Mode::Sidecar => run.sidecar(),
        Mode::InContainer => run.installer(),
    };
    let Run { editor, .. } = run;
    added.map_err(|odd| {
        vec![obstacles::invalid(
            &odd.path.to_string(),
            odd.path.get(editor.document()),
            format!("must be {}", odd.wanted),
        )]
    })?;
    let (document, further, mut record) = editor.finish("");
    operations.extend(further);
    keep_bookkeeping(&mut record, &document, own, previous);
    Ok(Injection {
        template: document,
        operations,
        record,
    })
}

/// Carries over what earlier runs noted about parents and replaced values, as far as it still holds.
fn keep_bookkeeping(
    record: &mut Record,
    document: &Value,
    own: &Record,
    previous: Option<Previous<'_>>,
) {
    let earlier = previous
        .map(|previous| previous.record)
        .into_iter()
        .chain([own]);
    for earlier in earlier {
        for parent in &earlier.parents {
            let stands = Path::parse(parent).is_some_and(|path| path.get(document).is_some());
            if stands {
                record.parents.insert(parent.clone());
            }
        }
        for (path, before) in &earlier.replaced {
            record
                .replaced
                .entry(path.clone())
                .or_insert_with(|| before.clone());
        }
    }
    let Record {
        added,
        parents,
        replaced,
    } = record;
    // What stands inside an added container goes with it and needs no entry.
    let containers: Vec<String> = mode::containers()
        .map(|container| container.to_string())
        .filter(|container| added.contains_key(container))
        .collect();
    let goes_with_a_container = |path: &str| {
        containers
            .iter()
            .any(|container| path.starts_with(container))
    };
    parents.retain(|parent| !goes_with_a_container(parent));
    replaced.retain(|path, _| {
        (added.contains_key(path) || parents.contains(path)) && !goes_with_a_container(path)
    });
}

/// One injection under way.
pub(super) struct Run<'a> {
    pub(super) editor: Editor,
    own: &'a Record,
    previous: Option<Previous<'a>>,
    pub(super) settings: &'a Settings,
    take_new: bool,
}

impl Run<'_> {
    /// Makes sure that a container of ours stands at `path`: what the user wrote, else what was stored, else
    /// a new one at the end of its list.
    pub(super) fn own_container(&mut self, path: &Path) -> Result<(), Odd> {
        if path.get(self.editor.document()).is_some() {
            if self.is_ours(path) {
                self.note(path, DEFAULT_ORIGIN);
            }
            return Ok(());
        }
        let (Some(list), Some(name)) = (path.parent(), path.last()) else {
            return Ok(());
        };
        self.editor.list(&list)?;
        let stored = self
            .previous
            .filter(|previous| previous.record.has(path))
            .and_then(|previous| {
                let stored = path.get(previous.template)?.clone();
                Some((stored, stored_index(previous, &list, name.text())))
            });
        let (value, index) = stored.unwrap_or_else(|| (json!({ "name": name.text() }), usize::MAX));
        self.editor.set_at(path, value, index);
        self.note(path, DEFAULT_ORIGIN);
        Ok(())
    }

    /// Sets a missing item of a list that is merged by key; the list is made if need be.
    pub(super) fn fill_item(
        &mut self,
        list: &Path,
        key: &str,
        wanted: Sourced<Value>,
        follows: Follows,
    ) -> Result<(), Odd> {
        self.editor.list(list)?;
        self.fill(&list.key(key), wanted, follows);
        Ok(())
    }

    /// Keeps an item of ours for which there is no setting any more: nothing is ever removed.
    pub(super) fn keep_item(&mut self, list: &Path, key: &str) -> Result<(), Odd> {
        let path = list.key(key);
        let stored = self.stored(&path).cloned();
        if path.get(self.editor.document()).is_none() && stored.is_some() {
            self.editor.list(list)?;
        }
        self.keep(&path);
        Ok(())
    }

    pub(super) fn keep(&mut self, path: &Path) {
        if let Some((value, origin)) = self.kept(path) {
            if path.get(self.editor.document()).is_none_or(hollow) {
                if path
                    .parent()
                    .and_then(|parent| parent.get(self.editor.document()).map(|_| ()))
                    .is_none()
                {
                    return;
                }
                self.editor.set(path, value);
            }
            self.note(path, &origin);
        }
    }

    /// A value of ours as it stands or stood, with its origin.
    fn kept(&self, path: &Path) -> Option<(Value, String)> {
        let origin = self.origin(path)?.to_owned();
        match path
            .get(self.editor.document())
            .filter(|value| !hollow(value))
        {
            Some(value) => self.is_ours(path).then(|| (value.clone(), origin)),
            None => self.stored(path).map(|value| (value.clone(), origin)),
        }
    }

    /// The rule of every single value: what the user set stays; what is missing comes from the stored
    /// object if it was ours there, else from the settings; what is ours follows what it follows.
    pub(super) fn fill(&mut self, path: &Path, wanted: Sourced<Value>, follows: Follows) {
        let take_new = self.take_new || follows == Follows::Template;
        let current = path
            .get(self.editor.document())
            .filter(|value| !hollow(value));
        let Some(current) = current else {
            let stored = self.stored(path).filter(|_| !take_new).cloned();
            let (value, origin) = match (stored, self.origin(path)) {
                (Some(stored), Some(origin)) => (stored, origin.to_owned()),
                _ => (wanted.value, wanted.origin),
            };
            self.editor.set(path, value);
            self.note(path, &origin);
            return;
        };
        if take_new && self.was_ours(path) && *current == wanted.value {
            // Also on a second pass over the same update, when the first has set it already.
            self.note(path, &wanted.origin);
            return;
        }
        if !self.is_ours(path) {
            return;
        }
        if take_new {
            self.editor.set(path, wanted.value);
            self.note(path, &wanted.origin);
        } else {
            let origin = self.origin(path).unwrap_or(DEFAULT_ORIGIN).to_owned();
            self.note(path, &origin);
        }
    }

    pub(super) fn note(&mut self, path: &Path, origin: &str) {
        self.editor
            .record
            .added
            .insert(path.to_string(), origin.to_owned());
    }

    /// Whether a record lists the value at this path.
    pub(super) fn was_ours(&self, path: &Path) -> bool {
        self.own.has(path)
            || self
                .previous
                .is_some_and(|previous| previous.record.has(path))
    }

    /// Whether the value at this path is ours and nobody changed it since it was stored.
    pub(super) fn is_ours(&self, path: &Path) -> bool {
        is_ours(path, self.editor.document(), self.own, self.previous)
    }

    /// What the stored object had at this path, if it was ours there.
    fn stored(&self, path: &Path) -> Option<&Value> {
        let previous = self.previous.filter(|previous| previous.record.has(path))?;
        path.get(previous.template).filter(|value| !hollow(value))
    }

    fn origin(&self, path: &Path) -> Option<&str> {
        self.previous
            .and_then(|previous| previous.record.origin(path))
            .or_else(|| self.own.origin(path))
    }
}

/// Whether the value at this path of `document` is ours and nobody changed it since it was stored.
pub(super) fn is_ours(
    path: &Path,
    document: &Value,
    own: &Record,
    previous: Option<Previous<'_>>,
) -> bool {
    let Some(previous) = previous else {
        return own.has(path);
    };
    if !previous.record.has(path) {
        // Added since it was stored, by an earlier pass over this same request.
        return own.has(path);
    }
    // A container is told by its name; its fields are judged one by one.
    mode::containers().any(|container| container == *path)
        || path.get(previous.template) == path.get(document)
}

/// Where the stored object had an item, so that restoring it changes nothing: at the end if it was last.
fn stored_index(previous: Previous<'_>, list: &Path, key: &str) -> usize {
    let items = list
        .get(previous.template)
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let name = list.last().map_or("", super::Segment::text);
    match path::index_of(items, name, key) {
        Some(index) if index + 1 < items.len() => index,
        _ => usize::MAX,
    }
}

pub(super) fn built_in(value: Value) -> Sourced<Value> {
    Sourced {
        value,
        origin: DEFAULT_ORIGIN.to_owned(),
    }
}
