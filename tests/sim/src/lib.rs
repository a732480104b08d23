//! Agents in virtual time. Each [`Host`] is the real control plane and the real data plane over a datagram network and a
//! device that live in memory; nothing sleeps, and a run with the same seed is the same run.
//!
//! ```text
//!   host 0 ── 192.0.2.1 ──┐              and the same over IPv6, 2001:db8::1 and so on,
//!                         │              for hosts that have both
//!   host 1 ── 192.0.2.2 ──┼── one network, no delay, loses what a test tells it to lose
//!   host n ── ...         ┘
//! ```

mod host;
pub mod net;
pub mod packet;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use agentnet::api::TrustRequestBody;
use agentnet::node::{Command, Reply};
use agentnet::time::{Now, Time};
use agentnet_platform::fake::FakeNet;
use mock_instant::MockClock;

pub use host::{Host, HostOptions};

/// 2026-01-01, so that records have a plausible life.
const UNIX_START_MS: u64 = 1_767_225_600_000;
/// How often everything may be delivered before a test is told that it never settles.
const SETTLE_LIMIT: usize = 10_000;

/// All hosts and the one clock.
pub struct World {
    pub hosts: Vec<Host>,
    pub net: FakeNet,
    elapsed: Duration,
}

impl World {
    /// A world with this many hosts with default settings.
    pub fn new(hosts: usize) -> Self {
        MockClock::set_time(Duration::ZERO);
        let mut world = Self { hosts: Vec::new(), net: FakeNet::new(), elapsed: Duration::ZERO };
        for _ in 0..hosts {
            world.add_host(HostOptions::default());
        }
        world
    }

    /// One more host; returns its number.
    pub fn add_host(&mut self, options: HostOptions) -> usize {
        let number = self.hosts.len();
        let now = self.now();
        self.hosts.push(Host::new(now, &self.net, number, options));
        self.settle();
        number
    }

    pub fn now(&self) -> Now {
        let elapsed_ms = u64::try_from(self.elapsed.as_millis()).unwrap();
        Now { time: Time::from_origin(self.elapsed), unix_ms: UNIX_START_MS + elapsed_ms }
    }

    /// Delivers, and fires timers that are due, until nothing moves any more at this instant. Returns how often a timer
    /// woke a control plane up.
    pub fn settle(&mut self) -> usize {
        let (now, mut wakeups) = (self.now(), 0);
        for _ in 0..SETTLE_LIMIT {
            let fired = self.hosts.iter_mut().filter_map(|host| host.fire(now)).count();
            let moved: usize = self.hosts.iter_mut().map(|host| host.step(now)).sum();
            wakeups += fired;
            if fired + moved == 0 {
                return wakeups;
            }
        }
        panic!("the hosts never stop talking");
    }

    /// Lets time pass, firing every timer when it is due. Returns how often a control plane woke up.
    pub fn advance(&mut self, duration: Duration) -> usize {
        let end = self.elapsed + duration;
        let mut wakeups = 0;
        loop {
            let due = self.hosts.iter().filter_map(Host::next_timer).map(Time::since_origin).min();
            let next = due.unwrap_or(end).max(self.elapsed).min(end);
            MockClock::advance(next - self.elapsed);
            self.elapsed = next;
            wakeups += self.settle();
            if self.elapsed == end {
                return wakeups;
            }
        }
    }

    /// A user's request on one host.
    pub fn command(&mut self, host: usize, command: Command) -> Result<Reply, agentnet::api::Error> {
        let now = self.now();
        let result = self.hosts[host].node.command(now, command);
        self.settle();
        result
    }

    /// `trust request` with the other host's ticket.
    pub fn request(&mut self, from: usize, to: usize, ports: Option<&str>, ttl_s: Option<u64>) {
        let now = self.now();
        let peer = self.hosts[to].node.ticket(now).unwrap().to_string();
        let body = TrustRequestBody { peer, reason: Some("test".into()), ports: ports.map(Into::into), ttl_s };
        self.command(from, Command::TrustRequest(body)).unwrap();
    }

    /// Both agree.
    pub fn trust(&mut self, a: usize, b: usize) {
        self.request(a, b, None, None);
        let id = self.hosts[a].node.id().to_string();
        self.command(b, Command::TrustApprove(id)).unwrap();
    }

    /// Stops a host without a word and starts it again from what it had stored.
    pub fn restart(&mut self, host: usize) {
        let now = self.now();
        self.hosts[host].restart(now, &self.net);
        self.settle();
    }

    /// A program on `from` sends a UDP packet to the other host's IPv6 address; returns whether it came out there as it
    /// went in.
    pub fn carries_ipv6(&mut self, from: usize, to: usize) -> bool {
        let (source, destination) = (self.hosts[from].node.ipv6(), self.hosts[to].node.ipv6());
        let packet = packet::udp(source.into(), destination.into(), 1000, 2000, b"payload");
        self.send(from, &packet);
        self.hosts[to].take_delivered().contains(&packet)
    }

    /// The same over this host's IPv4 alias for the other; what comes out has the other host's aliases.
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

    /// A program on `host` sends this packet.
    pub fn send(&mut self, host: usize, packet: &[u8]) {
        let now = self.now();
        self.hosts[host].program_sends(now, packet);
        self.settle();
    }
}

/// The IPv6 address of host `number`.
pub fn second_address(number: usize) -> SocketAddr {
    let last = u16::try_from(number + 1).unwrap();
    SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)), 41641)
}

/// The transport address of host `number`.
pub fn transport_address(number: usize) -> SocketAddr {
    let last = u8::try_from(number + 1).unwrap();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), 41641)
}
