//! What is added to a pod template, and what cannot be injected.

use json_patch::PatchOperation;
use serde_json::{Value, json};

use super::edit::{Editor, Odd, hollow};
use super::record::Record;
use super::{
    DEFAULT_ORIGIN, Path, SYS_PTRACE, Settings, Sourced, default_resources, obstacles, path,
    readiness_probe,
};
use crate::labels;
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
enum Follows {
    /// When an upgrade is asked for: a changed setting never rolls a pool by itself.
    Settings,
    /// Whenever the template changes: it repeats something that stands there.
    Template,
}

/// Adds the executor to `template`, or completes the one that the user wrote.
///
/// Fields that are set stay; fields that are missing are filled from what the stored object had, else
/// from `settings`. `own` is the record that the object itself carries. With `take_new`, values of
/// ours are taken from `settings` again.
///
/// # Errors
///
/// Every reason why this template cannot carry the sidecar, with path and remedy.
pub fn inject(
    template: &Value,
    own: &Record,
    previous: Option<Previous<'_>>,
    settings: &Settings,
    take_new: bool,
) -> Result<Injection, Vec<Problem>> {
    let problems = obstacles::find(template);
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut run = Run {
        editor: Editor::new(template.clone()),
        own,
        previous,
        settings,
        take_new,
    };
    run.all().map_err(|odd| {
        vec![obstacles::invalid(
            &odd.path.to_string(),
            odd.path.get(template),
            format!("must be {}", odd.wanted),
        )]
    })?;
    let Run { editor, .. } = run;
    let (document, operations, mut record) = editor.finish("");
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
    let containers: Vec<String> = ["containers", "initContainers"]
        .iter()
        .map(|list| format!("spec.{list}[{}]", labels::TASK_EXECUTOR))
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
struct Run<'a> {
    editor: Editor,
    own: &'a Record,
    previous: Option<Previous<'a>>,
    settings: &'a Settings,
    take_new: bool,
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), Odd> {
        let spec = Path::root().field("spec");
        self.fill(
            &spec.field("shareProcessNamespace"),
            built_in(json!(true)),
            Follows::Settings,
        );
        let executor = self.container(&spec)?;
        let main = self.main_container(&spec);
        self.executor_fields(&executor, &main)?;
        let metadata = Path::root().field("metadata");
        self.editor.object(&metadata)?;
        let annotations = metadata.field("annotations");
        self.editor.object(&annotations)?;
        self.fill(
            &annotations.key(labels::DEFAULT_CONTAINER),
            built_in(json!(main)),
            Follows::Template,
        );
        Ok(())
    }

    /// The executor's container: where the user put it, where it was, or a new one at the end.
    fn container(&mut self, spec: &Path) -> Result<Path, Odd> {
        let sidecar = spec.field("containers").key(labels::TASK_EXECUTOR);
        let native = spec.field("initContainers").key(labels::TASK_EXECUTOR);
        let found = [sidecar.clone(), native]
            .into_iter()
            .find(|path| path.get(self.editor.document()).is_some());
        if let Some(path) = found {
            if self.is_ours(&path) {
                self.note(&path, DEFAULT_ORIGIN);
            }
            return Ok(path);
        }
        self.editor.list(&spec.field("containers"))?;
        let stored = self
            .previous
            .filter(|previous| previous.record.has(&sidecar))
            .and_then(|previous| {
                Some((
                    sidecar.get(previous.template)?.clone(),
                    Self::stored_index(previous, spec),
                ))
            });
        let (value, index) =
            stored.unwrap_or_else(|| (json!({ "name": labels::TASK_EXECUTOR }), usize::MAX));
        self.editor.set_at(&sidecar, value, index);
        self.note(&sidecar, DEFAULT_ORIGIN);
        Ok(sidecar)
    }

    /// Where the stored object had it, so that restoring it changes nothing: at the end if it was last.
    fn stored_index(previous: Previous<'_>, spec: &Path) -> usize {
        let containers = spec.field("containers");
        let items = containers
            .get(previous.template)
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        match path::index_of(items, "containers", labels::TASK_EXECUTOR) {
            Some(index) if index + 1 < items.len() => index,
            _ => usize::MAX,
        }
    }

    /// Name of the container that tasks are injected into: the one that the user's
    /// default-container annotation names, else the first.
    fn main_container(&self, spec: &Path) -> String {
        let document = self.editor.document();
        let containers = spec.field("containers");
        let annotation = Path::root()
            .field("metadata")
            .field("annotations")
            .key(labels::DEFAULT_CONTAINER);
        let named = annotation
            .get(document)
            .and_then(Value::as_str)
            .filter(|name| *name != labels::TASK_EXECUTOR && !self.is_ours(&annotation))
            .filter(|name| containers.key(name).get(document).is_some());
        named
            .or_else(|| obstacles::first_container(document))
            .unwrap_or_default()
            .to_owned()
    }

    fn executor_fields(&mut self, executor: &Path, main: &str) -> Result<(), Odd> {
        let Settings {
            image,
            verification_key,
        } = self.settings;
        let image_path = executor.field("image");
        let image = Sourced {
            value: json!(image.value),
            origin: image.origin.clone(),
        };
        self.fill(&image_path, image, Follows::Settings);
        self.fill(
            &executor.field("imagePullPolicy"),
            built_in(json!("IfNotPresent")),
            Follows::Settings,
        );
        self.fill(
            &executor.field("resources"),
            built_in(default_resources()),
            Follows::Settings,
        );
        self.capability(executor)?;
        self.root_user(executor)?;

        let port = labels::TASK_EXECUTOR_PORT;
        let ports = executor.field("ports");
        let entry =
            json!({ "name": labels::TASK_EXECUTOR, "containerPort": port, "protocol": "TCP" });
        self.fill_item(
            &ports,
            &port.to_string(),
            built_in(entry),
            Follows::Settings,
        )?;
        let probe = executor.field("readinessProbe");
        if self.was_ours(&probe) || self.answers_readyz(&image_path) {
            self.fill(&probe, built_in(readiness_probe()), Follows::Settings);
        }

        let env = executor.field("env");
        let name = json!({ "name": labels::MAIN_CONTAINER_NAME_ENV, "value": main });
        self.fill_item(
            &env,
            labels::MAIN_CONTAINER_NAME_ENV,
            built_in(name),
            Follows::Template,
        )?;
        if let Some(key) = verification_key {
            let entry = json!({ "name": labels::VERIFICATION_KEY_ENV, "value": key.value });
            let entry = Sourced {
                value: entry,
                origin: key.origin.clone(),
            };
            self.fill_item(&env, labels::VERIFICATION_KEY_ENV, entry, Follows::Settings)?;
        } else {
            self.keep_item(&env, labels::VERIFICATION_KEY_ENV)?;
        }
        Ok(())
    }

    /// SYS_PTRACE, unless something that includes it is there.
    fn capability(&mut self, executor: &Path) -> Result<(), Odd> {
        let context = executor.field("securityContext");
        let document = self.editor.document();
        if context.field("privileged").get(document) == Some(&Value::Bool(true)) {
            return Ok(());
        }
        let add = context.field("capabilities").field("add");
        let item = add.key(SYS_PTRACE);
        let others = add
            .get(document)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let included = others
            .clone()
            .any(|name| name != SYS_PTRACE && grants_ptrace(name));
        if included {
            return Ok(());
        }
        for parent in [&context, &context.field("capabilities")] {
            self.editor.object(parent)?;
        }
        self.editor.list(&add)?;
        self.fill(&item, built_in(json!(SYS_PTRACE)), Follows::Settings);
        Ok(())
    }

    /// A capability has no effect for a user other than root, so a pod that sets one for all its
    /// containers must except the executor.
    fn root_user(&mut self, executor: &Path) -> Result<(), Odd> {
        let pod = Path::root().field("spec").field("securityContext");
        let document = self.editor.document();
        let user = pod
            .field("runAsUser")
            .get(document)
            .and_then(Value::as_u64)
            .is_some_and(|user| user != 0);
        let not_root = pod.field("runAsNonRoot").get(document) == Some(&Value::Bool(true));
        let context = executor.field("securityContext");
        if user || not_root {
            self.editor.object(&context)?;
            self.fill(
                &context.field("runAsUser"),
                built_in(json!(0)),
                Follows::Settings,
            );
            self.fill(
                &context.field("runAsNonRoot"),
                built_in(json!(false)),
                Follows::Settings,
            );
        } else {
            self.keep(&context.field("runAsUser"));
            self.keep(&context.field("runAsNonRoot"));
        }
        Ok(())
    }

    /// Whether the image is known to answer `/readyz`: ours does, upstream's executor does not, and a
    /// pod with a probe that never succeeds is never ready.
    fn answers_readyz(&self, image_path: &Path) -> bool {
        if self.is_ours(image_path) || self.editor.record.has(image_path) {
            return true;
        }
        let Some(image) = image_path
            .get(self.editor.document())
            .and_then(Value::as_str)
        else {
            return false;
        };
        let known = [
            self.settings.image.value.as_str(),
            labels::DEFAULT_TASK_EXECUTOR_IMAGE,
        ];
        known
            .iter()
            .any(|known| repository(known) == repository(image))
    }

    /// Sets a missing item of a list that is merged by key; the list is made if need be.
    fn fill_item(
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
    fn keep_item(&mut self, list: &Path, key: &str) -> Result<(), Odd> {
        let path = list.key(key);
        let stored = self.stored(&path).cloned();
        if path.get(self.editor.document()).is_none() && stored.is_some() {
            self.editor.list(list)?;
        }
        self.keep(&path);
        Ok(())
    }

    fn keep(&mut self, path: &Path) {
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
    fn fill(&mut self, path: &Path, wanted: Sourced<Value>, follows: Follows) {
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

    fn note(&mut self, path: &Path, origin: &str) {
        self.editor
            .record
            .added
            .insert(path.to_string(), origin.to_owned());
    }

    /// Whether a record lists the value at this path.
    fn was_ours(&self, path: &Path) -> bool {
        self.own.has(path)
            || self
                .previous
                .is_some_and(|previous| previous.record.has(path))
    }

    /// Whether the value at this path is ours and nobody changed it since it was stored.
    fn is_ours(&self, path: &Path) -> bool {
        let Some(previous) = self.previous else {
            return self.own.has(path);
        };
        if !previous.record.has(path) {
            // Added since it was stored, by an earlier pass over this same request.
            return self.own.has(path);
        }
        // The container itself is told by its name; its fields are judged one by one.
        let is_container = path.last() == Some(super::Segment::Key(labels::TASK_EXECUTOR));
        is_container || path.get(previous.template) == path.get(self.editor.document())
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

fn built_in(value: Value) -> Sourced<Value> {
    Sourced {
        value,
        origin: DEFAULT_ORIGIN.to_owned(),
    }
}

/// Whether a capability, as written in a container's `add`, includes SYS_PTRACE.
fn grants_ptrace(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare == "ALL" || bare == SYS_PTRACE
}

/// An image reference without tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        // A colon before the last slash is a registry's port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}
