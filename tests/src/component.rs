//! The programs a cluster is made of, as data: which, in which order, with which arguments, and how
//! one sees that they work. Pure, but for [`free_ports`]. Another part of a node is another entry of
//! [`components`], after those it needs.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

/// Name of the store.
pub const ETCD: &str = "etcd";
/// Name of the API server.
pub const KUBE_API_SERVER: &str = "kube-apiserver";

/// Addresses of services; the first is the API server's own.
pub(crate) const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The names and addresses the API server's certificate is valid for: from outside, and as the
/// service `kubernetes`.
pub(crate) const API_SERVER_NAMES: [&str; 7] = [
    "127.0.0.1",
    "localhost",
    "10.96.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A program of the cluster.
#[derive(Clone, Debug)]
pub struct Component {
    /// Its name, which is the name of its program too.
    pub name: &'static str,
    /// Arguments after the first.
    pub args: Vec<String>,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// A GET of this URL is answered with 200 as soon as it works; https is asked as administrator.
    pub health_url: String,
    /// How long it may take to become healthy.
    pub start_bound: Duration,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// What the arguments are made from.
#[derive(Clone, Debug)]
pub struct Layout {
    /// etcd's data.
    pub etcd_directory: PathBuf,
    /// Certificates and keys, under the names of [`Pki`].
    pub pki: Pki,
    /// The API server listens here, and tells pods to find it here unless it is the loopback address.
    pub address: Ipv4Addr,
    /// Ports on 127.0.0.1; the API server's is on its address.
    pub ports: Ports,
    /// What to write down of each request, and where.
    pub audit: Option<Audit>,
    /// Added to the API server's arguments, after ours, so that they win.
    pub api_server_args: Vec<String>,
}

/// Policy and log of the audit.
#[derive(Clone, Debug)]
pub struct Audit {
    /// File with the policy.
    pub policy: PathBuf,
    /// File that receives one JSON event per line.
    pub log: PathBuf,
}

/// Where the certificates and keys are.
#[derive(Clone, Debug)]
pub struct Pki {
    directory: PathBuf,
}

impl Pki {
    /// Those in `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The certificate of a server or user.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.crt"))
    }

    /// The key of a server or user.
    pub fn key(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.key"))
    }

    /// The key that checks tokens of service accounts.
    pub fn token_key(&self) -> PathBuf {
        self.directory.join("service-accounts.pub")
    }
}

/// Name of etcd's own certificate in [`Pki`].
pub(crate) const ETCD_IDENTITY: &str = "etcd";
/// Name of the certificate the API server shows to etcd.
pub(crate) const ETCD_CLIENT_IDENTITY: &str = "kube-apiserver-etcd-client";
/// Name of the API server's own certificate in [`Pki`].
pub(crate) const API_SERVER_IDENTITY: &str = "kube-apiserver";
/// Name of the certificate the API server shows to kubelets.
pub(crate) const KUBELET_CLIENT_IDENTITY: &str = "kube-apiserver-kubelet-client";
/// Name of the key that signs tokens of service accounts.
pub(crate) const TOKEN_IDENTITY: &str = "service-accounts";

/// The ports of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// etcd for its clients.
    pub etcd: u16,
    /// etcd for other members, of which there are none; it cannot do without.
    pub etcd_peer: u16,
    /// The API server.
    pub api_server: u16,
}

impl Ports {
    /// Ports that are free now. Somebody else may take one before its program does; the program
    /// then says so, see [`is_clash`].
    ///
    /// # Errors
    /// No port is free.
    pub fn free() -> Result<Self> {
        let [etcd, etcd_peer, api_server] = free_ports()?;
        Ok(Self {
            etcd,
            etcd_peer,
            api_server,
        })
    }
}

/// Where the ports of [`free_ports`] come from: below those that Linux gives to outgoing connections
/// (32768 and up), one of which would otherwise take a port before its program listens; above the
/// fixed ones of Kubernetes (10250 and so on), below those of its Services (30000 and up).
const PORTS: Range<u16> = 15_000..30_000;

/// Different ports of 127.0.0.1 that nobody listens on, and that this process was not given before.
///
/// # Errors
/// No port is free.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let size = u32::from(PORTS.end - PORTS.start);
    // Another process begins elsewhere. The factor puts neighbours far apart.
    let first = std::process::id().wrapping_mul(7_919);
    let mut ports = [0; N];
    for port in &mut ports {
        *port = (0..size)
            .map(|_| first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % size)
            .filter_map(|offset| u16::try_from(offset).ok())
            .map(|offset| PORTS.start + offset)
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .context("no port of 127.0.0.1 is free")?;
    }
    Ok(ports)
}

/// Whether a program ended because its port was taken meanwhile.
pub fn is_clash(log: &str) -> bool {
    log.contains("address already in use")
}

/// The programs of a cluster, each after those it needs.
pub fn components(layout: &Layout) -> Vec<Component> {
    vec![etcd(layout), kube_api_server(layout)]
}

fn etcd(layout: &Layout) -> Component {
    // TLS, and the authority is this cluster's own: another cluster's etcd, on a port that both had
    // found free, is never taken for this one.
    let client = format!("https://127.0.0.1:{}", layout.ports.etcd);
    let peer = format!("http://127.0.0.1:{}", layout.ports.etcd_peer);
    Component {
        name: ETCD,
        args: vec![
            "--name=local".to_owned(),
            flag("data-dir", &layout.etcd_directory),
            flag("cert-file", &layout.pki.certificate(ETCD_IDENTITY)),
            flag("key-file", &layout.pki.key(ETCD_IDENTITY)),
            flag("trusted-ca-file", &layout.pki.authority()),
            "--client-cert-auth".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=local={peer}"),
            // What is lost with the machine was not worth keeping.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ],
        env: BTreeMap::new(),
        health_url: format!("{client}/health"),
        start_bound: Duration::from_secs(30),
        grace: Duration::from_secs(5),
    }
}

fn kube_api_server(layout: &Layout) -> Component {
    let Layout {
        pki,
        address,
        ports,
        audit,
        api_server_args,
        etcd_directory: _,
    } = layout;
    let mut args = vec![
        format!("--etcd-servers=https://127.0.0.1:{}", ports.etcd),
        flag("etcd-cafile", &pki.authority()),
        flag("etcd-certfile", &pki.certificate(ETCD_CLIENT_IDENTITY)),
        flag("etcd-keyfile", &pki.key(ETCD_CLIENT_IDENTITY)),
        format!("--bind-address={address}"),
        format!("--secure-port={}", ports.api_server),
        flag("tls-cert-file", &pki.certificate(API_SERVER_IDENTITY)),
        flag("tls-private-key-file", &pki.key(API_SERVER_IDENTITY)),
        flag("client-ca-file", &pki.authority()),
        flag("kubelet-certificate-authority", &pki.authority()),
        flag(
            "kubelet-client-certificate",
            &pki.certificate(KUBELET_CLIENT_IDENTITY),
        ),
        flag("kubelet-client-key", &pki.key(KUBELET_CLIENT_IDENTITY)),
        // The name of a local node does not resolve.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--service-account-issuer={ISSUER}"),
        flag("service-account-key-file", &pki.token_key()),
        flag("service-account-signing-key-file", &pki.key(TOKEN_IDENTITY)),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Webhooks that are services are then reached without kube-proxy.
        "--enable-aggregator-routing=true".to_owned(),
        "--profiling=false".to_owned(),
    ];
    if address.is_loopback() {
        // The service `kubernetes` cannot have an endpoint on the loopback address.
        args.push("--endpoint-reconciler-type=none".to_owned());
    } else {
        args.push(format!("--advertise-address={address}"));
    }
    if let Some(Audit { policy, log }) = audit {
        args.push(flag("audit-policy-file", policy));
        args.push(flag("audit-log-path", log));
    }
    args.extend(api_server_args.iter().cloned());
    Component {
        name: KUBE_API_SERVER,
        args,
        env: BTreeMap::new(),
        health_url: format!("https://{address}:{}/readyz", ports.api_server),
        start_bound: Duration::from_mins(2),
        // On SIGTERM it waits for open watches; nobody needs that here.
        grace: Duration::from_secs(3),
    }
}

pub(crate) fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports::<20>().unwrap();
        ports.sort_unstable();
        assert!(
            ports
                .windows(2)
                .all(|pair| matches!(pair, [one, other] if one != other))
        );
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn a_port_that_is_taken_is_not_given() {
        let [first] = free_ports::<1>().unwrap();
        let _taken: Vec<_> = (first + 1..PORTS.end.min(first + 20))
            .filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
            .collect();
        for port in free_ports::<30>().unwrap() {
            assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "{port}");
        }
    }

    #[test]
    fn arguments_of_a_test_come_last() {
        let layout = Layout {
            etcd_directory: "etcd".into(),
            pki: Pki::new("pki".into()),
            address: Ipv4Addr::LOCALHOST,
            ports: Ports {
                etcd: 1,
                etcd_peer: 2,
                api_server: 3,
            },
            audit: None,
            api_server_args: vec!["--profiling=true".to_owned()],
        };
        let components = components(&layout);
        let names: Vec<_> = components.iter().map(|component| component.name).collect();
        assert_eq!(names, [ETCD, KUBE_API_SERVER]);
        let last = components
            .last()
            .and_then(|component| component.args.last());
        assert_eq!(last.map(String::as_str), Some("--profiling=true"));
    }
}
