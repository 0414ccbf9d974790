//! Reads of a Pool only what the rules look at.
//!
//! A Pool in a review is mostly environment variables, affinity, `managedFields` and the annotation of
//! client-side apply; building values of them would be most of a review's cost. This reads the fields
//! that a rule or the injection looks at, and scans over the rest. Lists keep every item, so that
//! indices are right. Containers and volumes of ours are kept whole, for they may have to be restored.
//!
//! Invariant: every answer is the same as for the whole Pool. A property test compares the two, so a
//! rule that looks at a field not kept here is found.

use std::borrow::Cow;
use std::fmt;

use opensandbox_api::labels;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A Pool without what no rule looks at. What is not an object where one is expected is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool(pub Value);

impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Part::Pool.deserialize(deserializer).map(Self)
    }
}

/// Names of containers and volumes that are read whole: they may have to be restored.
const OURS: [&str; 2] = [labels::TASK_EXECUTOR, labels::TASK_EXECUTOR_INSTALLER];

/// Where in a Pool a reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Pool,
    /// `metadata` of the Pool.
    Metadata,
    /// Labels or annotations of the Pool: ours only.
    Ours,
    Spec,
    Template,
    PodSpec,
    Containers,
    Container,
    Volumes,
    Volume,
    /// Everything.
    Whole,
}

impl Part {
    /// What becomes of a field here: read as which part, or scanned over.
    fn field(self, name: &str) -> Option<Self> {
        match (self, name) {
            (Self::Pool, "metadata") => Some(Self::Metadata),
            (Self::Pool, "spec") => Some(Self::Spec),
            (Self::Metadata, "labels" | "annotations") => Some(Self::Ours),
            (Self::Ours, name) => name.starts_with(labels::GROUP).then_some(Self::Whole),
            (Self::Spec, "template") => Some(Self::Template),
            (Self::Template, "spec") => Some(Self::PodSpec),
            (Self::PodSpec, "containers" | "initContainers") => Some(Self::Containers),
            (Self::PodSpec, "volumes") => Some(Self::Volumes),
            (Self::Metadata, "name" | "generateName" | "namespace" | "deletionTimestamp")
            | (
                Self::Spec,
                "capacitySpec" | "scaleStrategy" | "updateStrategy" | "recycleStrategy",
            )
            // Whether anything is left in it is looked at when what was added is taken away.
            | (Self::Template, "metadata")
            | (
                Self::PodSpec,
                "shareProcessNamespace" | "hostPID" | "os" | "securityContext" | "restartPolicy",
            )
            | (
                Self::Container,
                "name" | "image" | "command" | "args" | "ports" | "resources" | "restartPolicy",
            )
            | (Self::Volume, "name")
            | (Self::Whole, _) => Some(Self::Whole),
            _ => None,
        }
    }

    /// What the items of a list here are read as.
    fn item(self) -> Self {
        match self {
            Self::Containers => Self::Container,
            Self::Volumes => Self::Volume,
            _ => Self::Whole,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self == Self::Whole {
            return Value::deserialize(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        // Fields that matter only if the container or volume turns out to be one of ours.
        let mut aside: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
        while let Some(Key(key)) = access.next_key()? {
            if let Some(part) = self.field(&key) {
                let value = access.next_value_seed(part)?;
                map.insert(key.into_owned(), value);
            } else if matches!(self, Self::Container | Self::Volume) {
                aside.push((key, access.next_value()?));
            } else {
                access.next_value::<IgnoredAny>()?;
                if self == Self::Ours && map.is_empty() {
                    // Whether it is empty is looked at.
                    map.insert(key.into_owned(), Value::Null);
                }
            }
        }
        let name = map.get("name").and_then(Value::as_str);
        if name.is_some_and(|name| OURS.contains(&name)) {
            for (key, raw) in aside {
                let value = serde_json::from_str(raw.get()).map_err(A::Error::custom)?;
                map.insert(key.into_owned(), value);
            }
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self.item())? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// A key, borrowed from the body unless it has escapes.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowing;
        impl<'de> Visitor<'de> for Borrowing {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrowing)
    }
}
