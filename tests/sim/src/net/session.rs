//! What NATs and firewalls remember of one internal endpoint: who it talked to, and when.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How mapping or filtering depends on the remote endpoint (RFC 4787 sections 4.1 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependence {
    /// Not at all.
    EndpointIndependent,
    /// On its address.
    AddressDependent,
    /// On its address and port.
    AddressAndPortDependent,
}

/// Which packets keep a mapping alive (RFC 4787 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// Only those from inside: the least a NAT must do (REQ-6).
    Outbound,
    /// Those from outside that are let in, too.
    Both,
}

/// When state is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// State that no packet refreshed for this long is gone.
    pub idle: Duration,
    /// Which packets refresh it.
    pub refresh: Refresh,
}

impl Default for Lifetime {
    /// The shortest a NAT may use (REQ-5), refreshed as little as allowed (REQ-6).
    fn default() -> Self {
        Self { idle: Duration::from_secs(120), refresh: Refresh::Outbound }
    }
}

/// The sessions of one internal endpoint or mapping.
#[derive(Debug)]
pub(super) struct Sessions {
    by_remote: BTreeMap<SocketAddr, Duration>,
    refreshed: Duration,
}

impl Sessions {
    pub(super) fn new(now: Duration) -> Self {
        Self { by_remote: BTreeMap::new(), refreshed: now }
    }

    pub(super) fn len(&self) -> usize {
        self.by_remote.len()
    }

    pub(super) fn is_live(&self, now: Duration, lifetime: Lifetime) -> bool {
        now < self.refreshed + lifetime.idle
    }

    pub(super) fn contains(&self, remote: SocketAddr) -> bool {
        self.by_remote.contains_key(&remote)
    }

    /// A packet to `remote` leaves. True when that makes a new session.
    pub(super) fn packet_out(&mut self, now: Duration, remote: SocketAddr) -> bool {
        self.refreshed = now;
        self.by_remote.insert(remote, now).is_none()
    }

    /// A packet of `remote` wants in. Whether it may; if so it refreshes what it may refresh.
    pub(super) fn packet_in(
        &mut self,
        now: Duration,
        remote: SocketAddr,
        filtering: Dependence,
        lifetime: Lifetime,
    ) -> bool {
        let (first, last) = match filtering {
            Dependence::EndpointIndependent => {
                if lifetime.refresh == Refresh::Both {
                    self.refreshed = now;
                }
                return true;
            }
            Dependence::AddressDependent => (SocketAddr::new(remote.ip(), 0), SocketAddr::new(remote.ip(), u16::MAX)),
            Dependence::AddressAndPortDependent => (remote, remote),
        };
        let mut is_permitted = false;
        for (_, used) in self.by_remote.range_mut(first..=last) {
            if now < *used + lifetime.idle {
                is_permitted = true;
                if lifetime.refresh == Refresh::Both {
                    *used = now;
                    self.refreshed = now;
                }
            }
        }
        is_permitted
    }

    /// Forgets idle sessions.
    pub(super) fn sweep(&mut self, now: Duration, lifetime: Lifetime) {
        self.by_remote.retain(|_, used| now < *used + lifetime.idle);
    }
}
