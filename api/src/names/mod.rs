//! What a name must look like, and the names that are made of others.
//!
//! In: text from users, from the wire, from object metadata. Out: a validated newtype, or an error
//! that names the rule, the value and the remedy. Pure, and without any Kubernetes type, so that the
//! executor uses the same rules.
//!
//! Sources: "Object Names and IDs" and "Labels and Selectors" of the Kubernetes documentation; RFC
//! 1123. A Pool's and a BatchSandbox's name has to be a label value as well, because pods carry it:
//! that bounds it at 63 characters. Names of pods made from it then always fit their own limit of
//! 253. They can pass 63, the length of a host name; the kubelet then cuts the host name inside the
//! pod, nothing else changes ([`host_name_is_cut`]).

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest label value, DNS label and host name.
pub const MAX_LABEL: usize = 63;

/// Longest DNS subdomain, and so the longest name of an object.
pub const MAX_SUBDOMAIN: usize = 253;

/// A name that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {}: {rule}", Shown(.value))]
pub struct Error {
    /// What the name was to be, such as `Pool name`.
    pub what: &'static str,
    /// The name as it was given.
    pub value: String,
    /// The rule that it breaks, with the remedy.
    pub rule: Rule,
}

/// The rules of names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// Nothing was given.
    #[error("must not be empty; give it a value")]
    Empty,
    /// Too many bytes, which for every allowed character are characters.
    #[error("has {length} characters, at most {max} are allowed; shorten it")]
    TooLong {
        /// Length found.
        length: usize,
        /// Length allowed.
        max: usize,
    },
    /// A character that may not occur.
    #[error("contains {found:?}; use only {allowed}")]
    Character {
        /// The first such character.
        found: char,
        /// The characters allowed.
        allowed: &'static str,
    },
    /// A character that may only stand inside.
    #[error(
        "must begin and end with a letter or digit, in each part between dots and slashes; remove or replace the {found:?} there"
    )]
    Edge {
        /// The character at the edge.
        found: char,
    },
    /// Nothing before, after or between dots or slashes.
    #[error("has an empty part before, after or between its dots and slashes; fill or remove it")]
    EmptyPart,
    /// More than one slash in a key.
    #[error("has more than one slash; write it as PREFIX/NAME or NAME")]
    Slashes,
    /// Not of the form of a task's identity.
    #[error("is not of the form UID.INDEX.ATTEMPT; take it from the operator unchanged")]
    NotAnIdentity,
    /// `.` or `..`, which are directories.
    #[error("must not be \".\" or \"..\"; choose another one")]
    Dots,
}

/// A value as it is shown in a message: quoted, and cut where it is long.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 80;
        match self.0.char_indices().nth(LONGEST) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}

const LOWER: &str = "lower case letters, digits and '-'";
const LOWER_DOTS: &str = "lower case letters, digits, '-' and '.'";
const WORD: &str = "letters, digits, '-', '_' and '.'";

/// Checks a DNS label (RFC 1123): the name of a container, of a namespace, of a volume.
///
/// # Errors
///
/// The rule that the value breaks.
pub fn dns_label(what: &'static str, value: &str) -> Result<(), Error> {
    checked(what, value, || {
        length(value, MAX_LABEL)?;
        characters(value, LOWER, |c| is_lower(c) || c == '-')?;
        edges(value)
    })
}

/// Checks a DNS subdomain (RFC 1123): the name of most objects.
///
/// # Errors
///
/// The rule that the value breaks.
pub fn dns_subdomain(what: &'static str, value: &str) -> Result<(), Error> {
    checked(what, value, || subdomain(value))
}

/// Checks a label value, which may be empty.
///
/// # Errors
///
/// The rule that the value breaks.
pub fn label_value(what: &'static str, value: &str) -> Result<(), Error> {
    checked(what, value, || {
        if value.is_empty() {
            Ok(())
        } else {
            word(value)
        }
    })
}

/// Checks the key of a label or annotation: `NAME` or `PREFIX/NAME` with a DNS subdomain as prefix.
///
/// # Errors
///
/// The rule that the value breaks.
pub fn qualified_key(what: &'static str, value: &str) -> Result<(), Error> {
    checked(what, value, || match value.split_once('/') {
        _ if value.is_empty() => Err(Rule::Empty),
        None => word(value),
        Some((_, name)) if name.contains('/') => Err(Rule::Slashes),
        Some((prefix, name)) if prefix.is_empty() || name.is_empty() => Err(Rule::EmptyPart),
        Some((prefix, name)) => {
            subdomain(prefix)?;
            word(name)
        }
    })
}

/// Whether the kubelet shortens this pod name to make the host name inside the pod.
pub fn host_name_is_cut(pod_name: &str) -> bool {
    pod_name.len() > MAX_LABEL
}

fn checked(
    what: &'static str,
    value: &str,
    check: impl FnOnce() -> Result<(), Rule>,
) -> Result<(), Error> {
    check().map_err(|rule| Error {
        what,
        value: value.to_owned(),
        rule,
    })
}

fn length(value: &str, max: usize) -> Result<(), Rule> {
    match value.len() {
        0 => Err(Rule::Empty),
        length if length > max => Err(Rule::TooLong { length, max }),
        _ => Ok(()),
    }
}

fn characters(
    value: &str,
    allowed: &'static str,
    is_allowed: impl Fn(char) -> bool,
) -> Result<(), Rule> {
    match value.chars().find(|c| !is_allowed(*c)) {
        Some(found) => Err(Rule::Character { found, allowed }),
        None => Ok(()),
    }
}

fn edges(value: &str) -> Result<(), Rule> {
    let ends = [value.chars().next(), value.chars().next_back()];
    match ends
        .into_iter()
        .flatten()
        .find(|c| !c.is_ascii_alphanumeric())
    {
        Some(found) => Err(Rule::Edge { found }),
        None => Ok(()),
    }
}

fn subdomain(value: &str) -> Result<(), Rule> {
    length(value, MAX_SUBDOMAIN)?;
    characters(value, LOWER_DOTS, |c| is_lower(c) || c == '-' || c == '.')?;
    if value.split('.').any(str::is_empty) {
        return Err(Rule::EmptyPart);
    }
    value.split('.').try_for_each(edges)
}

fn word(value: &str) -> Result<(), Rule> {
    length(value, MAX_LABEL)?;
    characters(value, WORD, |c| {
        c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
    })?;
    edges(value)
}

fn is_lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// A name that pods carry as a label value and begin their own name with.
fn name_of_pods_owner(value: &str) -> Result<(), Rule> {
    length(value, MAX_LABEL)?;
    subdomain(value)
}

/// A task's name as the executor takes it: upstream names tasks freely, and keeps each in a directory
/// of that name.
fn task_name(value: &str) -> Result<(), Rule> {
    length(value, MAX_SUBDOMAIN)?;
    characters(value, "anything but '/' and control characters", |c| {
        c != '/' && !c.is_control()
    })?;
    if value == "." || value == ".." {
        Err(Rule::Dots)
    } else {
        Ok(())
    }
}

/// The UID of an object. Kubernetes makes UUIDs and promises nothing; what is used here, and can stand
/// in a path or a label, is the form of a label value.
fn uid(value: &str) -> Result<(), Rule> {
    length(value, MAX_LABEL)?;
    characters(value, "letters, digits and '-'", |c| {
        c.is_ascii_alphanumeric() || c == '-'
    })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(value: String) -> Result<Self, Error> {
                match $check(&value) {
                    Ok(()) => Ok(Self(value)),
                    Err(rule) => Err(Error { what: $what, value, rule }),
                }
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(value: &str) -> Result<Self, Error> {
                value.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Name of a Pool: a DNS subdomain of at most 63 characters.
    PoolName,
    "Pool name",
    name_of_pods_owner
);
name!(
    /// Name of a BatchSandbox: a DNS subdomain of at most 63 characters.
    SandboxName,
    "BatchSandbox name",
    name_of_pods_owner
);
name!(
    /// Name of a task on one executor. Ours are [`SandboxName::task_name`]; others may come from
    /// upstream's clients, so only what would leave its directory or a line of a log is refused.
    TaskName,
    "task name",
    task_name
);
name!(
    /// UID of a BatchSandbox.
    SandboxUid,
    "BatchSandbox UID",
    uid
);

impl PoolName {
    /// Name of a pod of this pool, `<pool>-<suffix>`.
    ///
    /// # Errors
    ///
    /// If the suffix does not make a name of a pod.
    pub fn pod_name(&self, suffix: &str) -> Result<String, Error> {
        let name = format!("{self}-{suffix}");
        dns_subdomain("pod name", &name)?;
        Ok(name)
    }
}

impl SandboxName {
    /// Name of the pod of sandbox `index`, if it is made from a template: `<batchsandbox>-<index>`.
    pub fn pod_name(&self, index: u32) -> String {
        format!("{self}-{index}")
    }

    /// Name of the task of sandbox `index`: `<batchsandbox>-<index>`, as upstream's.
    pub fn task_name(&self, index: u32) -> TaskName {
        TaskName(format!("{self}-{index}"))
    }

    /// The index in a name made by [`Self::pod_name`] or [`Self::task_name`]; `None` for any other name.
    pub fn index_in(&self, name: &str) -> Option<u32> {
        let index = name.strip_prefix(self.as_str())?.strip_prefix('-')?;
        index
            .parse()
            .ok()
            .filter(|parsed: &u32| parsed.to_string() == index)
    }
}

/// Which run of which task this is. Unlike an address or a name it never comes back, so a result
/// with another identity is another task's.
///
/// Its text form `UID.INDEX.ATTEMPT` is the `uid` of a task on the wire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskIdentity {
    /// UID of the BatchSandbox.
    pub sandbox: SandboxUid,
    /// Index of the sandbox, from 0.
    pub index: u32,
    /// Which run of the task, from 0.
    pub attempt: u32,
}

impl fmt::Display for TaskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sandbox,
            index,
            attempt,
        } = self;
        write!(f, "{sandbox}.{index}.{attempt}")
    }
}

impl FromStr for TaskIdentity {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self, Error> {
        let parsed = value.rsplit_once('.').and_then(|(rest, attempt)| {
            let (sandbox, index) = rest.rsplit_once('.')?;
            Some(Self {
                sandbox: sandbox.parse().ok()?,
                index: index.parse().ok()?,
                attempt: attempt.parse().ok()?,
            })
        });
        // One text for one identity: no sign, no leading zero.
        parsed
            .filter(|identity| identity.to_string() == value)
            .ok_or_else(|| Error {
                what: "task UID",
                value: value.to_owned(),
                rule: Rule::NotAnIdentity,
            })
    }
}

impl TryFrom<String> for TaskIdentity {
    type Error = Error;

    fn try_from(value: String) -> Result<Self, Error> {
        value.parse()
    }
}

impl From<TaskIdentity> for String {
    fn from(identity: TaskIdentity) -> Self {
        identity.to_string()
    }
}
