//! What packet threads know: one immutable snapshot, swapped as a whole.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use ipnet::Ipv4Net;
use parking_lot::Mutex;

use super::{PeerPath, Sessions};
use crate::identity::{AgentId, is_overlay};
use crate::policy::FlowTable;
use crate::time::Time;
use crate::tunnel::{Tunnel, TunnelIndex};

/// The forwarding snapshot.
#[derive(Debug)]
pub struct Fib {
    /// This agent's overlay address.
    pub own_ipv6: Ipv6Addr,
    /// This host's alias for itself.
    pub own_ipv4: Option<Ipv4Addr>,
    /// The range of aliases on this host.
    pub ipv4_range: Option<Ipv4Net>,
    routes: HashMap<IpAddr, Arc<FibPeer>>,
    tunnels: HashMap<TunnelIndex, Arc<FibPeer>>,
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
        let (mut routes, mut tunnels) = (HashMap::new(), HashMap::new());
        for (index, peer) in peers {
            if peer.trusted {
                routes.insert(IpAddr::V6(peer.ipv6), Arc::clone(&peer));
                if let Some(ipv4) = peer.ipv4 {
                    routes.insert(IpAddr::V4(ipv4.peer_here), Arc::clone(&peer));
                }
            }
            tunnels.insert(index, peer);
        }
        Self { own_ipv6, own_ipv4, ipv4_range, routes, tunnels, relays: HashSet::new(), stun_sources: HashSet::new() }
    }

    /// With the transport addresses that relay frames may come from: those of the servers this agent has sessions with.
    #[must_use]
    pub fn with_relays(mut self, relays: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.relays.extend(relays);
        self
    }

    /// Whether relay frames may come from here.
    #[must_use]
    pub fn is_relay(&self, source: SocketAddr) -> bool {
        self.relays.contains(&source)
    }

    /// With the transport addresses that STUN answers are expected from.
    #[must_use]
    pub fn with_stun_sources(mut self, sources: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.stun_sources.extend(sources);
        self
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
