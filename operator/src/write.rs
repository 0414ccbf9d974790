//! What is asked of the API server, and how it answers: shared by everything that decides.
//!
//! Every write carries what it was decided from (UID, version), so that a decision made from a stale
//! picture is refused instead of applied. Data only.

use std::collections::BTreeMap;

use opensandbox_api::v1alpha1::BatchSandboxStatus;

use crate::view::Version;

/// Why a write did not happen, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The object is not what the decision was made from. Nothing was written.
    #[error("the object has changed meanwhile")]
    Conflict,
    /// There is no such object any more. Nothing was written.
    #[error("the object does not exist")]
    NotFound,
    /// An object of this name exists already. Nothing was written.
    #[error("an object of this name exists")]
    AlreadyExists,
    /// The API server says no and will say so again: quota, admission, validation, permission.
    #[error("refused: {message}")]
    Refused {
        /// Reason of the answer's status, such as `Forbidden` or `Invalid`.
        reason: String,
        /// Its message.
        message: String,
    },
    /// Nothing is known: no answer, or one that says nothing about the write. It may have happened.
    #[error("no clear answer: {message}")]
    Unclear {
        /// What came instead.
        message: String,
    },
    /// This process does not lead any more; nothing was sent.
    #[error("this replica no longer leads")]
    Fenced,
}

impl WriteError {
    /// One word for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Refused { .. } => "refused",
            Self::Unclear { .. } => "unclear",
            Self::Fenced => "fenced",
        }
    }
}

/// One merge patch on a BatchSandbox outside its status, with the version as precondition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxWrite {
    /// Version that the decision was made from.
    pub version: Version,
    /// Annotations to set, or to remove where `None`.
    pub annotations: BTreeMap<&'static str, Option<String>>,
    /// The whole list of finalizers, if it changes. The precondition makes this safe.
    pub finalizers: Option<Vec<String>>,
    /// `spec.poolRef`, if it changes: a `*` that was resolved.
    pub pool_ref: Option<String>,
}

/// One merge patch on the status of a BatchSandbox, with the version as precondition.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxStatusWrite {
    /// Version that the decision was made from.
    pub version: Version,
    /// The whole status.
    pub status: Box<BatchSandboxStatus>,
}

/// An event to be published about the object that decided it. Once per transition, never per pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `Warning` if true, else `Normal`.
    pub warning: bool,
    /// Reason, PascalCase.
    pub reason: &'static str,
    /// What was done or tried, PascalCase.
    pub action: &'static str,
    /// A sentence; cut at 1 KiB when published. Never holds a pod's spec or a task's environment.
    pub note: String,
}
