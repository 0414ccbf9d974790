//! The programs of a node as data: arguments and configuration. Pure.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::NODE_NAME;
use super::network::Network;
use crate::component::{SERVICE_RANGE, flag};

/// The image of the container that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "opensandbox.local/pause:3.10";
/// Where kubelet and kube-proxy say that they work, on the node's address.
pub(super) const KUBELET_HEALTH_PORT: u16 = 10248;
pub(super) const KUBE_PROXY_HEALTH_PORT: u16 = 10256;
/// Directory of what is known of the addresses of pods, one directory for each network.
pub(super) const ADDRESSES: &str = "addresses";
/// The network of pods.
pub(super) const POD_NETWORK: &str = "opensandbox";
/// There is no DNS server; the kubelet complains at each pod if there is no address for one.
const CLUSTER_DNS: &str = "10.96.0.10";

/// Certificate and key of a server.
#[derive(Clone, Debug)]
pub(super) struct ServerFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// What the configuration is made from.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// The node's directory.
    pub(super) directory: &'a Path,
    pub(super) network: Network,
    /// Above the groups of all pods.
    pub(super) control_group: &'a str,
    /// Where the plugins of CNI are.
    pub(super) cni_plugins: &'a Path,
    pub(super) authority: PathBuf,
}

impl Site<'_> {
    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    pub(super) fn cni_directory(&self) -> PathBuf {
        self.directory.join("cni")
    }

    /// Both who look for plugins make the directory if it is not there.
    fn volume_plugins(&self) -> PathBuf {
        self.directory.join("volume-plugins")
    }

    /// The arguments of the controller manager, with `port` on 127.0.0.1.
    pub(super) fn controller_manager(
        &self,
        kubeconfig: &Path,
        token_key: &Path,
        port: u16,
        server: &ServerFiles,
    ) -> Vec<String> {
        let mut args = control_plane(kubeconfig, port, server);
        args.extend([
            "--allocate-node-cidrs=true".to_owned(),
            // All of it is the one node's.
            format!("--cluster-cidr={}", self.network.pods()),
            format!("--node-cidr-mask-size={}", Network::PODS_PREFIX),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--use-service-account-credentials=true".to_owned(),
            flag("root-ca-file", &self.authority),
            flag("service-account-private-key-file", token_key),
            flag("flex-volume-plugin-dir", &self.volume_plugins()),
        ]);
        args
    }

    /// containerd's configuration, TOML. Version 2 of the format is read by 1.6 and all later.
    pub(super) fn containerd(&self) -> Result<String> {
        let path = |path: PathBuf| quoted(&path);
        let at = |name: &str| path(self.directory.join(name));
        Ok(format!(
            r#"version = 2
root = {root}
state = {state}
# Those for file systems that the node's directory is not on.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = {socket}

[plugins."io.containerd.internal.v1.opt"]
path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Scores cannot be lowered where CAP_SYS_RESOURCE is missing.
restrict_oom_score_adj = true
# A profile would stay loaded in the kernel.
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins}
conf_dir = {cni}

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
            root = at("containerd/root")?,
            state = at("containerd/state")?,
            opt = at("containerd/opt")?,
            socket = path(self.containerd_socket())?,
            plugins = quoted(self.cni_plugins)?,
            cni = path(self.cni_directory())?,
        ))
    }

    /// How pods are connected. In this version of the format for the plugins of older systems.
    pub(super) fn cni(&self) -> Value {
        json!({
            "cniVersion": "0.4.0",
            "name": POD_NETWORK,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.network.pods()}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": self.directory.join(ADDRESSES),
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    pub(super) fn kubelet(&self, server: &ServerFiles) -> Value {
        let address = self.network.node();
        let never = "0%";
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": address,
            "port": 10250,
            "readOnlyPort": 0,
            "healthzBindAddress": address,
            "healthzPort": KUBELET_HEALTH_PORT,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.authority},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": server.certificate,
            "tlsPrivateKeyFile": server.key,
            "rotateCertificates": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.control_group),
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd_socket().display()),
            "podLogsDir": self.directory.join("pod-logs"),
            "volumePluginDir": self.volume_plugins(),
            "clusterDNS": [CLUSTER_DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": "/etc/resolv.conf",
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "maxPods": 250,
            "serializeImagePulls": false,
            // Tests crash containers often, and wait for each to come back.
            "featureGates": {"KubeletCrashLoopBackOffMax": true},
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
            // A machine with a full disk is no reason to evict the pods of a test, nor its images.
            "evictionHard": {
                "memory.available": never,
                "nodefs.available": never,
                "nodefs.inodesFree": never,
                "imagefs.available": never,
                "imagefs.inodesFree": never,
            },
            "imageGCHighThresholdPercent": 100,
            // Tests that kill a container many times do not wait for minutes.
            "featureGates": {"KubeletCrashLoopBackOffMax": true},
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
            // No limits on events and requests that would delay tests.
            "eventRecordQPS": 0,
            "kubeAPIQPS": 500,
            "kubeAPIBurst": 1000,
        })
    }

    pub(super) fn kubelet_args(&self, config: &Path, kubeconfig: &Path) -> Vec<String> {
        vec![
            flag("config", config),
            flag("kubeconfig", kubeconfig),
            flag("root-dir", &self.directory.join("kubelet")),
            flag("cert-dir", &self.directory.join("kubelet-pki")),
            format!("--hostname-override={NODE_NAME}"),
            format!("--node-ip={}", self.network.node()),
        ]
    }

    pub(super) fn kube_proxy(&self, kubeconfig: &Path) -> Value {
        let address = |port| format!("{}:{port}", self.network.node());
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": kubeconfig},
            "clusterCIDR": self.network.pods(),
            "hostnameOverride": NODE_NAME,
            "mode": "iptables",
            // The limits of connection tracking are the machine's.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "healthzBindAddress": address(KUBE_PROXY_HEALTH_PORT),
            "metricsBindAddress": address(10249),
            "oomScoreAdj": 0,
        })
    }
}

/// The arguments of the scheduler, with `port` on 127.0.0.1.
pub(super) fn scheduler(kubeconfig: &Path, port: u16, server: &ServerFiles) -> Vec<String> {
    control_plane(kubeconfig, port, server)
}

fn control_plane(kubeconfig: &Path, port: u16, server: &ServerFiles) -> Vec<String> {
    vec![
        flag("kubeconfig", kubeconfig),
        flag("authentication-kubeconfig", kubeconfig),
        flag("authorization-kubeconfig", kubeconfig),
        format!("--bind-address={}", Ipv4Addr::LOCALHOST),
        format!("--secure-port={port}"),
        flag("tls-cert-file", &server.certificate),
        flag("tls-private-key-file", &server.key),
        "--leader-elect=false".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

/// A path as a string of TOML, which those of JSON are too.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str();
    let text = text.with_context(|| format!("{} is not text", path.display()))?;
    Ok(Value::from(text).to_string())
}
