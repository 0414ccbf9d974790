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
//! - [`upstream`]: upstream's controller and executor.
//! - [`helm`], [`cert_manager`], [`kinds`]: Helm and cert-manager, and kinds of others.
//! - [`administrator`], [`installation`]: what config/ holds, installed, and the webhook running.
//! - [`demo`]: `cargo demo`.
//! - [`documents`]: what the documents print, and what runs it.
//! - [`wait`], [`http`]: waiting for a state, and one GET.
//!
//! It knows the project's programs as files only, and none of their code.

#![forbid(unsafe_code)]

pub mod administrator;
pub mod allocation;
pub mod balancer;
pub mod cert_manager;
pub mod cluster;
pub mod component;
pub mod credentials;
pub mod demo;
pub mod documents;
pub mod executor;
mod go_build;
pub mod guard;
pub mod helm;
pub mod http;
pub mod images;
pub mod installation;
pub mod kinds;
pub mod kubernetes;
pub mod kwok;
pub mod node;
pub mod operator;
pub mod pods;
pub mod process;
pub mod programs;
mod progress;
pub mod promtool;
pub mod rights;
pub mod upstream;
pub mod wait;

pub use self::cluster::{LocalCluster, Settings, TestNamespace};
pub use self::guard::Guard;
pub use self::node::Node;
pub use self::process::{Launch, Program};
