//! A NAT by RFC 4787, for UDP over IPv4.
//!
//! Not modelled: pools of external addresses, port overloading (RFC 4787 REQ-3 forbids it; Linux does it when ports run
//! out), packets to the NAT's own stack, TCP, ICMP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::counters::{BoxCounters, DropReason};
use super::ports::{PortAllocation, Ports};
use super::rng::SimRng;
use super::session::{Dependence, Lifetime, Sessions};

/// A home router's session table; cheap ones have about this many.
const HOME_SESSIONS: usize = 4_096;
/// A carrier's, for the few subscribers a scenario has.
const CARRIER_SESSIONS: usize = 65_536;
/// Ports of a carrier's block (RFC 7422 section 2 uses about 1,000).
const CARRIER_BLOCK: u16 = 1_024;
/// How often idle state is swept out at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How a NAT behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// Which packets of one internal endpoint share a mapping (RFC 4787 section 4.1).
    pub mapping: Dependence,
    /// Whose packets are let in (RFC 4787 section 5).
    pub filtering: Dependence,
    /// How external ports are chosen (RFC 4787 section 4.2).
    pub ports: PortAllocation,
    /// When mappings and sessions are forgotten (RFC 4787 section 4.3).
    pub lifetime: Lifetime,
    /// Whether hosts inside reach each other over the external address (RFC 4787 section 6, REQ-9a: with the external
    /// source).
    pub hairpinning: bool,
    /// The most sessions (mapping and remote endpoint); packets that need one more are dropped.
    pub table_limit: usize,
}

impl NatConfig {
    /// Endpoint-independent mapping and filtering, port preserved.
    pub fn full_cone() -> Self {
        Self {
            mapping: Dependence::EndpointIndependent,
            filtering: Dependence::EndpointIndependent,
            ports: PortAllocation::Preserving,
            lifetime: Lifetime::default(),
            hairpinning: false,
            table_limit: HOME_SESSIONS,
        }
    }

    /// Endpoint-independent mapping, address-dependent filtering, port preserved.
    pub fn address_restricted() -> Self {
        Self { filtering: Dependence::AddressDependent, ..Self::full_cone() }
    }

    /// Endpoint-independent mapping, address- and port-dependent filtering, port preserved: most home routers.
    pub fn port_restricted() -> Self {
        Self { filtering: Dependence::AddressAndPortDependent, ..Self::full_cone() }
    }

    /// Everything depends on address and port, ports are random.
    pub fn symmetric_random() -> Self {
        Self { mapping: Dependence::AddressAndPortDependent, ports: PortAllocation::Random, ..Self::port_restricted() }
    }

    /// Everything depends on address and port, ports ascend one by one.
    pub fn symmetric_sequential() -> Self {
        Self { ports: PortAllocation::Sequential { step: 1 }, ..Self::symmetric_random() }
    }

    /// A carrier's NAT by RFC 6888: endpoint-independent mapping, hairpinning, ports in blocks; filtering as strict as
    /// allowed.
    pub fn carrier() -> Self {
        Self {
            ports: PortAllocation::Contiguous { block: CARRIER_BLOCK },
            hairpinning: true,
            table_limit: CARRIER_SESSIONS,
            ..Self::port_restricted()
        }
    }
}

/// Which packets share a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MappingKey {
    internal: SocketAddr,
    remote_ip: Option<IpAddr>,
    remote_port: Option<u16>,
}

#[derive(Debug)]
struct Mapping {
    key: MappingKey,
    sessions: Sessions,
}

/// A NAT's state. Its box tells it of every packet, with times that never go back.
#[derive(Debug)]
pub(super) struct Nat {
    pub(super) config: NatConfig,
    pub(super) external: Ipv4Addr,
    ports: Ports,
    by_key: BTreeMap<MappingKey, u16>,
    by_port: BTreeMap<u16, Mapping>,
    /// External ports in use when the NAT last rebooted; not used again, so that a reboot always moves its users.
    retired: BTreeSet<u16>,
    sessions: usize,
    swept: Duration,
}

impl Nat {
    pub(super) fn new(config: NatConfig, external: Ipv4Addr, rng: SimRng) -> Self {
        Self {
            config,
            external,
            ports: Ports::new(rng),
            by_key: BTreeMap::new(),
            by_port: BTreeMap::new(),
            retired: BTreeSet::new(),
            sessions: 0,
            swept: Duration::ZERO,
        }
    }

    /// A packet from inside leaves; returns the source it leaves with.
    pub(super) fn packet_out(
        &mut self,
        now: Duration,
        internal: SocketAddr,
        remote: SocketAddr,
        counters: &mut BoxCounters,
    ) -> Result<SocketAddr, DropReason> {
        self.sweep_if_due(now);
        let key = self.key(internal, remote);
        let live = self.live_port(now, key);
        let has_session = live.is_some_and(|port| self.by_port[&port].sessions.contains(remote));
        if !has_session && self.sessions >= self.config.table_limit {
            return Err(DropReason::TableFull);
        }
        let port = match live {
            Some(port) => port,
            None => self.create(now, key, counters).ok_or(DropReason::PortsExhausted)?,
        };
        let mapping = self.by_port.get_mut(&port).expect("by_key points into by_port");
        if mapping.sessions.packet_out(now, remote) {
            self.sessions += 1;
            counters.sessions_created += 1;
            counters.sessions_peak = counters.sessions_peak.max(self.sessions);
        }
        Ok(SocketAddr::new(self.external.into(), port))
    }

    /// A packet for an external port arrives; returns the internal endpoint it goes to.
    pub(super) fn packet_in(&mut self, now: Duration, remote: SocketAddr, port: u16) -> Result<SocketAddr, DropReason> {
        let (filtering, lifetime) = (self.config.filtering, self.config.lifetime);
        let mapping = self.by_port.get_mut(&port).filter(|mapping| mapping.sessions.is_live(now, lifetime));
        let mapping = mapping.ok_or(DropReason::NoMapping)?;
        let is_permitted = mapping.sessions.packet_in(now, remote, filtering, lifetime);
        is_permitted.then_some(mapping.key.internal).ok_or(DropReason::Filtered)
    }

    /// Everything is forgotten; the ports in use are not used again before the next reboot.
    pub(super) fn reboot(&mut self, new_external: Option<Ipv4Addr>) {
        self.external = new_external.unwrap_or(self.external);
        self.retired = self.by_port.keys().copied().collect();
        self.by_key.clear();
        self.by_port.clear();
        self.sessions = 0;
        self.ports.reset();
    }

    /// Mappings that are not idle.
    pub(super) fn live_mappings(&self, now: Duration) -> usize {
        self.by_port.values().filter(|mapping| mapping.sessions.is_live(now, self.config.lifetime)).count()
    }

    fn key(&self, internal: SocketAddr, remote: SocketAddr) -> MappingKey {
        let (remote_ip, remote_port) = match self.config.mapping {
            Dependence::EndpointIndependent => (None, None),
            Dependence::AddressDependent => (Some(remote.ip()), None),
            Dependence::AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        };
        MappingKey { internal, remote_ip, remote_port }
    }

    /// The external port of a mapping, which an idle one loses.
    fn live_port(&mut self, now: Duration, key: MappingKey) -> Option<u16> {
        let port = *self.by_key.get(&key)?;
        if self.by_port[&port].sessions.is_live(now, self.config.lifetime) {
            return Some(port);
        }
        self.remove(port);
        None
    }

    fn create(&mut self, now: Duration, key: MappingKey, counters: &mut BoxCounters) -> Option<u16> {
        let (by_port, retired, lifetime) = (&self.by_port, &self.retired, self.config.lifetime);
        let is_idle = |port: &u16| by_port.get(port).is_none_or(|held| !held.sessions.is_live(now, lifetime));
        let is_free = |port: u16| !retired.contains(&port) && is_idle(&port);
        let port = self.ports.allocate(self.config.ports, key.internal.ip(), key.internal.port(), is_free)?;
        self.remove(port);
        self.by_key.insert(key, port);
        self.by_port.insert(port, Mapping { key, sessions: Sessions::new(now) });
        counters.mappings_created += 1;
        counters.mappings_peak = counters.mappings_peak.max(self.by_port.len());
        Some(port)
    }

    fn remove(&mut self, port: u16) {
        if let Some(mapping) = self.by_port.remove(&port) {
            self.by_key.remove(&mapping.key);
            self.sessions -= mapping.sessions.len();
        }
    }

    fn sweep_if_due(&mut self, now: Duration) {
        if now < self.swept + SWEEP_INTERVAL {
            return;
        }
        self.swept = now;
        let lifetime = self.config.lifetime;
        self.by_port.retain(|_, mapping| {
            mapping.sessions.sweep(now, lifetime);
            mapping.sessions.is_live(now, lifetime)
        });
        let by_port = &self.by_port;
        self.by_key.retain(|_, port| by_port.contains_key(port));
        self.sessions = by_port.values().map(|mapping| mapping.sessions.len()).sum();
        let users: BTreeSet<_> = by_port.values().map(|mapping| mapping.key.internal.ip()).collect();
        self.ports.retain_blocks(|address| users.contains(&address));
    }
}
