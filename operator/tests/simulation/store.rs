//! A model of the API server: objects as raw JSON with versions, UIDs, preconditions, finalizers.
//!
//! What is modelled is what decides races: every change counts one version up for all objects; a merge
//! patch may carry the version as precondition; an object with finalizers is first marked and goes when
//! they are gone; the status is changed by its own resource only; nothing changes where nothing differs.
//! Each change is appended to the log of its kind, from which watches read.

use std::collections::BTreeMap;
use std::sync::Arc;

use opensandbox_operator::write::WriteError;
use serde_json::{Value, json};

/// Namespace of everything.
pub(crate) const NAMESPACE: &str = "ns";

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Pool,
    Sandbox,
    Pod,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Pool, Self::Sandbox, Self::Pod];

    fn index(self) -> usize {
        match self {
            Self::Pool => 0,
            Self::Sandbox => 1,
            Self::Pod => 2,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Pool => "Pool",
            Self::Sandbox => "BatchSandbox",
            Self::Pod => "Pod",
        }
    }
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// The object after the change, or as it was last.
    pub(crate) object: Arc<Value>,
    pub(crate) gone: bool,
}

/// The API server.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<(Kind, String), Arc<Value>>,
    logs: [Vec<Entry>; 3],
    version: u64,
    uids: u64,
}

impl Store {
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Value>> {
        // A map of pairs with an owned half cannot be asked with a borrowed one.
        self.objects.get(&(kind, name.to_owned()))
    }

    pub(crate) fn all(&self, kind: Kind) -> impl Iterator<Item = (&str, &Arc<Value>)> {
        self.objects
            .iter()
            .filter(move |((of, _), _)| *of == kind)
            .map(|((_, name), object)| (name.as_str(), object))
    }

    /// All there is of a kind, as a list tells it.
    pub(crate) fn entries(&self, kind: Kind) -> impl Iterator<Item = Entry> {
        self.all(kind).map(|(name, object)| Entry {
            name: name.to_owned(),
            object: Arc::clone(object),
            gone: false,
        })
    }

    pub(crate) fn names(&self, kind: Kind) -> Vec<String> {
        self.all(kind).map(|(name, _)| name.to_owned()).collect()
    }

    pub(crate) fn log(&self, kind: Kind) -> &[Entry] {
        &self.logs[kind.index()]
    }

    pub(crate) fn create(
        &mut self,
        kind: Kind,
        mut object: Value,
        now: &str,
    ) -> Result<Arc<Value>, WriteError> {
        let name = text(&object, "/metadata/name")
            .unwrap_or_default()
            .to_owned();
        if name.is_empty() {
            return Err(refused("Invalid", "metadata.name: Required value"));
        }
        if self.get(kind, &name).is_some() {
            return Err(WriteError::AlreadyExists);
        }
        self.uids += 1;
        object["metadata"]["uid"] = json!(format!("{}-{}", kind.word().to_lowercase(), self.uids));
        object["metadata"]["namespace"] = json!(NAMESPACE);
        object["metadata"]["creationTimestamp"] = json!(now);
        object["metadata"]["generation"] = json!(1);
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
        if kind == Kind::Pod {
            object["status"] = json!({"phase": "Pending"});
        }
        Ok(self.put(kind, name, object))
    }

    /// A merge patch, of everything but the status.
    pub(crate) fn patch(
        &mut self,
        kind: Kind,
        name: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, WriteError> {
        let old = self.expected(kind, name, patch)?;
        let mut patch = patch.clone();
        if let Some(patch) = patch.as_object_mut() {
            patch.remove("status");
        }
        let mut new = (*old).clone();
        json_patch::merge(&mut new, &patch);
        for fixed in [
            "uid",
            "name",
            "namespace",
            "creationTimestamp",
            "deletionTimestamp",
            "resourceVersion",
            "generation",
        ] {
            match old["metadata"].get(fixed) {
                Some(value) => new["metadata"][fixed] = value.clone(),
                None => {
                    if let Some(metadata) = new["metadata"].as_object_mut() {
                        metadata.remove(fixed);
                    }
                }
            }
        }
        let finalizers = strings(&new["metadata"]["finalizers"]);
        if is_deleting(&old) {
            let had = strings(&old["metadata"]["finalizers"]);
            if finalizers.iter().any(|finalizer| !had.contains(finalizer)) {
                let message = "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted";
                return Err(refused("Invalid", message));
            }
        }
        if new == *old {
            return Ok(old);
        }
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] =
                json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        if is_deleting(&new) && finalizers.is_empty() && kind != Kind::Pod {
            return Ok(self.remove(kind, name, new));
        }
        Ok(self.put(kind, name.to_owned(), new))
    }

    /// Sets the whole status.
    pub(crate) fn put_status(
        &mut self,
        kind: Kind,
        name: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, WriteError> {
        let old = self.expected(kind, name, patch)?;
        let mut new = (*old).clone();
        new["status"] = patch["status"].clone();
        if new == *old {
            return Ok(old);
        }
        Ok(self.put(kind, name.to_owned(), new))
    }

    pub(crate) fn delete(
        &mut self,
        kind: Kind,
        name: &str,
        uid: Option<&str>,
        version: Option<u64>,
        now: &str,
    ) -> Result<(), WriteError> {
        let mut precondition = json!({"metadata": {}});
        if let Some(uid) = uid {
            precondition["metadata"]["uid"] = json!(uid);
        }
        if let Some(version) = version {
            precondition["metadata"]["resourceVersion"] = json!(version.to_string());
        }
        let old = self.expected(kind, name, &precondition)?;
        if is_deleting(&old) {
            return Ok(());
        }
        let mut new = (*old).clone();
        new["metadata"]["deletionTimestamp"] = json!(now);
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        new["metadata"]["generation"] = json!(generation + 1);
        // A pod on a node goes when its kubelet says so.
        let lingers = match kind {
            Kind::Pod => text(&old, "/spec/nodeName").is_some(),
            Kind::Pool | Kind::Sandbox => !strings(&old["metadata"]["finalizers"]).is_empty(),
        };
        if lingers {
            self.put(kind, name.to_owned(), new);
        } else {
            self.remove(kind, name, new);
        }
        Ok(())
    }

    /// The kubelet's last word on a pod.
    pub(crate) fn finish(&mut self, name: &str) {
        if let Some(object) = self.get(Kind::Pod, name) {
            let object = (**object).clone();
            self.remove(Kind::Pod, name, object);
        }
    }

    fn expected(&self, kind: Kind, name: &str, patch: &Value) -> Result<Arc<Value>, WriteError> {
        let old = self.get(kind, name).ok_or(WriteError::NotFound)?;
        for precondition in ["uid", "resourceVersion"] {
            if let Some(wanted) = patch["metadata"][precondition].as_str()
                && old["metadata"][precondition] != *wanted
            {
                return Err(WriteError::Conflict);
            }
        }
        Ok(Arc::clone(old))
    }

    fn put(&mut self, kind: Kind, name: String, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        self.logs[kind.index()].push(Entry {
            name: name.clone(),
            object: Arc::clone(&object),
            gone: false,
        });
        self.objects.insert((kind, name), Arc::clone(&object));
        object
    }

    fn remove(&mut self, kind: Kind, name: &str, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        self.logs[kind.index()].push(Entry {
            name: name.to_owned(),
            object: Arc::clone(&object),
            gone: true,
        });
        self.objects.remove(&(kind, name.to_owned()));
        object
    }
}

pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer)?.as_str()
}

pub(crate) fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid").unwrap_or_default()
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    text(object, "/metadata/deletionTimestamp").is_some()
}

/// Whether a pod ended and will never run again.
pub(crate) fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), Some("Failed" | "Succeeded"))
}

pub(crate) fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][key].as_str()
}

pub(crate) fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"][key].as_str()
}

/// The controller among the owners: kind and UID.
pub(crate) fn controller(object: &Value) -> Option<(&str, &str)> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    Some((owner["kind"].as_str()?, owner["uid"].as_str()?))
}

pub(crate) fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// The pods in one of the `alloc-` annotations; none where it cannot be read.
pub(crate) fn pods_in(annotation: Option<&str>) -> Vec<String> {
    let parsed: Option<Value> = annotation.and_then(|text| serde_json::from_str(text).ok());
    parsed
        .map(|value| strings(&value["pods"]))
        .unwrap_or_default()
}

fn refused(reason: &str, message: &str) -> WriteError {
    WriteError::Refused {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}
