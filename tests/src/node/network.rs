//! The link between the machine and a node, and the addresses of both sides and of pods.
//!
//! The link is also what makes a slot taken: its name is the slot's, it can be made once, and it
//! disappears with the node's network namespace, whatever way that ends.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::output_of;
use super::space::Space;
use crate::kubernetes::say;
use crate::wait::{self, Probe};

/// Nodes at the same time on one machine. Tests run one after the other; several checkouts may not.
const SLOTS: u8 = 4;
/// The first two octets of the networks that slots are looked for in, and the last of the second.
const NETWORKS: [[u8; 2]; 3] = [[10, 201], [172, 26], [100, 101]];
/// For how long a node waits for others to end.
const BOUND: Duration = Duration::from_hours(1);
const NAME: &str = "osb-node";
/// The other end of the link, inside.
const INSIDE: &str = "eth0";

/// The addresses of one node: a network of 65,536 addresses, of which the first four are the link and
/// the last quarter is for pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Network {
    slot: u8,
    prefix: [u8; 2],
}

impl Network {
    fn address(self, third: u8, fourth: u8) -> Ipv4Addr {
        let [first, second] = self.prefix;
        Ipv4Addr::new(first, second, third, fourth)
    }

    /// The machine, as the node and pods see it: where the API server listens.
    pub(super) fn machine(self) -> Ipv4Addr {
        self.address(0, 1)
    }

    /// The node.
    pub(super) fn node(self) -> Ipv4Addr {
        self.address(0, 2)
    }

    /// The length of the prefix of [`Self::pods`].
    pub(super) const PODS_PREFIX: u8 = 18;

    /// The addresses of pods.
    pub(super) fn pods(self) -> String {
        format!("{}/{}", self.address(192, 0), Self::PODS_PREFIX)
    }

    /// The link's name on the machine.
    pub(super) fn link(self) -> String {
        format!("{NAME}{}", self.slot)
    }
}

/// Takes a slot: makes the link and everything on it. Waits while all slots are taken.
pub(super) async fn connect(space: &Space, ip: &Path) -> Result<Network> {
    let mut told = false;
    let network = wait::until("another node to end", BOUND, async || {
        // Looked up again each time, since what is on the link of another node is a route too.
        for network in networks(&routes()?)? {
            if take(space, ip, network).await? {
                return Ok(Probe::Done(network));
            }
        }
        if !told {
            told = true;
            say(&format!(
                "waiting: {SLOTS} nodes run on this machine, and one has to end first"
            ));
        }
        Ok(Probe::not_yet(format!("{SLOTS} nodes run on this machine")))
    })
    .await?;
    let node = network.node().to_string();
    let (machine_address, node_address) = (
        format!("{}/30", network.machine()),
        format!("{}/30", network.node()),
    );
    let link = network.link();
    run(ip, &["address", "add", &machine_address, "dev", &link]).await?;
    run(ip, &["link", "set", &link, "up"]).await?;
    run(ip, &["route", "add", &network.pods(), "via", &node]).await?;
    let machine = network.machine().to_string();
    for args in [
        ["link", "set", "lo", "up"].as_slice(),
        &["address", "add", &node_address, "dev", INSIDE],
        &["link", "set", INSIDE, "up"],
        &["route", "add", "default", "via", &machine],
    ] {
        space.run(ip, args).await?;
    }
    Ok(network)
}

/// Makes the link, unless another node has it.
async fn take(space: &Space, ip: &Path, network: Network) -> Result<bool> {
    let (link, init) = (network.link(), space.init().to_string());
    if Path::new("/sys/class/net").join(&link).exists() {
        return Ok(false);
    }
    let args = [
        "link", "add", &link, "type", "veth", "peer", "name", INSIDE, "netns", &init,
    ];
    match run(ip, &args).await {
        Ok(()) => Ok(true),
        Err(error) if format!("{error:#}").contains("File exists") => Ok(false),
        Err(error) => Err(error),
    }
}

async fn run(ip: &Path, args: &[&str]) -> Result<()> {
    let mut command = tokio::process::Command::new(ip);
    command.args(args);
    output_of(command).await.map(drop)
}

/// A destination of a route: address and mask.
type Destination = (u32, u32);

/// Where the machine sends packets to, other than by default and to other nodes of ours.
fn routes() -> Result<Vec<Destination>> {
    let path = PathBuf::from("/proc/net/route");
    let table = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(parse_routes(&table))
}

fn parse_routes(table: &str) -> Vec<Destination> {
    // The kernel prints addresses as they are in memory.
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let (name, destination, mask) = (columns.first()?, columns.get(1)?, columns.get(7)?);
            let destination = (number(destination)?, number(mask)?);
            (!name.starts_with(NAME)).then_some(destination)
        })
        // A VPN takes all by two halves.
        .filter(|(_, mask)| mask.leading_ones() > 1)
        .collect()
}

/// One network per slot, none of which the machine uses.
fn networks(routes: &[Destination]) -> Result<Vec<Network>> {
    let free = |prefix: [u8; 2]| {
        let [first, second] = prefix;
        let network = u32::from(Ipv4Addr::new(first, second, 0, 0));
        let overlaps = |(address, mask): &Destination| {
            let common = mask & 0xffff_0000;
            network & common == address & common
        };
        !routes.iter().any(overlaps)
    };
    for [first, second] in NETWORKS {
        let all: Vec<_> = (0..SLOTS)
            .map(|slot| Network {
                slot,
                prefix: [first, second + slot],
            })
            .collect();
        if all.iter().all(|network| free(network.prefix)) {
            return Ok(all);
        }
    }
    bail!(
        "this machine has routes into all networks that a node could use: 10.201.0.0, 172.26.0.0 \
         and 100.101.0.0, {SLOTS} of 16 bits from each on; free one of them"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
        tun0\t00000080\t010200C0\t0003\t0\t0\t0\t00000080\t0\n\
        osb-node0\t0000C90A\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";

    #[test]
    fn default_routes_and_other_nodes_do_not_count() {
        let expected = (
            u32::from(Ipv4Addr::new(192, 0, 2, 0)),
            u32::from(Ipv4Addr::new(255, 255, 255, 0)),
        );
        assert_eq!(parse_routes(TABLE), [expected]);
    }

    #[test]
    fn networks_that_the_machine_uses_are_avoided() {
        let route = |address: [u8; 4], length: u32| {
            (
                u32::from(Ipv4Addr::from(address)),
                u32::MAX << (32 - length),
            )
        };
        let first = |routes: &[Destination]| networks(routes).unwrap().first().unwrap().pods();
        assert_eq!(first(&[]), "10.201.192.0/18");
        assert_eq!(first(&[route([10, 200, 0, 0], 16)]), "10.201.192.0/18");
        assert_eq!(first(&[route([10, 203, 7, 0], 24)]), "172.26.192.0/18");
        assert_eq!(first(&[route([10, 0, 0, 0], 8)]), "172.26.192.0/18");
        let all = [
            route([10, 0, 0, 0], 8),
            route([172, 16, 0, 0], 12),
            route([100, 64, 0, 0], 10),
        ];
        assert_eq!(first(&all[..2]), "100.101.192.0/18");
        let error = networks(&all).unwrap_err().to_string();
        assert!(error.contains("172.26.0.0"), "{error}");
    }

    #[test]
    fn addresses_of_a_node_are_in_its_network() {
        let network = Network {
            slot: 1,
            prefix: [10, 202],
        };
        assert_eq!(network.machine(), Ipv4Addr::new(10, 202, 0, 1));
        assert_eq!(network.node(), Ipv4Addr::new(10, 202, 0, 2));
        assert_eq!(network.link(), "osb-node1");
    }
}
