//! Starting the programs of a node, each of which is waited for until it works.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::components::{self, KUBE_PROXY_HEALTH_PORT, KUBELET_HEALTH_PORT, ServerFiles, Site};
use super::space::Space;
use super::{NODE_NAME, START_BOUND, import, packages};
use crate::component::{TOKEN_IDENTITY, free_ports};
use crate::credentials::write_private;
use crate::process::{Launch, Program};
use crate::{LocalCluster, images};

/// After the cluster, before what is inside the node.
const CONTROL_PLANE_RANK: u32 = 100;
const CONTROL_PLANE_GRACE: Duration = Duration::from_millis(200);

/// What is needed while programs are started.
pub(super) struct Starting<'a> {
    pub(super) cluster: &'a LocalCluster,
    pub(super) space: &'a Space,
    pub(super) site: &'a Site<'a>,
}

impl Starting<'_> {
    pub(super) async fn control_plane(&self) -> Result<Vec<Program>> {
        let [manager_port, scheduler_port] = free_ports()?;
        let start = async |name: &str, port: u16, args: Vec<String>| {
            let program = self.cluster.binaries().path(name);
            let launch = Launch {
                rank: CONTROL_PLANE_RANK,
                // They write nothing down, and wait long for what is under way.
                grace: CONTROL_PLANE_GRACE,
                ..Launch::new(name, program).args(args)
            };
            let program = self.cluster.guard().run(launch).await?;
            let url = format!("https://127.0.0.1:{port}/healthz");
            self.healthy(&program, &url).await?;
            Ok::<_, anyhow::Error>(program)
        };
        let name = "kube-controller-manager";
        let manager = self.site.controller_manager(
            &self.kubeconfig("system:kube-controller-manager", &[])?,
            &self.cluster.pki().key(TOKEN_IDENTITY),
            manager_port,
            &self.server(name, Ipv4Addr::LOCALHOST)?,
        );
        let manager = start(name, manager_port, manager);
        let name = "kube-scheduler";
        let scheduler = components::scheduler(
            &self.kubeconfig("system:kube-scheduler", &[])?,
            scheduler_port,
            &self.server(name, Ipv4Addr::LOCALHOST)?,
        );
        let scheduler = start(name, scheduler_port, scheduler);
        let (manager, scheduler) = tokio::try_join!(manager, scheduler)?;
        Ok(vec![manager, scheduler])
    }

    pub(super) async fn workers(&self, pause: &images::Image) -> Result<Vec<Program>> {
        let site = self.site;
        let containerd = self.containerd().await?;
        import(&site.containerd_socket(), pause).await?;

        let node = site.network.node();
        let server = self.server("kubelet", node)?;
        let config = self.write("kubelet.json", &site.kubelet(&server))?;
        let user = format!("system:node:{NODE_NAME}");
        let args = site.kubelet_args(&config, &self.kubeconfig(&user, &["system:nodes"])?);
        let url = format!("http://{node}:{KUBELET_HEALTH_PORT}/healthz");
        let kubelet = self.inside("kubelet", args, url);

        let kubeconfig = self.kubeconfig("system:kube-proxy", &[])?;
        let config = self.write("kube-proxy.json", &site.kube_proxy(&kubeconfig))?;
        let args = vec![format!("--config={}", config.display())];
        // It is healthy once it knows its node, which the kubelet makes known.
        let url = format!("http://{node}:{KUBE_PROXY_HEALTH_PORT}/livez");
        let proxy = self.inside("kube-proxy", args, url);
        let (kubelet, proxy) = tokio::try_join!(kubelet, proxy)?;
        Ok(vec![containerd, kubelet, proxy])
    }

    async fn containerd(&self) -> Result<Program> {
        let site = self.site;
        std::fs::create_dir(site.cni_directory())?;
        let conflist = site.cni_directory().join("10-opensandbox.conflist");
        std::fs::write(conflist, serde_json::to_vec_pretty(&site.cni())?)?;
        let config = site.directory.join("containerd.toml");
        std::fs::write(&config, site.containerd()?)?;
        let launch = Launch::new("containerd", packages::path_of("containerd")?)
            .args([format!("--config={}", config.display())])
            // Of the plugins, only those that are told: those in PATH need not be there for it.
            .env("PATH", search_path());
        let program = self.cluster.guard().run(self.space.inside(launch)?).await?;
        let booted = |line: &str| line.contains("containerd successfully booted");
        program
            .wait_for_line("that it works", START_BOUND, booted)
            .await?;
        Ok(program)
    }

    async fn inside(&self, name: &str, args: Vec<String>, url: String) -> Result<Program> {
        let launch = Launch::new(name, self.cluster.binaries().path(name))
            .args(args)
            .env("PATH", search_path());
        let program = self.cluster.guard().run(self.space.inside(launch)?).await?;
        self.healthy(&program, &url).await?;
        Ok(program)
    }

    async fn healthy(&self, program: &Program, url: &str) -> Result<()> {
        let tls = Some(self.cluster.tls());
        let result = program.wait_for_ok(url, tls, START_BOUND).await;
        result.with_context(|| {
            let log = program.log().unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(20).collect();
            let tail = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            format!("{}; its log ends with:\n{tail}", program.name())
        })
    }

    fn kubeconfig(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        self.cluster.kubeconfig_for(user, groups)
    }

    fn server(&self, name: &str, address: Ipv4Addr) -> Result<ServerFiles> {
        let (pki, address) = (self.cluster.pki(), address.to_string());
        let identity = self.cluster.authority().server(name, &[&address])?;
        Ok(ServerFiles {
            certificate: write_private(pki.certificate(name), &identity.certificate)?,
            key: write_private(pki.key(name), &identity.key)?,
        })
    }

    fn write(&self, name: &str, config: &Value) -> Result<PathBuf> {
        let path = self.site.directory.join(name);
        std::fs::write(&path, serde_json::to_vec_pretty(config)?)?;
        Ok(path)
    }
}

/// `PATH` with the directories of administrators, where runc and iptables are.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}
