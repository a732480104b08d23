//! Plain hole punching on the simulated internet gives the table that the field knows; this is what a path machine has
//! to beat.
//!
//! Both sides learn from a server how they are seen, are told of each other, send there at the same time, and answer
//! whoever reaches them. That fails exactly when one side is symmetric and the other filters by port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use agentnet_sim::net::{
    Dependence, HostId, Internet, LinkConfig, NatConfig, NatKind, Replay, Segment, SimRng, Site, SiteOptions,
};

const MS: Duration = Duration::from_millis(1);
const PORT: u16 = 41_641;
const PROBE: u8 = b'p';
const ANSWER: u8 = b'a';
/// How often, and how many times, a side probes.
const INTERVAL: Duration = Duration::from_millis(100);
const PROBES: usize = 10;

struct Punch {
    net: Internet,
    now: Duration,
    server: SocketAddr,
    server_host: HostId,
    /// The next probe goes there.
    targets: BTreeMap<HostId, SocketAddr>,
    /// Who got an answer from the other side, and when.
    confirmed: BTreeMap<HostId, Duration>,
}

impl Punch {
    fn new(rng: SimRng) -> Self {
        let mut net = Internet::new(rng);
        let public = net.add_site(&SiteOptions::new(NatKind::None, access()));
        let server_host = net.add_host_at(&public);
        let server = SocketAddr::new(net.addresses(server_host)[0], 3_478);
        Self { net, now: Duration::ZERO, server, server_host, targets: BTreeMap::new(), confirmed: BTreeMap::new() }
    }

    fn at(&mut self, options: &SiteOptions) -> (Site, HostId) {
        let site = self.net.add_site(options);
        let host = self.net.add_host_at(&site);
        (site, host)
    }

    fn send(&mut self, host: HostId, to: SocketAddr, what: u8) {
        self.net.send(self.now, host, PORT, None, to, vec![what]).unwrap();
    }

    /// How the server sees a host.
    fn seen(&mut self, host: HostId) -> SocketAddr {
        self.send(host, self.server, 0);
        let mut seen = None;
        while let Some(at) = self.net.next_event() {
            self.now = self.now.max(at);
            seen = self.net.deliver_until(self.now).pop().or(seen);
        }
        seen.filter(|delivery| delivery.host == self.server_host).expect("the server is reachable").source
    }

    /// Probes `PROBES` times from both sides; how long it took until both know that they reach each other, if ever.
    fn run(&mut self, a: HostId, b: HostId) -> Option<Duration> {
        let (seen_a, seen_b) = (self.seen(a), self.seen(b));
        self.targets = BTreeMap::from([(a, seen_b), (b, seen_a)]);
        let start = self.now;
        for _ in 0..PROBES {
            for (host, target) in self.targets.clone() {
                self.send(host, target, PROBE);
            }
            let end = self.now + INTERVAL;
            while let Some(at) = self.net.next_event().filter(|at| *at <= end) {
                self.now = self.now.max(at);
                self.deliver();
            }
            self.now = end;
        }
        let both = self.confirmed.len() == 2;
        self.confirmed.values().max().filter(|_| both).map(|at| *at - start)
    }

    fn deliver(&mut self) {
        for delivery in self.net.deliver_until(self.now) {
            let Some(target) = self.targets.get_mut(&delivery.host) else { continue };
            *target = delivery.source;
            if delivery.bytes == [PROBE] {
                self.send(delivery.host, delivery.source, ANSWER);
            } else {
                self.confirmed.entry(delivery.host).or_insert(self.now);
            }
        }
    }
}

/// 20 ms between any two sites: a round trip of 40 ms.
fn access() -> LinkConfig {
    LinkConfig::with_delay(MS * 10)
}

fn is_symmetric(kind: NatKind) -> bool {
    matches!(kind, NatKind::SymmetricRandom | NatKind::SymmetricSequential)
}

fn filters_by_port(kind: NatKind) -> bool {
    is_symmetric(kind) || matches!(kind, NatKind::PortRestricted | NatKind::Double)
}

#[test]
fn the_seven_by_seven_table() {
    let replay = Replay::seed_or(1);
    let mut rng = replay.rng();
    let mut reached = 0;
    for a in NatKind::ALL {
        for b in NatKind::ALL {
            for _ in 0..5 {
                let mut punch = Punch::new(rng.fork());
                let hosts = [a, b].map(|kind| punch.at(&SiteOptions::new(kind, access())).1);
                let took = punch.run(hosts[0], hosts[1]);
                let is_hopeless = is_symmetric(a) && filters_by_port(b) || is_symmetric(b) && filters_by_port(a);
                assert_eq!(took.is_none(), is_hopeless, "{} x {}: {took:?}", a.name(), b.name());
                // A probe over, an answer back: a round trip; or the first probe was too early, and the second is not.
                assert!(took.is_none_or(|took| took <= MS * 40 + INTERVAL), "{} x {}: {took:?}", a.name(), b.name());
                reached += u32::from(took.is_some());
            }
        }
    }
    assert_eq!(reached, 5 * (49 - 12));
}

#[test]
fn one_nat_is_passed_by_hairpinning_only() {
    for hairpinning in [false, true] {
        let mut punch = Punch::new(SimRng::from_seed(1));
        let nats = vec![NatConfig { hairpinning, ..NatConfig::port_restricted() }];
        let (site, a) = punch.at(&SiteOptions { nats, ..SiteOptions::new(NatKind::None, access()) });
        let b = punch.net.add_host_at(&site);
        assert_eq!(punch.run(a, b).is_some(), hairpinning);
    }
}

#[test]
fn homes_behind_one_carrier_are_passed_by_its_hairpinning_only() {
    for hairpinning in [false, true] {
        let mut punch = Punch::new(SimRng::from_seed(1));
        let home = NatConfig::port_restricted();
        let carrier = NatConfig { hairpinning, ..NatConfig::carrier() };
        let nats = vec![carrier, home.clone()];
        let (site, a) = punch.at(&SiteOptions { nats, ..SiteOptions::new(NatKind::Double, access()) });
        let segment = Segment::Behind(site.boxes[0]);
        let next_door = SiteOptions { nats: vec![home], segment, has_v6: false, access: LinkConfig::default() };
        let (_, b) = punch.at(&next_door);
        assert_eq!(punch.run(a, b).is_some(), hairpinning);
    }
}

#[test]
fn loss_slows_punching_but_does_not_stop_it() {
    let replay = Replay::seed_or(3);
    let mut rng = replay.rng();
    let lossy = LinkConfig { loss: agentnet_sim::net::Loss::Independent(0.1), ..access() };
    let through = (0..200).filter(|_| {
        let mut punch = Punch::new(rng.fork());
        // The server's answer is not what is tested here.
        let sites = [(); 2].map(|()| punch.at(&SiteOptions::new(NatKind::PortRestricted, access())));
        let [a, b] = [sites[0].1, sites[1].1];
        let ips = [&sites[0].0, &sites[1].0].map(|site| punch.net.external(site.boxes[0]).unwrap().into());
        for (from, to) in [(ips[0], ips[1]), (ips[1], ips[0])] {
            punch.net.path_mut(from, to).config = LinkConfig { delay: Duration::ZERO, ..lossy.clone() };
        }
        punch.run(a, b).is_some_and(|took| took > MS * 40)
    });
    let (slowed, expected) = (through.count(), 20..120);
    assert!(expected.contains(&slowed), "{slowed} of 200 took longer than a round trip");
}

/// Symmetric random against port-restricted with 256 ports on the hard side and random probes from the easy side: ports
/// are even enough for the birthday estimate, 1 - (1 - 256 / 64,512)^1,024 = 98.3 %.
#[test]
fn many_ports_against_many_probes_meet_as_often_as_birthdays() {
    const RUNS: usize = 300;
    let replay = Replay::seed_or(5);
    let mut rng = replay.rng();
    let mut meetings = BTreeMap::new();
    for _ in 0..RUNS {
        let first = first_meeting(&mut rng);
        for probes in [256, 1_024] {
            *meetings.entry(probes).or_insert(0) += usize::from(first.is_some_and(|first| first < probes));
        }
    }
    // 63.8 % and 98.3 %, give or take four standard deviations.
    assert!((158..=224).contains(&meetings[&256]), "{meetings:?} of {RUNS}");
    assert!((286..=RUNS).contains(&meetings[&1_024]), "{meetings:?} of {RUNS}");
}

/// The first of 1,024 probes that meets a hole.
fn first_meeting(rng: &mut SimRng) -> Option<usize> {
    let mut net = Internet::new(rng.fork());
    let hard = NatConfig { mapping: Dependence::AddressAndPortDependent, ..NatConfig::symmetric_random() };
    let hard = net.add_site(&SiteOptions { nats: vec![hard], ..SiteOptions::new(NatKind::None, access()) });
    let easy = net.add_site(&SiteOptions::new(NatKind::PortRestricted, access()));
    let hosts = [&hard, &easy].map(|site| net.add_host_at(site));
    let externals = [&hard, &easy].map(|site| net.external(site.boxes[0]).unwrap());
    let easy_endpoint = SocketAddr::new(externals[1].into(), PORT);
    for port in 0..256 {
        net.send(Duration::ZERO, hosts[0], 20_000 + port, None, easy_endpoint, vec![PROBE]).unwrap();
    }
    net.deliver_until(Duration::from_secs(1));
    assert_eq!(net.box_counters(hard.boxes[0]).mappings_created, 256);
    let mut tried = BTreeSet::new();
    (0..1_024)
        .find(|probe| {
            let port = loop {
                let port = 1_024 + rng.below(64_512) as u16;
                if tried.insert(port) {
                    break port;
                }
            };
            let now = Duration::from_secs(1) + MS * 50 * (*probe + 1);
            let to = SocketAddr::new(externals[0].into(), port);
            net.send(now, hosts[1], PORT, None, to, vec![PROBE]).unwrap();
            !net.deliver_until(now + MS * 50).is_empty()
        })
        .map(|probe| probe as usize)
}
