//! Addresses, routes, rules and events against a real kernel, in a namespace of its own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespace;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use agentnet_platform::network::{
    EVENT_QUEUE, HostLayout, InterfaceConfig, MAIN_TABLE, Network, NetworkError, NetworkEvent, ROUTE_PROTOCOL,
};
use agentnet_platform::tun::{Tun, TunOptions};
use namespace::Namespace;
use tokio::sync::mpsc::Receiver;

const TABLE: u32 = 24_942;

fn tun() -> Tun {
    let options = TunOptions { name: None, mtu: 1_500, queues: 1 };
    Tun::open(&options).unwrap()
}

fn config(table: Option<u32>) -> InterfaceConfig {
    InterfaceConfig {
        mtu: 1_280,
        addresses: vec!["fd61:6e74::1/128".parse().unwrap(), "100.64.0.1/32".parse().unwrap()],
        routes: vec!["fd61:6e74::/32".parse().unwrap(), "100.64.0.0/10".parse().unwrap()],
        table,
    }
}

/// The layout without the order in which the kernel lists it.
async fn layout(network: &Network) -> HostLayout {
    let mut layout = network.layout().await.unwrap();
    layout.routes.sort_by_key(|route| (route.table, route.destination, route.ifindex));
    layout.addresses.sort();
    layout
}

async fn index_of(network: &Network, name: &str) -> u32 {
    let links = network.layout().await.unwrap().links;
    links.iter().find(|link| link.name == name).unwrap().index
}

/// Waits until every link is up: the kernel follows a carrier with some delay.
async fn settle(network: &Network) {
    let settled = async {
        while network.layout().await.unwrap().links.iter().any(|link| !link.up) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), settled).await.expect("a link stays down");
}

/// The next event that `is_wanted`.
async fn event(events: &mut Receiver<NetworkEvent>, is_wanted: impl Fn(&NetworkEvent) -> bool) {
    let heard = tokio::time::timeout(Duration::from_secs(5), async {
        while !is_wanted(&events.recv().await.expect("the subscription ended")) {}
    });
    heard.await.expect("the event did not come");
}

#[test]
fn what_is_configured_appears_and_vanishes_without_a_trace() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let tun = tun();
        let before = layout(&network).await;
        for table in [None, Some(TABLE)] {
            let rules_before = namespace.ip(&["-6", "rule"]);
            let done = network.configure(tun.index(), &config(table)).await.unwrap();
            assert!(done.is_complete(), "{done:?}");
            // Once more is harmless.
            let again = network.configure(tun.index(), &config(table)).await.unwrap();
            assert!(again.is_complete(), "{again:?}");

            let during = layout(&network).await;
            let link = during.links.iter().find(|link| link.index == tun.index()).unwrap();
            assert_eq!((link.mtu, link.up, link.name.as_str()), (1_280, true, tun.name()));
            let ours = during.addresses.iter().filter(|(index, _)| *index == tun.index());
            let mut addresses = config(None).addresses;
            addresses.sort();
            // No fe80:: among them.
            assert_eq!(ours.map(|(_, net)| *net).collect::<Vec<_>>(), addresses);
            for destination in config(None).routes {
                let route = during.routes.iter().find(|r| r.destination == destination).unwrap();
                assert_eq!(route.ifindex, Some(tun.index()));
                assert_eq!(route.table, table.unwrap_or(MAIN_TABLE));
                assert_eq!(route.protocol, ROUTE_PROTOCOL);
            }
            let rules = namespace.ip(&["-6", "rule"]);
            let has_rule = rules.contains(&format!("from fd61:6e74::1 lookup {TABLE} proto 97"));
            assert_eq!(has_rule, table.is_some(), "{rules}");

            network.deconfigure(tun.index(), &config(table)).await.unwrap();
            let mut after = layout(&network).await;
            for link in &mut after.links {
                // The MTU of a device that is about to go is left as it is.
                if link.index == tun.index() {
                    assert!(!link.up);
                    link.mtu = 1_500;
                }
            }
            assert_eq!(after, before);
            assert_eq!(namespace.ip(&["-6", "rule"]), rules_before);
            network.deconfigure(tun.index(), &config(table)).await.unwrap();
        }
    });
}

#[test]
fn a_table_answers_only_for_its_own_addresses() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let (first, second) = (tun(), tun());
        let mut of_second = config(Some(TABLE + 1));
        of_second.addresses = vec!["fd61:6e74::2/128".parse().unwrap()];
        of_second.routes.truncate(1);
        network.configure(first.index(), &config(Some(TABLE))).await.unwrap();
        network.configure(second.index(), &of_second).await.unwrap();
        for (source, tun) in [("fd61:6e74::1", &first), ("fd61:6e74::2", &second)] {
            let route = namespace.ip(&["route", "get", "fd61:6e74::99", "from", source]);
            assert!(route.contains(&format!("dev {} ", tun.name())), "{route}");
        }
    });
}

#[test]
fn a_route_of_somebody_else_is_left_alone() {
    let namespace = Namespace::new();
    namespace.add_link("other");
    namespace.ip(&["route", "add", "100.64.0.0/10", "dev", "other"]);
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let tun = tun();
        let done = network.configure(tun.index(), &config(None)).await.unwrap();
        let [(destination, error)] = &done.routes_failed[..] else { panic!("{done:?}") };
        assert_eq!(destination.to_string(), "100.64.0.0/10");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        network.deconfigure(tun.index(), &config(None)).await.unwrap();
        let routes = namespace.ip(&["route"]);
        assert!(routes.contains("100.64.0.0/10 dev other"), "{routes}");
    });
}

#[test]
fn ipv6_switched_off_is_reported_and_ipv4_works() {
    let namespace = Namespace::new();
    namespace.sysctl("net.ipv6.conf.all.disable_ipv6=1");
    namespace.sysctl("net.ipv6.conf.default.disable_ipv6=1");
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let tun = tun();
        let done = network.configure(tun.index(), &config(Some(TABLE))).await.unwrap();
        assert!(done.ipv6_disabled, "{done:?}");
        assert_eq!(done.addresses_failed.len(), 1, "{done:?}");
        assert!(done.addresses_failed[0].0.addr().is_ipv6());
        assert!(done.routes_failed.iter().all(|(net, _)| net.addr().is_ipv6()), "{done:?}");
        let layout = layout(&network).await;
        assert!(layout.addresses.contains(&(tun.index(), "100.64.0.1/32".parse().unwrap())));
        network.deconfigure(tun.index(), &config(Some(TABLE))).await.unwrap();
    });
}

#[test]
fn an_interface_that_is_not_there_is_an_error() {
    Namespace::new().enter_async(|| async {
        let network = Network::new().unwrap();
        let error = network.configure(4_711, &config(None)).await.unwrap_err();
        assert!(matches!(error, NetworkError::NoSuchLink(4_711)), "{error:?}");
        network.deconfigure(4_711, &config(None)).await.unwrap();
    });
}

#[test]
fn rules_that_a_killed_process_left_are_removed_and_no_others() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let (killed, alive) = (tun(), tun());
        network.configure(killed.index(), &config(Some(TABLE))).await.unwrap();
        let mut of_alive = config(Some(TABLE + 1));
        of_alive.addresses = vec!["fd61:6e74::2/128".parse().unwrap()];
        network.configure(alive.index(), &of_alive).await.unwrap();
        namespace.ip(&["-6", "rule", "add", "from", "fd61::9", "lookup", "777"]);
        assert_eq!(network.remove_stale_rules().await.unwrap(), 0);

        drop(killed);
        assert_eq!(network.remove_stale_rules().await.unwrap(), 1);
        let rules = namespace.ip(&["-6", "rule"]);
        assert!(!rules.contains("from fd61:6e74::1 "), "{rules}");
        assert!(rules.contains("from fd61:6e74::2 "), "{rules}");
        assert!(rules.contains("from fd61::9 "), "{rules}");
    });
}

#[test]
fn changes_of_the_host_are_heard() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let mut events = network.events().unwrap();
        namespace.add_link("eth");
        let index = index_of(&network, "eth").await;
        let up = NetworkEvent::LinkChanged { index, up: true };
        event(&mut events, |event| *event == up).await;

        for (address, ip) in [("10.9.0.1/24", "10.9.0.1"), ("2001:db8::1/64", "2001:db8::1")] {
            let ip: IpAddr = ip.parse().unwrap();
            namespace.ip(&["addr", "add", address, "dev", "eth"]);
            event(&mut events, |event| *event == NetworkEvent::AddressAdded(ip)).await;
            namespace.ip(&["addr", "del", address, "dev", "eth"]);
            event(&mut events, |event| *event == NetworkEvent::AddressRemoved(ip)).await;
        }
        for route in [["route", "add", "default", "dev", "eth"], ["route", "del", "default", "dev", "eth"]] {
            namespace.ip(&route);
            event(&mut events, |event| *event == NetworkEvent::DefaultRouteChanged).await;
        }
        let down = NetworkEvent::LinkChanged { index, up: false };
        namespace.ip(&["link", "del", "eth"]);
        event(&mut events, |event| *event == down).await;
    });
}

#[test]
fn routes_that_are_not_default_and_repetitions_are_no_events() {
    let namespace = Namespace::new();
    // Link-local addresses would be events of their own.
    namespace.sysctl("net.ipv6.conf.default.disable_ipv6=1");
    namespace.add_link("eth");
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let eth = index_of(&network, "eth").await;
        settle(&network).await;
        let mut events = network.events().unwrap();
        namespace.ip(&["route", "add", "10.0.0.0/8", "dev", "eth"]);
        namespace.ip(&["route", "add", "default", "dev", "eth", "table", "77"]);
        // The first message about a link says how it is; the others repeat that.
        for mtu in ["1400", "1401", "1402"] {
            namespace.ip(&["link", "set", "eth", "mtu", mtu]);
        }
        namespace.ip(&["addr", "add", "10.9.0.1/32", "dev", "eth"]);
        let last = NetworkEvent::AddressAdded([10, 9, 0, 1].into());
        let mut heard = Vec::new();
        while heard.last() != Some(&last) {
            let next = tokio::time::timeout(Duration::from_secs(5), events.recv());
            let next = next.await.expect("the event did not come").unwrap();
            // The other end of the pair may have something to say yet.
            if !matches!(next, NetworkEvent::LinkChanged { index, .. } if index != eth) {
                heard.push(next);
            }
        }
        assert_eq!(heard, [NetworkEvent::LinkChanged { index: eth, up: true }, last]);
    });
}

#[test]
fn a_listener_that_does_not_listen_is_told_that_it_lags() {
    let namespace = Namespace::new();
    namespace.add_link("eth");
    namespace.enter_async(|| async {
        let network = Network::new().unwrap();
        let mut events = network.events().unwrap();
        let eth = index_of(&network, "eth").await;
        let addresses = (0..=EVENT_QUEUE).map(|n| format!("10.9.0.{n}/32").parse().unwrap());
        let config = InterfaceConfig { mtu: 1_500, addresses: addresses.collect(), ..InterfaceConfig::default() };
        network.configure(eth, &config).await.unwrap();
        event(&mut events, |event| *event == NetworkEvent::Lagged).await;
        namespace.ip(&["addr", "add", "10.9.9.9/32", "dev", "eth"]);
        let heard = NetworkEvent::AddressAdded([10, 9, 9, 9].into());
        event(&mut events, |event| *event == heard).await;
    });
}
