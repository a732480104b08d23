//! The host's links, addresses and routes; configuring our own interface; hearing of changes.
//!
//! Nothing here touches what others configured: routes are added, never replaced, and only what
//! [`Network::configure`] added is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use tokio::sync::mpsc;

pub use crate::os::network::Network;

/// Marks our routes and rules (`rtm_protocol`, `FRA_PROTOCOL`), so that ours are told from others'. Not in
/// iproute2's `rt_protos`; `'a'`.
pub const ROUTE_PROTOCOL: u8 = 0x61;

/// The table of routes without a table of their own, `RT_TABLE_MAIN`. On macOS, the only one.
pub const MAIN_TABLE: u32 = 254;

/// Events that wait for a slow listener. A host has a handful of links and addresses; more than this in one go
/// says "look again" better than any list, and [`NetworkEvent::Lagged`] says it.
pub const EVENT_QUEUE: usize = 64;

/// What the host looks like.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct HostLayout {
    /// Network interfaces.
    pub links: Vec<Link>,
    /// Addresses, each with the index of its interface and its prefix length.
    pub addresses: Vec<(u32, IpNet)>,
    /// Routes of all tables, without those the kernel derives from addresses (local, broadcast, multicast).
    pub routes: Vec<Route>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// Whether it is switched on and has a carrier.
    pub up: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads to; prefix length 0 for a default route.
    pub destination: IpNet,
    /// The interface; `None` for a route that drops packets.
    pub ifindex: Option<u32>,
    /// The table it is in.
    pub table: u32,
    /// Who made it, see [`ROUTE_PROTOCOL`]; 0 where the system does not say.
    pub protocol: u8,
    /// The next hop; `None` for what is on the link.
    pub gateway: Option<IpAddr>,
}

/// Packets that may wait in the interface until a packet thread reads them. The usual 500 last 1.8 ms at 280,000 packets a
/// second, less than a busy host lets a thread wait for its turn: a tenth of them was lost (measured on two cores); with
/// 2,000 none.
pub const INTERFACE_QUEUE: u32 = 2_000;

/// What our interface shall have.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// Addresses, `/128` and `/32`.
    pub addresses: Vec<IpNet>,
    /// Prefixes that lead into the interface.
    pub routes: Vec<IpNet>,
    /// `None`: routes go to the main table. `Some(t)`: they go to table `t`, and a rule `from ADDRESS lookup t`
    /// is added for each IPv6 address. macOS has one table and ignores this.
    pub table: Option<u32>,
}

/// What could not be configured. The rest is in force.
#[derive(Default, Debug)]
pub struct Configured {
    /// Addresses the host refused.
    pub addresses_failed: Vec<(IpNet, io::Error)>,
    /// Routes the host refused. [`io::ErrorKind::AlreadyExists`]: somebody else has that route.
    pub routes_failed: Vec<(IpNet, io::Error)>,
    /// Addresses for which there is no rule.
    pub rules_failed: Vec<(IpNet, io::Error)>,
    /// The host has IPv6 switched off, altogether or for this interface: IPv6 entries among the failures are
    /// its doing and not a lack of privilege.
    pub ipv6_disabled: bool,
}

impl Configured {
    /// Whether everything is in force.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.addresses_failed.is_empty() && self.routes_failed.is_empty() && self.rules_failed.is_empty()
    }
}

/// Why the host could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no such interface (any more).
    #[error("no network interface with index {0}")]
    NoSuchLink(u32),
    /// The process may not change it.
    #[error("no permission to configure the network")]
    Permission,
    /// The operating system refused, or its answer made no sense.
    #[error("the operating system refused: {0}")]
    Refused(#[source] io::Error),
}

/// Something changed on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkEvent {
    /// An interface appeared, vanished (`up` is false) or changed its state.
    LinkChanged {
        /// Its index.
        index: u32,
        /// Whether it is switched on and has a carrier.
        up: bool,
    },
    /// An address became usable.
    AddressAdded(IpAddr),
    /// An address is gone.
    AddressRemoved(IpAddr),
    /// A default route of the main table appeared, vanished or changed.
    DefaultRouteChanged,
    /// Events were lost: read the [`HostLayout`] again.
    Lagged,
}

impl HostLayout {
    /// What happened between this layout and a `later` one.
    #[must_use]
    pub fn changes_to(&self, later: &Self) -> Vec<NetworkEvent> {
        let links =
            |layout: &Self| -> BTreeMap<u32, bool> { layout.links.iter().map(|link| (link.index, link.up)).collect() };
        let addresses =
            |layout: &Self| -> BTreeSet<IpAddr> { layout.addresses.iter().map(|(_, net)| net.addr()).collect() };
        let (links_before, links_after) = (links(self), links(later));
        let (before, after) = (addresses(self), addresses(later));

        let gone = links_before
            .keys()
            .filter(|index| !links_after.contains_key(index))
            .map(|&index| NetworkEvent::LinkChanged { index, up: false });
        let changed = links_after
            .iter()
            .filter(|(index, up)| links_before.get(index) != Some(up))
            .map(|(&index, &up)| NetworkEvent::LinkChanged { index, up });
        let mut events: Vec<_> = gone.chain(changed).collect();
        events.extend(before.difference(&after).map(|&ip| NetworkEvent::AddressRemoved(ip)));
        events.extend(after.difference(&before).map(|&ip| NetworkEvent::AddressAdded(ip)));
        if !self.default_routes().eq(later.default_routes()) {
            events.push(NetworkEvent::DefaultRouteChanged);
        }
        events
    }

    fn default_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(|route| route.table == MAIN_TABLE && route.destination.prefix_len() == 0)
    }
}

/// The sending end of an event queue. When the queue runs full the last free place goes to
/// [`NetworkEvent::Lagged`], and what follows is dropped until the listener has seen that.
pub(crate) struct EventSender {
    sender: mpsc::Sender<NetworkEvent>,
    lagged: bool,
}

impl EventSender {
    pub(crate) fn new() -> (Self, mpsc::Receiver<NetworkEvent>) {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        let lagged = false;
        (Self { sender, lagged }, receiver)
    }

    pub(crate) fn send(&mut self, event: NetworkEvent) {
        let free = self.sender.capacity();
        // Lagged was the last in the queue, so it is still there until the queue is empty.
        if self.lagged && free < self.sender.max_capacity() {
            return;
        }
        self.lagged = free <= 1 || event == NetworkEvent::Lagged;
        let event = if self.lagged { NetworkEvent::Lagged } else { event };
        // A listener that is gone is noticed by `closed`.
        let _ = self.sender.try_send(event);
    }

    /// Returns when nobody listens any more.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn layout() -> HostLayout {
        let link = |index, up| Link { name: format!("l{index}"), index, mtu: 1_500, up, loopback: false };
        HostLayout {
            links: vec![link(1, true), link(2, false)],
            addresses: vec![(1, IpNet::from(address(1)))],
            routes: vec![Route {
                destination: "0.0.0.0/0".parse().unwrap(),
                ifindex: Some(1),
                table: MAIN_TABLE,
                protocol: 3,
                gateway: Some(address(254)),
            }],
        }
    }

    #[test]
    fn equal_layouts_have_no_changes() {
        assert_eq!(layout().changes_to(&layout()), []);
    }

    #[test]
    fn every_kind_of_change_is_an_event() {
        let before = layout();
        let mut after = layout();
        after.links.remove(0);
        after.links[0].up = true;
        after.addresses = vec![(2, IpNet::from(address(2)))];
        after.routes[0].gateway = Some(address(253));
        assert_eq!(
            before.changes_to(&after),
            [
                NetworkEvent::LinkChanged { index: 1, up: false },
                NetworkEvent::LinkChanged { index: 2, up: true },
                NetworkEvent::AddressRemoved(address(1)),
                NetworkEvent::AddressAdded(address(2)),
                NetworkEvent::DefaultRouteChanged,
            ]
        );
    }

    #[test]
    fn routes_of_other_tables_are_not_default_routes_of_the_host() {
        let mut after = layout();
        let mut other = after.routes[0].clone();
        other.table = 77;
        after.routes.push(other);
        assert_eq!(layout().changes_to(&after), []);
    }

    #[test]
    fn a_slow_listener_is_told_once_that_it_lags_and_hears_again_after_that() {
        let (mut sender, mut receiver) = EventSender::new();
        for _ in 0..EVENT_QUEUE * 3 {
            sender.send(NetworkEvent::DefaultRouteChanged);
        }
        let mut heard = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            heard.push(event);
        }
        assert_eq!(heard.len(), EVENT_QUEUE);
        assert_eq!(heard.last(), Some(&NetworkEvent::Lagged));
        assert!(!heard[..EVENT_QUEUE - 1].contains(&NetworkEvent::Lagged));

        sender.send(NetworkEvent::AddressAdded(address(9)));
        assert_eq!(receiver.try_recv(), Ok(NetworkEvent::AddressAdded(address(9))));
    }
}
