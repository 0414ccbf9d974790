//! What tests and the demo stand on: a real local Kubernetes, the project's own programs as
//! processes, and the certainty that all of it is gone afterwards.
//!
//! - [`cluster`]: [`shared`](cluster::shared) and [`LocalCluster`], a kube-apiserver with its etcd.
//! - [`kubernetes`]: where the programs of Kubernetes come from.
//! - [`component`], [`credentials`]: what a cluster consists of, as data.
//! - [`node`]: a [`Node`] on top of it: kubelet and containerd, so that pods run.
//! - [`images`], [`pods`]: images made without a registry, and pods of them.
//! - [`executor`]: a client of the task executor's API, and pods with an executor that is asked.
//! - [`guard`], [`process`]: programs that end with the test that started them.
//! - [`programs`]: the programs of this workspace, built when needed.
//! - [`administrator`], [`installation`]: what config/ holds, installed, and the webhook running.
//! - [`demo`]: `cargo demo`.
//! - [`wait`], [`http`]: waiting for a state, and one GET.
//!
//! It knows the project's programs as files only, and none of their code.

#![forbid(unsafe_code)]

pub mod administrator;
pub mod balancer;
pub mod cluster;
pub mod component;
pub mod credentials;
pub mod demo;
pub mod executor;
pub mod guard;
pub mod http;
pub mod images;
pub mod installation;
pub mod kubernetes;
pub mod node;
pub mod pods;
pub mod process;
pub mod programs;
mod progress;
pub mod wait;

pub use self::cluster::{LocalCluster, Settings, TestNamespace};
pub use self::guard::Guard;
pub use self::node::Node;
pub use self::process::{Launch, Program};
