//! Servers, peers and strangers that mean harm: nothing but counters moves, nothing grows, nobody is sent more than he
//! sent, and honest traffic goes on.

mod forgers;
mod peers;
mod puppet;
mod servers;
mod strangers;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentnet::identity::RendezvousRef;
use agentnet::node::NodeTableSizes;
use agentnet::node::limits::{MAX_ADDRESSES, MAX_RELAYS};
use agentnet_sim::net::{LinkConfig, NatKind, SiteOptions};
use agentnet_sim::{HostOptions, World};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Addresses that no agent may be made to send to, whoever names them: loopback, unspecified, overlay, alias, multicast.
pub(crate) const ABSURD: [&str; 9] = [
    "127.0.0.1:22",
    "[::1]:22",
    "[::ffff:127.0.0.1]:22",
    "0.0.0.0:53",
    "[fd61:6e74::1]:41641",
    "100.64.0.1:41641",
    "100.127.1.1:80",
    "224.0.0.1:5353",
    "[ff02::1]:5353",
];

pub(crate) fn absurd() -> Vec<SocketAddr> {
    ABSURD.iter().map(|text| text.parse().unwrap()).collect()
}

/// A host 10 ms from the core, with these servers.
pub(crate) fn add_host(world: &mut World, kind: NatKind, rendezvous: Vec<RendezvousRef>) -> usize {
    let site = world.net.add_site(&SiteOptions::new(kind, LinkConfig::with_delay(MS * 10)));
    world.add_host_at(&site, HostOptions { rendezvous, ..HostOptions::default() })
}

/// Datagrams of one host since the last call, as destination and length; fails if one went where none may go.
pub(crate) fn take_sent(world: &mut World, host: usize) -> Vec<(SocketAddr, usize)> {
    let sent: Vec<_> = world.hosts[host].sent.drain(..).map(|(to, bytes)| (to, bytes.len())).collect();
    for (to, _) in &sent {
        let ip = to.ip().to_canonical();
        let is_alias = matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64);
        let is_overlay = matches!(ip, IpAddr::V6(v6) if agentnet::identity::is_overlay(v6));
        let is_nobody = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        assert!(!is_alias && !is_overlay && !is_nobody, "host {host} was made to send to {to}");
    }
    sent
}

/// Every table of a host with these peers and servers is within its limits.
pub(crate) fn assert_bounded(world: &World, host: usize, links: usize, servers: usize) {
    let sizes: NodeTableSizes = world.hosts[host].node.table_sizes();
    assert!(sizes.links <= links && sizes.servers <= servers && sizes.indices <= links + servers, "{sizes:?}");
    assert!(sizes.addresses <= sizes.peers * MAX_ADDRESSES && sizes.most_paths <= 32, "{sizes:?}");
    assert!(sizes.relays <= links * MAX_RELAYS && sizes.callers == 0, "{sizes:?}");
    assert!(sizes.timers <= 5 * sizes.peers + servers + 4, "{sizes:?}");
}
