//! The simulated internet itself: NATs behave as RFC 4787 words it, links as configured, and a run can be replayed.

mod hosts;
mod links;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentnet_sim::net::{
    BoxConfig, BoxId, Delivery, Dependence, DropReason, FIRST_PORT, FirewallConfig, HostId, Internet, Lifetime,
    LinkConfig, NatConfig, NatKind, PortAllocation, Refresh, Segment, SimRng, Site, SiteOptions,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 41_641;

const DEPENDENCES: [Dependence; 3] =
    [Dependence::EndpointIndependent, Dependence::AddressDependent, Dependence::AddressAndPortDependent];

/// An internet, its clock, and two servers to talk to. Between any two sites a packet takes 20 ms.
struct Lab {
    net: Internet,
    now: Duration,
    servers: [HostId; 2],
}

impl Lab {
    fn new(rng: SimRng) -> Self {
        let mut net = Internet::new(rng);
        let public = net.add_site(&SiteOptions { has_v6: true, ..SiteOptions::new(NatKind::None, access()) });
        let servers = [net.add_host_at(&public), net.add_host_at(&public)];
        Self { net, now: Duration::ZERO, servers }
    }

    /// A site behind one NAT, and a host in it.
    fn behind(&mut self, nat: NatConfig) -> (Site, HostId) {
        let options = SiteOptions { nats: vec![nat], ..SiteOptions::new(NatKind::None, access()) };
        self.at(&options)
    }

    fn at(&mut self, options: &SiteOptions) -> (Site, HostId) {
        let site = self.net.add_site(options);
        let host = self.net.add_host_at(&site);
        (site, host)
    }

    /// One of a server's IPv4 endpoints.
    fn server(&self, number: usize, port: u16) -> SocketAddr {
        endpoint(&self.net, self.servers[number], port)
    }

    fn send(&mut self, host: HostId, port: u16, to: SocketAddr) {
        self.net.send(self.now, host, port, None, to, b"x".to_vec()).unwrap();
    }

    /// Lets everything under way arrive.
    fn settle(&mut self) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while let Some(at) = self.net.next_event() {
            self.now = self.now.max(at);
            deliveries.extend(self.net.deliver_until(self.now));
        }
        deliveries
    }

    /// Sends one datagram; what arrives of it.
    fn carry(&mut self, host: HostId, port: u16, to: SocketAddr) -> Option<Delivery> {
        self.send(host, port, to);
        let mut arrived = self.settle();
        assert!(arrived.len() <= 1);
        arrived.pop()
    }

    /// The source that others see: what STUN would say.
    fn seen(&mut self, host: HostId, port: u16, to: SocketAddr) -> SocketAddr {
        self.carry(host, port, to).expect("way out").source
    }

    fn lets_in(&mut self, host: HostId, port: u16, to: SocketAddr) -> bool {
        self.carry(host, port, to).is_some()
    }
}

fn access() -> LinkConfig {
    LinkConfig::with_delay(MS * 10)
}

fn endpoint(net: &Internet, host: HostId, port: u16) -> SocketAddr {
    let ip = net.addresses(host).into_iter().find(IpAddr::is_ipv4).unwrap();
    SocketAddr::new(ip, port)
}

fn lab() -> Lab {
    Lab::new(SimRng::from_seed(1))
}

fn drops(lab: &Lab, id: BoxId, reason: DropReason) -> u64 {
    lab.net.box_counters(id).drops.of(reason)
}

#[test]
fn mapping_and_filtering_are_independent_of_each_other() {
    for mapping in DEPENDENCES {
        for filtering in DEPENDENCES {
            let mut lab = lab();
            let (site, host) = lab.behind(NatConfig { mapping, filtering, ..NatConfig::full_cone() });
            let (a1, a2, b1) = (lab.server(0, 1), lab.server(0, 2), lab.server(1, 1));
            let seen = lab.seen(host, PORT, a1);
            assert_eq!(lab.seen(host, PORT, a1), seen, "a mapping is used again");

            // Filtering first: only a1 was sent to so far.
            let [a, b] = lab.servers;
            let lets_in = [(a, 1), (a, 2), (b, 1)].map(|(server, port)| lab.lets_in(server, port, seen));
            let expected = match filtering {
                Dependence::EndpointIndependent => [true, true, true],
                Dependence::AddressDependent => [true, true, false],
                Dependence::AddressAndPortDependent => [true, false, false],
            };
            assert_eq!(lets_in, expected, "{mapping:?} mapping, {filtering:?} filtering");
            let refused = lets_in.iter().filter(|is_in| !**is_in).count() as u64;
            assert_eq!(drops(&lab, site.boxes[0], DropReason::Filtered), refused);

            let is_same = [a2, b1].map(|to| lab.seen(host, PORT, to) == seen);
            let expected = match mapping {
                Dependence::EndpointIndependent => [true, true],
                Dependence::AddressDependent => [true, false],
                Dependence::AddressAndPortDependent => [false, false],
            };
            assert_eq!(is_same, expected, "{mapping:?} mapping, {filtering:?} filtering");
            let mappings = 1 + is_same.iter().filter(|is_same| !**is_same).count() as u64;
            assert_eq!(lab.net.box_counters(site.boxes[0]).mappings_created, mappings);
        }
    }
}

#[test]
fn what_comes_in_goes_to_the_internal_endpoint_of_its_mapping() {
    let mut lab = lab();
    let (site, first) = lab.behind(NatConfig::full_cone());
    let second = lab.net.add_host_at(&site);
    let server = lab.server(0, 1);
    for (host, port) in [(first, 10), (first, 11), (second, 10)] {
        let seen = lab.seen(host, port, server);
        let back = lab.carry(lab.servers[0], 1, seen).unwrap();
        assert_eq!((back.host, back.source), (host, server));
        assert_eq!(back.destination, endpoint(&lab.net, host, port));
    }
    let nobody = SocketAddr::new(lab.net.external(site.boxes[0]).unwrap().into(), 9);
    assert!(!lab.lets_in(lab.servers[0], 1, nobody));
    assert_eq!(drops(&lab, site.boxes[0], DropReason::NoMapping), 1);
}

#[test]
fn ports_are_preserved_until_two_hosts_want_the_same() {
    let mut lab = lab();
    let (site, first) = lab.behind(NatConfig::port_restricted());
    let second = lab.net.add_host_at(&site);
    let server = lab.server(0, 1);
    assert_eq!(lab.seen(first, PORT, server).port(), PORT);
    assert_ne!(lab.seen(second, PORT, server).port(), PORT);
    assert_eq!(lab.seen(second, 80, server).port(), 80);
}

#[test]
fn other_allocations_give_the_ports_they_are_named_for() {
    let ports_to_servers = |ports| {
        let mut lab = lab();
        let (site, host) = lab.behind(NatConfig { ports, ..NatConfig::symmetric_random() });
        let other = lab.net.add_host_at(&site);
        let own: Vec<_> = (1..=8).map(|port| lab.seen(host, PORT, lab.server(0, port)).port()).collect();
        (own, lab.seen(other, PORT, lab.server(0, 1)).port())
    };
    let steps = |ports: &[u16]| ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect::<BTreeSet<_>>();

    let (sequential, other) = ports_to_servers(PortAllocation::Sequential { step: 3 });
    assert_eq!(steps(&sequential), BTreeSet::from([3]));
    assert_eq!(other, sequential[7] + 3, "all hosts share the sequence");
    let (contiguous, other) = ports_to_servers(PortAllocation::Contiguous { block: 100 });
    assert_eq!(contiguous, (FIRST_PORT..FIRST_PORT + 8).collect::<Vec<_>>());
    assert_eq!(other, FIRST_PORT + 100, "the next host has the next block");
    let (random, _) = ports_to_servers(PortAllocation::Random);
    assert_eq!(steps(&random).len(), 7);
    assert!(!random.contains(&PORT));
}

#[test]
fn idle_mappings_expire_and_their_ports_change_hands() {
    let mut lab = lab();
    let (site, first) = lab.behind(NatConfig::full_cone());
    let second = lab.net.add_host_at(&site);
    let seen = lab.seen(first, PORT, lab.server(0, 1));
    // The NAT saw the packet at once; the way back to it takes 20 ms.
    let sent_at = lab.now - MS * 20;
    lab.now = sent_at + SECOND * 120 - MS * 21;
    assert!(lab.lets_in(lab.servers[0], 1, seen));
    lab.now = sent_at + SECOND * 120 - MS;
    assert_eq!(lab.net.live_mappings(lab.now, site.boxes[0]), 1);
    lab.now += MS;
    assert_eq!(lab.net.live_mappings(lab.now, site.boxes[0]), 0);
    assert!(!lab.lets_in(lab.servers[0], 1, seen));
    assert_eq!(lab.seen(second, PORT, lab.server(0, 1)), seen);
}

#[test]
fn a_port_that_changed_hands_a_moment_after_it_was_idle_has_one_owner() {
    let mut lab = lab();
    let (site, first) = lab.behind(NatConfig::full_cone());
    let [second, third] = [lab.net.add_host_at(&site), lab.net.add_host_at(&site)];
    let server = lab.server(0, 1);
    let seen = lab.seen(first, PORT, server);
    // The NAT tidies up now and not again within the second.
    lab.now = SECOND * 120 - MS * 100;
    lab.seen(third, 1, server);
    lab.now = SECOND * 120;
    assert_eq!(lab.seen(second, PORT, server), seen);
    assert_ne!(lab.seen(first, PORT, server), seen);
    assert_eq!(lab.carry(lab.servers[0], 1, seen).unwrap().host, second);
}

#[test]
fn only_the_refreshing_direction_keeps_a_mapping() {
    for (refresh, from_inside, survives) in [
        (Refresh::Outbound, true, true),
        (Refresh::Outbound, false, false),
        (Refresh::Both, true, true),
        (Refresh::Both, false, true),
    ] {
        for filtering in DEPENDENCES {
            let mut lab = lab();
            let lifetime = Lifetime { idle: SECOND * 30, refresh };
            let (_, host) = lab.behind(NatConfig { filtering, lifetime, ..NatConfig::full_cone() });
            let server = lab.server(0, 1);
            let seen = lab.seen(host, PORT, server);
            for _ in 0..3 {
                lab.now += SECOND * 20;
                if from_inside {
                    lab.send(host, PORT, server);
                } else {
                    lab.send(lab.servers[0], 1, seen);
                }
                lab.settle();
            }
            assert_eq!(lab.lets_in(lab.servers[0], 1, seen), survives, "{refresh:?} {filtering:?} {from_inside}");
        }
    }
}

#[test]
fn a_permission_expires_though_the_mapping_lives() {
    let mut lab = lab();
    let (_, host) = lab.behind(NatConfig::port_restricted());
    let seen = lab.seen(host, PORT, lab.server(0, 1));
    lab.now += SECOND * 60;
    assert_eq!(lab.seen(host, PORT, lab.server(1, 1)), seen);
    lab.now += SECOND * 61;
    assert!(!lab.lets_in(lab.servers[0], 1, seen));
    assert!(lab.lets_in(lab.servers[1], 1, seen));
}

#[test]
fn hairpinning_shows_the_external_source_and_filters() {
    for filtering in DEPENDENCES {
        let mut lab = lab();
        let (site, a) = lab.behind(NatConfig { hairpinning: true, filtering, ..NatConfig::full_cone() });
        let b = lab.net.add_host_at(&site);
        let server = lab.server(0, 1);
        let (seen_a, seen_b) = (lab.seen(a, 1_111, server), lab.seen(b, 2_222, server));
        let first = lab.carry(a, 1_111, seen_b);
        assert_eq!(first.is_some(), filtering == Dependence::EndpointIndependent);
        let answer = lab.carry(b, 2_222, seen_a).expect("a has sent to it");
        assert_eq!((answer.host, answer.source), (a, seen_b));
        assert_eq!(answer.destination, endpoint(&lab.net, a, 1_111));
        let third = lab.carry(a, 1_111, seen_b).expect("b has sent to it");
        assert_eq!((third.host, third.source), (b, seen_a));
        assert!(lab.net.box_counters(site.boxes[0]).hairpinned >= 2);
    }
}

#[test]
fn without_hairpinning_neighbours_meet_only_on_their_own_network() {
    let mut lab = lab();
    let (site, a) = lab.behind(NatConfig::full_cone());
    let b = lab.net.add_host_at(&site);
    let seen = lab.seen(b, PORT, lab.server(0, 1));
    assert!(lab.carry(a, PORT, seen).is_none());
    assert_eq!(drops(&lab, site.boxes[0], DropReason::NoHairpinning), 1);
    let local = endpoint(&lab.net, b, PORT);
    let arrived = lab.carry(a, PORT, local).unwrap();
    assert_eq!((arrived.host, arrived.source), (b, endpoint(&lab.net, a, PORT)));
    assert_eq!(lab.net.box_counters(site.boxes[0]).mappings_created, 1, "no NAT between neighbours");
}

#[test]
fn homes_have_the_same_addresses_and_do_not_meet_there() {
    let mut lab = lab();
    let (_, a) = lab.behind(NatConfig::full_cone());
    let (other, b) = lab.behind(NatConfig::full_cone());
    let neighbour = lab.net.add_host_at(&other);
    assert_eq!(lab.net.addresses(a), lab.net.addresses(b));
    let own = endpoint(&lab.net, b, PORT);
    assert_eq!(lab.carry(neighbour, PORT, own).unwrap().host, b);
    let unknown_at_home = endpoint(&lab.net, neighbour, PORT);
    assert!(lab.carry(a, PORT, unknown_at_home).is_none());
    assert_eq!(lab.net.drops().of(DropReason::NoRoute), 1);
}

#[test]
fn a_full_table_drops_new_sessions_until_old_ones_are_idle() {
    let mut lab = lab();
    let (site, host) = lab.behind(NatConfig { table_limit: 10, ..NatConfig::symmetric_random() });
    let id = site.boxes[0];
    let through = (1..=15).filter(|port| lab.carry(host, PORT, lab.server(0, *port)).is_some()).count();
    assert_eq!((through, drops(&lab, id, DropReason::TableFull)), (10, 5));
    assert!(lab.carry(host, PORT, lab.server(0, 1)).is_some(), "what is known still passes");
    assert_eq!(lab.net.box_counters(id).sessions_peak, 10);
    lab.now += SECOND * 121;
    assert!(lab.carry(host, PORT, lab.server(0, 15)).is_some());
    assert_eq!(lab.net.live_mappings(lab.now, id), 1);
}

#[test]
fn a_nat_without_free_ports_says_so() {
    let mut lab = lab();
    let ports = PortAllocation::Contiguous { block: 4 };
    let (site, host) = lab.behind(NatConfig { ports, ..NatConfig::symmetric_random() });
    let through = (1..=6).filter(|port| lab.carry(host, PORT, lab.server(0, *port)).is_some()).count();
    assert_eq!((through, drops(&lab, site.boxes[0], DropReason::PortsExhausted)), (4, 2));
}

#[test]
fn a_rebooted_nat_knows_nothing_and_uses_other_ports() {
    for kind in NatKind::ALL.into_iter().filter(|kind| *kind != NatKind::None) {
        let mut lab = lab();
        let (site, host) = lab.at(&SiteOptions::new(kind, access()));
        let server = lab.server(0, 1);
        let before = lab.seen(host, PORT, server);
        let outermost = site.boxes[0];
        lab.net.reboot(outermost, None);
        assert!(!lab.lets_in(lab.servers[0], 1, before), "{kind:?}");
        let after = lab.seen(host, PORT, server);
        assert_eq!(after.ip(), before.ip());
        assert_ne!(after.port(), before.port(), "{kind:?}");
        assert!(lab.lets_in(lab.servers[0], 1, after), "{kind:?}");

        lab.send(lab.servers[0], 1, after);
        let address = lab.net.fresh_external(Segment::Core);
        lab.net.reboot(outermost, Some(address));
        assert!(lab.settle().is_empty());
        assert_eq!(lab.seen(host, PORT, server).ip(), IpAddr::V4(address));
    }
}

#[test]
fn the_address_that_a_nat_gave_up_is_gone_for_what_is_under_way() {
    let mut lab = lab();
    let (site, host) = lab.behind(NatConfig::full_cone());
    let seen = lab.seen(host, PORT, lab.server(0, 1));
    lab.send(lab.servers[0], 1, seen);
    // Past the core, not yet at the NAT.
    lab.now += MS * 15;
    assert!(lab.net.deliver_until(lab.now).is_empty());
    let address = lab.net.fresh_external(Segment::Core);
    lab.net.reboot(site.boxes[0], Some(address));
    assert!(lab.settle().is_empty());
    assert_eq!(drops(&lab, site.boxes[0], DropReason::AddressGone), 1);
}

#[test]
fn homes_behind_one_carrier_are_translated_twice_and_meet_by_its_hairpin() {
    let mut lab = lab();
    let (site, a) = lab.at(&SiteOptions::new(NatKind::Double, access()));
    let carrier = site.boxes[0];
    let next_door = SiteOptions {
        nats: vec![NatConfig::port_restricted()],
        segment: Segment::Behind(carrier),
        has_v6: false,
        access: LinkConfig::default(),
    };
    let (_, b) = lab.at(&next_door);
    let server = lab.server(0, 1);
    let (seen_a, seen_b) = (lab.seen(a, PORT, server), lab.seen(b, PORT, server));
    let external = IpAddr::V4(lab.net.external(carrier).unwrap());
    assert_eq!((seen_a.ip(), seen_b.ip()), (external, external));
    assert!(lab.carry(a, PORT, seen_b).is_none(), "b's filters have not seen a");
    assert_eq!(lab.carry(b, PORT, seen_a).unwrap().source, seen_b);
    let arrived = lab.carry(a, PORT, seen_b).unwrap();
    assert_eq!((arrived.host, arrived.source), (b, seen_a));
    for id in &site.boxes {
        assert!(lab.net.box_counters(*id).mappings_created >= 1);
    }
}

#[test]
fn the_ipv6_firewall_lets_in_answers_and_translates_nothing() {
    let mut lab = lab();
    let (site, host) = lab.at(&SiteOptions { has_v6: true, ..SiteOptions::new(NatKind::Double, access()) });
    let v6 = |lab: &Lab, host, port| {
        let ip = lab.net.addresses(host).into_iter().find(IpAddr::is_ipv6).unwrap();
        SocketAddr::new(ip, port)
    };
    let (own, server) = (v6(&lab, host, PORT), v6(&lab, lab.servers[0], 1));
    assert!(!lab.lets_in(lab.servers[0], 1, own));
    assert_eq!(lab.seen(host, PORT, server), own);
    assert!(lab.lets_in(lab.servers[0], 1, own));
    assert!(!lab.lets_in(lab.servers[0], 2, own), "another port");
    assert!(!lab.lets_in(lab.servers[1], 1, own), "another address");
    let firewall = site.boxes[1];
    assert_eq!(drops(&lab, firewall, DropReason::NoMapping), 1);
    assert_eq!(drops(&lab, firewall, DropReason::Filtered), 2);
    lab.now += SECOND * 120;
    assert!(!lab.lets_in(lab.servers[0], 1, own), "idle");
    assert_eq!(lab.seen(host, PORT, server), own);
    lab.net.reboot(firewall, None);
    assert!(!lab.lets_in(lab.servers[0], 1, own), "rebooted");
}

#[test]
fn a_firewall_alone_filters_public_hosts_as_told() {
    for filtering in DEPENDENCES {
        let mut lab = lab();
        let config = FirewallConfig { filtering, table_limit: 1, ..FirewallConfig::default() };
        let id = lab.net.add_box(Segment::Core, BoxConfig { nat: None, firewall: Some(config) }, access());
        let host = lab.net.add_host();
        let own = SocketAddr::from(([198, 51, 100, 7], PORT));
        lab.net.add_interface(host, Segment::Behind(id), &[own.ip()], LinkConfig::default());
        assert_eq!(lab.seen(host, PORT, lab.server(0, 1)), own);
        let [a, b] = lab.servers;
        let lets_in = [(a, 1), (a, 2), (b, 1)].map(|(server, port)| lab.lets_in(server, port, own));
        let is_in = |least: Dependence| {
            DEPENDENCES.iter().position(|d| *d == filtering) <= DEPENDENCES.iter().position(|d| *d == least)
        };
        assert_eq!(lets_in, [true, is_in(Dependence::AddressDependent), is_in(Dependence::EndpointIndependent)]);
        assert!(lab.carry(host, PORT, lab.server(1, 1)).is_none());
        assert_eq!(drops(&lab, id, DropReason::TableFull), 1);
    }
}
