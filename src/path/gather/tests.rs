use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::identity::IdentityKey;
use crate::identity::test_rng::TestRng;
use crate::wire::stun::{ServerAddresses, respond};

const MS: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(40);
const PORT: u16 = 41_641;
const LOCAL: &str = "192.168.1.2";
const EXTERNAL: &str = "203.0.113.9";

/// A host with its NAT, and servers 40 ms away.
struct Bench {
    gather: Gather,
    now: Time,
    rng: TestRng,
    servers: Vec<ServerAddresses>,
    /// Servers' addresses that do not answer.
    dead: Vec<SocketAddr>,
    nat: fn(&mut Nat, SocketAddr) -> SocketAddr,
    state: Nat,
    /// Datagrams under way to the host: when, from where, what.
    answers: Vec<(Time, SocketAddr, Vec<u8>)>,
    sent: Vec<(Time, SocketAddr)>,
    changes: usize,
}

#[derive(Default)]
struct Nat {
    ports: BTreeMap<SocketAddr, u16>,
    moved: bool,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn id(seed: u8) -> AgentId {
    IdentityKey::from_seed([seed; 32]).id()
}

fn server(seed: u8, addresses: &[&str]) -> StunServer {
    StunServer { id: id(seed), addresses: addresses.iter().map(|text| address(text)).collect() }
}

fn independent(nat: &mut Nat, _: SocketAddr) -> SocketAddr {
    let port = if nat.moved { 50_000 } else { PORT };
    SocketAddr::new(EXTERNAL.parse().unwrap(), port)
}

fn sequential(nat: &mut Nat, to: SocketAddr) -> SocketAddr {
    let next = 60_000 + 3 * u16::try_from(nat.ports.len()).unwrap();
    SocketAddr::new(EXTERNAL.parse().unwrap(), *nat.ports.entry(to).or_insert(next))
}

fn none(_: &mut Nat, to: SocketAddr) -> SocketAddr {
    if to.is_ipv4() { SocketAddr::new(LOCAL.parse().unwrap(), PORT) } else { address("[2001:db8::2]:41641") }
}

impl Bench {
    fn new(nat: fn(&mut Nat, SocketAddr) -> SocketAddr) -> Self {
        let mut gather = Gather::new(PORT);
        gather.set_local_addresses(&[LOCAL.parse().unwrap(), "2001:db8::2".parse().unwrap()]);
        Self {
            gather,
            now: Time::ZERO + Duration::from_secs(1000),
            rng: TestRng::new(1),
            servers: Vec::new(),
            dead: Vec::new(),
            nat,
            state: Nat::default(),
            answers: Vec::new(),
            sent: Vec::new(),
            changes: 0,
        }
    }

    fn with(mut self, primary: &str, ip: Option<&str>, port: Option<u16>) -> Self {
        self.servers.push(ServerAddresses::new(address(primary), ip.map(|ip| ip.parse().unwrap()), port).unwrap());
        self
    }

    fn ask(mut self, servers: &[StunServer]) -> Self {
        self.gather.set_servers(self.now, servers);
        self
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            assert!(self.gather.requests.len() < 100, "requests without end");
            self.drain();
            let due = self.answers.iter().map(|(at, ..)| *at).chain(self.gather.poll_timeout()).min();
            let Some(at) = due.filter(|at| *at <= end) else { break };
            self.now = at.max(self.now);
            while let Some(position) = self.answers.iter().position(|(at, ..)| *at <= self.now) {
                let (_, from, bytes) = self.answers.remove(position);
                self.gather.datagram_received(self.now, from, &bytes);
            }
            if self.gather.poll_timeout().is_some_and(|at| at <= self.now) {
                self.gather.handle_timeout(self.now, &mut self.rng);
            }
        }
        self.now = end;
    }

    fn drain(&mut self) {
        while let Some(output) = self.gather.poll_output() {
            match output {
                Output::Changed => self.changes += 1,
                Output::Transmit { destination, datagram } => {
                    self.sent.push((self.now, destination));
                    let mapped = (self.nat)(&mut self.state, destination);
                    let responder = self.servers.iter().find(|known| known.iter().any(|it| it == destination));
                    let answer = responder.and_then(|server| respond(&datagram, mapped, destination, server).ok());
                    if let Some(answer) = answer.filter(|answer| !self.dead.contains(&answer.from)) {
                        self.answers.push((self.now + RTT, answer.from, answer.datagram));
                    }
                }
            }
        }
    }

    fn sent_to(&self, to: &str) -> Vec<Time> {
        self.sent.iter().filter(|(_, destination)| *destination == address(to)).map(|(at, _)| *at).collect()
    }
}

fn two_servers() -> [StunServer; 2] {
    [server(1, &["192.0.2.1:3478"]), server(2, &["192.0.2.2:3478"])]
}

#[test]
fn two_servers_tell_the_mapping_in_one_round_trip() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", None, None).with("192.0.2.2:3478", None, None);
    bench = bench.ask(&two_servers());
    bench.run(RTT);
    let report = bench.gather.report();
    assert_eq!((report.udp, report.mapping), (Some(true), Some(Mapping::EndpointIndependent)));
    assert_eq!(report.mapping_basis, Some(MappingBasis::Addresses));
    assert_eq!(report.mapped_v4, Some(address("203.0.113.9:41641")));
    assert_eq!((report.behind_nat_v4, report.behind_nat_v6), (Some(true), None));
    assert_eq!(report.port_preserved, Some(true));
    let expected = |seed, to: &str| ServerReport {
        id: id(seed),
        state: ServerState::Answered,
        address: Some(address(to)),
        rtt: Some(RTT),
    };
    assert_eq!(report.servers, [expected(1, "192.0.2.1:3478"), expected(2, "192.0.2.2:3478")]);
    bench.run(Duration::from_secs(3600));
    assert_eq!((bench.sent.len(), bench.changes), (2, 1), "asked once, told once");
    assert!(!bench.gather.is_measuring() && bench.gather.poll_timeout().is_none());
}

#[test]
fn one_server_with_two_addresses_is_enough() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", Some("192.0.2.2"), Some(3479));
    bench = bench.ask(&[server(1, &["192.0.2.1:3478"])]);
    bench.run(RTT * 2);
    assert_eq!(bench.gather.report().mapping, Some(Mapping::EndpointIndependent));
    assert_eq!(bench.gather.report().mapping_basis, Some(MappingBasis::Addresses));
}

#[test]
fn one_server_with_two_ports_tells_less() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", None, Some(3479));
    bench = bench.ask(&[server(1, &["192.0.2.1:3478"])]);
    bench.run(RTT * 2);
    assert_eq!(bench.gather.report().mapping_basis, Some(MappingBasis::Ports));
    bench.run(Duration::from_secs(60));
    assert_eq!(bench.sent.len(), 2);
}

#[test]
fn a_sequential_nat_shows_its_step() {
    let mut bench =
        Bench::new(sequential).with("192.0.2.1:3478", None, Some(3479)).with("192.0.2.2:3478", None, Some(9));
    bench = bench.ask(&two_servers());
    bench.run(RTT * 2);
    let report = bench.gather.report();
    assert_eq!(report.mapping, Some(Mapping::EndpointDependent { step: 3 }));
    assert_eq!(report.mapped_v4, Some(address("203.0.113.9:60009")), "the newest of four");
    assert_eq!(bench.sent.len(), 4);
    assert_eq!(bench.changes, 2, "that it depends on the destination, then the step");
}

#[test]
fn the_newest_port_is_looked_for_and_told_where_ports_are_counted() {
    let servers = || [server(1, &["192.0.2.1:3478"])];
    let mut bench = Bench::new(sequential).with("192.0.2.1:3478", Some("192.0.2.2"), Some(3479)).ask(&servers());
    bench.run(Duration::from_secs(60));
    let before = bench.changes;
    // All but the first mapping, which something keeps in use, are forgotten, and others were made.
    bench.state.ports.retain(|to, _| *to == address("192.0.2.1:3478"));
    bench.state.ports.extend((0..20).map(|port| (SocketAddr::from(([198, 51, 100, 1], port)), port)));
    bench.gather.measure_ports(bench.now);
    bench.run(RTT * 2);
    let report = bench.gather.report();
    assert_eq!(report.mapping, Some(Mapping::EndpointDependent { step: 3 }));
    assert_eq!(report.mapped_v4.map(|mapped| mapped.port()), Some(60_000 + 3 * 23));
    assert_eq!(bench.changes, before + 1);

    let mut bench = Bench::new(independent).with("192.0.2.1:3478", Some("192.0.2.2"), Some(3479)).ask(&servers());
    bench.run(Duration::from_secs(60));
    bench.gather.measure_ports(bench.now);
    assert!(!bench.gather.is_measuring(), "nobody guesses there");
}

#[test]
fn ipv6_addresses_of_servers_say_nothing_about_mapping() {
    let v4_only = |nat: &mut Nat, to: SocketAddr| if to.is_ipv4() { sequential(nat, to) } else { none(nat, to) };
    let (v4, v6) = ("192.0.2.1:3478", "[2001:db8:1::1]:3478");
    let mut bench =
        Bench::new(v4_only).with(v4, None, Some(3479)).with(v6, None, Some(3479)).ask(&[server(1, &[v4, v6])]);
    bench.run(Duration::from_secs(60));
    assert_eq!((bench.sent_to(v6).len(), bench.sent_to("[2001:db8:1::1]:3479").len()), (1, 0));
    assert_eq!(bench.gather.report().mapping, Some(Mapping::EndpointDependent { step: 0 }));
}

#[test]
fn without_a_nat_one_server_is_enough() {
    let mut bench = Bench::new(none).with("192.0.2.1:3478", None, Some(3479)).with("[2001:db8::1]:3478", None, None);
    bench = bench.ask(&[server(1, &["[2001:db8::1]:3478", "192.0.2.1:3478"])]);
    bench.run(RTT);
    let report = bench.gather.report();
    assert_eq!((report.mapping, report.mapping_basis), (Some(Mapping::EndpointIndependent), Some(MappingBasis::NoNat)));
    assert_eq!((report.behind_nat_v4, report.behind_nat_v6), (Some(false), Some(false)));
    assert_eq!(report.mapped_v6, Some(address("[2001:db8::2]:41641")));
    bench.run(Duration::from_secs(60));
    assert_eq!(bench.sent.len(), 2);
}

#[test]
fn a_silent_server_is_asked_seven_times_and_then_ever_more_rarely() {
    let mut bench = Bench::new(independent).ask(&[server(1, &["192.0.2.1:3478"])]);
    let start = bench.now;
    bench.run(Duration::from_secs(4));
    assert_eq!(bench.gather.report().udp, Some(false));
    assert_eq!(bench.gather.report().servers.first().map(|it| it.state), Some(ServerState::Asked));
    bench.run(Duration::from_secs(6));
    let offsets: Vec<u128> = bench.sent.iter().map(|(at, _)| at.since(start).as_millis()).collect();
    assert_eq!(offsets, [0, 250, 750, 1750, 3750, 5750, 7750]);
    assert_eq!(bench.gather.report().servers.first().map(|it| it.state), Some(ServerState::Silent));
    bench.run(Duration::from_secs(3600));
    let gaps: Vec<u64> =
        bench.sent.iter().zip(bench.sent.iter().skip(1)).map(|((a, _), (b, _))| b.since(*a).as_secs()).collect();
    assert_eq!(gaps.iter().max(), Some(&61), "60 s after the last of three waits");
    assert!(bench.sent.len() < 200, "{} in an hour", bench.sent.len());
    bench.servers.push(ServerAddresses::new(address("192.0.2.1:3478"), None, None).unwrap());
    bench.run(Duration::from_secs(62));
    assert_eq!(bench.gather.report().udp, Some(true));
    let asked = bench.sent.len();
    bench.run(Duration::from_secs(3600));
    assert_eq!(bench.sent.len(), asked);
}

#[test]
fn only_answers_to_what_was_asked_are_taken() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", None, None);
    bench = bench.ask(&[server(1, &["192.0.2.1:3478"])]);
    assert_eq!(bench.gather.expected_sources().count(), 0);
    bench.run(Duration::ZERO);
    assert!(bench.gather.expected_sources().eq([address("192.0.2.1:3478")]));
    let (_, from, bytes) = bench.answers.pop().unwrap();
    let mut other_transaction = bytes.clone();
    other_transaction[19] ^= 1;
    assert!(!bench.gather.datagram_received(bench.now, address("192.0.2.1:3479"), &bytes));
    assert!(!bench.gather.datagram_received(bench.now, from, &other_transaction));
    assert!(!bench.gather.datagram_received(bench.now, from, &[]));
    assert_eq!(bench.gather.report().udp, None);
    let mapped = SocketAddr::new("::ffff:192.0.2.1".parse().unwrap(), from.port());
    assert!(bench.gather.datagram_received(bench.now + MS, mapped, &bytes), "from a socket for both families");
    assert!(!bench.gather.datagram_received(bench.now + MS, from, &bytes), "once");
    assert_eq!(bench.gather.expected_sources().count(), 0);
}

#[test]
fn a_change_of_the_network_is_measured_once_a_second_and_told_if_it_matters() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", None, None).with("192.0.2.2:3478", None, None);
    bench = bench.ask(&two_servers());
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.changes, 1);
    for _ in 0..10 {
        bench.gather.network_changed(bench.now);
        bench.run(MS);
    }
    assert_eq!(bench.sent_to("192.0.2.1:3478").len(), 2, "the first change is measured at once");
    bench.run(Duration::from_secs(2));
    assert_eq!(bench.sent_to("192.0.2.1:3478").len(), 3, "the others together");
    assert_eq!(bench.changes, 1, "nothing is different");
    bench.state.moved = true;
    bench.gather.network_changed(bench.now);
    bench.run(RTT);
    assert_eq!(bench.gather.report().mapped_v4, Some(address("203.0.113.9:50000")));
    assert_eq!(bench.gather.report().port_preserved, Some(false));
    assert_eq!(bench.changes, 2);
    bench.dead = vec![address("192.0.2.1:3478"), address("192.0.2.2:3478")];
    bench.gather.network_changed(bench.now + Duration::from_secs(2));
    bench.run(Duration::from_secs(3));
    assert_eq!(bench.gather.report().udp, Some(true), "until they had the time to answer");
    bench.run(Duration::from_secs(3));
    let report = bench.gather.report();
    assert_eq!((report.udp, report.mapped_v4, report.mapping), (Some(false), None, None));
    assert_eq!(bench.changes, 3);
}

#[test]
fn a_server_that_comes_late_is_compared_with_fresh_answers() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", None, None).with("192.0.2.2:3478", None, None);
    bench.dead = vec![address("192.0.2.2:3478")];
    bench = bench.ask(&two_servers());
    bench.run(Duration::from_secs(600));
    assert_eq!(bench.gather.report().mapping, None);
    // In between the NAT forgot the mapping.
    bench.state.moved = true;
    bench.dead.clear();
    bench.run(Duration::from_secs(62));
    let report = bench.gather.report();
    assert_eq!(report.mapping, Some(Mapping::EndpointIndependent));
    assert_eq!(report.mapped_v4, Some(address("203.0.113.9:50000")));
    assert_eq!(bench.sent_to("192.0.2.1:3478").len(), 2);
}

#[test]
fn what_a_filter_may_have_been_opened_for_proves_nothing() {
    let single = |asked: &[StunServer]| {
        let bench = Bench::new(independent).with("192.0.2.1:3478", Some("192.0.2.2"), Some(3479));
        bench.ask(asked)
    };
    // Answers from everywhere get in: this host sent to nobody there, or it did.
    let mut bench = single(&[server(1, &["192.0.2.1:3478"])]);
    bench.gather.measure_fully(bench.now);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.gather.report().filtering, Some(Filtering::EndpointIndependent));
    assert_eq!(bench.gather.report().mapping_basis, Some(MappingBasis::Addresses));
    bench.gather.measure_fully(bench.now);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.gather.report().filtering, None, "the last measurement asked the other address");
    bench.run(on_demand::CONTACT_LIFE);
    bench.gather.measure_fully(bench.now);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.gather.report().filtering, Some(Filtering::EndpointIndependent));
    let mut bench = single(&[server(1, &["192.0.2.1:3478"]), server(2, &["192.0.2.2:9"])]);
    bench.gather.measure_fully(bench.now);
    bench.run(Duration::from_secs(20));
    assert_eq!(bench.gather.report().filtering, None, "the other address is that of another server");
}

#[test]
fn a_test_without_a_server_that_can_help_ends() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", None, None);
    bench = bench.ask(&[server(1, &["192.0.2.1:3478"])]);
    bench.gather.measure_fully(bench.now);
    bench.run(Duration::from_secs(5));
    assert!(!bench.gather.is_measuring());
    assert_eq!((bench.gather.report().filtering, bench.gather.report().hairpinning), (None, Some(false)));
    let mut bench = Bench::new(independent).ask(&[server(1, &["192.0.2.1:3478"])]);
    bench.gather.measure_fully(bench.now);
    bench.run(Duration::from_secs(6));
    assert!(!bench.gather.is_measuring());
    let mut nobody = Bench::new(independent);
    nobody.gather.measure_fully(nobody.now);
    nobody.run(Duration::from_secs(5));
    assert!(!nobody.gather.is_measuring());
    assert_eq!(nobody.gather.report().udp, None);
}

#[test]
fn an_own_request_that_comes_back_is_hairpinning() {
    let mut bench = Bench::new(independent).with("192.0.2.1:3478", None, None);
    bench = bench.ask(&[server(1, &["192.0.2.1:3478"])]);
    bench.run(Duration::from_secs(5));
    bench.gather.measure_fully(bench.now);
    bench.run(RTT);
    let own = address("203.0.113.9:41641");
    let request = |bench: &mut Bench| {
        bench.gather.handle_timeout(bench.now, &mut bench.rng);
        std::iter::from_fn(|| bench.gather.poll_output()).find_map(|output| match output {
            Output::Transmit { destination, datagram } if destination == own => Some(datagram),
            _ => None,
        })
    };
    bench.now = bench.gather.poll_timeout().unwrap();
    let datagram = request(&mut bench).unwrap();
    let mut strange = datagram.clone();
    strange[19] ^= 1;
    assert!(!bench.gather.datagram_received(bench.now, own, &strange));
    assert!(bench.gather.datagram_received(bench.now, own, &datagram));
    assert_eq!(bench.gather.report().hairpinning, Some(true));
    assert!(!bench.gather.is_measuring());
}

#[test]
fn a_server_cannot_point_into_this_hosts_own_network() {
    let public = address("203.0.113.1:3478");
    for (other, credible) in [
        ("203.0.113.2:3479", true),
        ("203.0.113.1:3478", false),
        ("192.168.1.1:80", false),
        ("127.0.0.1:80", false),
        ("169.254.169.254:80", false),
        ("[2001:db8::1]:80", false),
    ] {
        assert_eq!(is_credible(public, address(other)), credible, "{other}");
    }
    assert!(is_credible(address("127.0.0.1:1"), address("127.0.0.1:2")));
}

#[test]
fn a_family_the_host_does_not_have_is_not_asked() {
    let mut bench = Bench::new(independent);
    bench.gather.set_local_addresses(&[LOCAL.parse().unwrap()]);
    bench = bench.ask(&[server(1, &["[2001:db8::1]:3478", "192.0.2.1:3478", "[::1]:9"])]);
    bench.run(Duration::ZERO);
    let asked: Vec<_> = bench.sent.iter().map(|(_, to)| *to).collect();
    assert_eq!(asked, [address("192.0.2.1:3478"), address("[::1]:9")]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, tables and rates stay within their limits, and time moves on.
    #[test]
    fn limits_hold(steps in prop::collection::vec((0u8..6, any::<u8>(), 0u64..3000), 1..60)) {
        let mut bench = Bench::new(sequential);
        let (mut sent, mut begun) = (0, 0);
        let known = |n: u8, argument: u8| address(&format!("192.0.2.{}:{}", n + 1, 1 + u16::from(argument)));
        for (what, argument, wait) in steps {
            match what {
                0 => {
                    let ask = |n| StunServer { id: id(n), addresses: vec![known(n, argument)] };
                    let servers: Vec<_> = (0..argument % 12).map(ask).collect();
                    let answering = destinations(&servers).filter(|(_, to)| to.port() % 2 == 0);
                    let other = Some("192.0.2.99".parse().unwrap());
                    bench.servers.extend(answering.filter_map(|(_, to)| ServerAddresses::new(to, other, Some(9))));
                    bench.gather.set_servers(bench.now, &servers);
                }
                1 => bench.gather.network_changed(bench.now),
                2 => bench.gather.measure_fully(bench.now),
                3 => bench.dead = (0..argument % 9).map(|n| known(n, argument)).collect(),
                4 => {
                    bench.gather.datagram_received(bench.now, known(0, 0), &[argument; 20]);
                }
                _ => {}
            }
            bench.run(MS * u32::try_from(wait).unwrap());
            prop_assert!(bench.gather.requests.len() <= MAX_SERVERS * 2 * MAX_ADDRESSES + 2 * WANTED_SAMPLES + 3);
            prop_assert!(bench.gather.contacts.len() <= MAX_CONTACTS);
            prop_assert!(bench.gather.poll_timeout().is_none_or(|at| at > bench.now));
            begun += 1 + usize::try_from(wait / 1000).unwrap();
            sent += std::mem::take(&mut bench.sent).len();
            bench.answers.retain(|(at, ..)| *at > bench.now);
        }
        prop_assert!(sent <= begun * 7 * (MAX_SERVERS + 2 * WANTED_SAMPLES + 3), "{sent} in {begun}");
    }
}
