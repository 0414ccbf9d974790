//! Types of `sandbox.opensandbox.io` and every pure rule on them.
//!
//! What more than one program must agree on lives here, once: the CRD types ([`v1alpha1`]), the
//! arithmetic of a pool's four numbers ([`capacity`]), what is refused and what is warned about
//! ([`validation`]), the injection of the executor ([`sidecar`]), strategic merge ([`shard_patch`]).
//! The webhook, the operator and the command line call the same functions; that is why they cannot
//! disagree.
//!
//! Nothing here has a client, a clock, a random source or does I/O: time and settings are parameters.
//!
//! Without the feature `crd` (on by default) only [`task`], [`names`] and [`labels`] remain: what the
//! executor needs, with neither kube nor k8s-openapi behind it.

#![forbid(unsafe_code)]

pub mod labels;
pub mod names;
pub mod task;
#[cfg(feature = "token")]
pub mod token;

#[cfg(feature = "crd")]
pub mod capacity;
#[cfg(feature = "crd")]
pub mod conditions;
#[cfg(feature = "crd")]
pub mod shard_patch;
#[cfg(feature = "crd")]
pub mod sidecar;
#[cfg(feature = "crd")]
pub mod template_hash;
#[cfg(feature = "crd")]
pub mod v1alpha1;
#[cfg(feature = "crd")]
pub mod validation;
