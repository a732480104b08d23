//! Routers: a namespace that forwards from `lan` to `wan`, with a NAT or a firewall on the way.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use super::host::{Host, Namespace, PYTHON};
use super::internet::{Cable, Uplink};
use super::{Link, Nat, SOON, run, script};

/// How long a router remembers an idle UDP mapping unless told otherwise (RFC 4787, REQ-5: at least two minutes).
const UDP_TIMEOUT: Duration = Duration::from_secs(120);
/// First host number behind a router.
const FIRST_HOST: u8 = 10;

/// The network on the side of the hosts.
#[derive(Clone, Copy)]
pub(super) enum Inside {
    /// 192.168.1.0/24, the same in every home as on the real internet.
    Home,
    /// 100.64.0.0/10.
    Carrier,
    /// 198.51.100.8n/29 and 2001:db8:0:100+n::/64, routed here by the core.
    Public(u8),
}

/// A router. Everything of it is gone when it is dropped.
pub(crate) struct Router {
    /// What it does on the way.
    pub(crate) nat: Nat,
    inside: Inside,
    pub(super) wan: Uplink,
    external: Cell<Ipv4Addr>,
    udp_timeout: Cell<Duration>,
    reboots: Cell<u16>,
    attached: Cell<u8>,
    cable: Cable,
    pub(super) namespace: Namespace,
}

impl Router {
    /// A router whose `wan` device is there already, at the end of `cable`.
    pub(super) fn new(namespace: Namespace, nat: Nat, inside: Inside, wan: Uplink, cable: Cable) -> Self {
        let router = Self {
            nat,
            inside,
            external: Cell::new(wan.ipv4),
            wan,
            udp_timeout: Cell::new(UDP_TIMEOUT),
            reboots: Cell::new(0),
            attached: Cell::new(0),
            cable,
            namespace,
        };
        // Rules first: nothing passes without them.
        router.set_udp_timeout(UDP_TIMEOUT);
        router.namespace.ip("link add lan type bridge mcast_snooping 0");
        if nat.has_ipv4() {
            let (gateway, length) = router.gateway();
            router.namespace.ip(&format!("addr add {gateway}/{length} dev lan"));
            router.wan.configure_ipv4(&router.namespace, "wan", router.wan.ipv4);
        }
        if nat.has_ipv6() {
            router.namespace.ip(&format!("addr add {}/64 dev lan nodad", router.ipv6(0xffff)));
        }
        router.namespace.ip("link set lan up");
        router.namespace.ip("link set wan up");
        router.wan.route(&router.namespace, "wan", nat);
        router
    }

    /// Its address on the side of the internet; unspecified without IPv4.
    pub(crate) fn external_ipv4(&self) -> Ipv4Addr {
        if self.nat.has_ipv4() { self.external.get() } else { Ipv4Addr::UNSPECIFIED }
    }

    /// The link to the internet; fails the test when it is a plain one.
    pub(crate) fn link(&self) -> &Link {
        self.cable.link()
    }

    /// Sets the largest packet of the link to the internet, both ends. For larger ones the router says "too big",
    /// unless it is told to [`drop_icmp_errors`](Self::drop_icmp_errors).
    pub(crate) fn set_mtu(&self, bytes: u16) {
        self.cable.set_mtu(bytes);
    }

    /// Sets the largest packet on the side of the hosts; `hosts` are those attached.
    pub(crate) fn set_inner_mtu(&self, bytes: u16, hosts: &[&Host]) {
        for host in hosts {
            host.ip(&format!("link set eth0 mtu {bytes}"));
        }
        self.namespace.shell(&format!(
            "for port in /sys/class/net/lan/brif/*; do ip link set ${{port##*/}} mtu {bytes}; done; ip link set lan mtu {bytes}"
        ));
    }

    /// Changes how long idle UDP mappings live, in whole seconds. Mappings made before are forgotten.
    pub(crate) fn set_udp_timeout(&self, life: Duration) {
        self.udp_timeout.set(life);
        let seconds = life.as_secs();
        assert!(seconds > 0, "a mapping lives for a second at least");
        for name in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            self.namespace.shell(&format!("echo {seconds} >/proc/sys/net/netfilter/{name}"));
        }
        self.start_anew();
    }

    /// Restarts: all mappings are forgotten, new ones get other ports.
    pub(crate) fn reboot(&self) {
        self.reboots.set(self.reboots.get() + 1);
        self.start_anew();
    }

    /// Restarts with another address on the side of the internet.
    pub(crate) fn reboot_with_new_address(&self) {
        assert!(self.nat.translates(), "hosts behind {:?} have the address themselves", self.nat);
        let (old, new) = (self.external.get(), self.wan.other(self.external.get()));
        self.namespace.ip(&format!("addr flush dev wan to {old}"));
        self.wan.configure_ipv4(&self.namespace, "wan", new);
        self.wan.route(&self.namespace, "wan", self.nat);
        self.external.set(new);
        self.reboot();
    }

    /// Drops every "too big", "unreachable" and "time exceeded" that passes or would be sent.
    pub(crate) fn drop_icmp_errors(&self) {
        drop_icmp_errors(&self.namespace);
    }

    /// Attaches `host`, after detaching it from wherever it was. Returns its addresses, unspecified where it has none.
    pub(crate) fn attach(&self, host: &Host) -> (Ipv4Addr, Ipv6Addr) {
        let number = self.attached.replace(self.attached.get() + 1);
        let device = format!("h{number}");
        let _ = run(Command::new("ip").args(["-n", host.namespace(), "link", "del", "eth0"]), SOON);
        self.plug(&device, host.namespace(), "eth0");
        let (ipv4, ipv6) = self.addresses(number);
        if self.nat.has_ipv4() {
            let (gateway, length) = self.gateway();
            host.ip(&format!("addr add {ipv4}/{length} dev eth0"));
            host.ip("link set eth0 up");
            host.ip(&format!("route add default via {gateway}"));
        }
        if self.nat.has_ipv6() {
            host.ip(&format!("addr add {ipv6}/64 dev eth0 nodad"));
            host.ip("link set eth0 up");
            host.ip(&format!("-6 route add default via {}", self.ipv6(0xffff)));
        }
        host.wait_until_settled();
        (ipv4, ipv6)
    }

    /// Addresses of the host with this number, counted from zero.
    pub(super) fn addresses(&self, number: u8) -> (Ipv4Addr, Ipv6Addr) {
        let ipv4 = match self.inside {
            Inside::Home => Ipv4Addr::new(192, 168, 1, FIRST_HOST + number),
            Inside::Carrier => Ipv4Addr::new(100, 64, 0, FIRST_HOST + number),
            Inside::Public(site) => Ipv4Addr::new(198, 51, 100, site * 8 + 2 + number),
        };
        let ipv6 = if self.nat.has_ipv6() { self.ipv6(u16::from(FIRST_HOST + number)) } else { Ipv6Addr::UNSPECIFIED };
        (if self.nat.has_ipv4() { ipv4 } else { Ipv4Addr::UNSPECIFIED }, ipv6)
    }

    /// The addresses the next one that is attached gets.
    pub(super) fn next_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.addresses(self.attached.get())
    }

    /// How a router is attached that stands behind this one; its `wan` device is made by the caller, with the other
    /// end as `device` here.
    pub(super) fn uplink(&self) -> (Uplink, String) {
        let number = self.attached.replace(self.attached.get() + 1);
        let (gateway, length) = self.gateway();
        (Uplink::behind(self.addresses(number).0, gateway, length), format!("h{number}"))
    }

    /// Makes `device` part of the inner network.
    pub(super) fn bridge(&self, device: &str) {
        self.namespace.ip(&format!("link set {device} master lan"));
        self.namespace.ip(&format!("link set {device} up"));
    }

    fn plug(&self, device: &str, namespace: &str, far: &str) {
        self.namespace.ip(&format!("link add {device} type veth peer name {far} netns {namespace}"));
        self.bridge(device);
    }

    fn gateway(&self) -> (Ipv4Addr, u8) {
        match self.inside {
            Inside::Home => (Ipv4Addr::new(192, 168, 1, 1), 24),
            Inside::Carrier => (Ipv4Addr::new(100, 64, 0, 1), 10),
            Inside::Public(site) => (Ipv4Addr::new(198, 51, 100, site * 8 + 1), 29),
        }
    }

    fn ipv6(&self, number: u16) -> Ipv6Addr {
        let Inside::Public(site) = self.inside else { panic!("only sites with public addresses have IPv6") };
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0x100 + u16::from(site), 0, 0, 0, number)
    }

    /// Adds rules, until it starts anew.
    pub(super) fn load_rules(&self, rules: &str) {
        load(&self.namespace, rules);
    }

    /// Nothing passes meanwhile: a packet between two steps would bring an old mapping back.
    fn start_anew(&self) {
        load(
            &self.namespace,
            "table inet closed {\nchain way_in {\ntype filter hook prerouting priority raw; policy drop\n}\n}",
        );
        load(
            &self.namespace,
            &self.nat.rules(&self.external.get().to_string(), self.udp_timeout.get(), self.reboots.get()),
        );
        let mut forget = Command::new("ip");
        forget.args(["netns", "exec", &self.namespace.name, PYTHON]).arg(script("forget.py"));
        run(&mut forget, SOON).ok();
        load(&self.namespace, "delete table inet closed");
    }
}

/// Makes a namespace a router that says nothing about packets that are lost.
pub(super) fn drop_icmp_errors(namespace: &Namespace) {
    let chains: String = ["forward", "output"]
        .map(|hook| {
            format!(
                "chain {hook} {{
                    type filter hook {hook} priority filter
                    icmp type {{ destination-unreachable, time-exceeded }} drop
                    icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded }} drop
                }}\n"
            )
        })
        .concat();
    load(namespace, &format!("table inet mute\ndelete table inet mute\ntable inet mute {{\n{chains}}}\n"));
}

pub(super) fn load(namespace: &Namespace, rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{rules}\n")).unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.name, "nft", "-f"]).arg(file.path());
    run(&mut command, SOON).ok();
}
