//! An internet of namespaces.
//!
//! ```text
//!                     namespace anl-PID-N-net, routes, has no way out
//!   +-------------------------------------------------------------------------------+
//!   |           every port: 203.0.113.254, 2001:db8:0:n::ffff                       |
//!   |     p1                  p2                     p3                  p4         |
//!   +-----|-------------------|----------------------|-------------------|----------+
//!         | access            | access               | access            | access
//!       eth0                 wan                    wan                 wan
//!   203.0.113.1          203.0.113.2            203.0.113.3         203.0.113.4
//!   2001:db8:0:1::1     +-- router --+      +-- carrier NAT --+   +-- router --+
//!     public host       | NAT        |      | 100.64.0.1/10   |   | Nat::None  |
//!                       +--- lan ----+      +------ lan ------+   +--- lan ----+
//!                      192.168.1.1/24              | access     198.51.100.33/29
//!                             |                    wan           2001:db8:0:104::ffff/64
//!                            eth0             100.64.0.10              |
//!                       192.168.1.10         +- home router -+        eth0
//!                           host             | NAT           |   198.51.100.34
//!                                            +----- lan -----+   2001:db8:0:104::a
//!                                             192.168.1.1/24         host
//!                                                   |
//!                                                  eth0
//!                                              192.168.1.10
//!                                                  host
//! ```
//!
//! An access is a plain wire or a [`Link`] with properties. The core routes: a packet that does not fit an access gets
//! its "too big", and hosts are no neighbours of each other.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::host::{Host, Namespace, Turn};
use super::router::{Inside, Router, drop_icmp_errors, load};
use super::{Link, Nat, Shape};

/// The core's address on every port.
const CORE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// How far apart the two addresses of one attachment are.
const OTHER_ADDRESS: u8 = 100;
/// Attachments of the core: a /29 of 198.51.100.0/24 for each.
const PORTS_MOST: u8 = 31;

/// The core. Hosts and routers are the caller's; whatever is dropped first, nothing is left at the end.
pub(crate) struct Internet {
    ports: Cell<u8>,
    hosts: Cell<u8>,
    routers: Cell<u8>,
    core: Namespace,
    turn: Turn,
}

/// A host and what stands between it and the core.
pub(crate) struct Place {
    /// The host.
    pub(crate) host: Host,
    router: Option<Router>,
    carrier: Option<Router>,
    cable: Option<Cable>,
}

impl Internet {
    /// An internet with nobody on it.
    pub(crate) fn new() -> Self {
        let turn = Turn::take();
        let core = forwarding(&format!("{}-net", turn.prefix));
        core.ip("addr add 2001:db8::ffff/128 dev lo nodad");
        Self { ports: Cell::new(0), hosts: Cell::new(0), routers: Cell::new(0), core, turn }
    }

    /// A host right at the core, IPv4 and IPv6.
    pub(crate) fn public_host(&self, access: Option<Shape>) -> Place {
        let uplink = self.next_uplink();
        let host = Host::alone(&self.turn.prefix, next(&self.hosts), uplink.ipv4, uplink.ipv6());
        let cable = self.plug(host.namespace(), "eth0", &uplink, access);
        uplink.configure_ipv4(host.own_namespace(), "eth0", uplink.ipv4);
        host.ip("link set eth0 up");
        uplink.route(host.own_namespace(), "eth0", Nat::None);
        host.wait_until_settled();
        Place { host, router: None, carrier: None, cable: Some(cable) }
    }

    /// A host behind a router of its own.
    pub(crate) fn host_behind(&self, nat: Nat, access: Option<Shape>) -> Place {
        let router = self.router(nat, access);
        Place { host: self.host_at(&router), router: Some(router), carrier: None, cable: None }
    }

    /// A host behind a home router behind a carrier's. `access` is between the home and the carrier.
    pub(crate) fn double_nat_host(&self, home: Nat, carrier: Nat, access: Option<Shape>) -> Place {
        let carrier = self.carrier(carrier, None);
        let router = self.router_behind(&carrier, home, access);
        Place { host: self.host_at(&router), router: Some(router), carrier: Some(carrier), cable: None }
    }

    /// A router at the core, with nobody behind it.
    pub(crate) fn router(&self, nat: Nat, access: Option<Shape>) -> Router {
        self.router_at_core(nat, access, None)
    }

    /// A carrier's router at the core: the network behind is 100.64.0.0/10.
    pub(crate) fn carrier(&self, nat: Nat, access: Option<Shape>) -> Router {
        assert!(nat.translates(), "behind a carrier are no public addresses");
        self.router_at_core(nat, access, Some(Inside::Carrier))
    }

    /// A home router that has its external address from `carrier`.
    pub(crate) fn router_behind(&self, carrier: &Router, nat: Nat, access: Option<Shape>) -> Router {
        assert!(nat.translates(), "behind a carrier are no public addresses");
        let (uplink, device) = carrier.uplink();
        let namespace = self.router_namespace();
        let far = (carrier.namespace.name.as_str(), device.as_str());
        let cable = Cable::lay(self.directory(), (&namespace.name, "wan"), far, access);
        carrier.bridge(&device);
        Router::new(namespace, nat, Inside::Home, uplink, cable)
    }

    /// One more host behind `router`. To move one from router to router, use [`Router::attach`].
    pub(crate) fn host_at(&self, router: &Router) -> Host {
        let (ipv4, ipv6) = router.next_addresses();
        let host = Host::alone(&self.turn.prefix, next(&self.hosts), ipv4, ipv6);
        router.attach(&host);
        host
    }

    /// Gives a router at the core one more address, from outside those the lab is made of.
    pub(super) fn route_another_address(&self, router: &Router) -> Ipv4Addr {
        let port = router.wan.port();
        let address = Ipv4Addr::new(45, 0, 0, port);
        router.namespace.ip(&format!("addr add {address}/32 dev wan"));
        self.core.ip(&format!("route add {address} dev p{port}"));
        address
    }

    /// Keeps the core from saying "too big", "unreachable" or "time exceeded", and from passing that on.
    pub(crate) fn drop_icmp_errors(&self) {
        drop_icmp_errors(&self.core);
    }

    /// Loses UDP on these ways, each from an external address to another and in that direction only, and no longer
    /// on ways given before. Nobody is told.
    pub(crate) fn lose_udp(&self, ways: &[(Ipv4Addr, Ipv4Addr)]) {
        let drops: String =
            ways.iter().map(|(from, to)| format!("ip saddr {from} ip daddr {to} meta l4proto udp drop\n")).collect();
        let chain = format!("chain forward {{\ntype filter hook forward priority filter\n{drops}}}\n");
        load(&self.core, &format!("table inet lost\ndelete table inet lost\ntable inet lost {{\n{chain}}}\n"));
    }

    /// A directory for the files of this lab, readable by everybody.
    pub(crate) fn directory(&self) -> &Path {
        self.turn.directory.path()
    }

    fn router_at_core(&self, nat: Nat, access: Option<Shape>, inside: Option<Inside>) -> Router {
        let uplink = self.next_uplink();
        let namespace = self.router_namespace();
        let cable = self.plug(&namespace.name, "wan", &uplink, access);
        let port = uplink.port();
        if !nat.translates() {
            self.core.ip(&format!("route add 198.51.100.{}/29 via {} dev p{port} onlink", port * 8, uplink.ipv4));
            self.core.ip(&format!("-6 route add 2001:db8:0:{:x}::/64 via {}", 0x100 + u16::from(port), uplink.ipv6()));
        }
        let inside = inside.unwrap_or(if nat.translates() { Inside::Home } else { Inside::Public(port) });
        Router::new(namespace, nat, inside, uplink, cable)
    }

    fn router_namespace(&self) -> Namespace {
        forwarding(&format!("{}-r{}", self.turn.prefix, next(&self.routers)))
    }

    fn next_uplink(&self) -> Uplink {
        let port = next(&self.ports) + 1;
        assert!(port <= PORTS_MOST, "the core has {PORTS_MOST} ports");
        Uplink { ipv4: Ipv4Addr::new(203, 0, 113, port), gateway: CORE, length: 32, port: Some(port) }
    }

    /// Lays the access, and sets up the core's end.
    fn plug(&self, namespace: &str, device: &str, uplink: &Uplink, access: Option<Shape>) -> Cable {
        let port = uplink.port();
        let name = format!("p{port}");
        let cable = Cable::lay(self.directory(), (namespace, device), (&self.core.name, &name), access);
        self.core.ip(&format!("addr add {CORE}/32 dev {name}"));
        self.core.ip(&format!("addr add {}/64 dev {name} nodad", uplink.ipv6_gateway()));
        self.core.ip(&format!("link set {name} up"));
        for address in [uplink.ipv4, uplink.other(uplink.ipv4)] {
            self.core.ip(&format!("route add {address} dev {name}"));
        }
        cable
    }
}

impl Place {
    /// The router next to the host; fails the test when there is none.
    pub(crate) fn router(&self) -> &Router {
        self.router.as_ref().expect("a public host has no router")
    }

    /// The carrier's router; fails the test when there is none.
    pub(crate) fn carrier(&self) -> &Router {
        self.carrier.as_ref().expect("only double NAT has a carrier")
    }

    /// The access; fails the test when it is a plain wire.
    pub(crate) fn link(&self) -> &Link {
        self.cable.as_ref().map_or_else(|| self.router().link(), Cable::link)
    }

    /// Sets the largest packet everywhere from the host to the core.
    pub(crate) fn set_mtu(&self, bytes: u16) {
        if let Some(cable) = &self.cable {
            cable.set_mtu(bytes);
        }
        if let Some(carrier) = &self.carrier {
            carrier.set_inner_mtu(bytes, &[]);
            carrier.set_mtu(bytes);
        }
        if let Some(router) = &self.router {
            router.set_inner_mtu(bytes, &[&self.host]);
            router.set_mtu(bytes);
        }
    }
}

/// A wire with two ends, each in a namespace: a veth pair, or a [`Link`].
pub(super) struct Cable {
    ends: [(String, String); 2],
    link: Option<Link>,
}

impl Cable {
    fn lay(directory: &Path, near: (&str, &str), far: (&str, &str), access: Option<Shape>) -> Self {
        let link = access.map(|shape| Link::join(directory, near, far, shape));
        let cable = Self { ends: [near, far].map(|(namespace, name)| (namespace.to_owned(), name.to_owned())), link };
        if cable.link.is_none() {
            ip(near.0, &format!("link add {} type veth peer name {} netns {}", near.1, far.1, far.0));
        }
        cable
    }

    pub(super) fn link(&self) -> &Link {
        self.link.as_ref().expect("the access is a plain wire, not a link with properties")
    }

    pub(super) fn set_mtu(&self, bytes: u16) {
        for (namespace, device) in &self.ends {
            ip(namespace, &format!("link set {device} mtu {bytes}"));
        }
    }
}

/// Where the outer end of a host or router is attached, and the addresses that go with it.
pub(super) struct Uplink {
    pub(super) ipv4: Ipv4Addr,
    gateway: Ipv4Addr,
    length: u8,
    /// Port of the core; none behind a carrier.
    port: Option<u8>,
}

impl Uplink {
    pub(super) fn behind(ipv4: Ipv4Addr, gateway: Ipv4Addr, length: u8) -> Self {
        Self { ipv4, gateway, length, port: None }
    }

    /// The other of the two addresses it may have.
    pub(super) fn other(&self, current: Ipv4Addr) -> Ipv4Addr {
        let [a, b, c, last] = self.ipv4.octets();
        if current == self.ipv4 { Ipv4Addr::new(a, b, c, last + OTHER_ADDRESS) } else { self.ipv4 }
    }

    /// Gives `device` its IPv4 address.
    pub(super) fn configure_ipv4(&self, namespace: &Namespace, device: &str, address: Ipv4Addr) {
        namespace.ip(&format!("addr add {address}/{} dev {device}", self.length));
    }

    /// Sets default routes, and the IPv6 address at the core. The device must be up.
    pub(super) fn route(&self, namespace: &Namespace, device: &str, nat: Nat) {
        if nat.has_ipv4() {
            namespace.ip(&format!("route replace default via {} dev {device} onlink", self.gateway));
        }
        if nat.has_ipv6() {
            namespace.ip(&format!("addr replace {}/64 dev {device} nodad", self.ipv6()));
            namespace.ip(&format!("-6 route replace default via {}", self.ipv6_gateway()));
        }
    }

    fn port(&self) -> u8 {
        self.port.expect("attached to the core")
    }

    fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(self.port()), 0, 0, 0, 1)
    }

    fn ipv6_gateway(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(self.port()), 0, 0, 0, 0xffff)
    }
}

/// A namespace that forwards.
fn forwarding(name: &str) -> Namespace {
    let namespace = Namespace::new(name.to_owned());
    namespace.shell(
        "cd /proc/sys/net; echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding; \
         for each in all default; do echo 0 >ipv4/conf/$each/rp_filter; echo 0 >ipv6/conf/$each/accept_dad; done; \
         echo 0 >ipv4/icmp_ratelimit; echo 0 >ipv6/icmp/ratelimit",
    );
    namespace.ip("link set lo up");
    namespace
}

fn ip(namespace: &str, words: &str) {
    let mut command = std::process::Command::new("ip");
    super::run(command.args(["-n", namespace]).args(words.split_whitespace()), super::SOON).ok();
}

fn next(counter: &Cell<u8>) -> u8 {
    counter.replace(counter.get() + 1)
}
