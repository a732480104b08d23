//! What packet threads know: one immutable snapshot, swapped as a whole. The next one shares with it what did not change.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use ipnet::Ipv4Net;
use parking_lot::Mutex;

use super::parted::Parted;
use super::{PeerPath, Sessions};
use crate::identity::{AgentId, is_overlay};
use crate::policy::FlowTable;
use crate::time::Time;
use crate::tunnel::{Tunnel, TunnelIndex};

/// The forwarding snapshot.
#[derive(Debug, Clone)]
pub struct Fib {
    /// This agent's overlay address.
    pub own_ipv6: Ipv6Addr,
    /// This host's alias for itself.
    pub own_ipv4: Option<Ipv4Addr>,
    /// The range of aliases on this host.
    pub ipv4_range: Option<Ipv4Net>,
    routes: Parted<IpAddr, Arc<FibPeer>>,
    tunnels: Parted<TunnelIndex, Arc<FibPeer>>,
    relays: HashSet<SocketAddr>,
    stun_sources: HashSet<SocketAddr>,
}

/// One peer as packet threads see it.
#[derive(Debug)]
pub struct FibPeer {
    /// Who it is.
    pub id: AgentId,
    /// Its overlay address: the only IPv6 source it may use.
    pub ipv6: Ipv6Addr,
    /// Its IPv4 addresses here and there; `None` until it said which it uses.
    pub ipv4: Option<Ipv4Aliases>,
    /// Both sides consented: IP packets pass. Otherwise only control messages do.
    pub trusted: bool,
    /// Flows, where the grant names ports; `None` lets everything pass.
    pub flows: Option<Arc<Mutex<FlowTable>>>,
    /// What outlives a snapshot.
    pub shared: Arc<SharedPeer>,
}

/// The part of a peer that stays the same object from snapshot to snapshot.
#[derive(Debug)]
pub struct SharedPeer {
    /// Its sessions.
    pub tunnel: Sessions,
    /// Where its packets go now.
    pub path: ArcSwapOption<PeerPath>,
    /// Traffic.
    pub counters: PeerCounters,
    /// The longest packet that the path takes, bytes.
    path_mtu: AtomicU16,
    /// Packets left that not every path takes, since the control plane last looked.
    long_sent: AtomicBool,
    /// Set by a packet thread with the first packet of a period, cleared by the control plane.
    active: AtomicBool,
    /// A session was confirmed, and the control plane does not know yet.
    confirmed: AtomicBool,
    /// Packets on their way to, or in, the queue for a session.
    waiting: AtomicUsize,
    /// Packets that came another way than the primary path, of which the control plane is told.
    pub(super) heard_elsewhere: Allowance<16>,
    /// Control messages.
    pub(super) control: Allowance<64>,
}

/// So many in a tenth of a second.
#[derive(Debug, Default)]
pub(super) struct Allowance<const MOST: u64> {
    /// The tenth of a second that is counted, and how many there were in it.
    state: AtomicU64,
}

impl<const MOST: u64> Allowance<MOST> {
    const COUNT_BITS: u32 = 16;

    /// Whether there is room for one more.
    pub(super) fn take(&self, now: Time) -> bool {
        let period = u64::try_from(now.since_origin().as_millis() / 100).unwrap_or(u64::MAX) << Self::COUNT_BITS;
        let next = |state: u64| {
            let count = state.checked_sub(period).filter(|count| *count <= MOST).unwrap_or_default();
            (count < MOST).then_some(period + count + 1)
        };
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// IPv4 addresses are local aliases: each host has its own for itself and for every peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Aliases {
    /// This host's alias for the peer.
    pub peer_here: Ipv4Addr,
    /// This host's alias for itself.
    pub own_here: Ipv4Addr,
    /// The peer's alias for itself: the source of what it sends.
    pub peer_there: Ipv4Addr,
    /// The peer's alias for this agent: the destination of what it sends.
    pub own_there: Ipv4Addr,
}

impl Ipv4Aliases {
    /// Whether packets from the peer must be rewritten. Where everybody has the preferred aliases they need not.
    #[must_use]
    pub fn differ(&self) -> bool {
        (self.peer_there, self.own_there) != (self.peer_here, self.own_here)
    }
}

/// Traffic of one peer, inside the tunnel.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Bytes sent.
    pub tx_bytes: AtomicU64,
    /// Bytes received.
    pub rx_bytes: AtomicU64,
}

impl Fib {
    /// A snapshot of the given peers. Only trusted ones get routes.
    #[must_use]
    pub fn new(
        own_ipv6: Ipv6Addr,
        own_ipv4: Option<Ipv4Addr>,
        ipv4_range: Option<Ipv4Net>,
        peers: impl IntoIterator<Item = (TunnelIndex, Arc<FibPeer>)>,
    ) -> Self {
        let (routes, tunnels) = (Parted::default(), Parted::default());
        let mut fib = Self {
            own_ipv6,
            own_ipv4,
            ipv4_range,
            routes,
            tunnels,
            relays: HashSet::new(),
            stun_sources: HashSet::new(),
        };
        for (index, peer) in peers {
            fib.insert(index, peer);
        }
        fib
    }

    /// Takes in a peer, instead of what there was under this index. Only a trusted one gets routes.
    pub fn insert(&mut self, index: TunnelIndex, peer: Arc<FibPeer>) {
        self.remove(index);
        if peer.trusted {
            for address in peer.addresses() {
                self.routes.insert(address, Arc::clone(&peer));
            }
        }
        self.tunnels.insert(index, peer);
    }

    /// Drops the peer under this index, with its routes.
    pub fn remove(&mut self, index: TunnelIndex) {
        let Some(peer) = self.tunnels.remove(&index) else { return };
        for address in peer.addresses() {
            if self.routes.get(&address).is_some_and(|holder| Arc::ptr_eq(holder, &peer)) {
                self.routes.remove(&address);
            }
        }
    }

    /// Takes in the transport addresses that relay frames may come from, those of the servers this agent has sessions
    /// with, and those that STUN answers are expected from.
    pub fn set_servers(&mut self, relays: HashSet<SocketAddr>, stun_sources: HashSet<SocketAddr>) {
        (self.relays, self.stun_sources) = (relays, stun_sources);
    }

    /// Whether relay frames may come from here.
    #[must_use]
    pub fn is_relay(&self, source: SocketAddr) -> bool {
        self.relays.contains(&source)
    }

    /// Whether a STUN answer is expected from here.
    #[must_use]
    pub fn is_stun_source(&self, source: SocketAddr) -> bool {
        self.stun_sources.contains(&source)
    }

    /// The trusted peer with this address.
    #[must_use]
    pub fn route(&self, destination: IpAddr) -> Option<&Arc<FibPeer>> {
        self.routes.get(&destination)
    }

    /// The peer whose WireGuard messages carry this receiver index.
    #[must_use]
    pub fn tunnel(&self, receiver_index: u32) -> Option<&Arc<FibPeer>> {
        self.tunnels.get(&TunnelIndex::of_receiver(receiver_index))
    }

    /// Where an error about a packet to this destination comes from: this agent. For IPv4 in the name of the destination,
    /// as hosts take nothing from a network that claims to come from themselves.
    #[must_use]
    pub fn error_source(&self, destination: IpAddr) -> IpAddr {
        match destination {
            IpAddr::V6(_) => IpAddr::V6(self.own_ipv6),
            IpAddr::V4(v4) => IpAddr::V4(v4),
        }
    }

    /// Whether this address is inside an overlay of this host. Nobody's datagrams travel between such.
    #[must_use]
    pub fn is_overlay(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V6(v6) => is_overlay(v6),
            IpAddr::V4(v4) => self.ipv4_range.is_some_and(|range| range.contains(&v4)),
        }
    }

    /// Whether this address is this agent's.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V6(v6) => v6 == self.own_ipv6,
            IpAddr::V4(v4) => Some(v4) == self.own_ipv4,
        }
    }
}

impl FibPeer {
    /// What programs know it by.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V6(self.ipv6)), self.ipv4.map(|ipv4| IpAddr::V4(ipv4.peer_here))].into_iter().flatten()
    }
}

impl SharedPeer {
    /// A peer without a path.
    #[must_use]
    pub fn new(tunnel: Tunnel) -> Self {
        Self {
            tunnel: Sessions::new(tunnel),
            path: ArcSwapOption::empty(),
            counters: PeerCounters::default(),
            path_mtu: AtomicU16::new(u16::MAX),
            long_sent: AtomicBool::new(false),
            active: AtomicBool::new(false),
            confirmed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            heard_elsewhere: Allowance::default(),
            control: Allowance::default(),
        }
    }

    /// The longest packet that the path takes, bytes.
    #[must_use]
    pub fn path_mtu(&self) -> u16 {
        self.path_mtu.load(Ordering::Relaxed)
    }

    /// Packets are at most this long from now on, bytes.
    pub fn set_path_mtu(&self, bytes: u16) {
        self.path_mtu.store(bytes, Ordering::Relaxed);
    }

    /// Notes that a packet left which not every path takes.
    pub fn mark_long_sent(&self) {
        if !self.long_sent.load(Ordering::Relaxed) {
            self.long_sent.store(true, Ordering::Relaxed);
        }
    }

    /// Whether such packets left since the last call.
    pub fn take_long_sent(&self) -> bool {
        self.long_sent.load(Ordering::Relaxed) && self.long_sent.swap(false, Ordering::Relaxed)
    }

    /// Marks traffic; true for the first packet of a period.
    pub fn mark_active(&self) -> bool {
        // The load keeps the common case free of a write to a line both packet threads share.
        !self.active.load(Ordering::Relaxed) && !self.active.swap(true, Ordering::Relaxed)
    }

    /// Ends the period.
    pub fn clear_active(&self) {
        self.active.store(false, Ordering::Relaxed);
    }

    /// Notes that a session was confirmed.
    pub fn set_confirmed(&self) {
        self.confirmed.store(true, Ordering::Relaxed);
    }

    /// Takes the note; the one who took it passes it on or sets it again.
    pub fn take_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed) && self.confirmed.swap(false, Ordering::Relaxed)
    }

    /// Takes a place in the queue for a session; false when `limit` are taken.
    pub fn enter_queue(&self, limit: usize) -> bool {
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
    }

    /// Gives `n` places back.
    pub fn leave_queue(&self, n: usize) {
        let _ =
            self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| Some(waiting.saturating_sub(n)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{IdentityKey, TunnelSecret};

    fn index(number: u32) -> TunnelIndex {
        TunnelIndex::of_receiver(number << 8)
    }

    fn peer(trusted: bool, alias: u8) -> Arc<FibPeer> {
        let [own, peer] = [1, 2].map(|byte| TunnelSecret::from_bytes([byte; 32]));
        let shared = Arc::new(SharedPeer::new(Tunnel::new(&own, &peer.public(), index(7), Time::ZERO, None)));
        let address = |last| Ipv4Addr::new(100, 64, 0, last);
        let ipv4 = Ipv4Aliases {
            peer_here: address(alias),
            own_here: address(1),
            peer_there: address(alias),
            own_there: address(1),
        };
        let ipv6 = Ipv6Addr::new(0xfd61, 0x6e74, 0, 0, 0, 0, 0, 2);
        Arc::new(FibPeer {
            id: IdentityKey::from_seed([2; 32]).id(),
            ipv6,
            ipv4: Some(ipv4),
            trusted,
            flows: None,
            shared,
        })
    }

    #[test]
    fn a_peer_that_changes_leaves_no_route_of_before() {
        let mut fib = Fib::new(Ipv6Addr::UNSPECIFIED, None, None, [(index(7), peer(true, 3))]);
        let route = |fib: &Fib, last| fib.route(Ipv4Addr::new(100, 64, 0, last).into()).is_some();
        fib.insert(index(7), peer(true, 4));
        assert_eq!((route(&fib, 3), route(&fib, 4)), (false, true));
        let before = fib.clone();
        fib.insert(index(7), peer(false, 4));
        assert!(!route(&fib, 4) && fib.tunnel(7 << 8).is_some());
        fib.remove(index(7));
        assert!(fib.tunnel(7 << 8).is_none());
        assert!(route(&before, 4), "what packet threads have changed under them");
    }

    #[test]
    fn an_alias_that_another_peer_took_over_stays_its_route() {
        let (one, other, alias) = (index(7), index(8), IpAddr::from([100, 64, 0, 3]));
        let mut fib = Fib::new(Ipv6Addr::UNSPECIFIED, None, None, [(one, peer(true, 3)), (other, peer(true, 3))]);
        fib.remove(one);
        assert!(fib.route(alias).is_some());
        fib.remove(other);
        assert!(fib.route(alias).is_none());
    }
}
