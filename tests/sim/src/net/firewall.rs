//! A stateful firewall that lets out everything and in only answers, without translation (RFC 6092).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::counters::{BoxCounters, DropReason};
use super::session::{Dependence, Lifetime, Sessions};

/// As many as a home router's NAT has.
const SESSIONS: usize = 4_096;
/// How often idle state is swept out at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How a firewall behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallConfig {
    /// Whose packets are let in.
    pub filtering: Dependence,
    /// When sessions are forgotten.
    pub lifetime: Lifetime,
    /// The most sessions; packets that need one more are dropped.
    pub table_limit: usize,
}

impl Default for FirewallConfig {
    /// As home routers come.
    fn default() -> Self {
        Self { filtering: Dependence::AddressAndPortDependent, lifetime: Lifetime::default(), table_limit: SESSIONS }
    }
}

/// A firewall's state.
#[derive(Debug)]
pub(super) struct Firewall {
    config: FirewallConfig,
    by_internal: BTreeMap<SocketAddr, Sessions>,
    sessions: usize,
    swept: Duration,
}

impl Firewall {
    pub(super) fn new(config: FirewallConfig) -> Self {
        Self { config, by_internal: BTreeMap::new(), sessions: 0, swept: Duration::ZERO }
    }

    pub(super) fn packet_out(
        &mut self,
        now: Duration,
        internal: SocketAddr,
        remote: SocketAddr,
        counters: &mut BoxCounters,
    ) -> Result<(), DropReason> {
        self.sweep_if_due(now);
        let has_session = self.by_internal.get(&internal).is_some_and(|sessions| sessions.contains(remote));
        if !has_session && self.sessions >= self.config.table_limit {
            return Err(DropReason::TableFull);
        }
        let sessions = self.by_internal.entry(internal).or_insert_with(|| {
            counters.mappings_created += 1;
            Sessions::new(now)
        });
        if sessions.packet_out(now, remote) {
            self.sessions += 1;
            counters.sessions_created += 1;
        }
        counters.sessions_peak = counters.sessions_peak.max(self.sessions);
        counters.mappings_peak = counters.mappings_peak.max(self.by_internal.len());
        Ok(())
    }

    pub(super) fn packet_in(
        &mut self,
        now: Duration,
        remote: SocketAddr,
        internal: SocketAddr,
    ) -> Result<(), DropReason> {
        let (filtering, lifetime) = (self.config.filtering, self.config.lifetime);
        let sessions = self.by_internal.get_mut(&internal).filter(|sessions| sessions.is_live(now, lifetime));
        let sessions = sessions.ok_or(DropReason::NoMapping)?;
        sessions.packet_in(now, remote, filtering, lifetime).then_some(()).ok_or(DropReason::Filtered)
    }

    pub(super) fn reboot(&mut self) {
        self.by_internal.clear();
        self.sessions = 0;
    }

    pub(super) fn live_endpoints(&self, now: Duration) -> usize {
        self.by_internal.values().filter(|sessions| sessions.is_live(now, self.config.lifetime)).count()
    }

    fn sweep_if_due(&mut self, now: Duration) {
        if now < self.swept + SWEEP_INTERVAL {
            return;
        }
        self.swept = now;
        let lifetime = self.config.lifetime;
        self.by_internal.retain(|_, sessions| {
            sessions.sweep(now, lifetime);
            sessions.is_live(now, lifetime)
        });
        self.sessions = self.by_internal.values().map(Sessions::len).sum();
    }
}
