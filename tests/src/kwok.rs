//! kwok: plays any number of nodes and the kubelets on them, so that pods become ready and end without
//! running. Built once from the Go module pinned in `tests/kwok`, like Kubernetes itself.
//!
//! A pod becomes ready as soon as it has a node. Without a scheduler it is to name one: `fake-0` and so on.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};

use crate::LocalCluster;
use crate::component::free_ports;
use crate::go_build::{self, Build};
use crate::installation::list;
use crate::process::{Launch, Program};

/// The release that `tests/kwok/go.mod` pins.
pub const VERSION: &str = "v0.7.0";

const SOURCES: [(&str, &str); 2] = [
    ("go.mod", include_str!("../kwok/go.mod")),
    ("go.sum", include_str!("../kwok/go.sum")),
];
/// Until it serves.
const START: Duration = Duration::from_secs(30);

/// kwok's program. Blocks while it is built.
///
/// # Errors
/// There is no Go, or no module proxy.
pub fn program() -> Result<PathBuf> {
    let build = Build {
        name: "kwok",
        title: "kwok",
        version: VERSION,
        sources: &SOURCES,
        arguments: go_build::arguments("-s -w"),
        package: "sigs.k8s.io/kwok/cmd/kwok",
        file: "kwok",
    };
    let directory = build.ensure(|_| Ok(())).map_err(|error| anyhow!(error))?;
    Ok(directory.join("kwok"))
}

/// kwok on a cluster, with nodes. Dropping it stops it; the nodes stay.
#[derive(Debug)]
pub struct Kwok {
    /// The process.
    pub program: Program,
}

impl Kwok {
    /// Starts it as administrator, with so many nodes, named `fake-N`, and what pods of the namespace
    /// `default` need besides.
    ///
    /// # Errors
    /// It cannot be built or started, or the API server refuses a node.
    pub async fn start(cluster: &LocalCluster, nodes: u32) -> Result<Self> {
        let path = tokio::task::spawn_blocking(program).await??;
        let [port] = free_ports()?;
        let launch = Launch::new("kwok", path).args([
            format!("--kubeconfig={}", cluster.kubeconfig().display()),
            "--manage-all-nodes=true".to_owned(),
            "--cidr=10.128.0.0/12".to_owned(),
            "--node-ip=10.64.0.1".to_owned(),
            format!("--server-address=127.0.0.1:{port}"),
        ]);
        let program = cluster.guard().run(launch).await?;
        let url = format!("http://127.0.0.1:{port}/healthz");
        program
            .wait_for_ok(&url, None, START)
            .await
            .with_context(|| program.log().unwrap_or_default())?;
        let mut nodes: Vec<_> = (0..nodes).map(node).collect();
        // Pods need one, and there is no controller that makes it.
        nodes.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": "default"},
        }));
        cluster
            .kubectl_with_input(&["create", "-f", "-"], &list(&nodes))
            .await?;
        Ok(Self { program })
    }
}

fn node(number: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": format!("fake-{number}"),
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/os": "linux", "type": "kwok"},
        },
        "status": {
            "allocatable": {"cpu": "1000", "memory": "1Ti", "pods": "5000"},
            "capacity": {"cpu": "1000", "memory": "1Ti", "pods": "5000"},
        },
    })
}
