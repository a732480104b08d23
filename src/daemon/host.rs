//! What the agent takes from the host, decided from its layout alone: IPv4 range, MTU, routing table, own addresses.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use agentnet_platform::network::{HostLayout, MAIN_TABLE, ROUTE_PROTOCOL};
use ipnet::{IpNet, Ipv4Net};

use crate::identity::{OVERLAY_PREFIX, is_overlay};

/// Ranges for aliases, tried in this order when the configured one is in use: shared address space (RFC 6598), the
/// benchmarking range (RFC 2544), and parts of private space (RFC 1918) far from where home and cloud networks begin.
const ALTERNATIVE_RANGES: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 210, 0, 0), 15),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 28, 0, 0), 14),
];

/// What WireGuard over UDP over IPv6 adds to a packet, bytes: 40 + 8 + 32.
const OVERHEAD: u32 = 80;
/// The MTU of the interface on links of 1,500 bytes, which is what paths on the internet carry.
const USUAL_MTU: u32 = 1420;
/// What IPv6 asks of every link (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;

/// Where the routes of the interface go, from the point of view of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OverlayRoutes {
    /// Nobody has the overlay prefix: this agent takes it.
    Free,
    /// Another agent on this host has it: this one uses a table of its own, chosen by its address.
    OtherAgent,
    /// Something that is not an agent has it.
    Foreign,
}

/// The first range that touches no route and no address of this host, trying `wanted` first. `None`: all are in use.
pub(super) fn free_ipv4_range(layout: &HostLayout, wanted: Ipv4Net) -> Option<Ipv4Net> {
    let in_use = |range: &Ipv4Net| {
        let routed = layout.routes.iter().any(|route| touches(&route.destination, range));
        routed || layout.addresses.iter().any(|(_, address)| touches(&address.trunc(), range))
    };
    [wanted].into_iter().chain(ALTERNATIVE_RANGES).find(|range| !in_use(range))
}

/// Whether a route or an address of somebody else is in the way of a range of aliases. A default route is not, nor is that
/// of a VPN, which is two halves.
pub(super) fn touches(net: &IpNet, range: &Ipv4Net) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() > 1 && (net.contains(range) || range.contains(net)),
        IpNet::V6(_) => false,
    }
}

/// The largest MTU with which a full packet fits the narrowest link that is up.
pub(super) fn interface_mtu(layout: &HostLayout) -> u32 {
    let overlays = overlay_links(layout);
    let real = layout.links.iter().filter(|link| link.up && !link.loopback && !overlays.contains(&link.index));
    let narrowest = real.map(|link| link.mtu).min().unwrap_or(USUAL_MTU + OVERHEAD);
    narrowest.saturating_sub(OVERHEAD).clamp(LEAST_MTU, USUAL_MTU)
}

/// Who routes the overlay prefix now.
pub(super) fn overlay_routes(layout: &HostLayout) -> OverlayRoutes {
    let mut result = OverlayRoutes::Free;
    for route in layout.routes.iter().filter(|route| route.table == MAIN_TABLE) {
        if route.destination == IpNet::V6(OVERLAY_PREFIX) {
            match route.protocol {
                ROUTE_PROTOCOL => return OverlayRoutes::OtherAgent,
                _ => result = OverlayRoutes::Foreign,
            }
        }
    }
    result
}

/// Unicast addresses others might reach this host at, IPv6 first. Overlay interfaces are left out: an agent is not
/// reached through another one.
pub(super) fn transport_addresses(layout: &HostLayout) -> Vec<IpAddr> {
    let overlays = overlay_links(layout);
    let usable_link = |index: u32| {
        let link = layout.links.iter().find(|link| link.index == index);
        link.is_some_and(|link| link.up && !link.loopback) && !overlays.contains(&index)
    };
    let addresses = layout.addresses.iter().filter(|(index, _)| usable_link(*index)).map(|(_, net)| net.addr());
    let mut addresses: Vec<IpAddr> = addresses.filter(is_reachable).collect();
    addresses.sort_by_key(IpAddr::is_ipv4);
    addresses.dedup();
    addresses
}

/// Where packets for the internet go first. `None` where they go straight into a link, a VPN's perhaps.
pub(super) fn default_gateway(layout: &HostLayout) -> Option<Ipv4Addr> {
    let is_default = |net: &IpNet| matches!(net, IpNet::V4(net) if net.prefix_len() == 0);
    // The system lists the one that counts first.
    let route = layout.routes.iter().find(|route| route.table == MAIN_TABLE && is_default(&route.destination))?;
    match route.gateway? {
        IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() => Some(ip),
        _ => None,
    }
}

fn overlay_links(layout: &HostLayout) -> HashSet<u32> {
    let overlay = |net: &IpNet| matches!(net.addr(), IpAddr::V6(v6) if is_overlay(v6));
    let addressed = layout.addresses.iter().filter(|(_, net)| overlay(net)).map(|(index, _)| *index);
    let routed =
        layout.routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL).filter_map(|route| route.ifindex);
    addressed.chain(routed).collect()
}

fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified() && !v4.is_multicast(),
        // A link-local address means nothing without its link.
        IpAddr::V6(v6) => {
            !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified() && !v6.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentnet_platform::network::{Link, Route};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn link(name: &str, index: u32, mtu: u32) -> Link {
        Link { name: name.into(), index, mtu, up: true, loopback: name == "lo" }
    }

    fn route(destination: &str, ifindex: u32, protocol: u8) -> Route {
        Route { destination: net(destination), ifindex: Some(ifindex), table: MAIN_TABLE, protocol, gateway: None }
    }

    fn host() -> HostLayout {
        HostLayout {
            links: vec![link("lo", 1, 65536), link("eth0", 2, 1500)],
            addresses: vec![
                (1, net("127.0.0.1/8")),
                (2, net("192.0.2.7/24")),
                (2, net("2001:db8::7/64")),
                (2, net("fe80::1/64")),
            ],
            routes: vec![route("0.0.0.0/0", 2, 4), route("192.0.2.0/24", 2, 2)],
        }
    }

    #[test]
    fn the_default_range_is_taken_where_it_is_free() {
        let default = ALTERNATIVE_RANGES[0];
        assert_eq!(free_ipv4_range(&host(), default), Some(default));
    }

    #[test]
    fn a_route_or_an_address_inside_or_around_the_range_is_a_conflict() {
        let default = ALTERNATIVE_RANGES[0];
        for taken in ["100.64.0.0/10", "100.100.0.0/16", "100.0.0.0/8", "100.101.102.103/32"] {
            let mut routed = host();
            routed.routes.push(route(taken, 2, 3));
            assert_eq!(free_ipv4_range(&routed, default), Some(ALTERNATIVE_RANGES[1]), "route {taken}");
            let mut addressed = host();
            addressed.addresses.push((2, net(taken)));
            assert_eq!(free_ipv4_range(&addressed, default), Some(ALTERNATIVE_RANGES[1]), "address {taken}");
        }
        let mut full = host();
        full.routes.extend(ALTERNATIVE_RANGES.iter().map(|range| route(&range.to_string(), 2, 3)));
        assert_eq!(free_ipv4_range(&full, default), None);
    }

    #[test]
    fn the_narrowest_link_decides_the_mtu() {
        let mut layout = host();
        assert_eq!(interface_mtu(&layout), 1420);
        layout.links.push(link("eth1", 3, 1400));
        assert_eq!(interface_mtu(&layout), 1320);
        layout.links.push(link("eth2", 4, 1280));
        assert_eq!(interface_mtu(&layout), 1280);
        layout.links.truncate(1);
        assert_eq!(interface_mtu(&layout), 1420);
    }

    #[test]
    fn another_agent_is_told_from_a_stranger() {
        let mut layout = host();
        assert_eq!(overlay_routes(&layout), OverlayRoutes::Free);
        layout.routes.push(route("fd61:6e74::/32", 5, 3));
        assert_eq!(overlay_routes(&layout), OverlayRoutes::Foreign);
        layout.routes.push(route("fd61:6e74::/32", 6, ROUTE_PROTOCOL));
        assert_eq!(overlay_routes(&layout), OverlayRoutes::OtherAgent);
    }

    #[test]
    fn the_gateway_is_that_of_the_first_default_route() {
        let mut layout = host();
        assert_eq!(default_gateway(&layout), None, "a link without a next hop");
        let through = |destination: &str, gateway: &str, table| Route {
            gateway: gateway.parse().ok(),
            table,
            ..route(destination, 2, 4)
        };
        layout.routes.push(through("0.0.0.0/0", "192.0.2.2", MAIN_TABLE));
        assert_eq!(default_gateway(&layout), None, "another route counts");
        layout.routes = vec![
            through("0.0.0.0/0", "192.0.2.3", 100),
            through("::/0", "fe80::1", MAIN_TABLE),
            through("10.0.0.0/8", "192.0.2.4", MAIN_TABLE),
            through("0.0.0.0/0", "192.0.2.1", MAIN_TABLE),
            through("0.0.0.0/0", "192.0.2.2", MAIN_TABLE),
        ];
        assert_eq!(default_gateway(&layout), Some(Ipv4Addr::new(192, 0, 2, 1)));
        layout.routes = vec![through("0.0.0.0/0", "0.0.0.0", MAIN_TABLE)];
        assert_eq!(default_gateway(&layout), None);
    }

    #[test]
    fn tickets_name_addresses_others_can_use() {
        let mut layout = host();
        layout.links.push(link("agentnet0", 9, 1420));
        layout.addresses.push((9, net("fd61:6e74::1/128")));
        layout.addresses.push((9, net("100.64.1.1/32")));
        let expected: Vec<IpAddr> = vec!["2001:db8::7".parse().unwrap(), "192.0.2.7".parse().unwrap()];
        assert_eq!(transport_addresses(&layout), expected);
    }
}
