//! The machine that finds out how this host looks from outside, by STUN (RFC 8489) and its discovery of NAT behaviour
//! (RFC 5780).

mod mapping;
mod on_demand;
mod request;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::CryptoRng;

use super::net_report::{Filtering, MappingBasis, NetReport, ServerReport, ServerState};
use crate::identity::AgentId;
use crate::identity::ticket::is_usable_address;
use crate::time::Time;
use crate::wire::control::Mapping;

use mapping::{Sample, distinct, find_mapping};
use on_demand::{Tests, is_test};
use request::{Purpose, Request, Seen, State};

/// Servers that are asked; more tell nothing new. Further ones are left out.
pub const MAX_SERVERS: usize = 8;
/// Addresses of one server in each family that are asked; further ones are left out.
const MAX_ADDRESSES: usize = 2;
/// Mappings that are compared where they depend on the destination: three differences, of which two have to be equal.
const WANTED_SAMPLES: usize = 4;
/// Mappings older than this are not compared with new ones: a NAT may have forgotten them in between. Half of what
/// most NATs keep (RFC 4787, section 4.3: "2 minutes", seen: 30 s).
const SAMPLE_LIFE: Duration = Duration::from_secs(15);
/// Contacts that are remembered: every address of two measurements. The oldest gives way.
const MAX_CONTACTS: usize = 2 * MAX_SERVERS * (2 * MAX_ADDRESSES + 3);
/// Without any answer for this long, which is five transmissions to each server, there is no UDP.
const VERDICT_AFTER: Duration = Duration::from_secs(4);
/// Events of the network come in bunches: a measurement starts this long after the last one began, at the earliest.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// A server to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StunServer {
    /// Who runs it.
    pub id: AgentId,
    /// Its resolved addresses, best first; two of each family are asked.
    pub addresses: Vec<SocketAddr>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this from the socket that carries the tunnels.
    Transmit {
        /// To where.
        destination: SocketAddr,
        /// What.
        datagram: Vec<u8>,
    },
    /// The report changed in what peers should hear of: where this host is seen, or how its NATs map.
    Changed,
}

/// Finds out how this host looks from outside.
///
/// # Driving it
///
/// Tell it what happens, then drain [`Gather::poll_output`], then come back at [`Gather::poll_timeout`]. Time and
/// randomness are arguments; it does no I/O. [`Gather::report`] is what is known at any time; while a measurement runs
/// it keeps what was known before it, until that is confirmed or refuted.
///
/// # When it asks
///
/// All servers at once at the start and after every [`Gather::network_changed`], which takes one round trip where two
/// destinations can be compared. Then nothing, except that a server that never answered is tried again with backoff.
/// An answer is taken only from the address that was asked, with a transaction that is under way.
#[derive(Debug)]
pub struct Gather {
    port: u16,
    local: Vec<IpAddr>,
    servers: Vec<StunServer>,
    requests: Vec<Request>,
    /// Whom this host sent to, and when last: what filters let through afterwards proves nothing.
    contacts: VecDeque<(SocketAddr, Time)>,
    /// When the measurement under way, or the last one, began.
    started: Option<Time>,
    /// When the next one begins.
    restart: Option<Time>,
    /// Everybody had the time to answer this measurement; what it did not confirm is forgotten.
    settled: bool,
    /// It is for the newest port; the NATs are the same as before.
    ports_only: bool,
    tests: Tests,
    sequence: u64,
    known: Known,
    announced: Announced,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    udp: Option<bool>,
    mapped_v4: Option<SocketAddr>,
    mapped_v6: Option<SocketAddr>,
    mapping: Option<(Mapping, MappingBasis)>,
    filtering: Option<Filtering>,
    hairpinning: Option<bool>,
}

/// What peers were told last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Announced {
    mapped_v4: Option<SocketAddr>,
    mapped_v6: Option<SocketAddr>,
    mapping: Option<Mapping>,
}

impl Gather {
    /// For a host whose socket has this port.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self {
            port,
            local: Vec::new(),
            servers: Vec::new(),
            requests: Vec::new(),
            contacts: VecDeque::new(),
            started: None,
            restart: None,
            settled: false,
            ports_only: false,
            tests: Tests::Off,
            sequence: 0,
            known: Known::default(),
            announced: Announced::default(),
            outputs: VecDeque::new(),
        }
    }

    /// The servers there are, instead of those before. New addresses are asked at once; what old ones said stays.
    pub fn set_servers(&mut self, now: Time, servers: &[StunServer]) {
        let servers = limited(servers);
        if servers == self.servers {
            return;
        }
        self.servers = servers;
        let is_kept = |request: &Request| match request.purpose {
            Purpose::Server => destinations(&self.servers).any(|known| known == (request.server, request.to)),
            _ => self.servers.iter().any(|server| server.id == request.server),
        };
        self.requests.retain(is_kept);
        self.ask_servers(now);
    }

    /// The addresses of this host's interfaces. Call [`Gather::network_changed`] after it.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) {
        self.local = addresses.iter().map(IpAddr::to_canonical).collect();
    }

    /// Addresses or routes changed, or the host woke up: measures again at once.
    pub fn network_changed(&mut self, now: Time) {
        if self.servers.is_empty() {
            self.tests = Tests::Off;
            return;
        }
        self.ports_only = false;
        self.measure_again(now);
    }

    /// A peer is about to guess this host's ports, which it can where a NAT counts them: looks again how far it is, and
    /// says [`Output::Changed`] when that is known. Nothing happens behind other NATs, or while a measurement runs.
    pub fn measure_ports(&mut self, now: Time) {
        let counts = matches!(self.known.mapping, Some((Mapping::EndpointDependent { step }, _)) if step != 0);
        if counts && self.settled && self.restart.is_none() && !self.servers.is_empty() {
            self.ports_only = true;
            self.measure_again(now);
        }
    }

    fn measure_again(&mut self, now: Time) {
        let earliest = self.started.map_or(now, |at| at + RESTART_INTERVAL);
        self.restart = Some(earliest.max(now));
    }

    /// Measures again, with the tests of filtering and hairpinning, which need a server with two addresses. Takes up to
    /// four seconds; see [`Gather::is_measuring`].
    pub fn measure_fully(&mut self, now: Time) {
        self.tests = Tests::Wanted;
        if self.started.is_some_and(|at| now.since(at) < RESTART_INTERVAL) {
            // One that just began will do.
            self.requests.retain(|request| !is_test(request));
            self.advance(now);
        } else {
            self.network_changed(now);
        }
    }

    /// Whether more is to come without anything happening, retries of silent servers aside.
    #[must_use]
    pub fn is_measuring(&self) -> bool {
        let counts = |request: &Request| !self.settled || request.purpose != Purpose::Server;
        let mut pending = self.requests.iter().filter(|request| request.is_pending());
        self.restart.is_some() || self.tests != Tests::Off || pending.any(counts)
    }

    /// Where datagrams for this machine may come from now.
    pub fn expected_sources(&self) -> impl Iterator<Item = SocketAddr> {
        self.requests.iter().filter(|request| request.awaits_answer()).map(|request| request.answer_from)
    }

    /// A STUN datagram arrived on the socket. Whether it was for this machine; a request of somebody else is not.
    pub fn datagram_received(&mut self, now: Time, source: SocketAddr, bytes: &[u8]) -> bool {
        let source = canonical(source);
        let taken = self.requests.iter_mut().find_map(|request| {
            let taken = request.awaits_answer() && request.datagram_received(now, source, bytes);
            taken.then(|| (request.purpose, request.seen, request.is_v4(), request.to))
        });
        let Some((purpose, seen, is_v4, to)) = taken else { return false };
        if matches!(purpose, Purpose::Server | Purpose::Alternate)
            && let Some(seen) = seen
        {
            self.known.udp = Some(true);
            let mapped = if is_v4 { &mut self.known.mapped_v4 } else { &mut self.known.mapped_v6 };
            *mapped = Some(seen.mapped);
            self.compare_afresh(now, to);
        }
        self.advance(now);
        true
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        if self.restart.is_some_and(|at| at <= now) {
            self.begin(now);
        }
        for request in self.requests.iter_mut().filter(|request| request.is_due(now)) {
            transmit(now, request, &mut self.sequence, &mut self.contacts, &mut self.outputs, rng);
        }
        self.retry_silent(now);
        self.advance(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let verdict = self.started.filter(|_| !self.settled).map(|at| at + VERDICT_AFTER);
        self.requests.iter().filter_map(|request| request.next).chain(self.restart).chain(verdict).min()
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What is known.
    #[must_use]
    pub fn report(&self) -> NetReport {
        let known = &self.known;
        let behind_nat = |mapped: Option<SocketAddr>| {
            mapped.filter(|_| !self.local.is_empty()).map(|mapped| !self.local.contains(&mapped.ip()))
        };
        NetReport {
            udp: known.udp,
            mapped_v4: known.mapped_v4,
            mapped_v6: known.mapped_v6,
            mapping: known.mapping.map(|(mapping, _)| mapping),
            mapping_basis: known.mapping.map(|(_, basis)| basis),
            filtering: known.filtering,
            behind_nat_v4: behind_nat(known.mapped_v4),
            behind_nat_v6: behind_nat(known.mapped_v6),
            port_preserved: known.mapped_v4.map(|mapped| mapped.port() == self.port),
            hairpinning: known.hairpinning,
            servers: self.servers.iter().map(|server| self.server_report(server.id)).collect(),
        }
    }

    fn server_report(&self, id: AgentId) -> ServerReport {
        let asked =
            || self.requests.iter().filter(|request| request.server == id && request.purpose == Purpose::Server);
        let best = asked().filter_map(|request| Some((request.to, request.seen?.rtt))).min_by_key(|(_, rtt)| *rtt);
        let state = if asked().any(|request| request.state == State::Answered) {
            ServerState::Answered
        } else if asked().any(Request::is_pending) {
            ServerState::Asked
        } else {
            ServerState::Silent
        };
        ServerReport { id, state, address: best.map(|(address, _)| address), rtt: best.map(|(_, rtt)| rtt) }
    }

    fn begin(&mut self, now: Time) {
        self.restart = None;
        self.requests.clear();
        (self.known.filtering, self.known.hairpinning) = (None, None);
        if self.tests != Tests::Off {
            self.tests = Tests::Wanted;
        }
        self.start(now);
        self.ask_servers(now);
    }

    fn start(&mut self, now: Time) {
        self.started = Some(now);
        self.settled = false;
    }

    /// Asks every server that is not asked yet.
    fn ask_servers(&mut self, now: Time) {
        let asked = |requests: &[Request], to| requests.iter().any(|request| (request.server, request.to) == to);
        for (server, to) in destinations(&self.servers) {
            let has_family = to.ip().is_loopback()
                || self.local.is_empty()
                || self.local.iter().any(|local| local.is_ipv4() == to.is_ipv4());
            if has_family && !asked(&self.requests, (server, to)) {
                self.requests.push(Request::new(now, server, Purpose::Server, to));
            }
        }
        if self.known.udp != Some(true) {
            self.start(now);
        }
    }

    /// A server that came to life late is compared with new answers of the others, not with theirs of long ago.
    fn compare_afresh(&mut self, now: Time, answered: SocketAddr) {
        let is_old =
            |request: &Request| request.is_v4() && request.seen.is_some_and(|seen| now.since(seen.at) > SAMPLE_LIFE);
        if !answered.is_ipv4() || !self.requests.iter().any(|request| request.to != answered && is_old(request)) {
            return;
        }
        self.requests.retain(|request| request.purpose != Purpose::Alternate || !is_old(request));
        let old = self.requests.iter_mut().filter(|request| request.state == State::Answered && is_old(request));
        old.filter(|request| request.purpose == Purpose::Server).for_each(|request| request.ask_again(now));
    }

    fn retry_silent(&mut self, now: Time) {
        let answered: Vec<AgentId> =
            self.requests.iter().filter(|request| request.state == State::Answered).map(|it| it.server).collect();
        let silent = self.requests.iter_mut().filter(|it| it.purpose == Purpose::Server && it.state == State::Silent);
        silent.filter(|request| !answered.contains(&request.server)).for_each(|request| request.retry_later(now));
    }

    /// Draws conclusions, and asks what follows from them.
    fn advance(&mut self, now: Time) {
        let samples = self.samples();
        let found = find_mapping(&samples, &self.local, self.port);
        if found.is_some() && !self.is_less_than_known(found) {
            self.known.mapping = found;
        }
        if let (Some((Mapping::EndpointDependent { .. }, _)), Some(newest)) = (found, samples.last()) {
            self.known.mapped_v4 = Some(newest.mapped);
        }
        self.run_tests(now);
        self.ask_alternates(now, found, &samples);
        if !self.settled && self.started.is_some() {
            self.settle(now, found);
        }
        self.announce();
    }

    /// Once everybody had the time to answer: what nobody said is not so.
    fn settle(&mut self, now: Time, found: Option<(Mapping, MappingBasis)>) {
        let is_late = self.is_late(now);
        let is_busy = self.tests != Tests::Off || self.requests.iter().any(Request::is_pending);
        if is_busy && !is_late {
            return;
        }
        self.settled = true;
        let has_answer = |v4| self.requests.iter().any(|request| request.is_v4() == v4 && request.seen.is_some());
        self.known.udp = (!self.requests.is_empty()).then(|| has_answer(true) || has_answer(false));
        self.known.mapped_v4 = self.known.mapped_v4.filter(|_| has_answer(true));
        self.known.mapped_v6 = self.known.mapped_v6.filter(|_| has_answer(false));
        if !self.is_less_than_known(found) {
            self.known.mapping = found;
        }
        if std::mem::take(&mut self.ports_only) {
            self.announced = Announced::default();
        }
    }

    /// Servers whose mappings are kept in use are seen at old ports: how a NAT counts showed when all were new.
    fn is_less_than_known(&self, found: Option<(Mapping, MappingBasis)>) -> bool {
        self.ports_only && matches!(found, None | Some((Mapping::EndpointDependent { .. }, _)))
    }

    /// Nobody who has not answered yet counts any more.
    fn is_late(&self, now: Time) -> bool {
        self.settled || self.started.is_some_and(|at| now.since(at) >= VERDICT_AFTER)
    }

    /// IPv4 as destinations saw it lately, in the order the mappings were made.
    fn samples(&self) -> Vec<Sample> {
        let seen = || self.compared().filter_map(|request| Some((request, request.seen?)));
        let latest = seen().map(|(_, seen)| seen.at).max().unwrap_or_default();
        let mut fresh: Vec<(&Request, Seen)> =
            seen().filter(|(_, seen)| latest.since(seen.at) <= SAMPLE_LIFE).collect();
        fresh.sort_by_key(|(request, _)| request.order);
        fresh.iter().map(|(request, seen)| Sample { destination: request.to, mapped: seen.mapped }).collect()
    }

    fn compared(&self) -> impl Iterator<Item = &Request> {
        let counts = |request: &&Request| matches!(request.purpose, Purpose::Server | Purpose::Alternate);
        self.requests.iter().filter(|request| request.is_v4()).filter(counts)
    }

    /// Asks further addresses of servers that answered, where the servers' first ones do not say enough.
    fn ask_alternates(&mut self, now: Time, found: Option<(Mapping, MappingBasis)>, samples: &[Sample]) {
        // Filters are tested first: whom this host sends to, a filter lets in.
        if self.tests != Tests::Off || samples.is_empty() || self.restart.is_some() {
            return;
        }
        let asked: Vec<SocketAddr> = self.compared().map(|request| request.to).collect();
        let may_answer = |request: &&Request| match request.purpose {
            Purpose::Alternate => request.is_pending(),
            _ => request.is_first_wait(),
        };
        let (pending, answers) = (self.compared().filter(may_answer).count(), distinct(samples));
        let new_address = |to: &SocketAddr| samples.iter().all(|sample| sample.destination.ip() != to.ip());
        let mut wanted = self.alternates();
        wanted.retain(|(_, to)| !asked.contains(to));
        let count = match found {
            Some((Mapping::EndpointDependent { .. }, _)) => WANTED_SAMPLES.saturating_sub(answers + pending),
            Some((_, MappingBasis::NoNat | MappingBasis::Addresses)) => 0,
            // Another server may settle it without any further request.
            _ if pending > 0 => 0,
            Some((_, MappingBasis::Ports)) => {
                wanted.retain(|(_, to)| new_address(to));
                1
            }
            // If the mapping turns out to depend on the destination, all are wanted.
            None => WANTED_SAMPLES - 1,
        };
        let chosen = wanted.into_iter().take(count);
        self.requests.extend(chosen.map(|(server, to)| Request::new(now, server, Purpose::Alternate, to)));
    }

    /// Further IPv4 addresses of servers that answered, the most telling ones first: another IP address and port, then
    /// one of both.
    fn alternates(&self) -> Vec<(AgentId, SocketAddr)> {
        let with_other = self.compared().filter(|request| request.purpose == Purpose::Server).filter_map(|request| {
            let other = request.seen?.other.filter(|other| is_credible(request.to, *other))?;
            Some((request.server, request.to, other))
        });
        let mut alternates: Vec<(AgentId, SocketAddr)> = Vec::new();
        for (server, to, other) in with_other {
            let mixed = [SocketAddr::new(to.ip(), other.port()), SocketAddr::new(other.ip(), to.port())];
            for address in [other].into_iter().chain(mixed) {
                if address != to && !alternates.iter().any(|(_, known)| *known == address) {
                    alternates.push((server, address));
                }
            }
        }
        alternates
    }

    fn announce(&mut self) {
        let mapping = self.known.mapping.map(|(mapping, _)| mapping);
        // Every destination has its own port there, so that the port of one is no news.
        let is_dependent = matches!(mapping, Some(Mapping::EndpointDependent { .. }));
        let mapped_v4 = self.known.mapped_v4.map(|mapped| match is_dependent {
            true => SocketAddr::new(mapped.ip(), 0),
            false => mapped,
        });
        let news = Announced { mapped_v4, mapped_v6: self.known.mapped_v6, mapping };
        if news != self.announced {
            self.announced = news;
            if !self.outputs.contains(&Output::Changed) {
                self.outputs.push_back(Output::Changed);
            }
        }
    }
}

fn transmit(
    now: Time,
    request: &mut Request,
    sequence: &mut u64,
    contacts: &mut VecDeque<(SocketAddr, Time)>,
    outputs: &mut VecDeque<Output>,
    rng: &mut dyn CryptoRng,
) {
    let is_first = !request.awaits_answer();
    let Some(datagram) = request.transmit(now, rng) else { return };
    if is_first {
        *sequence += 1;
        request.order = *sequence;
    }
    contacts.retain(|(to, _)| *to != request.to);
    if contacts.len() == MAX_CONTACTS {
        contacts.pop_front();
    }
    contacts.push_back((request.to, now));
    outputs.push_back(Output::Transmit { destination: request.to, datagram });
}

/// Every address to ask, with its server.
fn destinations(servers: &[StunServer]) -> impl Iterator<Item = (AgentId, SocketAddr)> {
    servers.iter().flat_map(|server| server.addresses.iter().map(|address| (server.id, *address)))
}

/// At most [`MAX_SERVERS`], each once, with at most [`MAX_ADDRESSES`] of each family.
fn limited(servers: &[StunServer]) -> Vec<StunServer> {
    let mut limited: Vec<StunServer> = Vec::new();
    for server in servers {
        if limited.len() == MAX_SERVERS || limited.iter().any(|known| known.id == server.id) {
            continue;
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in server.addresses.iter().copied().map(canonical).filter(is_usable_address) {
            let of_family = addresses.iter().filter(|known| known.is_ipv4() == address.is_ipv4()).count();
            if of_family < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        limited.push(StunServer { id: server.id, addresses });
    }
    limited
}

/// A server names its other address itself. One on the internet must not point into this host's own network.
fn is_credible(server: SocketAddr, other: SocketAddr) -> bool {
    server.is_ipv4() == other.is_ipv4() && server != other && (is_inside(other.ip()) <= is_inside(server.ip()))
}

fn is_inside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// IPv4 as IPv4, also from a socket for both families.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
