//! How this host looks from outside: the questions to servers, and what users are told of the answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::commands::Reply;
use super::limits::MAX_NETCHECKS;
use super::{Event, Node, Output, TimerKind};
use crate::api::{
    Error, ErrorCode, FamilyCheck, FilteringWord, HealthEntry, MappingWord, Netcheck, PortMappingCheck,
    RendezvousStatus,
};
use crate::forwarding::{PeerPath, StrangerDatagram};
use crate::path::{Filtering, GatherOutput, MappingBasis, NetReport, ServerState, StunServer};
use crate::time::Now;
use crate::wire::control::Mapping;

/// Whoever asks is answered after this, with what is known by then.
const LONGEST_NETCHECK: Duration = Duration::from_secs(5);

impl Node {
    /// The servers there are changed, or their addresses.
    pub(super) fn stun_servers_changed(&mut self, now: Now) {
        let those = |borrowed| self.servers.values().filter_map(move |server| server.stun(borrowed));
        // A peer's server is asked only where there is no other: it has its own users to serve.
        let mut servers: Vec<StunServer> = those(false).collect();
        if servers.is_empty() {
            servers = those(true).collect();
        }
        self.gather.set_servers(now.time, &servers);
        self.carry_out_gather(now);
    }

    /// The network may have changed.
    pub(super) fn measure_again(&mut self, now: Now) {
        self.gather.set_local_addresses(&self.local_addresses);
        self.gather.network_changed(now.time);
        self.carry_out_gather(now);
    }

    /// A peer is about to guess this agent's ports.
    pub(super) fn measure_ports(&mut self, now: Now) {
        self.gather.measure_ports(now.time);
        self.carry_out_gather(now);
    }

    pub(super) fn gather_timer(&mut self, now: Now) {
        self.gather.handle_timeout(now.time, &mut *self.rng);
        self.carry_out_gather(now);
    }

    /// A STUN datagram from somebody that was asked, perhaps.
    pub(super) fn stun_received(&mut self, now: Now, datagram: &StrangerDatagram) {
        if !self.gather.datagram_received(now.time, datagram.path.endpoint, &datagram.data) {
            return self.counters.drop_in_stun.increment();
        }
        self.carry_out_gather(now);
    }

    /// Where servers see this agent, as far as that helps others: a mapping for the server alone does not, unless the NAT
    /// counts, and the newest tells where the next will be.
    pub(super) fn mapped_addresses(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        let report = self.gather.report();
        let is_random = report.mapping == Some(Mapping::EndpointDependent { step: 0 });
        let mapped_v4 = report.mapped_v4.filter(|_| !is_random);
        [mapped_v4, report.mapped_v6].into_iter().flatten()
    }

    /// A user asks.
    pub(super) fn netcheck(&mut self, now: Now, token: u64) -> Result<Reply, Error> {
        if self.netchecks.len() >= MAX_NETCHECKS {
            return Err(Error::new(
                ErrorCode::LimitReached,
                "too many callers wait for a check of the network",
                "try again in a few seconds",
            ));
        }
        self.netchecks.push(token);
        if self.netchecks.len() == 1 {
            // What it says of the servers is to be of now.
            self.refresh_servers(now);
            self.gather.measure_fully(now.time);
            self.timers.set(TimerKind::Netcheck, Some(now.time + LONGEST_NETCHECK));
        }
        self.carry_out_gather(now);
        Ok(Reply::Later)
    }

    pub(super) fn finish_netchecks(&mut self) {
        if self.netchecks.is_empty() {
            return;
        }
        self.timers.set(TimerKind::Netcheck, None);
        let document = self.netcheck_document();
        for token in std::mem::take(&mut self.netchecks) {
            let document = Box::new(document.clone());
            self.outputs.push_back(Output::Event(Event::Netcheck { token, document }));
        }
    }

    fn carry_out_gather(&mut self, now: Now) {
        let mut changed = false;
        while let Some(output) = self.gather.poll_output() {
            match output {
                GatherOutput::Transmit { destination, datagram } => {
                    self.transmit_on(&PeerPath::direct(destination), datagram);
                }
                GatherOutput::Changed => changed = true,
            }
        }
        self.timers.set(TimerKind::Gather, self.gather.poll_timeout());
        if !self.gather.expected_sources().eq(self.stun_sources.iter().copied()) {
            self.stun_sources = self.gather.expected_sources().collect();
            self.fib_changed = true;
        }
        if changed {
            let report = self.gather.report();
            tracing::debug!(mapped_v4 = ?report.mapped_v4, mapped_v6 = ?report.mapped_v6, mapping = ?report.mapping, "seen from outside");
            self.own_candidates_changed(now);
        }
        if !self.gather.is_measuring() {
            self.finish_netchecks();
        }
    }

    fn netcheck_document(&self) -> Netcheck {
        let report = self.gather.report();
        let family = |v4: bool, mapped, behind_nat| {
            let local = self.local_addresses.iter().filter(|ip| ip.is_ipv4() == v4);
            FamilyCheck { local: local.copied().collect::<Vec<IpAddr>>(), mapped, behind_nat }
        };
        let (mapping, port_step) = match report.mapping {
            Some(Mapping::EndpointIndependent) => (Some(MappingWord::EndpointIndependent), None),
            Some(Mapping::EndpointDependent { step }) => (Some(MappingWord::EndpointDependent), Some(step)),
            Some(Mapping::Unknown) | None => (None, None),
        };
        let mut document = Netcheck {
            udp: report.udp,
            ipv4: family(true, report.mapped_v4, report.behind_nat_v4),
            ipv6: family(false, report.mapped_v6, report.behind_nat_v6),
            mapping,
            mapping_certain: report.mapping_basis.map(|basis| is_certain(&report, basis)),
            port_step,
            port_preserved: report.port_preserved,
            filtering: report.filtering.map(filtering_word),
            hairpinning: report.hairpinning,
            port_mapping: PortMappingCheck::default(),
            nat: nat_in_words(&report).to_owned(),
            rendezvous: self.measured_servers(&report),
            advice: Vec::new(),
        };
        let own = self.servers.values().filter_map(|server| server.stun(false));
        let asked_v6 = own.flat_map(|server| server.addresses).any(|address| address.is_ipv6());
        document.advice = advice(&document, self.port, asked_v6, self.port_mapped.is_some());
        document
    }

    /// The servers as `status` has them, with the round trips just measured.
    fn measured_servers(&self, report: &NetReport) -> Vec<RendezvousStatus> {
        let mut servers = self.rendezvous_statuses();
        for server in &mut servers {
            let measured = report.servers.iter().find(|measured| measured.id == server.id);
            if let Some(measured) = measured.filter(|measured| measured.state == ServerState::Answered) {
                server.rtt_ms = measured.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0);
            }
        }
        servers
    }
}

/// That a mapping depends on the destination is certain however it was seen.
fn is_certain(report: &NetReport, basis: MappingBasis) -> bool {
    basis != MappingBasis::Ports || report.mapping != Some(Mapping::EndpointIndependent)
}

fn filtering_word(filtering: Filtering) -> FilteringWord {
    match filtering {
        Filtering::EndpointIndependent => FilteringWord::EndpointIndependent,
        Filtering::AddressDependent => FilteringWord::AddressDependent,
        Filtering::AddressAndPortDependent => FilteringWord::AddressAndPortDependent,
    }
}

fn nat_in_words(report: &NetReport) -> &'static str {
    if report.mapping_basis == Some(MappingBasis::NoNat) {
        return match report.filtering {
            Some(Filtering::AddressDependent | Filtering::AddressAndPortDependent) => {
                "no NAT, but a firewall that lets in answers only"
            }
            _ => "no NAT",
        };
    }
    match (report.mapping, report.filtering) {
        (Some(Mapping::EndpointDependent { step: 0 }), _) => {
            "hard: another port for every destination, without a pattern"
        }
        (Some(Mapping::EndpointDependent { .. }), _) => {
            "hard: another port for every destination, at regular distances"
        }
        (Some(Mapping::EndpointIndependent), Some(Filtering::EndpointIndependent)) => {
            "easy: one port for all destinations, open to everybody"
        }
        (Some(Mapping::EndpointIndependent), _) => "easy: one port for all destinations",
        _ if report.behind_nat_v4 == Some(true) => "there is one; of what kind takes another server to tell",
        _ => "not known",
    }
}

/// What a user can do about what was found.
fn advice(found: &Netcheck, port: u16, asked_v6: bool, port_mapped: bool) -> Vec<HealthEntry> {
    let mut advice = Vec::new();
    let mut say = |code: &str, message: &str, hint: String| {
        advice.push(HealthEntry { code: code.to_owned(), message: message.to_owned(), hint });
    };
    if found.rendezvous.is_empty() {
        let hint = "name one: `agentnet up --rendezvous AGENTID@HOST:PORT`".to_owned();
        say("no_rendezvous", "there is no server to ask how this host looks from outside", hint);
    } else if found.udp == Some(false) {
        let hint = "allow UDP from this host to the servers' addresses in every firewall in between".to_owned();
        say("udp_blocked", "no server answered over UDP", hint);
    } else if found.mapping == Some(MappingWord::EndpointDependent) && !port_mapped {
        let message = "the NAT gives every destination another port, so that many peers are reached through a relay";
        let hint =
            format!("switch PCP or UPnP on in the router, forward UDP port {port} to this host there, or use IPv6");
        say("hard_nat", message, hint);
    } else if found.udp == Some(true) && found.ipv4.mapped.is_some() && found.mapping_certain != Some(true) {
        let hint = "name a second rendezvous server with an address of its own".to_owned();
        say("one_server", "with one server it cannot be told for certain how the NAT behaves", hint);
    }
    let has_v6 = asked_v6 && !found.ipv6.local.is_empty();
    if found.udp == Some(true) && has_v6 && found.ipv6.mapped.is_none() {
        let hint = "see whether IPv6 is routed and UDP over it allowed".to_owned();
        say("ipv6_blocked", "this host has IPv6, but no server answered over it", hint);
    }
    advice
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::forwarding::Fib;
    use crate::identity::test_rng::TestRng;
    use crate::identity::{AgentId, IdentityKey, RendezvousRef, TunnelSecret};
    use crate::node::{Command, Input, NodeConfig};
    use crate::time::Time;
    use crate::wire::control::CandidateKind;
    use crate::wire::stun::{ServerAddresses, respond};

    const MS: Duration = Duration::from_millis(1);

    fn id(seed: u8) -> AgentId {
        IdentityKey::from_seed([seed; 32]).id()
    }

    /// A node behind a NAT, and servers 20 ms away that answer nothing but STUN.
    struct Bench {
        node: Node,
        now: Now,
        fib: Option<Arc<Fib>>,
        servers: Vec<ServerAddresses>,
        answered: Vec<(u64, Netcheck)>,
        /// Answers that packet threads would have dropped.
        unexpected: usize,
    }

    impl Bench {
        fn new(servers: &[&str], answering: usize) -> Self {
            let reference = |(n, address): (usize, &&str)| RendezvousRef {
                id: id(u8::try_from(n).unwrap()),
                address: address.parse().unwrap(),
            };
            let config = NodeConfig {
                identity: IdentityKey::from_seed([99; 32]),
                tunnel_secret: TunnelSecret::from_bytes([99; 32]),
                record_sequence: 0,
                name: None,
                ipv4_range: None,
                port: 4000,
                mtu: 1420,
                local_addresses: vec!["192.168.1.2".parse().unwrap()],
                rendezvous: servers.iter().enumerate().map(reference).collect(),
                peers: Vec::new(),
                counters: Arc::default(),
                rng: Box::new(TestRng::new(9)),
            };
            let now = Now { time: Time::ZERO + MS * 1000, unix_ms: 1_800_000_000_000 };
            let addresses = servers.iter().take(answering);
            let servers = addresses.map(|text| ServerAddresses::new(text.parse().unwrap(), None, Some(9)).unwrap());
            let (node, servers) = (Node::new(now, config).unwrap(), servers.collect());
            Self { node, now, fib: None, servers, answered: Vec::new(), unexpected: 0 }
        }

        fn run(&mut self, duration: Duration) {
            let end = self.now.time + duration;
            while self.now.time < end {
                let answers = self.drain();
                self.now.time = self.now.time + MS * 20;
                for (source, data) in answers {
                    if !self.fib.as_ref().is_some_and(|fib| fib.is_stun_source(source)) {
                        self.unexpected += 1;
                    }
                    let datagram = StrangerDatagram { path: PeerPath::direct(source), data };
                    self.node.handle_input(self.now, Input::Stranger(datagram));
                }
                self.node.handle_input(self.now, Input::Timeout);
            }
            self.drain();
        }

        fn drain(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
            let mut answers = Vec::new();
            while let Some(output) = self.node.poll_output() {
                match output {
                    Output::Fib(fib) => self.fib = Some(fib),
                    Output::Event(Event::Netcheck { token, document }) => self.answered.push((token, *document)),
                    Output::Transmit { destination, datagram, .. } => {
                        let server = self.servers.iter().find(|server| server.iter().any(|one| one == destination));
                        let mapped = "203.0.113.9:4000".parse().unwrap();
                        let answer = server.and_then(|server| respond(&datagram, mapped, destination, server).ok());
                        answers.extend(answer.map(|answer| (answer.from, answer.datagram)));
                    }
                    _ => {}
                }
            }
            answers
        }

        fn check(&mut self, token: u64) {
            assert!(matches!(self.node.command(self.now, Command::Netcheck { token }), Ok(Reply::Later)));
        }
    }

    fn codes(found: &Netcheck) -> Vec<&str> {
        found.advice.iter().map(|entry| entry.code.as_str()).collect()
    }

    #[test]
    fn what_servers_see_is_told_to_peers_and_to_users() {
        let mut bench = Bench::new(&["192.0.2.1:41641", "192.0.2.2:41641"], 2);
        bench.run(MS * 100);
        let seen = "203.0.113.9:4000".parse().unwrap();
        assert!(bench.node.own_transport_addresses().contains(&seen));
        bench.check(1);
        bench.check(2);
        bench.run(Duration::from_secs(5));
        let tokens: Vec<u64> = bench.answered.iter().map(|(token, _)| *token).collect();
        assert_eq!((tokens, bench.unexpected), (vec![1, 2], 0));
        let (_, found) = &bench.answered[0];
        assert_eq!((found.udp, found.mapping), (Some(true), Some(MappingWord::EndpointIndependent)));
        assert_eq!((found.ipv4.mapped, found.ipv4.behind_nat), (Some(seen), Some(true)));
        assert_eq!((found.port_preserved, found.hairpinning), (Some(true), Some(false)));
        assert_eq!(found.nat, "easy: one port for all destinations");
        assert_eq!(found.rendezvous.iter().map(|server| server.rtt_ms).collect::<Vec<_>>(), [Some(20.0), Some(20.0)]);
        assert_eq!(codes(found), Vec::<&str>::new());
    }

    #[test]
    fn what_the_gateway_gave_is_told_to_peers_until_it_is_gone() {
        let mut bench = Bench::new(&["192.0.2.1:41641", "192.0.2.2:41641"], 2);
        bench.run(MS * 100);
        let kinds = |bench: &Bench, address: SocketAddr| -> Vec<CandidateKind> {
            let all = bench.node.own_candidates().into_iter();
            all.filter(|candidate| candidate.address == address).map(|candidate| candidate.kind).collect()
        };
        let [seen, other] = ["203.0.113.9:4000", "203.0.113.9:50000"].map(|text| text.parse().unwrap());
        for (given, expected) in [
            (Some(other), [vec![CandidateKind::ServerReflexive], vec![CandidateKind::PortMapped]]),
            (Some(seen), [vec![CandidateKind::PortMapped], vec![]]),
            (None, [vec![CandidateKind::ServerReflexive], vec![]]),
        ] {
            let before = bench.node.candidates_sequence;
            bench.node.handle_input(bench.now, Input::PortMapped(given));
            assert_eq!([kinds(&bench, seen), kinds(&bench, other)], expected, "{given:?}");
            let told = bench.node.candidates_sequence;
            assert!(told > before, "peers are told");
            bench.node.handle_input(bench.now, Input::PortMapped(given));
            assert_eq!(bench.node.candidates_sequence, told, "once");
        }
    }

    #[test]
    fn nobody_waits_longer_than_five_seconds() {
        let mut bench = Bench::new(&["192.0.2.1:41641"], 0);
        bench.run(Duration::from_secs(3600));
        bench.check(1);
        bench.run(MS * 3900);
        assert!(bench.answered.is_empty(), "it may still come");
        bench.run(MS * 1100);
        let (_, found) = &bench.answered[0];
        assert_eq!((found.udp, found.mapping, codes(found)), (Some(false), None, vec!["udp_blocked"]));
        let mut bench = Bench::new(&[], 0);
        bench.check(1);
        bench.drain();
        assert_eq!(codes(&bench.answered[0].1), ["no_rendezvous"]);
    }

    #[test]
    fn one_server_is_not_enough() {
        let mut bench = Bench::new(&["192.0.2.1:41641"], 1);
        bench.check(1);
        bench.run(Duration::from_secs(5));
        let found = &bench.answered[0].1;
        assert_eq!((found.mapping_certain, codes(found)), (Some(false), vec!["one_server"]));
    }

    #[test]
    fn waiting_callers_are_bounded() {
        let mut bench = Bench::new(&["192.0.2.1:41641"], 0);
        (0..MAX_NETCHECKS as u64).for_each(|token| bench.check(token));
        let refused = bench.node.command(bench.now, Command::Netcheck { token: 1000 }).unwrap_err();
        assert_eq!(refused.code, ErrorCode::LimitReached);
    }

    #[test]
    fn stun_that_nobody_asked_for_is_counted() {
        let mut bench = Bench::new(&[], 0);
        let datagram = StrangerDatagram { path: PeerPath::direct("192.0.2.1:1".parse().unwrap()), data: vec![0; 20] };
        bench.node.stun_received(bench.now, &datagram);
        assert_eq!(bench.node.counters.drop_in_stun.get(), 1);
    }
}
