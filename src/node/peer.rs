//! The life of one peer.
//!
//! ```text
//!   known ──(this side said yes, its record is here)──> linked: it has a tunnel index and a place in the snapshot
//!   linked ──(a packet waits, trust was given, start, its introduction came)──> handshaking: every address is tried
//!   handshaking ──(answered)──> in session: hello both ways, waiting packets leave, the path is where it answered
//!   in session ──(180 s without a new handshake, goodbye)──> linked
//!   handshaking ──(90 s without an answer)──> linked, waiting packets are dropped
//!   any ──(revoked, run out, consent withdrawn)──> known: no tunnel, no route, no answer
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::candidates::Told;
use super::hard_nat::Search;
use super::limits::{HELLO_RATE, HINT_RATE, MESSAGE_RATE, PEER_PROBE_RATE};
use super::relays::RelayLeg;
use super::stored::StoredPeer;
use super::told_clock::ToldClock;
use super::{Node, Output, TimerKind};
use crate::api::TrustState;
use crate::forwarding::{FibPeer, Ipv4Aliases, PeerPath, SharedPeer, WAITING_PACKETS};
use crate::identity::{AgentId, DEFAULT_IPV4_RANGE, SignedRecord, TunnelPublic, overlay_ipv6, preferred_ipv4};
use crate::limits::Bucket;
use crate::path::{PathMtus, PathSet};
use crate::policy::{FlowTable, PortSpec};
use crate::time::{Now, Time};
use crate::trust::{Relation, Theirs};
use crate::tunnel::{Initiation, Tunnel, TunnelIndex, sealed_len};
use crate::wire::control::IntroducedStatus;

/// How long a peer waits for its link when the wall clock stands before 1970.
const CLOCK_RETRY: std::time::Duration = std::time::Duration::from_secs(60);

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RecordSource {
    /// The user pasted it.
    Ticket,
    /// The peer introduced itself.
    Introduction,
    /// The peer sent it inside a session.
    Session,
}

/// Everything about one peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: AgentId,
    pub(super) ipv6: Ipv6Addr,
    pub(super) record: SignedRecord,
    pub(super) record_source: RecordSource,
    /// Seconds since 1970.
    pub(super) record_received: u64,
    pub(super) relation: Relation,
    /// Mutual trust at the time it was last looked at; what the snapshot says.
    pub(super) trusted: bool,
    /// Transport addresses, the most promising first.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) alias: Option<Ipv4Addr>,
    pub(super) their_aliases: Option<TheirAliases>,
    pub(super) ipv4: Option<Ipv4Aliases>,
    pub(super) flows: Option<Arc<Mutex<FlowTable>>>,
    pub(super) last_initiation: Option<Initiation>,
    /// Time of the newest introduction from it, by its clock, milliseconds since 1970. Older ones are replays.
    pub(super) last_introduction_ms: u64,
    /// The tunnel key under which it said hello: nobody else's.
    pub(super) proved_key: Option<TunnelPublic>,
    /// When an initiation of it that looked like a replay last made this side begin a handshake.
    pub(super) stale_answered: Option<Time>,
    pub(super) link: Option<Link>,
    pub(super) asking: Asking,
}

/// What the peer uses for itself and for this agent on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TheirAliases {
    /// For itself.
    pub own: Ipv4Addr,
    /// For this agent.
    pub peer: Ipv4Addr,
}

/// The live half: exists while this side agrees to hold a session.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: TunnelIndex,
    pub(super) key: TunnelPublic,
    pub(super) shared: Arc<SharedPeer>,
    /// Packets that wait for the session. At most [`WAITING_PACKETS`], counted in [`SharedPeer`].
    pub(super) queue: VecDeque<Vec<u8>>,
    /// Number of the connection, in the log; 0 before the first.
    pub(super) conn: u64,
    /// When the current wish to talk began.
    pub(super) wanted_since: Option<Time>,
    /// When it began while there was no direct path; there is none yet.
    pub(super) connecting_since: Option<Time>,
    pub(super) established: Option<Time>,
    pub(super) paths: PathSet,
    pub(super) mtus: PathMtus,
    /// Channels to it, by relay.
    pub(super) relays: BTreeMap<AgentId, RelayLeg>,
    pub(super) told: Told,
    /// For a way through hard NATs.
    pub(super) search: Search,
    /// When other peers were last asked to introduce this agent to it.
    pub(super) introduced: Option<Time>,
    /// Bytes sent and received when traffic was last looked at.
    pub(super) moved: (u64, u64),
    /// When there was traffic last, while it is looked at.
    pub(super) watched_since: Option<Time>,
    /// It is looked at once more.
    pub(super) looks_again: bool,
    /// For probes of paths that may not exist.
    pub(super) probes: Bucket,
    /// For writes to disk that a restart can do without.
    hints: Bucket,
    /// When data last passed, as far as was looked.
    pub(super) last_traffic: Option<Time>,
    pub(super) path_since: Option<Time>,
    pub(super) gave_up: Option<Time>,
    pub(super) rtt_ms: Option<f64>,
    pub(super) time_to_direct_ms: Option<f64>,
    /// What its clock showed.
    pub(super) clock: Option<ToldClock>,
    /// Hellos sent since the last one that was acknowledged.
    pub(super) hellos: u32,
    pub(super) hello_acknowledged: bool,
    /// What it may still say inside the session.
    pub(super) messages: Bucket,
    /// What it may still say of itself, which costs more.
    pub(super) hellos_received: Bucket,
    /// The peer said that it stops.
    pub(super) stopped: bool,
}

/// Introductions sent to a peer that has not answered.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// Shown to the other side. Not kept across restarts.
    pub(super) reason: String,
    pub(super) attempts: u32,
    pub(super) first: Option<Time>,
    pub(super) last: Option<Time>,
    /// What a server last said became of it.
    pub(super) passed_on: Option<IntroducedStatus>,
}

impl Peer {
    pub(super) fn new(now: Now, record: SignedRecord, source: RecordSource) -> Self {
        let id = record.record().id;
        Self {
            id,
            ipv6: overlay_ipv6(&id),
            record,
            record_source: source,
            record_received: now.unix_s(),
            relation: Relation::default(),
            trusted: false,
            addresses: Vec::new(),
            alias: None,
            their_aliases: None,
            ipv4: None,
            flows: None,
            last_initiation: None,
            last_introduction_ms: 0,
            proved_key: None,
            stale_answered: None,
            link: None,
            asking: Asking::default(),
        }
    }

    /// Its place in the forwarding snapshot.
    pub(super) fn fib_entry(&self) -> Option<(TunnelIndex, Arc<FibPeer>)> {
        let link = self.link.as_ref()?;
        let entry = FibPeer {
            id: self.id,
            ipv6: self.ipv6,
            ipv4: self.ipv4,
            trusted: self.trusted,
            flows: self.flows.clone(),
            shared: Arc::clone(&link.shared),
        };
        Some((link.index, Arc::new(entry)))
    }

    /// Makes policy what the grant says. Flows live on while the ports stay the same.
    fn apply_grant(&mut self) {
        let Some(text) = &self.relation.grant.ports else {
            self.flows = None;
            return;
        };
        // Validated when it was agreed on; what cannot be read any more permits nothing.
        let ports = text.parse().unwrap_or_else(|_| PortSpec::none());
        if self.flows.as_ref().is_none_or(|flows| *flows.lock().ports() != ports) {
            self.flows = Some(Arc::new(Mutex::new(FlowTable::new(ports))));
        }
    }

    pub(super) fn name(&self) -> Option<String> {
        self.record.record().name.as_ref().map(ToString::to_string)
    }

    pub(super) fn stored(&self) -> StoredPeer {
        StoredPeer {
            record: self.record.clone(),
            record_source: self.record_source,
            record_received: self.record_received,
            relation: self.relation.clone(),
            addresses: self.addresses.clone(),
            alias: self.alias,
            their_aliases: self.their_aliases,
            last_initiation: self.last_initiation,
            last_introduction_ms: self.last_introduction_ms,
            proved_key: self.proved_key,
        }
    }
}

impl Node {
    /// Takes in what was stored.
    pub(super) fn restore(&mut self, now: Now, stored: Vec<StoredPeer>) {
        let (mut ids, usable) = (Vec::new(), self.usable());
        for stored in stored {
            let mut peer = Peer::new(now, stored.record, stored.record_source);
            if peer.id == self.id {
                continue;
            }
            peer.record_received = stored.record_received;
            peer.relation = stored.relation;
            peer.note_candidates(usable, stored.addresses);
            peer.their_aliases = stored.their_aliases;
            peer.last_initiation = stored.last_initiation;
            peer.last_introduction_ms = stored.last_introduction_ms;
            peer.proved_key = stored.proved_key;
            // A stored alias that no longer fits the range is replaced when trust is looked at below.
            if let (Some(aliases), Some(alias)) = (&mut self.aliases, stored.alias) {
                peer.alias = aliases.insert_stored(peer.id, alias).ok();
            }
            if let Some(key) = peer.proved_key {
                self.proved_keys.entry(key).or_insert(peer.id);
            }
            ids.push((peer.id, stored.alias));
            self.peers.insert(peer.id, Box::new(peer));
        }
        for (id, alias) in ids {
            self.apply_trust(now, id);
            // The rest is on disk as it is.
            if self.peers.get(&id).is_some_and(|peer| peer.alias != alias) {
                self.store(id);
            }
        }
    }

    pub(super) fn connect_to_trusted(&mut self, now: Now) {
        let trusted = self.peers.values().filter(|peer| peer.trusted).map(|peer| peer.id);
        for id in trusted.collect::<Vec<_>>() {
            self.start_handshake(now, id);
        }
    }

    /// Number of the connection with a peer, in the log; 0 where there is none.
    pub(super) fn conn(&self, id: AgentId) -> u64 {
        self.peers.get(&id).and_then(|peer| peer.link.as_ref()).map_or(0, |link| link.conn)
    }

    pub(super) fn link_mut(&mut self, id: AgentId) -> Option<&mut Link> {
        self.peers.get_mut(&id)?.link.as_mut()
    }

    /// Takes in a verified record, if it is news. Returns false when there is no room for another agent.
    pub(super) fn learn_record(&mut self, now: Now, record: SignedRecord, source: RecordSource) -> bool {
        let id = record.record().id;
        let full = self.peers.len() >= super::limits::MAX_PEERS;
        match self.peers.get_mut(&id) {
            None if full => return false,
            None => {
                // An agent one talks to is not also one's server.
                self.drop_server(now, id);
                self.peers.insert(id, Box::new(Peer::new(now, record, source)));
            }
            Some(peer) if record.supersedes(&peer.record) => {
                let same_servers = peer.record.record().rendezvous == record.record().rendezvous;
                peer.record = record;
                peer.record_source = source;
                peer.record_received = now.unix_s();
                let rotated = peer.link.as_ref().is_some_and(|link| link.key != peer.record.record().tunnel_key);
                if rotated {
                    self.unlink(id);
                    self.trust_changed(now, id);
                } else {
                    self.store(id);
                }
                if !same_servers {
                    self.return_servers(now);
                    if self.in_session(now, id) {
                        self.borrow_servers_of(now, id);
                    }
                }
            }
            Some(_) => {}
        }
        true
    }

    /// Brings everything in line with the relation as it stands now: link, route, alias, policy, timers, disk.
    pub(super) fn trust_changed(&mut self, now: Now, id: AgentId) {
        self.apply_trust(now, id);
        self.store(id);
    }

    /// The same but for the disk.
    fn apply_trust(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let unix_s = now.unix_s();
        let state = peer.relation.state(unix_s);
        let admitted = peer.relation.admits_session(unix_s);
        let was_trusted = std::mem::replace(&mut peer.trusted, state == TrustState::Trusted);
        if was_trusted && state == TrustState::None {
            self.counters.trust_expired.increment();
        }
        self.no_helpers = false;
        peer.apply_grant();
        let expires = peer
            .relation
            .expires()
            .filter(|_| peer.trusted)
            .map(|at| now.time + std::time::Duration::from_secs(at.saturating_sub(unix_s)));
        let asks = state == TrustState::Requested && peer.relation.theirs == Theirs::Nothing;
        let linked = peer.link.is_some();
        self.timers.set(TimerKind::Trust(id), expires);
        if admitted {
            self.assign_alias(id);
            if !linked {
                self.link(now, id);
            }
        } else if linked {
            self.unlink(id);
        }
        if !asks {
            self.timers.set(TimerKind::Introduction(id), None);
        } else if self.peers.get(&id).is_some_and(|peer| peer.asking.first.is_none()) {
            self.timers.set(TimerKind::Introduction(id), Some(now.time));
        }
        if let Some((index, entry)) = self.peers.get(&id).and_then(|peer| peer.fib_entry()) {
            self.fib_mut().insert(index, entry);
        }
    }

    fn link(&mut self, now: Now, id: AgentId) {
        let Some(key) = self.peers.get(&id).map(|peer| peer.record.record().tunnel_key) else { return };
        // A session needs the wall clock, and the library panics on one before 1970.
        if now.unix_ms == 0 {
            self.timers.set(TimerKind::Trust(id), Some(now.time + CLOCK_RETRY));
            return;
        }
        if !self.may_use_key(id, key) {
            tracing::warn!(peer = %id.short(), "its tunnel key is this agent's or another peer's: not connected");
            return;
        }
        let index = self.indices.allocate(id, &mut *self.rng);
        let interface_mtu = self.interface_mtu();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let tunnel = Tunnel::new(&self.tunnel_secret, &key, index, now.time, peer.last_initiation.as_ref());
        peer.link = Some(Link {
            index,
            key,
            shared: Arc::new(SharedPeer::new(tunnel)),
            queue: VecDeque::new(),
            conn: 0,
            wanted_since: None,
            connecting_since: None,
            established: None,
            paths: PathSet::new().leading(self.id < id),
            mtus: PathMtus::new(interface_mtu),
            relays: BTreeMap::new(),
            told: Told::default(),
            search: Search::default(),
            introduced: None,
            moved: (0, 0),
            watched_since: None,
            looks_again: false,
            probes: Bucket::full(now.time, PEER_PROBE_RATE),
            hints: Bucket::full(now.time, HINT_RATE),
            last_traffic: None,
            path_since: None,
            gave_up: None,
            rtt_ms: None,
            time_to_direct_ms: None,
            clock: None,
            hellos: 0,
            hello_acknowledged: false,
            messages: Bucket::full(now.time, MESSAGE_RATE),
            hellos_received: Bucket::full(now.time, HELLO_RATE),
            stopped: false,
        });
        self.known_sources.add(&peer.addresses);
        self.by_tunnel_key.insert(key, id);
    }

    /// Whether a peer may be linked under a tunnel key. Anybody can put anybody's key into its record, but only the
    /// owner can say hello in a session under it, from its own address: who has not gives way to the next.
    fn may_use_key(&mut self, id: AgentId, key: TunnelPublic) -> bool {
        if key == self.record.record().tunnel_key || self.proved_keys.get(&key).is_some_and(|owner| *owner != id) {
            return false;
        }
        if let Some(holder) = self.by_tunnel_key.get(&key).copied().filter(|holder| *holder != id) {
            self.unlink(holder);
        }
        true
    }

    /// It has shown that this key is its own, and that the one `before` no longer is.
    pub(super) fn key_proved(&mut self, id: AgentId, before: Option<TunnelPublic>, key: TunnelPublic) {
        if let Some(before) = before {
            self.disown_key(id, before);
        }
        self.proved_keys.entry(key).or_insert(id);
    }

    fn disown_key(&mut self, id: AgentId, key: TunnelPublic) {
        if self.proved_keys.get(&key) == Some(&id) {
            self.proved_keys.remove(&key);
        }
    }

    pub(super) fn unlink(&mut self, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = peer.link.take() else { return };
        self.session_erased = true;
        self.known_sources.remove(&peer.addresses);
        self.indices.release(link.index);
        if self.by_tunnel_key.get(&link.key) == Some(&id) {
            self.by_tunnel_key.remove(&link.key);
        }
        self.counters.drop_out_no_session.add(link.queue.len() as u64);
        self.timers.set(TimerKind::Tunnel(id), None);
        self.timers.set(TimerKind::Hello(id), None);
        self.timers.set(TimerKind::Path(id), None);
        self.timers.set(TimerKind::Candidates(id), None);
        self.search_unlinked(id, &link);
        self.fib_mut().remove(link.index);
    }

    /// Forgets a peer altogether.
    pub(super) fn forget(&mut self, id: AgentId) {
        self.unlink(id);
        self.timers.set(TimerKind::Introduction(id), None);
        self.timers.set(TimerKind::Trust(id), None);
        if let Some(aliases) = &mut self.aliases {
            aliases.remove(&id);
        }
        if let Some(key) = self.peers.remove(&id).and_then(|peer| peer.proved_key) {
            self.disown_key(id, key);
        }
        self.outputs.push_back(Output::Store(id, None));
    }

    pub(super) fn store(&mut self, id: AgentId) {
        if let Some(peer) = self.peers.get(&id) {
            self.outputs.push_back(Output::Store(id, Some(Box::new(peer.stored()))));
        }
    }

    /// The same for what the peer can change at will, such as where it is: not at any rate, and the next time will do.
    pub(super) fn store_hint(&mut self, now: Now, id: AgentId) {
        if self.link_mut(id).is_none_or(|link| link.hints.take(now.time, HINT_RATE)) {
            self.store(id);
        }
    }

    fn assign_alias(&mut self, id: AgentId) {
        let Some(aliases) = &mut self.aliases else { return };
        let Ok(peer_here) = aliases.assign(id) else {
            tracing::warn!(peer = %id.short(), "the IPv4 range is full: this peer has IPv6 only");
            return;
        };
        let (own_here, own_id) = (aliases.own(), self.id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.alias = Some(peer_here);
        // Until the peer says otherwise it is taken to use the values everybody prefers.
        let theirs = peer.their_aliases.unwrap_or_else(|| TheirAliases {
            own: preferred_ipv4(&id, DEFAULT_IPV4_RANGE),
            peer: preferred_ipv4(&own_id, DEFAULT_IPV4_RANGE),
        });
        peer.ipv4 = Some(Ipv4Aliases { peer_here, own_here, peer_there: theirs.own, own_there: theirs.peer });
    }

    /// A packet found no session. It waits, and a handshake begins.
    pub(super) fn session_needed(&mut self, now: Now, id: AgentId, packet: Vec<u8>) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        // The session may have come while the notice was on its way.
        let ready = link.shared.path.load().is_some() && link.shared.tunnel.lock().has_session(now.time);
        if link.queue.len() >= WAITING_PACKETS {
            link.shared.leave_queue(1);
            self.counters.drop_out_no_session.increment();
        } else {
            link.queue.push_back(packet);
        }
        link.begin_wanting(now.time, &mut self.connections);
        if ready {
            self.flush_queue(now, id);
        } else {
            self.start_handshake(now, id);
        }
    }

    /// Seals what waited and sends it.
    pub(super) fn flush_queue(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        let packets = std::mem::take(&mut link.queue);
        link.shared.leave_queue(packets.len());
        if !packets.is_empty() {
            link.begin_watching(now.time);
        }
        for packet in packets {
            let len = packet.len() as u64;
            if self.send_sealed(now, id, &packet) {
                if let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) {
                    link.shared.counters.tx_bytes.fetch_add(len, Ordering::Relaxed);
                    let relayed = link.shared.path.load().as_ref().is_some_and(|path| path.relay.is_some());
                    self.counters.sealed(1, len, relayed);
                }
            } else {
                self.counters.drop_out_no_session.increment();
            }
        }
    }

    /// Seals one packet and sends it on the primary path; false when there is no session or path.
    pub(super) fn send_sealed(&mut self, now: Now, id: AgentId, packet: &[u8]) -> bool {
        let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else { return false };
        let Some(path) = link.shared.path.load_full() else { return false };
        if !self.send_sealed_on(now, id, packet, &path) {
            return false;
        }
        self.arm_tunnel_timer(id);
        true
    }

    /// Seals one packet and sends it on this path; false when there is no session.
    pub(super) fn send_sealed_on(&mut self, now: Now, id: AgentId, packet: &[u8], path: &PeerPath) -> bool {
        let Some(datagram) = self.seal_for(now, id, packet) else { return false };
        self.transmit_on(path, datagram);
        true
    }

    pub(super) fn seal_for(&mut self, now: Now, id: AgentId, packet: &[u8]) -> Option<Vec<u8>> {
        let link = self.peers.get(&id)?.link.as_ref()?;
        let mut datagram = vec![0; sealed_len(packet.len())];
        let len = link.shared.tunnel.lock().seal(now.time, packet, &mut datagram).ok()?;
        datagram.truncate(len);
        Some(datagram)
    }

    pub(super) fn network_changed_for(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let Some(link) = &peer.link else { return };
        if link.shared.tunnel.lock().has_session(now.time) {
            self.host_moved(now, id);
            self.send_hello(now, id);
            if let Some(link) = self.link_mut(id) {
                link.mtus.network_changed(now.time);
            }
            self.try_all_paths(now, id);
            self.search_may_help(now, id, false);
        } else if peer.trusted {
            self.start_handshake(now, id);
        }
    }
}
