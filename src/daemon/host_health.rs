//! What is wrong with what the host gives, while the agent runs all the same.

use agentnet_platform::network::HostLayout;
use ipnet::{IpNet, Ipv4Net};

use super::host::touches;
use crate::api::HealthEntry;

/// Somebody else's route or address inside the range of IPv4 aliases; `own` is the index of the agent's interface.
pub(super) fn taken_from_range(layout: &HostLayout, range: Ipv4Net, own: u32) -> Option<IpNet> {
    let routes = layout.routes.iter().filter(|route| route.ifindex != Some(own)).map(|route| route.destination);
    let addresses = layout.addresses.iter().filter(|(index, _)| *index != own).map(|(_, net)| net.trunc());
    addresses.chain(routes).find(|net| touches(net, &range))
}

/// Programs that talk to an alias reach somebody else, or nobody.
pub(super) fn range_conflict(taken: IpNet) -> HealthEntry {
    HealthEntry {
        code: "ipv4_range_conflict".to_owned(),
        message: format!("{taken} came into use on this host, inside the range of IPv4 aliases"),
        hint: "restart the agent, and it takes another range; or name one with --ipv4-range".to_owned(),
    }
}

/// Buffers of the UDP sockets (receive, send) that are smaller than asked for; 0 is unknown.
pub(super) fn small_buffers((receive, send): (usize, usize), wanted: usize) -> Option<HealthEntry> {
    let is_small = |bytes: usize| bytes > 0 && bytes < wanted;
    (is_small(receive) || is_small(send)).then(|| HealthEntry {
        code: "small_socket_buffers".to_owned(),
        message: format!(
            "the host gives the UDP socket {receive} bytes to receive and {send} to send, of {wanted}: fast transfers \
             lose packets"
        ),
        hint: format!("allow more: `sysctl net.core.rmem_max={wanted} net.core.wmem_max={wanted}`, then restart it"),
    })
}

#[cfg(test)]
mod tests {
    use agentnet_platform::network::{MAIN_TABLE, Route};
    use agentnet_platform::udp::{UdpOptions, UdpSockets};

    use super::*;

    const RANGE: &str = "100.64.0.0/10";

    fn layout(addresses: &[(u32, &str)], routes: &[(u32, &str)]) -> HostLayout {
        let route = |(index, net): &(u32, &str)| Route {
            destination: net.parse().unwrap(),
            ifindex: Some(*index),
            table: MAIN_TABLE,
            protocol: 0,
            gateway: None,
        };
        HostLayout {
            links: Vec::new(),
            addresses: addresses.iter().map(|(index, net)| (*index, net.parse().unwrap())).collect(),
            routes: routes.iter().map(route).collect(),
        }
    }

    #[test]
    fn others_in_the_range_are_seen_and_the_agent_itself_is_not() {
        let taken = |addresses: &[(u32, &str)], routes: &[(u32, &str)]| {
            taken_from_range(&layout(addresses, routes), RANGE.parse().unwrap(), 9).map(|net| net.to_string())
        };
        assert_eq!(
            taken(&[(9, "100.64.0.1/32"), (2, "10.0.0.1/8")], &[(9, RANGE), (2, "0.0.0.0/0"), (2, "0.0.0.0/1")]),
            None
        );
        assert_eq!(taken(&[(2, "100.80.1.2/24")], &[]).as_deref(), Some("100.80.1.0/24"));
        assert_eq!(taken(&[], &[(2, "100.0.0.0/8")]).as_deref(), Some("100.0.0.0/8"));
        assert_eq!(range_conflict("100.80.1.0/24".parse().unwrap()).code, "ipv4_range_conflict");
    }

    #[test]
    fn a_socket_that_got_less_than_asked_for_is_seen() {
        let options = |bytes| UdpOptions { port: 0, v4: true, v6: false, recv_buffer: bytes, send_buffer: bytes };
        let small = UdpSockets::bind(&options(8192)).unwrap().buffers();
        assert!(small.0 >= 8192 && small.1 >= 8192, "{small:?}");
        assert_eq!(small_buffers(small, 1 << 20).unwrap().code, "small_socket_buffers");
        assert_eq!(small_buffers(small, 8192), None);
        assert_eq!(small_buffers((0, 1 << 20), 1 << 20), None);
    }
}
