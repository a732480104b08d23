//! The host's network in words, for who is to help.

use agentnet_platform::network::{HostLayout, MAIN_TABLE, Network};

use crate::api::NetworkDocument;

/// How this host's network looks to an agent.
///
/// # Errors
/// Why it cannot be looked at.
pub async fn network_document() -> Result<NetworkDocument, String> {
    let layout = Network::new().map_err(|error| error.to_string())?.layout().await;
    layout.map(|layout| document(&layout)).map_err(|error| error.to_string())
}

/// The same of a layout that was looked at already.
pub(super) fn document(layout: &HostLayout) -> NetworkDocument {
    let name = |index: u32| {
        let link = layout.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    };
    let links = layout.links.iter().map(|link| {
        let kind = if link.loopback { ", loopback" } else { "" };
        format!("{} {}: MTU {}, {}{kind}", link.index, link.name, link.mtu, if link.up { "up" } else { "down" })
    });
    let addresses = layout.addresses.iter().map(|(index, address)| format!("{address} on {}", name(*index)));
    let routes = layout.routes.iter().map(|route| {
        let gateway = route.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
        let device = route.ifindex.map_or_else(|| " dropped".to_owned(), |index| format!(" on {}", name(index)));
        let table = if route.table == MAIN_TABLE { String::new() } else { format!(", table {}", route.table) };
        format!("{}{gateway}{device}{table}, protocol {}", route.destination, route.protocol)
    });
    NetworkDocument { links: links.collect(), addresses: addresses.collect(), routes: routes.collect() }
}

#[cfg(test)]
mod tests {
    use agentnet_platform::network::{Link, Route};

    use super::*;

    #[test]
    fn a_network_in_words() {
        let link =
            |name: &str, index| Link { name: name.into(), index, mtu: 1500, up: index == 1, loopback: index == 1 };
        let route = |destination: &str, ifindex, table| Route {
            destination: destination.parse().unwrap(),
            ifindex,
            table,
            protocol: 4,
            gateway: ifindex.and_then(|_| "192.0.2.1".parse().ok()),
        };
        let layout = HostLayout {
            links: vec![link("lo", 1), link("eth0", 2)],
            addresses: vec![(2, "192.0.2.7/24".parse().unwrap()), (9, "2001:db8::1/64".parse().unwrap())],
            routes: vec![route("0.0.0.0/0", Some(2), MAIN_TABLE), route("10.0.0.0/8", None, 7)],
        };
        let NetworkDocument { links, addresses, routes } = document(&layout);
        assert_eq!(links, ["1 lo: MTU 1500, up, loopback", "2 eth0: MTU 1500, down"]);
        assert_eq!(addresses, ["192.0.2.7/24 on eth0", "2001:db8::1/64 on interface 9"]);
        assert_eq!(routes, ["0.0.0.0/0 via 192.0.2.1 on eth0, protocol 4", "10.0.0.0/8 dropped, table 7, protocol 4"]);
    }
}
