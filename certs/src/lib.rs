//! Serving certificates of a Kubernetes admission webhook.
//!
//! Two ways to get them, both behind one [`ServingCertificate`] that a TLS listener uses from its
//! first to its last connection:
//!
//! * [`managed`]: an authority in one Secret, shared by all replicas; each signs a short-lived leaf
//!   in memory; the authority is published in the `caBundle` of the webhook configurations.
//! * [`files`]: `tls.crt` and `tls.key` in a directory, as cert-manager and kubelet lay them out.
//!
//! Nothing here knows what the webhook is for: names, addresses and durations are parameters.
//! Either way [`Status`] says whether calls can succeed, which is proved by a handshake that trusts
//! the published bundle only.
//!
//! ```text
//! read configurations, then the Secret -> plan (pure) -> one step -> read again
//! ```
//!
//! `plan` holds the rules and the invariant, `view` its inputs, `ledger` the shared state, `authority` and `bundle` the
//! certificates, `secret` and `publish` the objects, `probe` the proof, `resolver` the swap.
//!
//! # Permissions
//!
//! The self-managed mode needs, in the namespace of the Secret:
//!
//! ```yaml
//! - apiGroups: [""]
//!   resources: [secrets]
//!   resourceNames: [NAME]
//!   verbs: [get, update, watch]
//! - apiGroups: [""]
//!   resources: [secrets]
//!   verbs: [create] # not needed when an empty Secret of that name is installed
//! ```
//!
//! and in the cluster (the mode with files needs `get` only, and only if it reads bundles back):
//!
//! ```yaml
//! - apiGroups: [admissionregistration.k8s.io]
//!   resources: [mutatingwebhookconfigurations, validatingwebhookconfigurations]
//!   resourceNames: [NAME]
//!   verbs: [get, patch, watch]
//! ```
//!
//! `watch` works with `resourceNames` because each watch selects `metadata.name`; `list` is not
//! used. `create` cannot be limited by name, since a request to create has none yet.

#![forbid(unsafe_code)]

pub mod authority;
pub mod bundle;
pub mod clock;
mod complaints;
pub mod files;
pub mod ledger;
pub mod managed;
pub mod plan;
pub mod probe;
pub mod publish;
pub mod resolver;
pub mod secret;
pub mod status;
pub mod view;

pub use resolver::ServingCertificate;
pub use status::{Status, Trigger};
pub use view::Timing;
