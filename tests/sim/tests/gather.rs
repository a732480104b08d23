//! What a host finds out about the NATs in front of it, for every kind of them, with servers as agentnet's own.
//!
//! ```text
//!   host ── NATs of a kind ── 20 ms ── core ── 20 ms ── server: one or two addresses with two ports each
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentnet::identity::IdentityKey;
use agentnet::path::{Filtering, Gather, GatherOutput, MappingBasis, StunServer};
use agentnet::time::Time;
use agentnet::wire::control::Mapping;
use agentnet::wire::stun::{ServerAddresses, respond};
use agentnet_sim::net::{
    Dependence, HostId, Internet, LinkConfig, Loss, NatConfig, NatKind, PortAllocation, Replay, SimRng, SiteOptions,
};

const MS: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(40);
const PORT: u16 = 41_641;
const PORTS: (u16, u16) = (3_478, 3_479);

/// One measuring host and its servers.
struct Scenario {
    net: Internet,
    now: Duration,
    rng: Random,
    host: HostId,
    gather: Gather,
    servers: Vec<(HostId, ServerAddresses)>,
    datagrams: usize,
}

impl Scenario {
    /// `servers` servers with this many addresses each, not asked yet.
    fn new(mut rng: SimRng, nats: &[NatConfig], access: LinkConfig, servers: usize, addresses: usize) -> Self {
        let mut net = Internet::new(rng.fork());
        let public = net.add_site(&SiteOptions::new(NatKind::None, LinkConfig::with_delay(MS * 10)));
        let add_server = |net: &mut Internet| {
            let host = net.add_host_at(&public);
            if addresses > 1 {
                net.add_interface_at(host, &public);
            }
            let ips = net.addresses(host);
            let server = ServerAddresses::new(SocketAddr::new(ips[0], PORTS.0), ips.get(1).copied(), Some(PORTS.1));
            (host, server.unwrap())
        };
        let servers: Vec<_> = (0..servers).map(|_| add_server(&mut net)).collect();
        let site = net.add_site(&SiteOptions { nats: nats.to_vec(), ..SiteOptions::new(NatKind::None, access) });
        let host = net.add_host_at(&site);
        let mut gather = Gather::new(PORT);
        gather.set_local_addresses(&net.addresses(host));
        Self { net, now: Duration::ZERO, rng: Random(rng), host, gather, servers, datagrams: 0 }
    }

    fn ask(&mut self) {
        let id = |n: usize| IdentityKey::from_seed([n as u8; 32]).id();
        let primary = |server: &ServerAddresses| server.iter().next().unwrap();
        let list = self.servers.iter().enumerate();
        let list: Vec<_> =
            list.map(|(n, (_, server))| StunServer { id: id(n), addresses: vec![primary(server)] }).collect();
        self.gather.set_servers(Time::from_origin(self.now), &list);
    }

    /// Until `end`, or until `done`; when that was.
    fn run(&mut self, end: Duration, done: impl Fn(&Gather) -> bool) -> Option<Duration> {
        loop {
            self.drain();
            if done(&self.gather) {
                return Some(self.now);
            }
            let timer = self.gather.poll_timeout().map(Time::since_origin);
            let next = self.net.next_event().into_iter().chain(timer).min().filter(|at| *at <= end);
            self.now = self.now.max(next?);
            for delivery in self.net.deliver_until(self.now) {
                let (at, from) = (delivery.destination, delivery.source);
                if delivery.host == self.host {
                    self.gather.datagram_received(Time::from_origin(self.now), from, &delivery.bytes);
                } else if let Some((host, server)) = self.servers.iter().find(|(host, _)| *host == delivery.host)
                    && let Ok(answer) = respond(&delivery.bytes, from, at, server)
                {
                    let local = Some(answer.from.ip());
                    self.net.send(self.now, *host, answer.from.port(), local, answer.to, answer.datagram).unwrap();
                }
            }
            if self.gather.poll_timeout().is_some_and(|at| at.since_origin() <= self.now) {
                self.gather.handle_timeout(Time::from_origin(self.now), &mut self.rng);
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.gather.poll_output() {
            if let GatherOutput::Transmit { destination, datagram } = output {
                self.datagrams += 1;
                self.net.send(self.now, self.host, PORT, None, destination, datagram).unwrap();
            }
        }
    }

    fn local(&self) -> IpAddr {
        self.net.addresses(self.host)[0]
    }
}

struct Random(SimRng);

impl rand_core::TryRng for Random {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.0.next_u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in target.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.next_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Random {}

fn access() -> LinkConfig {
    LinkConfig::with_delay(MS * 10)
}

fn nats(kind: NatKind) -> Vec<NatConfig> {
    SiteOptions::new(kind, access()).nats
}

fn mapping(kind: NatKind) -> Mapping {
    match kind {
        NatKind::SymmetricRandom => Mapping::EndpointDependent { step: 0 },
        NatKind::SymmetricSequential => Mapping::EndpointDependent { step: 1 },
        _ => Mapping::EndpointIndependent,
    }
}

fn filtering(kind: NatKind) -> Filtering {
    match kind {
        NatKind::None | NatKind::FullCone => Filtering::EndpointIndependent,
        NatKind::AddressRestricted => Filtering::AddressDependent,
        _ => Filtering::AddressAndPortDependent,
    }
}

#[test]
fn the_mapping_is_known_within_two_round_trips() {
    let mut rng = Replay::seed_or(1).rng();
    for kind in NatKind::ALL {
        for (servers, addresses) in [(1, 2), (2, 1), (2, 2), (4, 1)] {
            let mut scenario = Scenario::new(rng.fork(), &nats(kind), access(), servers, addresses);
            scenario.ask();
            let took = scenario.run(RTT * 2, |gather| gather.report().mapping == Some(mapping(kind)));
            let what = format!("{}, {servers} servers with {addresses} addresses", kind.name());
            assert!(took.is_some(), "{what}: {:?}", scenario.gather.report());
            scenario.run(Duration::from_secs(60), |_| false);
            let report = scenario.gather.report();
            assert_eq!(report.mapping, Some(mapping(kind)), "{what}");
            let is_nat = kind != NatKind::None;
            assert_eq!((report.udp, report.behind_nat_v4), (Some(true), Some(is_nat)), "{what}");
            let basis = if is_nat { MappingBasis::Addresses } else { MappingBasis::NoNat };
            assert_eq!(report.mapping_basis, Some(basis), "{what}");
            assert!(is_nat || report.mapped_v4 == Some(SocketAddr::new(scenario.local(), PORT)), "{what}");
            assert!(report.servers.iter().all(|server| server.rtt == Some(RTT)), "{what}");
            assert!(scenario.datagrams <= 4, "{what}: {}", scenario.datagrams);
        }
    }
}

#[test]
fn the_whole_truth_takes_less_than_four_seconds() {
    let mut rng = Replay::seed_or(2).rng();
    for kind in NatKind::ALL {
        for servers in [1, 2] {
            let mut scenario = Scenario::new(rng.fork(), &nats(kind), access(), servers, 2);
            scenario.ask();
            scenario.gather.measure_fully(Time::from_origin(scenario.now));
            let took = scenario.run(Duration::from_secs(4), |gather| !gather.is_measuring());
            let report = scenario.gather.report();
            assert!(took.is_some(), "{}: {report:?}", kind.name());
            assert_eq!(report.mapping, Some(mapping(kind)), "{}", kind.name());
            assert_eq!(report.filtering, Some(filtering(kind)), "{}", kind.name());
            let hairpinning = (kind != NatKind::None).then_some(kind == NatKind::Double);
            assert_eq!(report.hairpinning, hairpinning, "{}", kind.name());
        }
    }
}

#[test]
fn loss_of_30_percent_each_way_costs_seconds_not_the_answer() {
    const RUNS: usize = 30;
    let mut rng = Replay::seed_or(3).rng();
    for kind in NatKind::ALL {
        let (mut known, mut filters) = (0, 0);
        for _ in 0..RUNS {
            let lossy = LinkConfig { loss: Loss::Independent(0.3), ..access() };
            let mut scenario = Scenario::new(rng.fork(), &nats(kind), lossy, 2, 2);
            scenario.ask();
            let took = scenario.run(Duration::from_secs(6), |gather| gather.report().mapping == Some(mapping(kind)));
            known += usize::from(took.is_some());
            let lossy = LinkConfig { loss: Loss::Independent(0.3), ..access() };
            let mut scenario = Scenario::new(rng.fork(), &nats(kind), lossy, 2, 2);
            scenario.ask();
            scenario.gather.measure_fully(Time::from_origin(scenario.now));
            scenario.run(Duration::from_secs(8), |gather| gather.report().filtering.is_some());
            filters += usize::from(scenario.gather.report().filtering == Some(filtering(kind)));
        }
        assert!(known + 3 >= RUNS, "{}: the mapping {known} times of {RUNS}", kind.name());
        assert!(filters + 2 >= RUNS, "{}: filtering {filters} times of {RUNS}", kind.name());
    }
}

#[test]
fn a_mapping_by_address_needs_two_addresses_to_show() {
    let by_address = NatConfig { mapping: Dependence::AddressDependent, ..NatConfig::symmetric_sequential() };
    let mut rng = Replay::seed_or(4).rng();
    let mut measured = |addresses| {
        let mut scenario = Scenario::new(rng.fork(), std::slice::from_ref(&by_address), access(), 1, addresses);
        scenario.ask();
        scenario.run(Duration::from_secs(20), |_| false);
        (scenario.gather.report().mapping, scenario.gather.report().mapping_basis)
    };
    assert_eq!(measured(1), (Some(Mapping::EndpointIndependent), Some(MappingBasis::Ports)));
    // And that it counts: the two mappings are next to each other.
    assert_eq!(measured(2), (Some(Mapping::EndpointDependent { step: 1 }), Some(MappingBasis::Addresses)));
}

#[test]
fn a_step_shows_among_mappings_of_other_hosts() {
    let mut rng = Replay::seed_or(5).rng();
    for step in [1, 2, 7, 200] {
        let nat = NatConfig { ports: PortAllocation::Sequential { step }, ..NatConfig::symmetric_sequential() };
        let mut scenario = Scenario::new(rng.fork(), &[nat], access(), 4, 1);
        scenario.ask();
        let expected = Mapping::EndpointDependent { step: step as i16 };
        let took = scenario.run(RTT, |gather| gather.report().mapping == Some(expected));
        assert!(took.is_some(), "{step}: {:?}", scenario.gather.report());
    }
}
