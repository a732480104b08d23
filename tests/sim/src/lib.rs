//! Agents in virtual time. Each [`Host`] is the real control plane and the real data plane over a device that lives in
//! memory and a place in a simulated [internet](net); each [`ServerHost`] is a real rendezvous server in such a place.
//! Nothing sleeps, and a run with the same seed is the same run.
//!
//! ```text
//!   host 0 ── open site ────┐
//!   host 1 ── home NAT ─────┤           sites: public or behind NATs, with or without IPv6,
//!   server 0 ── open site ──┼── core    their links with delay, loss and limits
//!   outsider ── open site ──┘
//! ```
//!
//! [`World`] is all of them with the one clock. [`World::new`] gives a flat internet: everybody public, nothing delayed,
//! nothing lost but what a test tells it to lose.

mod host;
pub mod matrix;
pub mod net;
pub mod packet;
pub mod pair;
mod run;
mod schedule;
mod server;
pub mod stats;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentnet::api::{TrustRequestBody, TrustState};
use agentnet::node::{Command, Reply};

pub use host::{Host, HostOptions, PORT};
pub use server::{ServerHost, ServerOptions};

use host::Buffers;
use net::{Delivery, HostId, Internet, LinkConfig, NatKind, Replay, SimRng, Site, SiteOptions};
use schedule::Schedule;

/// How long [`World::trust`] waits for either side to hear of the other.
const TRUST_LIMIT: Duration = Duration::from_secs(30);

/// How long [`World::restart`] takes.
const RESTART_TIME: Duration = Duration::from_millis(1);

/// All hosts and the one clock. One at a time on a thread: the session library's clocks are the thread's.
pub struct World {
    /// Agents' hosts, by number.
    pub hosts: Vec<Host>,
    /// Rendezvous servers' hosts, by number.
    pub servers: Vec<ServerHost>,
    /// What is between them. Where hosts are is changed with [`World::move_host`] and its like, so that they learn of it.
    pub net: Internet,
    machines: BTreeMap<HostId, Machine>,
    /// What reached outsiders that listen.
    inboxes: BTreeMap<HostId, Vec<Delivery>>,
    schedule: Schedule,
    buffers: Buffers,
    elapsed: Duration,
    /// By how many seconds the wall clocks of some hosts are ahead.
    clocks: BTreeMap<HostId, i64>,
    fingerprint: u64,
    rng: SimRng,
    /// Prints the seed when a test panics.
    _replay: Option<Replay>,
}

/// What runs on a host of the internet.
#[derive(Clone, Copy)]
enum Machine {
    /// The agent on the host of this number.
    Agent(usize),
    /// The rendezvous server on the host of this number.
    Server(usize),
}

impl World {
    /// A flat internet with this many hosts with default settings. When the test fails, it prints the seed.
    pub fn new(hosts: usize) -> Self {
        let replay = Replay::seed_or(1);
        let mut world = Self::with_rng(replay.rng());
        world._replay = Some(replay);
        for _ in 0..hosts {
            world.add_host(HostOptions::default());
        }
        world
    }

    /// A world without hosts whose chances come from `rng`; printing its seed is the caller's job.
    pub fn with_rng(mut rng: SimRng) -> Self {
        let world = Self {
            hosts: Vec::new(),
            servers: Vec::new(),
            net: Internet::new(rng.fork()),
            machines: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            schedule: Schedule::default(),
            buffers: Buffers::default(),
            elapsed: Duration::ZERO,
            clocks: BTreeMap::new(),
            fingerprint: 0,
            rng,
            _replay: None,
        };
        world.set_clocks();
        world
    }

    /// A public place without delay or loss.
    pub fn open_site(&mut self, has_v6: bool) -> Site {
        self.net.add_site(&SiteOptions { has_v6, ..SiteOptions::new(NatKind::None, LinkConfig::default()) })
    }

    /// One more host, public and with IPv4 only; returns its number.
    pub fn add_host(&mut self, options: HostOptions) -> usize {
        let site = self.open_site(false);
        self.add_host_at(&site, options)
    }

    /// One more host at a site; returns its number.
    pub fn add_host_at(&mut self, site: &Site, options: HostOptions) -> usize {
        let (number, at, now) = (self.hosts.len(), self.net.add_host_at(site), self.now());
        let rng = self.rng.fork();
        self.hosts.push(Host::new(now, &self.net, at, number, options, rng));
        self.machines.insert(at, Machine::Agent(number));
        self.settle();
        number
    }

    /// A host with a rendezvous server at a site, which must be public; returns its number.
    pub fn add_server(&mut self, site: &Site, options: ServerOptions) -> usize {
        let (number, at, now) = (self.servers.len(), self.net.add_host_at(site), self.now());
        let rng = self.rng.fork();
        self.servers.push(ServerHost::new(now, &self.net, at, number, options, rng));
        self.machines.insert(at, Machine::Server(number));
        self.settle();
        number
    }

    /// The server is gone without a word, until [`World::restart_server`].
    pub fn kill_server(&mut self, server: usize) {
        self.servers[server].kill();
        self.settle();
    }

    /// Stops a server, if it runs, without a word, and starts it again, a millisecond later, from what it had stored.
    pub fn restart_server(&mut self, server: usize) {
        self.kill_server(server);
        self.advance(RESTART_TIME);
        let now = self.now_at(self.servers[server].at());
        self.servers[server].restart(now);
        self.settle();
    }

    /// The IPv4 transport address of a host, as the host itself knows it.
    ///
    /// # Panics
    /// When it has none.
    pub fn address(&self, host: usize) -> SocketAddr {
        self.address_where(host, IpAddr::is_ipv4).expect("the host has an IPv4 address")
    }

    /// The same for IPv6.
    ///
    /// # Panics
    /// When it has none.
    pub fn address_v6(&self, host: usize) -> SocketAddr {
        self.address_where(host, IpAddr::is_ipv6).expect("the host has an IPv6 address")
    }

    fn address_where(&self, host: usize, family: fn(&IpAddr) -> bool) -> Option<SocketAddr> {
        let ip = self.net.addresses(self.hosts[host].at()).into_iter().find(family)?;
        Some(SocketAddr::new(ip, PORT))
    }

    /// The host leaves where it is and is at another site, with new addresses and the same port.
    pub fn move_host(&mut self, host: usize, site: &Site) {
        for interface in self.net.interfaces(self.hosts[host].at()).to_vec() {
            self.net.move_to(interface, site);
        }
        self.tell_addresses(host);
    }

    /// The same with the site's IPv6 only.
    pub fn move_host_to_v6(&mut self, host: usize, site: &Site) {
        for interface in self.net.interfaces(self.hosts[host].at()).to_vec() {
            self.net.move_to(interface, site);
            let addresses = self.net.addresses(self.hosts[host].at());
            let v6: Vec<_> = addresses.into_iter().filter(IpAddr::is_ipv6).collect();
            self.net.bring_up(interface, site.segment, &v6);
        }
        self.tell_addresses(host);
    }

    /// The host has no link any more, and notices.
    pub fn disconnect(&mut self, host: usize) {
        for interface in self.net.interfaces(self.hosts[host].at()).to_vec() {
            self.net.take_down(interface);
        }
        self.tell_addresses(host);
    }

    /// The host has its links back, with the addresses it had.
    pub fn reconnect(&mut self, host: usize) {
        for interface in self.net.interfaces(self.hosts[host].at()).to_vec() {
            self.net.bring_back(interface);
        }
        self.tell_addresses(host);
    }

    fn tell_addresses(&mut self, host: usize) {
        let (now, addresses) = (self.now_on(host), self.net.addresses(self.hosts[host].at()));
        self.hosts[host].addresses_changed(now, &addresses);
        self.settle();
    }

    /// The agent on this host is gone without a word, until [`World::restart`].
    pub fn kill(&mut self, host: usize) {
        self.hosts[host].kill();
        self.settle();
    }

    /// Stops a host's agent, if it runs, without a word, and starts it again, a millisecond later, from what it had
    /// stored. (A handshake of its new life at the very instant of one of the old would be a replay.)
    pub fn restart(&mut self, host: usize) {
        self.kill(host);
        self.advance(RESTART_TIME);
        let now = self.now_on(host);
        self.hosts[host].restart(now, &self.net);
        self.settle();
    }

    /// A public host without an agent, for whoever wants to send what no agent would. What it is sent is lost.
    pub fn add_outsider(&mut self) -> HostId {
        let site = self.open_site(false);
        self.net.add_host_at(&site)
    }

    /// An outsider sends a datagram; it travels when time does, or with [`World::settle`].
    pub fn outsider_sends(&mut self, outsider: HostId, to: SocketAddr, datagram: &[u8]) {
        self.net.send(self.elapsed, outsider, PORT, None, to, datagram.to_vec()).expect("outsiders are public");
    }

    /// A public host without an agent that keeps what it is sent.
    pub fn add_listener(&mut self) -> HostId {
        let outsider = self.add_outsider();
        self.inboxes.insert(outsider, Vec::new());
        outsider
    }

    /// What reached a listener since the last call.
    pub fn take_received(&mut self, listener: HostId) -> Vec<Delivery> {
        self.inboxes.get_mut(&listener).map(std::mem::take).unwrap_or_default()
    }

    /// A user's request on one host.
    pub fn command(&mut self, host: usize, command: Command) -> Result<Reply, agentnet::api::Error> {
        let now = self.now_on(host);
        let result = self.hosts[host].node.command(now, command);
        self.settle();
        result
    }

    /// `trust request` with the other host's ticket.
    pub fn request(&mut self, from: usize, to: usize, ports: Option<&str>, ttl_s: Option<u64>) {
        let now = self.now_on(to);
        let peer = self.hosts[to].node.ticket(now).unwrap().to_string();
        let body = TrustRequestBody { peer, reason: Some("test".into()), ports: ports.map(Into::into), ttl_s };
        self.command(from, Command::TrustRequest(body)).unwrap();
    }

    /// Both agree. The first must reach the second.
    ///
    /// # Panics
    /// When they are not trusted by each other within [`TRUST_LIMIT`].
    pub fn trust(&mut self, a: usize, b: usize) {
        self.request(a, b, None, None);
        let id = self.hosts[a].node.id();
        self.advance_until(TRUST_LIMIT, |world| world.trust_state(b, a) == TrustState::Pending).expect("it was asked");
        self.command(b, Command::TrustApprove(id.to_string())).unwrap();
        let trusted = |world: &mut Self| world.trust_state(a, b) == TrustState::Trusted;
        self.advance_until(TRUST_LIMIT, trusted).expect("it was told of the approval");
    }

    /// What one host has decided about another.
    pub fn trust_state(&self, host: usize, of: usize) -> TrustState {
        let id = self.hosts[of].node.id();
        let list = self.hosts[host].node.trust_list(self.now_on(host), false);
        list.peers.iter().find(|peer| peer.id == id).map_or(TrustState::None, |peer| peer.trust)
    }

    /// A program on `from` sends one UDP packet to the other host's IPv6 address. How long it took to come out there as
    /// it went in; nothing if longer than `limit`.
    pub fn carry(&mut self, from: usize, to: usize, limit: Duration) -> Option<Duration> {
        let packet = self.packet_between(from, to);
        self.send(from, &packet);
        self.advance_until(limit, |world| world.hosts[to].take_delivered().contains(&packet))
    }

    /// Whether such a packet comes out at once.
    pub fn carries_ipv6(&mut self, from: usize, to: usize) -> bool {
        self.carry(from, to, Duration::ZERO).is_some()
    }

    /// The same over the sender's IPv4 alias for the other; what comes out has the other host's aliases.
    pub fn carries_ipv4(&mut self, from: usize, to: usize) -> bool {
        let (a, b) = (self.hosts[from].node.id(), self.hosts[to].node.id());
        let Some(destination) = self.hosts[from].alias_of(self.now(), b) else { return false };
        let Some(seen_source) = self.hosts[to].alias_of(self.now(), a) else { return false };
        let own = |host: &Host| IpAddr::V4(host.node.ipv4().unwrap());
        let sent = packet::udp(own(&self.hosts[from]), destination.into(), 1000, 2000, b"payload");
        let expected = packet::udp(seen_source.into(), own(&self.hosts[to]), 1000, 2000, b"payload");
        self.send(from, &sent);
        self.hosts[to].take_delivered().contains(&expected)
    }

    /// What a program on `from` sends in [`World::carry`].
    pub fn packet_between(&self, from: usize, to: usize) -> Vec<u8> {
        let (source, destination) = (self.hosts[from].node.ipv6(), self.hosts[to].node.ipv6());
        packet::udp(source.into(), destination.into(), 1000, 2000, b"payload")
    }

    /// A program on `host` sends this packet.
    pub fn send(&mut self, host: usize, packet: &[u8]) {
        let now = self.now_on(host);
        self.hosts[host].program_sends(now, packet, &mut self.buffers);
        self.settle();
    }
}
