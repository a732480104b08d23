//! What is connected to what.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::counters::{BoxCounters, Drops};
use super::firewall::{Firewall, FirewallConfig};
use super::forward::Queue;
use super::link::{Link, LinkConfig};
use super::nat::{Nat, NatConfig};
use super::rng::SimRng;
use super::sites::AddressPlan;

/// A host, by its number in order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

/// An interface of a host, unique in the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceId(pub(super) usize);

/// A NAT, a firewall, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BoxId(pub(super) usize);

/// Where interfaces and boxes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// The public internet.
    Core,
    /// The inside of a box.
    Behind(BoxId),
}

/// What is attached to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A host's interface.
    Interface(InterfaceId),
    /// The outside of a box.
    Box(BoxId),
}

/// Which of an attachment's two links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the core.
    Up,
    /// From the core.
    Down,
}

/// What a box does. One that does nothing is a router.
#[derive(Clone, Debug, Default)]
pub struct BoxConfig {
    /// How IPv4 is translated, and to which address of the segment outside.
    pub nat: Option<(NatConfig, Ipv4Addr)>,
    /// How what is not translated (IPv6, and IPv4 without `nat`) is filtered; not at all if none.
    pub firewall: Option<FirewallConfig>,
}

pub(super) struct Host {
    /// In order of preference.
    pub(super) interfaces: Vec<InterfaceId>,
}

pub(super) struct Interface {
    pub(super) host: HostId,
    pub(super) segment: Segment,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) is_up: bool,
    pub(super) up: Link,
    pub(super) down: Link,
}

pub(super) struct Middlebox {
    pub(super) segment: Segment,
    pub(super) nat: Option<Nat>,
    pub(super) firewall: Option<Firewall>,
    pub(super) up: Link,
    pub(super) down: Link,
    pub(super) counters: BoxCounters,
}

/// Decides whether a datagram (source and destination as the sender knows them, payload) is lost.
pub(super) type DropRule = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8]) -> bool>;

/// The internet. See the module for how to drive it.
pub struct Internet {
    pub(super) rng: SimRng,
    pub(super) hosts: Vec<Host>,
    pub(super) interfaces: Vec<Interface>,
    pub(super) boxes: Vec<Middlebox>,
    /// What is next on the way down to an address.
    pub(super) routes: BTreeMap<(Segment, IpAddr), Attachment>,
    /// Links between two addresses at the core.
    pub(super) paths: BTreeMap<(IpAddr, IpAddr), Link>,
    pub(super) queue: Queue,
    pub(super) drop_rule: Option<DropRule>,
    pub(super) drops: Drops,
    pub(super) plan: AddressPlan,
}

impl Internet {
    /// An internet without hosts, whose chances come from `rng`.
    pub fn new(rng: SimRng) -> Self {
        Self {
            rng,
            hosts: Vec::new(),
            interfaces: Vec::new(),
            boxes: Vec::new(),
            routes: BTreeMap::new(),
            paths: BTreeMap::new(),
            queue: Queue::default(),
            drop_rule: None,
            drops: Drops::default(),
            plan: AddressPlan::default(),
        }
    }

    /// A host without interfaces.
    pub fn add_host(&mut self) -> HostId {
        self.hosts.push(Host { interfaces: Vec::new() });
        HostId(self.hosts.len() - 1)
    }

    /// Gives a host one more interface, whose two links begin alike. A host sends over the interface that shares a
    /// segment with the destination, else over the first that is up and has an address of the family.
    ///
    /// # Panics
    /// When somebody in reach of the segment has one of the addresses.
    pub fn add_interface(
        &mut self,
        host: HostId,
        segment: Segment,
        addresses: &[IpAddr],
        link: LinkConfig,
    ) -> InterfaceId {
        let id = InterfaceId(self.interfaces.len());
        let (up, down) = (self.link(link.clone()), self.link(link));
        self.interfaces.push(Interface { host, segment, addresses: addresses.to_vec(), is_up: true, up, down });
        self.hosts[host.0].interfaces.push(id);
        self.rebuild_routes();
        id
    }

    /// A box between `segment` and a new segment inside.
    ///
    /// # Panics
    /// When somebody in reach of the segment has the external address.
    pub fn add_box(&mut self, segment: Segment, config: BoxConfig, link: LinkConfig) -> BoxId {
        let id = BoxId(self.boxes.len());
        let (up, down) = (self.link(link.clone()), self.link(link));
        let nat = config.nat.map(|(nat, external)| Nat::new(nat, external, self.rng.fork()));
        let firewall = config.firewall.map(Firewall::new);
        self.boxes.push(Middlebox { segment, nat, firewall, up, down, counters: BoxCounters::default() });
        self.rebuild_routes();
        id
    }

    /// The interface goes away; what is under way to it is lost.
    pub fn take_down(&mut self, interface: InterfaceId) {
        self.interfaces[interface.0].is_up = false;
        self.rebuild_routes();
    }

    /// The interface is up, at this segment, with these addresses and no others.
    ///
    /// # Panics
    /// When somebody else in reach of the segment has one of the addresses.
    pub fn bring_up(&mut self, interface: InterfaceId, segment: Segment, addresses: &[IpAddr]) {
        let state = &mut self.interfaces[interface.0];
        state.is_up = true;
        state.segment = segment;
        state.addresses = addresses.to_vec();
        self.rebuild_routes();
    }

    /// The interface is up again where it was, with the addresses it had.
    ///
    /// # Panics
    /// When somebody else in reach of the segment has one of them by now.
    pub fn bring_back(&mut self, interface: InterfaceId) {
        self.interfaces[interface.0].is_up = true;
        self.rebuild_routes();
    }

    /// A box loses all mappings and sessions and, if given, changes its external address. External ports that were in
    /// use are not used again before the next reboot.
    ///
    /// # Panics
    /// When somebody in reach of the segment outside has the new address.
    pub fn reboot(&mut self, id: BoxId, new_external: Option<Ipv4Addr>) {
        let middlebox = &mut self.boxes[id.0];
        if let Some(nat) = &mut middlebox.nat {
            nat.reboot(new_external);
        }
        if let Some(firewall) = &mut middlebox.firewall {
            firewall.reboot();
        }
        self.rebuild_routes();
    }

    /// One of the two links of an attachment.
    pub fn link_mut(&mut self, attachment: Attachment, direction: Direction) -> &mut Link {
        let (up, down) = match attachment {
            Attachment::Interface(id) => {
                let state = &mut self.interfaces[id.0];
                (&mut state.up, &mut state.down)
            }
            Attachment::Box(id) => {
                let state = &mut self.boxes[id.0];
                (&mut state.up, &mut state.down)
            }
        };
        match direction {
            Direction::Up => up,
            Direction::Down => down,
        }
    }

    /// The link that packets from one address to another pass at the core, besides those of hosts and boxes. Before
    /// this is called there is none; it begins as one that does nothing. Addresses are those seen at the core.
    pub fn path_mut(&mut self, from: IpAddr, to: IpAddr) -> &mut Link {
        let rng = self.rng.fork();
        let unlimited = LinkConfig { mtu: usize::MAX, ..LinkConfig::default() };
        self.paths.entry((from, to)).or_insert_with(|| Link::new(unlimited, rng))
    }

    /// From now on `rule` says which datagrams (source and destination as the sender knows them, payload) are lost where
    /// they are sent: for faults that look at contents. Links have all others.
    pub fn set_drop_rule(&mut self, rule: impl FnMut(SocketAddr, SocketAddr, &[u8]) -> bool + 'static) {
        self.drop_rule = Some(Box::new(rule));
    }

    /// From now on only links and boxes lose datagrams.
    pub fn clear_drop_rule(&mut self) {
        self.drop_rule = None;
    }

    /// A host's interfaces in order of preference.
    pub fn interfaces(&self, host: HostId) -> &[InterfaceId] {
        &self.hosts[host.0].interfaces
    }

    /// The addresses of a host's interfaces that are up, in order of preference.
    pub fn addresses(&self, host: HostId) -> Vec<IpAddr> {
        let interfaces = self.hosts[host.0].interfaces.iter().map(|id| &self.interfaces[id.0]);
        interfaces.filter(|interface| interface.is_up).flat_map(|interface| interface.addresses.clone()).collect()
    }

    /// A NAT's external address.
    pub fn external(&self, id: BoxId) -> Option<Ipv4Addr> {
        self.boxes[id.0].nat.as_ref().map(|nat| nat.external)
    }

    /// A box's counters.
    pub fn box_counters(&self, id: BoxId) -> &BoxCounters {
        &self.boxes[id.0].counters
    }

    /// How many mappings of a box (for a firewall: internal endpoints) are not idle.
    pub fn live_mappings(&self, now: Duration, id: BoxId) -> usize {
        let middlebox = &self.boxes[id.0];
        let mapped = middlebox.nat.as_ref().map_or(0, |nat| nat.live_mappings(now));
        mapped + middlebox.firewall.as_ref().map_or(0, |firewall| firewall.live_endpoints(now))
    }

    /// All packets dropped anywhere.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    fn link(&mut self, config: LinkConfig) -> Link {
        Link::new(config, self.rng.fork())
    }

    fn rebuild_routes(&mut self) {
        let mut routes = BTreeMap::new();
        for (number, interface) in self.interfaces.iter().enumerate().filter(|(_, interface)| interface.is_up) {
            for address in &interface.addresses {
                self.announce(&mut routes, interface.segment, *address, Attachment::Interface(InterfaceId(number)));
            }
        }
        for (number, middlebox) in self.boxes.iter().enumerate() {
            if let Some(nat) = &middlebox.nat {
                let holder = Attachment::Box(BoxId(number));
                self.announce(&mut routes, middlebox.segment, nat.external.into(), holder);
            }
        }
        self.routes = routes;
    }

    /// Enters the way down to an address into its segment and those outside, up to the first box that translates.
    fn announce(
        &self,
        routes: &mut BTreeMap<(Segment, IpAddr), Attachment>,
        mut segment: Segment,
        address: IpAddr,
        mut next: Attachment,
    ) {
        loop {
            assert!(routes.insert((segment, address), next).is_none(), "two holders of {address} at {segment:?}");
            let Segment::Behind(id) = segment else { return };
            let middlebox = &self.boxes[id.0];
            if address.is_ipv4() && middlebox.nat.is_some() {
                return;
            }
            (segment, next) = (middlebox.segment, Attachment::Box(id));
        }
    }
}
